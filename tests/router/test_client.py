"""The router in the application's own process: OpenAI's shape, and everything that a router over HTTP does."""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import prometheus_client
import pytest

import router as penstock
from bench.behaviour import Errors, Latency, ModelBehaviour
from bench.provider import Provider, running_provider
from flagspec import Snapshot
from router import AsyncRouter, Router
from router.answers import Answer
from tests.router.harness import DONE, FlagServer, Upstream, chunk, completion, config, cut, events, eventually, flag, status

ASK: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "user": "u-1"}


def snapshot(*flags: Any) -> Snapshot:
    return Snapshot(environment="production", revision=max(f.revision for f in flags), flags=flags)


def value(router: AsyncRouter | Router, name: str, **labels: str) -> float | None:
    return router.metrics.get_sample_value(name, {"environment": "production", **labels})


@pytest.fixture
async def client(upstream: Upstream) -> AsyncIterator[AsyncRouter]:
    async with AsyncRouter(config(upstream.url), environ={}) as made:
        yield made


async def test_an_answer_has_attributes_and_says_who_gave_it(client: AsyncRouter) -> None:
    answer = await client.chat.completions.create(**ASK)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.total_tokens) == (
        "Hello",
        "stop",
        1200,
    )
    assert answer.choices[0].message.tool_calls is None and answer.service_tier is None
    with pytest.raises(AttributeError, match="no 'chioces'"):
        _ = answer.chioces
    assert answer.model_dump() == completion("old") == json.loads(answer.model_dump_json())
    served = answer.penstock
    assert (served.model, served.arm, served.fallback) == ("old", "baseline", False)
    assert served.request_id == answer._request_id == served.headers["x-request-id"]


async def test_the_same_code_runs_on_openais_client_and_on_the_router(client: AsyncRouter, upstream: Upstream) -> None:
    async def say(of: Any) -> tuple[Any, ...]:
        answer = await of.chat.completions.create(**ASK, temperature=0.5)
        parts = []
        async for event in await of.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}):
            parts += [choice.delta.content for choice in event.choices if choice.delta.content]
            total = event.usage and event.usage.total_tokens
        return answer.choices[0].message.content, answer.choices[0].message.refusal, "".join(parts), total

    assert await say(client) == ("Hello", None, "Hello", 1200)
    direct = ASK | {"model": "old"}
    ASK_MODEL, ASK["model"] = ASK["model"], "old"
    try:
        async with openai.AsyncOpenAI(base_url=upstream.url, api_key="k") as theirs:
            assert await say(theirs) == ("Hello", None, "Hello", 1200)
    finally:
        ASK["model"] = ASK_MODEL
    assert upstream.calls[0].body == {**direct, "temperature": 0.5} == upstream.calls[2].body


async def test_answers_and_openais_placeholders_can_be_given_back(client: AsyncRouter, upstream: Upstream) -> None:
    first = await client.chat.completions.create(**ASK)
    sentinel = openai.omit
    again = [*ASK["messages"], first.choices[0].message, {"role": "user", "content": "And?"}]
    await client.chat.completions.create(model="chat", messages=again, temperature=sentinel)
    assert upstream.calls[1].body["messages"][1] == {"role": "assistant", "content": "Hello"}
    assert "temperature" not in upstream.calls[1].body
    with pytest.raises(TypeError, match="not JSON serializable: object"):
        await client.chat.completions.create(model="chat", messages=[object()])


async def test_flags_move_requests_from_one_to_the_next(client: AsyncRouter) -> None:
    seen = []
    for revision, weight in enumerate((0, 100_000, 0), 1):
        assert await client.take_flags(snapshot(flag(weight, revision=revision)))
        answer = await client.chat.completions.create(**ASK)
        seen.append((answer.penstock.model, answer.penstock.arm))
    assert seen == [("old", "baseline"), ("new", "candidate"), ("old", "baseline")]
    assert not await client.take_flags(snapshot(flag(100_000, revision=2))), "an older revision never replaces a newer one"


