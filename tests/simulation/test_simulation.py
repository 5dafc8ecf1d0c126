"""
The controller in an invented world: time, crashes, outages of every port, foreign edits of the flag, several controllers at once.

The witness (`World.witness`) checks every write that reaches the flag; the rules below check what must hold between looks.
"""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller import codec, commands
from controller.core.decision import Why
from controller.core.notice import Level
from controller.core.plan import DeadManAction, OnDrift
from controller.core.rollout import Applied, AwaitingApproval, Decided, Moving, Paused, RolledBack, replay
from controller.recheck import COMPUTED, recheck_all
from controller.shelf import CaseShelf
from controller.tick import tick, without_log
from flagspec import Variant
from tests.simulation.world import BEAT, EVERY, START, WORLDS, Fault, Truth, World, a_plan

# What ends a rollout at once is rare, or no rollout would get far enough to show anything.
_USUAL = [f for f in Fault if f is not Fault.KILL]
FAULTS = st.lists(st.one_of(*(st.sampled_from(_USUAL) for _ in range(6)), st.just(Fault.NONE), st.just(Fault.KILL)), max_size=8)
PEOPLE = st.sampled_from(["rita", "amir", "bea", "chen"])


class Controllers(RuleBasedStateMachine):
    """Anything may happen between and in the middle of looks."""

    @initialize(
        on_drift=st.sampled_from(list(OnDrift)),
        lease=st.sampled_from([None, timedelta(minutes=30)]),
        dead_man=st.sampled_from([None, *DeadManAction]),
    )
    def begin(self, on_drift: OnDrift, lease: timedelta | None, dead_man: DeadManAction | None) -> None:
        self.world = World()
        self.world.open(a_plan(on_drift=on_drift, lease=lease, dead_man=dead_man))

    @rule(minutes=st.sampled_from([0, 1, 15, 45, 300]))
    def time_passes(self, minutes: int) -> None:
        self.world.now += timedelta(minutes=minutes)

    @rule(truth=st.sampled_from(list(Truth)))
    def the_candidate_turns(self, truth: Truth) -> None:
        self.world.truth = truth

    @rule(faults=FAULTS, may_raise=st.booleans())
    def somebody_looks(self, faults: list[Fault], may_raise: bool) -> None:
        self.world.faults = list(faults)
        self.world.look(may_raise=may_raise)
        self.world.faults = []

    @rule(quarters=st.integers(1, 6))
    def the_schedule_goes_on_undisturbed(self, quarters: int) -> None:
        self.world.truth = Truth.GOOD
        self.world.quarters(quarters, guarded=True)

    @rule(minutes=st.sampled_from([5, 40, 90]), truth=st.sampled_from(list(Truth)))
    def the_log_cannot_be_read_and_the_guard_goes_on_with_what_it_knew(self, minutes: int, truth: Truth) -> None:
        known = self.rollout
        if known.ended:
            return
        self.world.now += timedelta(minutes=minutes)
        self.world.truth = truth
        before = self.world.in_force(self.world.flag())
        without_log(known, self.world.ports(), CaseShelf())
        assert self.world.in_force(self.world.flag()) <= before
        self.world.truth = Truth.GOOD

    @rule(person=PEOPLE, faults=FAULTS)
    def somebody_approves(self, person: str, faults: list[Fault]) -> None:
        self.world.faults = list(faults)
        self.world.command(lambda p: commands.approve(self.world.rollout_id, p, actor=person, groups=("managers",)))
        self.world.faults = []

    @rule(what=st.sampled_from([commands.pause, commands.resume]), faults=FAULTS)
    def somebody_pauses_or_resumes(self, what: object, faults: list[Fault]) -> None:
        self.world.faults = list(faults)
        self.world.command(lambda p: what(self.world.rollout_id, p, actor="amir", reason="because"))  # type: ignore[operator]
        self.world.faults = []

    @rule(
        truth=st.sampled_from([Truth.FEW, Truth.NOTHING, Truth.DOWN, Truth.GOOD]),
        may_raise=st.booleans(),
        hours=st.sampled_from([1, 5]),
    )
    def long_after_the_bake_somebody_looks_at_odd_evidence(self, truth: Truth, may_raise: bool, hours: int) -> None:
        self.world.truth = truth
        self.world.now += timedelta(hours=hours)
        self.world.look(may_raise=may_raise)
        self.world.truth = Truth.GOOD

    @precondition(lambda self: len(self.world.audit.rows[self.world.rollout_id]) > 14)
    @rule(what=st.sampled_from([commands.roll_back, commands.abort]), faults=FAULTS)
    def somebody_ends_it(self, what: object, faults: list[Fault]) -> None:
        self.world.faults = list(faults)
        self.world.command(lambda p: what(self.world.rollout_id, p, actor="amir", reason="because"))  # type: ignore[operator]
        self.world.faults = []

    @precondition(lambda self: not self.rollout.ended and not self.first_phase_pending and self.rollout.seq > 8)
    @rule(may_raise=st.booleans(), truth=st.sampled_from([Truth.BAD, Truth.SILENT]))
    def a_breach_that_can_be_seen_with_readable_log_and_flag_is_at_zero_after_one_look(
        self, may_raise: bool, truth: Truth
    ) -> None:
        self.world.truth = truth
        self.world.now += EVERY  # three beats of traffic
        if truth is Truth.SILENT and self.phase_is_full:
            return  # nothing runs beside it that could show its silence
        self.world.look(may_raise=may_raise)
        if (flag := self.world.flag()) is not None and flag.lease is not None and self.world.now >= flag.lease:
            return  # nobody is served by the candidate: the rollout is paused, or rolled back by the dead man
        assert flag is None or (flag.weight == 0 and flag.shadow_weight == 0), flag
        assert self.rollout.ended

    @invariant()
    def each_row_follows_from_the_one_before(self) -> None:
        if self.started:
            entries = self.world.audit.rows[self.world.rollout_id]
            assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
            replay(entries)

    @invariant()
    def one_decision_has_one_effect(self) -> None:
        if self.started:
            applied = [e.event.decision_id for e in self.world.audit.rows[self.world.rollout_id] if isinstance(e.event, Applied)]
            assert len(applied) == len(set(applied))

    @invariant()
    def an_ended_rollout_gives_its_flag_back_and_a_running_one_holds_it(self) -> None:
        if self.started:
            held = self.world.audit.held.get(("production", "chat"))
            assert held == (None if self.rollout.ended else self.world.rollout_id)

    @invariant()
    def rolled_back_is_said_only_after_the_flag_confirmed_it(self) -> None:
        if self.started:
            for letter in self.world.audit.letters:
                if letter.notice.level is Level.ALARM and letter.notice.text.startswith(("rolled back", "aborted")):
                    row = self.world.audit.rows[self.world.rollout_id][letter.notice.seq - 1]
                    assert isinstance(row.event, Applied)

    def teardown(self) -> None:
        if self.started:
            self.world.assert_replays()
            WORLDS.clear()

    @property
    def started(self) -> bool:
        return hasattr(self, "world")

    @property
    def rollout(self):  # type: ignore[no-untyped-def]
        return replay(self.world.audit.rows[self.world.rollout_id])

    @property
    def first_phase_pending(self) -> bool:
        state = self.rollout.state
        return self.rollout.phase is None or (isinstance(state, Moving) and self.rollout.applied == "")

    @property
    def phase_is_full(self) -> bool:
        return bool(self.rollout.phase == 3)


