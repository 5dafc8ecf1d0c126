"""Providers that are known: their addresses and keys are filled in, and what they refuse is not sent to them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bench.behaviour import ModelBehaviour
from bench.personas import PREFIX, Persona, PersonaName
from bench.provider import Provider
from bench.serving import running_app
from router.config import RouterConfig
from router.presets import PRESETS
from router.server import create_app
from specfile import SpecError, parse_text
from tests.router.harness import Router, Upstream, config, serve_router
from tests.router.test_config import GOOD

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
EVERYTHING: dict[str, Any] = {
    "model": "chat", "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "user": "ann",
    "temperature": 0.7, "top_p": 0.9, "stop": ["END"], "seed": 7, "store": False, "metadata": {"team": "a"}, "frequency_penalty": 0.1,
    "safety_identifier": "x", "prompt_cache_key": "y", "parallel_tool_calls": True, "max_completion_tokens": 5000,
    "reasoning_effort": "medium",
}  # fmt: skip


@asynccontextmanager
async def before(name: PersonaName, key: str = "key", **provider: Any) -> AsyncIterator[tuple[Router, Persona]]:
    persona = Persona(name, Provider({"m": ModelBehaviour()}, speed=100.0))
    async with running_app(persona) as url:
        spec = config(
            "http://unused",
            providers=[{"name": "p", "preset": name, "base_url": url + PREFIX[name], **provider}],
            models=[{"name": "m", "provider": "p"}],
            routes=[{"name": "chat", "match": {"model": ["chat"]}, "default": "m"}],
        )
        async with serve_router(spec, environ={PRESETS[name].api_key_env: key}) as router:
            yield router, persona


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["anthropic", "google"])
async def test_a_request_with_everything_is_answered(name: PersonaName, stream: bool) -> None:
    async with before(name) as (router, persona), await router.post({**EVERYTHING, "stream": stream}) as response:
        text = await response.text()
        assert response.status == 200, text
        assert text.endswith("data: [DONE]\n\n") if stream else '"finish_reason":"stop"' in text
    (seen,) = persona.seen
    assert (seen["model"], seen["temperature"], seen["seed"], seen["messages"]) == ("m", 0.7, 7, EVERYTHING["messages"])
    if name == "google":
        assert seen.keys() & set(PRESETS["google"].drop) == set() and seen["reasoning_effort"] == "medium"
    else:
        assert (seen["metadata"], seen["user"]) == ({"team": "a"}, "ann"), "what it ignores goes to it as it came"
        assert seen["thinking"] == {"type": "enabled", "budget_tokens": 4999} and "reasoning_effort" not in seen


async def test_without_the_preset_google_refuses_and_the_test_can_fail() -> None:
    plain = before("google", preset=None, api_key_env="GEMINI_API_KEY")
    async with plain as (router, persona), await router.post(EVERYTHING) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"] == "The provider refused the request (status 400)."
    assert persona.seen == []


@pytest.mark.parametrize(
    ("name", "fields", "said"), [("anthropic", {"n": 2}, "n: must be 1"), ("google", {"thinking": {}}, "status 400")]
)
async def test_what_is_refused_all_the_same_is_the_clients_to_know(name: PersonaName, fields: dict[str, Any], said: str) -> None:
    async with before(name) as (router, _), await router.post({**EVERYTHING, **fields}) as response:
        assert response.status == 400
        assert said in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("name", "path", "status"), [("anthropic", "embeddings", 400), ("google", "embeddings", 200), ("google", "responses", 400)]
)
async def test_endpoints_that_it_has_not_are_not_asked_for(name: PersonaName, path: str, status: int) -> None:
    body = {"model": "chat", "input": "x", "user": "u"}
    async with before(name) as (router, persona), router.http.post(f"{router.url}/v1/{path}", json=body) as response:
        assert response.status == status, await response.text()
        if status == 400:
            assert (await response.json())["error"]["code"] == "unsupported"
    assert len(persona.seen) == (status == 200)


@pytest.mark.parametrize("name", ["anthropic", "google"])
async def test_a_wrong_key_is_the_providers_failure_and_never_shown(name: PersonaName) -> None:
    async with before(name, key="sk-wrong-key-of-mine") as (router, _), await router.post(EVERYTHING) as response:
        text = await response.text()
        assert response.status == 502 and "sk-wrong" not in text


def test_a_preset_fills_in_only_what_the_file_leaves_out() -> None:
    text = GOOD.replace('{name: p, base_url: "http://h/v1"}', "{name: p, preset: google, drop: [seed], api_key_env: MINE}")
    provider = parse_text(RouterConfig, text).providers[0]
    assert provider.base_url == "https://generativelanguage.googleapis.com/v1beta/openai"
    assert (provider.drop, provider.api_key_env, provider.endpoints) == (["seed"], "MINE", ["chat", "embeddings"])


@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        ("{name: p}", "4:5: providers.0: 'p' has no base_url and no preset (presets: anthropic, google, openai, openrouter)"),
        ("{name: p, preset: mine}", "providers.0.preset: "),
        ('{name: p, preset: openai, base_url: "ftp://x"}', "providers.0.base_url: 'ftp://x' is not an address"),
        ('{name: p, preset: openai, headers: {"a b": c}}', "providers.0.headers"),
        ('{name: p, preset: openai, headers: {a: "x\\ny"}}', "providers.0.headers.a"),
        ("{name: p, preset: openai, api_key_header: cookie}", "providers.0.api_key_header: "),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_place(provider: str, problem: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_text(RouterConfig, GOOD.replace('{name: p, base_url: "http://h/v1"}', provider))
    assert problem in str(refused.value)


@pytest.mark.parametrize(("header", "sent"), [("authorization", "Bearer k"), ("x-api-key", "k"), ("api-key", "k")])
async def test_keys_and_other_headers_stand_where_the_file_says(upstream: Upstream, header: str, sent: str) -> None:
    provider = {
        "name": "p",
        "base_url": upstream.url,
        "api_key_env": "K",
        "api_key_header": header,
        "headers": {"X-Team": "blue"},
    }
    async with serve_router(config(upstream.url, providers=[provider]), environ={"K": "k"}) as router:
        assert (await router.ask()).status == 200
    got = upstream.calls[0].headers
    assert (got[header], got["X-Team"]) == (sent, "blue")
    assert [name for name in ("authorization", "x-api-key", "api-key") if name in got] == [header]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_makes_a_router(name: str) -> None:
    text = GOOD.replace('{name: p, base_url: "http://h/v1"}', f"{{name: p, preset: {name}}}")
    assert create_app(parse_text(RouterConfig, text), environ={})
