"""What happens when a model fails: before the first token another answers, after it the client is told the truth."""

import asyncio
import json
import socket
from typing import Any

import openai
import pytest
from aiohttp import web

from flagspec import Variant
from tests.router.harness import (
    DONE,
    Handler,
    Router,
    Upstream,
    answer,
    chunk,
    config,
    cut,
    disconnect,
    events,
    eventually,
    flag,
    put,
    serve_router,
    status,
    usage_chunk,
)

ROLE = chunk("new", {"role": "assistant", "content": ""})
WORD = chunk("new", {"content": "Hal"})
STOP = chunk("new", {}, "stop")
ERROR_EVENT = b'data: {"error": {"message": "secret prompt", "code": "overloaded"}}\n\n'
ERROR_IN_200 = status(200, '{"error": {"message": "x", "code": "overloaded"}}')

JSON_FAULTS: list[tuple[Handler, str]] = [
    (status(500), "error"),
    (status(503), "error"),
    (status(429), "rate_limited"),
    (status(401), "error"),
    (status(403), "error"),
    (status(404), "error"),
    (status(408), "timeout"),
    (status(302, location="http://127.0.0.1:9/"), "error"),
    (disconnect, "error"),
    (ERROR_IN_200, "error"),
    (status(200, "<html>"), "error"),
    (status(200, "[]"), "error"),
    (status(200, '{"choices": []}'), "error"),
    (status(200, '{"choices": [{"delta": {}}]}'), "error"),
    (status(200, '{"choices": [{"message": {"content": "half an ans"}, "finish_reason": null}]}'), "error"),
]

STREAM_FAULTS: list[tuple[Handler, str]] = [
    *JSON_FAULTS,
    (events(), "error"),
    (events(DONE), "error"),
    (events(ROLE), "error"),
    (events(ROLE, DONE), "error"),
    (cut(ROLE), "error"),
    (events(ERROR_EVENT), "error"),
    (events(b"data: {broken\n\n"), "error"),
    (status(200, '{"choices": [{"message": {"content": "not a stream"}}]}'), "error"),
]


def _ids(faults: list[tuple[Handler, str]]) -> list[str]:
    return [f"{i}-{outcome}" for i, (_, outcome) in enumerate(faults)]


@pytest.mark.parametrize(("fault", "outcome"), JSON_FAULTS, ids=_ids(JSON_FAULTS))
async def test_the_control_answers_when_the_candidate_fails(
    router: Router, upstream: Upstream, fault: Handler, outcome: str
) -> None:
    put(router, flag(100_000))
    upstream.script["new"] = fault
    got = await router.ask()
    assert (got.status, got.json["model"], upstream.models()) == (200, "old", ["new", "old"])
    assert (got.headers["x-penstock-model"], got.headers["x-penstock-arm"]) == ("old", "candidate")
    assert got.headers["x-penstock-fallback"] == "true"
    candidate = {"arm": "candidate", "model": "new"}
    assert router.arm("penstock_requests_total", candidate, outcome=outcome) == 1
    assert router.arm("penstock_requests_total", candidate, outcome="ok") == 0
    assert router.arm("penstock_requests_total", outcome="ok") == 0
    assert router.arm("penstock_fallbacks_total", candidate, to_model="old", outcome="ok", reason="failure") == 1
    assert router.arm("penstock_unavailable_total", candidate) == 0
    assert router.metric("mcp_model_errors_total", model="new", error_type=outcome) == 1


@pytest.mark.parametrize(("fault", "outcome"), STREAM_FAULTS, ids=_ids(STREAM_FAULTS))
async def test_the_control_streams_when_the_candidate_fails_before_its_first_token(
    router: Router, upstream: Upstream, fault: Handler, outcome: str
) -> None:
    put(router, flag(100_000))
    upstream.script["new"] = fault
    got = await router.ask(stream=True)
    assert (got.content, got.events[-1], upstream.models()) == ("Hello", "[DONE]", ["new", "old"])
    assert router.arm("penstock_requests_total", streaming=True, arm="candidate", model="new", outcome=outcome) == 1
    assert router.arm("penstock_ttft_seconds_count", streaming=True, arm="candidate", model="new") == 0


