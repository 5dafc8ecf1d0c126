"""Whole rollouts on invented traffic: they end as the live controller would end them, and the same seed tells the same story."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from controller.core.plan import Approval, AtLeast, Mode, OnBreach, OnUnproven, Plan, Policy
from controller.forecast.generate import Weather, World
from controller.forecast.replicates import Result, run
from controller.forecast.scenarios import named
from controller.forecast.simulate import QUIET_AFTER, Conditions, End, Evidence, Story, play
from tests.forecast.plans import CANARY, ERRORS, FULL, P95, SHADOW, a_baseline, a_plan, phase

PLAN = a_plan()


def story(name: str, plan: Plan = PLAN, rps: float = 40.0, seed: int = 1, conditions: Conditions | None = None) -> Story:
    return play(plan, a_baseline(plan, rps), named(plan, name), (seed,), conditions)


def test_a_good_candidate_is_promoted_when_every_phase_has_baked() -> None:
    found = story("good")
    assert (found.end, found.phase, found.gate, found.fault) == (End.PROMOTED, 2, "", None)
    assert found.took >= timedelta(minutes=90)
    assert found.entered == tuple(sorted(found.entered)) and found.entered[1] == timedelta(minutes=30)
    # 10 % for half an hour or more, then everybody for half an hour
    assert found.exposed == pytest.approx(40 * (0.1 * 1800 + 1800), rel=0.35)


def test_the_same_seed_tells_the_same_story_and_another_seed_another() -> None:
    assert story("errors") == story("errors")
    assert story("errors") != story("errors", seed=2)


def test_a_bad_candidate_is_rolled_back_by_the_gate_whose_limit_it_breaks() -> None:
    found = story("errors")
    assert (found.end, found.phase, found.gate, found.exposed) == (End.ROLLED_BACK, 0, "errors", 0.0)
    assert found.text.startswith("errors: ") and "limit 1%" in found.text


def test_an_outage_is_stopped_within_minutes_of_its_beginning_and_counts_who_met_it() -> None:
    found = story("outage")
    assert (found.end, found.phase, found.gate) == (End.ROLLED_BACK, 1, "errors")
    assert found.fault == timedelta(minutes=35)
    assert found.took - found.fault <= timedelta(minutes=3)
    assert 0 < found.exposed <= 40 * 0.1 * 180 * 1.5


def test_a_silent_candidate_is_rolled_back_by_the_silence_gate() -> None:
    found = story("silent")
    assert (found.end, found.phase, found.gate) == (End.ROLLED_BACK, 1, "candidate-reports")
    assert found.exposed == 0


def test_a_candidate_that_cannot_be_proven_waits_and_is_not_guessed_at() -> None:
    found = story("good", rps=0.05, conditions=Conditions(patience=timedelta(hours=2)))
    assert (found.end, found.phase) == (End.WAITING, 0)
    assert found.gate in ("errors", "p95") and "500 requests" in found.text


def test_a_plan_that_pauses_on_a_breach_pauses() -> None:
    plan = replace(PLAN, policy=replace(PLAN.policy, on_breach=OnBreach.PAUSE))
    assert story("errors", plan).end is End.PAUSED


def test_approvals_are_given_at_once_unless_the_rollout_is_to_stop_there() -> None:
    plan = a_plan(phases=(SHADOW, replace(CANARY, approval=Approval(groups=("managers",))), FULL))
    assert story("good", plan).end is End.PROMOTED
    stopped = story("good", plan, conditions=Conditions(approvals=False))
    assert (stopped.end, stopped.phase) == (End.APPROVAL, 0)
    assert "1 more approval from managers" in stopped.text


def test_a_question_to_people_at_the_end_of_a_time_box_is_answered_with_yes() -> None:
    policy = Policy(min_requests=500, on_unproven=OnUnproven.ASK, ask=Approval(groups=("managers",)))
    plan = replace(PLAN, policy=policy)
    assert story("good", plan).end is End.PROMOTED


def test_freezes_are_left_out_unless_asked_for() -> None:
    from controller.core.plan import FreezeRule

    plan = replace(PLAN, freezes=(FreezeRule(name="mondays", rrule="FREQ=WEEKLY;BYDAY=MO", timezone="UTC"),))
    assert story("good", plan).end is End.PROMOTED
    monday = Conditions(freezes=True, begin=datetime(2026, 1, 5, tzinfo=UTC), patience=timedelta(hours=1))
    assert story("good", plan, conditions=monday).end is End.WAITING


def test_an_event_that_must_happen_holds_until_it_has_happened() -> None:
    plan = a_plan(ERRORS, AtLeast(name="fallback", indicator="fallbacks", times=1, by_phase="shadow"))
    never = replace(a_baseline(plan, 40.0), fallbacks=0.0)
    found = play(plan, never, named(plan, "good"), (1,), Conditions(patience=timedelta(hours=1)))
    assert (found.end, found.gate) == (End.WAITING, "fallback")
    assert story("good", plan).end is End.PROMOTED


def test_the_quiet_hours_of_a_long_bake_are_not_played_but_counted() -> None:
    plan = a_plan(phases=(SHADOW, CANARY, phase("full", 100, 40 * 60)))
    found = story("good", plan, rps=5.0)
    assert found.end is End.PROMOTED
    assert found.took - found.entered[-1] == timedelta(hours=40) > 6 * QUIET_AFTER
    assert found.exposed == pytest.approx(5.0 * 40 * 3600, rel=0.1)


def test_long_beats_after_a_fault_give_the_evidence_that_long_beats_from_the_beginning_give() -> None:
    """Switching loses nothing: the same increments in beats of a minute end in the same case, bit for bit."""
    plan, baseline = PLAN, a_baseline(PLAN)
    switched = Evidence(plan, baseline, World(baseline, Weather(), (5,)), fine=True)
    long = Evidence(plan, baseline, World(baseline, Weather(), (5,)), fine=False)
    rows = World(baseline, Weather(), (6,)).draw(40, 15.0, (0.2, 1.0))
    begin = datetime(2026, 1, 5, tzinfo=UTC)
    for i in range(40):
        switched.take(0, begin, begin + timedelta(seconds=15 * (i + 1)), rows[0][i], rows[1][i])
    switched.coarsen()
    for i in range(0, 40, 4):
        at = begin + timedelta(seconds=15 * (i + 4))
        long.take(0, begin, at, rows[0][i : i + 4].sum(axis=0), rows[1][i : i + 4].sum(axis=0))
    assert switched.beat == long.beat == timedelta(minutes=1)
    assert switched.case.text() == long.case.text()


def test_a_candidate_that_is_bad_only_under_load_is_caught_when_it_has_the_load() -> None:
    plan = a_plan(phases=(SHADOW, CANARY, phase("half", 50, 30), FULL))
    found = story("under-load", plan)
    assert (found.end, found.phase) == (End.ROLLED_BACK, 2)
    assert found.fault == found.entered[2]


# --- many ----------------------------------------------------------------------------------------------------------------------


def results(replicates: int = 4, workers: int = 1) -> tuple[Result, ...]:
    plan = a_plan(ERRORS, phases=(SHADOW, FULL))
    scenarios = [named(plan, n) for n in ("good", "errors=5%")]
    baseline = a_baseline(plan, 40.0)
    return run(plan, baseline, scenarios, replicates=replicates, seed=3, conditions=Conditions(), workers=workers)


def test_many_rollouts_are_counted_by_how_they_ended() -> None:
    good, bad = results()
    assert (good.beyond, bad.beyond) == ((), ("errors",))
    assert [(o.end, o.count) for o in bad.outcomes] == [(End.ROLLED_BACK, 4)]
    assert bad.outcomes[0].gates == {"errors": 4} and bad.outcomes[0].phases == {"shadow": 4}
    assert sum(o.count for o in good.outcomes) == good.replicates == 4
    assert good.wrong == 0 and bad.wrong == 0


def test_the_table_does_not_depend_on_how_many_processes_played() -> None:
    assert results(2, workers=2) == results(2)


def test_progress_is_told_once_for_every_rollout() -> None:
    plan, told = a_plan(ERRORS, phases=(FULL,)), []
    run(
        plan,
        a_baseline(plan, 40.0),
        [named(plan, "errors=20%")],
        replicates=3,
        seed=1,
        conditions=Conditions(),
        progress=lambda done, of: told.append((done, of)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_worlds_of_two_scenarios_are_the_same() -> None:
    """Replicate 0 of `errors` meets the same load as replicate 0 of `good`: the baseline draws alike until the weights differ."""
    baseline = a_baseline(PLAN)
    one, two = (World(baseline, Weather(), (3, 0)).draw(50, 15.0, (0.2, 1.0))[1] for _ in range(2))
    assert np.array_equal(one, two)


def test_a_shadow_phase_exposes_nobody() -> None:
    plan = a_plan(ERRORS, P95, phases=(phase("shadow", 50, 30, Mode.SHADOW), FULL))
    found = play(plan, a_baseline(plan, 40.0), named(plan, "slower"), (1,))
    assert (found.phase, found.exposed) == (0, 0.0)