async def test_flags_come_from_a_source_as_well(upstream: Upstream, flag_server: FlagServer) -> None:
    flag_server.write(flag(0))
    async with AsyncRouter(config(upstream.url), flags=flag_server.url, environ={}) as client:
        await eventually(lambda: value(client, "penstock_flag_revision_applied") == 1)
        flag_server.write(flag(100_000, revision=2))
        await eventually(lambda: value(client, "penstock_flag_revision_applied") == 2)
        assert (await client.chat.completions.create(**ASK)).model == "new"


async def test_flags_known_from_the_start_hold_for_the_first_request(upstream: Upstream) -> None:
    client = AsyncRouter(config(upstream.url), flags=snapshot(flag(100_000)), environ={})
    assert (await client.chat.completions.create(**ASK)).model == "new", "it starts by itself"
    await client.close()
    with pytest.raises(penstock.RouterError, match="closed"):
        await client.chat.completions.create(**ASK)


async def test_a_failure_falls_back_and_says_so(client: AsyncRouter, upstream: Upstream) -> None:
    upstream.script = {"old": status(503)}
    answer = await client.chat.completions.create(**ASK)
    assert (answer.penstock.model, answer.penstock.fallback) == ("spare", True)
    stream = await client.chat.completions.create(**ASK, stream=True)
    assert (stream.penstock.model, stream.penstock.fallback) == ("spare", True)
    assert "".join([e.choices[0].delta.content or "" async for e in stream]) == "Hello"


@pytest.mark.parametrize(
    ("upstream_status", "kind", "code"),
    [(400, "BadRequestError", "y"), (422, "UnprocessableEntityError", "y"), (429, "RateLimitError", "rate_limit_exceeded"),
     (500, "InternalServerError", "upstream_error")],
)  # fmt: skip
async def test_errors_have_openais_names_and_attributes(
    client: AsyncRouter, upstream: Upstream, upstream_status: int, kind: str, code: str
) -> None:
    upstream.script = dict.fromkeys(("old", "spare"), status(upstream_status, Retry_After="7"))
    with pytest.raises(penstock.APIStatusError) as raised:
        await client.chat.completions.create(**ASK)
    error = raised.value
    assert type(error) is getattr(penstock, kind)
    assert (error.code, error.request_id) == (code, error.headers["x-request-id"])
    assert issubclass(getattr(openai, kind), openai.APIStatusError), "OpenAI's has the same name"
    if upstream_status == 429:
        assert error.headers["retry-after"] == "7"


async def test_wrong_requests_are_refused_before_anybody_is_asked(client: AsyncRouter, upstream: Upstream) -> None:
    with pytest.raises(penstock.NotFoundError) as unknown:
        await client.chat.completions.create(model="nobody", messages=[])
    assert (unknown.value.code, unknown.value.param, unknown.value.status_code) == ("model_not_found", "model", 404)
    with pytest.raises(penstock.BadRequestError, match="expected an array"):
        await client.chat.completions.create(model="chat", messages="Hi")
    assert upstream.calls == []


async def test_a_broken_stream_is_an_error_after_its_last_event(client: AsyncRouter, upstream: Upstream) -> None:
    upstream.script = {"old": cut(chunk("old", {"content": "Hel"}))}
    got = []
    with pytest.raises(penstock.APIError, match="broke off") as raised:
        async for event in await client.chat.completions.create(**ASK, stream=True):
            got.append(event.choices[0].delta.content)
    assert (got, raised.value.code) == (["Hel"], "stream_error")
    assert not isinstance(raised.value, penstock.APIStatusError)


ARM = {"flag": "chat-model", "route": "chat", "arm": "baseline", "model": "old"}


