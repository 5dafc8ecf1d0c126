"""The guard's loop: nothing that is wrong with one rollout keeps it from the others, and nothing ends it."""

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from controller import logs
from controller.core.decision import Why
from controller.core.evidence.case import Case
from controller.core.gates import Verdict
from controller.core.measurement import Measurement
from controller.core.plan import Gate
from controller.core.rollout import Entry, LogError, replay
from controller.core.traffic import Question, Reading, TrafficRead
from controller.guard import guard
from controller.ports import AuditUnavailable, Planned, Ports, Scope, TextLost
from controller.tick import tick
from tests.simulation.world import BEAT, World, a_plan


class Rounds(threading.Event):
    """Ends the loop after so many rounds, and keeps how long each wanted to sleep."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.left, self.slept = rounds, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        self.slept.append(timeout or 0.0)
        self.left -= 1
        if self.left <= 0:
            self.set()
        return self.is_set()


def world_with_a_canary() -> World:
    world = World()
    world.open(a_plan())
    world.quarters(5)
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000
    return world


class BesideABrokenLog:
    """An index and a log in which another rollout cannot be read."""

    def __init__(self, world: World, error: type[Exception]) -> None:
        self.world, self.error = world, error

    def active(self) -> Sequence[str]:
        return ["broken", *self.world.audit.active()]

    def known(self, limit: int) -> Sequence[str]:
        return self.active()

    def entries(self, rollout_id: str) -> Sequence[Entry]:
        if rollout_id == "broken":
            raise self.error("row broken/7 cannot follow")
        return self.world.audit.entries(rollout_id)

    def __getattr__(self, name: str) -> object:
        return getattr(self.world.audit, name)


def test_a_rollout_that_cannot_be_read_does_not_leave_the_others_unguarded() -> None:
    for error in (LogError, KeyError):
        world = world_with_a_canary()
        world.turns_bad()
        beside = BesideABrokenLog(world, error)
        ports = Ports(audit=beside, index=beside, flags=world.flags, metrics=world.ports().metrics)  # type: ignore[arg-type]  # duck-typed
        guard(ports, None, Rounds(1))
        flag = world.flag()
        assert flag is not None and flag.weight == 0
        assert replay(world.audit.rows[world.rollout_id]).ended


def test_the_guard_never_sleeps_longer_than_a_second_so_that_a_new_rollout_is_seen() -> None:
    world = world_with_a_canary()
    rounds = Rounds(3)
    guard(world.ports(), None, rounds, monotonic=lambda: 100.0)
    assert rounds.slept == [1.0, 1.0, 1.0]  # its plan's own beat is 15 s


def test_a_rollout_is_looked_at_on_its_own_beat_and_not_in_every_round() -> None:
    world = world_with_a_canary()
    clock = iter(range(1000))
    looks = 0
    real = world.ports()

    class Counted:
        def measure(self, gates: Sequence[Gate], scope: Scope) -> tuple[Measurement, ...]:
            nonlocal looks
            looks += 1
            return real.metrics.measure(gates, scope)

        def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
            return real.metrics.traffic(questions, scope, ledger)

        def together(self, planned: Sequence[Planned]) -> "tuple[Counted, int]":
            return self, len(planned)

    ports = Ports(audit=real.audit, index=world.audit, flags=world.flags, metrics=Counted())
    guard(ports, timedelta(seconds=15), Rounds(20), monotonic=lambda: float(next(clock)))
    assert looks == 3  # two readings of the clock a round: at 0, at 16 and at 32 s


class Down:
    """An index that cannot be asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def active(self) -> Sequence[str]:
        raise self.error

    known = active


@pytest.mark.parametrize("error", [AuditUnavailable("connection refused"), RuntimeError("a bug")])
def test_a_database_that_is_down_is_asked_once_a_second_and_not_without_pause(
    error: Exception, a_log: Callable[[TextIO], None]
) -> None:
    a_log(io.StringIO())
    world = world_with_a_canary()
    real = world.ports()
    index = Down(error)
    rounds = Rounds(8)

    class Fails:
        """There at first, so that the guard knows when to look next, and then down for good."""

        asked = 0

        def active(self) -> Sequence[str]:
            self.asked += 1
            return world.audit.active() if self.asked == 1 else index.active()

        known = active

    ports = Ports(audit=real.audit, index=Fails(), flags=world.flags, metrics=real.metrics)  # type: ignore[arg-type]  # duck-typed
    # After the first round the time of the next look has passed, and stays so.
    guard(ports, timedelta(seconds=1), rounds, monotonic=lambda: 0.0 if rounds.left > 7 else 100.0)
    assert rounds.slept[1:] == [1.0] * 7


@pytest.fixture
def a_log() -> Iterator[Callable[[TextIO], None]]:
    structlog.reset_defaults()
    yield logs.configure
    structlog.reset_defaults()


def test_a_log_that_cannot_be_written_does_not_end_the_guard(a_log: Callable[[TextIO], None]) -> None:
    world, outlived = world_with_a_canary(), False
    world.turns_bad()
    with suppress(OSError), Path("/dev/full").open("w") as full:  # closing it fails as well
        a_log(full)
        guard(world.ports(), None, Rounds(3))
        index = Down(RuntimeError("a bug"))
        guard(Ports(audit=world.audit, index=index, flags=world.flags, metrics=world.ports().metrics), None, Rounds(2))
        outlived = True
    assert outlived
    flag = world.flag()
    assert flag is not None and flag.weight == 0


def test_a_traceback_in_the_log_shows_no_values(a_log: Callable[[TextIO], None]) -> None:
    seen = io.StringIO()
    a_log(seen)
    token = "xoxb-" + "4711"  # in no line of code as it is

    def fails(secret: str) -> None:
        raise RuntimeError("a bug")

    try:
        fails(token)
    except RuntimeError:
        structlog.get_logger().exception("look_broke")
    assert "RuntimeError: a bug" in seen.getvalue() and token not in seen.getvalue()


def test_evidence_that_was_deleted_or_changed_does_not_leave_the_candidate_unwatched() -> None:
    for problem in (TextLost("the text 4711 is not there"), ValueError("not JSON"), IndexError("list index")):
        world = world_with_a_canary()
        world.turns_bad()
        real = world.ports()

        class Lost:
            def text(self, reference: str, problem: Exception = problem) -> str:
                raise problem

            def __getattr__(self, name: str, real: Ports = real) -> object:
                return getattr(real.audit, name)

        ports = Ports(audit=Lost(), index=world.audit, flags=world.flags, metrics=real.metrics)  # type: ignore[arg-type]  # duck-typed
        for _ in range(3):
            guard(ports, None, Rounds(1))
            world.now += BEAT
        flag = world.flag()
        assert flag is not None and flag.weight == 0, problem


def test_evidence_that_the_engine_cannot_take_is_an_error_of_its_gates_and_the_others_are_still_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_with_a_canary()

    def broken(self: Case, reading: Reading) -> None:
        raise FloatingPointError("overflow")

    monkeypatch.setattr(Case, "take", broken)
    seen = tick(world.rollout_id, world.ports(), world.now, may_raise=True, force=True)
    assert seen.decision is not None and seen.decision.why is Why.METRICS_FAILED
    found = {r.gate: (r.verdict, r.reason) for r in seen.results}
    assert found["errors"] == (Verdict.ERROR, "what was counted cannot be judged: FloatingPointError: overflow")
    assert found["candidate-reports"][0] is not Verdict.ERROR
