"""
The `digest` flow: each channel's daily digest, at the time that its plans ask for.

It calls one function and says what came of it; `penstock digest --post` does the same without Prefect. Its one rule: it runs more often than any
digest is due, and posts none twice.
"""

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from controller.digest import announce_due
from controller.ports import PortError
from flows.context import controller


@flow(name="digest", flow_run_name="digest", retries=0, persist_result=False)
def digest() -> State[None]:
    """Put the digests that are due on their way to Slack."""
    with controller() as c:
        try:
            found = announce_due(c.ports, c.outbox)
        except PortError as exc:
            get_run_logger().error("%s", exc)
            return Failed(message=str(exc))
    if not found:
        return Completed(name="Nothing due", message="no digest is due")
    return Completed(message="; ".join(f"{n.rollout_id}: {n.standing}" for n in found))
