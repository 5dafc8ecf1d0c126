"""The guard without its log, and what it tells of itself: it lowers on what it last knew, and others can see whether it looks."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from controller import commands, metrics
from controller.adapters.memory import MemoryHeartbeats
from controller.core.decision import Why
from controller.core.plan import DeadManAction
from controller.core.rollout import Applied, LogError, Moving, RolledBack, replay
from controller.guard import guard
from controller.ports import AuditUnavailable, FlagUnavailable, Ports
from controller.shelf import CaseShelf
from controller.tick import Outcome, without_log
from tests.core.test_guard import BesideABrokenLog, Rounds, world_with_a_canary
from tests.ports.events import change
from tests.simulation.world import BEAT, EVERY, Fault, Truth, World, a_plan

# --- while the log cannot be read --------------------------------------------------------------------------------------------------------


class LogThatGoes:
    """A log and index that can be read until `gone` is set."""

    def __init__(self, world: World) -> None:
        self.world, self.gone = world, False

    def __getattr__(self, name: str) -> object:
        if self.gone:
            raise AuditUnavailable("connection refused")
        return getattr(self.world.audit, name)


class Story(threading.Event):
    """Ends the loop after its steps; one is taken after each round."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        super().__init__()
        self.steps = list(steps)

    def wait(self, timeout: float | None = None) -> bool:
        if self.steps:
            self.steps.pop(0)()
        else:
            self.set()
        return self.is_set()


def guarded(world: World, log: LogThatGoes, *steps: Callable[[], None], beats: MemoryHeartbeats | None = None) -> None:
    """The guard's loop over a world; each step is a minute later than the one before."""
    clock = iter(range(0, 100_000, 3600))
    ports = Ports(audit=log, index=log, flags=world.ports().flags, metrics=world.ports().metrics, heartbeats=beats)  # type: ignore[arg-type]  # duck-typed
    guard(ports, timedelta(seconds=1), Story(*steps), monotonic=lambda: float(next(clock)))


def test_a_breach_is_lowered_although_the_log_cannot_be_read_and_the_next_look_records_it() -> None:
    world = world_with_a_canary()
    log = LogThatGoes(world)
    rows = len(world.audit.rows[world.rollout_id])

    def log_goes_and_candidate_fails() -> None:
        log.gone = True
        world.turns_bad()

    def log_is_back() -> None:
        flag = world.flag()
        assert flag is not None and flag.weight == 0 and flag.decision_id.endswith(".roll_back")
        assert len(world.audit.rows[world.rollout_id]) == rows
        log.gone = False
        world.truth = Truth.GOOD

    guarded(world, log, log_goes_and_candidate_fails, lambda: None, log_is_back, lambda: None)
    state = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(state, RolledBack) and state.why is Why.UNRECORDED_LOWERING


def test_a_good_candidate_keeps_its_weight_while_the_log_cannot_be_read_and_its_evidence_afterwards() -> None:
    world = world_with_a_canary()
    log = LogThatGoes(world)

    def log_goes() -> None:
        log.gone = True
        world.now += BEAT

    def later() -> None:
        world.now += BEAT

    def log_is_back() -> None:
        log.gone = False

    guarded(world, log, log_goes, later, later, log_is_back)
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000
    world.quarters(4)
    assert not replay(world.audit.rows[world.rollout_id]).ended
    world.turns_bad()
    for _ in range(2):
        world.look(may_raise=False)
        world.now += BEAT
    assert replay(world.audit.rows[world.rollout_id]).ended


def test_what_another_controller_wrote_meanwhile_is_not_judged_by_one_that_cannot_read_the_log() -> None:
    world = world_with_a_canary()
    log = LogThatGoes(world)

    def log_goes_here_and_somebody_else_resumes_there() -> None:
        commands.pause(world.rollout_id, world.ports(), actor="amir", reason="wait")
        commands.resume(world.rollout_id, world.ports(), actor="amir", reason="go on")
        log.gone = True
        world.turns_bad()

    before = world.flag()
    guarded(world, log, log_goes_here_and_somebody_else_resumes_there, lambda: None)
    flag = world.flag()
    assert flag is not None and before is not None
    assert flag.decision_id.endswith(".resume") and flag.weight == 5_000


