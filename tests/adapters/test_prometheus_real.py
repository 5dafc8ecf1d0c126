"""
The metric source against the real Prometheus, which scrapes an exporter of this test.

One story is told once (zero series, traffic, a candidate that vanishes) and every test looks at it. What `measure` counts is
compared with what `increase` may make of it: never less than what happened, and at most one scrape's extrapolation more. What
`traffic` counts is exact.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client import Histogram as Buckets

from controller.adapters.prometheus import PrometheusSource
from controller.core.measurement import Counts, Measurement, NoData, QueryFailed, Sampled
from controller.core.plan import AtLeast, AtMost, Silence
from controller.core.traffic import Kind, Question, TrafficRead, columns_of
from controller.ports import Scope
from services.prometheus import PrometheusServer

pytestmark = [pytest.mark.services, pytest.mark.timeout(90)]

SCRAPE = timedelta(milliseconds=250)
STEP = timedelta(milliseconds=500)
EDGES = (0.5, 1.0, 3.0, 10.0)
COMMON = ("environment", "flag", "route", "arm", "model", "streaming")
OUTCOMES = ("ok", "error", "timeout", "rate_limited", "client_error", "cancelled")

ALERTS = """
groups:
  - name: sev
    rules:
      - {alert: Sev1, expr: vector(1), labels: {severity: sev1}}
      - {alert: Sev2, expr: vector(0) > 1, labels: {severity: sev2}}
