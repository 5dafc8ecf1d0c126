"""
The `gate-check` flow: one look at every rollout that is due, each in its own task.

It stands above `controller.sweep` and adds what Prefect is good for: a schedule, names, and pages to read. Its one rule: Prefect's
part may fail and the rollouts go on. Decisions are committed before anything is shown, and what could not be shown is only logged.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run as this_run
from prefect.runtime import task_run as this_task
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from controller.commands import CommandRefused, abort
from controller.core.decision import Hold
from controller.core.rollout import LogError, Rollout, replay
from controller.ports import PortError, Ports, UnknownRollout
from controller.standing import standing, standings
from controller.sweep import Swept, beat, gates_checked, look, sweep
from controller.tick import Outcome, due
from flows import record, stuck
from flows.context import controller
from flows.shown import only_logged

WORKERS = 8
"""Rollouts looked at side by side; each waits for Prometheus most of the time."""

MANY = 50
"""Rollouts from which on one task looks at all of them, and asks Prometheus and Postgres for all at once."""


def scheduled_name() -> str:
    """``gate-check 14:15`` in UTC, with seconds where checks come more often than once a minute."""
    at = this_run.get_scheduled_start_time() or datetime.now(UTC)
    return f"gate-check {at:%H:%M:%S}" if at.second else f"gate-check {at:%H:%M}"


@flow(
    name="gate-check",
    flow_run_name=scheduled_name,
    retries=0,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=WORKERS),  # type: ignore[arg-type]  # the runner's type of future is narrower than the decorator's
)
def gate_check(rollout: str | None = None, force: bool = False) -> State[None]:
    """
    Look at every rollout that is due: measure, judge, decide, act.

    Runs that come late, twice or at the same time find nothing due and end so.

    Args:
        rollout: Look at this rollout only.
        force: Look although nothing is due yet.
    """
    with controller() as c, get_client(sync_client=True) as client:
        with only_logged("old gate checks could not be cleaned up"):
            stuck.crash_own(client, _run_id())
        heads, errors = _heads(c.ports, [rollout] if rollout else list(c.ports.index.active()))
        runs: dict[str, FlowRun] = {}
        with only_logged("record runs could not be read"):
            runs |= record.find(client, {i: h.key for i, h in heads.items()})
            for i in set(heads) - set(runs):
                runs[i] = record.create(client, heads[i].rollout)
        errors |= _abort_called_off(c.ports, heads, runs)

        beat(c.ports, "gate-check")
        now = c.ports.audit.now()
        chosen = {i: h for i, h in heads.items() if not h.rollout.ended and (force or due(h.rollout, now))}
        records = {i: str(run.id) for i, run in runs.items() if i in chosen}
        if len(chosen) > MANY:
            many = gates.submit(list(chosen), len(chosen), force, records)
            futures: dict[str, PrefectFuture[Any]] = {}
        else:
            many = None
            futures = {
                i: gate.submit(i, h.phase, h.rollout.plan.candidate.model, force, records.get(i)) for i, h in chosen.items()
            }
        with only_logged("the run could not be named"):
            client.set_flow_run_name(_run_id(), f"{scheduled_name()} · {_count(len(chosen))}")
        swept = {i: _result(future) for i, future in futures.items()} if many is None else _results(many, chosen)
        errors |= {i: s for i, s in swept.items() if isinstance(s, str)}
        gates_checked(c.ports, [i for i, s in swept.items() if isinstance(s, Swept)], sorted(errors))
        shown = {i for i, s in swept.items() if isinstance(s, Swept) and s.tick and s.tick.outcome is Outcome.DECIDED}
        _mirror_all(c.ports, client, runs, shown)
    looked = [s for s in swept.values() if isinstance(s, Swept)]
    if errors:
        return Failed(message="; ".join(f"{i}: {text}" for i, text in sorted(errors.items())))
    if not looked:
        return Completed(name="Nothing due", message="no rollout is due")
    return Completed(message="; ".join(f"{s.rollout_id}: {_said(s)}" for s in looked))


@task(name="gate", task_run_name="gate {phase} {model}", cache_policy=NO_CACHE, retries=0, persist_result=False)
def gate(rollout_id: str, phase: str, model: str, force: bool, record_run: str | None) -> Any:
    """
    One look at one rollout.

    Args:
        rollout_id: Which.
        phase, model: For the task's name.
        force: Look although nothing is due.
        record_run: Id of the run that shows this rollout, if there is one.

    Returns:
        Swept, or a Failed state that says why it could not be looked at.
    """
    log = get_run_logger()
    with controller() as c:
        swept = look(rollout_id, c.ports, may_raise=True, force=force)
        if swept.tick is None:
            log.error("%s: %s", rollout_id, swept.error)
            return Failed(message=swept.error)
        log.info("%s: %s", rollout_id, _said(swept))
        if swept.tick.outcome is Outcome.DECIDED:
            with (
                only_logged(f"{rollout_id}: the decision stands, but could not be shown"),
                get_client(sync_client=True) as client,
            ):
                entries = c.ports.audit.entries(rollout_id)
                shown_by = UUID(record_run) if record_run else _run_id()
                record.publish(client, replay(entries), entries, shown_by, UUID(str(this_task.get_id())))
    return swept


@task(name="gates", task_run_name="{count} gates", cache_policy=NO_CACHE, retries=0, persist_result=False)
def gates(rollout_ids: list[str], count: int, force: bool, records: dict[str, str]) -> dict[str, Swept]:
    """
    One look at each of many rollouts, with one question to Prometheus for all.

    Args:
        rollout_ids: Which.
        count: How many, for the task's name.
        force: Look although nothing is due.
        records: Ids of the runs that show them, as far as there are any.

    Returns:
        What came of each. Only what moved a rollout is shown on its record: a thousand pages at each check would be read by nobody.
    """
    log = get_run_logger()
    found: dict[str, Swept] = {}
    with controller() as c, get_client(sync_client=True) as client:
        for swept in sweep(c.ports, may_raise=True, only=rollout_ids, force=force):
            found[swept.rollout_id] = swept
            if swept.tick is None:
                log.error("%s: %s", swept.rollout_id, swept.error)
                continue
            log.info("%s: %s", swept.rollout_id, _said(swept))
            if swept.tick.outcome is Outcome.DECIDED and not isinstance(swept.tick.decision, Hold):
                record_run = records.get(swept.rollout_id)
                with only_logged(f"{swept.rollout_id}: the decision stands, but could not be shown"):
                    entries = c.ports.audit.entries(swept.rollout_id)
                    shown_by = UUID(record_run) if record_run else _run_id()
                    record.publish(client, replay(entries), entries, shown_by, UUID(str(this_task.get_id())))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An active rollout before this check: its state and the key that it was opened with."""

    rollout: Rollout
    key: str

    @property
    def phase(self) -> str:
        index = self.rollout.phase
        return "start" if index is None else self.rollout.plan.phases[index].name


