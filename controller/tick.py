"""
One look at one rollout: read, settle, measure, judge, decide, commit (and exercise what is lacking); always in this direction.

Two callers share it. The gate check may raise and lower and leaves a row for every look; the guard may only lower or pause and leaves
a row only when it does. Its one rule: it keeps nothing. Everything it knows it reads first, so any number of controllers may run it
at the same time, late, or after a crash.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from controller.commit import Committed, commit, lower_as_seen, lower_unrecorded, settle
from controller.core.converge import Convergence, Drift, InStep, Killed, Landed, converge, leased
from controller.core.decide import decide
from controller.core.decision import Decision, Hold, RollBack, Why, lowers
from controller.core.exercise import Exercise, exercises
from controller.core.gates import GateResult
from controller.core.rollout import Applied, AwaitingApproval, Entry, FlagRead, Moving, Rollout, fence_id, step
from controller.crash import Point, reached
from controller.gather import Look, gather
from controller.ports import AuditUnavailable, Drills, FlagConflict, Heartbeats, PortError, Ports, SeqTaken, Texts
from controller.shelf import CaseShelf
from controller.standing import standing
from flagspec import RouteFlag

DRILLS_MAX = 10
"""Of one look; a gate that lacks more gets the rest at the next ones."""

SILENT_LOOKS, SILENT_LEAST = 4, timedelta(minutes=1)
"""A guard that has not looked for so many of its beats, and for so long at least, is silent."""

NO_DRILLS = "PENSTOCK_ROUTER_URL or PENSTOCK_DRILL_TOKEN is not set or not usable here; `penstock drill fallback` says which"


class Outcome(StrEnum):
    DECIDED = "decided"
    NOTHING_DUE = "nothing_due"
    QUIET = "quiet"
    LOST_RACE = "lost_race"
    UNRECORDED = "unrecorded"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """
    What a look came to.

    Args:
        outcome: DECIDED wrote a row; NOTHING_DUE came too early; QUIET is a guard that found nothing to lower; LOST_RACE left it
            to another controller; UNRECORDED lowered the flag without a row; ENDED found the rollout over.
        rollout: As the log tells it afterwards.
        decision: What was decided; None if nothing was.
        results: The verdicts; of a guard that finds nothing to lower, without those of the statistical gates.
        phase_judged: Index of the phase that they belong to; None before the first.
        drilled: What came of the drills that were sent after the decision, in words.
        drifted: The flag carried what no decision explains.
    """

    outcome: Outcome
    rollout: Rollout
    decision: Decision | None = None
    results: tuple[GateResult, ...] = ()
    phase_judged: int | None = None
    drilled: tuple[str, ...] = ()
    drifted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    What was read for a look together with that of others, a little before it.

    That the log or the flag has gone on since costs a look and nothing else: rows and flags are written only if they are as they were read.
    """

    rollout: Rollout
    flag: RouteFlag | None


