"""
One look at one rollout: read, settle, measure, judge, decide, commit (and exercise what is lacking); always in this direction.

Two callers share it. The gate check may raise and lower and leaves a row for every look; the guard may only lower or pause and leaves
a row only when it does. Its one rule: it keeps nothing. Everything it knows it reads first, so any number of controllers may run it
at the same time, late, or after a crash.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from controller.commit import Committed, commit, lower_unrecorded, settle
from controller.core.converge import InStep, Killed, Landed, converge
from controller.core.decide import decide
from controller.core.decision import Decision, Hold, RollBack, Why, lowers
from controller.core.exercise import Exercise, exercises
from controller.core.gates import GateResult
from controller.core.rollout import Applied, AwaitingApproval, Entry, Moving, Rollout, replay, step
from controller.crash import Point, reached
from controller.gather import Look, gather
from controller.ports import AuditUnavailable, Drills, PortError, Ports, SeqTaken
from controller.shelf import CaseShelf
from flagspec import RouteFlag

DRILLS_MAX = 10
"""Of one look; a gate that lacks more gets the rest at the next ones."""

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
    """

    outcome: Outcome
    rollout: Rollout
    decision: Decision | None = None
    results: tuple[GateResult, ...] = ()
    phase_judged: int | None = None
    drilled: tuple[str, ...] = ()


def tick(rollout_id: str, ports: Ports, now: datetime, *, may_raise: bool, force: bool = False, dry_run: bool = False) -> Tick:
    """
    Args:
        rollout_id: Which rollout.
        ports: The world.
        now: The database's clock (`ports.audit.now()`).
        may_raise: True for the gate check, False for the guard.
        force: Check although the gate check is not due yet.
        dry_run: Decide, but settle and commit nothing.

    Raises:
        UnknownRollout, AuditUnavailable, FlagUnavailable: nothing was decided, or (FlagUnavailable) not confirmed yet.
        LogError: the audit log contradicts itself.
    """
    rollout = replay(ports.audit.entries(rollout_id))
    reached(Point.LOG_READ)
    if rollout.ended:
        return Tick(outcome=Outcome.ENDED, rollout=rollout)
    if may_raise and not force and not due(rollout, now):
        return Tick(outcome=Outcome.NOTHING_DUE, rollout=rollout)

    actor = "gate-check" if may_raise else "guard"
    flag = ports.flags.read(rollout.plan.environment, rollout.plan.flag)
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

    seen, judged = observe(rollout, ports, now), rollout.phase
    reached(Point.MEASURED)
    if not may_raise and not seen.struck:
        # Without a breach that acts, the statistical gates cannot make a guard lower: only the others can.
        quick = seen.results(counted=False)
        decision = decide(rollout, convergence, quick, now, may_raise=False)
        if isinstance(decision, Hold):
            return Tick(outcome=Outcome.QUIET, rollout=rollout, decision=decision, results=quick, phase_judged=judged)
    results = seen.results()
    decision = decide(rollout, convergence, results, now, may_raise=may_raise)
    if not may_raise and isinstance(decision, Hold):
        return Tick(outcome=Outcome.QUIET, rollout=rollout, decision=decision, results=results, phase_judged=judged)

    reached(Point.DECIDED)
    source = "gate_check" if may_raise else "guard"
    done = commit(rollout, flag, decision, ports, actor=actor, source=source, observed=seen.observed(results), at=now)
    looked = Tick(outcome=_outcome(done), rollout=done.rollout, decision=decision, results=results, phase_judged=judged)
    if not may_raise or looked.outcome is not Outcome.DECIDED or not isinstance(decision, Hold):
        return looked
    lacking = exercises(rollout, convergence, results, now)
    return replace(looked, drilled=tuple(_exercised(rollout, lacking, ports.drills)))


def observe(rollout: Rollout, ports: Ports, now: datetime) -> Look:
    """Measure the gates of the phase that the rollout is in."""
    return gather(rollout, ports.audit, ports.metrics, ports.shelf, now)


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
    decision = decide(rollout, converge(rollout, flag), results, now, may_raise=may_raise)
    return Tick(outcome=Outcome.DECIDED, rollout=rollout, decision=decision, results=results, phase_judged=rollout.phase)


def _lowered_without_log(rollout: Rollout, flag: RouteFlag | None, ports: Ports, now: datetime) -> Tick | None:
    """
    A raise is on its way and the log cannot be written: nothing can be settled, but a breach is still brought to 0.

    Returns:
        None when there is nothing to lower.
    """
    if not isinstance(rollout.state, Moving) or lowers(rollout.state.decision):
        return None
    found = converge(rollout, flag)
    moving, presumed = rollout.state, rollout
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
    results = gather(presumed, ports.audit, ports.metrics, CaseShelf(), now).results()
    killed = flag is not None and flag.killed
    decision = decide(presumed, Killed() if killed else InStep(), results, now, may_raise=False)
    if not isinstance(decision, RollBack):
        return None
    lower_unrecorded(rollout, decision.kind, ports)
    return Tick(outcome=Outcome.UNRECORDED, rollout=rollout, decision=decision, results=results, phase_judged=presumed.phase)


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
