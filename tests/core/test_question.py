"""Answers are to one question; break-glass opens people's and calendars' checks for one step, and no other."""

from dataclasses import replace
from datetime import timedelta

import pytest

from controller.core.converge import InStep, Killed
from controller.core.decide import decide
from controller.core.decision import Advance, Hold, Promote, RollBack, Weights, Why
from controller.core.gates import GateResult, Verdict
from controller.core.notice import Level, Notice, notice_of
from controller.core.plan import FreezeSpan, Plan
from controller.core.question import OVERRIDE_LASTS, override_in_force, question_of, step_digest
from controller.core.rollout import (
    Applied,
    Approved,
    AwaitingApproval,
    Baking,
    Check,
    Decided,
    Entry,
    Event,
    LogError,
    Moving,
    Observed,
    Overridden,
    Override,
    Paused,
    Pending,
    Rejected,
    Rollout,
    step,
)
from tests.core.test_decide import BEGAN, NOW, PASSED, PLAN, result, rollout, vote, waiting, with_approval

FROZEN = FreezeSpan(
    name="fair", starts=BEGAN.replace(tzinfo=None), ends=(NOW + timedelta(days=1)).replace(tzinfo=None), timezone="UTC"
)


def row(before: Rollout, event: Event, actor: str = "kim") -> Entry:
    return Entry(rollout_id=before.id, seq=before.seq + 1, at=NOW, actor=actor, event=event)


def held(why: Why, *results: GateResult) -> Decided:
    return Decided(
        decision_id="chat-1.6.hold",
        decision=Hold(why=why, text="because"),
        observed=Observed(results=results),
        weights_before=Weights(live=5_000),
        weights_after=Weights(live=5_000),
        flag_version_before=2,
        source="gate_check",
    )


def broken(*checks: Check, entering: int = 1) -> Overridden:
    return Overridden(entering=entering, checks=checks, groups=("sre",), reason="the old model is withdrawn", ticket="INC-7")


def overridden(before: Rollout, *checks: Check, actor: str = "kim") -> Rollout:
    settled = before.settled
    assert settled is not None
    entering = 0 if isinstance(settled, Pending) else (settled.phase or 0) + 1
    return replace(before, override=Override(event=broken(*checks, entering=entering), actor=actor, at=NOW))


def test_the_digest_is_of_rollout_plan_phase_moment_and_unproven_gates() -> None:
    asked = rollout(waiting(), with_approval())
    others = [
        replace(asked, id="chat-2"),
        replace(asked, plan_digest="e"),
        replace(asked, state=replace(waiting(), phase=1, entering=2)),
        replace(asked, state=replace(waiting(), asked_at=NOW)),
        replace(asked, state=waiting(unproven=("errors",))),
        rollout(plan=with_approval()),
    ]
    assert len({step_digest(r) for r in (asked, *others)}) == 7
    assert step_digest(replace(asked, state=waiting(vote("amir")))) == step_digest(asked)
    assert step_digest(replace(asked, state=Paused(settled=waiting(), why=Why.BY_PERSON, text="", since=NOW))) == ""


def test_a_question_says_who_has_answered_and_how_many_are_lacking() -> None:
    question = question_of(rollout(waiting(vote("amir"), vote("rita")), with_approval(count=2)), NOW)
    assert question is not None
    assert [(v.actor for v in a.votes) and a.lacking for a in question.asked] == [1]
    assert question_of(rollout(), NOW) is None


def test_votes_die_when_a_gate_that_was_proven_is_so_no_more() -> None:
    voted = rollout(waiting(vote("amir")), with_approval())
    missing = GateResult(gate="errors", verdict=Verdict.INSUFFICIENT, reason="not proven", acceptable=True)
    after = step(voted, row(voted, held(Why.AWAITING_APPROVAL, missing), "gate-check"))
    assert after.state == replace(waiting(), asked_at=NOW, unproven=("errors",))
    assert notice_of(voted, after, row(voted, held(Why.AWAITING_APPROVAL, missing))).level is Level.ALARM
    # The other way round the step has become a better one than people said yes to.
    better = replace(voted, state=waiting(vote("amir"), unproven=("errors",)))
    assert step(better, row(better, held(Why.AWAITING_APPROVAL, *PASSED), "gate-check")).state == better.state