def tick(
    rollout_id: str,
    ports: Ports,
    now: datetime,
    *,
    may_raise: bool,
    force: bool = False,
    dry_run: bool = False,
    seen: Seen | None = None,
) -> Tick:
    """
    Args:
        rollout_id: Which rollout.
        ports: The world.
        now: The database's clock (`ports.audit.now()`).
        may_raise: True for the gate check, False for the guard.
        force: Check although the gate check is not due yet.
        dry_run: Decide, but settle and commit nothing.
        seen: What was read already.

    Raises:
        UnknownRollout, AuditUnavailable, FlagUnavailable: nothing was decided, or (FlagUnavailable) not confirmed yet.
        LogError: the audit log contradicts itself.
    """
    rollout = standing(rollout_id, ports.audit, ports.standings) if seen is None else seen.rollout
    reached(Point.LOG_READ)
    if rollout.ended:
        return Tick(outcome=Outcome.ENDED, rollout=rollout)
    if may_raise and not force and not due(rollout, now):
        return Tick(outcome=Outcome.NOTHING_DUE, rollout=rollout)

    actor = "gate-check" if may_raise else "guard"
    if seen is None or (seen.flag is not None and seen.flag.lease is not None):  # a lease may have been renewed since
        flag = ports.flags.read(rollout.plan.environment, rollout.plan.flag)
    else:
        flag = seen.flag
    reached(Point.FLAG_READ)
    if dry_run:
        return _dry_run(rollout, flag, ports, now, may_raise=may_raise)
    try:
        rollout, flag, convergence = settle(rollout, flag, ports, actor=actor)
    except SeqTaken:
        return Tick(outcome=Outcome.LOST_RACE, rollout=rollout)
    except AuditUnavailable:
        if (lowered := _lowered_without_log(rollout, flag, ports, now)) is None:
            raise
        return lowered
    reached(Point.SETTLED)
    if rollout.ended:
        return Tick(outcome=Outcome.ENDED, rollout=rollout)
    leases_clock = _leases_clock(flag, ports, now)
    convergence = leased(convergence, flag, leases_clock)

    drifted = isinstance(convergence, Drift)

    found, judged = observe(rollout, ports, now), rollout.phase
    reached(Point.MEASURED)
    if not may_raise and not found.struck:
        # Without a breach that acts, the statistical gates cannot make a guard lower: only the others can.
        quick = found.results(counted=False)
        decision = decide(rollout, convergence, quick, now, may_raise=False)
        if _is_quiet(decision):
            renew(rollout, flag, convergence, ports)
            return Tick(
                outcome=Outcome.QUIET, rollout=rollout, decision=decision, results=quick, phase_judged=judged, drifted=drifted
            )
    results = found.results()
    decision = decide(rollout, convergence, results, now, may_raise=may_raise)
    if not may_raise and _is_quiet(decision):
        renew(rollout, flag, convergence, ports)
        return Tick(
            outcome=Outcome.QUIET, rollout=rollout, decision=decision, results=results, phase_judged=judged, drifted=drifted
        )

    reached(Point.DECIDED)
    source = "gate_check" if may_raise else "guard"
    observed = found.observed(results)
    if not isinstance(convergence, InStep):
        # What the log does not explain must be in the row for the decision to be computed again.
        observed = replace(observed, found=FlagRead(flag=flag, at=leases_clock))
    if may_raise and (silent := guard_silent_since(rollout, ports.heartbeats, now)) is not None:
        observed = replace(observed, guard_silent_since=silent)
    done = commit(rollout, flag, decision, ports, actor=actor, source=source, observed=observed, at=now)
    looked = Tick(
        outcome=_outcome(done), rollout=done.rollout, decision=decision, results=results, phase_judged=judged, drifted=drifted
    )
    if not may_raise or looked.outcome is not Outcome.DECIDED or not isinstance(decision, Hold):
        return looked
    lacking = exercises(rollout, convergence, results, now)
    return replace(looked, drilled=tuple(_exercised(rollout, lacking, ports.drills)))


def observe(rollout: Rollout, ports: Ports, now: datetime) -> Look:
    """Measure the gates of the phase that the rollout is in."""
    return gather(rollout, ports.audit, ports.metrics, ports.shelf, now)


def _is_quiet(decision: Decision) -> bool:
    """Whether a guard leaves it at that: a hold is the gate check's to tell, but for the one that says that none comes."""
    return isinstance(decision, Hold) and decision.why is not Why.DEAD_MAN


def renew(rollout: Rollout, flag: RouteFlag | None, convergence: Convergence, ports: Ports) -> None:
    """
    The guard has looked and found nothing to lower: the flag's weights hold on. Written when a third of the lease is over.

    Raises:
        FlagUnavailable: unknown whether it landed; the next look tries again.
    """
    lease = rollout.plan.policy.lease
    if (
        lease is None
        or not isinstance(convergence, InStep)
        or flag is None
        or flag.lease is None
        or not (flag.weight or flag.shadow_weight)
    ):
        return
    if flag.lease - ports.flags.now() > lease * 2 / 3:
        return
    with suppress(FlagConflict):  # written by somebody else meanwhile, or lapsed: the next look finds out
        ports.flags.renew(flag.environment, flag.key, lease, flag.version)


