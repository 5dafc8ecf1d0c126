"""
Verdicts on literal counts. Wilson bounds were worked out by hand from the closed form: for 5 of 100 at z = 1.96 they are 2.15 % and
11.18 %; Newcombe's interval of 56/70 - 48/80 is 0.0524 to 0.3339 (Newcombe 1998, table II, example a).
"""

from datetime import UTC, datetime, timedelta

import pytest

from controller.core import intervals
from controller.core.gates import GateResult, Verdict, breach_alpha, breaches, judge, unproven
from controller.core.measurement import Counts, Histogram, Measurement, Moments, NoData, QueryFailed, Sampled
from controller.core.plan import (
    AtLeast,
    AtMost,
    Gate,
    GateMode,
    MeanIncrease,
    Mode,
    Phase,
    Policy,
    QuantileIncrease,
    QuantileLimit,
    RateLimit,
    Silence,
)

NOW = datetime(2026, 5, 4, tzinfo=UTC)
CANARY = Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta(hours=1))
SHADOW = Phase(name="shadow", mode=Mode.SHADOW, weight=10_000, bake=timedelta(hours=1))
POLICY = Policy(min_requests=500)
ERRORS = RateLimit(name="errors", indicator="error_ratio", limit=0.01)
P95 = QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=3.0)
P95_REL = QuantileIncrease(name="p95-rel", indicator="latency", quantile=0.95, max_increase=0.15)
COST = MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.10)
EDGES = (0.5, 1.0, 1.15, 1.5, 3.0, 6.0)


def verdict(
    gate: Gate, seen: Measurement, *, policy: Policy = POLICY, phase: Phase = CANARY, age: timedelta = timedelta(minutes=5)
) -> GateResult:
    return judge(gate, seen, policy, phase, gates=10, age=age)


def counts(bad: float, total: float) -> Sampled:
    return Sampled(candidate=Counts(bad=bad, total=total))


def histogram(*cumulative: float) -> Histogram:
    return Histogram(edges_s=EDGES, cumulative=cumulative[:-1], total=cumulative[-1])


def test_the_wilson_interval_is_that_of_the_closed_form() -> None:
    low, high = intervals.wilson(Counts(bad=5, total=100), alpha=0.05)
    assert (round(low, 4), round(high, 4)) == (0.0215, 0.1118)


def test_the_newcombe_interval_is_that_of_the_paper() -> None:
    low, high = intervals.newcombe(Counts(bad=56, total=70), Counts(bad=48, total=80), alpha=0.05)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_the_confidence_of_a_breach_is_shared_over_gates_and_a_hundred_looks() -> None:
    assert breach_alpha(Policy(confidence=0.95), gates=10) == pytest.approx(2 * 0.05 / 1000)


@pytest.mark.parametrize("seen", [NoData(reason="empty"), counts(0, 0)], ids=["no data", "zero requests"])
def test_no_data_is_never_a_pass(seen: Measurement) -> None:
    assert verdict(ERRORS, seen).verdict is Verdict.INSUFFICIENT


def test_a_failed_query_is_an_error_with_its_reason() -> None:
    result = verdict(ERRORS, QueryFailed(reason="503 from Prometheus"))
    assert (result.verdict, result.reason) == (Verdict.ERROR, "503 from Prometheus")


def test_an_error_rate_within_the_limit_passes_only_with_enough_requests() -> None:
    assert verdict(ERRORS, counts(2, 499)).verdict is Verdict.INSUFFICIENT
    assert verdict(ERRORS, counts(2, 500)).verdict is Verdict.PASS


def test_an_error_rate_over_the_limit_holds_until_chance_is_ruled_out() -> None:
    assert verdict(ERRORS, counts(8, 600)).verdict is Verdict.INSUFFICIENT
    assert verdict(ERRORS, counts(30, 600)).verdict is Verdict.BREACH


def test_a_breach_needs_no_minimum_of_requests_when_everything_fails() -> None:
    assert verdict(ERRORS, counts(12, 12)).verdict is Verdict.BREACH
    assert verdict(ERRORS, counts(1, 1)).verdict is Verdict.INSUFFICIENT


def test_a_pass_shows_value_limit_interval_and_requests() -> None:
    result = verdict(ERRORS, counts(5, 1000))
    assert (result.observed, result.limit, result.n) == (0.005, 0.01, 1000)
    assert result.interval is not None
    assert result.interval[0] < 0.005 < result.interval[1]


def test_a_latency_limit_counts_requests_above_its_own_edge() -> None:
    # 4 % slower than 3 s is within p95 <= 3 s; 20 % is not.
    assert verdict(P95, Sampled(candidate=histogram(500, 900, 920, 940, 960, 1000, 1000))).verdict is Verdict.PASS
    assert verdict(P95, Sampled(candidate=histogram(100, 500, 600, 700, 800, 1000, 1000))).verdict is Verdict.BREACH


def test_a_latency_limit_between_two_edges_is_an_error_that_names_them() -> None:
    gate = QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=2.0)
    result = verdict(gate, Sampled(candidate=histogram(500, 900, 920, 940, 960, 1000, 1000)))
    assert result.verdict is Verdict.ERROR
    assert "2 s is not a bucket edge (the nearest are 1.5 s and 3 s)" in result.reason


def test_a_candidate_as_fast_as_the_baseline_passes_the_comparison() -> None:
    same = histogram(500, 950, 970, 990, 1000, 1000, 1000)
    result = verdict(P95_REL, Sampled(candidate=same, baseline=same))
    assert (result.verdict, result.observed, result.n_baseline) == (Verdict.PASS, 0.0, 1000)


