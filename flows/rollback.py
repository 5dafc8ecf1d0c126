"""
The `rollback` flow: the form behind which the candidate goes back to 0%.

It calls one command and says what came of it. Its one rule: it ends Completed only after the flag confirmed 0%.
"""

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from controller.act import Ask, act
from controller.commands import CommandRefused
from controller.core.notice import standing
from controller.core.people import NotAllowed, Right
from controller.core.rollout import LogError
from controller.ports import PortError
from controller.wiring import caller_of
from flows import record
from flows.context import controller
from flows.forms import Person, Reason, RolloutId
from flows.shown import only_logged


@flow(name="rollback", flow_run_name="roll back {rollout}", retries=0, persist_result=False)
def rollback(rollout: RolloutId, reason: Reason, requested_by: Person = "prefect") -> State[None]:
    """
    Bring the candidate of a rollout back to 0% now.

    Args:
        rollout: Id of the rollout, as in its tag rollout:<id>.
        reason: Why; goes into the audit log and to Slack.
        requested_by: Who asks.
    """
    log = get_run_logger()
    with controller() as c:
        try:
            caller = caller_of(c.settings, requested_by, lowering=True)
            after = act(Ask(verb=Right.ROLL_BACK, rollout_id=rollout, reason=reason), caller, c.ports).rollout
        except (CommandRefused, NotAllowed, PortError, LogError) as exc:
            log.error("%s", exc)
            return Failed(message=str(exc))
        log.info("%s: %s", rollout, standing(after))
        with only_logged("the record run could not be updated"), get_client(sync_client=True) as client:
            record.refresh(client, c.ports, rollout)
    return Completed(name="Rolled back", message=f"{rollout}: {standing(after)}")