def test_a_yes_to_a_proven_step_is_none_to_an_unproven_one() -> None:
    plan = with_approval()
    assert isinstance(decide(rollout(waiting(vote("amir")), plan), InStep(), PASSED, NOW, may_raise=True), Advance)
    asked = rollout(waiting(vote("amir"), unproven=("latency",)), plan)
    unproven = GateResult(gate="errors", verdict=Verdict.INSUFFICIENT, reason="not proven", acceptable=True)
    assert isinstance(decide(asked, InStep(), (unproven,), NOW, may_raise=True), Hold)


def test_a_no_pauses_tells_and_voids_the_votes() -> None:
    asked = rollout(waiting(vote("amir")), with_approval())
    no = row(asked, Rejected(entering=1, groups=("managers",), reason="too slow on Fridays"), "bea")
    after = step(asked, no)
    assert isinstance(after.state, Paused) and after.state.why is Why.REJECTED
    assert after.state.text == "bea rejected it: too slow on Fridays"
    told = notice_of(asked, after, no)
    assert (told.level, told.text) == (Level.ALARM, "bea rejected entering half: too slow on Fridays; paused")
    with pytest.raises(LogError):
        step(after, replace(row(after, Approved(entering=1, groups=("managers",))), seq=after.seq + 1))
    with pytest.raises(LogError):
        step(rollout(), row(rollout(), Rejected(entering=1, groups=(), reason="no")))


