"""One look at many rollouts: what they have in common is read once, and none waits for, or fails with, another."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from controller import codec, commands, sweep
from controller.core.decision import Pause, Why
from controller.core.plan import Plan
from controller.core.rollout import Entry, replay
from controller.ports import FlagUnavailable, MetricSource, News, Planned, Ports
from controller.shelf import Mark
from controller.sweep import Swept
from controller.tick import Outcome
from flagspec import RouteFlag
from tests.simulation.world import BEAT, EVERY, Truth, World, a_plan


class Fleet:
    """Some rollouts in their first phase, and a count of what is read. Its metric source takes at most `at_once` looks."""

    def __init__(self, count: int, at_once: int = 1_000) -> None:
        self.world, self.at_once = World(), at_once
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.ids = [self._open(replace(a_plan(), name=f"r{n}", flag=f"flag-{n}")) for n in range(count)]
        self.world.now += EVERY
        assert {s.tick.outcome for s in self.sweep(may_raise=True) if s.tick} == {Outcome.DECIDED}
        self.world.now += BEAT
        self.asked.clear()

    def _open(self, plan: Plan) -> str:
        return commands.start(plan, codec.plan_digest(plan), self.ports(), actor="rita", key="k").id

    def ports(self) -> Ports:
        inner = self.world.ports()
        return replace(inner, audit=Audit(self, inner), flags=Flags(self), metrics=Metrics(self, inner.metrics))  # type: ignore[arg-type]  # duck-typed

    def sweep(self, *, may_raise: bool) -> list[Swept]:
        return list(sweep.sweep(self.ports(), may_raise=may_raise, force=True))


class Audit:
    def __init__(self, fleet: Fleet, inner: Ports) -> None:
        self.fleet, self.inner = fleet, inner.audit

    def news(self, known: Mapping[str, Mark]) -> Mapping[str, News]:
        self.fleet.asked.append(f"news of {len(known)}")
        return {i: n for i, n in self.inner.news(known).items() if i not in self.fleet.broken}

    def entries(self, rollout_id: str) -> Sequence[Entry]:
        self.fleet.asked.append(f"entries of {rollout_id}")
        if rollout_id in self.fleet.broken:
            raise KeyError("a row that nobody can read")
        return self.inner.entries(rollout_id)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


class Flags:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.inner = fleet, fleet.world.flags  # the world's witness knows one rollout only

    def read_all(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], RouteFlag]:
        self.fleet.asked.append(f"{len(wanted)} flags")
        if "flags" in self.fleet.broken:
            raise FlagUnavailable("the store is down for many")
        return self.inner.read_all(wanted)

    def read(self, environment: str, key: str) -> RouteFlag | None:
        self.fleet.asked.append(f"flag {key}")
        return self.inner.read(environment, key)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


class Metrics:
    def __init__(self, fleet: Fleet, inner: MetricSource) -> None:
        self.fleet, self.inner = fleet, inner

    def together(self, planned: Sequence[Planned]) -> tuple[MetricSource, int]:
        count = min(len(planned), self.fleet.at_once)
        self.fleet.asked.append(f"traffic of {count}")
        return self.inner, count

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_what_looks_have_in_common_is_read_once_however_many_there_are() -> None:
    for count in (2, 9):
        fleet = Fleet(count)
        swept = fleet.sweep(may_raise=False)
        assert [s.rollout_id for s in swept] == fleet.ids
        assert {s.tick.outcome for s in swept if s.tick} == {Outcome.QUIET}
        assert fleet.asked == [f"news of {count}", f"{count} flags", f"traffic of {count}"]


def test_those_that_cannot_be_held_at_a_time_are_read_after_the_others() -> None:
    fleet = Fleet(5, at_once=2)
    assert [s.rollout_id for s in fleet.sweep(may_raise=False)] == fleet.ids
    assert [a for a in fleet.asked if a.startswith("traffic")] == ["traffic of 2", "traffic of 2", "traffic of 1"]


def test_the_next_ones_are_read_while_the_first_are_looked_at() -> None:
    fleet = Fleet(4, at_once=2)
    read_next = threading.Event()
    ports = fleet.ports()

    class Waits(Metrics):
        reads = 0

        def together(self, planned: Sequence[Planned]) -> tuple[MetricSource, int]:
            _, count = super().together(planned)
            Waits.reads += 1
            if Waits.reads == 2:
                read_next.set()
            return self, count

        def measure(self, *args: Any) -> Any:
            assert read_next.wait(20), "the first looks wait for nobody else, and the next ones were not read"
            return self.inner.measure(*args)

    source: Any = Waits(fleet, fleet.world.ports().metrics)
    swept = list(sweep.sweep(replace(ports, metrics=source), may_raise=False, force=True))
    assert [s.rollout_id for s in swept] == fleet.ids and not any(s.error for s in swept)


def test_a_rollout_whose_log_cannot_be_read_is_an_error_of_its_own() -> None:
    fleet = Fleet(4)
    fleet.broken.add(fleet.ids[1])
    swept = fleet.sweep(may_raise=False)
    assert [bool(s.error) for s in swept] == [False, True, False, False]
    assert "a row that nobody can read" in swept[1].error


def test_where_nothing_can_be_read_together_each_look_reads_for_itself() -> None:
    fleet = Fleet(3)
    fleet.broken.add("flags")
    fleet.world.truth = Truth.BAD
    swept = fleet.sweep(may_raise=False)
    assert [s.rollout_id for s in swept] == fleet.ids and not any(s.error for s in swept)
    assert {"flag flag-0", "flag flag-1", "flag flag-2"} <= set(fleet.asked)


def test_a_breach_is_lowered_on_what_was_read_together() -> None:
    fleet = Fleet(3)
    for _ in range(4):  # to the canary
        fleet.world.now += EVERY
        fleet.sweep(may_raise=True)
    assert {f.weight for f in fleet.world.flags.flags.values()} == {5_000}
    fleet.world.turns_bad()
    swept = fleet.sweep(may_raise=False)
    assert {s.tick.outcome for s in swept if s.tick} == {Outcome.DECIDED}
    assert {f.weight for f in fleet.world.flags.flags.values()} == {0}


def test_looks_that_come_too_late_for_what_was_read_are_read_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(6)
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(sweep, "WORKERS", 1)
    monkeypatch.setattr("controller.sweep.time.monotonic", lambda: float(next(clock)))
    swept = list(sweep.sweep(fleet.ports(), may_raise=False, force=True, workers=1))
    assert sorted(s.rollout_id for s in swept) == sorted(fleet.ids) and len(swept) == 6
    assert len([a for a in fleet.asked if a.startswith("traffic")]) > 1


def test_a_row_that_came_after_the_reading_makes_the_look_lose() -> None:
    fleet = Fleet(2)
    for _ in range(4):
        fleet.world.now += EVERY
        fleet.sweep(may_raise=True)
    fleet.world.turns_bad()
    ports = fleet.ports()
    together = ports.metrics.together

    class Slow(Metrics):
        def together(self, planned: Sequence[Planned]) -> tuple[MetricSource, int]:
            # Between reading and looking, a person pauses the first one.
            commands.pause(fleet.ids[0], fleet.world.ports(), actor="rita", reason="wait")
            return together(planned)

    swept = list(sweep.sweep(replace(ports, metrics=Slow(fleet, ports.metrics)), may_raise=False, force=True))
    assert [s.tick.outcome for s in swept if s.tick] == [Outcome.LOST_RACE, Outcome.DECIDED]
    last = fleet.world.audit.rows[fleet.ids[0]][-1].event
    assert isinstance(last.decision, Pause) and last.decision.why is Why.BY_PERSON  # type: ignore[union-attr]  # a Decided
    assert fleet.world.flags.flags["production", "flag-0"].weight == 5_000
    # The next pass sees it.
    fleet.world.now += BEAT
    fleet.sweep(may_raise=False)
    assert fleet.world.flags.flags["production", "flag-0"].weight == 0


def test_exposure_is_every_request_that_the_candidate_answered_in_live_phases() -> None:
    world, seen = World(), []
    world.open(a_plan())
    for _ in range(7):
        world.quarters(1)
        rollout = replay(world.audit.rows[world.rollout_id])
        seen.append((rollout.phase, rollout.exposure))
    assert {e for phase, e in seen if phase == 0} <= {None, 0.0}  # mirrored requests expose nobody
    # 20 requests a second.
    live = [e for phase, e in seen if phase == 1 and e]
    assert len(live) > 1
    assert [b - a for a, b in pairwise(live)] == [20.0 * 900] * (len(live) - 1)
