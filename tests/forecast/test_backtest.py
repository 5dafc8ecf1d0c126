"""A plan's gates on a recording: what they would have said, when, and of which phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controller.adapters.memory import Behaviour, MemoryMetrics
from controller.core.gates import Verdict
from controller.core.measurement import Counts, Measurement, Sampled
from controller.core.plan import AtMost, GateMode, Plan
from controller.core.traffic import Question, TrafficRead
from controller.forecast.backtest import Backtest, NothingRecorded, backtest
from controller.ports import Scope
from tests.forecast.plans import CANARY, ERRORS, FULL, P95, P95_LIMIT, SHADOW, a_plan

SINCE = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
UNTIL = SINCE + timedelta(hours=2)
GOOD = Behaviour(rps=20.0, bad={"error_ratio": 0.002})
FAILING = Behaviour(rps=4.0, bad={"error_ratio": 0.05})
SLOW = Behaviour(rps=4.0, bad={"error_ratio": 0.002}, median_s=0.9)


@dataclass
class Recorded(MemoryMetrics):
    """What was asked is kept."""

    scopes: list[Scope] = field(default_factory=list)

    def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        self.scopes.append(scope)
        return super().traffic(questions, scope, ledger)


def run(candidate: Behaviour | None, plan: Plan | None = None, **more: Any) -> Backtest:
    metrics = MemoryMetrics(candidate=candidate, baseline=GOOD, **more)
    return backtest(plan or a_plan(), metrics, SINCE, UNTIL)


def test_a_failing_candidate_would_have_been_rolled_back_in_every_phase_with_time_gate_and_sentence() -> None:
    found = run(FAILING)
    for phase in found.phases:
        assert phase.stopped is not None
        assert (phase.stopped.kind, phase.stopped.gate) == ("rollback", "errors")
        assert SINCE < phase.stopped.at < SINCE + timedelta(minutes=30)
        assert phase.stopped.text.startswith("5% of ") and "limit 1%" in phase.stopped.text
        assert phase.passed is None


def test_the_breach_is_found_at_its_beat_and_the_numbers_are_those_of_that_time() -> None:
    stopped = run(FAILING).phases[0].stopped
    assert stopped is not None
    seen = (stopped.at - SINCE).total_seconds() * FAILING.rps
    assert f"of {seen:,.0f} requests" in stopped.text
    assert (stopped.at - SINCE) % timedelta(seconds=15) == timedelta(0) and (stopped.at - SINCE) % timedelta(minutes=15)


def test_a_good_candidate_would_have_passed_and_each_gate_says_when() -> None:
    for phase in run(replace(GOOD, rps=4.0)).phases:
        assert phase.stopped is None and phase.passed is not None
        assert all(r.verdict is Verdict.PASS for r in phase.results)
        assert set(phase.proven) == {r.gate for r in phase.results}
        assert max(phase.proven.values()) <= phase.passed


def test_a_slow_candidate_is_judged_by_the_comparison_and_at_one_hundred_percent_there_is_none() -> None:
    shadow, canary, full = run(SLOW).phases
    assert shadow.stopped is not None and canary.stopped is not None
    assert shadow.stopped.gate == canary.stopped.gate == "p95"
    assert full.stopped is None and [r.gate for r in full.results] == ["errors"]


def test_a_gate_that_only_warns_stops_nothing() -> None:
    found = run(FAILING, a_plan(replace(ERRORS, mode=GateMode.WARN), P95, P95_LIMIT))
    assert [p.stopped for p in found.phases[:2]] == [None, None]
    assert next(r for r in found.phases[0].results if r.gate == "errors").verdict is Verdict.BREACH


def test_too_few_requests_would_have_held() -> None:
    phase = run(Behaviour(rps=0.01)).phases[0]
    assert phase.stopped is None and phase.passed is None
    assert "of 500 requests" in next(r.reason for r in phase.results if r.gate == "errors")


def test_an_alert_that_fired_would_have_acted() -> None:
    plan = a_plan(ERRORS, P95, AtMost(name="no-sev1", indicator="firing_alerts", times=0))
    fired = Sampled(candidate=Counts(bad=0, total=1))
    stopped = run(replace(GOOD, rps=4.0), plan, says={"no-sev1": fired}).phases[0].stopped
    assert stopped is not None and (stopped.gate, stopped.at) == ("no-sev1", SINCE + timedelta(minutes=15))


def test_silence_and_the_split_are_left_out() -> None:
    names = {r.gate for p in run(replace(GOOD, rps=4.0)).phases for r in p.results}
    assert names == {"errors", "p95"}


def test_requests_of_both_arms_are_counted() -> None:
    candidate, baseline = run(replace(GOOD, rps=4.0)).requests
    assert (candidate, baseline) == pytest.approx((4.0 * 7200, 20.0 * 7200))


def test_the_recording_is_read_as_a_live_look_would_have_read_it() -> None:
    metrics = Recorded(candidate=replace(GOOD, rps=4.0), baseline=GOOD)
    arms = {"candidate": {"model": "gpt-5"}}
    told: list[tuple[int, int]] = []
    backtest(a_plan(), metrics, SINCE, UNTIL, arms=arms, progress=lambda done, of: told.append((done, of)))
    assert [s.at - SINCE for s in metrics.scopes] == [timedelta(minutes=15 * k) for k in range(1, 9)]
    assert {s.since for s in metrics.scopes} == {SINCE}
    assert all(s.arms["candidate"] == {"model": "gpt-5"} for s in metrics.scopes)
    assert told == [(k, 8) for k in range(1, 9)]


def test_the_last_piece_ends_where_it_was_asked_to() -> None:
    metrics = Recorded(candidate=GOOD, baseline=GOOD)
    backtest(a_plan(ERRORS, phases=(SHADOW, CANARY, FULL)), metrics, SINCE, SINCE + timedelta(minutes=20))
    assert [s.at - SINCE for s in metrics.scopes] == [timedelta(minutes=15), timedelta(minutes=20)]


def test_nothing_recorded_is_said_and_is_no_verdict() -> None:
    with pytest.raises(NothingRecorded, match="nothing was recorded"):
        backtest(a_plan(), MemoryMetrics(), SINCE, UNTIL)
    with pytest.raises(NothingRecorded, match="the server is down"):
        backtest(a_plan(), MemoryMetrics(failure="the server is down"), SINCE, UNTIL)


def test_measurements_are_asked_for_at_each_look_only_where_a_gate_needs_them() -> None:
    class Counting(MemoryMetrics):
        asked = 0

        def measure(self, gates: Sequence[Any], scope: Scope) -> tuple[Measurement, ...]:
            Counting.asked += 1
            return super().measure(gates, scope)

    backtest(a_plan(), Counting(candidate=GOOD, baseline=GOOD), SINCE, UNTIL)
    assert Counting.asked == 0


def test_an_end_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="the end must come after the beginning"):
        backtest(a_plan(), MemoryMetrics(), UNTIL, SINCE)