async def test_who_is_cancelled_or_closes_a_stream_cancels_the_providers_work(client: AsyncRouter, upstream: Upstream) -> None:
    upstream.script = {"old": upstream.hang}
    asking = asyncio.create_task(client.chat.completions.create(**ASK))
    await eventually(lambda: len(upstream.calls) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(upstream.cancelled.wait(), 20)
    assert value(client, "penstock_requests_total", **ARM, streaming="false", outcome="cancelled") == 1

    with pytest.raises(penstock.APITimeoutError, match=r"within 0\.05s"):
        await client.chat.completions.create(**ASK, timeout=0.05)
    assert value(client, "penstock_requests_total", **ARM, streaming="false", outcome="cancelled") == 2

    async def endless(request: Any, body: Any) -> Any:
        return await events(*[chunk("old", {"content": "x"})] * 1000, DONE)(request, body)

    upstream.script = {"old": endless}
    async with await client.chat.completions.create(**ASK, stream=True) as stream:
        assert (await anext(stream)).choices[0].delta.content == "x"
    unread = await client.chat.completions.create(**ASK, stream=True)
    await unread.close()
    assert value(client, "penstock_requests_total", **ARM, streaming="true", outcome="cancelled") == 2


async def test_the_other_endpoints_and_options_are_there(upstream: Upstream) -> None:
    behaviours = {name: ModelBehaviour() for name in ("old", "new", "spare")}
    async with (
        running_provider(behaviours, speed=100.0) as url,
        AsyncRouter(config(f"{url}/v1"), environ={}, api_key="k", default_headers={"X-Penstock-Unit": "team"}) as client,
    ):
        answer = await client.responses.create(model="chat", input="Say it.")
        assert answer.output_text == answer.output[0].content[0].text != ""
        kinds = [event.type async for event in await client.responses.create(model="chat", input="Say it.", stream=True)]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        vectors = await client.embeddings.create(model="chat", input=["one", "two"])
        assert [len(row.embedding) for row in vectors] == [16, 16]
        assert [model.id for model in await client.models.list()] == ["chat", "new", "old", "spare", "auto"]
        assert (await client.models.retrieve("chat")).id == "chat"
        chosen = await client.chat.completions.create(**ASK, extra_body={"penstock": {"preferred_model": "spare"}})
        assert chosen.penstock.model == "spare"
        chosen = await client.chat.completions.create(**ASK, extra_headers={"x-penstock-preferred-model": "new"})
        assert chosen.penstock.model == "new"


async def test_requests_are_mirrored_and_paired_to_a_sink_of_the_application(upstream: Upstream) -> None:
    class Sink:
        def __init__(self) -> None:
            self.pairs: list[Any] = []

        def offer(self, pair: Any) -> bool:
            self.pairs.append(pair)
            return True

        async def close(self) -> None:
            pass

    sink = Sink()
    mirrored = snapshot(flag(0, shadow_weight=100_000))
    async with AsyncRouter(config(upstream.url), flags=mirrored, pair_sinks=[sink], environ={}) as client:
        await client.chat.completions.create(**ASK)
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert [e async for e in stream]
        await eventually(lambda: len(sink.pairs) == 2)
    assert [pair["shadow"]["model"] for pair in sink.pairs] == ["new", "new"]


async def test_its_metrics_can_be_part_of_the_applications(client: AsyncRouter) -> None:
    await client.chat.completions.create(**ASK)
    host = prometheus_client.CollectorRegistry()
    host.register(client.metrics)  # type: ignore[arg-type]
    assert b"penstock_requests_total{" in prometheus_client.generate_latest(host)


async def test_many_at_once_keep_to_the_models_limits() -> None:
    provider = Provider({"old": ModelBehaviour(ttft=Latency(median_s=0.01, sigma=0.0)), "new": ModelBehaviour()}, speed=5.0)
    models = [
        {"name": n, "provider": "p", "limits": {"concurrency": 2, "queue": 1000, "max_wait": "20s"}} for n in ("old", "new")
    ]
    routes = [{"name": "chat", "match": {"model": ["chat"]}, "default": "old"}]
    async with (
        running_provider(provider) as url,
        AsyncRouter(config(f"{url}/v1", models=models, routes=routes), environ={}) as client,
    ):
        answers = await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(30)))
        assert {answer.model for answer in answers} == {"old"}
        assert value(client, "penstock_waiting", model="old") == 0


