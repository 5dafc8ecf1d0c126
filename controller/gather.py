"""
The evidence of a look: what was recorded, what happened since, and what each gate is worth with both.

It stands between `tick`, which decides, and the ports: it asks the metric source for the traffic since the last look and feeds it to the rollout's
case. Its one rule: the audit log is the only memory. What is kept between looks (`CaseShelf`) saves reading it again and nothing else:
a look without it comes to the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from controller.codec import readings_to_text
from controller.core.gates import GateResult, judge_all
from controller.core.measurement import Counted, Counts, Measurement, NoData, QueryFailed, Sampled
from controller.core.plan import Gate, Plan, SampleRatio
from controller.core.rollout import AwaitingApproval, Baking, Gathered, Observed, Pending, Rollout, settled_of
from controller.core.traffic import REQUESTS, Reading, TrafficRead, columns_of, question_of, questions_of
from controller.ports import AuditUnavailable, MetricSource, Planned, Scope, Texts
from controller.shelf import CaseShelf, Shelved, Taken

if TYPE_CHECKING:
    from controller.core.evidence.case import Case

RECENT_LEAST = timedelta(seconds=15)
"""Silence is judged on at least so much traffic, however often the gates are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """
    What a look found, before anything is judged or decided.

    Args:
        plan: The rollout's plan.
        phase: Index of the phase that its gates belong to; 0 before the first.
        since: When it began.
        at: Of the look.
        measurements: By gate, in the plan's order.
        exposure: Requests that the candidate answered, as far as it is recorded; None before the first.
        shelved: The case and what it took; None where no traffic was asked for or none ever came.
    """

    plan: Plan
    phase: int
    since: datetime
    at: datetime
    measurements: tuple[tuple[str, Measurement], ...] = ()
    exposure: float | None = None
    shelved: Shelved | None = None

    @property
    def struck(self) -> bool:
        """Whether the evidence holds a breach that acts."""
        return self.shelved is not None and self.shelved.case.struck() is not None

    def results(self, *, counted: bool = True) -> tuple[GateResult, ...]:
        """
        Args:
            counted: Judge the statistical gates too. Their intervals cost several times what a beat of evidence does: a guard that finds
                nothing to lower spares itself that.
        """
        seen = {name: m for name, m in self.measurements if counted or not isinstance(m, Counted)}
        weighed = self.shelved.case.weighed() if counted and self.shelved is not None else {}
        return judge_all(self.plan, self.phase, seen, weighed, self.at - self.since)

    def observed(self, results: tuple[GateResult, ...]) -> Observed:
        """What the row holds of it, with the `results` of all gates."""
        gathered, exposure = None, None
        if self.shelved is not None:
            readings = self.shelved.taken.readings()
            gathered = Gathered(before=self.shelved.before, traffic=readings_to_text(readings), after=self.shelved.case.text())
            exposure = (self.exposure or 0.0) + _exposed(self.plan, readings)
        return Observed(at=self.at, measurements=self.measurements, results=results, exposure=exposure, gathered=gathered)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aim:
    """What a look at a rollout is about: a phase, when it began, its gates, and whose traffic is asked for."""

    phase: int
    since: datetime
    gates: tuple[Gate, ...]
    scope: Scope

    @property
    def asked(self) -> tuple[Gate, ...]:
        """The gates that are not judged from traffic."""
        return tuple(g for g in self.gates if question_of(g) is None and not isinstance(g, SampleRatio))


def _aim(rollout: Rollout, now: datetime) -> _Aim | None:
    """None before the first phase."""
    plan, settled = rollout.plan, settled_of(rollout.state)
    if settled is None or isinstance(settled, Pending) or settled.phase is None:
        return None
    assert isinstance(settled, Baking | AwaitingApproval)
    phase, since = settled.phase, settled.since
    arm = "candidate" if plan.phases[phase].live_weight else "shadow"
    return _Aim(phase=phase, since=since, gates=plan.gates_of(phase), scope=scope_of(rollout, arm, since, now))


def planned(rollout: Rollout, audit: Texts, shelf: CaseShelf, now: datetime) -> Planned | None:
    """
    What `gather` is going to ask the metric source; the case that it goes on from is on the shelf afterwards.

    Returns:
        None where it asks nothing that others could ask as well.

    Raises:
        AuditUnavailable: the recorded case cannot be read.
    """
    aim = _aim(rollout, now)
    if aim is None:
        return None
    at_hand = shelf.take(rollout.id, rollout.evidence)
    if at_hand is None:
        case, before, odd = _recorded(rollout.plan, rollout.evidence, audit)
        if odd:
            return None
        at_hand = Shelved(recorded=rollout.evidence, before=before, case=case)
    ledger = at_hand.case.ledger
    shelf.put(rollout.id, at_hand)
    return Planned(gates=aim.asked, questions=at_hand.case.questions, scope=aim.scope, ledger=ledger)


