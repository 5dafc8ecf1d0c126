"""What the log and the flag say side by side, case by case."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from controller.core.converge import (
    Convergence,
    Drift,
    FinishLowering,
    GiveUpRaise,
    InStep,
    Killed,
    Landed,
    UnrecordedLowering,
    converge,
)
from controller.core.decision import Advance, Decision, RollBack, Weights, Why
from controller.core.rollout import Baking, Moving, Pending, Rollout, State
from flagspec import RouteFlag, Variant
from tests.core.test_decide import PLAN

AT = datetime(2026, 5, 4, tzinfo=UTC)
RAISE = Advance(phase=1, why=Why.GATES_PASSED, text="")
LOWER = RollBack(why=Why.BREACH, text="")
AT_5 = Weights(live=5_000)


def rollout(state: State | None = None, *, applied: str = "chat-1.2.advance", weights: Weights = AT_5) -> Rollout:
    return Rollout(
        id="chat-1",
        plan=PLAN,
        plan_digest="d",
        requester="rita",
        opened_at=AT,
        state=state or Baking(phase=0, since=AT),
        seq=5,
        weights=weights,
        applied=applied,
    )


def moving(decision: Decision, decision_id: str, weights: Weights) -> Moving:
    return Moving(settled=Baking(phase=0, since=AT), decision=decision, decision_id=decision_id, weights=weights, since=AT)


def flag(weight: int, by: str, *, killed: bool = False) -> RouteFlag:
    return RouteFlag(
        environment="production",
        key="chat",
        version=3,
        revision=9,
        control=Variant(model="old"),
        candidate=Variant(model="new"),
        salt="chat/chat-1",
        weight=weight,
        decision_id=by,
        killed=killed,
    )


WAITING = rollout(Pending(), applied="", weights=Weights())
GOING_UP = rollout(moving(RAISE, "chat-1.5.advance", Weights(live=50_000)))
GOING_DOWN = rollout(moving(LOWER, "chat-1.5.roll_back", Weights()))


@pytest.mark.parametrize(
    ("state", "seen", "kind"),
    [
        (rollout(), flag(5_000, "chat-1.2.advance"), InStep),
        (rollout(), flag(5_000, "chat-1.2.advance", killed=True), Killed),
        (rollout(), flag(90_000, "stranger"), Drift),
        (rollout(), flag(5_000, "stranger"), Drift),
        (rollout(), flag(0, ""), Drift),
        (rollout(), None, Drift),
        (rollout(), flag(0, "chat-1.6.roll_back"), UnrecordedLowering),
        (rollout(), flag(0, "chat-1.6.abort"), UnrecordedLowering),
        (rollout(), flag(0, "other-7.6.roll_back"), Drift),
        (rollout(), flag(50_000, "chat-1.6.advance"), Drift),
        (WAITING, None, InStep),
        # Not touched yet: it may be at 100% of what is the baseline now, and of nothing else.
        (WAITING, replace(flag(100_000, "before-1.9.promote"), candidate=Variant(model="old")), InStep),
        (WAITING, flag(100_000, "before-1.9.promote"), Drift),
        (WAITING, flag(0, "before-1.9.roll_back"), InStep),
        (WAITING, replace(flag(0, "stranger"), control=Variant(model="other")), Drift),
        (WAITING, flag(90_000, "stranger"), Drift),
        (WAITING, replace(flag(0, "stranger"), shadow_weight=5_000), Drift),
        (WAITING, flag(0, "person:amir", killed=True), Killed),
        (GOING_UP, flag(50_000, "chat-1.5.advance"), Landed),
        (GOING_UP, flag(5_000, "chat-1.2.advance"), GiveUpRaise),
        (GOING_UP, flag(5_000, "chat-1.5.advance.abandoned"), GiveUpRaise),
        (GOING_UP, flag(0, "chat-1.5.advance"), GiveUpRaise),
        (GOING_UP, flag(50_000, "chat-1.5.advance", killed=True), GiveUpRaise),
        (GOING_DOWN, flag(5_000, "chat-1.2.advance"), FinishLowering),
        (GOING_DOWN, None, FinishLowering),
        (GOING_DOWN, flag(0, "chat-1.5.roll_back"), Landed),
        (GOING_DOWN, flag(0, "chat-1.5.roll_back", killed=True), Landed),
        (GOING_DOWN, flag(0, "person:amir", killed=True), FinishLowering),
    ],
)
def test_each_pair_of_log_and_flag_has_its_settlement(state: Rollout, seen: RouteFlag | None, kind: type[Convergence]) -> None:
    assert isinstance(converge(state, seen), kind)


def test_a_raise_that_was_fenced_already_is_only_recorded() -> None:
    assert converge(GOING_UP, flag(5_000, "chat-1.5.advance.abandoned")) == GiveUpRaise(fenced=True)
    assert converge(GOING_UP, flag(5_000, "chat-1.2.advance")) == GiveUpRaise(fenced=False)


def test_drift_says_what_is_there_and_what_should_be() -> None:
    found = converge(rollout(), flag(90_000, "stranger:7"))
    assert isinstance(found, Drift)
    assert found.text == "the flag is at 90% by decision 'stranger:7', the log says 5% by 'chat-1.2.advance'"