def guard_silent_since(rollout: Rollout, heartbeats: Heartbeats | None, now: datetime) -> datetime | None:
    """When a guard last looked at a rollout (or the rollout began), if it should have looked again long ago; else None."""
    if heartbeats is None:
        return None
    try:
        looked = heartbeats.last_beat("guard", rollout.id) or rollout.opened_at
    except AuditUnavailable:
        return None  # the row that would tell of it cannot be written either
    patience = max(SILENT_LOOKS * rollout.plan.policy.guard_every, SILENT_LEAST)
    return looked if now - looked > patience else None


def _leases_clock(flag: RouteFlag | None, ports: Ports, now: datetime) -> datetime:
    """The clock that leases are measured by; it is not asked where there is none."""
    return now if flag is None or flag.lease is None else ports.flags.now()


def _exercised(rollout: Rollout, lacking: Iterable[Exercise], drills: Drills | None) -> Iterator[str]:
    """Sends what is due. Never raises for what a router does: the decision stands, and the next gate check sees what is still lacking."""
    plan = rollout.plan
    for exercise in lacking:
        if drills is None:
            yield f"{exercise.gate}: no drill, {NO_DRILLS}"
            continue
        for _ in range(min(exercise.times, DRILLS_MAX)):
            try:
                seen = drills.fallback(plan.environment, plan.flag, route=exercise.route, streaming=exercise.streaming)
            except PortError as exc:
                yield f"{exercise.gate}: no drill, {exc}"
                break
            if not seen.answered_by:
                yield f"{exercise.gate}: drill, nobody answered in place of {plan.candidate.model}: {seen.text}"
                break
            took_s = seen.took.total_seconds()
            yield f"{exercise.gate}: drill, {seen.answered_by} answered in place of {plan.candidate.model} after {took_s:.2f} s"


def _dry_run(rollout: Rollout, flag: RouteFlag | None, ports: Ports, now: datetime, *, may_raise: bool) -> Tick:
    """What would be decided; nothing is settled or written. A change on its way is only named."""
    if isinstance(rollout.state, Moving):
        text = f"{rollout.state.decision_id} is on its way; the next look settles it before it decides"
        decision: Decision = Hold(why=Why.SETTLING, text=text)
        return Tick(outcome=Outcome.DECIDED, rollout=rollout, decision=decision, phase_judged=rollout.phase)
    results = observe(rollout, ports, now).results()
    convergence = leased(converge(rollout, flag), flag, _leases_clock(flag, ports, now))
    decision = decide(rollout, convergence, results, now, may_raise=may_raise)
    return Tick(outcome=Outcome.DECIDED, rollout=rollout, decision=decision, results=results, phase_judged=rollout.phase)


def without_log(rollout: Rollout, ports: Ports, shelf: CaseShelf) -> Tick:
    """
    A guard's look while the log cannot be read: a breach of the rollout as it was last known is brought to 0 through the flag alone.

    The next look that can read the log finds the lowering in the flag and records it.

    Args:
        rollout: As last known, not ended.
        ports: The world; its log is not asked.
        shelf: Of looks without a log: for evidence that this process does not have at hand.

    Raises:
        FlagUnavailable: the flag store cannot be read either, or it is unknown whether a lowering landed.
    """
    now = ports.flags.now()
    flag = ports.flags.read(rollout.plan.environment, rollout.plan.flag)
    quiet = Tick(outcome=Outcome.QUIET, rollout=rollout, phase_judged=rollout.phase)
    # Another controller may read the log and be further: what it wrote into the flag is not ours to judge.
    if flag is None or not flag.decision_id.startswith(f"{rollout.id}."):
        return quiet
    if isinstance(rollout.state, Moving):
        moving = rollout.state
        if not lowers(moving.decision) and flag.decision_id not in (
            rollout.applied,
            moving.decision_id,
            fence_id(moving.decision_id),
        ):
            return quiet
        judged = _while_moving(rollout, flag, _NoLog(), ports, now)
    else:
        found = leased(converge(rollout, flag), flag, now)
        if not isinstance(found, InStep):
            return quiet
        at_hand = ports.shelf if ports.shelf.holds(rollout.id, rollout.evidence) else shelf
        results = gather(rollout, _NoLog(), ports.metrics, at_hand, now).results()
        judged = replace(quiet, decision=decide(rollout, found, results, now, may_raise=False), results=results)
        if not isinstance(judged.decision, RollBack):
            renew(rollout, flag, found, ports)
    if judged is None or judged.decision is None or not lowers(judged.decision):
        return judged or quiet
    try:
        lower_as_seen(rollout, flag, judged.decision.kind, ports)
    except FlagConflict:
        return quiet  # changed since it was read: the next look judges what it finds
    return replace(judged, outcome=Outcome.UNRECORDED)