def gather(rollout: Rollout, audit: Texts, metrics: MetricSource, shelf: CaseShelf, now: datetime) -> Look:
    """
    Measure and judge the gates of the phase that the rollout is in.

    Args:
        rollout: As the log tells it.
        audit: To read the recorded case.
        metrics: To ask.
        shelf: Of this process.
        now: The database's clock.

    Raises:
        AuditUnavailable: the recorded case cannot be read.
    """
    plan, aim = rollout.plan, _aim(rollout, now)
    if aim is None:
        gates, since = plan.gates_before_start(), rollout.opened_at
        measured = metrics.measure(gates, scope_of(rollout, "candidate", since, now)) if gates else ()
        found = tuple(zip((g.name for g in gates), measured, strict=True))
        return Look(plan=plan, phase=0, since=since, at=now, measurements=found)
    phase, since = aim.phase, aim.since
    asked = aim.asked
    seen = dict(zip((g.name for g in asked), metrics.measure(asked, aim.scope), strict=True))

    recorded = rollout.evidence
    at_hand = shelf.take(rollout.id, recorded)
    if at_hand is None:
        case, before, odd = _recorded(plan, recorded, audit)
        taken = Taken()
    else:
        case, before, odd, taken = at_hand.case, at_hand.before, "", at_hand.taken
    read = metrics.traffic(case.questions, aim.scope, case.ledger)
    if read.traffic is not None:
        reading = Reading(phase=phase, since=since, traffic=read.traffic)
        try:
            case.take(reading)
            case.ledger = read.ledger
            taken = taken.plus(reading)
        except Exception as exc:  # numbers that the engine cannot take: the gates that count are in error, all others are judged
            read = replace(read, traffic=None, failure=f"what was counted cannot be judged: {type(exc).__name__}: {exc}")
            (case, before, _), taken = _recorded(plan, recorded, audit), Taken()
    seen |= counted(aim.gates, replace(read, traffic=None, failure=odd) if odd else read, case)
    shelved = Shelved(recorded=recorded, before=before, case=case, taken=taken)
    if taken or not odd:
        shelf.put(rollout.id, shelved)
    return Look(
        plan=plan,
        phase=phase,
        since=since,
        at=now,
        measurements=tuple((g.name, seen[g.name]) for g in aim.gates),
        exposure=rollout.exposure,
        shelved=shelved if taken else None,
    )


def _recorded(plan: Plan, recorded: str, audit: Texts) -> tuple["Case", str, str]:
    """
    The recorded case, its text (or reference), and what is wrong with it.

    One that cannot be read (another release wrote it, somebody changed or deleted it) must not leave the candidate unwatched: the evidence
    begins anew, and this look says so.
    """
    from controller.core.evidence.case import Case  # brings numpy, which most commands do without

    try:
        return Case.of(plan, audit.text(recorded) if recorded else ""), recorded, ""
    except AuditUnavailable:
        raise
    except Exception as exc:  # lost, changed, of another release: whatever is wrong with it, it is the same to the candidate
        text = f"the recorded evidence cannot be read and is begun anew: {type(exc).__name__}: {exc}"
        return Case.of(plan, ""), "", text


def _exposed(plan: Plan, readings: Sequence[Reading]) -> float:
    """Requests that the candidate answered in these readings; mirrored ones expose nobody."""
    total = columns_of(questions_of(plan)[:1], {}).index(f"{REQUESTS}:total")
    live = (r.traffic.beats for r in readings if plan.phases[r.phase].live_weight)
    return math.fsum(beat.candidate[total] for beats in live for beat in beats)


def counted(gates: Sequence[Gate], read: TrafficRead, case: "Case") -> dict[str, Measurement]:
    """The measurements of the gates that are judged from traffic."""
    found: dict[str, Measurement] = {}
    for gate in gates:
        question = question_of(gate)
        key = REQUESTS if isinstance(gate, SampleRatio) else "" if question is None else question.key
        if not key:
            continue
        evidence = read.evidence.get(key, ())
        if read.traffic is None:
            found[gate.name] = QueryFailed(reason=read.failure, evidence=evidence)
        elif (problem := read.traffic.problems.get(key, "")) and (isinstance(gate, SampleRatio) or not case.counts(gate.name)):
            found[gate.name] = QueryFailed(reason=problem, evidence=evidence)
        elif isinstance(gate, SampleRatio):
            candidate, baseline = (Counts(bad=0.0, total=n) for n in case.requests)
            found[gate.name] = Sampled(candidate=candidate, baseline=baseline, evidence=evidence)
        elif not case.counts(gate.name):
            found[gate.name] = NoData(reason="no series of either arm has shown its buckets yet", evidence=evidence)
        else:
            found[gate.name] = Counted(evidence=evidence)
    return found


def scope_of(rollout: Rollout, arm: str, since: datetime, now: datetime) -> Scope:
    """Whose traffic a look asks for."""
    plan = rollout.plan
    return Scope(
        environment=plan.environment,
        flag=plan.flag,
        arm=arm,
        since=since,
        recent=max(plan.policy.every, RECENT_LEAST),
        opened_at=rollout.opened_at,
        at=now,
        step=plan.policy.guard_every,
        profile=plan.profile,
        models={"baseline": plan.baseline.model, "candidate": plan.candidate.model},
        arms=plan.arms,
        requests=plan.requests,
        history_step=plan.policy.block,
    )