async def test_faults_of_the_provider_never_reach_the_application_as_anything_else() -> None:
    shaky = ModelBehaviour(errors=Errors(server_error=0.2, reset=0.1, cut=0.2, garbage=0.1, rate_limited=0.1))
    async with (
        running_provider(dict.fromkeys(("old", "new", "spare"), shaky), speed=200.0, seed=3) as url,
        AsyncRouter(config(f"{url}/v1"), flags=snapshot(flag(50_000)), environ={}) as client,
    ):

        async def one(i: int) -> str:
            try:
                got = await client.chat.completions.create(**{**ASK, "user": f"u-{i}"}, stream=i % 2 == 0)
                if i % 2 == 0:
                    reasons = [c.finish_reason async for e in got for c in e.choices if c.finish_reason]
                    return "ok" if reasons else "a clean end without finish_reason"
                return "ok" if got.choices[0].finish_reason else "half an answer"
            except penstock.APIError as exc:
                return type(exc).__name__

        outcomes = set(await asyncio.gather(*(one(i) for i in range(120))))
    assert {"ok", "APIError"} <= outcomes <= {"ok", "APIError", "InternalServerError", "RateLimitError"}


def test_without_await_it_is_the_same(tmp_path: Path) -> None:
    """A thread of its own: it works inside a running loop's thread, from several threads, and from a file."""
    served: dict[str, Any] = {}

    async def serve() -> None:
        async with running_provider({name: ModelBehaviour() for name in ("old", "new")}, speed=100.0) as url:
            served["url"] = url
            ready.set()
            await asyncio.to_thread(stop.wait)

    ready, stop = threading.Event(), threading.Event()
    upstream = threading.Thread(target=lambda: asyncio.run(serve()))
    upstream.start()
    try:
        assert ready.wait(20)
        path = tmp_path / "router.yaml"
        path.write_text(
            "apiVersion: penstock/v1\nkind: Router\nflags: {source: 'file:flags.json'}\n"
            f"providers: [{{name: p, base_url: '{served['url']}/v1'}}]\n"
            "models: [{name: old, provider: p}, {name: new, provider: p}]\n"
            "routes: [{name: chat, match: {model: [chat]}, flag: chat-model, default: old}]\n"
        )
        (tmp_path / "flags.json").write_text(json.dumps(snapshot(flag(0)).to_json()))
        with Router(path, environ={}) as client:
            answer = client.chat.completions.create(**ASK)
            assert (answer.model, answer.penstock.arm) == ("old", "baseline")
            assert client.take_flags(snapshot(flag(100_000, revision=2)))
            with client.chat.completions.create(**ASK, stream=True) as stream:
                assert stream.penstock.model == "new"
                assert [e for e in stream if e.choices and e.choices[0].finish_reason]
            assert [model.id for model in client.models.list()] == ["chat", "new", "old", "auto"]
            with pytest.raises(penstock.NotFoundError):
                client.models.retrieve("nobody")
            many = [threading.Thread(target=client.embeddings.create, kwargs={"model": "chat", "input": "x"}) for _ in range(8)]
            for one in many:
                one.start()
            for one in many:
                one.join()
            assert (
                client.metrics.get_sample_value(
                    "penstock_requests_total",
                    {
                        "environment": "production",
                        **ARM,
                        "arm": "candidate",
                        "model": "new",
                        "streaming": "false",
                        "outcome": "ok",
                    },
                )
                == 8
            )
        client.close()
        with pytest.raises(penstock.RouterError, match="closed"):
            client.chat.completions.create(**ASK)
    finally:
        stop.set()
        upstream.join()
    assert not [t for t in threading.enumerate() if t.name == "penstock-router"]


def test_a_file_that_is_wrong_is_said_where_the_router_is_made(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("apiVersion: penstock/v1\nkind: Router\n")
    for kind in (Router, AsyncRouter):
        with pytest.raises(ValueError, match=r"router\.yaml"):
            kind(path)


def test_answers_are_values() -> None:
    one = Answer({"a": {"b": [1, {"c": None}]}})
    assert one.a.b[1].c is None and one == Answer({"a": {"b": [1, {"c": None}]}}) != Answer({})
    assert copy.deepcopy(one) == one == pickle.loads(pickle.dumps(one))
    assert one.model_dump(exclude_none=True, mode="json") == {"a": {"b": [1, {}]}}
    assert "a" in dir(one) and "'b'" in repr(one)
    with pytest.raises(TypeError, match="no list"):
        iter(one)


def test_importing_the_package_imports_no_router() -> None:
    code = "import sys, router; assert 'aiohttp' not in sys.modules; from router import Router, APIError; assert 'aiohttp' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        _ = penstock.Ruoter