Controllers.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestControllers = Controllers.TestCase


def test_a_good_candidate_is_promoted_when_people_approve() -> None:
    world = World()
    world.open(a_plan())
    for quarter in range(30):
        world.now += EVERY
        world.look(may_raise=True)
        if quarter == 10:
            for person in ("amir", "bea"):
                assert (
                    world.command(lambda p, who=person: commands.approve(world.rollout_id, p, actor=who, groups=("managers",)))
                    == "done"
                )  # type: ignore[misc]
    flag = world.flag()
    assert flag is not None and flag.weight == 100_000
    assert replay(world.audit.rows[world.rollout_id]).state.__class__.__name__ == "Promoted"


@settings(max_examples=40, deadline=None)
@given(faults=st.lists(st.sampled_from([f for f in Fault if "stranger" not in f and f is not Fault.KILL]), max_size=60))
def test_after_any_faults_a_good_candidate_is_still_promoted_once_the_faults_end(faults: list[Fault]) -> None:
    world = World(faults=list(faults))
    world.audit.clock = lambda: world.now
    try:
        world.open(a_plan())
    except BaseException:
        world.faults = []
        world.open(a_plan())
    for _ in range(120):
        world.quarters(1)
        for person in ("amir", "bea"):
            world.command(lambda p, who=person: commands.approve(world.rollout_id, p, actor=who, groups=("managers",)))  # type: ignore[misc]
    rollout = replay(world.audit.rows[world.rollout_id])
    assert type(rollout.state).__name__ == "Promoted", rollout.state
    promotions = [
        e for e in world.audit.rows[world.rollout_id] if isinstance(e.event, Decided) and e.event.decision.kind == "promote"
    ]
    applied = {e.event.decision_id for e in world.audit.rows[world.rollout_id] if isinstance(e.event, Applied)}
    assert sum(e.event.decision_id in applied for e in promotions) == 1  # type: ignore[union-attr]


