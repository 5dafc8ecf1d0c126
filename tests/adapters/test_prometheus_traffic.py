"""
Traffic read from a real Prometheus that holds samples of our own making: each story is a flag of its own, with known counters.

Scrapes are 15 s apart, each 4 s after a beat: the next beat shows what it brought.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path

import pytest

from controller.adapters.prometheus import PrometheusSource
from controller.adapters.prometheus.times import BEATS_MAX
from controller.core.traffic import Kind, Question, Traffic, TrafficRead, columns_of
from controller.ports import Scope
from services.prometheus import PrometheusServer
from tests.adapters.backfill import Samples, filled

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

T0 = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
STEP = timedelta(seconds=15)
OFFSET_MS = 4_000
SINCE = T0 + timedelta(seconds=7)
"""The phase begins between two beats; the last scrape before it was at T0 + 4 s."""

REQUESTS = Question(key="requests", kind=Kind.RATE, indicator="requests")
ERRORS = Question(key="errors", kind=Kind.RATE, indicator="error_ratio")
LATENCY = Question(key="latency", kind=Kind.HISTOGRAM, indicator="latency")
COST = Question(key="cost", kind=Kind.MEAN, indicator="cost_per_request")
ARMS = ("baseline", "candidate")
MODELS = {"baseline": "gpt-4.1", "candidate": "gpt-5"}

Points = list[tuple[int, float]]


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def scraped(increments: Sequence[float], first: int = 0, start: float = 0.0) -> Points:
    """A counter scraped every 15 s: the first scrape is `first` beats after T0."""
    totals = accumulate(increments, initial=start)
    next(totals)
    return [(ms(T0) + OFFSET_MS + 15_000 * (first + k), total) for k, total in enumerate(totals)]


@dataclass(slots=True)
class Writer:
    samples: Samples
    flag: str

    def labels(self, arm: str, instance: str, model: str = "") -> dict[str, str]:
        return {
            "environment": "production",
            "flag": self.flag,
            "arm": arm,
            "model": model or MODELS.get(arm, "gpt-5"),
            "streaming": "false",
            "job": "router",
            "instance": instance,
        }

    def requests(self, arm: str, points: Points, instance: str = "r1", outcome: str = "ok", model: str = "") -> None:
        self.samples.add("penstock_requests_total", {**self.labels(arm, instance, model), "outcome": outcome}, points)

    def buckets(self, arm: str, columns: Mapping[str, Points], instance: str = "r1") -> None:
        for le, points in columns.items():
            self.samples.add("penstock_request_duration_seconds_bucket", {**self.labels(arm, instance), "le": le}, points)

    def cost(self, arm: str, usd: Points, count: Points, instance: str = "r1") -> None:
        self.samples.add("penstock_cost_usd_total", self.labels(arm, instance), usd)
        self.samples.add("penstock_cost_requests_total", self.labels(arm, instance), count)


def scope(flag: str, after: timedelta, **changed: object) -> Scope:
    """Of a look so long after T0."""
    plain = Scope(
        environment="production",
        flag=flag,
        arm="candidate",
        recent=timedelta(minutes=15),
        since=SINCE,
        opened_at=SINCE,
        at=T0 + after,
        step=STEP,
        models=MODELS,
    )
    return replace(plain, **changed)  # type: ignore[arg-type]  # fields of a Scope


def minutes(n: float) -> timedelta:
    return timedelta(minutes=n)


STEADY = [5.0, 5.0] + [10.0] * 20
"""Five requests in each of two scrapes until the phase begins, then ten a scrape for five minutes."""


def write(samples: Samples) -> None:
    """All stories. Each begins with a scrape at T0 - 11 s and one at T0 + 4 s, both before the phase."""
    for k in range(-30 * 60, 3 * 3600, 15):
        samples.add("up", {"job": "router", "instance": "r1"}, [(ms(T0) + OFFSET_MS + k * 1000, 1.0)])

    def story(flag: str) -> Writer:
        return Writer(samples, flag)

    exact = story("exact")
    for instance in ("r1", "r2"):
        for arm, factor in (("baseline", 3), ("candidate", 1)):
            exact.requests(arm, scraped([factor * (k + 1.0) for k in range(22)], -1, 1000.0), instance)
            exact.requests(arm, scraped([float(k % 3 == 0) for k in range(22)], -1, 50.0), instance, "error")
            exact.requests(arm, scraped([2.0] * 22, -1), instance, "client_error")
        exact.cost("candidate", scraped([0.125] * 22, -1, 3.5), scraped([10.0] * 22, -1, 280.0), instance)
        exact.cost("baseline", scraped([0.25] * 22, -1, 3.5), scraped([30.0] * 22, -1, 280.0), instance)
        for arm in ARMS:
            exact.buckets(
                arm,
                {"0.5": scraped([4.0] * 22, -1, 7), "1.0": scraped([8.0] * 22, -1, 9), "+Inf": scraped([9.0] * 22, -1, 11)},
                instance,
            )

    restart = story("restart")
    restart.requests("baseline", scraped(STEADY, -1))
    # 5, 10, 20, 30, then a new process: 4, 14, ...
    restart.requests("candidate", scraped([5.0, 5.0, 10.0, 10.0], -1) + scraped([4.0] + [10.0] * 10, 3))

    gaps = story("gaps")
    gaps.requests("baseline", scraped(STEADY, -1))
    whole = scraped(STEADY, -1)
    gaps.requests("candidate", whole[:4] + whole[8:])

    long_gap = story("long-gap")
    steady = scraped([10.0] * 81, -1)
    long_gap.requests("baseline", steady)
    long_gap.requests("candidate", steady[:10] + steady[50:])

    scaled = story("scaled")
    scaled.requests("baseline", scraped(STEADY, -1))
    scaled.requests("candidate", scraped(STEADY[:10], -1), "r1")
    scaled.requests("candidate", scraped([7.0] * 12, 9), "r2")

    edges = story("edges")
    for arm in ARMS:
        edges.requests(arm, scraped(STEADY, -1))
        edges.buckets(arm, {le: scraped(STEADY[:10], -1) for le in ("0.5", "1.0", "+Inf")}, "old")
        edges.buckets(arm, {le: scraped([3.0] * 12, 9) for le in ("0.5", "2.0", "+Inf")}, "new")

    usd = scraped(STEADY, -1)
    for name, value in (("nan", float("nan")), ("inf", float("inf")), ("negative", -4.0)):
        bad = story(f"wrong-{name}")
        for arm in ARMS:
            bad.requests(arm, scraped(STEADY, -1))
            bad.cost(arm, [*usd[:6], (usd[6][0], value), *usd[7:]], scraped(STEADY, -1))

    lone = story("lone")
    lone.requests("baseline", scraped(STEADY, -1))

    past = story("past")
    # Two hours of another model in the same arm, then 90 minutes of this one; the candidate's own past is nobody's business.
    past.requests("baseline", scraped([100.0] * 480, -840), model="gpt-4o")
    past.requests("baseline", scraped([20.0] * 382, -360))
    past.requests("baseline", scraped([1.0] * 382, -360), outcome="error")
    past.requests("candidate", scraped([50.0] * 382, -360))
    past.buckets(
        "baseline", {"0.5": scraped([5.0] * 382, -360), "1.0": scraped([15.0] * 382, -360), "+Inf": scraped([20.0] * 382, -360)}
    )

    day = story("day")
    for arm in ARMS:
        day.requests(arm, scraped([10.0] * 720, -1))

    # Nothing was scraped by this Prometheus when the phase began, seven hours later; its exporters had counted for long.
    fresh = story("fresh")
    for arm in ARMS:
        fresh.requests(arm, scraped([10.0] * 40, 7 * 240 + 10, 100_000.0))

    own = story("own")
    for model in MODELS.values():
        for kind, increment in (("input", 1000.0), ("output", 100.0)):
            labels = {"gen_ai_request_model": model, "gen_ai_token_type": kind, "job": "app", "instance": "a1"}
            samples.add("gen_ai_client_token_usage_sum", labels, scraped([increment] * 22, -1))
        samples.add("my_requests_total", {"gen_ai_request_model": model, "job": "app", "instance": "a1"}, scraped(STEADY, -1))
        samples.add("mixed_total", {"gen_ai_request_model": model, "job": "app", "instance": "a1"}, scraped(STEADY, -1))
    samples.add("mixed_total", {"error_type": "APIError", "job": "app", "instance": "a1"}, scraped([1.0] * 22, -1))
    own.requests("baseline", scraped(STEADY, -1))
    samples.add("other_total", {"zone": "1"}, scraped(STEADY, -1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    samples = Samples()
    write(samples)
    with filled(tmp_path_factory.mktemp("traffic"), samples) as running:
        yield running


@pytest.fixture
def source(server: PrometheusServer) -> PrometheusSource:
    return PrometheusSource(server.url)


def traffic(read: TrafficRead) -> Traffic:
    assert read.traffic is not None, read.failure
    return read.traffic


def column(questions: Sequence[Question], read: TrafficRead, name: str, arm: str = "candidate") -> list[float]:
    at = columns_of(questions, traffic(read).edges).index(name)
    return [getattr(b, arm)[at] for b in traffic(read).beats]


def stored(ledger: Mapping[str, object]) -> Mapping[str, object]:
    """As the audit log gives it back."""
    return json.loads(json.dumps(dict(ledger)))  # type: ignore[no-any-return]


# --- exactness ------------------------------------------------------------------------------------------------------------------


def test_every_beat_has_exactly_what_the_scrapes_before_it_showed(source: PrometheusSource) -> None:
    questions = (REQUESTS, ERRORS, COST, LATENCY)
    read = source.traffic(questions, scope("exact", minutes(1)), {})
    assert traffic(read).problems == {} and traffic(read).absent == {}
    # Scrape k brings 3 (k + 1) to each of two routers, and two client errors; the phase begins after scrape 1.
    assert column(questions, read, "requests:total", "baseline") == [0, 18 + 4 + 0, 24 + 4 + 2, 30 + 4]
    assert column(questions, read, "requests:total") == [0, 6 + 4 + 0, 8 + 4 + 2, 10 + 4]
    assert column(questions, read, "errors:bad") == [0, 0, 2, 0]
    assert column(questions, read, "errors:total") == [0, 6, 10, 10]
    assert column(questions, read, "cost:amount", "baseline") == [0, 0.5, 0.5, 0.5]
    assert column(questions, read, "cost:count", "baseline") == [0, 60, 60, 60]
    assert traffic(read).edges == {"latency": (0.5, 1.0)}
    assert [column(questions, read, f"latency:{i}") for i in range(3)] == [[0, 8, 8, 8], [0, 16, 16, 16], [0, 18, 18, 18]]


def test_a_phase_begins_with_the_beat_before_it_and_counts_only_what_came_after(source: PrometheusSource) -> None:
    read = source.traffic((REQUESTS,), scope("exact", minutes(1)), {})
    assert traffic(read).since == T0
    assert [b.at for b in traffic(read).beats] == [T0 + STEP * k for k in range(1, 5)]


def test_readings_of_any_length_give_the_same_rows_bit_for_bit(source: PrometheusSource) -> None:
    questions = (REQUESTS, ERRORS, COST, LATENCY)
    whole = source.traffic(questions, scope("exact", minutes(5)), {})
    beats, ledger = [], dict[str, object]()
    for after_s in (16, 31, 33, 95, 96, 200, 300):
        read = source.traffic(questions, scope("exact", timedelta(seconds=after_s)), ledger)
        beats += traffic(read).beats
        ledger = dict(stored(read.ledger))
    assert tuple(beats) == traffic(whole).beats
    assert ledger == stored(whole.ledger)


def test_two_controllers_that_read_the_same_see_the_same(server: PrometheusServer) -> None:
    one, other = (PrometheusSource(server.url).traffic((REQUESTS, COST), scope("exact", minutes(3)), {}) for _ in range(2))
    assert traffic(one) == traffic(other)
    assert one.ledger == other.ledger


def test_a_look_that_finds_no_new_beat_asks_nothing_and_says_what_the_last_one_said(source: PrometheusSource) -> None:
    first = source.traffic((REQUESTS, ERRORS), scope("lone", timedelta(seconds=31)), {})
    again = source.traffic((REQUESTS, ERRORS), scope("lone", timedelta(seconds=44)), stored(first.ledger))
    assert traffic(again).beats == ()
    assert traffic(again).absent == traffic(first).absent == {"requests": ("candidate",), "errors": ("candidate",)}
    assert again.evidence == {"requests": (), "errors": ()}
    assert again.ledger == first.ledger


def test_before_the_first_beat_of_a_phase_the_edges_are_known_and_nothing_is_counted(source: PrometheusSource) -> None:
    read = source.traffic((REQUESTS, LATENCY), scope("exact", timedelta(seconds=9)), {})
    assert traffic(read).edges == {"latency": (0.5, 1.0)}
    assert traffic(read).beats == ()
    later = source.traffic((REQUESTS, LATENCY), scope("exact", timedelta(seconds=31)), stored(read.ledger))
    whole = source.traffic((REQUESTS, LATENCY), scope("exact", timedelta(seconds=31)), {})
    assert traffic(later).beats == traffic(whole).beats
    assert traffic(later).history == ()


# --- restarts, gaps, instances --------------------------------------------------------------------------------------------------


def test_a_restarted_router_counts_from_nought(source: PrometheusSource) -> None:
    read = source.traffic((REQUESTS,), scope("restart", minutes(1.5)), {})
    assert column((REQUESTS,), read, "requests:total") == [0, 10, 10, 4, 10, 10]
    assert traffic(read).problems == {}
    # The fall was asked about: one question more.
    assert ["resets(" in e.query for e in read.evidence["requests"]].count(True) == 1


def test_missed_scrapes_come_in_the_beat_that_shows_them(source: PrometheusSource) -> None:
    read = source.traffic((REQUESTS,), scope("gaps", minutes(2.25)), {})
    assert column((REQUESTS,), read, "requests:total") == [0, 10, 10, 0, 0, 0, 0, 50, 10]
    assert column((REQUESTS,), read, "requests:total", "baseline") == [0] + [10] * 8


def test_a_series_that_was_away_for_ten_minutes_goes_on_where_it_was(source: PrometheusSource) -> None:
    ledger: Mapping[str, object] = {}
    total, problems = 0.0, []
    for after in range(1, 20):
        read = source.traffic((REQUESTS,), scope("long-gap", minutes(after)), ledger)
        total += sum(column((REQUESTS,), read, "requests:total"))
        problems.append(traffic(read).problems.get("requests", ""))
        ledger = stored(read.ledger)
    # 81 scrapes until 20 minutes after T0; two before the phase, and four after the last look, which is at 19 minutes.
    assert total == 10.0 * (81 - 2 - 4)
    away = [p for p in problems if p]
    # Its last value is shown for five minutes; then it is missed for the rest.
    assert len(away) == 4
    assert all(p.startswith("no sample of the candidate since 12:07:00 UTC") for p in away)


def test_a_new_instance_counts_from_nought_and_one_that_is_gone_stays_counted(source: PrometheusSource) -> None:
    read = source.traffic((REQUESTS,), scope("scaled", minutes(4)), {})
    assert sum(column((REQUESTS,), read, "requests:total")) == 8 * 10 + 7 * 7
    assert traffic(read).problems == {}


def test_samples_that_come_late_are_counted_when_they_are_there(tmp_path: Path) -> None:
    early, whole = Samples(), Samples()
    for samples, until in ((early, 6), (whole, 22)):
        writer = Writer(samples, "late")
        samples.add("up", {"job": "router", "instance": "r1"}, scraped([1.0] * 22, -1))
        for arm in ARMS:
            writer.requests(arm, scraped(STEADY, -1)[:until])
    with filled(tmp_path / "early", early) as behind:
        first = PrometheusSource(behind.url).traffic((REQUESTS,), scope("late", minutes(2)), {})
    # Six scrapes are there: the two before the phase, and four of ten requests each; the last beats show nothing new.
    assert column((REQUESTS,), first, "requests:total") == [0, 10, 10, 10, 10, 0, 0, 0]
    with filled(tmp_path / "whole", whole) as complete:
        second = PrometheusSource(complete.url).traffic((REQUESTS,), scope("late", minutes(2.5)), stored(first.ledger))
    assert column((REQUESTS,), second, "requests:total") == [40, 10]


# --- phases ---------------------------------------------------------------------------------------------------------------------


def test_a_new_phase_counts_only_what_came_after_it_began(source: PrometheusSource) -> None:
    first = source.traffic((REQUESTS,), scope("exact", minutes(1)), {})
    begins = T0 + timedelta(seconds=112)
    second = source.traffic((REQUESTS,), scope("exact", minutes(2.5), since=begins), stored(first.ledger))
    # Scrapes until T0 + 109 s belong to what was before; those of 124 and 139 s to the phase.
    assert traffic(second).since == T0 + timedelta(seconds=105)
    assert column((REQUESTS,), second, "requests:total") == [0, 2 * 10 + 4 + 2, 2 * 11 + 4]
    assert traffic(second).history == ()


def test_a_phase_that_is_entered_again_begins_anew(source: PrometheusSource) -> None:
    ledger: Mapping[str, object] = {}
    sums = []
    for since_s, at_s in ((7, 60), (112, 150), (157, 240)):
        seen = scope("exact", timedelta(seconds=at_s), since=T0 + timedelta(seconds=since_s))
        read = source.traffic((REQUESTS,), seen, ledger)
        sums.append(sum(column((REQUESTS,), read, "requests:total")))
        ledger = stored(read.ledger)
    each = [2 * (k + 1) + 4 + 2 * (k % 3 == 0) for k in range(22)]
    assert sums == [sum(each[2:5]), sum(each[9:11]), sum(each[12:17])]


def test_a_phase_that_began_before_the_last_beat_counts_nothing_twice(source: PrometheusSource) -> None:
    first = source.traffic((REQUESTS,), scope("exact", minutes(2)), {})
    second = source.traffic((REQUESTS,), scope("exact", minutes(3), since=T0 + timedelta(seconds=100)), stored(first.ledger))
    whole = source.traffic((REQUESTS,), scope("exact", minutes(3)), {})
    assert traffic(first).beats + traffic(second).beats == traffic(whole).beats


def test_shadow_requests_are_the_candidates_side_of_a_shadow_phase(source: PrometheusSource) -> None:
    read = source.traffic((REQUESTS,), scope("exact", minutes(1), arm="shadow"), {})
    assert traffic(read).absent == {"requests": ("candidate",)}
    assert 'arm="shadow"' in read.evidence["requests"][0].query


def test_where_prometheus_had_not_begun_to_scrape_counting_begins_with_its_first_values(source: PrometheusSource) -> None:
    since = T0 + timedelta(hours=7)
    read = source.traffic((REQUESTS,), scope("fresh", timedelta(hours=7, minutes=5), since=since, opened_at=since), {})
    # 100,000 requests had been counted before anybody looked.
    assert sum(column((REQUESTS,), read, "requests:total")) == 10.0 * 9


def test_a_ledger_that_was_asked_otherwise_is_gone_on_from_without_counting_all_again(source: PrometheusSource) -> None:
    first = source.traffic((REQUESTS,), scope("exact", minutes(1)), {})
    ledger = json.loads(json.dumps(dict(first.ledger)))
    # Another release read other selectors: all its counters look new to this one.
    ledger["questions"]["requests"] |= {"asked": "another", "last": {}}
    second = source.traffic((REQUESTS,), scope("exact", minutes(1.5)), ledger)
    assert column((REQUESTS,), second, "requests:total") == [2 * 6 + 4, 2 * 7 + 4 + 2]


# --- gaps between looks ---------------------------------------------------------------------------------------------------------


def test_after_a_long_gap_the_beats_are_wider_and_nothing_is_lost(
    source: PrometheusSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.adapters.prometheus.times.BEATS_MAX", 50)
    first = source.traffic((REQUESTS,), scope("day", minutes(1)), {})
    ledger, total = stored(first.ledger), sum(column((REQUESTS,), first, "requests:total"))
    read = source.traffic((REQUESTS,), scope("day", minutes(179)), ledger)
    beats = traffic(read).beats
    assert 40 <= len(beats) <= 50 < BEATS_MAX
    width = beats[1].at - beats[0].at
    assert width / STEP == 15
    assert traffic(read).step == STEP
    assert all(b.at.timestamp() % width.total_seconds() == 0 for b in beats)
    rest = source.traffic((REQUESTS,), scope("day", minutes(179)), stored(read.ledger))
    total += sum(column((REQUESTS,), read, "requests:total")) + sum(column((REQUESTS,), rest, "requests:total"))
    assert traffic(rest).beats[-1].at == T0 + minutes(179)
    # The scrapes at T0 - 11 s and T0 + 4 s were before the phase; the last one before 179 minutes is the 717th.
    assert total == 10.0 * (717 - 2)


def test_an_answer_that_is_too_long_is_asked_for_in_one_piece(source: PrometheusSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.adapters.prometheus.client.LARGE_MAX", 4_000)
    read = source.traffic((REQUESTS,), scope("day", minutes(30), history=timedelta(0)), {})
    rows = column((REQUESTS,), read, "requests:total")
    assert len(rows) == 120
    assert (sum(rows[:-1]), rows[-1]) == (0, 10.0 * 119)
    assert traffic(read).problems == {}
    assert [e.note for e in read.evidence["requests"]] == ["", ""]


def test_long_answers_are_read_whole_and_their_beginning_kept(source: PrometheusSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.adapters.prometheus.client.ANSWER_MAX", 500)
    monkeypatch.setattr("controller.adapters.prometheus.client.KEPT_OF_LONG", 100)
    questions = (REQUESTS, LATENCY)
    read = source.traffic(questions, scope("exact", minutes(1)), {})
    assert traffic(read).problems == {}
    assert column(questions, read, "latency:2") == [0, 18, 18, 18]
    base, beats = read.evidence["latency"][:2]
    assert len(base.answer) == len(beats.answer) == 100
    assert len(beats.digest) == 64 and beats.note == ""


# --- the past -------------------------------------------------------------------------------------------------------------------


def test_the_first_reading_brings_the_past_of_this_baseline_and_no_other(source: PrometheusSource) -> None:
    questions = (REQUESTS, ERRORS, LATENCY)
    read = source.traffic(questions, scope("past", minutes(1), history=timedelta(hours=3)), {})
    history, names = traffic(read).history, columns_of(questions, traffic(read).edges)
    assert traffic(read).history_step == timedelta(minutes=1)
    # 90 minutes of this model: rows from the first whole minute that has an increase.
    assert len(history) in (89, 90)
    row = dict(zip(names, history[-1], strict=True))
    # 21 and 1 a scrape, four scrapes a minute.
    assert row["requests:total"] == pytest.approx(84)
    assert (row["errors:bad"], row["errors:total"]) == (pytest.approx(4), pytest.approx(84))
    assert [row[f"latency:{i}"] for i in range(3)] == [pytest.approx(20), pytest.approx(60), pytest.approx(80)]
    later = source.traffic(questions, scope("past", minutes(2), history=timedelta(hours=3)), stored(read.ledger))
    assert traffic(later).history == ()


def test_a_baseline_without_a_past_has_a_shorter_history(source: PrometheusSource) -> None:
    read = source.traffic((REQUESTS,), scope("exact", minutes(1)), {})
    assert len(traffic(read).history) <= 1


def test_the_past_is_read_in_windows_of_at_least_four_scrapes(server: PrometheusServer) -> None:
    slow = PrometheusSource(server.url, scrape_interval=timedelta(seconds=60))
    read = slow.traffic((REQUESTS,), scope("past", minutes(1), history=timedelta(hours=1)), {})
    assert traffic(read).history_step == timedelta(minutes=4)
    assert len(traffic(read).history) == 15
    assert traffic(read).history[-1][1] == pytest.approx(4 * 84)


def test_the_past_of_labels_of_ones_own_needs_no_model(source: PrometheusSource) -> None:
    arms = {"baseline": {"flag": "past", "arm": "baseline"}, "candidate": {"flag": "past", "arm": "candidate"}}
    read = source.traffic((REQUESTS,), scope("other", minutes(1), arms=arms, history=timedelta(hours=3)), {})
    assert len(traffic(read).history) in (179, 180)


# --- what cannot be counted -----------------------------------------------------------------------------------------------------


def test_edges_that_change_stop_that_question_and_no_other(source: PrometheusSource) -> None:
    questions = (REQUESTS, LATENCY)
    first = source.traffic(questions, scope("edges", minutes(1)), {})
    assert traffic(first).problems == {}
    read = source.traffic(questions, scope("edges", minutes(4)), stored(first.ledger))
    assert "has no bucket le=1.0 (s), which the comparison was begun with" in traffic(read).problems["latency"]
    assert "instance='new'" in traffic(read).problems["latency"]
    assert traffic(read).edges == {"latency": (0.5, 1.0)}
    assert column(questions, read, "requests:total") == [10.0] * 12
    # What was shown before the change is counted, nothing after it.
    assert column(questions, read, "latency:2") == [10.0] * 5 + [0.0] * 7


def test_a_metric_that_nobody_exports_is_an_error_that_names_it_and_never_a_number(source: PrometheusSource) -> None:
    questions = (REQUESTS, Question(key="ttft", kind=Kind.HISTOGRAM, indicator="ttft"))
    read = source.traffic(questions, scope("exact", minutes(1)), {})
    problem = traffic(read).problems["ttft"]
    assert problem.startswith("there is no series of penstock_ttft_seconds_bucket in Prometheus: is it scraped and named so?")
    assert "count(last_over_time(penstock_ttft_seconds_bucket[3600s]))" in problem
    assert traffic(read).edges == {}
    assert sum(column(questions, read, "requests:total")) > 0


def test_a_metric_without_the_labels_of_the_arms_is_an_error_that_names_them(source: PrometheusSource) -> None:
    promql = {"bad": "other_total{$arm}", "total": "penstock_requests_total{$arm}"}
    question = Question(key="own", kind=Kind.RATE, indicator="custom", promql=promql)
    read = source.traffic((REQUESTS, question), scope("exact", minutes(1)), {})
    assert "no series of other_total has the labels arm, environment, flag" in traffic(read).problems["own"]
    assert column((REQUESTS, question), read, "own:total") == [0, 0, 0, 0]


def test_bad_events_that_carry_no_arm_are_not_taken_for_none(source: PrometheusSource) -> None:
    # As an instrumentation does that leaves the model out of what it counts of failures.
    promql = {"bad": 'mixed_total{$arm,error_type!=""}', "total": "mixed_total{$arm}"}
    question = Question(key="own", kind=Kind.RATE, indicator="custom", promql=promql)
    seen = scope("own", minutes(1), profile="otel-genai", requests="my_requests_total{$arm}")
    read = source.traffic((REQUESTS, question), seen, {})
    assert 'no series of mixed_total{error_type!=""} has the labels gen_ai_request_model' in traffic(read).problems["own"]
    assert column((REQUESTS, question), read, "own:total") == [0, 0, 0, 0]


def test_bad_events_that_never_happened_are_none_where_the_metric_is_there(source: PrometheusSource) -> None:
    promql = {"bad": 'penstock_requests_total{$arm,outcome="timeout"}', "total": "penstock_requests_total{$arm}"}
    question = Question(key="own", kind=Kind.RATE, indicator="custom", promql=promql)
    read = source.traffic((REQUESTS, question), scope("gaps", minutes(1)), {})
    assert traffic(read).problems == {}
    assert column((REQUESTS, question), read, "own:bad") == [0, 0, 0, 0]
    assert column((REQUESTS, question), read, "own:total") == [0, 10, 10, 0]
    # Whether they could be there is asked as long as there are none.
    again = source.traffic((REQUESTS, question), scope("gaps", minutes(2)), stored(read.ledger))
    assert ["count(" in e.query for e in again.evidence["own"]] == [False, True]


def test_an_arm_without_series_is_absent_and_no_error(source: PrometheusSource) -> None:
    read = source.traffic((REQUESTS,), scope("lone", minutes(1)), {})
    assert traffic(read).problems == {}
    assert traffic(read).absent == {"requests": ("candidate",)}
    assert column((REQUESTS,), read, "requests:total", "baseline") == [0, 10, 10, 10]


@pytest.mark.parametrize(("name", "shown"), [("nan", "nan"), ("inf", "inf"), ("negative", "-4")])
def test_a_counter_that_is_none_for_a_moment_is_named_and_counted_in_one_piece_later(
    source: PrometheusSource, name: str, shown: str
) -> None:
    questions = (REQUESTS, COST)
    first = source.traffic(questions, scope(f"wrong-{name}", timedelta(seconds=91)), {})
    assert f"the value {shown} of {{" in traffic(first).problems["cost"]
    assert "penstock_cost_usd_total{" in traffic(first).problems["cost"]
    assert column(questions, first, "cost:count") == [0, 10, 10, 10, 10, 0]
    assert column(questions, first, "requests:total") == [0, 10, 10, 10, 10, 10]
    second = source.traffic(questions, scope(f"wrong-{name}", timedelta(seconds=136)), stored(first.ledger))
    assert traffic(second).problems == {}
    assert column(questions, second, "cost:count") == [20, 10, 10]
    assert column(questions, second, "cost:amount") == [20, 10, 10]
    assert column(questions, second, "requests:total") == [10, 10, 10]


# --- selectors of one's own -----------------------------------------------------------------------------------------------------


def test_selectors_of_ones_own_may_weigh_and_add_counters(source: PrometheusSource) -> None:
    promql = {
        "value": 'gen_ai_client_token_usage_sum{$arm,gen_ai_token_type="input"} * 2e-6'
        ' + 8e-6 * gen_ai_client_token_usage_sum{$arm,gen_ai_token_type="output"}',
        "weight": "my_requests_total{$arm}",
    }
    question = Question(key="usd", kind=Kind.MEAN, indicator="custom", promql=promql)
    requests = replace(REQUESTS)
    seen = scope("own", minutes(1), profile="otel-genai", requests="my_requests_total{$arm}")
    read = source.traffic((requests, question), seen, {})
    assert traffic(read).problems == {}
    assert column((requests, question), read, "usd:amount") == pytest.approx([0] + [1000 * 2e-6 + 100 * 8e-6] * 3)
    assert column((requests, question), read, "usd:count") == [0, 10, 10, 10]
    assert column((requests, question), read, "requests:total", "baseline") == [0, 10, 10, 10]


def test_a_filter_applies_to_every_counter_of_a_question(source: PrometheusSource) -> None:
    question = replace(ERRORS, where={"instance": "r2"})
    read = source.traffic((REQUESTS, question), scope("exact", minutes(1)), {})
    assert column((REQUESTS, question), read, "errors:total") == [0, 3, 5, 5]


def test_the_number_of_queries_is_the_number_of_questions(source: PrometheusSource) -> None:
    questions = (REQUESTS, ERRORS, COST, LATENCY)
    first = source.traffic(questions, scope("exact", minutes(1)), {})
    second = source.traffic(questions, scope("exact", minutes(2)), stored(first.ledger))
    assert [len(asked) for asked in second.evidence.values()] == [1, 1, 1, 1]
