"""The guard's loop: nothing that is wrong with one rollout keeps it from the others, and nothing ends it."""

import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from controller.core.plan import Gate
from controller.core.rollout import Entry, LogError, replay
from controller.core.traffic import Question, TrafficRead
from controller.guard import guard
from controller.ports import Measured, Ports, Scope
from tests.simulation.world import World, a_plan


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
        def measure(self, gates: Sequence[Gate], scope: Scope) -> Measured:
            nonlocal looks
            looks += 1
            return real.metrics.measure(gates, scope)

        def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
            return real.metrics.traffic(questions, scope, ledger)

    ports = Ports(audit=real.audit, index=world.audit, flags=world.flags, metrics=Counted())
    guard(ports, timedelta(seconds=15), Rounds(20), monotonic=lambda: float(next(clock)))
    assert looks == 3  # two readings of the clock a round: at 0, at 16 and at 32 s
