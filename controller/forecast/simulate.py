"""
One whole rollout of a plan on invented traffic, from the first phase to its end.

The evidence (`Case`), the verdicts (`judge_all`) and the decisions (`decide`) are the live ones; only the time and the traffic
are invented. Its one rule: what is skipped does not decide the outcome. Gates are judged at a gate check only once the phase has
baked, because before that nothing can be raised; breaches are looked for after every beat.

Beats. A guard looks every `guard_every`, but a rollout of days is tens of thousands of such looks. The engine takes its evidence
in blocks of `gates.block`, so beats of one block lose nothing but the speed of catching a catastrophe. So beats are the guard's
own until an hour after the fault began, and a block long from then on (and from the beginning where there is no fault): the
traffic so far is fed again in longer beats, and the case goes on from there. Of phases that bake for days the first hours are
played (`QUIET_AFTER`).
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from controller.core.converge import InStep
from controller.core.decide import decide
from controller.core.decision import Advance, Hold, Pause, Promote, RollBack, Why
from controller.core.evidence.case import Case
from controller.core.gates import GateResult, breaches, judge_all, unproven
from controller.core.measurement import Counts, Measurement, Sampled
from controller.core.plan import AtLeast, AtMost, Mode, OnUnproven, Plan, Silence
from controller.core.rollout import AwaitingApproval, Baking, Pending, Rollout
from controller.core.traffic import Beat, Reading, Traffic, TrafficRead
from controller.forecast.baseline import Array, Baseline
from controller.forecast.generate import NO_EFFECT, World
from controller.forecast.scenarios import Scenario, beyond
from controller.gather import RECENT_LEAST, counted
from controller.tick import slot
from flagspec import WEIGHT_MAX

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
"""When invented rollouts begin; a whole multiple of every period that divides a day."""

HISTORY = timedelta(hours=6)

FINE_FOR = timedelta(hours=1)
"""So long after a fault began, beats are the guard's own."""

QUIET_AFTER = timedelta(hours=4)
"""A phase whose gates have all passed after so long, with a candidate that keeps every limit, is not played to the end of its
bake: the hours left are like those before."""

CHUNK = 240
"""Beats that are drawn at once."""


