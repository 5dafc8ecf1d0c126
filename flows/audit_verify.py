"""
The `audit-verify` flow: the whole audit log checked once a day, against every head that was published.

It calls one function and says what came of it; `penstock audit verify --heads` does the same without Prefect. Its one rule: only a log that was
found intact counts as verified, so that the alert for a log that nobody verifies also fires for one that is broken.
"""

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from controller.ports import PortError
from controller.settings import SettingsError
from controller.sweep import beat
from controller.wiring import verify_log
from flows.context import controller

SHOWN_MAX = 20
"""Problems in a run's message; `penstock audit verify` prints them all."""


@flow(name="audit-verify", flow_run_name="audit verify", retries=0, persist_result=False)
def audit_verify() -> State[None]:
    """Follow the hash chain through every row and every raw answer, and look for every published head."""
    log = get_run_logger()
    with controller() as c:
        try:
            report = verify_log(c.settings)
        except (PortError, SettingsError) as exc:
            log.error("%s", exc)
            return Failed(message=str(exc))
        if report.ok:
            beat(c.ports, "audit-verify")
    checked = f"{report.rows} rows of {report.rollouts} rollouts, {report.answers} raw answers, {report.heads} published heads"
    if report.ok:
        return Completed(name="Intact", message=checked)
    for problem in report.problems:
        log.error("%s: row %s: %s", problem.kind, problem.audit_id, problem.text)
    found = "; ".join(f"{p.kind}: {p.text}" for p in report.problems[:SHOWN_MAX])
    return Failed(name="Broken", message=f"{report.problem_count} problems in {checked}: {found}")
