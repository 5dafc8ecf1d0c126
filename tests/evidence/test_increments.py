"""Counters that restart, vanish, lie or come late."""

import math

import numpy as np
import pytest

from controller.core.evidence.config import EngineConfig, Histogram, PhaseRule, RateLimit
from controller.core.evidence.increments import Counters, Problem, Step, increments_of

CONFIG = EngineConfig(
    columns=("n", "bad", "le_0", "le_1", "le_2"),
    histograms=(Histogram(name="h", edges=(0.5, 1.0), first=2),),
    gates=(RateLimit(name="r", bad="bad", total="n", limit=0.01),),
    phases=(PhaseRule(name="only", shadow=False, alpha=0.05, multiple=1.0),),
)
FIRST = [10.0, 1.0, 4.0, 8.0, 10.0]


def counters() -> Counters:
    made = Counters(CONFIG)
    assert made.step(0.0, FIRST, FIRST) is None
    return made


def test_the_first_scrape_has_no_increment_and_the_second_has() -> None:
    step = counters().step(15.0, [20.0, 1.0, 8.0, 16.0, 20.0], FIRST)
    assert isinstance(step, Step)
    assert step.cand.tolist() == [10.0, 0.0, 4.0, 8.0, 10.0]
    assert step.base.tolist() == [0.0] * 5
    assert step.scrapes == 1.0


def test_a_restart_counts_what_the_counters_show_since_even_where_they_did_not_fall() -> None:
    step = counters().step(15.0, [3.0, 1.0, 2.0, 3.0, 3.0], FIRST)
    assert isinstance(step, Step)
    assert step.cand.tolist() == [3.0, 1.0, 2.0, 3.0, 3.0]


def test_missed_scrapes_make_one_longer_increment() -> None:
    step = counters().step(75.0, [20.0, 1.0, 8.0, 16.0, 20.0], FIRST)
    assert isinstance(step, Step)
    assert step.scrapes == 5.0


@pytest.mark.parametrize("late", [0.0, -15.0])
def test_a_scrape_that_is_not_newer_is_ignored(late: float) -> None:
    made = counters()
    assert made.step(late, [99.0, 9.0, 9.0, 9.0, 99.0], FIRST) is None
    step = made.step(15.0, [11.0, 1.0, 4.0, 9.0, 11.0], FIRST)
    assert isinstance(step, Step)
    assert step.cand[0] == 1.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([math.nan, 1.0, 4.0, 8.0, 10.0], "candidate n is nan"),
        ([10.0, math.inf, 4.0, 8.0, 10.0], "candidate bad is inf"),
        ([10.0, -1.0, 4.0, 8.0, 10.0], "candidate bad is -1.0"),
        ([10.0, 1.0, 4.0], "not a vector"),
        ([20.0, 1.0, 14.0, 9.0, 20.0], "fall with rising edge"),
        ([20.0, 15.0, 8.0, 16.0, 20.0], "candidate has 14 more bad, but 10 more n"),
        (["a", 1.0, 4.0, 8.0, 10.0], "not a vector"),
    ],
)
def test_what_is_no_count_is_a_problem_and_changes_nothing(wrong: list[float], said: str) -> None:
    made = counters()
    problem = made.step(15.0, wrong, FIRST)
    assert isinstance(problem, Problem)
    assert said in problem.text
    step = made.step(30.0, [11.0, 1.0, 4.0, 9.0, 11.0], FIRST)
    assert isinstance(step, Step)
    assert step.cand[0] == 1.0
    assert step.scrapes == 2.0


@pytest.mark.parametrize("t", [math.nan, math.inf])
def test_a_time_that_is_none_is_a_problem(t: float) -> None:
    problem = counters().step(t, FIRST, FIRST)
    assert isinstance(problem, Problem)
    assert "time" in problem.text


def test_a_failure_counted_just_before_its_request_is_no_problem() -> None:
    step = counters().step(15.0, [10.0, 2.0, 4.0, 8.0, 10.0], FIRST)
    assert isinstance(step, Step)


def test_changed_bucket_edges_are_a_problem() -> None:
    problem = counters().step(15.0, [20.0, 1.0, 8.0, 16.0, 18.0, 20.0], [10.0, 1.0, 4.0, 8.0, 9.0, 10.0])
    assert isinstance(problem, Problem)
    assert "6 values" in problem.text


def test_history_is_corrected_for_restarts_as_scrapes_are() -> None:
    history = np.array([[1.0, 5.0], [4.0, 6.0], [2.0, 7.0], [3.0, 9.0]])
    assert increments_of(history).tolist() == [[3.0, 1.0], [2.0, 7.0], [1.0, 2.0]]


def test_a_history_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        increments_of(np.array([[1.0], [math.nan]]))