def test_a_raise_on_its_way_is_lowered_at_a_breach_although_the_log_cannot_be_read() -> None:
    world = World()
    world.open(a_plan())
    world.quarters(3)
    world.now += EVERY
    world.faults = [
        *[Fault.NONE] * 5,
        Fault.FAIL_BEFORE,
    ]  # entries, read, the case, append Decided, write the flag; not: append Applied
    assert world.look(may_raise=True) == "failed"
    moving = replay(world.audit.rows[world.rollout_id])
    assert isinstance(moving.state, Moving) and world.flag_weight() == 5_000
    world.turns_bad()
    ports = world.ports()
    gone = LogThatGoes(world)
    gone.gone = True
    looked = without_log(moving, replace(ports, audit=gone), CaseShelf())  # type: ignore[arg-type]  # duck-typed
    assert looked.outcome is Outcome.UNRECORDED and world.flag_weight() == 0
    world.look(may_raise=False)
    state = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(state, RolledBack) and state.why is Why.UNRECORDED_LOWERING


def test_a_rollback_that_was_decided_and_lost_is_finished_although_the_log_cannot_be_read() -> None:
    world = world_with_a_canary()
    world.turns_bad()
    world.faults = [*[Fault.NONE] * 4, Fault.CRASH_BEFORE]  # entries, read, the case, append Decided; not: read to lower
    assert world.look(may_raise=False) == "crashed"
    moving = replay(world.audit.rows[world.rollout_id])
    assert isinstance(moving.state, Moving) and world.flag_weight() == 5_000
    world.faults = []
    assert without_log(moving, world.ports(), CaseShelf()).outcome is Outcome.UNRECORDED
    flag = world.flag()
    assert flag is not None and (flag.weight, flag.decision_id) == (0, moving.state.decision_id)
    world.look(may_raise=False)
    rows = world.audit.rows[world.rollout_id]
    assert replay(rows).ended and isinstance(rows[-1].event, Applied)


def test_a_flag_that_is_another_rollouts_by_now_is_left_alone_by_a_guard_that_cannot_read_the_log() -> None:
    world = world_with_a_canary()
    world.turns_bad()
    world.faults = [*[Fault.NONE] * 4, Fault.CRASH_BEFORE]
    world.look(may_raise=False)
    stale = replay(world.audit.rows[world.rollout_id])
    assert isinstance(stale.state, Moving)
    world.faults = []
    world.look(may_raise=False)  # somebody else finishes it
    flag = world.flag()
    assert flag is not None and replay(world.audit.rows[world.rollout_id]).ended
    other = change(50_000, key="chat", decision_id="other-1.2.advance")
    taken = world.flags.write(other, flag.version)
    assert without_log(stale, world.ports(), CaseShelf()).outcome is Outcome.QUIET
    assert world.flag() == taken


def test_a_guard_that_never_knew_a_rollout_does_nothing_without_the_log() -> None:
    world = world_with_a_canary()
    log = LogThatGoes(world)
    log.gone = True
    world.turns_bad()
    guarded(world, log, lambda: None)
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000


def test_the_lease_is_renewed_by_a_guard_that_looks_without_the_log() -> None:
    world = World()
    world.open(a_plan(lease=4 * BEAT))
    world.quarters(5, guarded=True)
    log = LogThatGoes(world)

    def a_beat_later() -> None:
        log.gone = True
        world.now += BEAT

    guarded(world, log, *[a_beat_later] * 8)
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000 and flag.lease is not None and flag.lease > world.now


