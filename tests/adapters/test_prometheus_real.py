"""
The metric source against the real Prometheus, which scrapes an exporter of this test.

One story is told once (zero series, traffic, a candidate that vanishes) and every test looks at it. Counts are compared with what
`increase` may make of them: never less than what happened, and at most one scrape's extrapolation more.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from controller.core.histogram import above
from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client import Histogram as Buckets

from controller.adapters.prometheus import PrometheusSource
from controller.core.measurement import Counts, Histogram, Measurement, Moments, NoData, QueryFailed, Sampled
from controller.core.plan import AtLeast, AtMost, MeanIncrease, QuantileIncrease, QuantileLimit, RateLimit, Silence
from controller.ports import Scope
from services.prometheus import PrometheusServer

pytestmark = [pytest.mark.services, pytest.mark.timeout(90)]

SCRAPE = timedelta(milliseconds=250)
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
            self.fallbacks.labels(*at, "gpt-4.1", "ok")

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
            found = seen.measurements[0]
            return found.candidate.total if isinstance(found, Sampled) and isinstance(found.candidate, Counts) else None

        begin = Scope(
            environment="production",
            flag="chat",
            arm="candidate",
            recent=timedelta(minutes=15),
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
    return told.source.measure([gate], scope or told.chat).measurements[0]  # type: ignore[list-item]  # any gate


def test_it_answers_with_its_version(told: Told) -> None:
    assert told.source.probe()[0].isdigit()


def test_the_errors_of_both_arms_are_counted_over_one_window(told: Told) -> None:
    seen = of(told, RateLimit(name="e", indicator="error_ratio", limit=0.01))
    assert isinstance(seen, Sampled) and isinstance(seen.candidate, Counts) and isinstance(seen.baseline, Counts)
    # 80 + 10 ok, 10 timeouts and 20 streamed; 50 client errors are nobody's fault here.
    assert (seen.candidate.bad, seen.candidate.total) == (about(10), about(120))
    assert (seen.baseline.bad, seen.baseline.total) == (0.0, about(400))
    # All counters jumped together, so the share is exact whatever was extrapolated.
    assert seen.candidate.bad / seen.candidate.total == pytest.approx(10 / 120)
    assert len({e.at for e in seen.evidence}) == 1


def test_a_filter_leaves_only_what_it_names(told: Told) -> None:
    seen = of(told, RateLimit(name="e", indicator="timeout_ratio", limit=0.01, where={"streaming": "true"}))
    assert isinstance(seen, Sampled) and isinstance(seen.candidate, Counts)
    assert (seen.candidate.bad, seen.candidate.total) == (0.0, about(20))


def test_unavailability_is_counted_against_the_same_requests(told: Told) -> None:
    seen = of(told, RateLimit(name="a", indicator="availability", limit=0.001))
    assert isinstance(seen, Sampled) and isinstance(seen.candidate, Counts)
    assert (seen.candidate.bad, seen.candidate.total) == (about(3), about(120))


def test_requests_slower_than_a_limit_are_read_from_the_bucket_edge(told: Told) -> None:
    seen = of(told, QuantileLimit(name="p", indicator="latency", quantile=0.95, limit_s=3.0, where={"streaming": "false"}))
    assert isinstance(seen, Sampled) and isinstance(seen.candidate, Histogram) and isinstance(seen.baseline, Histogram)
    assert seen.candidate.edges_s == EDGES
    slower = above(seen.candidate, 3.0)
    assert (slower.bad, slower.total) == (about(20), about(150))
    assert above(seen.baseline, 0.5).bad == pytest.approx(0.0)


def test_time_to_first_token_comes_from_its_own_histogram(told: Told) -> None:
    seen = of(told, QuantileIncrease(name="t", indicator="ttft", quantile=0.5, max_increase=0.1, where={"streaming": "true"}))
    assert isinstance(seen, Sampled) and isinstance(seen.candidate, Histogram) and isinstance(seen.baseline, Histogram)
    assert (seen.candidate.total, seen.baseline.total) == (about(20), 0.0)


def test_the_moments_of_the_cost_give_mean_and_variance(told: Told) -> None:
    seen = of(told, MeanIncrease(name="c", indicator="cost_per_request", max_increase=0.1))
    assert isinstance(seen, Sampled) and isinstance(seen.candidate, Moments) and isinstance(seen.baseline, Moments)
    # 90 at 0.02, 20 at 0.01 and 60 at nothing.
    assert seen.candidate.total / seen.candidate.n == pytest.approx((90 * 0.02 + 20 * 0.01) / 170)
    assert seen.candidate.squares / seen.candidate.n == pytest.approx((90 * 0.0004 + 20 * 0.0001) / 170)
    assert seen.baseline.total / seen.baseline.n == pytest.approx(0.01)


def test_one_fallback_is_one(told: Told) -> None:
    seen = of(told, AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p"))
    assert isinstance(seen, Sampled) and isinstance(seen.candidate, Counts)
    assert round(seen.candidate.total) == 1


@pytest.mark.parametrize(("severity", "firing"), [("sev1", 1.0), ("sev2", 0.0), ('sev1"} or vector(5) #', 0.0)])
def test_firing_alerts_are_counted_by_their_exact_labels(told: Told, severity: str, firing: float) -> None:
    seen = of(told, AtMost(name="a", indicator="firing_alerts", times=0, where={"severity": severity}))
    assert isinstance(seen, Sampled)
    assert seen.candidate == Counts(bad=0.0, total=firing)


def test_exposure_is_every_request_that_the_candidate_answered(told: Told) -> None:
    assert told.source.measure([Silence()], told.chat).exposure == about(170)
    assert told.source.measure([Silence()], told.silent).exposure == 0.0


def test_a_candidate_that_never_reported_is_silent(told: Told) -> None:
    silence, errors = told.source.measure(
        [Silence(), RateLimit(name="e", indicator="error_ratio", limit=0.01)], told.silent
    ).measurements
    assert isinstance(silence, Sampled) and isinstance(silence.baseline, Counts)
    assert silence.candidate == Counts(bad=0.0, total=0.0)
    assert silence.baseline.total == about(300)
    assert isinstance(errors, NoData)


def test_a_candidate_whose_series_vanished_is_stale_although_its_counts_are_still_in_the_window(told: Told) -> None:
    seen = of(told, RateLimit(name="e", indicator="error_ratio", limit=0.01), told.gone)
    assert isinstance(seen, NoData)
    assert "no sample of the candidate in the last 1 s" in seen.reason


def test_a_time_far_ahead_of_the_last_scrape_is_no_data(told: Told) -> None:
    seen = of(
        told, RateLimit(name="e", indicator="error_ratio", limit=0.01), replace(told.chat, at=now() + timedelta(seconds=60))
    )
    assert isinstance(seen, NoData)


@pytest.mark.parametrize("value", ['false"} or vector(1000) #', "false\\", "fal|.*", "{{$x}}", "$window"])
def test_a_filter_that_tries_to_break_out_matches_nothing(told: Told, value: str) -> None:
    seen = of(told, RateLimit(name="e", indicator="error_ratio", limit=0.01, where={"streaming": value}))
    assert isinstance(seen, NoData), seen


def test_a_newline_in_a_filter_is_refused(told: Told) -> None:
    seen = of(told, RateLimit(name="e", indicator="error_ratio", limit=0.01, where={"streaming": "a\nb"}))
    assert isinstance(seen, QueryFailed)


def test_a_prefix_that_is_not_prometheus_fails_and_says_so(told: Told) -> None:
    base = told.source._client.base_url
    seen = PrometheusSource(f"{base}/other", scrape_interval=SCRAPE).measure([Silence()], told.chat).measurements[0]
    assert isinstance(seen, QueryFailed)
    assert "HTTP status 404" in seen.reason
