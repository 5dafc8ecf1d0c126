"""The fault matrix itself: that its faults happen, and that each of its invariants can fail."""

from collections.abc import Iterator

import pytest

from bench.chaos.cli import one_trial
from bench.chaos.fault import known_faults
from bench.chaos.stage import Stage
from controller import crash
from controller.crash import Point

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as made:
        yield made


@pytest.mark.parametrize("point", [Point.RAISED, Point.SLACK_SENT])
def test_a_controller_that_dies_at_a_point_is_gone_on_with(stage: Stage, point: Point) -> None:
    trial = one_trial(stage, known_faults()[f"kill -9 at {point}"], seed=7, number=1)
    assert trial.violations == ()
    assert trial.recover_s is not None and point in trial.passed


@pytest.mark.parametrize("text", ["nowhere", "raised:0", "raised:x", "raised:1:gently"])
def test_an_unknown_crash_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="point"):
        crash.arm(text)
    assert crash.passed() == {}


def test_points_are_counted_and_do_nothing_else_unless_armed() -> None:
    crash.reached(Point.RAISED)
    assert crash.passed() == {}
    crash.arm("count")
    try:
        crash.reached(Point.RAISED)
        assert crash.passed() == {Point.RAISED: 1}
    finally:
        crash.arm("")
