"""What a plan can prove and catch, computed; held against rollouts that were drawn, and the remedies against themselves."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from controller.core.evidence.case import Case
from controller.core.plan import AtLeast, GateMode, Mode, Plan, QuantileIncrease, QuantileLimit, RateLimit
from controller.core.traffic import Beat, Reading, Traffic
from controller.forecast.baseline import Baseline
from controller.forecast.generate import Effect, Weather, World
from controller.forecast.outlook import Outlook, Verdict, nice, outlook
from controller.forecast.power import crossed
from flagspec import WEIGHT_MAX
from tests.forecast.plans import CANARY, COST, ERRORS, FULL, P95, P95_LIMIT, SHADOW, a_baseline, a_plan, phase

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def of(plan: Plan, rps: float, **given: float) -> Outlook:
    return outlook(plan, a_baseline(plan, rps, **given))


# --- against drawn rollouts ----------------------------------------------------------------------------------------------------


def minutes_until(plan: Plan, baseline: Baseline, index: int, seed: int, effect: Effect, most: int, *, proof: bool) -> float:
    """Minutes of drawn traffic until every gate is proven, or until a breach; infinite if it takes longer."""
    case = Case.of(replace(plan, policy=replace(plan.policy, guard_every=MINUTE)), "")
    world = World(baseline, Weather(), (17, seed))
    history = tuple(map(tuple, world.history(360, 60.0).tolist()))
    p = plan.phases[index]
    share = p.weight / WEIGHT_MAX
    cand, base = world.draw(most, 60.0, (share, 1.0 if p.mode is Mode.SHADOW else 1 - share), effect)
    for i in range(most):
        beat = Beat(at=BEGIN + (i + 1) * MINUTE, candidate=tuple(cand[i].tolist()), baseline=tuple(base[i].tolist()))
        traffic = Traffic(
            since=BEGIN + i * MINUTE, step=MINUTE, edges=baseline.edges, beats=(beat,), history=history if i == 0 else ()
        )
        case.take(Reading(phase=index, since=BEGIN, traffic=traffic))
        if not proof and case.struck() is not None:
            return i + 1
        if proof and all(w.finding.log_e_proof >= w.finding.log_e_needed for w in case.weighed().values()):
            return i + 1
    return float("inf")


def test_the_time_to_prove_a_good_candidate_agrees_with_drawn_rollouts() -> None:
    plan = a_plan(ERRORS, P95, COST, phases=(CANARY, FULL), min_requests=1)
    baseline = a_baseline(plan, 5.0)
    proven = outlook(plan, baseline).phases[0].proven
    assert proven is not None
    drawn = [minutes_until(plan, baseline, 0, seed, Effect(), 400, proof=True) for seed in range(12)]
    assert proven[0] / MINUTE == pytest.approx(float(np.median(drawn)), rel=0.6)
    assert np.quantile(drawn, 0.75) <= proven[1] / MINUTE <= 4 * np.median(drawn)


@pytest.mark.parametrize("name", ["errors", "p95", "cost"])
def test_the_smallest_regression_is_caught_about_as_often_as_promised(name: str) -> None:
    plan = a_plan(ERRORS, P95, COST, phases=(phase("canary", 10, 60), FULL))
    baseline = a_baseline(plan, 20.0)
    gate = next(g for g in outlook(plan, baseline).phases[0].gates if g.gate == name)
    assert gate.caught is not None
    size = gate.caught.size
    effect = {"errors": Effect(bad={"error_ratio": size}), "p95": Effect(latency=1 + size), "cost": Effect(cost=1 + size)}[name]
    drawn = [minutes_until(plan, baseline, 0, seed, effect, 60, proof=False) for seed in range(20)]
    # 90 % are promised: of 20, fewer than 14 happen once in 4,000 times
    assert sum(d <= 60 for d in drawn) >= 14
    assert gate.caught.exposed == pytest.approx(gate.caught.after.total_seconds() * 2.0)


def test_the_chance_to_cross_rises_with_what_has_grown_and_ends_at_one() -> None:
    chances = crossed(np.array([1.0, 5.0, 10.0, 30.0, 100.0]), np.full(5, 8.0))
    assert (np.diff(chances) > 0).all() and chances[0] < 0.02 and chances[-1] > 0.999


# --- verdicts and remedies -----------------------------------------------------------------------------------------------------


def test_a_plan_with_enough_traffic_works() -> None:
    found = of(a_plan(), 100.0)
    assert (found.verdict, [p.in_time for p in found.phases]) == (Verdict.WORKS, [True] * 3)
    assert found.finish == (timedelta(minutes=90), timedelta(minutes=90))
    assert not [p for p in found.problems if p.stops]


def test_one_percent_of_two_requests_a_second_proves_nothing_in_an_hour() -> None:
    plan = a_plan(phases=(phase("canary", 1, 60), phase("quarter", 25, 360), FULL))
    canary = of(plan, 2.0).phases[0]
    assert not canary.in_time and canary.requests == pytest.approx(72)
    assert canary.proven is not None and canary.proven[0] >= timedelta(hours=6)
    assert canary.remedies[-1].startswith("wait for it (bake: ")


def test_a_larger_share_that_is_proposed_is_enough_and_the_next_smaller_one_is_not() -> None:
    plan = a_plan(phases=(phase("canary", 1, 60), phase("half", 50, 60), FULL))
    canary = of(plan, 10.0).phases[0]
    share = next(r for r in canary.remedies if r.startswith("traffic: "))
    percent = float(share.removeprefix("traffic: ").removesuffix("%"))
    with_it = (phase("canary", percent, 60), *plan.phases[1:])
    assert of(replace(plan, phases=with_it), 10.0).phases[0].in_time
    smaller = (phase("canary", percent - 1, 60), *plan.phases[1:])
    assert not of(replace(plan, phases=smaller), 10.0).phases[0].in_time


def test_a_longer_bake_that_is_proposed_is_enough() -> None:
    plan = a_plan(phases=(phase("canary", 1, 60), FULL))
    late = of(plan, 10.0).phases[0]
    assert late.proven is not None and not late.in_time
    longer = replace(plan, phases=(replace(plan.phases[0], bake=late.proven[1]), FULL))
    assert of(longer, 10.0).phases[0].in_time


def test_shadow_evidence_that_is_proposed_is_enough() -> None:
    plan = a_plan(phases=(phase("canary", 2, 45), FULL), min_requests=100)
    late = of(plan, 4.0).phases[0]
    assert "a shadow phase before it with traffic: 100%, bake: 30m" in late.remedies
    mirrored = replace(plan, phases=(phase("shadow", 100, 30, Mode.SHADOW), *plan.phases))
    assert of(mirrored, 4.0).phases[1].in_time


def test_fewer_requests_that_are_proposed_are_enough() -> None:
    plan = a_plan(phases=(SHADOW, phase("canary", 1, 30), FULL))
    late = of(plan, 20.0).phases[1]
    fewer = next(r for r in late.remedies if r.startswith("min_requests: "))
    eased = replace(plan, policy=replace(plan.policy, min_requests=int(fewer.removeprefix("min_requests: "))))
    assert of(eased, 20.0).phases[1].in_time


def test_no_smaller_regression_than_the_limit_is_promised_and_less_traffic_catches_less() -> None:
    few, many = (of(a_plan(), rps).phases[1].gates[0] for rps in (5.0, 50.0))
    assert few.caught is not None and many.caught is not None
    assert 0.01 < many.caught.size < few.caught.size


def test_a_limit_that_the_baseline_breaks_today_is_said_with_both_numbers() -> None:
    found = of(a_plan(ERRORS, P95_LIMIT), 100.0, p95_s=3.4)
    problem = next(p for p in found.problems if p.about == "p95-limit")
    assert found.verdict is Verdict.STUCK and problem.stops
    assert "the baseline's p95 is 3.4 s today, the limit is 3 s" in problem.text
    failing = of(a_plan(ERRORS), 100.0, errors=0.02)
    assert any(p.stops and "the baseline itself has 2% today, the limit is 1%" in p.text for p in failing.problems)


def test_a_margin_that_a_limit_makes_narrower_is_said() -> None:
    found = of(a_plan(P95, P95_LIMIT), 100.0, p95_s=2.9)
    text = next(p.text for p in found.problems if p.about == "p95-limit")
    assert "leaves 3.4% of the 15% that p95 allows" in text


def test_buckets_that_are_too_coarse_for_a_margin_are_named_with_their_edges() -> None:
    plan = a_plan(ERRORS, P95)
    baseline = replace(a_baseline(plan, 100.0), edges={"latency": (0.5, 1.0, 1.5, 5.0, 10.0)})
    text = next(p.text for p in outlook(plan, baseline).problems if p.about == "p95")
    assert "lie in one bucket (1.5 s to 5 s): too coarse for the margin; add a bucket edge at 2.3 s" in text


def test_a_limit_beyond_the_last_bucket_stops_the_plan() -> None:
    plan = a_plan(QuantileLimit(name="slow", indicator="latency", quantile=0.95, limit_s=20.0))
    baseline = replace(a_baseline(plan, 100.0), edges={"latency": (0.5, 1.0, 2.0, 5.0, 10.0)})
    found = outlook(plan, baseline)
    assert found.verdict is Verdict.STUCK
    assert "beyond the last bucket edge 10 s" in next(p.text for p in found.problems if p.about == "slow")


def test_fine_buckets_are_not_complained_about() -> None:
    assert of(a_plan(ERRORS, P95, COST, P95_LIMIT), 100.0).problems == ()


def test_a_fallback_that_is_not_to_be_expected_in_time_is_said() -> None:
    plan = a_plan(ERRORS, AtLeast(name="fallback", indicator="fallbacks", times=3, by_phase="shadow"))
    assert any(p.about == "fallback" and "exercise one deliberately" in p.text for p in of(plan, 0.5).problems)
    assert not any(p.about == "fallback" for p in of(plan, 100.0).problems)


def test_a_metric_that_could_not_be_read_stops_the_plan_by_name() -> None:
    plan = a_plan(ERRORS, COST)
    baseline = a_baseline(plan, 100.0)
    parts = {k: v for k, v in baseline.parts.items() if k != "cost_per_request"}
    found = outlook(plan, replace(baseline, parts=parts, problems={"cost_per_request": "no series of metric x"}))
    assert found.verdict is Verdict.STUCK
    assert [(p.about, p.text) for p in found.problems] == [("cost_per_request", "cannot be read: no series of metric x")]


def test_gates_that_only_warn_are_left_out() -> None:
    plan = a_plan(ERRORS, replace(P95, mode=GateMode.WARN))
    assert [g.gate for g in of(plan, 100.0).phases[0].gates] == ["errors"]


def test_at_one_hundred_percent_nothing_is_compared_and_limits_ask_for_no_proof() -> None:
    full = of(a_plan(), 100.0).phases[2]
    assert [g.gate for g in full.gates] == ["errors"]
    assert full.waits_for == "min_requests" and full.proven is not None
    assert full.proven[1].total_seconds() == pytest.approx(5.0, abs=0.01)


def test_an_odd_limit_is_an_error_and_not_a_number() -> None:
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        of(a_plan(RateLimit(name="none", indicator="error_ratio", limit=0.0)), 10.0)
    with pytest.raises(ValueError, match="margin must be positive"):
        of(a_plan(ERRORS, QuantileIncrease(name="flat", indicator="latency", quantile=0.5, max_increase=0.0)), 10.0)


@pytest.mark.parametrize(
    ("minutes", "text"),
    [(3, "5m"), (55, "55m"), (56, "1h"), (61, "1h15m"), (104, "1h45m"), (480, "8h"), (481, "9h"), (5000, "4d")],
)
def test_lengths_are_rounded_up_to_what_people_write(minutes: float, text: str) -> None:
    assert nice(timedelta(minutes=minutes)) == text
