"""
The record run: the run of the `rollout` flow in which people see a rollout.

It stays PAUSED under the name of the phase while the rollout lasts, carries its decisions as logs and artifacts, and ends when the
rollout ends. Its one rule: it mirrors and never decides; the one thing read from it is that somebody cancelled it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, FlowRunCreate
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateDetails, StateType
from prefect.logging.loggers import flow_run_logger
from prefect.states import to_state_create

from controller.core.notice import account_of, standing
from controller.core.rollout import Aborted, AwaitingApproval, Entry, Opened, Paused, Promoted, RolledBack, Rollout, replay
from controller.ports import Ports
from flows.evidence import artifact_key, decision_of, headline, news, page

FLOW_NAME = "rollout"
PAGE_SIZE = 200
"""Most rows that a Prefect server returns at once (PREFECT_SERVER_API_DEFAULT_LIMIT)."""
STARTING = timedelta(minutes=2)
"""How long a record run may be about its own first look before a gate check takes it for abandoned and mirrors onto it."""


def rollout_tag(rollout_id: str) -> str:
    return f"rollout:{rollout_id}"


def rollout_of(run: FlowRun) -> str | None:
    """The rollout that a record run's tag names."""
    return next((t.removeprefix("rollout:") for t in run.tags if t.startswith("rollout:")), None)


def tags_of(rollout: Rollout) -> list[str]:
    return [rollout_tag(rollout.id), f"model:{rollout.plan.candidate.model}", f"environment:{rollout.plan.environment}"]


def run_name(rollout: Rollout) -> str:
    plan = rollout.plan
    return f"{plan.name}: {plan.baseline.model} → {plan.candidate.model}"


def state_of(rollout: Rollout, *, can_replay: bool) -> State[None]:
    """
    What the record run shows of a rollout.

    Args:
        rollout: Any.
        can_replay: The run belongs to a deployment, so that Prefect's Resume button can run the flow again, which only looks again.
            Without this a resumed run would be RUNNING for ever.
    """
    plan, state, text = rollout.plan, rollout.state, standing(rollout)
    match state:
        case Promoted():
            return State(type=StateType.COMPLETED, name="Promoted", message=f"{plan.candidate.model} serves 100%")
        case RolledBack():
            return State(type=StateType.COMPLETED, name="Rolled back", message=state.text)
        case Aborted():
            return State(type=StateType.CANCELLED, name="Aborted", message=f"by {state.actor}: {state.text}")
        case _:
            pass
    index = rollout.phase
    where = "not started" if index is None else f"{plan.phases[index].name} {plan.phases[index].weight / 1000:g}%"
    if isinstance(state, Paused):
        where, text = f"paused: {where}", f"{text}: {state.text}"
    elif isinstance(state, AwaitingApproval):
        where = f"{where}, approve {plan.phases[state.entering].name}?"
    return State(type=StateType.PAUSED, name=where, message=text, state_details=StateDetails(pause_reschedule=can_replay))


def find(client: SyncPrefectClient, keys: Mapping[str, str]) -> dict[str, FlowRun]:
    """
    The record runs of the given rollouts, and all others that still wait.

    Args:
        client: Of the Prefect API.
        keys: Rollout id to the key it was opened with: the id of its record run if Prefect started it.

    Returns:
        By rollout id.
    """
    ids = {UUID(key): rollout_id for rollout_id, key in keys.items() if _is_uuid(key)}
    found: dict[str, FlowRun] = {}
    filters = [FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))]
    if ids:
        filters.insert(0, FlowRunFilter(id=FlowRunFilterId(any_=list(ids))))
    if keys:
        filters.append(FlowRunFilter(tags=FlowRunFilterTags(any_=[rollout_tag(i) for i in keys])))
    for run_filter in filters:
        for run in _read(client, run_filter):
            rollout_id = ids.get(run.id) or rollout_of(run)
            if rollout_id is not None:
                found.setdefault(rollout_id, run)
    return found