@pytest.mark.parametrize(
    "fault",
    [
        cut(ROLE, WORD),
        events(ROLE, WORD),
        events(ROLE, WORD, DONE),
        events(ROLE, WORD, STOP),
        events(ROLE, WORD, ERROR_EVENT),
        events(ROLE, WORD + b"data: {broken\n\n" + STOP, DONE),
        events(ROLE, WORD, b"data: 5\n\n"),
    ],
    ids=["reset", "clean-end", "done-without-finish", "finish-without-done", "error-event", "broken-json", "no-object"],
)
async def test_a_stream_that_breaks_after_its_first_token_ends_in_an_error_and_never_in_done(
    router: Router, upstream: Upstream, fault: Handler
) -> None:
    put(router, flag(100_000))
    upstream.script["new"] = fault
    got = await router.ask(stream=True)
    assert (got.content, "[DONE]" in got.events, upstream.models()) == ("Hal", False, ["new"])
    assert got.events[-1]["error"]["code"] == "stream_error"
    assert "secret prompt" not in got.text
    candidate = {"streaming": "true", "arm": "candidate", "model": "new"}
    assert router.arm("penstock_requests_total", candidate, outcome="error") == 1
    assert router.arm("penstock_unavailable_total", candidate) == 1
    assert router.metric("mcp_tokens_total", model="new", direction="output") == 1, "3 bytes of text are one token"


async def test_the_openai_sdk_raises_on_a_stream_that_breaks(router: Router, upstream: Upstream) -> None:
    upstream.script["old"] = cut(ROLE, WORD)
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client:
        seen = []
        with pytest.raises(openai.APIError, match="broke off"):
            async for event in await client.chat.completions.create(model="chat", messages=[], stream=True):
                seen.append(event.choices[0].delta.content)
    assert seen == ["", "Hal"]


@pytest.mark.parametrize("code", [400, 413, 422])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_clients_own_fault_is_passed_on_and_nobody_else_is_asked(
    router: Router, upstream: Upstream, code: int, stream: bool
) -> None:
    upstream.script["old"] = status(code)
    got = await router.ask(stream=stream)
    assert (got.status, got.json["error"]["code"], upstream.models()) == (code, "y", ["old"])
    assert router.arm("penstock_requests_total", streaming=stream, outcome="client_error") == 1
    assert router.arm("penstock_unavailable_total", streaming=stream) == 0


CANDIDATE = {"arm": "candidate", "model": "new"}


@pytest.mark.parametrize("code", [400, 404, 413, 422])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_candidate_that_refuses_what_the_control_answers_has_failed(
    router: Router, upstream: Upstream, code: int, stream: bool
) -> None:
    put(router, flag(100_000))
    upstream.script["new"] = status(code)
    got = await router.ask(stream=stream, temperature=0.2)
    assert (got.status, upstream.models()) == (200, ["new", "old"])
    assert (got.headers["x-penstock-model"], got.headers["x-penstock-fallback"]) == ("old", "true")
    assert upstream.calls[1].body["temperature"] == 0.2
    assert "reasoning_effort" not in upstream.calls[1].body, "the control is asked as the control is"
    assert router.arm("penstock_requests_total", CANDIDATE, streaming=stream, outcome="error") == 1
    assert router.arm("penstock_requests_total", CANDIDATE, streaming=stream, outcome="client_error") == 0
    assert (
        router.arm("penstock_fallbacks_total", CANDIDATE, streaming=stream, to_model="old", outcome="ok", reason="failure") == 1
    )
    assert router.arm("penstock_unavailable_total", CANDIDATE, streaming=stream) == 0
    assert router.metric("mcp_model_errors_total", model="new", error_type="error") == 1
    assert router.metric("mcp_model_errors_total", model="new", error_type="client_error") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_the_control_refuses_as_well_is_the_clients_own_fault(
    router: Router, upstream: Upstream, stream: bool
) -> None:
    put(router, flag(100_000))
    upstream.script["new"] = status(400)
    upstream.script["old"] = status(422, '{"error":{"message":"as the control says it","type":"x","code":"z","param":null}}')
    got = await router.ask(stream=stream)
    assert (got.status, got.json["error"]["message"]) == (422, "as the control says it")
    assert upstream.models() == ["new", "old"]
    assert router.arm("penstock_requests_total", CANDIDATE, streaming=stream, outcome="client_error") == 1
    assert router.arm("penstock_requests_total", CANDIDATE, streaming=stream, outcome="error") == 0
    assert router.arm("penstock_unavailable_total", CANDIDATE, streaming=stream) == 0
    for told in ("ok", "failed"):
        assert (
            router.arm("penstock_fallbacks_total", CANDIDATE, streaming=stream, to_model="old", outcome=told, reason="failure")
            == 0
        )


