"""
The `audit-head` flow: the head of the audit log, published on a schedule.

It calls one function and says what came of it; `penstock audit head --publish` does the same without Prefect. Its one rule: a log that no longer
holds what was published fails the run, so that it is seen here as well.
"""

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from controller.ports import PortError
from controller.sweep import beat
from controller.wiring import publish_head
from flows.context import controller


@flow(name="audit-head", flow_run_name="audit head", retries=0, persist_result=False)
def audit_head() -> State[None]:
    """Publish the head of the audit log to the file of heads, and to Slack where it is set up."""
    log = get_run_logger()
    with controller() as c:
        try:
            done = publish_head(c)
        except PortError as exc:
            log.error("%s", exc)
            return Failed(message=str(exc))
        if not done.broken:
            beat(c.ports, "audit-head")
    if done.broken:
        log.error("%s", done.broken)
        return Failed(name="Broken", message=done.broken)
    if done.head is None:
        return Completed(name="Empty", message="the audit log has no rows yet")
    signed = f"signed by key {done.head.key}" if done.head.key else "not signed"
    text = f"row {done.head.id}, {done.head.hash}, {signed}"
    return Completed(name="Published" if done.fresh else "Unchanged", message=text)
