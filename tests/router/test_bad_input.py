"""What no client and no provider should send: each is answered in OpenAI's shape, none with a traceback, and the next request works."""

import asyncio
import gzip
import json
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.router.harness import (
    DONE,
    Handler,
    Router,
    Upstream,
    chunk,
    completion,
    config,
    events,
    eventually,
    serve_router,
    serve_upstream,
    status,
)

WORD, STOP = chunk("old", {"content": "Hal"}), chunk("old", {}, "stop")


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


async def send(router: Router, data: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with router.http.post(f"{router.url}{path}", data=data, headers=named) as response:
        text = await response.text()
        assert "Traceback" not in text and 'File "' not in text
        assert response.headers["x-request-id"]
        return response.status, json.loads(text)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize(
    "field",
    [
        f'"x": {nested(300)}', f'"messages": {nested(300)}', f'"x": {nested(5000)}', '"x": ' + '{"a":' * 300 + "1" + "}" * 300,
        '"model": ["old"]', '"model": null', '"user": {}', '"penstock": 5', '"penstock": {"deadline": "soon"}',
        '"x": "\\ud800"', '"x": 01', '"x": NaN', '"x": Infinity', '"x": 1e999',
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_used_is_refused_with_400(upstream: Upstream, path: str, field: str) -> None:
    body = f'{{"model": "old", "messages": [], "input": "Hi", {field}}}'
    async with serve_router(config(upstream.url)) as router:
        code, answer = await send(router, body.encode(), path)
    if field == '"x": 1e999' and code != 400:  # a JSON number all the same, and the provider's to judge
        return
    assert (code, answer["error"]["type"]) == (400, "invalid_request_error")
    assert upstream.calls == []


async def test_what_is_nested_as_deep_as_can_be_written_passes(router: Router, upstream: Upstream) -> None:
    code, _ = await send(router, f'{{"model": "old", "messages": [], "x": {nested(245)}}}'.encode())
    assert (code, json.dumps(upstream.calls[0].body["x"])) == (200, nested(245))


async def test_many_brackets_that_are_not_deep_pass(router: Router, upstream: Upstream) -> None:
    code, _ = await send(router, json.dumps({"model": "old", "messages": [{}] * 600}).encode())
    assert (code, len(upstream.calls[0].body["messages"])) == (200, 600)


@pytest.mark.parametrize("limit", ["1" + "0" * 30, "-5", "true", "1.5", '"9"', "[]"])
async def test_a_number_that_is_none_is_refused(router: Router, limit: str) -> None:
    code, answer = await send(router, f'{{"model": "old", "messages": [], "max_tokens": {limit}}}'.encode())
    assert (code, answer["error"]["param"]) == (400, "max_tokens")


async def test_a_compressed_body_is_refused_by_name(router: Router) -> None:
    body = gzip.compress(b'{"model": "old", "messages": []}')
    code, answer = await send(router, body, content_encoding="gzip")
    assert (code, answer["error"]["code"]) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=latin-1"])
async def test_json_is_json_whatever_it_is_called(router: Router, kind: str) -> None:
    assert (await send(router, b'{"model": "old", "messages": []}', content_type=kind))[0] == 200


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_fields = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("model", "messages", "stream", "stream_options", "user", "max_tokens", "n", "tools", "functions", "penstock", "reasoning_effort", "reasoning", "metadata"), _json),
)  # fmt: skip


async def test_no_json_whatever_makes_the_router_itself_fail() -> None:
    models = [{"name": n, "provider": "p", "reasoning": style} for n, style in (("old", "gemini"), ("spare", "anthropic"))]
    async with serve_upstream() as upstream, serve_router(config(upstream.url, models=models)) as router:

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(_fields, st.booleans())
        def bodies(fields: dict[str, Any], sound: bool) -> None:
            drawn.append({**fields, **({"model": "chat", "messages": []} if sound else {})})

        drawn: list[dict[str, Any]] = []
        bodies()
        drawn += [{"model": "chat", "messages": [], "reasoning_effort": ["low"]}] * 2
        for i, body in enumerate(drawn):
            upstream.script = {"old": status(500)} if i % 2 else {}
            async with await router.post(body) as response:
                await response.read()
                assert response.status in (200, 400, 404), (response.status, body)


async def test_a_client_that_dribbles_its_headers_is_given_up(upstream: Upstream) -> None:
    async with serve_router(config(upstream.url, body_timeout="60ms")) as router:
        host, port = router.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert await reader.read() == b"", "closed without a word"
        silent, other = await asyncio.open_connection(host, int(port))
        assert await silent.read() == b""
        for one in (writer, other):
            one.close()
        assert (await router.ask()).status == 200


async def test_the_second_request_of_a_connection_is_not_waited_for_forever_either(upstream: Upstream) -> None:
    async with serve_router(config(upstream.url, body_timeout="80ms")) as router:
        host, port = router.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'{"status":"ok"}' in await reader.readuntil(b"}")
        writer.write(b"GET /healthz HTTP/1.1\r\nHost")
        assert await reader.read() == b""
        writer.close()


async def test_a_slow_answer_is_no_slow_request(upstream: Upstream) -> None:
    async def slow(_request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.15)
        return web.json_response(completion(body["model"]))

    upstream.script["old"] = slow
    async with serve_router(config(upstream.url, body_timeout="60ms")) as router:
        assert (await router.ask()).status == 200


async def test_a_client_that_closes_its_half_is_taken_for_gone(router: Router, upstream: Upstream) -> None:
    """TCP cannot tell a half-closed connection from one that is gone, and an answer that nobody reads costs money."""
    upstream.script["old"] = upstream.hang
    host, port = router.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = b'{"model": "old", "messages": []}'
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await eventually(lambda: bool(upstream.calls))
    writer.write_eof()
    await upstream.cancelled.wait()
    writer.close()


async def test_a_client_that_leaves_a_stream_pays_for_what_it_has_read(router: Router, upstream: Upstream) -> None:
    upstream.script["old"] = upstream.hang_after(WORD)
    response = await router.post({"model": "old", "messages": [], "stream": True})
    await response.content.readany()
    response.close()
    await upstream.cancelled.wait()
    await eventually(lambda: router.metric("mcp_tokens_total", model="old", direction="output") == 1)
    labels = {"flag": "", "route": "", "streaming": "true", "arm": "baseline", "model": "old"}
    assert router.metric("penstock_requests_total", **labels, outcome="cancelled") == 1


def typed(kind: str, text: str) -> Handler:
    async def handler(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text=text, content_type=kind)

    return handler


GARBAGE: dict[str, Handler] = {
    "html": typed("text/html", "<html>upstream connect error</html>"),
    "events for JSON": events(WORD, STOP, DONE),
    "empty": status(200, ""),
    "a number": status(200, "7"),
    "null": status(200, "null"),
    "binary": typed("application/octet-stream", "\x00\x01\x02"),
    "half of JSON": status(200, '{"choices": [{"message": {"content": "Hal'),
    "error in 200": status(200, '{"error": {"message": "x", "code": "overloaded"}}'),
    "error as text": status(200, '{"error": "overloaded"}'),
    "choices of numbers": status(200, '{"choices": [1, 2]}'),
    "choices of nothing": status(200, '{"choices": {}}'),
    "deep": status(200, f'{{"choices": [{{"finish_reason": "stop", "message": {{"content": {nested(400)}}}}}]}}'),
    "too deep to read": status(200, nested(5000)),
    "a status of its own": status(299),
    "redirect": status(307, location="http://127.0.0.1:9/"),
}
STREAM_GARBAGE: dict[str, Handler] = {
    **{name: fault for name, fault in GARBAGE.items() if name != "events for JSON"},
    "comments only": events(b": ping\n\n", b": ping\n\n"),
    "no JSON": events(b"data: hello\n\n"),
    "a number event": events(b"data: 7\n\n"),
    "an endless line": events(b"data: " + b"x" * (9 * 1024 * 1024)),
    "deep tool calls": events(b'data: {"choices": [{"index": 0, "delta": {"tool_calls": ' + nested(400).encode() + b"}}]}\n\n"),
    "choices of numbers in events": events(b'data: {"choices": [1]}\n\n', DONE),
    "a delta of numbers": events(b'data: {"choices": [{"delta": 5}]}\n\n', DONE),
}


CASES = [(fault, False) for fault in GARBAGE.values()] + [(fault, True) for fault in STREAM_GARBAGE.values()]


@pytest.mark.parametrize(("fault", "stream"), CASES, ids=[*GARBAGE, *(f"stream: {name}" for name in STREAM_GARBAGE)])
async def test_garbage_from_a_provider_is_a_failure_and_the_next_model_answers(
    router: Router, upstream: Upstream, fault: Handler, stream: bool
) -> None:
    upstream.script["old"] = fault
    got = await router.ask(stream=stream)
    assert (got.status, got.headers["x-penstock-model"]) == (200, "spare"), got.text[:200]
    assert router.arm("penstock_requests_total", streaming=stream, outcome="error") == 1


async def test_a_deep_refusal_of_a_provider_is_passed_on_without_its_depths(router: Router, upstream: Upstream) -> None:
    upstream.script["old"] = status(400, f'{{"error": {{"message": "no", "inner": {nested(900)}}}}}')
    got = await router.ask()
    assert (got.status, got.json["error"]["message"]) == (400, "no")
    assert "[deep]" in got.text