async def test_a_refusal_that_nobody_else_can_judge_counts_neither_for_nor_against_the_candidate(
    router: Router, upstream: Upstream
) -> None:
    put(router, flag(100_000))
    upstream.script = {"new": status(400), "old": status(500), "spare": status(503)}
    got = await router.ask()
    assert (got.status, upstream.models()) == (502, ["new", "old", "spare"])
    assert "new: status 400 (y); old: status 500; spare: status 503" in got.json["error"]["message"]
    assert router.arm("penstock_requests_total", CANDIDATE, outcome="client_error") == 1
    assert router.arm("penstock_unavailable_total", CANDIDATE) == 1


async def test_a_client_that_leaves_while_a_refusal_is_checked_leaves_it_undecided(router: Router, upstream: Upstream) -> None:
    put(router, flag(100_000))
    upstream.script = {"new": status(400), "old": upstream.hang}
    call = asyncio.create_task(router.post({"model": "chat", "messages": [], "user": "u"}))
    await eventually(lambda: upstream.models() == ["new", "old"])
    call.cancel()
    await upstream.cancelled.wait()
    await eventually(lambda: router.arm("penstock_requests_total", CANDIDATE, outcome="client_error") == 1)
    assert router.arm("penstock_requests_total", CANDIDATE, outcome="cancelled") == 0


async def test_the_time_of_a_refused_attempt_is_its_own_and_not_the_controls(router: Router, upstream: Upstream) -> None:
    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return await answer(request, body)

    put(router, flag(100_000))
    upstream.script = {"new": status(400), "old": slow}
    await router.ask()
    new, old = (router.metric("mcp_request_duration_seconds_sum", model=m, provider="p", tool="chat") for m in ("new", "old"))
    assert new is not None and old is not None
    assert new < old, "the candidate's clock stopped when it refused"


async def test_a_flag_whose_sides_are_the_same_has_no_control_to_check_a_refusal_with(router: Router, upstream: Upstream) -> None:
    put(router, flag(100_000, candidate=Variant(model="old")))
    upstream.script["old"] = status(400)
    got = await router.ask()
    assert (got.status, upstream.models()) == (400, ["old"])
    assert router.arm("penstock_requests_total", arm="candidate", outcome="client_error") == 1