def test_every_decision_comes_out_again_from_its_row_alone() -> None:
    world = World()
    world.open(a_plan())
    for truth in (Truth.GOOD, Truth.FEW, Truth.DOWN, Truth.GOOD, Truth.NOTHING, Truth.GOOD):
        world.truth = truth
        world.quarters(3)
        world.now += BEAT
        world.look(may_raise=False)
    world.turns_bad()
    world.quarters(1)
    rows = world.audit.rows[world.rollout_id]
    assert replay(rows).ended
    assert world.assert_replays()[COMPUTED] >= 15


def test_a_controller_without_the_others_memory_comes_to_the_same_evidence() -> None:
    """One process that keeps its case between looks, and one that reads it from the log each time."""
    texts = []
    for forgets in (False, True):
        world = World()
        world.open(a_plan())
        for _ in range(6):
            world.quarters(1)
            if forgets:
                world.shelf = CaseShelf()
        texts.append(replay(world.audit.rows[world.rollout_id]).evidence)
    assert texts[0] == texts[1] != ""


def test_evidence_that_another_release_wrote_is_begun_anew_and_the_candidate_is_watched_all_the_same() -> None:
    world = World()
    world.open(a_plan())
    world.quarters(5)
    rows = world.audit.rows[world.rollout_id]
    last = next(i for i in reversed(range(len(rows))) if isinstance(rows[i].event, Decided) and rows[i].event.observed.gathered)  # type: ignore[union-attr]
    event = rows[last].event
    assert isinstance(event, Decided) and event.observed.gathered is not None
    odd = replace(event.observed, gathered=replace(event.observed.gathered, after='{"v": 99}'))
    rows[last] = replace(rows[last], event=replace(event, observed=odd))
    world.shelf = CaseShelf()
    world.quarters(1)
    rows = world.audit.rows[world.rollout_id]
    state = replay(rows)
    assert not state.ended and '"v":99' not in state.evidence.replace(" ", "")
    told = rows[-1].event
    assert isinstance(told, Decided) and "cannot be read and is begun anew" in told.decision.text
    world.turns_bad()
    for _ in range(3):
        world.now += BEAT
        world.look(may_raise=False)
    assert replay(world.audit.rows[world.rollout_id]).ended
    _, differences = recheck_all([world.rollout_id], world.audit)
    assert {(d.seq, d.what) for d in differences} == {(last + 1, "evidence")}, "only the edited row is found out"
    WORLDS.clear()


def test_a_frozen_controller_that_wakes_after_a_rollback_changes_nothing() -> None:
    world = World(truth=Truth.GOOD)
    world.open(a_plan())
    world.now += EVERY
    world.look(may_raise=True)
    world.now += 3 * EVERY
    # The first controller decides to advance and freezes before its flag write; meanwhile the candidate turns bad and a guard looks.
    original = world.nested

    def turn_bad(*, may_raise: bool) -> None:
        world.turns_bad()
        world.now += BEAT  # in shadow, where nobody is exposed, one beat is not enough
        original(may_raise=may_raise)

    world.nested = turn_bad  # type: ignore[method-assign]
    world.faults = [*[Fault.NONE] * 3, Fault.OTHER_GUARD]  # entries, read, append Decided, write
    world.look(may_raise=True)
    flag = world.flag()
    assert flag is not None and (flag.weight, flag.shadow_weight) == (0, 0)
    assert replay(world.audit.rows[world.rollout_id]).ended


