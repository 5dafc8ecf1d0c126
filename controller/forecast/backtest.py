"""
A plan's gates on recorded traffic: what they would have said, beat by beat.

It stands between the metric source, which reads the recording as it would read live traffic, and the command line. Each phase's
gates are judged as if that phase had lasted the whole time. Its one rule: the recording is read through the port that live looks
use, with the time of each look, so that nothing is seen before it was there.

The silence of a candidate and the split of the traffic are left out: the recording was not split as the plan would have split it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from controller.core.evidence.case import Case
from controller.core.gates import GateResult, Verdict, breaches, judge_all, unproven
from controller.core.measurement import Measurement
from controller.core.plan import Gate, Plan, SampleRatio, Silence
from controller.core.traffic import Reading, TrafficRead, question_of
from controller.gather import RECENT_LEAST, counted
from controller.ports import MetricSource, Scope

CHUNK_LEAST = timedelta(minutes=5)
"""Recorded traffic is read in pieces of a gate check's period, but not in smaller ones."""


class NothingRecorded(ValueError):
    """The source has no traffic of that time; says what it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where the gates would have acted: `kind` is rollback or pause."""

    at: datetime
    kind: str
    gate: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRun:
    """
    One phase's gates over the recording.

    Args:
        name: Of the phase.
        stopped: The first breach that acts; judging ends with it.
        passed: When all gates had passed for the first time, at a gate check; None if never.
        proven: When each gate passed for the first time, by name.
        results: The verdicts at the end, or at the breach.
    """

    name: str
    stopped: Stop | None
    passed: datetime | None
    proven: Mapping[str, datetime]
    results: tuple[GateResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """
    Args:
        since, until: What was asked for.
        requests: Of candidate and baseline in that time.
        problems: What could not be read, by key of the question, and in how many of the pieces.
        phases: In the plan's order.
    """

    since: datetime
    until: datetime
    requests: tuple[float, float]
    problems: Mapping[str, str]
    phases: tuple[PhaseRun, ...]


def backtest(
    plan: Plan,
    metrics: MetricSource,
    since: datetime,
    until: datetime,
    *,
    arms: Mapping[str, Mapping[str, str]] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Backtest:
    """
    Args:
        plan: Whose gates.
        metrics: Where the recording is.
        since, until: Aware; `since` before `until`.
        arms: Labels of ``baseline`` and ``candidate`` instead of the plan's.
        progress: Told how many pieces of all were read.

    Raises:
        NothingRecorded: Nothing could be read, or neither arm had a request.
        ValueError: The times do not lie one after the other.
    """
    if until <= since:
        raise ValueError(f"from {since.isoformat()} to {until.isoformat()}: the end must come after the beginning")
    runs = [_Run(plan, index, since) for index in range(len(plan.phases))]
    looks = list(_looks(since, until, max(plan.policy.every, CHUNK_LEAST)))
    ledger: Mapping[str, Any] = {}
    problems: dict[str, str] = {}
    pieces: Counter[str] = Counter()
    candidate = baseline = 0.0
    for done, at in enumerate(looks, start=1):
        scope = _scope(plan, since, at, arms)
        read = metrics.traffic(runs[0].case.questions, scope, ledger)
        if read.traffic is None:
            raise NothingRecorded(f"traffic until {at.isoformat()} could not be read: {read.failure}")
        ledger = read.ledger
        problems |= read.traffic.problems
        pieces.update(read.traffic.problems.keys())
        candidate += sum(beat.candidate[1] for beat in read.traffic.beats)
        baseline += sum(beat.baseline[1] for beat in read.traffic.beats)
        seen = _measured(plan, metrics, scope)
        for run in runs:
            run.take(read, seen, at)
        progress(done, len(looks))
    if not candidate and not baseline:
        why = next(iter(problems.values()), "") or "no requests of either arm"
        raise NothingRecorded(f"nothing was recorded between {since.isoformat()} and {until.isoformat()}: {why}")
    return Backtest(
        since=since,
        until=until,
        requests=(candidate, baseline),
        problems={key: f"{why} (in {pieces[key]} of {len(looks)} readings)" for key, why in problems.items()},
        phases=tuple(run.ended() for run in runs),
    )


@dataclass(slots=True)
class _Run:
    """The gates of one phase."""

    plan: Plan
    index: int
    since: datetime
    case: Case = field(init=False)
    stopped: Stop | None = None
    passed: datetime | None = None
    proven: dict[str, datetime] = field(default_factory=dict)
    results: tuple[GateResult, ...] = ()

    def __post_init__(self) -> None:
        self.case = Case.of(self.plan, "")

    def take(self, read: TrafficRead, seen: Mapping[str, Measurement], at: datetime) -> None:
        """One piece of the recording, beat by beat, and a gate check at its end."""
        if self.stopped is not None or read.traffic is None:
            return
        traffic, before = read.traffic, read.traffic.since
        pieces = [replace(traffic, beats=(beat,), history=()) for beat in traffic.beats]
        for piece in [replace(traffic, beats=()), *pieces]:
            piece = replace(piece, since=before)
            self.case.take(Reading(phase=self.index, since=self.since, traffic=piece))
            before = piece.beats[-1].at if piece.beats else before
            if self.case.struck() is not None:
                self._judge(read, seen, before)
                return
        self._judge(read, seen, at)

    def _judge(self, read: TrafficRead, seen: Mapping[str, Measurement], at: datetime) -> None:
        gates = _judged(self.plan, self.index)
        self.results = judge_all(
            self.plan,
            self.index,
            {**{g.name: seen[g.name] for g in gates if g.name in seen}, **counted(gates, read, self.case)},
            self.case.weighed(),
            at - self.since,
        )
        for result in self.results:
            if result.verdict is Verdict.PASS:
                self.proven.setdefault(result.gate, at)
        if found := breaches(self.results):
            first = found[0]
            self.stopped = Stop(at=at, kind=first.on_breach.value, gate=first.gate, text=first.reason)
        elif self.passed is None and self.results and not unproven(self.results):
            self.passed = at

    def ended(self) -> PhaseRun:
        return PhaseRun(
            name=self.plan.phases[self.index].name,
            stopped=self.stopped,
            passed=self.passed,
            proven=dict(self.proven),
            results=self.results,
        )


def _judged(plan: Plan, index: int) -> tuple[Gate, ...]:
    return tuple(g for g in plan.gates_of(index) if not isinstance(g, Silence | SampleRatio))


def _measured(plan: Plan, metrics: MetricSource, scope: Scope) -> dict[str, Measurement]:
    """The gates that are no statistics, as they stood at a look."""
    asked = tuple(g for g in plan.gates if question_of(g) is None and not isinstance(g, Silence | SampleRatio))
    if not asked:
        return {}
    return dict(zip((g.name for g in asked), metrics.measure(asked, scope), strict=True))


def _scope(plan: Plan, since: datetime, at: datetime, arms: Mapping[str, Mapping[str, str]] | None) -> Scope:
    return Scope(
        environment=plan.environment,
        flag=plan.flag,
        arm="candidate",
        since=since,
        recent=max(plan.policy.every, RECENT_LEAST),
        opened_at=since,
        at=at,
        step=plan.policy.guard_every,
        profile=plan.profile,
        models={"baseline": plan.baseline.model, "candidate": plan.candidate.model},
        arms={**plan.arms, **(arms or {})},
        history_step=plan.policy.block,
    )


def _looks(since: datetime, until: datetime, every: timedelta) -> Iterator[datetime]:
    at = since + every
    while at < until:
        yield at
        at += every
    yield until
