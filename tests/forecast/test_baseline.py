"""What a baseline does: given in numbers, or read from the history that a metric source brings."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from controller.adapters.memory import Behaviour, MemoryMetrics
from controller.core.plan import QuantileLimit, RateLimit
from controller.core.traffic import Traffic
from controller.forecast.baseline import Amounts, Durations, Given, NothingMeasured, Rate, Shape, assumed, measured, read
from tests.forecast.plans import COST, ERRORS, P95, a_plan

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def test_a_lognormal_shape_returns_the_quantiles_that_it_was_made_from() -> None:
    shape = Shape.lognormal(0.7, 2.0)
    assert shape.quantile(0.5) == pytest.approx(0.7)
    assert shape.quantile(0.95) == pytest.approx(2.0)
    assert shape.below(0.7) == pytest.approx(0.5)


def test_a_shape_from_buckets_is_exact_at_the_edges() -> None:
    shape = Shape.of_buckets((0.5, 1.0, 2.0), np.array([200.0, 600.0, 950.0, 1000.0]))
    assert shape is not None
    assert [round(shape.below(x), 9) for x in (0.5, 1.0, 2.0)] == [0.2, 0.6, 0.95]


def test_durations_within_one_bucket_have_no_shape() -> None:
    assert Shape.of_buckets((1.0, 10.0), np.array([0.0, 1000.0, 1000.0])) is None


def test_a_filter_on_streaming_takes_its_part_of_the_requests() -> None:
    plan = a_plan(QuantileLimit(name="ttft", indicator="ttft", quantile=0.95, limit_s=1.2, where={"streaming": "true"}))
    part = assumed(plan, Given(rps=10, streaming=0.25)).parts["ttft{streaming=true}"]
    assert isinstance(part, Durations) and part.portion == 0.25


def test_a_filter_that_nothing_is_known_of_is_said_to_hold_for_all() -> None:
    plan = a_plan(RateLimit(name="eu", indicator="error_ratio", limit=0.01, where={"region": "eu"}))
    assert assumed(plan, Given(rps=10)).assumed == ("region=eu is taken to hold for all requests",)


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ({"rps": 0.0}, "rps"),
        ({"rps": math.nan}, "rps"),
        ({"rps": 1.0, "errors": 1.0}, "errors"),
        ({"rps": 1.0, "p50_s": 3.0}, "p50"),
        ({"rps": 1.0, "cost_cv": 0.0}, "cost_cv"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Given(**numbers)


def test_a_measured_baseline_shows_what_the_source_told() -> None:
    plan = a_plan(ERRORS, P95, COST)
    behaviour = Behaviour(rps=8.0, bad={"error_ratio": 0.004}, median_s=0.6, sigma=0.5, amount=0.02)
    found = read(plan, MemoryMetrics(baseline=behaviour), NOW)
    errors, latency, cost = (found.parts[k] for k in ("error_ratio", "latency", "cost_per_request"))
    assert isinstance(errors, Rate) and isinstance(latency, Durations) and isinstance(cost, Amounts)
    assert found.rps == pytest.approx(8.0) and errors.bad == pytest.approx(0.004)
    assert latency.shape.quantile(0.5) == pytest.approx(0.6, rel=0.001)
    assert latency.shape.quantile(0.95) == pytest.approx(0.6 * math.exp(0.5 * 1.6449), rel=0.001)
    assert cost.mean == pytest.approx(0.02)


def test_a_source_that_does_not_answer_is_named() -> None:
    with pytest.raises(NothingMeasured, match="the server is down"):
        read(a_plan(), MemoryMetrics(failure="the server is down"), NOW)


def test_no_requests_in_the_past_is_no_baseline() -> None:
    with pytest.raises(NothingMeasured, match="--rps"):
        read(a_plan(), MemoryMetrics(baseline=Behaviour(rps=0.0)), NOW)


def test_a_question_that_could_not_be_read_is_a_problem_and_not_a_zero() -> None:
    plan = a_plan(ERRORS, COST)
    rows = ((0.0, 100.0, 1.0, 100.0, 0.0, 0.0),) * 3
    traffic = Traffic(
        since=NOW, step=timedelta(seconds=15), edges={}, history=rows, problems={"cost_per_request": "no such metric"}
    )
    found = measured(plan, traffic)
    assert "cost_per_request" not in found.parts and found.problems == {"cost_per_request": "no such metric"}
