"""When those who should look do not: missed gate checks, a silent guard, a lapsed lease; and how often people hear of trouble."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller import commands
from controller.adapters.memory import MemoryHeartbeats
from controller.codec import readings_from_text
from controller.core.converge import InStep, Lapsed, leased
from controller.core.decide import decide
from controller.core.decision import Hold, Pause, RollBack, Weights, Why
from controller.core.gates import GateResult, Verdict
from controller.core.notice import Level, repeats, standing
from controller.core.plan import DeadManAction, Plan, PlanError, Policy
from controller.core.recompute import recompute
from controller.core.rollout import Decided, Moving, Paused, Pending, RolledBack, replay
from controller.tick import tick
from tests.core.test_decide import BEGAN, PLAN, rollout
from tests.simulation.world import BEAT, EVERY, Fault, Truth, World, a_plan

HOUR = timedelta(hours=1)
PASSED = (GateResult(gate="errors", verdict=Verdict.PASS, reason="fine"),)


def with_policy(**values: object) -> Plan:
    return replace(PLAN, policy=replace(PLAN.policy, **values))


def world_in_canary(**policy: object) -> World:
    world = World()
    plan = a_plan()
    world.open(replace(plan, policy=replace(plan.policy, **policy)))
    world.quarters(5, guarded=True)
    assert weight(world) == 5_000
    return world


def weight(world: World) -> int:
    flag = world.flag()
    assert flag is not None
    return flag.weight


# --- trouble in a row ----------------------------------------------------------------------------------------------------------------


def test_trouble_is_told_after_one_check_and_is_an_alarm_after_two_and_after_twice_as_many_again() -> None:
    world = world_in_canary()
    world.truth = Truth.DOWN
    before = len(world.audit.letters)
    world.quarters(9)
    levels = [letter.notice.level for letter in world.audit.letters[before:]]
    info, news, alarm = Level.INFO, Level.NEWS, Level.ALARM
    assert levels == [news, alarm, info, alarm, info, info, info, alarm, info]
    assert weight(world) == 5_000  # trouble holds
    texts = [letter.notice.text for letter in world.audit.letters[before:]]
    assert texts[1].endswith(", twice in a row") and texts[7].endswith(", 8 times in a row")


def test_the_plan_says_when_trouble_is_told_and_when_it_is_an_alarm() -> None:
    world = world_in_canary(tell_after=2, escalate_after=3)
    world.truth = Truth.NOTHING
    before = len(world.audit.letters)
    world.quarters(6)
    levels = [letter.notice.level for letter in world.audit.letters[before:]]
    assert levels == [Level.INFO, Level.NEWS, Level.ALARM, Level.INFO, Level.INFO, Level.ALARM]


def test_a_check_with_evidence_ends_the_row_of_trouble() -> None:
    world = world_in_canary()
    for truth in (Truth.DOWN, Truth.GOOD, Truth.DOWN):
        world.truth = truth
        world.quarters(1)
    assert replay(world.audit.rows[world.rollout_id]).troubled == 1
    assert world.audit.letters[-1].notice.level is Level.NEWS


def test_repetitions_double() -> None:
    assert [n for n in range(40) if repeats(n, 2)] == [2, 4, 8, 16, 32]
    assert [n for n in range(30) if repeats(n, 3)] == [3, 6, 12, 24]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tell_after": 0}, "tell_after"),
        ({"tell_after": 3, "escalate_after": 2}, "escalate_after"),
        ({"dead_man_after": timedelta(minutes=15)}, "dead_man"),
        ({"lease": timedelta(seconds=59)}, "lease"),
    ],
)
def test_values_that_contradict_themselves_make_no_policy(values: dict[str, object], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        Policy(**values)  # type: ignore[arg-type]  # by name


# --- gate checks that do not come ---------------------------------------------------------------------------------------------------


def test_the_guard_raises_the_alarm_once_when_no_gate_check_comes() -> None:
    world = world_in_canary(dead_man_after=HOUR)
    rows = len(world.audit.rows[world.rollout_id])
    outcomes = []
    for _ in range(30):
        world.now += BEAT
        outcomes.append(world.look(may_raise=False))
    # At 5, 10, ... minutes: the hour is over at the twelfth look.
    assert outcomes == ["quiet"] * 11 + ["decided"] + ["quiet"] * 18
    new = world.audit.rows[world.rollout_id][rows:]
    assert [(e.actor, e.event.decision.why) for e in new if isinstance(e.event, Decided)] == [("guard", Why.DEAD_MAN)]
    last = world.audit.letters[-1].notice
    assert last.level is Level.ALARM
    assert last.text.startswith("no gate check for 60 min, the plan asks for one each 15 min; held")
    assert weight(world) == 5_000 and not replay(world.audit.rows[world.rollout_id]).ended


def test_the_next_gate_check_says_that_they_are_back_and_arms_the_dead_man_again() -> None:
    world = world_in_canary(dead_man_after=HOUR)
    for _ in range(13):
        world.now += BEAT
        world.look(may_raise=False)
    assert replay(world.audit.rows[world.rollout_id]).unwatched
    world.now += BEAT
    world.look(may_raise=True)
    assert not replay(world.audit.rows[world.rollout_id]).unwatched
    told = world.audit.letters[-1].notice
    assert told.level is not Level.INFO and told.text.startswith("gate checks are back after 70 min; ")
    for expected in ["quiet"] * 11 + ["decided"]:
        world.now += BEAT
        assert world.look(may_raise=False) == expected


def test_the_dead_man_rolls_back_where_the_plan_says_so_and_the_row_is_computed_again() -> None:
    world = world_in_canary(dead_man_after=HOUR, dead_man_action=DeadManAction.ROLLBACK)
    for _ in range(12):
        world.now += BEAT
        world.look(may_raise=False)
    state = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(state, RolledBack) and state.why is Why.DEAD_MAN
    assert weight(world) == 0
    rows = world.audit.rows[world.rollout_id]
    row = next(e for e in rows if isinstance(e.event, Decided) and e.event.decision.why is Why.DEAD_MAN)
    assert isinstance(row.event, Decided) and row.event.observed.gathered is not None
    again = recompute(replay(rows[: row.seq - 1]), row, readings_from_text(row.event.observed.gathered.traffic))
    assert again is not None and again.decision == row.event.decision


def test_a_breach_is_called_a_breach_although_no_gate_check_comes() -> None:
    plan = with_policy(dead_man_after=HOUR, dead_man_action=DeadManAction.ROLLBACK)
    broken = (GateResult(gate="errors", verdict=Verdict.BREACH, reason="40% failed"),)
    assert decide(rollout(plan=plan), InStep(), broken, BEGAN + 2 * HOUR, may_raise=False).why is Why.BREACH
    assert decide(rollout(plan=plan), InStep(), PASSED, BEGAN + 2 * HOUR, may_raise=False).why is Why.DEAD_MAN


def test_a_gate_check_is_never_the_dead_mans() -> None:
    plan = with_policy(dead_man_after=HOUR, dead_man_action=DeadManAction.ROLLBACK)
    assert decide(rollout(plan=plan), InStep(), PASSED, BEGAN + 9 * HOUR, may_raise=True).kind == "advance"


def test_where_nobody_is_exposed_the_dead_man_only_raises_the_alarm() -> None:
    plan = with_policy(dead_man_after=HOUR, dead_man_action=DeadManAction.ROLLBACK)
    pending = replace(rollout(state=Pending(), plan=plan), weights=Weights(), applied="")
    decision = decide(pending, InStep(), (), BEGAN + HOUR, may_raise=False)
    assert isinstance(decision, Hold) and decision.why is Why.DEAD_MAN


def test_without_a_dead_man_in_the_plan_the_guard_says_nothing() -> None:
    decision = decide(rollout(), InStep(), PASSED, BEGAN + 1000 * HOUR, may_raise=False)
    assert isinstance(decision, Hold) and decision.why is Why.GUARD_ONLY


# --- a guard that does not look ----------------------------------------------------------------------------------------------------------


def look(world: World, beats: MemoryHeartbeats) -> None:
    world.now += EVERY
    tick(world.rollout_id, replace(world.ports(), heartbeats=beats), world.now, may_raise=True)


def test_the_gate_check_tells_of_a_guard_that_does_not_look_and_of_its_return() -> None:
    world = world_in_canary()
    beats = MemoryHeartbeats(clock=lambda: world.now)
    beats.beat("guard", [world.rollout_id])
    since = world.now
    told = []
    for _ in range(5):
        look(world, beats)
        told.append(world.audit.letters[-1].notice)
    # Its beat is 5 min here, so 15 min are no silence yet; then the first check that finds it, the second, the fourth.
    assert [n.level for n in told] == [Level.INFO, Level.ALARM, Level.ALARM, Level.INFO, Level.ALARM]
    assert told[1].text.startswith("no guard has looked for 30 min: a breach is only seen by gate checks; ")
    row = world.audit.rows[world.rollout_id][-1].event
    assert isinstance(row, Decided) and row.observed.guard_silent_since == since
    assert replay(world.audit.rows[world.rollout_id]).unguarded == 4
    world.now += EVERY - timedelta(seconds=1)
    beats.beat("guard", [world.rollout_id])
    world.now -= EVERY - timedelta(seconds=1)
    look(world, beats)
    assert world.audit.letters[-1].notice.text.startswith("the guard looks again; ")
    assert replay(world.audit.rows[world.rollout_id]).unguarded == 0


def test_a_guard_that_looks_at_others_only_is_silent_all_the_same() -> None:
    world = world_in_canary()
    beats = MemoryHeartbeats(clock=lambda: world.now)
    for _ in range(2):
        beats.beat("guard", ["another"])
        look(world, beats)
    assert replay(world.audit.rows[world.rollout_id]).unguarded > 0


# --- a lease that lapsed ---------------------------------------------------------------------------------------------------------------


LEASE = 4 * BEAT


def test_every_raise_sets_the_lease_and_a_looking_guard_renews_it_when_a_third_is_over() -> None:
    world = world_in_canary(lease=LEASE)
    flag = world.flag()
    assert flag is not None and flag.lease is not None and flag.lease > world.now
    began = flag
    for _ in range(12):
        world.now += BEAT
        assert world.look(may_raise=False) == "quiet"
        flag = world.flag()
        assert flag is not None and flag.lease is not None and flag.lease > world.now + LEASE / 2
    # A third of 20 min is over after the second beat of 5 min: a renewal at every second look, and no new version.
    assert (flag.version, flag.revision) == (began.version, began.revision + 6)


def test_after_a_lapse_the_rollout_is_paused_truthfully_and_nothing_comes_back_by_itself() -> None:
    world = world_in_canary(lease=LEASE)
    flag = world.flag()
    assert flag is not None
    ended = flag.lease
    world.now += 2 * LEASE
    assert world.look(may_raise=False) == "decided"
    held = replay(world.audit.rows[world.rollout_id])
    assert isinstance(held.state, Paused) and held.state.why is Why.LEASE_LAPSED
    assert standing(held) == "paused in canary at 5%, routers at 0%: the lease lapsed"
    assert world.audit.letters[-1].notice.level is Level.ALARM
    # No user reaches the candidate: its silence is not held against it, and no look renews what has lapsed.
    world.truth = Truth.SILENT
    for may_raise in (False, True, False, True):
        world.now += EVERY
        world.look(may_raise=may_raise)
    flag = world.flag()
    assert flag is not None and flag.lease == ended
    assert isinstance(replay(world.audit.rows[world.rollout_id]).state, Paused)
    world.truth = Truth.GOOD
    commands.resume(world.rollout_id, world.ports(), actor="amir", reason="the guard is back")
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000 and flag.lease == world.now + LEASE


def test_a_raise_that_a_crash_lost_brings_nobody_back_after_the_lapse() -> None:
    world = world_in_canary(lease=LEASE)
    commands.pause(world.rollout_id, world.ports(), actor="amir", reason="wait")
    world.faults = [*[Fault.NONE] * 5, Fault.CRASH_BEFORE]  # entries, read three times, append Decided, write the flag
    world.command(lambda p: commands.resume(world.rollout_id, p, actor="amir", reason="go on"))
    moving = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(moving, Moving) and moving.decision.kind == "resume"
    world.faults = []
    world.now += 2 * LEASE
    world.look(may_raise=False)
    flag = world.flag()
    assert flag is not None and flag.decision_id.endswith(".abandoned") and world.in_force(flag) == 0
    held = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(held, Paused) and held.why is Why.LEASE_LAPSED
    world.look(may_raise=True)
    assert world.in_force(world.flag()) == 0


def test_the_rows_after_a_lapse_are_computed_again_from_the_log_alone() -> None:
    world = world_in_canary(lease=LEASE)
    world.now += 2 * LEASE
    world.look(may_raise=False)
    world.truth = Truth.SILENT
    world.quarters(2)
    rows = world.audit.rows[world.rollout_id]
    for row in rows[-2:]:
        assert isinstance(row.event, Decided) and row.event.observed.gathered is not None
        again = recompute(replay(rows[: row.seq - 1]), row, readings_from_text(row.event.observed.gathered.traffic))
        assert again is not None and again.decision == row.event.decision and again.results == row.event.observed.results


def test_a_lapse_rolls_back_where_the_dead_man_does() -> None:
    world = world_in_canary(lease=LEASE, dead_man_action=DeadManAction.ROLLBACK)
    world.now += 2 * LEASE
    world.look(may_raise=True)
    state = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(state, RolledBack) and state.why is Why.LEASE_LAPSED
    assert world.assert_replays()["incomplete"] == 0
    assert weight(world) == 0


def test_a_promoted_flag_has_no_lease_and_neither_has_one_at_zero() -> None:
    plan = a_plan()
    for turns_bad in (False, True):
        world = World()
        open_plan = replace(plan, phases=tuple(replace(p, approval=None) for p in plan.phases))
        world.open(replace(open_plan, policy=replace(plan.policy, lease=LEASE)))
        for quarter in range(30):
            if turns_bad and quarter == 8:
                world.turns_bad()
            world.quarters(1, guarded=True)
        flag = world.flag()
        assert flag is not None and flag.weight == (0 if turns_bad else 100_000)
        assert flag.lease is None


def test_a_flag_without_weight_has_nothing_that_could_lapse() -> None:
    world = world_in_canary(lease=LEASE)
    flag = world.flag()
    assert flag is not None and flag.lease is not None
    late = flag.lease + HOUR
    assert leased(InStep(), flag, late) == Lapsed(ended=flag.lease)
    assert leased(InStep(), replace(flag, weight=0), late) == InStep()
    assert leased(InStep(), flag, flag.lease - timedelta(seconds=1)) == InStep()
    assert leased(InStep(), None, late) == InStep()


def test_a_lapse_comes_before_the_silence_that_it_brings() -> None:
    silent = (GateResult(gate="candidate-reports", verdict=Verdict.BREACH, reason="silent"),)
    ended = datetime(2026, 5, 4, 10, 30, tzinfo=BEGAN.tzinfo)
    decision = decide(rollout(), Lapsed(ended=ended), silent, BEGAN + 2 * HOUR, may_raise=False)
    assert isinstance(decision, Pause) and decision.why is Why.LEASE_LAPSED
    assert "at 2026-05-04 10:30:00 UTC it ended" in decision.text
    rolled = decide(
        rollout(plan=with_policy(dead_man_action=DeadManAction.ROLLBACK)), Lapsed(ended=ended), silent, BEGAN, may_raise=False
    )
    assert isinstance(rolled, RollBack) and rolled.why is Why.LEASE_LAPSED
