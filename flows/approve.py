"""
The `approve` flow: the form with which a person says yes to the next phase.

Prefect's open-source server authenticates nobody, so the name and group are what the form says. Its one rule: it approves and moves nothing; the next gate check judges once more and then advances.
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
from flows.forms import Group, Person, RolloutId
from flows.shown import only_logged
from specfile import SpecError


@flow(name="approve", flow_run_name="{approver} approves {rollout}", retries=0, persist_result=False)
def approve(rollout: RolloutId, approver: Person, group: Group) -> State[None]:
    """
    Approve the phase that a rollout waits to enter.

    Args:
        rollout: Id of the rollout, as in its tag rollout:<id>.
        approver: Who approves.
        group: The group in whose name, one of those that the plan asks for.
    """
    log = get_run_logger()
    with controller() as c:
        try:
            caller = caller_of(c.settings, approver, (group,))
            after = act(Ask(verb=Right.APPROVE, rollout_id=rollout, groups=(group,)), caller, c.ports).rollout
        except (CommandRefused, NotAllowed, PortError, LogError, SpecError) as exc:
            log.error("%s", exc)
            return Failed(message=str(exc))
        log.info("%s: %s", rollout, standing(after))
        with only_logged("the record run could not be updated"), get_client(sync_client=True) as client:
            record.refresh(client, c.ports, rollout)
    return Completed(name="Approved", message=f"{rollout}: {standing(after)}")