def test_a_flag_store_that_is_away_too_ends_the_blind_round_and_not_the_guard() -> None:
    world = world_with_a_canary()
    log = LogThatGoes(world)

    class Away:
        def __getattr__(self, name: str) -> object:
            if log.gone:
                raise FlagUnavailable("connection refused")
            return getattr(world.ports().flags, name)

    def everything_goes() -> None:
        log.gone = True
        world.turns_bad()

    def everything_is_back() -> None:
        log.gone = False

    clock = iter(range(0, 100_000, 3600))
    ports = Ports(audit=log, index=log, flags=Away(), metrics=world.ports().metrics)  # type: ignore[arg-type]  # duck-typed
    steps = Story(everything_goes, lambda: None, everything_is_back, lambda: None)
    guard(ports, timedelta(seconds=1), steps, monotonic=lambda: float(next(clock)))
    flag = world.flag()
    assert flag is not None and flag.weight == 0


# --- heartbeats and numbers --------------------------------------------------------------------------------------------------------------


def number(name: str, **labels: str) -> float:
    value = metrics.REGISTRY.get_sample_value(name, labels)
    assert value is not None, name
    return value


def test_the_guard_says_that_it_looks_and_at_what() -> None:
    world = world_with_a_canary()
    beats = MemoryHeartbeats(clock=lambda: world.now)
    guarded(world, LogThatGoes(world), lambda: None, beats=beats)
    assert set(beats.beats) == {("guard", ""), ("guard", world.rollout_id)}


def test_a_rollout_that_cannot_be_looked_at_is_not_said_to_be_looked_at() -> None:
    world = world_with_a_canary()
    beats = MemoryHeartbeats(clock=lambda: world.now)
    beside = BesideABrokenLog(world, LogError)
    ports = Ports(audit=beside, index=beside, flags=world.flags, metrics=world.ports().metrics, heartbeats=beats)  # type: ignore[arg-type]  # duck-typed
    guard(ports, None, Rounds(1))
    assert set(beats.beats) == {("guard", ""), ("guard", world.rollout_id)}


def test_the_guards_numbers_say_where_rollouts_stand_and_what_is_missed() -> None:
    world = world_with_a_canary()
    ticks = number("penstock_ticks_total", caller="guard", outcome="quiet")
    took = number("penstock_tick_duration_seconds_count", caller="guard")
    world.now += timedelta(minutes=50)
    guarded(world, LogThatGoes(world), lambda: None)
    assert number("penstock_rollouts", state="baking") == 1 and number("penstock_rollouts", state="paused") == 0
    # 50 minutes without a check at one each 15: the third is due, two are missed.
    assert number("penstock_gate_check_age_seconds") == 3000 and number("penstock_gate_checks_missed") == 2
    assert number("penstock_ticks_total", caller="guard", outcome="quiet") == ticks + 2
    assert number("penstock_tick_duration_seconds_count", caller="guard") == took + 2
    assert number("penstock_guard_blind") == 0 and number("penstock_flag_drift") == 0
    world.stranger(90_000)
    guarded(world, LogThatGoes(world), lambda: None)
    assert number("penstock_flag_drift") == 1 and number("penstock_rollouts", state="paused") == 1


def test_a_blind_round_can_be_seen_from_outside() -> None:
    world = world_with_a_canary()
    log = LogThatGoes(world)

    def gone() -> None:
        log.gone = True

    guarded(world, log, gone, lambda: None)
    assert number("penstock_guard_blind") == 1
    log.gone = False
    guarded(world, log, lambda: None)
    assert number("penstock_guard_blind") == 0


def test_the_dead_man_is_the_guards_and_is_armed_by_the_plan() -> None:
    world = World()
    world.open(a_plan(dead_man=DeadManAction.ROLLBACK))
    world.quarters(5)

    def an_hour_later() -> None:
        world.now += timedelta(hours=1)

    guarded(world, LogThatGoes(world), an_hour_later, lambda: None)
    state = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(state, RolledBack) and state.why is Why.DEAD_MAN
