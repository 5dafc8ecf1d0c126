"""One rollout's evidence on invented traffic: the same numbers however it was read, outages beside a flawless baseline, rush hours."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.adapters.memory import Behaviour, MemoryMetrics
from controller.codec import readings_from_text, readings_to_text
from controller.core.evidence.case import Case
from controller.core.plan import GateMode, MeanIncrease, Mode, Phase, Plan, Policy, QuantileIncrease, QuantileLimit, RateLimit
from controller.core.traffic import Reading
from controller.ports import Scope
from flagspec import Variant

START = datetime(2026, 5, 4, tzinfo=UTC)
STEP = timedelta(seconds=15)
PLAN = Plan(
    name="case",
    environment="production",
    flag="chat",
    baseline=Variant(model="old"),
    candidate=Variant(model="new"),
    phases=(
        Phase(name="shadow", mode=Mode.SHADOW, weight=10_000, bake=timedelta(hours=1)),
        Phase(name="quarter", mode=Mode.LIVE, weight=25_000, bake=timedelta(hours=1)),
        Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(hours=1)),
    ),
    gates=(
        RateLimit(name="errors", indicator="error_ratio", limit=0.01),
        QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=3.0),
        QuantileIncrease(name="p95-rel", indicator="latency", quantile=0.95, max_increase=0.15),
        MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.10),
    ),
    policy=Policy(guard_every=STEP),
)


class Traffic:
    """Two arms, read from the beginning of a phase on."""

    def __init__(self, *, history: timedelta = timedelta(hours=1)) -> None:
        self.case = Case.of(PLAN, "")
        self.ledger: dict[str, object] = {}
        self.at, self.history = START, history

    def phase(self, index: int, since: datetime) -> None:
        self.index, self.since, self.at = index, since, since

    def read(self, beats: int, candidate: Behaviour, baseline: Behaviour) -> Reading:
        self.at += STEP * beats
        scope = Scope(
            environment="production",
            flag="chat",
            arm="candidate",
            since=self.since,
            recent=STEP,
            opened_at=START,
            at=self.at,
            step=STEP,
            history=self.history,
        )
        read = MemoryMetrics(candidate=candidate, baseline=baseline).traffic(self.case.questions, scope, self.ledger)
        assert read.traffic is not None
        self.ledger = dict(read.ledger)
        return Reading(phase=self.index, since=self.since, traffic=read.traffic)


def outage(rps: float, failing: float, *, history: timedelta) -> int | None:
    """Scrapes until a candidate with a quarter of the traffic is struck, beside a baseline that has never failed; None after 40."""
    traffic = Traffic(history=history)
    good, base = Behaviour(rps=rps / 4), Behaviour(rps=rps * 3 / 4)
    traffic.phase(1, START)
    traffic.case.take(traffic.read(40, good, base))
    for scrape in range(40):
        traffic.case.take(traffic.read(1, replace(good, bad={"error_ratio": failing}), base))
        if traffic.case.struck() is not None:
            return scrape + 1
    return None


@pytest.mark.parametrize("history", [timedelta(0), timedelta(hours=6)], ids=["no history", "six hours"])
def test_an_outage_of_the_candidate_alone_is_not_excused_by_a_baseline_that_never_fails(history: timedelta) -> None:
    for rps, failing, within in ((4, 1.0, 4), (4, 0.4, 8), (30, 1.0, 2), (30, 0.4, 2)):
        scrapes = outage(rps, failing, history=history)
        assert scrapes is not None and scrapes <= within, (rps, failing, scrapes)


def test_an_outage_without_any_baseline_beside_it_is_a_breach() -> None:
    traffic = Traffic(history=timedelta(0))
    traffic.phase(1, START)
    traffic.case.take(traffic.read(8, Behaviour(rps=10.0, bad={"error_ratio": 1.0}), Behaviour(rps=0.0)))
    struck = traffic.case.struck()
    assert struck is not None and struck.gate == "errors"


def test_at_100_percent_what_drains_out_of_the_baseline_decides_nothing_and_hides_nothing() -> None:
    traffic = Traffic()
    traffic.phase(1, START)
    traffic.case.take(traffic.read(80, Behaviour(rps=5.0), Behaviour(rps=15.0)))
    traffic.phase(2, START + timedelta(hours=1))
    traffic.case.take(traffic.read(4, Behaviour(rps=20.0, median_s=1.2), Behaviour(rps=4.0)))
    traffic.case.take(traffic.read(20, Behaviour(rps=20.0, median_s=1.2), Behaviour(rps=0.0)))
    assert traffic.case.struck() is None
    traffic.case.take(traffic.read(4, Behaviour(rps=20.0, bad={"error_ratio": 0.5}), Behaviour(rps=0.0)))
    struck = traffic.case.struck()
    assert struck is not None and struck.gate == "errors"


def test_a_candidate_over_its_limit_is_not_proven_by_a_baseline_that_has_become_worse_too() -> None:
    traffic = Traffic(history=timedelta(0))
    traffic.phase(1, START)
    was, now = {"error_ratio": 0.0005}, {"error_ratio": 0.005}
    traffic.case.take(traffic.read(300, Behaviour(rps=5.0, bad=was), Behaviour(rps=15.0, bad=was)))
    traffic.phase(1, START + timedelta(hours=2))
    for _ in range(6):
        traffic.case.take(traffic.read(60, Behaviour(rps=5.0, bad={"error_ratio": 0.0105}), Behaviour(rps=15.0, bad=now)))
        assert not traffic.case.weighed()["errors"].finding.met


def test_gates_that_only_tell_do_not_silence_each_other() -> None:
    gates = (
        *(replace(g, mode=GateMode.WARN) for g in PLAN.gates if g.name != "p95"),
        RateLimit(name="timeouts", indicator="timeout_ratio", limit=0.005, mode=GateMode.WARN),
        QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=3.0),
    )
    traffic = Traffic()
    traffic.case = Case.of(replace(PLAN, gates=gates), "")
    traffic.phase(1, START)
    good, base = Behaviour(rps=5.0), Behaviour(rps=15.0)
    traffic.case.take(traffic.read(20, good, base))
    for bad in ({"error_ratio": 0.5}, {"error_ratio": 0.5, "timeout_ratio": 0.75}):
        traffic.case.take(traffic.read(20, replace(good, bad=bad), base))
    breached = {name for name, w in traffic.case.weighed().items() if w.breached}
    assert {"errors", "timeouts"} <= breached and traffic.case.struck() is None


def test_a_phase_that_began_in_a_rush_hour_still_proves_its_tail() -> None:
    traffic = Traffic(history=timedelta(0))
    traffic.phase(1, START)
    rush, usual = Behaviour(rps=3.0, median_s=1.2), Behaviour(rps=3.0, median_s=0.6)
    traffic.case.take(traffic.read(12, rush, rush))
    before = traffic.case.weighed()["p95-rel"].finding
    traffic.case.take(traffic.read(480, usual, usual))
    after = traffic.case.weighed()["p95-rel"].finding
    assert not before.met and after.met, (before, after)


def test_the_same_numbers_come_out_however_the_traffic_was_read_and_wherever_it_was_gone_on_with() -> None:
    """One process that reads all at once, and one that dies after every look and goes on from what was written."""
    whole, pieces = Traffic(), Traffic()
    good, base = Behaviour(rps=4.0, bad={"error_ratio": 0.002}), Behaviour(rps=16.0, bad={"error_ratio": 0.003})
    for index in (0, 1):
        since = START + index * timedelta(hours=1)
        whole.phase(index, since)
        pieces.phase(index, since)
        whole.case.take(whole.read(120, good, base))
        for _ in range(60):
            reading = pieces.read(2, good, base)
            (again,) = readings_from_text(readings_to_text([reading]))
            assert again == reading
            pieces.case = Case.of(PLAN, pieces.case.text())
            pieces.case.take(again)
    assert whole.case.text() == pieces.case.text()
