"""The order of the checks: each test breaks exactly one condition of a rollout that would otherwise advance."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.core.converge import Drift, InStep, Killed, UnrecordedLowering
from controller.core.decide import decide
from controller.core.decision import Advance, Hold, Pause, Promote, RollBack, Weights, Why
from controller.core.gates import GateResult, Verdict
from controller.core.plan import (
    Approval,
    FreezeSpan,
    GateMode,
    Mode,
    OnBreach,
    OnDrift,
    OnUnproven,
    Phase,
    Plan,
    Policy,
    RateLimit,
    Silence,
)
from controller.core.rollout import AwaitingApproval, Baking, Paused, Pending, Rollout, State, Vote
from flagspec import Variant

BEGAN = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
NOW = BEGAN + timedelta(hours=2)
PLAN = Plan(
    name="chat",
    environment="production",
    flag="chat",
    baseline=Variant(model="old"),
    candidate=Variant(model="new"),
    phases=(
        Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta(hours=1)),
        Phase(name="half", mode=Mode.LIVE, weight=50_000, bake=timedelta(hours=1)),
        Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(hours=1)),
    ),
    gates=(RateLimit(name="errors", indicator="error_ratio", limit=0.01), Silence()),
    policy=Policy(),
)
PASSED = (GateResult(gate="errors", verdict=Verdict.PASS, reason="fine"),)


def rollout(state: State | None = None, plan: Plan = PLAN) -> Rollout:
    return Rollout(
        id="chat-1",
        plan=plan,
        plan_digest="d",
        requester="rita",
        opened_at=BEGAN,
        state=state or Baking(phase=0, since=BEGAN),
        seq=5,
        weights=Weights(live=5_000),
        applied="chat-1.2.advance",
    )


def result(verdict: Verdict, mode: GateMode = GateMode.ENFORCE) -> GateResult:
    return GateResult(gate="errors", verdict=verdict, mode=mode, reason="because")


def with_approval(**changes: object) -> Plan:
    approval = Approval(groups=("managers",), **changes)  # type: ignore[arg-type]
    canary, half, full = PLAN.phases
    return replace(PLAN, phases=(canary, replace(half, approval=approval), full))


def waiting(*votes: Vote, unproven: tuple[str, ...] = ()) -> AwaitingApproval:
    return AwaitingApproval(phase=0, since=BEGAN, entering=1, asked_at=BEGAN, votes=votes, unproven=unproven)


def vote(actor: str, *, at: datetime = NOW, group: str = "managers") -> Vote:
    return Vote(actor=actor, groups=(group,), at=at)


def test_advances_when_every_check_is_passed() -> None:
    decision = decide(rollout(), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(decision, Advance) and decision.phase == 1


def test_promotes_after_the_last_phase() -> None:
    decision = decide(rollout(Baking(phase=2, since=BEGAN)), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(decision, Promote)


def test_begins_with_the_first_phase() -> None:
    decision = decide(rollout(Pending()), InStep(), (), NOW, may_raise=True)
    assert isinstance(decision, Advance) and (decision.phase, decision.why) == (0, Why.STARTED)


def test_a_kill_rolls_back_whatever_the_gates_say() -> None:
    decision = decide(rollout(), Killed(), PASSED, NOW, may_raise=True)
    assert isinstance(decision, RollBack) and decision.why is Why.KILLED


def test_a_lowering_that_the_log_missed_is_recorded_as_a_rollback() -> None:
    decision = decide(rollout(), UnrecordedLowering(decision_id="chat-1.6.roll_back"), PASSED, NOW, may_raise=False)
    assert isinstance(decision, RollBack) and decision.why is Why.UNRECORDED_LOWERING


@pytest.mark.parametrize("may_raise", [True, False])
def test_a_breach_rolls_back_for_gate_check_and_guard_alike(may_raise: bool) -> None:
    decision = decide(rollout(), InStep(), (result(Verdict.BREACH),), NOW, may_raise=may_raise)
    assert isinstance(decision, RollBack) and decision.why is Why.BREACH
    assert "errors: because" in decision.text


def test_a_breach_rolls_back_a_paused_rollout_too() -> None:
    paused = Paused(settled=Baking(phase=0, since=BEGAN), why=Why.BY_PERSON, text="lunch", since=NOW)
    assert isinstance(decide(rollout(paused), InStep(), (result(Verdict.BREACH),), NOW, may_raise=False), RollBack)


def test_a_breach_pauses_where_the_plan_says_so_unless_another_gate_rolls_back() -> None:
    pauses = replace(result(Verdict.BREACH), on_breach=OnBreach.PAUSE)
    assert isinstance(decide(rollout(), InStep(), (*PASSED, pauses), NOW, may_raise=True), Pause)
    assert isinstance(decide(rollout(), InStep(), (pauses, result(Verdict.BREACH)), NOW, may_raise=True), RollBack)


def test_a_breach_during_somebody_elses_pause_is_a_pause_of_its_own() -> None:
    pauses = replace(result(Verdict.BREACH), on_breach=OnBreach.PAUSE)
    lunch = Paused(settled=Baking(phase=0, since=BEGAN), why=Why.BY_PERSON, text="lunch", since=NOW)
    decision = decide(rollout(lunch), InStep(), (pauses,), NOW, may_raise=False)
    assert isinstance(decision, Pause) and decision.why is Why.BREACH
    paused = replace(lunch, why=Why.BREACH)
    assert isinstance(decide(rollout(paused), InStep(), (pauses,), NOW, may_raise=True), Hold)


BOX = timedelta(hours=1, minutes=30)
UNPROVEN = GateResult(gate="errors", verdict=Verdict.INSUFFICIENT, acceptable=True, reason="not proven yet")


def boxed(on_unproven: OnUnproven) -> Plan:
    canary, half, full = PLAN.phases
    ask = Approval(groups=("managers",)) if on_unproven is OnUnproven.ASK else None
    return replace(PLAN, phases=(replace(canary, max_bake=BOX), half, full), policy=Policy(on_unproven=on_unproven, ask=ask))


def test_without_a_proof_it_holds_however_long_the_phase_lasts() -> None:
    decision = decide(rollout(plan=boxed(OnUnproven.HOLD)), InStep(), (UNPROVEN,), NOW, may_raise=True)
    assert isinstance(decision, Hold) and decision.why is Why.NOT_ENOUGH_EVIDENCE


def test_after_its_time_box_a_step_is_accepted_and_called_accepted_not_proven() -> None:
    plan = boxed(OnUnproven.ACCEPT)
    early = decide(rollout(plan=plan), InStep(), (UNPROVEN,), BEGAN + BOX - timedelta(seconds=1), may_raise=True)
    assert isinstance(early, Hold) and early.why is Why.NOT_ENOUGH_EVIDENCE
    late = decide(rollout(plan=plan), InStep(), (UNPROVEN,), BEGAN + BOX, may_raise=True)
    assert isinstance(late, Advance) and late.why is Why.ACCEPTED
    assert late.text == "accepted, not proven: errors: not proven yet; half at 50%"


def test_what_does_not_lie_within_its_limit_is_not_accepted_by_the_clock() -> None:
    over = replace(UNPROVEN, acceptable=False)
    decision = decide(rollout(plan=boxed(OnUnproven.ACCEPT)), InStep(), (UNPROVEN, over), NOW, may_raise=True)
    assert isinstance(decision, Hold)


def test_people_are_asked_to_accept_an_unproven_step_where_the_plan_says_so() -> None:
    plan = boxed(OnUnproven.ASK)
    asked = decide(rollout(plan=plan), InStep(), (UNPROVEN,), NOW, may_raise=True)
    assert isinstance(asked, Hold) and asked.why is Why.AWAITING_APPROVAL and "not proven: errors" in asked.text
    given = decide(rollout(waiting(vote("amir"), unproven=("errors",)), plan), InStep(), (UNPROVEN,), NOW, may_raise=True)
    assert isinstance(given, Advance) and given.why is Why.ACCEPTED
    proven = decide(rollout(plan=plan), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(proven, Advance) and proven.why is Why.GATES_PASSED


def test_a_phases_own_approval_is_not_that_of_the_people_who_are_asked_without_a_proof() -> None:
    canary, half, full = boxed(OnUnproven.ASK).phases
    devs = Approval(groups=("devs",))
    plan = replace(boxed(OnUnproven.ASK), phases=(canary, replace(half, approval=devs), full))
    asked = waiting(vote("amir", group="devs"), unproven=("errors",))
    one = decide(rollout(asked, plan), InStep(), (UNPROVEN,), NOW, may_raise=True)
    assert isinstance(one, Hold) and one.text.startswith("entering half needs 1 more approval from managers")
    asked = replace(asked, votes=(*asked.votes, vote("bea")))
    both = decide(rollout(asked, plan), InStep(), (UNPROVEN,), NOW, may_raise=True)
    assert isinstance(both, Advance) and both.why is Why.ACCEPTED


@pytest.mark.parametrize("verdict", [Verdict.BREACH, Verdict.ERROR, Verdict.INSUFFICIENT])
@pytest.mark.parametrize("mode", [GateMode.WARN, GateMode.DRY_RUN])
def test_a_gate_that_only_warns_does_not_stop_the_rollout(mode: GateMode, verdict: Verdict) -> None:
    decision = decide(rollout(), InStep(), (*PASSED, result(verdict, mode)), NOW, may_raise=True)
    assert isinstance(decision, Advance)


def test_drift_pauses_or_rolls_back_as_the_plan_says() -> None:
    drift = Drift(expected=Weights(live=5_000), text="the flag is at 90%")
    assert isinstance(decide(rollout(), drift, PASSED, NOW, may_raise=True), Pause)
    plan = replace(PLAN, policy=Policy(on_drift=OnDrift.ROLLBACK))
    assert isinstance(decide(rollout(plan=plan), drift, PASSED, NOW, may_raise=True), RollBack)


def test_the_guard_never_raises() -> None:
    decision = decide(rollout(), InStep(), PASSED, NOW, may_raise=False)
    assert isinstance(decision, Hold) and decision.why is Why.GUARD_ONLY


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ((result(Verdict.ERROR),), Why.METRICS_FAILED),
        ((result(Verdict.INSUFFICIENT),), Why.NOT_ENOUGH_EVIDENCE),
        ((*PASSED, result(Verdict.INSUFFICIENT)), Why.NOT_ENOUGH_EVIDENCE),
        ((), Why.NOT_ENOUGH_EVIDENCE),
    ],
)
def test_holds_without_a_pass_of_every_enforced_gate(results: tuple[GateResult, ...], why: Why) -> None:
    decision = decide(rollout(), InStep(), results, NOW, may_raise=True)
    assert isinstance(decision, Hold) and decision.why is why


def test_holds_until_the_bake_is_over_and_says_until_when() -> None:
    decision = decide(rollout(), InStep(), PASSED, BEGAN + timedelta(minutes=59, seconds=59), may_raise=True)
    assert isinstance(decision, Hold) and (decision.why, decision.next_look) == (Why.BAKING, BEGAN + timedelta(hours=1))
    assert isinstance(decide(rollout(), InStep(), PASSED, BEGAN + timedelta(hours=1), may_raise=True), Advance)


def test_a_proof_that_takes_its_time_is_no_trouble_while_the_phase_bakes() -> None:
    under_way = GateResult(gate="errors", verdict=Verdict.INSUFFICIENT, n=120.0, reason="not proven yet")
    early, late = BEGAN + timedelta(minutes=15), BEGAN + timedelta(hours=1)
    baking = decide(rollout(), InStep(), (under_way,), early, may_raise=True)
    assert isinstance(baking, Hold) and baking.why is Why.BAKING
    assert baking.text == "canary bakes until 2026-05-04 10:00:00 UTC; errors: not proven yet"
    after = decide(rollout(), InStep(), (under_way,), late, may_raise=True)
    assert isinstance(after, Hold) and after.why is Why.NOT_ENOUGH_EVIDENCE


def test_no_requests_at_all_are_trouble_from_the_first_check_on() -> None:
    nothing = GateResult(gate="errors", verdict=Verdict.INSUFFICIENT, n=0.0, reason="no data")
    decision = decide(rollout(), InStep(), (nothing,), BEGAN + timedelta(minutes=15), may_raise=True)
    assert isinstance(decision, Hold) and decision.why is Why.NOT_ENOUGH_EVIDENCE


def test_a_freeze_stops_raising_but_not_rolling_back() -> None:
    span = FreezeSpan(name="launch", starts=datetime(2026, 5, 4), ends=datetime(2026, 5, 5), timezone="UTC")  # noqa: DTZ001  # wall-clock times
    plan = replace(PLAN, freezes=(span,))
    decision = decide(rollout(plan=plan), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(decision, Hold) and decision.why is Why.FROZEN
    assert isinstance(decide(rollout(plan=plan), InStep(), (result(Verdict.BREACH),), NOW, may_raise=True), RollBack)


def test_waits_for_approval_only_when_everything_else_is_passed() -> None:
    plan = with_approval()
    asked = decide(rollout(plan=plan), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(asked, Hold) and asked.why is Why.AWAITING_APPROVAL
    early = decide(rollout(plan=plan), InStep(), PASSED, BEGAN, may_raise=True)
    assert isinstance(early, Hold) and early.why is Why.BAKING


@pytest.mark.parametrize(
    ("votes", "advances"),
    [
        ((), False),
        ((vote("amir"),), True),
        ((vote("rita"),), False),  # started it
        ((vote("amir", group="interns"),), False),
        ((vote("amir", at=NOW - timedelta(hours=49)),), False),  # expired
        ((vote("amir", at=NOW - timedelta(hours=47)),), True),
    ],
)
def test_an_approval_counts_when_it_is_anothers_of_the_group_and_fresh(votes: tuple[Vote, ...], advances: bool) -> None:
    decision = decide(rollout(waiting(*votes), with_approval()), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(decision, Advance) is advances


def test_the_first_phase_too_is_entered_once_people_said_yes() -> None:
    canary, half, full = PLAN.phases
    plan = replace(PLAN, phases=(replace(canary, approval=Approval(groups=("managers",))), half, full))
    asked = AwaitingApproval(phase=None, since=BEGAN, entering=0, asked_at=BEGAN)
    before = decide(rollout(asked, plan), InStep(), (), NOW, may_raise=True)
    assert isinstance(before, Hold) and before.why is Why.AWAITING_APPROVAL
    after = decide(rollout(replace(asked, votes=(vote("amir"),)), plan), InStep(), (), NOW, may_raise=True)
    assert isinstance(after, Advance) and after.phase == 0


def test_two_approvals_are_of_two_people() -> None:
    plan = with_approval(count=2)
    one = decide(rollout(waiting(vote("amir")), plan), InStep(), PASSED, NOW, may_raise=True)
    two = decide(rollout(waiting(vote("amir"), vote("bea")), plan), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(one, Hold) and isinstance(two, Advance)


def test_an_approved_rollout_whose_gates_no_longer_pass_holds() -> None:
    state = waiting(vote("amir"))
    decision = decide(rollout(state, with_approval()), InStep(), (result(Verdict.INSUFFICIENT),), NOW, may_raise=True)
    assert isinstance(decision, Hold)