class _NoLog:
    """Where `gather` would read the recorded evidence: it begins anew, from the phase's start."""

    def text(self, _reference: str) -> str:
        return ""


def _lowered_without_log(rollout: Rollout, flag: RouteFlag | None, ports: Ports, now: datetime) -> Tick | None:
    """
    A raise is on its way and the log cannot be written: nothing can be settled, but a breach is still brought to 0.

    Returns:
        None when there is nothing to lower.
    """
    if not isinstance(rollout.state, Moving) or lowers(rollout.state.decision):
        return None
    judged = _while_moving(rollout, flag, ports.audit, ports, now)
    if judged is None or not isinstance(judged.decision, RollBack):
        return None
    try:
        lower_unrecorded(rollout, judged.decision.kind, ports)
    except SeqTaken:
        return replace(judged, outcome=Outcome.LOST_RACE)
    return replace(judged, outcome=Outcome.UNRECORDED)


def _while_moving(rollout: Rollout, flag: RouteFlag | None, texts: Texts, ports: Ports, now: datetime) -> Tick | None:
    """
    What a guard would decide with a change on its way that cannot be settled; nothing is written.

    Returns:
        A Tick with the decision; None where there is nothing to lower.
    """
    moving = rollout.state
    assert isinstance(moving, Moving), moving
    if lowers(moving.decision):
        done = flag is not None and flag.decision_id == moving.decision_id
        return (
            None if done else Tick(outcome=Outcome.QUIET, rollout=rollout, decision=moving.decision, phase_judged=rollout.phase)
        )
    found, presumed = converge(rollout, flag), rollout
    if isinstance(found, Landed):
        # As it will stand once the row can be written: in the phase that the flag is in already.
        event = Applied(decision_id=moving.decision_id, weights=moving.weights, flag_version=0 if flag is None else flag.version)
        entry = Entry(rollout_id=rollout.id, seq=rollout.seq + 1, at=moving.since, actor="", event=event)
        presumed = step(rollout, entry)
    else:
        presumed = replace(rollout, state=moving.settled)
    if presumed.ended:
        return None
    # On a shelf of its own: what is presumed must not become what is known.
    try:
        results = gather(presumed, texts, ports.metrics, CaseShelf(), now).results()
    except AuditUnavailable:
        results = gather(presumed, _NoLog(), ports.metrics, CaseShelf(), now).results()
    killed = flag is not None and flag.killed
    decision = decide(presumed, Killed() if killed else InStep(), results, now, may_raise=False)
    return Tick(outcome=Outcome.QUIET, rollout=rollout, decision=decision, results=results, phase_judged=presumed.phase)


def due(rollout: Rollout, now: datetime) -> bool:
    """
    Whether a gate check has something to do: once per slot of `gates.every`, and at once after a new approval or an override.

    Slots are whole multiples of the period since the epoch, so that overlapping and late runs agree on which slot it is.
    """
    last = rollout.last_gate_check
    if last is None or slot(now, rollout.plan.policy.every) > slot(last, rollout.plan.policy.every):
        return True
    state, override = rollout.state, rollout.override
    voted = isinstance(state, AwaitingApproval) and any(vote.at > last for vote in state.votes)
    return voted or (override is not None and override.at > last)


def slot(at: datetime, every: timedelta) -> int:
    return math.floor(at.timestamp() / every.total_seconds())


def _outcome(done: Committed) -> Outcome:
    if done.lost:
        return Outcome.LOST_RACE
    return Outcome.UNRECORDED if done.unrecorded else Outcome.DECIDED
