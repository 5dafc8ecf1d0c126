"""One rollout's evidence over pauses: what a person has answered is gone, and what comes after it is judged."""

from datetime import UTC, datetime, timedelta

import pytest

from controller.core.evidence.case import Case
from controller.core.plan import Mode, OnBreach, Phase, Plan, Policy, RateLimit
from controller.core.traffic import Beat, Reading, Traffic
from flagspec import Variant

START = datetime(2026, 5, 4, tzinfo=UTC)
BEAT = timedelta(seconds=15)
PLAN = Plan(
    name="case",
    environment="production",
    flag="chat",
    baseline=Variant(model="old"),
    candidate=Variant(model="new"),
    phases=(
        Phase(name="half", mode=Mode.LIVE, weight=50_000, bake=timedelta(hours=1)),
        Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(hours=1)),
    ),
    gates=(RateLimit(name="errors", indicator="error_ratio", limit=0.01),),
    policy=Policy(on_breach=OnBreach.PAUSE),
)


def reading(since: datetime, beats: range, *, failed: float) -> Reading:
    """Some beats of a phase: 150 requests of each arm in each, of which `failed` fail in the candidate and none in the baseline."""
    rows = tuple(
        Beat(at=since + BEAT * (k + 1), candidate=(0.0, 150.0, failed, 150.0), baseline=(0.0, 150.0, 0.0, 150.0)) for k in beats
    )
    return Reading(phase=0, since=since, traffic=Traffic(since=since + BEAT * beats.start, step=BEAT, edges={}, beats=rows))


def paused() -> Case:
    """The candidate failed 30 of 150 requests a beat for five minutes, and people were asked."""
    case = Case.of(PLAN, "")
    case.take(reading(START, range(20), failed=30.0))
    struck = case.struck()
    assert struck is not None and struck.gate == "errors"
    return case


@pytest.mark.parametrize("kept", ["at hand", "from the log"])
def test_a_candidate_that_fails_again_after_a_resume_is_a_breach_again(kept: str) -> None:
    case = paused() if kept == "at hand" else Case.of(PLAN, paused().text())
    resumed = START + timedelta(minutes=20)
    for times in range(3):
        since = resumed + times * timedelta(minutes=20)
        case.take(reading(since, range(1), failed=0.0))
        assert case.struck() is None, "what a person has answered is no breach any more"
        case.take(reading(since, range(1, 20), failed=30.0))
        struck = case.struck()
        assert struck is not None and struck.at <= since + timedelta(minutes=5)


def test_a_candidate_that_is_well_after_a_resume_is_proven() -> None:
    case, resumed = paused(), START + timedelta(minutes=20)
    case.take(reading(resumed, range(80), failed=0.0))
    assert case.struck() is None
    assert case.weighed()["errors"].finding.met