"""


class Exporter:
    """A router's metrics, as docs/reference/router-metrics.md names them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("penstock_requests", "-", [*COMMON, "outcome"], registry=self.registry)
        self.unavailable = Counter("penstock_unavailable", "-", COMMON, registry=self.registry)
        self.duration = Buckets("penstock_request_duration_seconds", "-", COMMON, buckets=EDGES, registry=self.registry)
        self.ttft = Buckets("penstock_ttft_seconds", "-", COMMON, buckets=EDGES, registry=self.registry)
        self.cost = [
            Counter(f"penstock_cost_{n}", "-", COMMON, registry=self.registry) for n in ("requests", "usd", "usd_squared")
        ]
        self.fallbacks = Counter("penstock_fallbacks", "-", [*COMMON, "to_model", "outcome"], registry=self.registry)

    @staticmethod
    def labels(flag: str, arm: str, streaming: str) -> tuple[str, ...]:
        return "production", flag, "chat", arm, "gpt-4.1" if arm == "baseline" else "gpt-5", streaming

    def prime(self, flag: str, arm: str) -> None:
        for streaming in ("true", "false"):
            at = self.labels(flag, arm, streaming)
            for outcome in OUTCOMES:
                self.requests.labels(*at, outcome)
            for metric in (self.unavailable, self.duration, self.ttft, *self.cost):
                metric.labels(*at)
            for outcome in ("ok", "failed"):
                self.fallbacks.labels(*at, "gpt-4.1", outcome)

    def serve(
        self, flag: str, arm: str, outcome: str, *, n: int = 1, seconds: float = 0.3, usd: float = 0.01, streaming: str = "false"
    ) -> None:
        at = self.labels(flag, arm, streaming)
        self.requests.labels(*at, outcome).inc(n)
        for metric, amount in zip(self.cost, (1.0, usd, usd * usd), strict=True):
            metric.labels(*at).inc(n * amount)
        for _ in range(n):
            self.duration.labels(*at).observe(seconds)
            if streaming == "true":
                self.ttft.labels(*at).observe(seconds)

    def vanish(self, flag: str, arm: str) -> None:
        for streaming in ("true", "false"):
            for outcome in OUTCOMES:
                self.requests.remove(*self.labels(flag, arm, streaming), outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """When the story of this module happened, and whom to ask about it."""

    source: PrometheusSource
    chat: Scope
    silent: Scope
    gone: Scope


def now() -> datetime:
    return datetime.now(UTC)


def until(happened: Callable[[], bool]) -> None:
    for _ in range(400):
        if happened():
            return
        time.sleep(0.05)
    pytest.fail("Prometheus has not scraped the exporter")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "rules.yml").write_text(ALERTS)
    exporter = Exporter()
    for flag, arm in [
        ("chat", "baseline"),
        ("chat", "candidate"),
        ("silent", "baseline"),
        ("gone", "baseline"),
        ("gone", "candidate"),
    ]:
        exporter.prime(flag, arm)
    web, thread = start_http_server(0, addr="127.0.0.1", registry=exporter.registry)
    targets = {"router": [f"127.0.0.1:{web.server_port}"]}
    with PrometheusServer(folder, targets, scrape_interval=SCRAPE, rule_files=[folder / "rules.yml"]) as server:
        source = PrometheusSource(server.url, scrape_interval=SCRAPE, stale_after=timedelta(seconds=1))

        def fallbacks(of: Scope) -> float | None:
            seen = source.measure([AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p")], replace(of, at=now()))
            found = seen[0]
            return found.candidate.total if isinstance(found, Sampled) and isinstance(found.candidate, Counts) else None

        begin = Scope(
            environment="production",
            flag="chat",
            arm="candidate",
            recent=timedelta(minutes=15),
            step=STEP,
            since=now(),
            opened_at=now(),
            at=now(),
        )
        until(lambda: fallbacks(begin) == 0.0)
        since = now()
        # Enough zero samples inside the window that the series which will vanish have an increase.
        time.sleep(SCRAPE.total_seconds() * 6)
        tell(exporter)
        exporter.vanish("gone", "candidate")
        until(lambda: (fallbacks(begin) or 0.0) > 0.9)
        # Past the age at which the vanished candidate still counts as fresh, and past the four scrapes that a window needs.
        time.sleep(1.0 + 2 * SCRAPE.total_seconds())
        chat = Scope(
            environment="production",
            flag="chat",
            arm="candidate",
            recent=timedelta(minutes=15),
            step=STEP,
            since=since,
            opened_at=begin.opened_at,
            at=now(),
        )
        yield Told(source=source, chat=chat, silent=replace(chat, flag="silent"), gone=replace(chat, flag="gone"))
    web.shutdown()
    web.server_close()
    thread.join()


def tell(exporter: Exporter) -> None:
    exporter.serve("chat", "baseline", "ok", n=400, seconds=0.4, usd=0.01)
    exporter.serve("chat", "candidate", "ok", n=80, seconds=0.8, usd=0.02)
    exporter.serve("chat", "candidate", "ok", n=10, seconds=5.0, usd=0.02)
    exporter.serve("chat", "candidate", "timeout", n=10, seconds=30.0, usd=0.0)
    exporter.serve("chat", "candidate", "client_error", n=50, seconds=0.1, usd=0.0)
    exporter.serve("chat", "candidate", "ok", n=20, seconds=0.7, streaming="true")
    exporter.unavailable.labels(*Exporter.labels("chat", "candidate", "false")).inc(3)
    exporter.fallbacks.labels(*Exporter.labels("chat", "candidate", "false"), "gpt-4.1", "ok").inc()
    exporter.serve("silent", "baseline", "ok", n=300)
    exporter.serve("gone", "baseline", "ok", n=300)


def about(value: float) -> object:
    """What `increase` may read for a jump of `value`: it extrapolates by up to a quarter (one scrape of four)."""
    return _About(value)


@dataclass(frozen=True)
class _About:
    value: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and self.value * 0.999 <= other <= self.value * 1.25 + 1e-9


def of(told: Told, gate: object, scope: Scope | None = None) -> Measurement:
    return told.source.measure([gate], scope or told.chat)[0]  # type: ignore[list-item]  # any gate


def test_it_answers_with_its_version(told: Told) -> None:
    assert told.source.probe()[0].isdigit()


QUESTIONS = (
    Question(key="requests", kind=Kind.RATE, indicator="requests"),
    Question(key="errors", kind=Kind.RATE, indicator="error_ratio"),
    Question(key="timeouts", kind=Kind.RATE, indicator="timeout_ratio", where={"streaming": "true"}),
    Question(key="availability", kind=Kind.RATE, indicator="availability"),
    Question(key="fallbacks", kind=Kind.RATE, indicator="fallback_success"),
    Question(key="latency", kind=Kind.HISTOGRAM, indicator="latency", where={"streaming": "false"}),
    Question(key="ttft", kind=Kind.HISTOGRAM, indicator="ttft"),
    Question(key="cost", kind=Kind.MEAN, indicator="cost_per_request"),
)


def summed(read: TrafficRead) -> dict[str, tuple[float, float]]:
    """Everything that happened, by column: candidate and baseline."""
    traffic = read.traffic
    assert traffic is not None, read.failure
    assert traffic.problems == {}
    names = columns_of(QUESTIONS, traffic.edges)
    return {
        n: (sum(b.candidate[i] for b in traffic.beats), sum(b.baseline[i] for b in traffic.beats)) for i, n in enumerate(names)
    }


def test_traffic_is_exactly_what_happened_since_the_phase_began(told: Told) -> None:
    read = told.source.traffic(QUESTIONS, told.chat, {})
    counts = summed(read)
    # 90 ok, 10 timeouts, 50 client errors and 20 streamed; the baseline's 400.
    assert counts["requests:total"] == (170, 400)
    # Client errors are nobody's fault here.
    assert (counts["errors:bad"], counts["errors:total"]) == ((10, 0), (120, 400))
    assert (counts["timeouts:bad"], counts["timeouts:total"]) == ((0, 0), (20, 0))
    assert (counts["availability:bad"], counts["availability:total"]) == ((3, 0), (170, 400))
    assert (counts["fallbacks:bad"], counts["fallbacks:total"]) == ((0, 0), (1, 0))
    assert counts["cost:count"] == (170, 400)
    # 90 at 0.02, 20 at 0.01 and 60 at nothing.
    assert counts["cost:amount"] == pytest.approx((90 * 0.02 + 20 * 0.01, 4.0))
    assert read.traffic is not None and read.traffic.edges == {"latency": EDGES, "ttft": EDGES}
    # At or below 0.5, 1, 3 and 10 s, and all: 50 client errors at 0.1 s, 80 at 0.8 s, 10 at 5 s, 10 timeouts at 30 s.
    assert [counts[f"latency:{i}"] for i in range(5)] == [(50, 400), (130, 400), (130, 400), (140, 400), (150, 400)]
    assert [counts[f"ttft:{i}"] for i in range(5)] == [(0, 0), (20, 0), (20, 0), (20, 0), (20, 0)]


def test_traffic_lies_on_whole_multiples_of_the_step_after_the_phase_began(told: Told) -> None:
    traffic = told.source.traffic(QUESTIONS, told.chat, {}).traffic
    assert traffic is not None
    step_s = STEP.total_seconds()
    times = [b.at.timestamp() for b in traffic.beats]
    assert all(t % step_s == 0 for t in times)
    assert [b - a for a, b in pairwise(times)] == [step_s] * (len(times) - 1)
    assert 0 <= told.chat.since.timestamp() - traffic.since.timestamp() < step_s
    assert 0 <= told.chat.at.timestamp() - times[-1] < step_s


def test_one_query_for_each_question_however_many_beats(told: Told) -> None:
    first = told.source.traffic(QUESTIONS, replace(told.chat, at=told.chat.since + 2 * STEP), {})
    second = told.source.traffic(QUESTIONS, told.chat, first.ledger)
    assert {key: len(asked) for key, asked in second.evidence.items()} == {q.key: 1 for q in QUESTIONS}
    assert {e.at for asked in second.evidence.values() for e in asked} == {second.traffic.beats[-1].at}  # type: ignore[union-attr]


def test_a_candidate_without_series_is_absent_and_counts_nothing(told: Told) -> None:
    read = told.source.traffic(QUESTIONS, told.silent, {})
    assert read.traffic is not None
    assert read.traffic.absent["requests"] == ("candidate",)
    assert summed(read)["requests:total"] == (0, 300)


def test_a_candidate_whose_series_vanished_is_named_and_what_it_did_still_counts(told: Told) -> None:
    # Its last counts were seen before it went; requests that were never scraped are lost with their process.
    vanished = told.source.traffic(QUESTIONS[:1], replace(told.gone, at=told.gone.at + timedelta(seconds=2)), {})
    assert vanished.traffic is not None
    assert "no sample of the candidate since" in vanished.traffic.problems["requests"]
    assert "penstock_requests_total" in vanished.traffic.problems["requests"]


def test_one_fallback_is_one(told: Told) -> None:
    seen = of(told, AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p"))
    assert isinstance(seen, Sampled) and isinstance(seen.candidate, Counts)
    assert round(seen.candidate.total) == 1


@pytest.mark.parametrize(("severity", "firing"), [("sev1", 1.0), ("sev2", 0.0), ('sev1"} or vector(5) #', 0.0)])
def test_firing_alerts_are_counted_by_their_exact_labels(told: Told, severity: str, firing: float) -> None:
    seen = of(told, AtMost(name="a", indicator="firing_alerts", times=0, where={"severity": severity}))
    assert isinstance(seen, Sampled)
    assert seen.candidate == Counts(bad=0.0, total=firing)


def test_a_candidate_that_never_reported_is_silent(told: Told) -> None:
    silence = of(told, Silence(), told.silent)
    assert isinstance(silence, Sampled) and isinstance(silence.baseline, Counts)
    assert silence.candidate == Counts(bad=0.0, total=0.0)
    assert silence.baseline.total == about(300)


def test_a_candidate_whose_series_vanished_is_stale_although_its_counts_are_still_in_the_window(told: Told) -> None:
    seen = of(told, Silence(), told.gone)
    assert isinstance(seen, NoData)
    assert "no sample of the candidate in the last 1 s" in seen.reason


def test_a_time_far_ahead_of_the_last_scrape_is_no_data(told: Told) -> None:
    assert isinstance(of(told, Silence(), replace(told.chat, at=now() + timedelta(seconds=60))), NoData)


@pytest.mark.parametrize("value", ['false"} or vector(1000) #', "false\\", "fal|.*", "{{$x}}", "$window"])
def test_a_filter_that_tries_to_break_out_matches_nothing(told: Told, value: str) -> None:
    seen = of(told, AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p", where={"streaming": value}))
    assert isinstance(seen, NoData), seen
    question = Question(key="requests", kind=Kind.RATE, indicator="requests", where={"streaming": value})
    read = told.source.traffic([question], told.chat, {})
    assert read.traffic is not None
    assert read.traffic.absent["requests"] == ("candidate", "baseline")
    assert {v for beat in read.traffic.beats for v in (*beat.candidate, *beat.baseline)} == {0.0}


def test_a_newline_in_a_filter_is_refused(told: Told) -> None:
    seen = of(told, AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p", where={"streaming": "a\nb"}))
    assert isinstance(seen, QueryFailed)


def test_a_prefix_that_is_not_prometheus_fails_and_says_so(told: Told) -> None:
    base = told.source._client.base_url
    seen = PrometheusSource(f"{base}/other", scrape_interval=SCRAPE).measure([Silence()], told.chat)[0]
    assert isinstance(seen, QueryFailed)
    assert "HTTP status 404" in seen.reason
