"""Scenarios: what the built-in ones are, how one is written, and which limits a candidate keeps in truth."""

import numpy as np
import pytest

from controller.forecast.generate import Effect
from controller.forecast.scenarios import Onset, UnknownScenario, beyond, built_in, named
from tests.forecast.plans import COST, ERRORS, P95, P95_LIMIT, a_baseline, a_plan

PLAN = a_plan(ERRORS, P95, COST, P95_LIMIT)
BASELINE = a_baseline(PLAN)


@pytest.mark.parametrize(
    ("name", "gates"),
    [
        ("good", ()),
        ("better", ()),
        ("tolerable", ()),
        ("bursty", ()),
        ("incident-in-both", ()),
        ("at-the-margin", ()),
        ("slower", ("p95",)),
        ("creeping", ("p95", "p95-limit")),
        ("errors", ("errors",)),
        ("timeouts", ()),  # this plan has no limit of timeouts
        ("dearer", ("cost",)),
        ("silent", ("errors", "p95", "cost", "p95-limit")),
    ],
)
def test_which_limits_a_scenario_breaks_follows_from_the_plan(name: str, gates: tuple[str, ...]) -> None:
    assert beyond(PLAN, BASELINE, named(PLAN, name).effect) == gates


def test_the_scenario_at_the_margin_is_exactly_as_slow_as_the_tightest_margin_allows() -> None:
    assert named(PLAN, "at-the-margin").effect == Effect(latency=1.15)
    assert beyond(PLAN, BASELINE, Effect(latency=1.16)) == ("p95",)


def test_without_margins_it_fails_as_often_as_a_limit_allows() -> None:
    assert named(a_plan(ERRORS), "at-the-margin").effect == Effect(bad={"error_ratio": 0.01})


def test_a_scenario_can_be_written() -> None:
    found = named(PLAN, "latency=1.3,errors=2%,tail=5%x4,after=2h,ramp=30m,from-share=25%,name=mine")
    assert found.name == "mine"
    assert found.effect == Effect(latency=1.3, tail_share=0.05, tail=4.0, bad={"error_ratio": 0.02})
    assert found.onset == Onset(share=0.25, after_s=7200, ramp_s=1800)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fast", "no scenario 'fast'; there are good, better"),
        ("speed=2", "unknown 'speed'; there are latency"),
        ("latency=-1", "'-1' is not a factor"),
        ("latency=quick", "latency"),
        ("errors=200%", "over 100%"),
        ("after=soon", "is not a duration"),
        ("tail=5%", "tail"),
    ],
)
def test_a_scenario_that_cannot_be_read_is_refused_with_what_could_be_written(text: str, said: str) -> None:
    with pytest.raises(UnknownScenario, match=said):
        named(PLAN, text)


def test_every_built_in_scenario_has_its_own_name_and_a_line() -> None:
    found = built_in(PLAN)
    assert len(found) == 16 and all(s.name == name and s.text for name, s in found.items())


def test_an_effect_begins_when_it_should_and_grows_as_long_as_it_should() -> None:
    onset = Onset(after_s=60, ramp_s=120)
    assert onset.strength(np.array([0.0, 60.0, 120.0, 180.0, 600.0]), 0.0).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert onset.strength(np.array([600.0]), None).tolist() == [0.0]
    assert Onset().strength(np.array([0.0, 15.0]), 0.0).tolist() == [1.0, 1.0]
