"""The other endpoints, as the openai SDK calls them: responses, embeddings, and what both share with chat."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from aiohttp import web

from bench.behaviour import Errors, Latency, ModelBehaviour, OutputTokens
from bench.provider import Provider, running_provider
from tests.router.harness import (
    Handler,
    Router,
    Upstream,
    config,
    cut,
    disconnect,
    events,
    eventually,
    flag,
    put,
    serve_router,
    serve_upstream,
    serve_web,
    status,
)  # fmt: skip

QUICK = ModelBehaviour(ttft=Latency(median_s=0.001, sigma=0), tokens_per_s=1e6, output_tokens=OutputTokens(median=40, sigma=0))
RESPONSES = "/v1/responses"


# -- the provider simulator and the real SDK ----------------------------------------------------------------------------------


@pytest.fixture
async def simulated() -> AsyncIterator[tuple[Router, Provider, openai.AsyncOpenAI]]:
    provider = Provider(dict.fromkeys(("old", "new", "spare"), QUICK))
    async with (
        running_provider(provider) as url,
        serve_router(config(f"{url}/v1")) as router,
        openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client,
    ):
        yield router, provider, client


async def test_a_response_arrives_whole_and_is_booked(simulated: tuple[Router, Provider, openai.AsyncOpenAI]) -> None:
    router, _, client = simulated
    got = await client.responses.create(model="chat", input="Hello, how much water is it?")
    assert (got.status, got.model, len(got.output_text.split())) == ("completed", "old", 40)
    assert got.usage is not None
    assert router.metric("mcp_tokens_total", model="old", direction="output") == got.usage.output_tokens == 40
    assert router.metric("mcp_tokens_total", model="old", direction="input") == got.usage.input_tokens
    assert router.arm("penstock_requests_total", outcome="ok") == 1
    assert router.metric("mcp_request_duration_seconds_count", model="old", provider="p", tool="responses") == 1


async def test_a_response_streams_and_its_last_event_is_the_whole_of_it(
    simulated: tuple[Router, Provider, openai.AsyncOpenAI],
) -> None:
    router, _, client = simulated
    seen = [event async for event in await client.responses.create(model="chat", input="Hi", stream=True)]
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    last = seen[-1]
    assert last.type == "response.completed" and last.response.output_text == text
    assert seen[0].type == "response.created"
    assert router.arm("penstock_requests_total", streaming=True, outcome="ok") == 1
    assert router.arm("penstock_ttft_seconds_count", streaming=True) == 1
    assert router.metric("mcp_tokens_total", model="old", direction="output") == 40


async def test_a_tool_call_is_the_first_token_too(simulated: tuple[Router, Provider, openai.AsyncOpenAI]) -> None:
    router, _, client = simulated
    tools: Any = [{"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}]
    seen = [event async for event in await client.responses.create(model="chat", input="Hi", stream=True, tools=tools)]
    assert "response.function_call_arguments.delta" in {event.type for event in seen}
    whole = await client.responses.create(model="chat", input="Hi", tools=tools)
    assert whole.output[0].type == "function_call"
    assert router.arm("penstock_ttft_seconds_count", streaming=True) == 1


async def test_a_response_cut_short_by_its_limit_is_whole_all_the_same(
    simulated: tuple[Router, Provider, openai.AsyncOpenAI],
) -> None:
    router, _, client = simulated
    got = await client.responses.create(model="chat", input="Hi", max_output_tokens=5)
    seen = [event async for event in await client.responses.create(model="chat", input="Hi", max_output_tokens=5, stream=True)]
    assert (got.status, seen[-1].type) == ("incomplete", "response.incomplete")
    assert router.arm("penstock_requests_total", outcome="ok") == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["server_error", "rate_limited", "reset", "garbage"])
async def test_the_next_model_answers_a_response_when_the_first_fails(
    simulated: tuple[Router, Provider, openai.AsyncOpenAI], stream: bool, fault: str
) -> None:
    router, provider, client = simulated
    provider.models["old"].change({"errors": {fault: 1.0}})
    if stream:
        seen = [event async for event in await client.responses.create(model="chat", input="Hi", stream=True)]
        assert seen[-1].type == "response.completed" and seen[-1].response.model == "spare"
    else:
        assert (await client.responses.create(model="chat", input="Hi")).model == "spare"
    outcome = "rate_limited" if fault == "rate_limited" else "error"
    assert router.arm("penstock_requests_total", streaming=stream, outcome=outcome) == 1


async def test_a_response_that_breaks_off_raises_in_the_sdk(simulated: tuple[Router, Provider, openai.AsyncOpenAI]) -> None:
    router, provider, client = simulated
    provider.models["old"].change({"errors": {"cut": 1.0}})
    seen = []
    with pytest.raises(openai.APIError, match="broke off"):
        async for event in await client.responses.create(model="chat", input="Hi", stream=True):
            seen.append(event.type)
    assert "response.output_text.delta" in seen and "response.completed" not in seen
    assert router.arm("penstock_unavailable_total", streaming=True) == 1


async def test_a_response_is_mirrored(simulated: tuple[Router, Provider, openai.AsyncOpenAI]) -> None:
    router, _, client = simulated
    put(router, flag(0, shadow_weight=100_000, salt="s"))
    await client.responses.create(model="chat", input="Hi", user="u")
    await client.embeddings.create(model="chat", input="Hi", user="u")
    mirrored = {"flag": "chat-model", "route": "chat", "arm": "shadow", "model": "new", "outcome": "mirrored"}
    await eventually(lambda: router.metric("penstock_shadow_total", **mirrored) == 2)


async def test_embeddings_arrive_and_are_booked(simulated: tuple[Router, Provider, openai.AsyncOpenAI]) -> None:
    router, _, client = simulated
    got = await client.embeddings.create(model="chat", input=["one", "two"], dimensions=8)
    assert [len(row.embedding) for row in got.data] == [8, 8]
    assert router.metric("mcp_tokens_total", model="old", direction="input") == got.usage.prompt_tokens
    assert router.arm("penstock_requests_total", outcome="ok") == 1
    assert router.metric("mcp_request_duration_seconds_count", model="old", provider="p", tool="embeddings") == 1


# -- what goes wrong on the wire ------------------------------------------------------------------------------------------------


def typed(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 1, **fields})}\n\n".encode()


CREATED = typed("response.created", response={"status": "in_progress"})
DELTA = typed("response.output_text.delta", delta="Hal")
COMPLETED = typed("response.completed", response={"status": "completed", "usage": {"input_tokens": 7, "output_tokens": 2}})
FAILED = typed("response.failed", response={"status": "failed", "error": {"code": "server_error", "message": "secret prompt"}})
ERROR = typed("error", code="overloaded", message="secret prompt", param=None)


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Router, Upstream]]:
    upstream = Upstream()
    app = web.Application()
    for path in (RESPONSES, "/v1/embeddings"):
        app.router.add_post(path, upstream.handle)
    async with serve_web(app) as base:
        upstream.url = f"{base}/v1"
        async with serve_router(config(upstream.url)) as router:
            yield router, upstream


async def ask(router: Router, path: str, **fields: Any) -> tuple[int, str]:
    body = {"model": "chat", "input": "Hi", **fields}
    async with router.http.post(f"{router.url}{path}", json=body) as response:
        assert response.headers["x-request-id"]
        return response.status, await response.text()


@pytest.mark.parametrize(
    "fault",
    [
        status(200, "<html>"), status(200, "{}"), status(200, '{"output": [], "status": "failed"}'),
        status(200, '{"output": [], "status": "queued"}'), status(200, '{"error": {"code": "x"}}'), status(503), disconnect,
    ],
)  # fmt: skip
async def test_what_is_no_response_is_a_failure(scripted: tuple[Router, Upstream], fault: Handler) -> None:
    router, upstream = scripted
    upstream.script = {"old": fault, "spare": status(200, '{"output": [], "status": "completed"}')}
    code, text = await ask(router, RESPONSES)
    assert (code, json.loads(text)["model"]) == (200, "spare"), "and where the provider names no model, the router does"
    assert router.arm("penstock_requests_total", outcome="error") == 1


@pytest.mark.parametrize(
    "fault", [events(), events(CREATED), cut(CREATED), events(CREATED, FAILED), events(ERROR), events(b"data: {\n\n"), events(b"data: {}\n\n")]
)  # fmt: skip
async def test_a_response_stream_that_fails_before_its_first_token_is_answered_by_the_next(
    scripted: tuple[Router, Upstream], fault: Handler
) -> None:
    router, upstream = scripted
    upstream.script = {"old": fault, "spare": events(CREATED, DELTA, COMPLETED)}
    code, text = await ask(router, RESPONSES, stream=True)
    assert (code, text.encode()) == (200, CREATED + DELTA + COMPLETED)
    assert router.metric("mcp_tokens_total", model="spare", direction="input") == 7


@pytest.mark.parametrize(
    "fault", [events(CREATED, DELTA), cut(DELTA), events(DELTA, FAILED), events(DELTA, ERROR), events(DELTA, b"data: 5\n\n")]
)
async def test_a_response_stream_that_breaks_ends_in_an_error_and_never_in_completed(
    scripted: tuple[Router, Upstream], fault: Handler
) -> None:
    router, upstream = scripted
    upstream.script["old"] = fault
    _, text = await ask(router, RESPONSES, stream=True)
    last = text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n") and json.loads(last.split("data: ")[1])["code"] == "stream_error"
    assert "event: response.completed" not in text and "secret prompt" not in text
    assert upstream.models() == ["old"]


async def test_a_last_event_without_its_blank_line_counts(scripted: tuple[Router, Upstream]) -> None:
    router, upstream = scripted
    upstream.script["old"] = events(DELTA, COMPLETED.rstrip())
    assert (await ask(router, RESPONSES, stream=True))[1].encode() == DELTA + COMPLETED


async def test_unknown_fields_of_a_response_pass_untouched(scripted: tuple[Router, Upstream]) -> None:
    router, upstream = scripted
    upstream.script["old"] = events(DELTA, COMPLETED)
    await ask(
        router,
        RESPONSES,
        stream=True,
        previous_response_id="resp_1",
        store=False,
        include=["x"],
        text={"format": {"type": "text"}},
    )
    assert upstream.calls[0].body == {
        "model": "old", "input": "Hi", "stream": True, "previous_response_id": "resp_1", "store": False, "include": ["x"],
        "text": {"format": {"type": "text"}},
    }  # fmt: skip


async def test_no_other_model_ever_answers_for_vectors(scripted: tuple[Router, Upstream]) -> None:
    router, upstream = scripted
    upstream.script["old"] = status(500)
    code, text = await ask(router, "/v1/embeddings")
    assert (code, json.loads(text)["error"]["code"], upstream.models()) == (502, "upstream_error", ["old"])


@pytest.mark.parametrize("body", ['{"data": []}', '{"data": [{"embedding": []}]}', "[]", '{"error": {"code": "x"}}'])
async def test_what_is_no_embedding_is_a_failure(scripted: tuple[Router, Upstream], body: str) -> None:
    router, upstream = scripted
    upstream.script["old"] = status(200, body)
    assert (await ask(router, "/v1/embeddings"))[0] == 502


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (RESPONSES, {"model": None}, "model"),
        (RESPONSES, {"input": 5}, "input"),
        (RESPONSES, {"max_output_tokens": 0}, "max_output_tokens"),
        (RESPONSES, {"background": True}, "background"),
        (RESPONSES, {"stream": "yes"}, "stream"),
        ("/v1/embeddings", {"input": None}, "input"),
        ("/v1/embeddings", {"input": {"a": 1}}, "input"),
    ],
)
async def test_refuses_what_is_no_request_in_openais_shape(
    scripted: tuple[Router, Upstream], path: str, change: dict[str, Any], param: str
) -> None:
    router, upstream = scripted
    code, text = await ask(router, path, **change)
    assert (code, json.loads(text)["error"]["param"], upstream.calls) == (400, param, [])


async def test_a_cap_limits_a_response_in_its_own_spelling() -> None:
    upstream = Upstream()
    app = web.Application()
    app.router.add_post(RESPONSES, upstream.handle)
    async with serve_web(app) as base, serve_router(config(f"{base}/v1", caps={"output_tokens": 64})) as router:
        upstream.script["old"] = events(DELTA, COMPLETED)
        await ask(router, RESPONSES, stream=True)
    assert upstream.calls[0].body["max_output_tokens"] == 64 and "max_completion_tokens" not in upstream.calls[0].body


async def test_a_provider_without_the_endpoint_is_passed_over() -> None:
    async with serve_upstream() as upstream:
        providers = [{"name": "p", "base_url": upstream.url, "endpoints": ["chat"]}]
        async with serve_router(config(upstream.url, providers=providers)) as router:
            code, text = await ask(router, RESPONSES)
            assert (code, json.loads(text)["error"]["code"], upstream.calls) == (400, "unsupported", [])


def test_the_simulators_faults_are_used() -> None:
    assert {"server_error", "rate_limited", "reset", "garbage", "cut"} <= set(Errors.__dataclass_fields__)