def _heads(ports: Ports, ids: list[str]) -> tuple[dict[str, Head], dict[str, str]]:
    heads: dict[str, Head] = {}
    errors: dict[str, str] = {}
    known = standings(ids, ports.audit, ports.standings)
    for rollout_id in ids:
        try:
            rollout = known.get(rollout_id) or standing(rollout_id, ports.audit, ports.standings)
            heads[rollout_id] = Head(rollout=rollout, key=_key_of(rollout_id, ports))
        except (PortError, LogError) as exc:
            errors[rollout_id] = f"{type(exc).__name__}: {exc}"
    return heads, errors


_keys: dict[str, str] = {}
"""Of rollouts that this process has seen: a first row never changes."""


def _key_of(rollout_id: str, ports: Ports) -> str:
    if rollout_id not in _keys:
        _keys[rollout_id] = record.key_of([ports.audit.entry(rollout_id, 1)])
    return _keys[rollout_id]


def _abort_called_off(ports: Ports, heads: dict[str, Head], runs: Mapping[str, FlowRun]) -> dict[str, str]:
    """Abort the rollouts whose record run was cancelled; updates their heads."""
    errors: dict[str, str] = {}
    for rollout_id, head in heads.items():
        run = runs.get(rollout_id)
        if run is None or head.rollout.ended or not record.called_off(run):
            continue
        try:
            aborted = abort(rollout_id, ports, actor="prefect", reason=f"the run {run.name!r} was cancelled in Prefect")
            heads[rollout_id] = Head(rollout=aborted, key=head.key)
        except CommandRefused:
            pass  # it ended by itself in this moment
        except (PortError, LogError) as exc:
            errors[rollout_id] = f"{type(exc).__name__}: {exc}"
    return errors


def _mirror_all(ports: Ports, client: SyncPrefectClient, runs: Mapping[str, FlowRun], shown: set[str]) -> None:
    """Every record run says where its rollout stands now, those included that the guard or a person ended meanwhile."""
    for rollout_id, run in runs.items():
        with only_logged(f"{rollout_id}: the run {run.name!r} could not be updated"):
            try:
                rollout = standing(rollout_id, ports.audit, ports.standings)
            except UnknownRollout:
                continue  # the record of another controller that shares this Prefect server
            if record.mirror(client, run, rollout) and rollout.ended and rollout_id not in shown:
                record.publish(client, rollout, ports.audit.entries(rollout_id), run.id)


def _result(future: PrefectFuture[Any]) -> Swept | str:
    future.wait()
    state = future.state
    if not state.is_completed():
        return state.message or f"the task ended {state.name}"
    swept = future.result(raise_on_failure=False)
    return swept if isinstance(swept, Swept) else f"the task gave {type(swept).__name__}"


def _results(future: PrefectFuture[Any], chosen: Iterable[str]) -> dict[str, Swept | str]:
    future.wait()
    state = future.state
    found = future.result(raise_on_failure=False) if state.is_completed() else None
    if not isinstance(found, dict):
        return dict.fromkeys(chosen, state.message or f"the task ended {state.name}")
    return {i: (s if s.tick is not None else s.error) for i, s in found.items()}


def _said(swept: Swept) -> str:
    tick = swept.tick
    if tick is None:
        return swept.error
    if tick.decision is None:
        return tick.outcome.replace("_", " ")
    suffix = "" if tick.outcome is Outcome.DECIDED else f" ({tick.outcome.replace('_', ' ')})"
    return "; ".join([f"{tick.decision.kind.replace('_', ' ')}: {tick.decision.text}{suffix}", *tick.drilled])


def _count(n: int) -> str:
    return "nothing due" if n == 0 else "1 rollout" if n == 1 else f"{n} rollouts"


def _run_id() -> UUID:
    return UUID(str(this_run.get_id()))