def test_a_rollback_that_wakes_up_in_the_next_rollout_leaves_its_flag_alone() -> None:
    world = World()
    world.open(a_plan())
    world.quarters(5)
    first, following = world.rollout_id, ""
    world.turns_bad()
    original = world.nested

    def others(*, may_raise: bool) -> None:
        nonlocal following
        original(may_raise=may_raise)  # finishes the rollback
        world.truth = Truth.GOOD
        world.now += EVERY
        plan = a_plan()
        following = commands.start(plan, codec.plan_digest(plan), world.ports(), actor="rita", key="next").id
        world.rollout_id = following
        world.look(may_raise=True)
        world.rollout_id = first

    world.nested = others  # type: ignore[method-assign]
    world.faults = [*[Fault.NONE] * 4, Fault.OTHER_GUARD]  # entries, read, the case, append Decided, read
    assert world.look(may_raise=False) == "lost_race"
    flag = world.flag()
    assert flag is not None and flag.decision_id.startswith(f"{following}.") and flag.shadow_weight == 10_000


def test_a_controller_that_wakes_up_before_it_withdraws_a_raise_does_not_withdraw_the_next_one() -> None:
    world = World()
    world.open(a_plan())
    world.now += EVERY
    world.faults = [*[Fault.NONE] * 2, Fault.CRASH_AFTER]  # entries, read, append Decided
    world.look(may_raise=True)
    original = world.nested

    def others(*, may_raise: bool) -> None:
        for _ in range(2):
            world.now += EVERY
            original(may_raise=True)

    world.nested = others  # type: ignore[method-assign]
    world.faults = [Fault.NONE, Fault.OTHER_GUARD]  # entries, read
    assert world.look(may_raise=False) == "lost_race"
    rollout, flag = replay(world.audit.rows[world.rollout_id]), world.flag()
    assert flag is not None and (flag.decision_id, flag.shadow_weight) == (rollout.applied, 10_000)


def test_a_controller_that_sleeps_between_decision_and_write_does_not_raise_on_old_evidence() -> None:
    world = World()
    world.open(a_plan())
    world.now += EVERY
    world.faults = [Fault.NONE, Fault.NONE, Fault.NONE, Fault.FROZEN_FOR_AN_HOUR]
    assert world.look(may_raise=True) == "lost_race"
    assert world.flag() is None
    assert world.now - START > timedelta(hours=1)


def test_a_breach_lowers_the_flag_even_when_the_audit_log_cannot_be_written_and_the_next_look_records_it() -> None:
    world = World()
    world.open(a_plan())
    world.quarters(5)
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000
    world.turns_bad()
    world.faults = [Fault.NONE, Fault.NONE, Fault.NONE, Fault.FAIL_BEFORE]  # entries, read, the case, append Decided
    assert world.look(may_raise=False) == "unrecorded"
    flag = world.flag()
    assert flag is not None and flag.weight == 0
    assert not replay(world.audit.rows[world.rollout_id]).ended
    world.truth = Truth.GOOD
    world.look(may_raise=False)
    state = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(state, RolledBack) and state.why is Why.UNRECORDED_LOWERING


def test_an_approval_that_has_expired_does_not_count() -> None:
    world = World()
    world.open(a_plan())
    while not isinstance(replay(world.audit.rows[world.rollout_id]).state, AwaitingApproval):
        world.now += EVERY
        world.look(may_raise=True)
    world.command(lambda p: commands.approve(world.rollout_id, p, actor="amir", groups=("managers",)))
    world.now += timedelta(hours=5)  # approvals live for four
    world.command(lambda p: commands.approve(world.rollout_id, p, actor="bea", groups=("managers",)))
    world.look(may_raise=True)
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000
    world.now += timedelta(minutes=1)
    world.command(lambda p: commands.approve(world.rollout_id, p, actor="amir", groups=("managers",)))
    world.look(may_raise=True)
    flag = world.flag()
    assert flag is not None and flag.weight == 50_000