@pytest.mark.parametrize(
    ("check", "state", "plan"),
    [
        (Check.APPROVAL, waiting(), with_approval()),
        (Check.FREEZE, Baking(phase=0, since=BEGAN), replace(PLAN, freezes=(FROZEN,))),
        (Check.BAKE, Baking(phase=0, since=NOW), PLAN),
    ],
)
def test_each_check_that_can_be_overridden_holds_without_and_not_with(
    check: Check, state: AwaitingApproval | Baking, plan: Plan
) -> None:
    before = rollout(state, plan)
    assert isinstance(decide(before, InStep(), PASSED, NOW, may_raise=True), Hold)
    for other in set(Check) - {check}:
        assert isinstance(decide(overridden(before, other), InStep(), PASSED, NOW, may_raise=True), Hold)
    decision = decide(overridden(before, check), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(decision, Advance) and decision.why is Why.OVERRIDDEN
    assert decision.text.endswith(f"; {check.value} overridden by kim (INC-7: the old model is withdrawn)")


def test_the_bake_before_the_promotion_can_be_overridden() -> None:
    before = rollout(Baking(phase=2, since=NOW))
    decision = decide(overridden(before, Check.BAKE), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(decision, Promote) and decision.why is Why.OVERRIDDEN


@pytest.mark.parametrize("verdict", [Verdict.BREACH, Verdict.ERROR, Verdict.INSUFFICIENT])
def test_no_glass_is_broken_for_evidence_a_breach_or_a_kill(verdict: Verdict) -> None:
    before = overridden(rollout(), *Check)
    bad = decide(before, InStep(), (result(verdict),), NOW, may_raise=True)
    assert isinstance(bad, RollBack if verdict is Verdict.BREACH else Hold)
    assert isinstance(decide(before, Killed(), PASSED, NOW, may_raise=True), RollBack)
    assert isinstance(decide(before, InStep(), PASSED, NOW, may_raise=False), Hold)


def test_what_passed_by_itself_is_not_called_overridden() -> None:
    decision = decide(overridden(rollout(), *Check), InStep(), PASSED, NOW, may_raise=True)
    assert isinstance(decision, Advance) and decision.why is Why.GATES_PASSED


def test_nobody_overrides_the_approval_of_his_own_rollout() -> None:
    before = overridden(rollout(waiting(), with_approval()), Check.APPROVAL, actor="rita")
    assert isinstance(decide(before, InStep(), PASSED, NOW, may_raise=True), Hold)


def test_break_glass_ends_with_the_step_with_a_pause_and_after_an_hour() -> None:
    before = rollout()
    after = step(before, row(before, broken(Check.BAKE)))
    assert after.state == before.state and override_in_force(after, NOW) is not None
    assert override_in_force(after, NOW + OVERRIDE_LASTS) is None
    moved = replace(after, state=Moving(settled=Baking(phase=0, since=BEGAN), decision=Advance(phase=1, why=Why.OVERRIDDEN, text=""),
                                        decision_id="d", weights=Weights(live=50_000), since=NOW))  # fmt: skip
    landed = step(moved, row(moved, Applied(decision_id="d", weights=Weights(live=50_000), flag_version=3)))
    assert isinstance(landed.state, Baking) and landed.override is None
    asked = replace(after, state=waiting(), plan=with_approval())
    assert step(asked, row(asked, Rejected(entering=1, groups=(), reason="no"))).override is None


def test_break_glass_for_another_step_than_the_next_is_refused_in_the_log() -> None:
    with pytest.raises(LogError, match="does not come next"):
        step(rollout(), row(rollout(), broken(Check.BAKE, entering=2)))


def looked(hours: float, before: float, *, count: int = 1) -> Notice:
    """The notice of a gate check so long after a question of 48 hours was asked, the last one having been `before` hours after it."""
    asked = replace(rollout(waiting(), with_approval(count=count)), last_gate_check=BEGAN + timedelta(hours=before))
    entry = replace(row(asked, held(Why.AWAITING_APPROVAL), "gate-check"), at=BEGAN + timedelta(hours=hours))
    return notice_of(asked, step(asked, entry), entry)


@pytest.mark.parametrize(
    ("hours", "before", "said"),
    [
        (24.0, 23.75, "reminder, asked 24 h ago: because"),
        (43.25, 43.0, "last reminder, asked 43 h ago: because"),
        (48.0, 47.75, "nobody has answered in time, asked 2 d ago; it holds until somebody does: because"),
        (50.0, 1.0, "nobody has answered in time, asked 2 d ago; it holds until somebody does: because"),
    ],
)
def test_people_are_reminded_at_half_the_time_at_nine_tenths_and_at_its_end(hours: float, before: float, said: str) -> None:
    told = looked(hours, before)
    assert (told.level, told.text, told.asks, told.on_call) == (Level.ALARM, said, ("managers",), False)


@pytest.mark.parametrize(("hours", "before"), [(23.75, 23.5), (24.25, 24.0), (47.75, 47.5), (48.25, 48.0)])
def test_between_the_reminders_nobody_is_asked_again(hours: float, before: float) -> None:
    told = looked(hours, before)
    assert (told.level, told.asks) == (Level.INFO, ())


def test_a_new_question_calls_the_groups_that_are_asked_and_not_whoever_is_on_call() -> None:
    baking = rollout(plan=with_approval())
    entry = row(baking, held(Why.AWAITING_APPROVAL), "gate-check")
    told = notice_of(baking, step(baking, entry), entry)
    assert (told.level, told.asks, told.on_call) == (Level.ALARM, ("managers",), False)


def test_a_question_that_nobody_is_lacking_for_reminds_nobody() -> None:
    voted = replace(rollout(waiting(vote("amir", at=BEGAN)), with_approval()), last_gate_check=BEGAN)
    entry = replace(row(voted, held(Why.AWAITING_APPROVAL), "gate-check"), at=BEGAN + timedelta(hours=30))
    told = notice_of(voted, step(voted, entry), entry)
    assert (told.level, told.asks) == (Level.INFO, ())