async def test_a_refusal_in_another_shape_is_put_into_openais(router: Router, upstream: Upstream) -> None:
    upstream.script["old"] = status(400, "<html>bad</html>")
    got = await router.ask()
    assert (got.status, got.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_when_nobody_answers_the_client_learns_who_was_tried(router: Router, upstream: Upstream, stream: bool) -> None:
    put(router, flag(100_000))
    upstream.script = {"new": status(429), "old": status(500), "spare": status(503)}
    got = await router.ask(stream=stream)
    assert (got.status, got.json["error"]["code"], upstream.models()) == (502, "upstream_error", ["new", "old", "spare"])
    assert "new: status 429; old: status 500; spare: status 503" in got.json["error"]["message"]
    assert got.headers["x-should-retry"] == "false"
    assert router.arm("penstock_unavailable_total", streaming=stream, arm="candidate", model="new") == 1
    failed = {"arm": "candidate", "model": "new", "outcome": "failed", "reason": "failure"}
    assert [router.arm("penstock_fallbacks_total", streaming=stream, labels=failed, to_model=m) for m in ("old", "spare")] == [
        1,
        1,
    ]


async def test_a_provider_that_refuses_connections_is_an_error_with_fallback(upstream: Upstream) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        providers = [{"name": "p", "base_url": upstream.url}, {"name": "gone", "base_url": closed}]
        models = [{"name": "old", "provider": "gone"}, {"name": "new", "provider": "p"}, {"name": "spare", "provider": "p"}]
        async with serve_router(config(upstream.url, providers=providers, models=models)) as router:
            got = await router.ask()
    assert (got.status, got.headers["x-penstock-model"]) == (200, "spare")


@pytest.mark.parametrize(
    ("stream", "timeout", "script"),
    [
        (False, {"request": "60ms"}, "silent"),
        (True, {"stream": "60ms"}, "silent"),
        (True, {"first_token": "60ms"}, "silent"),
        (True, {"first_token": "60ms"}, "role"),
    ],
)
async def test_a_silent_model_is_a_timeout_and_the_next_one_answers(
    upstream: Upstream, stream: bool, timeout: dict[str, str], script: str
) -> None:
    models = [{"name": "old", "provider": "p", "timeout": timeout}, *({"name": n, "provider": "p"} for n in ("new", "spare"))]
    upstream.script["old"] = upstream.hang if script == "silent" else upstream.hang_after(ROLE)
    async with serve_router(config(upstream.url, models=models)) as router:
        got = await router.ask(stream=stream)
        assert (got.status, got.headers["x-penstock-model"]) == (200, "spare")
        assert router.arm("penstock_requests_total", streaming=stream, outcome="timeout") == 1
        assert router.arm("penstock_request_duration_seconds_count", streaming=stream) == 1
    await upstream.cancelled.wait()


async def test_a_stream_that_stalls_ends_in_a_timeout_error(upstream: Upstream) -> None:
    models = [
        {"name": n, "provider": "p", "timeout": {"stream": "100ms", "first_token": "90ms"}} for n in ("old", "new", "spare")
    ]
    upstream.script["old"] = upstream.hang_after(ROLE, WORD)
    async with serve_router(config(upstream.url, models=models)) as router:
        got = await router.ask(stream=True)
    assert got.events[-1]["error"]["code"] == "stream_timeout"


async def test_the_first_token_limit_ends_with_the_first_token(upstream: Upstream) -> None:
    models = [{"name": n, "provider": "p", "timeout": {"first_token": "1s"}} for n in ("old", "new", "spare")]

    async def slow_tail(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(ROLE + WORD)
        await asyncio.sleep(1.1)
        await response.write(STOP + DONE)
        return response

    upstream.script["old"] = slow_tail
    async with serve_router(config(upstream.url, models=models)) as router:
        got = await router.ask(stream=True)
    assert (got.content, got.events[-1]) == ("Hal", "[DONE]")


async def test_a_flag_with_a_model_unknown_here_fails_its_arm_and_the_control_answers(router: Router, upstream: Upstream) -> None:
    put(router, flag(100_000, candidate=Variant(model="not-here")))
    got = await router.ask()
    assert (got.headers["x-penstock-model"], upstream.models()) == ("old", ["old"])
    assert router.arm("penstock_requests_total", arm="candidate", model="not-here", outcome="error") == 1


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_work_upstream(
    router: Router, upstream: Upstream, stream: bool, begun: bool
) -> None:
    put(router, flag(100_000))
    upstream.script["new"] = upstream.hang_after(ROLE, WORD) if begun else upstream.hang
    body = {"model": "chat", "messages": [], "stream": stream, "user": "u"}
    call = asyncio.create_task(router.post(body))
    await eventually(lambda: bool(upstream.calls))
    if begun and stream:
        (await call).close()
    else:
        call.cancel()
    await upstream.cancelled.wait()
    candidate = {"arm": "candidate", "model": "new"}
    await eventually(lambda: router.arm("penstock_requests_total", candidate, streaming=stream, outcome="cancelled") == 1)
    assert upstream.models() == ["new"], "nobody else is asked for a client that is gone"
    assert router.arm("penstock_unavailable_total", candidate, streaming=stream) == 0
    assert router.metric("mcp_tokens_total", model="new", direction="input") > 0  # type: ignore[operator]


async def test_answers_again_after_every_kind_of_failure(router: Router, upstream: Upstream) -> None:
    for fault, _ in STREAM_FAULTS:
        upstream.script = {"old": fault, "spare": fault}
        await router.ask(stream=True)
    upstream.script = {"old": answer}
    got = await router.ask(stream=True)
    assert (got.content, got.headers["x-penstock-model"]) == ("Hello", "old")


async def test_a_usage_chunk_is_stripped_unless_asked_for_and_always_booked(router: Router, upstream: Upstream) -> None:
    plain = await router.ask(stream=True)
    asked = await router.ask(stream=True, stream_options={"include_usage": True})
    assert [c.body["stream_options"] for c in upstream.calls] == [{"include_usage": True}] * 2
    assert [any(e != "[DONE]" and e.get("usage") for e in got.events) for got in (plain, asked)] == [False, True]
    assert router.metric("mcp_tokens_total", model="old", direction="input") == 2000
    assert router.metric("mcp_tokens_total", model="old", direction="output") == 400
    # 1000 input at 2 USD and 200 output at 8 USD a million, twice.
    assert router.arm("penstock_cost_usd_total", streaming=True) == pytest.approx(2 * 0.0036)
    assert router.arm("penstock_cost_usd_squared_total", streaming=True) == pytest.approx(2 * 0.0036**2)
    assert router.arm("penstock_cost_requests_total", streaming=True) == 2


async def test_events_may_arrive_in_any_portions(router: Router, upstream: Upstream) -> None:
    whole = (b": hello\n\n" + ROLE + WORD + STOP + usage_chunk("new") + DONE).replace(b"\n", b"\r\n")
    upstream.script["old"] = events(*(whole[i : i + 7] for i in range(0, len(whole), 7)))
    got = await router.ask(stream=True)
    assert (got.content, got.events[-1]) == ("Hal", "[DONE]")
    assert router.metric("mcp_tokens_total", model="old", direction="output") == 200


async def test_a_clients_own_retry_is_answered_and_is_no_new_trial(router: Router, upstream: Upstream) -> None:
    """The real SDK: refused with 429, it sends the request again by itself, with x-stainless-retry-count: 1."""
    put(router, flag(0, shadow_weight=100_000))
    left = 1

    async def once_limited(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal left
        left -= 1
        return await (status(429, retry_after="0") if left >= 0 else answer)(request, body)

    upstream.script = dict.fromkeys(("old", "spare"), status(429, retry_after="0"))
    upstream.script["old"] = once_limited
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=2) as client:
        got = await client.chat.completions.create(model="chat", messages=[], user="u")
    assert got.model == "old"
    assert router.arm("penstock_requests_total", outcome="rate_limited") == 1
    assert router.arm("penstock_requests_total", outcome="ok") == 0
    assert router.arm("penstock_unavailable_total") == 1
    assert router.arm("penstock_cost_requests_total") == 0
    assert router.metric("penstock_client_retries_total", flag="chat-model", route="chat", arm="baseline") == 1
    assert router.metric("mcp_tokens_total", model="old", direction="input") == 1000, "it is billed all the same"
    assert router.metric("mcp_request_duration_seconds_count", model="old", provider="p", tool="chat") == 2
    assert upstream.models().count("new") == 1, "and mirrored once"


async def test_what_a_failed_attempt_has_cost_is_missing_for_the_next(upstream: Upstream) -> None:
    """1,000 tokens of input cost 0.002 USD: of 0.005 there are 0.003 for old's answer, and 0.001 for spare's."""
    async with serve_router(config(upstream.url, caps={"cost_per_request": "0.005 USD"})) as router:
        upstream.script["old"] = ERROR_IN_200
        body = {"model": "chat", "messages": [], "user": "u", "x": ""}
        body["x"] = "y" * (4000 - len(json.dumps(body)))
        async with await router.post(body) as got:
            assert (got.status, got.headers["x-penstock-model"]) == (200, "spare")
    limits = [call.body["max_completion_tokens"] for call in upstream.calls]
    assert limits == pytest.approx([375, 125], abs=2)