def _read(client: SyncPrefectClient, run_filter: FlowRunFilter) -> Iterable[FlowRun]:
    flow_filter = FlowFilter(name=FlowFilterName(any_=[FLOW_NAME]))
    offset = 0
    while True:
        runs = client.read_flow_runs(flow_filter=flow_filter, flow_run_filter=run_filter, limit=PAGE_SIZE, offset=offset)
        yield from runs
        if len(runs) < PAGE_SIZE:
            return
        offset += PAGE_SIZE


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def called_off(run: FlowRun) -> bool:
    """Whether somebody cancelled the record run, which means: abort the rollout."""
    return run.state_type in (StateType.CANCELLED, StateType.CANCELLING) and run.state_name != "Aborted"


def mirror(client: SyncPrefectClient, run: FlowRun, rollout: Rollout) -> bool:
    """
    Make the record run say where its rollout stands.

    Returns:
        Whether there was something to change.
    """
    want = state_of(rollout, can_replay=run.deployment_id is not None)
    if _says(run, want):
        return False
    # Read again: forcing a state must not undo a cancellation that came after the runs were read.
    run = client.read_flow_run(run.id)
    if _says(run, want) or (not rollout.ended and (called_off(run) or _is_starting(run))):
        return False
    if run.state is not None and want.type is StateType.PAUSED:
        want.state_details = run.state.state_details.model_copy(update={"pause_reschedule": run.deployment_id is not None})
    if missing := set(tags_of(rollout)) - set(run.tags):
        client.update_flow_run(run.id, tags=[*run.tags, *sorted(missing)])
    client.set_flow_run_state(run.id, want, force=True)
    return True


def _says(run: FlowRun, want: State[None]) -> bool:
    return run.state is not None and (run.state.type, run.state.name, run.state.message) == (want.type, want.name, want.message)


def _is_starting(run: FlowRun) -> bool:
    """Whether the run is about its own first look, after which it pauses itself."""
    busy = run.state is not None and run.state.type in (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)
    return busy and run.state is not None and datetime.now(UTC) - run.state.timestamp < STARTING


def publish(
    client: SyncPrefectClient, rollout: Rollout, entries: Sequence[Entry], run_id: UUID | None, task_run_id: UUID | None = None
) -> bool:
    """
    Show the last decision as an artifact and a log line, if it changed something.

    Args:
        client: Of the Prefect API.
        rollout: As it stands.
        entries: All its audit rows.
        run_id: The run whose page shows it: the record run, or the gate check where there is none.
        task_run_id: The task run that decided.

    Returns:
        Whether there was news.
    """
    latest = news(entries)
    if latest is None:
        return False
    text = f"{headline(decision_of(latest).decision, rollout.plan)}: {account_of(latest, entries)}"
    client.create_artifact(
        ArtifactCreate(
            key=artifact_key(rollout.id),
            type="markdown",
            description=text[:500],
            data=page(rollout, entries, latest),
            flow_run_id=run_id,
            task_run_id=task_run_id,
        )
    )
    if run_id is not None:
        flow_run_logger(flow_run_id=run_id).info("%s", text)
    return True


def refresh(client: SyncPrefectClient, ports: Ports, rollout_id: str) -> None:
    """
    Bring the record run of one rollout up to date at once, where a gate check would do it at its next turn.

    Raises:
        PortError, LogError: the rollout cannot be read.
    """
    entries = ports.audit.entries(rollout_id)
    rollout, key = replay(entries), key_of(entries)
    run = find(client, {rollout_id: key}).get(rollout_id)
    if run is not None and mirror(client, run, rollout):
        publish(client, rollout, entries, run.id)


def key_of(entries: Sequence[Entry]) -> str:
    """The key that a rollout was opened with."""
    opened = entries[0].event
    assert isinstance(opened, Opened), "the first row opens the rollout"
    return opened.key


def create(client: SyncPrefectClient, rollout: Rollout) -> FlowRun:
    """
    A record run for a rollout that was not started in Prefect, so that it is seen there like any other.

    No process belongs to it: it is created as PAUSED and only mirrored onto. Creating it twice gives the same run.
    """
    wanted = FlowRunCreate(
        flow_id=client.create_flow_from_name(FLOW_NAME),
        name=run_name(rollout),
        tags=tags_of(rollout),
        state=to_state_create(state_of(rollout, can_replay=False)),
        idempotency_key=f"record of {rollout.id}",
    )
    answer = client.request("POST", "/flow_runs/", json=wanted.model_dump(mode="json", exclude_unset=True))
    return FlowRun.model_validate(answer.json())
