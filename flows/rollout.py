"""
The `rollout` flow: start a rollout, look once, and become its record.

It is short: it opens the rollout and leaves; gate checks do the rest (`gate_check.py`). Its one rule: running it again is harmless. The
rollout is opened under the id of the flow run, so a replay, a resume or a second worker finds the one that is there.
"""

from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.runtime import flow_run as this_run
from prefect.states import Failed

from controller.act import start
from controller.codec import plan_digest
from controller.commands import CommandRefused
from controller.core.people import NotAllowed
from controller.core.rollout import replay
from controller.ports import PortError
from controller.spec import RolloutSpec
from controller.sweep import look
from controller.tick import Outcome
from controller.wiring import caller_of, check_models, open_people
from flows import record
from flows.context import controller
from flows.shown import only_logged
from specfile import SpecError


@flow(
    name=record.FLOW_NAME,
    flow_run_name="{spec.metadata.name}: {spec.baseline.model} → {spec.candidate.model}",
    retries=0,
    persist_result=False,
)
def rollout(spec: RolloutSpec, requested_by: str = "") -> State[None]:
    """
    Bring a candidate model from its first phase to 100% of the traffic, or back to 0.

    This run stays *Paused* under the name of the current phase while the rollout lasts, with every decision among its logs and
    artifacts. It ends *Promoted*, *Rolled back* or *Aborted*. **Cancel it to abort the rollout**: the next gate check brings the
    candidate back to 0%. Resuming it only looks again.

    Args:
        spec: The rollout, as in rollout.yaml.
        requested_by: Who asks; counts only where Prefect itself does not know. This person may not approve where the plan says
            not_requester.
    """
    run_id = UUID(str(this_run.get_id()))
    log = get_run_logger()
    plan = spec.to_plan()
    with controller() as c, get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        creator = None if run.created_by is None else run.created_by.display_value
        try:
            file = open_people(c.settings)
            opened = start(
                plan,
                plan_digest(plan),
                caller_of(c.settings, creator or requested_by or "prefect"),
                c.ports,
                key=str(run_id),
                people=None if file is None else file.people(),
                check=lambda: check_models(c.settings, plan),
            )
        except (CommandRefused, NotAllowed, PortError, SpecError) as exc:
            log.error("not started: %s", exc)
            return Failed(name="Refused", message=str(exc))
        client.update_flow_run(run_id, tags=sorted({*run.tags, *record.tags_of(opened)}))
        swept = look(opened.id, c.ports, may_raise=True)
        if swept.error:
            log.error("the first look failed, the next gate check tries again: %s", swept.error)
        entries = c.ports.audit.entries(opened.id)
        latest = replay(entries)
        if swept.tick is not None and swept.tick.outcome is Outcome.DECIDED:
            with only_logged("the decision stands, but could not be shown"):
                record.publish(client, latest, entries, run_id)
        state = record.state_of(latest, can_replay=run.deployment_id is not None)
        if latest.ended:
            return state
        # Not by force: who cancelled the run in the meantime is not overruled. Prefect's way to leave a run paused is this exception.
        client.set_flow_run_state(run_id, state)
        raise Pause(f"{opened.id} is on its way", state=state)