def test_a_candidate_with_a_much_slower_tail_breaches_the_comparison() -> None:
    # The baseline's p95 is 1.0 s; 25 % of the candidate's requests are slower than 1.15 s, where 5 % may be.
    base, slow = histogram(500, 950, 970, 990, 1000, 1000, 1000), histogram(400, 700, 750, 850, 990, 1000, 1000)
    assert verdict(P95_REL, Sampled(candidate=slow, baseline=base)).verdict is Verdict.BREACH


def test_a_comparison_without_baseline_traffic_is_insufficient() -> None:
    alone = Sampled(candidate=histogram(500, 950, 970, 990, 1000, 1000, 1000))
    assert verdict(P95_REL, alone).verdict is Verdict.INSUFFICIENT


def test_a_baseline_quantile_above_the_last_edge_is_an_error_and_not_a_number() -> None:
    slow = histogram(0, 0, 0, 0, 0, 100, 1000)
    assert verdict(P95_REL, Sampled(candidate=slow, baseline=slow)).verdict is Verdict.ERROR


def moments(n: float, mean: float, sd: float) -> Moments:
    return Moments(n=n, total=n * mean, squares=n * (mean * mean + sd * sd))


def test_cost_is_judged_by_the_ratio_of_the_means() -> None:
    base = moments(2000, 0.010, 0.005)
    assert verdict(COST, Sampled(candidate=moments(1000, 0.0105, 0.005), baseline=base)).verdict is Verdict.PASS
    assert verdict(COST, Sampled(candidate=moments(1000, 0.0125, 0.005), baseline=base)).verdict is Verdict.BREACH
    assert verdict(COST, Sampled(candidate=moments(1000, 0.0112, 0.005), baseline=base)).verdict is Verdict.INSUFFICIENT


def test_the_interval_of_a_mean_ratio_is_the_delta_methods() -> None:
    # log ratio 0, variance 2 * 0.25 / 100 on each side's relative spread of 0.5: half width 1.96 * sqrt(0.005) = 0.1386.
    low, high = intervals.mean_ratio(moments(100, 1.0, 0.5), moments(100, 1.0, 0.5), alpha=0.05)
    assert (round(low, 4), round(high, 4)) == (0.8706, 1.1487)


def test_an_event_must_have_been_seen_and_extrapolation_does_not_hide_it() -> None:
    gate = AtLeast(name="fallback", indicator="fallbacks", times=1, by_phase="canary")
    assert verdict(gate, counts(0, 0.97)).verdict is Verdict.PASS
    assert verdict(gate, counts(0, 0.0)).verdict is Verdict.INSUFFICIENT


def test_a_firing_sev1_is_a_breach_at_once() -> None:
    gate = AtMost(name="no-sev1", indicator="firing_alerts", times=0)
    assert verdict(gate, counts(0, 0)).verdict is Verdict.PASS
    assert verdict(gate, counts(0, 1)).verdict is Verdict.BREACH


def silence(candidate: float, baseline: float) -> Sampled:
    return Sampled(candidate=Counts(bad=0, total=candidate), baseline=Counts(bad=0, total=baseline))


def test_silence_under_live_baseline_traffic_is_a_breach() -> None:
    # At 5 % beside 1000 baseline requests, 52.6 of the candidate's were to be expected.
    assert verdict(Silence(), silence(0, 1000)).verdict is Verdict.BREACH
    assert "about 53" in verdict(Silence(), silence(0, 1000)).reason


def test_silence_is_no_breach_while_hardly_anything_was_to_be_expected() -> None:
    assert verdict(Silence(), silence(0, 300)).verdict is Verdict.INSUFFICIENT  # 15.8 expected
    assert verdict(Silence(), silence(3, 1000)).verdict is Verdict.PASS


def test_silence_is_no_breach_before_the_first_request_could_have_ended() -> None:
    assert verdict(Silence(), silence(0, 1000), age=timedelta(seconds=89)).verdict is Verdict.INSUFFICIENT
    assert verdict(Silence(), silence(0, 1000), age=timedelta(seconds=90)).verdict is Verdict.BREACH


def test_in_a_shadow_phase_the_mirrored_share_of_all_traffic_is_expected() -> None:
    assert verdict(Silence(), silence(0, 199), phase=SHADOW).verdict is Verdict.INSUFFICIENT  # 19.9 expected
    assert verdict(Silence(), silence(0, 201), phase=SHADOW).verdict is Verdict.BREACH


def test_a_measurement_of_another_kind_is_an_error_and_not_a_crash() -> None:
    assert verdict(ERRORS, Sampled(candidate=histogram(1, 1, 1, 1, 1, 1, 1))).verdict is Verdict.ERROR


def test_only_enforced_gates_act() -> None:
    watched = RateLimit(name="watched", indicator="error_ratio", limit=0.01, mode=GateMode.WARN)
    result = verdict(watched, counts(300, 600))
    assert result.verdict is Verdict.BREACH
    assert breaches([result]) == () and unproven([result]) == ()


@pytest.mark.parametrize(
    ("bad", "total"), [(float("nan"), 10), (1, float("nan")), (-1, 10), (11, 10), (float("inf"), float("inf"))]
)
def test_counts_that_are_no_counts_cannot_be_made(bad: float, total: float) -> None:
    with pytest.raises(ValueError, match="0 <= bad <= total"):
        Counts(bad=bad, total=total)


def test_cumulative_counts_that_fall_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="must not fall"):
        histogram(10, 9, 11, 12, 13, 14, 15)