def test_a_stranger_who_raises_the_flag_stops_the_rollout_until_a_person_resumes() -> None:
    world = World()
    world.open(a_plan())
    world.quarters(5)
    world.stranger(90_000)
    world.now += EVERY
    world.look(may_raise=True)
    state = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(state, Paused) and state.why is Why.DRIFT
    world.command(lambda p: commands.resume(world.rollout_id, p, actor="amir", reason="was me"))
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000


def test_a_breach_is_lowered_while_a_raise_is_on_its_way_and_the_log_cannot_be_written() -> None:
    world = World()
    world.open(a_plan())
    world.quarters(3)
    world.now += EVERY
    # entries, read, the case, append Decided, write the flag; then the disk is full and stays so
    world.faults = [*[Fault.NONE] * 5, Fault.FAIL_BEFORE]
    assert world.look(may_raise=True) == "failed"
    flag = world.flag()
    assert flag is not None and flag.weight == 5_000
    world.turns_bad()
    world.faults = [Fault.NONE, Fault.NONE, Fault.FAIL_BEFORE]  # entries, read, append Applied
    assert world.look(may_raise=False) == "unrecorded"
    flag = world.flag()
    assert flag is not None and flag.weight == 0
    world.look(may_raise=False)
    state = replay(world.audit.rows[world.rollout_id]).state
    assert isinstance(state, RolledBack) and state.why is Why.UNRECORDED_LOWERING


def test_a_person_rolls_back_while_a_raise_is_on_its_way_and_the_log_cannot_be_written() -> None:
    world = World()
    world.open(a_plan())
    world.quarters(3)
    world.now += EVERY
    world.faults = [*[Fault.NONE] * 5, Fault.FAIL_BEFORE]
    world.look(may_raise=True)
    world.faults = [Fault.NONE, Fault.NONE, Fault.FAIL_BEFORE]
    assert world.command(lambda p: commands.roll_back(world.rollout_id, p, actor="amir", reason="now")) == "failed"
    flag = world.flag()
    assert flag is not None and flag.weight == 0
    world.look(may_raise=False)
    assert isinstance(replay(world.audit.rows[world.rollout_id]).state, RolledBack)


def test_a_controller_that_sleeps_between_measuring_and_deciding_does_not_raise_on_old_evidence() -> None:
    world = World()
    world.open(a_plan())
    world.now += EVERY
    world.look(may_raise=True)
    world.now += 4 * EVERY
    world.faults = [Fault.NONE, Fault.NONE, Fault.FROZEN_FOR_AN_HOUR]  # entries, read, append Decided
    assert world.look(may_raise=True) == "lost_race"
    flag = world.flag()
    assert flag is not None and flag.weight == 0


def test_a_dry_run_writes_nothing_even_when_a_change_is_on_its_way() -> None:
    world = World()
    world.open(a_plan())
    world.now += EVERY
    world.faults = [Fault.NONE, Fault.NONE, Fault.NONE, Fault.CRASH_BEFORE]
    world.look(may_raise=True)
    world.faults = []
    before = (len(world.audit.rows[world.rollout_id]), world.flag())
    seen = tick(world.rollout_id, world.ports(), world.now, may_raise=True, force=True, dry_run=True)
    assert seen.decision is not None and seen.decision.why is Why.SETTLING
    assert (len(world.audit.rows[world.rollout_id]), world.flag()) == before


def test_a_baseline_that_nobody_is_served_by_cannot_become_everybodys_without_a_gate() -> None:
    world = World()
    world.open(a_plan())
    world.now += EVERY
    world.look(may_raise=True)
    commands.abort(world.rollout_id, world.ports(), actor="amir", reason="enough")
    other = replace(a_plan(), name="other", baseline=Variant(model="unheard-of"))
    with pytest.raises(commands.CommandRefused, match="serves old to everybody, but the plan's baseline is unheard-of"):
        commands.start(other, "d", world.ports(), actor="rita", key="2")
