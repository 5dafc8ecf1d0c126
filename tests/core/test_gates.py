"""Verdicts: on what the engine found, and on single measurements. Literal numbers, worked out by hand."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.core.evidence.config import Need
from controller.core.evidence.verdict import Finding
from controller.core.gates import GateResult, Verdict, Weighed, breaches, judge, shown, unproven
from controller.core.measurement import Counted, Counts, Measurement, NoData, QueryFailed, Sampled
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
    SampleRatio,
    Silence,
)
from controller.core.plan import Need as PlanNeed

NOW = datetime(2026, 5, 4, tzinfo=UTC)
CANARY = Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta(hours=1))
SHADOW = Phase(name="shadow", mode=Mode.SHADOW, weight=10_000, bake=timedelta(hours=1))
POLICY = Policy(min_requests=500)
ERRORS = RateLimit(name="errors", indicator="error_ratio", limit=0.01)
P95 = QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=3.0)
P95_REL = QuantileIncrease(name="p95-rel", indicator="latency", quantile=0.95, max_increase=0.15)
COST = MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.10)

PROVEN = Finding(
    gate="errors",
    need=Need.PROOF,
    met=True,
    beyond=False,
    multiple=1.0,
    acceptable=False,
    observed=0.003,
    baseline=0.0025,
    limit=0.01,
    interval=(0.001, 0.006),
    requests=4210.0,
    requests_baseline=80_000.0,
    log_e_breach=-9.0,
    log_e_proof=3.4,
    log_e_needed=3.0,
    missing=0.0,
)
OPEN = replace(PROVEN, met=False, log_e_proof=1.5, missing=4210.0)


def verdict(
    gate: Gate,
    seen: Measurement,
    *,
    policy: Policy = POLICY,
    phase: Phase = CANARY,
    age: timedelta = timedelta(minutes=5),
    weighed: Weighed | None = None,
) -> GateResult:
    return judge(gate, seen, policy, phase, age, weighed)


def weighed(gate: Gate, finding: Finding, **more: object) -> GateResult:
    return verdict(gate, Counted(), weighed=Weighed(finding=finding, **{"breached": False, "requests": finding.requests, **more}))  # type: ignore[arg-type]


def counts(bad: float, total: float) -> Sampled:
    return Sampled(candidate=Counts(bad=bad, total=total))


# --- statistical gates


def test_what_the_engine_has_proven_passes_and_shows_its_numbers() -> None:
    result = weighed(ERRORS, PROVEN)
    assert result.verdict is Verdict.PASS
    assert (result.observed, result.limit, result.interval, result.n, result.n_baseline) == (
        0.003,
        0.01,
        (0.001, 0.006),
        4210,
        80_000,
    )
    assert (result.log_e_proof, result.log_e_needed, result.log_e_breach) == (3.4, 3.0, -9.0)
    assert (result.unit, result.guarantee) == ("share", "anytime")
    assert result.reason == "0.3% of 4,210 requests failed (0.1% to 0.6%), limit 1%; proven"


def test_a_breach_is_one_sentence_that_a_person_understands() -> None:
    slow = replace(PROVEN, met=False, observed=1.31, baseline=1.0, limit=1.15, interval=(1.25, 1.38))
    result = weighed(P95_REL, slow, breached=True)
    assert result.verdict is Verdict.BREACH
    assert result.reason == "p95 is 31% above the baseline (+25% to +38%), limit 15% above, on 4,210 requests"
    assert (result.observed, result.limit, result.unit) == (pytest.approx(0.31), 0.15, "increase")


def test_a_quantile_with_a_limit_is_told_in_seconds() -> None:
    result = weighed(P95, replace(PROVEN, observed=2.5, limit=3.0, interval=(2.3, 2.8)))
    assert result.reason == "p95 is 2.5 s (2.3 s to 2.8 s), limit 3 s, on 4,210 requests; proven"
    assert result.unit == "seconds"


def test_the_mean_is_the_one_gate_whose_guarantee_is_asymptotic() -> None:
    result = weighed(COST, replace(PROVEN, observed=0.8, limit=1.1, interval=(0.7, 0.9)))
    assert (result.guarantee, result.reason) == (
        "asymptotic",
        "cost per request is 20% below the baseline (-30% to -10%), limit 10% above, on 4,210 requests; proven",
    )


def test_without_a_proof_it_says_how_many_requests_are_missing_and_how_long_they_take() -> None:
    result = weighed(ERRORS, OPEN)  # 4,210 in 5 minutes: as many again take as long
    assert result.verdict is Verdict.INSUFFICIENT
    assert result.missing == 4210
    assert result.reason.endswith("not proven yet: about 4,210 more requests (about 5 min)")


def test_a_proof_on_fewer_requests_than_the_plan_asks_for_is_insufficient() -> None:
    result = weighed(ERRORS, replace(PROVEN, requests=499))
    assert (result.verdict, result.reason.rpartition("; ")[2]) == (Verdict.INSUFFICIENT, "499 of 500 requests")


def test_a_gate_that_counts_something_rare_needs_the_requests_and_not_so_many_of_what_it_counts() -> None:
    fallbacks = RateLimit(name="fallbacks-work", indicator="fallback_success", limit=0.01, need=PlanNeed.LEANING)
    few = replace(PROVEN, need=Need.LEANING, requests=11.0, observed=0.0, interval=(0.0, 0.2))
    passed = weighed(fallbacks, few, requests=144_000.0)
    assert passed.verdict is Verdict.PASS and passed.reason.startswith("0% of 11 fallbacks failed")
    nothing = weighed(fallbacks, replace(few, requests=0.0, observed=math.nan, interval=None), requests=144_000.0)
    assert (nothing.verdict, nothing.reason) == (Verdict.INSUFFICIENT, "no data: no fallbacks in this phase yet")


def test_a_breach_of_late_is_not_told_as_if_the_phases_average_were_one() -> None:
    late = weighed(ERRORS, PROVEN, breached=True)  # 0.3% over the phase
    assert late.reason.endswith("limit 1%; the latest requests prove a breach, whatever those before them were like")
    unseen = weighed(ERRORS, replace(PROVEN, requests=0.0, observed=math.nan, interval=None), breached=True)
    assert (unseen.verdict, unseen.reason) == (Verdict.BREACH, "a breach was proven before this phase began")


def test_what_stands_in_the_way_of_all_gates_holds_each_of_them() -> None:
    result = weighed(ERRORS, PROVEN, hindrance="incident: the baseline itself is beyond a limit")
    assert result.verdict is Verdict.INSUFFICIENT and "the baseline itself is beyond a limit" in result.reason


def test_a_question_that_could_not_be_read_completely_is_an_error_with_its_reason() -> None:
    result = weighed(ERRORS, PROVEN, problem="x{}: bucket edges changed")
    assert (result.verdict, result.reason) == (Verdict.ERROR, "x{}: bucket edges changed")


def test_a_breach_stays_one_when_the_source_fails_afterwards() -> None:
    found = Weighed(finding=PROVEN, breached=True, requests=4210.0)
    assert verdict(ERRORS, QueryFailed(reason="503"), weighed=found).verdict is Verdict.BREACH


def test_a_proof_does_not_outlive_a_failed_query() -> None:
    found = Weighed(finding=PROVEN, breached=False, requests=4210.0)
    assert verdict(ERRORS, QueryFailed(reason="503"), weighed=found).verdict is Verdict.ERROR


@pytest.mark.parametrize(
    ("finding", "because"),
    [
        (replace(OPEN, requests=0.0, observed=math.nan, interval=None), "no requests in this phase yet"),
        (replace(OPEN, missing=None, observed=0.02), "over the limit, but not beyond chance yet"),
        (replace(OPEN, beyond=True), "not yet beyond what chance does"),
        (replace(OPEN, need=Need.LEANING), "the data speak against it"),
    ],
)
def test_insufficient_says_why(finding: Finding, because: str) -> None:
    result = weighed(ERRORS, finding)
    assert result.verdict is Verdict.INSUFFICIENT and because in result.reason


def test_arms_without_any_series_are_named() -> None:
    nothing = replace(OPEN, requests=0.0, observed=math.nan, interval=None)
    result = weighed(ERRORS, nothing, absent=("candidate", "baseline"))
    assert result.reason == "no data: no series of the candidate and baseline"
    assert (result.observed, result.interval) == (None, None)


def test_numbers_that_are_infinite_are_told_as_none() -> None:
    result = weighed(ERRORS, replace(PROVEN, log_e_proof=-math.inf, log_e_needed=-math.inf))
    assert (result.log_e_proof, result.log_e_needed) == (None, None)


def test_only_what_lies_within_its_limit_may_be_accepted_without_a_proof() -> None:
    assert weighed(ERRORS, replace(OPEN, acceptable=True)).acceptable
    assert not weighed(ERRORS, replace(OPEN, acceptable=True, observed=0.011)).acceptable
    assert not weighed(ERRORS, replace(OPEN, acceptable=True), hindrance="suspicion").acceptable


def test_no_evidence_yet_is_no_pass() -> None:
    assert verdict(ERRORS, Counted()).verdict is Verdict.INSUFFICIENT


def test_a_statistical_gate_is_never_judged_from_a_sample() -> None:
    assert verdict(ERRORS, counts(0, 10_000)).verdict is Verdict.ERROR


# --- no data, and failures


def test_no_data_is_never_a_pass() -> None:
    assert verdict(ERRORS, NoData(reason="empty")).verdict is Verdict.INSUFFICIENT


def test_a_failed_query_is_an_error_with_its_reason() -> None:
    result = verdict(ERRORS, QueryFailed(reason="503 from Prometheus"))
    assert (result.verdict, result.reason) == (Verdict.ERROR, "503 from Prometheus")


# --- gates that are read off one measurement


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


def test_a_split_that_is_the_one_asked_for_passes_and_one_that_is_not_stops_the_rollout() -> None:
    # 5 % asked for: 500 of 10,000 is it; 1,000 of 10,000 is not, even with 20 requests a unit (surprise 10,000/20 * KL(0.1, 0.0625) = 5.6 nats
    # is below ln 1000, at 100,000 requests it is 56).
    assert verdict(SampleRatio(), silence(500, 9_500)).verdict is Verdict.PASS
    assert verdict(SampleRatio(), silence(1_000, 9_000)).verdict is Verdict.PASS
    wrong = verdict(SampleRatio(), silence(10_000, 90_000))
    assert wrong.verdict is Verdict.ERROR
    assert wrong.reason.startswith("the candidate got 10% of 100,000 requests, asked for 5%")
    assert verdict(SampleRatio(), silence(0, 0)).verdict is Verdict.INSUFFICIENT


def test_only_enforced_gates_act() -> None:
    watched = replace(ERRORS, mode=GateMode.WARN)
    result = weighed(watched, PROVEN, breached=True)
    assert result.verdict is Verdict.BREACH
    assert breaches([result]) == () and unproven([result]) == ()


@pytest.mark.parametrize(
    ("bad", "total"), [(float("nan"), 10), (1, float("nan")), (-1, 10), (11, 10), (float("inf"), float("inf"))]
)
def test_counts_that_are_no_counts_cannot_be_made(bad: float, total: float) -> None:
    with pytest.raises(ValueError, match="0 <= bad <= total"):
        Counts(bad=bad, total=total)


def test_numbers_are_shown_in_their_unit() -> None:
    assert [
        shown(0.0123, "share"),
        shown(0.31, "increase"),
        shown(2.5, "seconds"),
        shown(3.0, "count"),
        shown(None, "share"),
    ] == [
        "1.23%",
        "+31%",
        "2.5 s",
        "3",
        "",
    ]
