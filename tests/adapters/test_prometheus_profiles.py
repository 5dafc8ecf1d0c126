"""
Each metric profile against a real Prometheus that holds that exporter's series: names and labels as its own code writes them.

Sources: litellm 1.110.2 (litellm/integrations/prometheus.py, litellm/types/integrations/prometheus.py),
opentelemetry-instrumentation-openai-v2 2.4b0 and openlit 1.45.0 through opentelemetry-exporter-prometheus 0.66b2,
envoyproxy/ai-gateway (internal/metrics and its Prometheus test).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.adapters.prometheus import PrometheusSource, load_profile
from controller.adapters.prometheus.profile import INDICATORS, NotAskable, ProfileError, parse_profile
from controller.adapters.prometheus.readable import queries
from controller.core.measurement import NoData, QueryFailed, Sampled
from controller.core.plan import AtLeast, AtMost, Gate, MeanIncrease, Plan, QuantileLimit, RateLimit, Silence
from controller.core.traffic import Kind, Question, TrafficRead, columns_of, question_of
from controller.ports import Scope, Unavailable
from controller.spec import RolloutSpec
from flagspec import RouteFlag, Variant
from router.metrics import RouterMetrics
from services.prometheus import PrometheusServer
from tests.adapters.backfill import Samples, filled
from tests.core.test_decide import PLAN as DECIDED

T0 = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
SCRAPES = 42
"""Two before the phase, one every 15 s, until ten minutes after T0."""
PHASE = SCRAPES - 2

KINDS = {
    "requests": Kind.RATE,
    "error_ratio": Kind.RATE,
    "timeout_ratio": Kind.RATE,
    "availability": Kind.RATE,
    "fallback_success": Kind.RATE,
    "latency": Kind.HISTOGRAM,
    "ttft": Kind.HISTOGRAM,
    "cost_per_request": Kind.MEAN,
}


def question(indicator: str, **where: str) -> Question:
    return Question(key=indicator, kind=KINDS[indicator], indicator=indicator, where=where)


def scope(profile: str, baseline: str = "gpt-4.1", candidate: str = "gpt-5", **changed: object) -> Scope:
    since = T0 + timedelta(seconds=7)
    plain = Scope(
        environment="production",
        flag="chat-model",
        arm="candidate",
        recent=timedelta(minutes=5),
        since=since,
        opened_at=since,
        at=T0 + timedelta(seconds=616),
        profile=profile,
        models={"baseline": baseline, "candidate": candidate},
        history=timedelta(0),
    )
    return replace(plain, **changed)  # type: ignore[arg-type]  # fields of a Scope


def every_scrape(samples: Samples, metric: str, labels: Mapping[str, str], each: float, first: int = 0) -> None:
    """A counter that begins at nought with the `first` scrape that shows it."""
    begins = int(T0.timestamp() * 1000) + 4_000 - 15_000
    samples.add(metric, labels, [(begins + 15_000 * k, each * (k - first + 1)) for k in range(first, SCRAPES)])


def histogram(samples: Samples, metric: str, labels: Mapping[str, str], each: Mapping[str, float], total: float) -> None:
    """Cumulative buckets, +Inf, sum and count; so many in each scrape."""
    for le, n in (*each.items(), ("+Inf", total)):
        every_scrape(samples, f"{metric}_bucket", {**labels, "le": le}, n)
    every_scrape(samples, f"{metric}_count", labels, total)
    every_scrape(samples, f"{metric}_sum", labels, total * 0.7)


# --- what each exporter writes --------------------------------------------------------------------------------------------------


def litellm(samples: Samples) -> None:
    caller = {"hashed_api_key": "88dc28d0", "api_key_alias": "web", "team": "t1", "team_alias": "chat"}
    for model, requests, failed in (("gpt-4.1", 30.0, 1.0), ("gpt-5", 10.0, 2.0)):
        process = {"job": "litellm", "instance": "proxy-1:4000"}
        proxy = {
            **process,
            **caller,
            "end_user": "None",
            "user": "u1",
            "user_email": "None",
            "requested_model": model,
            "route": "/v1/chat/completions",
            "client_ip": "None",
            "user_agent": "None",
            "model_id": f"id-{model}",
            "api_provider": "openai",
        }
        for status, n in (("200", requests - 1), ("500", 0.5), ("400", 0.25), ("499", 0.25)):
            every_scrape(samples, "litellm_proxy_total_requests_metric_total", {**proxy, "status_code": status}, n)
        failure = {**proxy, "exception_status": "500", "exception_class": "Openai.InternalServerError"}
        every_scrape(samples, "litellm_proxy_failed_requests_metric_total", failure, 0.5)
        deployment = {
            **process,
            **caller,
            "model_group": model,
            "requested_model": model,
            "litellm_model_name": f"openai/{model}",
            "model_id": f"id-{model}",
            "api_base": "https://api.openai.com",
            "api_provider": "openai",
            "client_ip": "None",
            "user_agent": "None",
        }
        every_scrape(samples, "litellm_deployment_success_responses_total", deployment, requests - 1)
        every_scrape(samples, "litellm_deployment_total_requests_total", deployment, requests - 1 + failed + 1)
        for status, kind, n in (
            ("500", "InternalServerError", failed / 2),
            ("408", "Timeout", failed / 2),
            ("400", "BadRequestError", 1.0),
        ):
            labels = {**deployment, "exception_status": status, "exception_class": f"Openai.{kind}"}
            # The first failure comes long after the first request.
            every_scrape(samples, "litellm_deployment_failure_responses_total", labels, n, first=12)
        answered = {
            **process,
            **caller,
            "end_user": "None",
            "user": "u1",
            "requested_model": model,
            "model": model,
            "model_group": model,
            "model_id": f"id-{model}",
            "api_provider": "openai",
            "service_tier": "None",
        }
        buckets = {"0.5": requests / 2, "1.0": requests - 2, "2.0": requests - 1}
        histogram(samples, "litellm_request_total_latency_metric", answered, buckets, requests - 1)
        histogram(samples, "litellm_llm_api_time_to_first_token_metric", answered, {"0.25": 2.0, "0.5": 4.0}, 5.0)
        every_scrape(samples, "litellm_spend_metric_total", answered, requests * 0.5)
        every_scrape(samples, "litellm_requests_metric_total", answered, requests)
    fallback = {
        "job": "litellm",
        "instance": "proxy-1:4000",
        **caller,
        "requested_model": "gpt-5",
        "fallback_model": "gpt-4.1",
        "exception_status": "500",
        "exception_class": "Openai.InternalServerError",
        "model_id": "None",
    }
    every_scrape(samples, "litellm_deployment_successful_fallbacks_total", fallback, 0.5, first=20)
    ones = [(int(T0.timestamp() * 1000) + 394_000 + 15_000 * k, 1.0) for k in range(15)]
    samples.add("litellm_deployment_successful_fallbacks_total", {**fallback, "requested_model": "gpt-5-mini"}, ones)
    for user in range(40):
        labels = {"job": "litellm", "instance": "proxy-1:4000", "requested_model": "gpt-5-mini", "end_user": f"u{user}"}
        samples.add("litellm_proxy_total_requests_metric_total", {**labels, "status_code": "200"}, ones)


def otel(samples: Samples, base: str, candidate: str, process: str, *, new: bool, unit: str = "_seconds") -> None:
    """As opentelemetry-instrumentation-openai-v2 (deployed) or openlit (new) count, by way of a collector or the SDK's
    exporter."""
    for model, calls in ((base, 20.0), (candidate, 8.0)):
        common = {
            "job": "chat-app",
            "instance": process,
            "gen_ai_operation_name": "chat",
            "gen_ai_request_model": model,
            "server_address": "api.openai.com",
            "server_port": "443",
            "gen_ai_provider_name" if new else "gen_ai_system": "openai",
        }
        # The SDK's exporter writes an empty label where another series of the metric has one; the collector leaves it out.
        fine = {**common, "gen_ai_response_model": f"{model}-2026-05-01"} | ({"error_type": ""} if new else {})
        duration = f"gen_ai_client_operation_duration{unit}"
        histogram(samples, duration, fine, {"0.64": calls / 2, "1.28": calls - 1, "2.56": calls}, calls)
        timeout = "timeout" if new else "APITimeoutError"
        refused = "400" if new else "BadRequestError"
        for kind, n in ((timeout, 1.0), ("503" if new else "InternalServerError", 0.5), (refused, 3.0)):
            histogram(samples, duration, {**common, "error_type": kind}, {"0.64": 0.0, "1.28": 0.0, "2.56": 0.0}, n)
        embedding = {**fine, "gen_ai_operation_name": "embeddings"}
        histogram(samples, duration, embedding, {"0.64": 50.0, "1.28": 50.0, "2.56": 50.0}, 50.0)
        for name in (["client_operation_time_to_first_chunk"] if new else []) + ["server_time_to_first_token"]:
            histogram(samples, f"gen_ai_{name}{unit}", fine, {"0.1": 1.0, "0.25": 3.0}, 4.0)
        if new:
            histogram(samples, "gen_ai_usage_cost_USD", fine, {"0.0": 0.0, "5.0": calls}, calls)


def envoy(samples: Samples) -> None:
    for model, calls in (("gpt-4.1", 20.0), ("gpt-5", 8.0)):
        common = {
            "job": "ai-gateway",
            "instance": "extproc-1:1064",
            "gen_ai_operation_name": "chat",
            "gen_ai_provider_name": "openai",
            "gen_ai_original_model": "chat",
            "gen_ai_request_model": model,
            "gen_ai_response_model": f"{model}-2026-05-01",
            "otel_scope_name": "envoyproxy/ai-gateway",
            "otel_scope_schema_url": "",
            "otel_scope_version": "",
        }
        duration = "gen_ai_server_request_duration_seconds"
        histogram(samples, duration, common, {"0.64": calls / 2, "1.28": calls - 1, "2.56": calls}, calls)
        histogram(samples, duration, {**common, "error_type": "_OTHER"}, {"0.64": 0.5, "1.28": 0.5, "2.56": 0.5}, 0.5)
        histogram(samples, "gen_ai_server_time_to_first_token_seconds", common, {"0.25": 2.0, "0.5": 5.0}, 6.0)
        for kind, tokens in (("input", 800.0), ("output", 120.0)):
            labels = {**common, "gen_ai_token_type": kind}
            every_scrape(samples, "gen_ai_client_token_usage_sum", labels, tokens * calls)


def custom(samples: Samples) -> None:
    for arm in ("blue", "green"):
        labels = {"job": "gw", "instance": "gw-1", "deployment": arm}
        every_scrape(samples, "gw_requests_total", {**labels, "code": "200"}, 9.0)
        every_scrape(samples, "gw_requests_total", {**labels, "code": "500"}, 1.0)
        histogram(samples, "gw_duration_ms", labels, {"500": 5.0, "1000": 8.0}, 10.0)
        samples.add("gw_queue", {**labels}, [(int(T0.timestamp() * 1000) + 600_000, 3.0)])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    samples = Samples()
    every_scrape(samples, "up", {"job": "x", "instance": "x"}, 1.0)
    litellm(samples)
    otel(samples, "gpt-4.1", "gpt-5", "app-1", new=True)
    otel(samples, "old-4.1", "old-5", "app-2", new=False)
    otel(samples, "bare-4.1", "bare-5", "app-3", new=False, unit="")
    envoy(samples)
    custom(samples)
    with filled(tmp_path_factory.mktemp("profiles"), samples) as running:
        yield running


@pytest.fixture
def source(server: PrometheusServer) -> PrometheusSource:
    return PrometheusSource(server.url)


def summed(questions: Sequence[Question], read: TrafficRead) -> dict[str, tuple[float, float]]:
    """What happened in a scrape, on average: candidate and baseline."""
    assert read.traffic is not None, read.failure
    names, beats = columns_of(questions, read.traffic.edges), read.traffic.beats
    return {
        n: (sum(b.candidate[i] for b in beats) / PHASE, sum(b.baseline[i] for b in beats) / PHASE) for i, n in enumerate(names)
    }


def counts(source: PrometheusSource, seen: Scope, *indicators: str) -> dict[str, tuple[float, float]]:
    questions = [question(i) for i in ("requests", *indicators)]
    read = source.traffic(questions, seen, {})
    assert read.traffic is not None, read.failure
    assert read.traffic.problems == {}
    return summed(questions, read)


services = [pytest.mark.services, pytest.mark.timeout(120)]


# --- LiteLLM --------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
class TestLiteLlm:
    pytestmark = services

    def test_errors_and_timeouts_are_those_of_the_models_own_deployments(self, source: PrometheusSource) -> None:
        seen = counts(source, scope("litellm"), "error_ratio", "timeout_ratio")
        # The failures begin with the 12th of 42 scrapes, the phase with the second: 30 of its 40 scrapes have them.
        assert seen["error_ratio:bad"] == (2.0 * 30 / 40, 1.0 * 30 / 40)
        assert seen["error_ratio:total"] == (9 + 2.0 * 30 / 40, 29 + 1.0 * 30 / 40)
        assert seen["timeout_ratio:bad"] == (1.0 * 30 / 40, 0.5 * 30 / 40)

    def test_before_the_first_failure_there_is_none_and_no_problem(self, source: PrometheusSource) -> None:
        seen = counts(source, scope("litellm", at=T0 + timedelta(seconds=61)), "error_ratio", "fallback_success")
        assert seen["error_ratio:bad"] == (0, 0)
        assert seen["error_ratio:total"] == (9 * 3 / 40, 29 * 3 / 40)
        assert seen["fallback_success:total"] == (0, 0)

    def test_availability_is_what_users_got(self, source: PrometheusSource) -> None:
        seen = counts(source, scope("litellm"), "availability")
        assert seen["requests:total"] == (10, 30)
        assert seen["availability:bad"] == (0.5, 0.5)
        assert seen["availability:total"] == (9.75, 29.75)

    def test_latency_first_token_cost_and_fallbacks(self, source: PrometheusSource) -> None:
        seen = counts(source, scope("litellm"), "latency", "ttft", "cost_per_request", "fallback_success")
        assert [seen[f"latency:{i}"] for i in range(4)] == [(5, 15), (8, 28), (9, 29), (9, 29)]
        assert [seen[f"ttft:{i}"] for i in range(3)] == [(2, 2), (4, 4), (5, 5)]
        assert (seen["cost_per_request:amount"], seen["cost_per_request:count"]) == ((5, 15), (10, 30))
        assert (seen["fallback_success:bad"], seen["fallback_success:total"]) == ((0, 0), (0.5 * 22 / 40, 0))

    def test_fallbacks_and_silence_are_measured(self, source: PrometheusSource) -> None:
        gates = (AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p"), Silence())
        measured = source.measure(gates, scope("litellm"))
        fallbacks, silence = measured
        assert isinstance(fallbacks, Sampled) and fallbacks.candidate.total == pytest.approx(0.5 * 22, rel=0.1)
        assert isinstance(silence, Sampled) and silence.baseline is not None
        # Five minutes at ten and thirty a scrape.
        assert (silence.candidate.total, silence.baseline.total) == (pytest.approx(200, rel=0.01), pytest.approx(600, rel=0.01))

    def test_series_that_are_born_with_their_first_event_are_seen(self, source: PrometheusSource) -> None:
        gates = (AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p"), Silence())
        seen = scope("litellm", baseline="gpt-4.1", candidate="gpt-5-mini")
        fallbacks, silence = source.measure(gates, seen)
        # One fallback, and forty requests of forty users: a series each, none of which ever grew.
        assert isinstance(fallbacks, Sampled) and fallbacks.candidate.total == 1.0
        assert isinstance(silence, Sampled) and silence.candidate.total == 40.0


# --- OpenTelemetry --------------------------------------------------------------------------------------------------------------


class TestOpenTelemetry:
    pytestmark = services

    @pytest.mark.parametrize("models", [("gpt-4.1", "gpt-5"), ("old-4.1", "old-5"), ("bare-4.1", "bare-5")])
    def test_new_and_deployed_names_count_the_same(self, source: PrometheusSource, models: tuple[str, str]) -> None:
        seen = counts(source, scope("otel-genai", *models), "error_ratio", "timeout_ratio", "latency", "ttft")
        # Calls of chat models: fine ones, timeouts, failures and requests that were refused for what they are.
        assert seen["requests:total"] == (8 + 4.5, 20 + 4.5)
        assert (seen["error_ratio:bad"], seen["error_ratio:total"]) == ((1.5, 1.5), (9.5, 21.5))
        assert (seen["timeout_ratio:bad"], seen["timeout_ratio:total"]) == ((1, 1), (9.5, 21.5))
        # Answers and timeouts; no fast failures.
        assert [seen[f"latency:{i}"] for i in range(4)] == [(4, 10), (7, 19), (8, 20), (9, 21)]
        # openlit writes the time to the first token under both names; it is counted once.
        assert [seen[f"ttft:{i}"] for i in range(3)] == [(1, 1), (3, 3), (4, 4)]

    def test_the_costs_of_openlit_are_counted(self, source: PrometheusSource) -> None:
        seen = counts(source, scope("otel-genai"), "cost_per_request")
        assert seen["cost_per_request:count"] == (8, 20)
        assert seen["cost_per_request:amount"] == (pytest.approx(8 * 0.7), pytest.approx(20 * 0.7))

    def test_an_exporter_without_costs_is_an_error_and_no_number(self, source: PrometheusSource) -> None:
        questions = [question("requests"), question("cost_per_request")]
        read = source.traffic(questions, scope("otel-genai", "old-4.1", "old-5"), {})
        assert read.traffic is not None
        # openlit's costs of other models are there, so the metric is; nobody's arm has any.
        assert read.traffic.absent["cost_per_request"] == ("candidate", "baseline")

    def test_a_filter_by_another_label_of_the_conventions(self, source: PrometheusSource) -> None:
        questions = [question("requests"), question("error_ratio", server_address="elsewhere")]
        read = source.traffic(questions, scope("otel-genai"), {})
        assert read.traffic is not None
        assert read.traffic.absent["error_ratio"] == ("candidate", "baseline")


# --- Envoy AI Gateway -----------------------------------------------------------------------------------------------------------


class TestEnvoyAiGateway:
    pytestmark = services

    def test_errors_latency_and_first_token(self, source: PrometheusSource) -> None:
        seen = counts(source, scope("envoy-ai-gateway"), "error_ratio", "latency", "ttft")
        assert seen["requests:total"] == (8.5, 20.5)
        assert (seen["error_ratio:bad"], seen["error_ratio:total"]) == ((0.5, 0.5), (8.5, 20.5))
        assert [seen[f"latency:{i}"] for i in range(4)] == [(4, 10), (7, 19), (8, 20), (8, 20)]
        assert [seen[f"ttft:{i}"] for i in range(3)] == [(2, 2), (5, 5), (6, 6)]

    def test_the_cost_that_its_refusal_proposes_to_write_works(self, source: PrometheusSource) -> None:
        promql = {
            "value": 'gen_ai_client_token_usage_sum{$arm,gen_ai_token_type="input"} * 2e-6'
            ' + gen_ai_client_token_usage_sum{$arm,gen_ai_token_type="output"} * 8e-6',
            "weight": "gen_ai_server_request_duration_seconds_count{$arm}",
        }
        proposed = load_profile("envoy-ai-gateway").missing["cost_per_request"]
        assert all(text in proposed for text in promql.values())
        questions = [question("requests"), Question(key="usd", kind=Kind.MEAN, indicator="custom", promql=promql)]
        seen = summed(questions, source.traffic(questions, scope("envoy-ai-gateway"), {}))
        assert seen["usd:amount"] == (pytest.approx(8 * (800 * 2e-6 + 120 * 8e-6)), pytest.approx(20 * (800 * 2e-6 + 120 * 8e-6)))
        assert seen["usd:count"] == (8.5, 20.5)


# --- nothing but one's own ------------------------------------------------------------------------------------------------------

ARMS = {"baseline": {"deployment": "blue"}, "candidate": {"deployment": "green"}}


class TestCustom:
    pytestmark = services

    def test_gates_bring_their_selectors(self, source: PrometheusSource) -> None:
        errors = {"good": 'gw_requests_total{$arm,code="200"}', "total": "gw_requests_total{$arm}"}
        questions = [
            question("requests"),
            Question(key="errors", kind=Kind.RATE, indicator="custom", promql=errors),
            Question(key="slow", kind=Kind.HISTOGRAM, indicator="custom", promql={"buckets": "gw_duration_ms_bucket{$arm}"}),
        ]
        seen = scope("custom", arms=ARMS, requests="gw_requests_total{$arm}")
        read = source.traffic(questions, seen, {})
        assert read.traffic is not None and read.traffic.problems == {}
        found = summed(questions, read)
        assert found["requests:total"] == (10, 10)
        assert (found["errors:bad"], found["errors:total"]) == ((1, 1), (10, 10))
        assert read.traffic.edges == {"slow": (500.0, 1000.0)}

    def test_silence_and_an_event_of_ones_own(self, source: PrometheusSource) -> None:
        seen = scope("custom", arms=ARMS, requests="gw_requests_total{$arm}")
        queue = AtMost(name="q", indicator="custom", times=5, promql={"value": "max(gw_queue{$arm})"})
        both = AtMost(name="q2", indicator="custom", times=5, promql={"value": "gw_queue"})
        none = AtMost(name="q3", indicator="custom", times=5, promql={"value": "gw_nothing"})
        measured = source.measure((Silence(), queue, both, none), seen)
        silence, one, two, nothing = measured
        assert isinstance(silence, Sampled) and silence.candidate.total == pytest.approx(200, rel=0.01)
        assert isinstance(one, Sampled) and one.candidate.total == 3.0
        assert isinstance(two, QueryFailed) and "2 series where one number was expected" in two.reason
        assert isinstance(nothing, NoData)

    def test_without_what_counts_requests_nothing_can_be_measured(self, source: PrometheusSource) -> None:
        seen = source.measure((Silence(),), scope("custom", arms=ARMS))[0]
        assert isinstance(seen, QueryFailed)
        assert "metrics.requests" in seen.reason


# --- the router -----------------------------------------------------------------------------------------------------------------


def test_the_router_shows_every_series_that_its_profile_reads_before_any_request() -> None:
    metrics = RouterMetrics("production")
    side = Variant(model="gpt-4.1", params={}), Variant(model="gpt-5", params={})
    flag = RouteFlag(
        environment="production",
        key="chat-model",
        version=1,
        revision=1,
        killed=False,
        weight=0,
        shadow_weight=0,
        salt="s",
        unit="user",
        control=side[0],
        candidate=side[1],
        decision_id="r.1.advance",
    )
    metrics.prime_flag("chat", flag, lambda model: ["gpt-4.1-mini"])
    shown = [
        (sample.name, sample.labels) for family in metrics.registry.collect() for sample in family.samples if sample.value == 0
    ]
    profile = load_profile("router")
    lacking = []
    for name, indicator in profile.indicators.items():
        for arm in ("candidate", "baseline"):
            wanted = {"environment": "production", "flag": "chat-model", "arm": arm}
            for term in (t for terms in indicator.parts.values() for t in terms):
                fits = [labels for metric, labels in shown if metric == term.metric and wanted.items() <= labels.items()]
                if not fits or not all(term.labels <= labels.keys() for labels in fits):
                    lacking.append((name, arm, term.metric))
    assert lacking == []


# --- the files ------------------------------------------------------------------------------------------------------------------

PROFILES = ("router", "otel-genai", "litellm", "envoy-ai-gateway", "custom")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_has_each_indicator_or_says_what_to_write_instead(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.indicators.keys() | profile.missing.keys() == INDICATORS
    assert all("custom with promql" in text or "metrics.requests" in text for text in profile.missing.values())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = 'x'", "not a profile"),
        ("name = 'x'\narm = '$nobody'", "a placeholder other than"),
        ("name = 'x'\narm = 'm=\"$model\"'", "each indicator is either there or among the missing ones"),
        ("name = 'x'\narm = ''\n[indicators.latency]\ntotal = 'a{$arm}'", "is no set of parts of a histogram"),
        ("name = 'x'\narm = ''\n[indicators.requests]\ntotal = 'sum(a{$arm})'", "is not a selector of counters"),
        ("name = 'x'\narm = ''\n[indicators.latency]\nunit = 'h'\nbuckets = 'a{$arm}'", "not a profile"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ProfileError, match=reason):
        parse_profile(text, "x")


# --- before a plan is started ---------------------------------------------------------------------------------------------------


FALLBACK = {"name": "fallback", "indicator": "fallbacks", "at_least": 1, "by_phase": "canary"}


def plan(events: Sequence[Mapping[str, object]] = (FALLBACK,), **metrics: object) -> Plan:
    spec = {
        "metadata": {"name": "chat-gpt-5"},
        "flag": "chat-model",
        "baseline": {"model": "gpt-4.1"},
        "candidate": {"model": "gpt-5"},
        "metrics": metrics,
        "slos": [
            {"name": "errors", "indicator": "error_ratio", "max": "1%"},
            {"name": "first-token", "indicator": "ttft", "quantile": 0.95, "max": "1.2s"},
        ],
        "comparisons": [{"name": "slower", "indicator": "ttft", "quantile": 0.5, "max_increase": "10%"}],
        "events": list(events),
        "phases": [{"name": "canary", "traffic": "5%", "bake": "1h"}, {"name": "full", "traffic": "100%", "bake": "1h"}],
    }
    return RolloutSpec.model_validate(spec).to_plan()


class TestMissing:
    pytestmark = services
    AT = T0 + timedelta(minutes=10)

    def test_nothing_is_missing_where_the_exporter_is_scraped(self, source: PrometheusSource) -> None:
        assert source.missing(plan(profile="litellm"), self.AT) == ()

    def test_each_metric_that_nobody_exports_is_named_with_the_gates_that_need_it(self, source: PrometheusSource) -> None:
        found = {m.text.split(" in Prometheus")[0]: m.gates for m in source.missing(plan(profile="router"), self.AT)}
        assert found == {
            "there is no series of penstock_requests_total": ("errors",),
            "there is no series of penstock_ttft_seconds_bucket": ("first-token", "slower"),
            "there is no series of penstock_fallbacks_total": ("fallback",),
        }

    def test_an_indicator_that_the_exporter_lacks_is_named(self, source: PrometheusSource) -> None:
        (found,) = source.missing(plan(profile="envoy-ai-gateway"), self.AT)
        assert found.gates == ("fallback",)
        assert "has no fallbacks: the gateway counts no fallbacks" in found.text

    def test_labels_that_no_series_has_are_named(self, source: PrometheusSource) -> None:
        arms = {"baseline": {"lane": "a"}, "candidate": {"lane": "b"}}
        texts = [m.text for m in source.missing(plan(profile="litellm", arms=arms), self.AT)]
        assert any("no series of litellm_proxy_total_requests_metric_total has the labels lane" in t for t in texts)

    def test_a_baseline_that_does_not_report_is_named(self, source: PrometheusSource) -> None:
        arms = {"baseline": {"requested_model": "gpt-4o"}, "candidate": {"requested_model": "gpt-5"}}
        found = source.missing(plan(profile="litellm", arms=arms), self.AT)
        assert {m.text.split(" (")[0] for m in found} == {"the baseline has no series"}

    def test_a_query_of_ones_own_that_cannot_be_answered_is_named(self, source: PrometheusSource) -> None:
        events = [
            {"name": "odd", "indicator": "custom", "at_most": 1, "promql": {"value": "sum("}},
            {"name": "two", "indicator": "custom", "at_most": 1, "promql": {"value": "gw_queue"}},
            {"name": "none", "indicator": "custom", "at_most": 1, "promql": {"value": "gw_nothing"}},
        ]
        found = source.missing(plan(events, profile="litellm"), self.AT)
        assert [m.gates for m in found] == [("odd",), ("two",)]
        assert "parse error" in found[0].text and "2 series where one number was expected" in found[1].text

    def test_a_prometheus_that_cannot_be_asked_is_said_so(self, server: PrometheusServer) -> None:
        with pytest.raises(Unavailable, match="HTTP status 404"):
            PrometheusSource(f"{server.url}/other").missing(plan(profile="litellm"), self.AT)


@pytest.mark.parametrize("name", ["router", "otel-genai", "litellm", "envoy-ai-gateway"])
def test_every_gate_of_a_profile_can_be_read_in_prometheus(name: str) -> None:
    profile = load_profile(name)
    gates: tuple[Gate, ...] = (
        RateLimit(name="errors", indicator="error_ratio", limit=0.01),
        RateLimit(name="available", indicator="availability", limit=0.01),
        QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=3.0),
        MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.1),
        AtMost(name="quiet", indicator="firing_alerts", times=0, where={"severity": "sev1"}),
    )
    plan = replace(DECIDED, profile=name, gates=gates)
    for gate in gates:
        question = question_of(gate)
        if question is not None and question.indicator in profile.missing:
            with pytest.raises(NotAskable, match="has no"):
                queries(plan, gate, profile, timedelta(hours=1), T0)
            continue
        found = queries(plan, gate, profile, timedelta(hours=1), T0)
        assert set(found) == ({"candidate"} if question is None else {"candidate", "baseline"})
        assert "$" not in "".join(found.values()) and ("[3600s]" in found["candidate"]) == (question is not None)
