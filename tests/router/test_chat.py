"""One request through the router: who answers, what is passed on, what the client is told."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from flagspec import in_share
from tests.router.harness import Router, Upstream, config, flag, put, serve_router, status


async def test_answers_with_the_default_before_any_flag_was_seen(router: Router, upstream: Upstream) -> None:
    answer = await router.ask()
    assert (answer.status, answer.json["choices"][0]["message"]["content"]) == (200, "Hello")
    assert (answer.headers["x-penstock-model"], answer.headers["x-penstock-arm"]) == ("old", "baseline")
    assert answer.headers["x-penstock-fallback"] == "false"
    assert upstream.models() == ["old"]


async def test_passes_unknown_fields_on_and_replaces_only_the_model(router: Router, upstream: Upstream) -> None:
    await router.ask(x_new_field={"a": [1, 2.5, None]}, temperature=0.2)
    assert upstream.calls[0].body == {
        "model": "old", "messages": [{"role": "user", "content": "Hi"}], "user": "u-1",
        "x_new_field": {"a": [1, 2.5, None]}, "temperature": 0.2,
    }  # fmt: skip


async def test_splits_users_exactly_as_the_flag_contract_says(router: Router) -> None:
    put(router, flag(25_000))
    users = [f"user-{i}" for i in range(60)]
    answers = await asyncio.gather(*(router.ask(user=u) for u in users))
    expected = ["new" if in_share("s", u, 25_000) else "old" for u in users]
    assert [a.headers["x-penstock-model"] for a in answers] == expected
    assert {"new", "old"} == set(expected)


async def test_a_variants_params_are_defaults_that_the_client_overrides(router: Router, upstream: Upstream) -> None:
    put(router, flag(100_000))
    await router.ask()
    await router.ask(reasoning_effort="high")
    assert [c.body["reasoning_effort"] for c in upstream.calls] == ["low", "high"]


async def test_a_variants_params_do_not_follow_to_the_fallback(router: Router, upstream: Upstream) -> None:
    put(router, flag(100_000))
    upstream.script["new"] = status(500)
    await router.ask()
    assert [(c.model, c.body.get("reasoning_effort")) for c in upstream.calls] == [("new", "low"), ("old", None)]


async def test_a_model_without_a_route_is_asked_directly(router: Router, upstream: Upstream) -> None:
    answer = await router.ask("spare")
    assert (answer.headers["x-penstock-model"], answer.headers["x-penstock-arm"]) == ("spare", "baseline")
    assert router.arm("penstock_requests_total", flag="", route="", model="spare", outcome="ok") == 1


@pytest.mark.parametrize(
    ("headers", "missing"),
    [({}, 1), ({"x_penstock_unit": "u"}, 0), ({"authorization": "Bearer k"}, 0)],
)
async def test_a_request_without_any_unit_gets_the_control_and_is_counted(
    router: Router, headers: dict[str, str], missing: int
) -> None:
    put(router, flag(99_999))
    async with await router.post({"model": "chat", "messages": []}, **headers) as response:
        assert response.headers["x-penstock-arm"] == ("baseline" if missing else "candidate")
    assert router.metric("penstock_unit_missing_total", flag="chat-model") == missing


async def test_the_client_key_is_forwarded_only_to_providers_without_their_own(upstream: Upstream) -> None:
    providers = [{"name": "p", "base_url": upstream.url}, {"name": "own", "base_url": upstream.url, "api_key_env": "OWN_KEY"}]
    models = [{"name": "old", "provider": "p"}, {"name": "new", "provider": "own"}]
    spec = config(upstream.url, providers=providers, models=models, routes=[])
    async with serve_router(spec, environ={"OWN_KEY": "of-the-provider"}) as router:
        for model in ("old", "new"):
            await (await router.post({"model": model, "messages": []}, authorization="Bearer of-the-client")).read()
    assert [c.headers["Authorization"] for c in upstream.calls] == ["Bearer of-the-client", "Bearer of-the-provider"]


async def test_a_provider_may_call_the_model_by_another_name(upstream: Upstream) -> None:
    models = [{"name": "old", "provider": "p", "upstream_name": "vendor/old-1"}]
    async with serve_router(config(upstream.url, models=models, routes=[])) as router:
        answer = await router.ask("old")
    assert (upstream.models(), answer.headers["x-penstock-model"]) == (["vendor/old-1"], "old")


async def test_keeps_a_sane_request_id_and_replaces_any_other(router: Router, upstream: Upstream) -> None:
    kept = await router.post({"model": "old", "messages": []}, x_request_id="abc-1")
    replaced = await router.post({"model": "old", "messages": []}, x_request_id="a b" + "c" * 500)
    assert kept.headers["x-request-id"] == "abc-1" == upstream.calls[0].headers["x-request-id"]
    assert replaced.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{not json", 400, None),
        (b"[1]", 400, None),
        (b"{}", 400, "model"),
        (b'{"model": 5, "messages": []}', 400, "model"),
        (b'{"model": "", "messages": []}', 400, "model"),
        (b'{"model": "old"}', 400, "messages"),
        (b'{"model": "old", "messages": "hi"}', 400, "messages"),
        (b'{"model": "old", "messages": [], "stream": "yes"}', 400, "stream"),
        (b'{"model": "old", "messages": [], "user": 7}', 400, "user"),
        (b'{"model": "old", "messages": [], "seed": NaN}', 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"model": "nope", "messages": []}', 404, "model"),
    ],
)
async def test_refuses_what_is_no_chat_request_in_openais_shape(
    router: Router, upstream: Upstream, body: bytes, code: int, param: str | None
) -> None:
    async with router.http.post(f"{router.url}/v1/chat/completions", data=body) as response:
        assert response.status == code
        error = (await response.json())["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert response.headers["x-request-id"]
    assert upstream.calls == []


async def test_refuses_bodies_over_the_limit_whether_announced_or_not(upstream: Upstream) -> None:
    async def dribble() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    async with serve_router(config(upstream.url, max_body_bytes=1000)) as router:
        url = f"{router.url}/v1/chat/completions"
        async with router.http.post(url, data=b"x" * 1001) as announced:
            assert announced.status == 413
        async with router.http.post(url, data=dribble()) as chunked:
            assert chunked.status == 413
            assert (await chunked.json())["error"]["code"] == "too_large"


async def test_a_request_that_never_arrives_whole_is_given_up(upstream: Upstream) -> None:
    async with serve_router(config(upstream.url, body_timeout="50ms")) as router:
        host, port = router.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_other_methods_and_paths_are_refused_by_name(router: Router) -> None:
    async with router.http.get(f"{router.url}/v1/chat/completions") as response:
        assert (response.status, response.headers["allow"]) == (405, "POST")
    async with router.http.get(f"{router.url}/v1/nothing") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "unknown_url")


async def test_the_openai_sdk_gets_its_answer_and_its_error_classes(router: Router, upstream: Upstream) -> None:
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client:
        answer = await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Hi"}])
        assert (answer.choices[0].message.content, answer.model) == ("Hello", "old")
        assert {m.id for m in (await client.models.list()).data} == {"chat", "old", "new", "spare", "auto"}
        assert (await client.models.retrieve("chat")).id == "chat"
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nope", messages=[])
        assert unknown.value.code == "model_not_found"
        upstream.script["spare"] = status(429, retry_after="7")
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(model="spare", messages=[])
        assert limited.value.response.headers["retry-after"] == "7"
        upstream.script["spare"] = status(500)
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="spare", messages=[])


async def test_the_openai_sdk_does_not_retry_what_the_router_has_already_tried_everywhere(
    router: Router, upstream: Upstream
) -> None:
    upstream.script["spare"] = status(500)
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=3) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="spare", messages=[])
    assert upstream.models() == ["spare"]


async def test_the_openai_sdk_streams_with_and_without_usage(router: Router) -> None:
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client:
        plain = await client.chat.completions.create(model="chat", messages=[], stream=True)
        text = [event.choices[0].delta.content async for event in plain]
        assert "".join(t or "" for t in text) == "Hello"
        asked = await client.chat.completions.create(
            model="chat", messages=[], stream=True, stream_options={"include_usage": True}
        )
        usage = [event.usage async for event in asked if event.usage]
        assert [(u.prompt_tokens, u.completion_tokens) for u in usage] == [(1000, 200)]