class End(StrEnum):
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    PAUSED = "paused"
    WAITING = "waiting"
    """In one phase for longer than its bake and the patience."""
    APPROVAL = "awaits approval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """
    How one rollout went.

    Args:
        end: How it ended.
        phase: Index of the phase it ended in; the last one when promoted.
        took: From the beginning to the end.
        fault: From the beginning until the candidate began to differ; None if it never did.
        exposed: Requests that the candidate answered for users; those since the fault began, where there is one.
        gate: What decided: the gate that was breached or, waiting, the first that is not proven; "" otherwise.
        text: The decision's sentence.
        entered: When each phase was entered, since the beginning.
    """

    end: End
    phase: int
    took: timedelta
    fault: timedelta | None
    exposed: float
    gate: str
    text: str
    entered: tuple[timedelta, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """
    Args:
        patience: A rollout that stays in a phase for so long beyond its bake is waiting.
        approvals: False: stop where people are asked. True: they say yes at once.
        freezes: The plan's calendars are kept.
        begin: When the rollout begins: matters to calendars only.
    """

    patience: timedelta = timedelta(hours=24)
    approvals: bool = True
    freezes: bool = False
    begin: datetime = BEGIN


def play(plan: Plan, baseline: Baseline, scenario: Scenario, seed: Sequence[int], conditions: Conditions | None = None) -> Story:
    """
    Args:
        plan: The rollout's plan.
        baseline: What the baseline does today.
        scenario: What the candidate is like.
        seed: Whole numbers that name the replicate: the same ones give the same story.
        conditions: Of the rollout.
    """
    return _Play(plan, baseline, scenario, seed, conditions or Conditions()).run()


class _Play:
    def __init__(self, plan: Plan, baseline: Baseline, scenario: Scenario, seed: Sequence[int], conditions: Conditions) -> None:
        self.plan = _adjusted(plan, conditions)
        self.baseline = baseline
        self.scenario = scenario
        self.conditions = conditions
        self.world = World(baseline, scenario.weather, seed)
        self.exposed = 0.0
        self.fallbacks = 0.0
        self.fault_s: float | None = None
        self.begun_s: float | None = None
        self.entered: list[timedelta] = []
        self.recent: deque[tuple[datetime, float, float]] = deque()
        self.rng = np.random.default_rng([*seed, 3])
        begin = _aligned(conditions.begin, self.plan)
        self.rollout = Rollout(
            id="simulated",
            plan=self.plan,
            plan_digest="",
            requester="",
            opened_at=begin,
            state=Pending(),
            seq=1,
        )
        self.begin = self.now = begin
        self.harmless = not beyond(plan, baseline, scenario.effect)
        self.faulty = scenario.effect != NO_EFFECT
        self.evidence = Evidence(self.plan, baseline, self.world, fine=self.faulty)

    def run(self) -> Story:
        self._enter(0)
        while True:
            if (story := self._chunk()) is not None:
                return story

    # --- one stretch of time without a change of the weights -------------------------------------------------------------------

    def _chunk(self) -> Story | None:
        state = self.rollout.state
        assert isinstance(state, Baking | AwaitingApproval) and state.phase is not None
        if self.evidence.fine and self.fault_s is not None and self._elapsed_s > self.fault_s + FINE_FOR.total_seconds():
            self.evidence.coarsen()
        phase, beat = self.plan.phases[state.phase], self.evidence.beat
        baked = state.since + phase.bake
        # The last slot is played: silence is judged by the traffic of just now.
        if (dull := _slot_before(baked, self.plan.policy.every)) > self.now and self._dull(state.since):
            self._skip_to(dull)
        until = baked if baked > self.now else _next_slot(self.now, self.plan.policy.every)
        beats = min(max(math.ceil((until - self.now) / beat), 1), CHUNK)
        for at, cand, base in self._draw(beats, beat, state.phase):
            self.now = at
            self.evidence.take(state.phase, state.since, at, cand, base)
            self.recent.append((at, float(cand[1]), float(base[1])))
            if (story := self._guard()) is not None:
                return story
            if at >= baked and slot(at, self.plan.policy.every) > slot(at - beat, self.plan.policy.every):
                story = self._gate_check()
                if story is not None or self.rollout.state is not state:
                    return story
        if self.now > baked + self.conditions.patience:
            return self._waiting()
        return None

    def _dull(self, since: datetime) -> bool:
        """Whether the rest of the bake would only be more of the same."""
        incident = self.scenario.weather.incident
        eventful = QUIET_AFTER if incident is None else max(QUIET_AFTER, timedelta(seconds=incident[1]))
        if not self.harmless or self.now < since + QUIET_AFTER or self.now < self.begin + eventful:
            return False
        return not unproven(self._results())

    def _skip_to(self, at: datetime) -> None:
        length_s = (at - self.now).total_seconds()
        self.exposed += self.plan.phases[self.rollout.phase or 0].live_weight / WEIGHT_MAX * self.baseline.rps * length_s
        self.world.now_s += length_s
        self.now = at

    def _draw(self, beats: int, beat: timedelta, index: int) -> Iterator[tuple[datetime, Array, Array]]:
        """Beats one after another; what the reader does not take has not happened."""
        phase, beat_s = self.plan.phases[index], beat.total_seconds()
        live = phase.live_weight / WEIGHT_MAX
        shares = (phase.weight / WEIGHT_MAX, 1.0 if phase.mode is Mode.SHADOW else 1.0 - live)
        starts: Array = self._elapsed_s + beat_s * np.arange(beats, dtype=np.float64)
        strength = self.scenario.onset.strength(starts, self.begun_s)
        cand, base = self.world.draw(beats, beat_s, shares, self.scenario.effect, strength)
        fallbacks = self.rng.binomial(cand[:, 1].astype(np.int64), self.baseline.fallbacks)
        at = self.now
        for i in range(beats):
            at += beat
            if self.faulty and strength[i] > 0 and self.fault_s is None:
                self.fault_s, self.exposed = float(starts[i]), 0.0
            if live:
                self.exposed += float(cand[i, 1])
            self.fallbacks += float(fallbacks[i])
            yield at, cand[i], base[i]

    @property
    def _elapsed_s(self) -> float:
        return (self.now - self.begin).total_seconds()

    # --- looks -----------------------------------------------------------------------------------------------------------------

    def _guard(self) -> Story | None:
        """What the guard would find after this beat. The engines say by themselves when a breach is complete; silence is looked
        for."""
        if self.evidence.case.struck() is not None:
            results = self._results()
        elif self.recent[-1][1] == 0 and self._seen_recently()[0] == 0:
            results = self._judged(Silence)
        else:
            return None
        decision = decide(self.rollout, InStep(), results, self.now, may_raise=False)
        if isinstance(decision, RollBack | Pause):
            end = End.ROLLED_BACK if isinstance(decision, RollBack) else End.PAUSED
            return self._story(end, gate=breaches(results)[0].gate, text=decision.text)
        return None

    def _gate_check(self) -> Story | None:
        results = self._results()
        decision = decide(self.rollout, InStep(), results, self.now, may_raise=True)
        match decision:
            case Advance(phase=phase):
                self._enter(phase)
            case Promote():
                return self._story(End.PROMOTED, text=decision.text)
            case Hold(why=Why.AWAITING_APPROVAL):
                return self._story(End.APPROVAL, text=decision.text)
            case _:
                pass
        return None

    def _results(self) -> tuple[GateResult, ...]:
        return self._judged(object)

    def _judged(self, kind: type) -> tuple[GateResult, ...]:
        """The verdicts on the gates of a kind."""
        index = self.rollout.phase
        assert index is not None
        gates = [g for g in self.plan.gates_of(index) if isinstance(g, kind)]
        seen: dict[str, Measurement] = {}
        for gate in gates:
            match gate:
                case AtLeast():
                    happened = self.fallbacks if gate.indicator == "fallbacks" else float(gate.times)
                    seen[gate.name] = Sampled(candidate=Counts(bad=0, total=happened))
                case AtMost():
                    seen[gate.name] = Sampled(candidate=Counts(bad=0, total=0))
                case Silence():
                    candidate, baseline = (Counts(bad=0, total=n) for n in self._seen_recently())
                    seen[gate.name] = Sampled(candidate=candidate, baseline=baseline)
                case _:
                    pass
        case = self.evidence.case
        seen |= counted(gates, TrafficRead(traffic=self.evidence.last), case)
        weighed = {} if kind is Silence else case.weighed()
        return judge_all(self.plan, index, seen, weighed, self.now - self._since)

    def _seen_recently(self) -> tuple[float, float]:
        """Requests of candidate and baseline in the time in which a candidate may not be silent."""
        begin = self.now - max(self.plan.policy.every, RECENT_LEAST)
        while self.recent and self.recent[0][0] <= begin:
            self.recent.popleft()
        return sum(c for _, c, _ in self.recent), sum(b for _, _, b in self.recent)

    @property
    def _since(self) -> datetime:
        state = self.rollout.state
        assert isinstance(state, Baking | AwaitingApproval)
        return state.since

    def _enter(self, phase: int) -> None:
        self.rollout = replace(self.rollout, state=Baking(phase=phase, since=self.now))
        self.entered.append(self.now - self.begin)
        self.recent.clear()
        live = self.plan.phases[phase].live_weight / WEIGHT_MAX
        if self.begun_s is None and live >= self.scenario.onset.share - 1e-9:
            self.begun_s = self._elapsed_s

    # --- ends ------------------------------------------------------------------------------------------------------------------

    def _waiting(self) -> Story:
        results = self._results()
        short = unproven(results)
        gate = short[0].gate if short else ""
        return self._story(End.WAITING, gate=gate, text="; ".join(f"{r.gate}: {r.reason}" for r in short))

    def _story(self, end: End, *, gate: str = "", text: str) -> Story:
        return Story(
            end=end,
            phase=self.rollout.phase or 0,
            took=self.now - self.begin,
            fault=None if self.fault_s is None else timedelta(seconds=self.fault_s),
            exposed=self.exposed,
            gate=gate,
            text=text,
            entered=tuple(self.entered),
        )


class _Kept(NamedTuple):
    """A beat that may be fed again: its phase, when that began, when the beat ended, and the increments of both arms."""

    phase: int
    since: datetime
    at: datetime
    rows: Array


class Evidence:
    """The case, fed beat by beat; `fine` beats are kept, so that they can be fed again in longer ones."""

    def __init__(self, plan: Plan, baseline: Baseline, world: World, *, fine: bool) -> None:
        self.fine = fine
        self._plan = plan
        self._baseline = baseline
        self._kept: list[_Kept] = []
        self._history, self._history_step = baseline.history, baseline.history_step
        if not self._history:
            step = plan.policy.block
            rows = world.history(max(math.floor(HISTORY / step), 1), step.total_seconds())
            self._history, self._history_step = tuple(map(tuple, rows.tolist())), step
        self._open(plan.policy.guard_every if fine else self._long)

    @property
    def _long(self) -> timedelta:
        policy = self._plan.policy
        return min(policy.block, max(policy.every, policy.guard_every))

    def take(self, phase: int, since: datetime, at: datetime, cand: Array, base: Array) -> None:
        """One beat, which ends at `at`."""
        if self.fine:
            self._kept.append(_Kept(phase, since, at, np.stack([cand, base])))
        self._feed(phase, since, at, cand, base, at - self.beat)

    def coarsen(self) -> None:
        """From now on long beats; what happened so far is fed again in them."""
        kept, self._kept, self.fine = self._kept, [], False
        short = self.beat
        self._open(self._long)
        i = 0
        while i < len(kept):
            first, j = kept[i], i
            before = first.at - short
            while j < len(kept) and kept[j].since == first.since and kept[j].at <= before + self.beat:
                j += 1
            cand, base = np.sum([k.rows for k in kept[i:j]], axis=0)
            self._feed(first.phase, first.since, kept[j - 1].at, cand, base, before)
            i = j

    def _open(self, beat: timedelta) -> None:
        self.beat = beat
        self.case = Case.of(replace(self._plan, policy=replace(self._plan.policy, guard_every=beat)), "")
        self.last: Traffic | None = None

    def _feed(self, phase: int, since: datetime, at: datetime, cand: Array, base: Array, before: datetime) -> None:
        self.last = Traffic(
            since=before,
            step=self.beat,
            edges=self._baseline.edges,
            beats=(Beat(at=at, candidate=tuple(cand.tolist()), baseline=tuple(base.tolist())),),
            history=self._history if self.last is None else (),
            history_step=self._history_step,
            problems=self._baseline.problems,
        )
        self.case.take(Reading(phase=phase, since=since, traffic=self.last))


def _adjusted(plan: Plan, conditions: Conditions) -> Plan:
    """The plan with what a simulation leaves out."""
    if not conditions.freezes:
        plan = replace(plan, freezes=())
    if not conditions.approvals:
        return plan
    policy = plan.policy
    if policy.on_unproven is OnUnproven.ASK:
        policy = replace(policy, on_unproven=OnUnproven.ACCEPT, ask=None)
    return replace(plan, policy=policy, phases=tuple(replace(p, approval=None) for p in plan.phases))


def _aligned(begin: datetime, plan: Plan) -> datetime:
    """The next gate check at or after a time: that is when a rollout is started."""
    every = plan.policy.every.total_seconds()
    return datetime.fromtimestamp(math.ceil(begin.timestamp() / every) * every, UTC)


def _next_slot(now: datetime, every: timedelta) -> datetime:
    return datetime.fromtimestamp((slot(now, every) + 1) * every.total_seconds(), UTC)


def _slot_before(at: datetime, every: timedelta) -> datetime:
    """The last gate check before a time."""
    return datetime.fromtimestamp((math.ceil(at.timestamp() / every.total_seconds()) - 1) * every.total_seconds(), UTC)
