"""Spans as a collector receives them, decoded from what was on the wire; and that no collector ever touches a request."""

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider

from bench.otlp import Received, Receiver, serve_otlp
from router import logs
from router.client import AsyncRouter
from router.collector import wanted
from tests.router.harness import (
    DONE,
    Router,
    Upstream,
    chunk,
    config,
    cut,
    events,
    eventually,
    flag,
    put,
    serve_router,
    status,
)
from tests.router.test_redact import FAULTS, SECRETS, TEXT

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def otlp() -> AsyncIterator[Receiver]:
    async with serve_otlp() as served:
        yield served


@pytest.fixture(autouse=True)
def own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a router that serves writes to stderr."""
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    before = structlog.get_config()
    logs.configure("info")
    structlog.configure(cache_logger_on_first_use=False)
    yield written
    structlog.configure(**before)


def said(lines: io.StringIO) -> list[str]:
    return [json.loads(line)["event"] for line in lines.getvalue().splitlines() if line.startswith("{")]


@asynccontextmanager
async def traced(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, env: dict[str, str] | None = None, **changes: Any
) -> AsyncIterator[Router]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.url)
    for name, value in (env or {}).items():
        monkeypatch.setenv(name, value)
    async with serve_router(config(upstream.url, **changes), environ=dict(os.environ)) as router:
        yield router


async def received(otlp: Receiver, count: int) -> list[Received]:
    await eventually(lambda: len(otlp.spans) >= count)
    return otlp.spans


def names_of(span: Received) -> list[str]:
    return [name for name, _ in span.events]


async def test_a_request_is_a_server_span_and_its_attempt_a_client_span_below_it(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(upstream, otlp, monkeypatch) as router:
        put(router, flag(0, decision_id="d-7", revision=3))
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "user": "u-1", "temperature": 0.5}
        headers = {"traceparent": PARENT, "tracestate": "vendor=1", "baggage": "tenant=acme"}
        async with await router.post(body, **headers) as response:
            assert response.status == 200
        await received(otlp, 2)
    (server,), (client,) = otlp.of("SERVER"), otlp.of("CLIENT")
    assert (server.name, server.parent, server.trace) == ("chat chat", "b7ad6b7169203331", "0af7651916cd43dd8448eb211c80319c")
    assert (client.name, client.parent, client.trace) == ("chat old", server.span, server.trace)
    assert server.start_ns <= client.start_ns <= client.end_ns <= server.end_ns
    assert server.resource["service.name"] == "penstock-router"
    own = {"model_name": "old", "tokens_in": 1000, "tokens_out": 200, "fallback_used": False}
    assert own.items() <= server.attributes.items() and own.items() <= client.attributes.items()
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["penstock.flag_revision"] == 3 and server.attributes["penstock.decision_id"] == "d-7"
    assert server.attributes["penstock.arm"] == "baseline"
    assert client.attributes["gen_ai.system"] == "p" and "gen_ai.provider.name" not in client.attributes
    said = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "old", "gen_ai.response.model": "old", "gen_ai.response.id": "c-1",
        "gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 200, "gen_ai.request.temperature": 0.5,
        "gen_ai.response.finish_reasons": ["stop"], "server.address": "127.0.0.1",
    }  # fmt: skip
    assert said.items() <= client.attributes.items()
    evaluation = dict(server.events)["feature_flag.evaluation"]
    assert evaluation["feature_flag.key"] == "chat-model" and evaluation["feature_flag.result.variant"] == "baseline"
    upstream_headers = upstream.calls[0].headers
    assert upstream_headers["traceparent"] == f"00-{client.trace}-{client.span}-01"
    assert upstream_headers["tracestate"] == "vendor=1" and upstream_headers["baggage"] == "tenant=acme"
    assert "Hi" not in str(server) + str(client) and "u-1" not in str(server) + str(client)


async def test_a_stream_has_its_first_token_and_finish_reason(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt_in = {"OTEL_SEMCONV_STABILITY_OPT_IN": "http, gen_ai_latest_experimental"}
    async with traced(upstream, otlp, monkeypatch, opt_in) as router:
        await router.ask(stream=True)
        await received(otlp, 2)
    (server,), (client,) = otlp.of("SERVER"), otlp.of("CLIENT")
    assert client.attributes["gen_ai.provider.name"] == "p" and "gen_ai.system" not in client.attributes
    assert 0 < client.attributes["ttft_ms"] <= server.attributes["ttft_ms"]
    assert client.attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx(
        client.attributes["ttft_ms"] / 1000, abs=1e-5
    )
    assert client.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert "penstock.first_token" in names_of(client) and "penstock.first_token" in names_of(server)


async def test_a_fallback_is_a_second_client_span_and_an_event(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.script = {"old": status(503)}
    async with traced(upstream, otlp, monkeypatch) as router:
        put(router, flag(0))
        assert (await router.ask()).status == 200
        await received(otlp, 3)
    (server,), (first, second) = otlp.of("SERVER"), sorted(otlp.of("CLIENT"), key=lambda span: span.start_ns)
    assert first.attributes["error.type"] == "503" and first.status == "ERROR" and first.said == "status 503"
    assert second.attributes["fallback_used"] and second.attributes["model_name"] == "spare" and second.status == "UNSET"
    assert server.attributes["fallback_used"] and server.attributes["model_name"] == "spare" and server.status == "UNSET"
    assert ("penstock.fallback", {"model_name": "spare"}) in server.events
    assert first.parent == second.parent == server.span


async def test_an_open_breaker_is_an_event_and_no_client_span(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.script = {"old": status(503)}
    breaker = {"failure_ratio": "50%", "min_requests": 1}
    models = [{"name": name, "provider": "p", "breaker": breaker} for name in ("old", "new", "spare")]
    async with traced(upstream, otlp, monkeypatch, models=models) as router:
        await router.ask()
        await router.ask()
        await received(otlp, 5)
    before, after = sorted(otlp.of("SERVER"), key=lambda span: span.start_ns)
    assert ("penstock.breaker_opened", {"model_name": "old"}) in before.events
    assert ("penstock.breaker_open", {"model_name": "old", "penstock.reason": "breaker"}) in after.events
    assert [span.attributes["model_name"] for span in otlp.of("CLIENT") if span.parent == after.span] == ["spare"]


async def test_a_mirrored_copy_is_a_trace_of_its_own_linked_to_the_users(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.script = {"new": upstream.hang}
    slow = [
        {"name": name, "provider": "p", "timeout": {"request": "300ms", "stream": "300ms"}} for name in ("old", "new", "spare")
    ]
    async with traced(upstream, otlp, monkeypatch, models=slow) as router:
        put(router, flag(0, shadow_weight=100_000))
        await router.ask()
        await received(otlp, 3)
    (server,) = otlp.of("SERVER")
    (copy,) = [span for span in otlp.of("CLIENT") if span.attributes["model_name"] == "new"]
    assert copy.parent == "" and copy.trace != server.trace and copy.links == [(server.trace, server.span)]
    assert copy.attributes["penstock.arm"] == "shadow" and copy.attributes["error.type"] == "timeout"
    assert server.attributes["model_name"] == "old" and server.status == "UNSET"
    assert server.end_ns < copy.end_ns


async def test_a_stream_that_breaks_is_an_error_of_both(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.script = {"old": cut(chunk("old", {"content": "Hal"}))}
    async with traced(upstream, otlp, monkeypatch) as router:
        await router.ask(stream=True)
        await received(otlp, 2)
    assert {span.status for span in otlp.spans} == {"ERROR"}
    assert {span.attributes["error.type"] for span in otlp.spans} == {"error"}


async def test_names_that_clients_invent_enter_no_span(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(upstream, otlp, monkeypatch) as router:
        assert (await router.ask("x-invented")).status == 404
        async with await router.post({"model": "chat"}) as response:
            assert response.status == 400
        await received(otlp, 2)
    assert {span.name for span in otlp.spans} == {"chat"} and "invented" not in str(otlp.spans)
    assert sorted(span.attributes["http.response.status_code"] for span in otlp.spans) == [400, 404]


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
async def test_headers_compression_and_resource_come_from_the_standard_variables(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret", "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
        "OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "team=blue,deployment.environment.name=there",
    }  # fmt: skip
    async with traced(upstream, otlp, monkeypatch, env) as router:
        await router.ask()
        await received(otlp, 2)
    assert otlp.headers[0]["x-key"] == "secret" and otlp.headers[0]["content-type"] == "application/x-protobuf"
    assert otlp.headers[0].get("content-encoding", "none") == compression
    wished = {"service.name": "mine", "team": "blue", "deployment.environment.name": "there"}
    assert wished.items() <= otlp.spans[0].resource.items()


async def test_what_is_not_sampled_is_not_sent_but_its_id_goes_on(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(upstream, otlp, monkeypatch, telemetry={"sample": "0%"}) as router:
        await router.ask()
        async with await router.post({"model": "chat", "messages": []}, traceparent=PARENT) as response:
            assert response.status == 200
        await received(otlp, 2)
        await asyncio.sleep(0.1)
    assert {span.trace for span in otlp.spans} == {"0af7651916cd43dd8448eb211c80319c"}
    assert upstream.calls[0].headers["traceparent"][-2:] in ("00", "02")  # not sampled; the 2 says that the id is random


@pytest.mark.parametrize("trouble", ["dead", "hangs", "400", "503"])
async def test_a_collector_in_trouble_touches_no_request_is_said_once_and_counted(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, lines: io.StringIO, trouble: str
) -> None:
    otlp.hangs, otlp.status = trouble == "hangs", int(trouble) if trouble.isdigit() else 200
    env = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.3", "OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
    if trouble == "dead":
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    async with traced(upstream, otlp, monkeypatch, env, telemetry={"flush": "500ms"}) as router:
        for _ in range(12):
            assert (await router.ask()).status == 200
        await eventually(lambda: (router.metric("penstock_spans_total", outcome="failed") or 0) > 4)
        gone = sum(router.metric("penstock_spans_total", outcome=fate) or 0 for fate in ("failed", "dropped"))
        assert router.metric("penstock_spans_total", outcome="exported") == 0 and gone <= 24
    assert said(lines).count("telemetry_export_failed") == 1
    assert all(line.startswith("{") for line in lines.getvalue().splitlines()), "the SDK's own lines stay out"


async def test_a_collector_that_comes_back_is_said_once(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, lines: io.StringIO
) -> None:
    otlp.status = 400
    async with traced(upstream, otlp, monkeypatch) as router:
        await router.ask()
        await eventually(lambda: router.metric("penstock_spans_total", outcome="failed") == 2)
        otlp.status = 200
        await router.ask()
        await router.ask()
        await eventually(lambda: router.metric("penstock_spans_total", outcome="exported") == 4)
    assert [event for event in said(lines) if event.startswith("telemetry_export")] == [
        "telemetry_export_failed", "telemetry_export_back",
    ]  # fmt: skip


async def test_what_waits_at_shutdown_is_sent(upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced(upstream, otlp, monkeypatch, {"OTEL_BSP_SCHEDULE_DELAY": "60000"}) as router:
        await router.ask()
        assert otlp.spans == []
    assert len(otlp.spans) == 2


async def test_a_collector_that_hangs_delays_the_end_by_no_more_than_was_allowed(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, lines: io.StringIO
) -> None:
    otlp.hangs = True
    async with asyncio.timeout(20):  # the SDK alone would wait for 30 s
        async with traced(
            upstream, otlp, monkeypatch, {"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}, telemetry={"flush": "100ms"}
        ) as router:
            await router.ask()
    assert "telemetry_lost" in said(lines)


async def test_a_client_that_leaves_is_cancelled_and_no_error(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.script = {"old": upstream.hang_after(chunk("old", {"content": "Hal"}))}
    async with traced(upstream, otlp, monkeypatch) as router:
        response = await router.post({"model": "chat", "messages": [], "stream": True})
        await response.content.readany()
        response.close()
        await received(otlp, 2)
    assert {span.attributes["error.type"] for span in otlp.spans} == {"cancelled"}
    assert {span.status for span in otlp.spans} == {"UNSET"}


async def test_in_the_applications_own_process_spans_stand_below_the_applications(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.url)
    application = TracerProvider().get_tracer("application")
    async with AsyncRouter(config(upstream.url), environ=dict(os.environ)) as router:
        with application.start_as_current_span("turn") as turn:
            await router.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Hi"}])
        await received(otlp, 2)
    (server,) = otlp.of("SERVER")
    context = turn.get_span_context()
    assert (server.trace, server.parent) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


async def test_lines_of_a_request_lead_to_its_trace(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, lines: io.StringIO
) -> None:
    async with traced(upstream, otlp, monkeypatch, log_requests=True) as router:
        await router.ask()
        await received(otlp, 2)
    (line,) = [each for each in map(json.loads, lines.getvalue().splitlines()) if each["event"] == "attempt"]
    (server,) = otlp.of("SERVER")
    assert (line["trace_id"], line["span_id"]) == (server.trace, server.span)


CAPTURE = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
LATEST = {"OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental"}


@pytest.mark.parametrize(("env", "spec"), [(CAPTURE, False), ({}, True)])
async def test_canaries_never_come_out_in_spans(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], spec: bool
) -> None:
    """Secrets in the prompt, the unit, the key, headers and the providers' own errors; content asked for by one side only."""
    async with traced(upstream, otlp, monkeypatch, env, telemetry={"capture_content": spec}) as router:
        put(router, flag(100_000, shadow_weight=0))
        for fault in FAULTS:
            upstream.script = dict.fromkeys(("old", "new", "spare"), fault)
            for stream in (False, True):
                messages = [{"role": "user", "content": TEXT}]
                body = {"model": "chat", "messages": messages, "stream": stream, "user": TEXT, "stop": [TEXT], "seed": TEXT}
                headers = {"authorization": f"Bearer {SECRETS[3]}", "x_penstock_unit": SECRETS[0], "x_request_id": "415-555-2671"}
                async with await router.post(body, **headers) as response:
                    await response.read()
        upstream.script = {"new": events(chunk("new", {"content": TEXT}), chunk("new", {}, "stop"), DONE)}
        async with await router.post({**body, "stream": True}) as response:
            assert response.status == 200
            await response.read()
    assert len(otlp.of("SERVER")) == 2 * len(FAULTS) + 1
    sent = b"".join(otlp.raw)
    assert b"gen_ai.usage.input_tokens" in sent
    for secret in (*SECRETS, "415-555-2671"):
        assert secret.encode() not in sent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("latest", [False, True])
async def test_content_that_both_sides_ask_for_is_redacted(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, stream: bool, latest: bool
) -> None:
    env = {**CAPTURE, **(LATEST if latest else {})}
    async with traced(upstream, otlp, monkeypatch, env, telemetry={"capture_content": True}) as router:
        body = {"model": "chat", "messages": [{"role": "user", "content": "I am ann@example.com"}], "stream": stream}
        async with await router.post(body) as response:
            await response.read()
        await received(otlp, 2)
    (client,) = otlp.of("CLIENT")
    if latest:
        asked, got = client.attributes["gen_ai.input.messages"], client.attributes["gen_ai.output.messages"]
    else:
        shown = dict(client.events)
        asked, got = shown["gen_ai.content.prompt"]["gen_ai.prompt"], shown["gen_ai.content.completion"]["gen_ai.completion"]
    assert json.loads(asked) == [{"role": "user", "parts": [{"type": "text", "content": "I am [email]"}]}]
    assert json.loads(got)[0]["parts"] == [{"type": "text", "content": "Hello"}]


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin'"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4318'"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc'"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "some"}, "OTEL_TRACES_SAMPLER: 'some'"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG: '2'",
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "OTEL_BSP_MAX_QUEUE_SIZE: 'many'"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_before_the_first_request(env: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError) as raised:
        wanted(config("http://127.0.0.1:1/v1"), env)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("env", "telemetry", "on"),
    [
        ({}, {}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {"traces": False}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, {}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, {}, False),
        ({}, {"endpoint": "http://c:4318"}, True),
        ({}, {"traces": True}, True),
    ],
)
def test_when_spans_are_made(env: dict[str, str], telemetry: dict[str, Any], on: bool) -> None:
    assert (wanted(config("http://127.0.0.1:1/v1", telemetry=telemetry), env) is not None) == on


async def test_without_tracing_a_clients_trace_goes_on_as_it_came(router: Router, upstream: Upstream) -> None:
    body = {"model": "chat", "messages": []}
    async with await router.post(body, traceparent=PARENT, tracestate="v=1", baggage="a=b"):
        pass
    async with await router.post(body, traceparent="00-nonsense", tracestate="v=1"):
        pass
    sound, broken = (call.headers for call in upstream.calls)
    assert (sound["traceparent"], sound["tracestate"], sound["baggage"]) == (PARENT, "v=1", "a=b")
    assert "traceparent" not in broken and "tracestate" not in broken
