"""Drills, with the provider simulator behind the router: the fallback answers, the candidate is not asked, and nothing else is counted."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.behaviour import Errors, Latency, ModelBehaviour
from bench.provider import Provider, running_provider
from flagspec import Variant
from router.config import RouterConfig
from specfile import SpecError, parse_text
from tests.router.harness import Answer, Router, Upstream, config, flag, put, serve_router, serve_upstream, status
from tests.router.test_config import GOOD

TOKEN = "correct horse battery staple"
QUICK = ModelBehaviour(ttft=Latency(median_s=0.001, sigma=0), tokens_per_s=100_000)
ENVIRON = {"DRILL_TOKEN": f"{TOKEN}\n"}
DRILLS = {"token_env": "DRILL_TOKEN"}

CANDIDATE = {"arm": "candidate", "model": "new", "to_model": "old"}


@pytest.fixture
def provider() -> Provider:
    return Provider({"old": QUICK, "new": QUICK, "spare": QUICK})


@pytest.fixture
async def router(provider: Provider) -> AsyncIterator[Router]:
    async with (
        running_provider(provider) as base,
        serve_router(config(f"{base}/v1", drills=DRILLS), environ=ENVIRON) as served,
    ):
        yield served


async def drill(
    router: Router, model: str = "chat", *, token: str | None = TOKEN, kind: str = "fallback", **fields: Any
) -> Answer:
    headers = {"x_penstock_drill": kind} | ({} if token is None else {"x_penstock_drill_token": token})
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}
    async with await router.post(body, **headers) as response:
        return Answer(response.status, dict(response.headers), await response.text())


def broken(**errors: float) -> ModelBehaviour:
    return ModelBehaviour(ttft=QUICK.ttft, tokens_per_s=QUICK.tokens_per_s, errors=Errors(**errors))


async def samples(router: Router) -> dict[str, float]:
    """Every sample that is not 0, by its name and labels."""
    async with router.http.get(f"{router.url}/metrics") as response:
        text = await response.text()
    return {
        f"{s.name}{json.dumps(s.labels, sort_keys=True)}": s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.value
    }


def changed(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items() if value != before.get(name)}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("weights", [{"weight": 1}, {"weight": 0, "shadow_weight": 1}, {"weight": 100_000}], ids=str)
async def test_the_fallback_answers_and_the_candidate_is_not_asked(
    router: Router, provider: Provider, stream: bool, weights: dict[str, int]
) -> None:
    put(router, flag(**weights))
    got = await drill(router, stream=stream)
    assert got.status == 200
    assert {name: got.headers[f"x-penstock-{name}"] for name in ("model", "arm", "fallback", "drill")} == {
        "model": "old", "arm": "candidate", "fallback": "true", "drill": "fallback",
    }  # fmt: skip
    if stream:
        assert got.content and got.events[-1] == "[DONE]"
    else:
        assert got.json["model"] == "old" and got.json["choices"][0]["message"]["content"]
    assert {name: model.requests for name, model in provider.models.items()} == {"old": 1, "new": 0, "spare": 0}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_drill_counts_as_one_fallback_and_as_an_attempt_of_the_model_that_answered_and_as_nothing_else(
    router: Router, stream: bool
) -> None:
    put(router, flag(1_000))
    before = await samples(router)
    await drill(router, stream=stream)
    grown = changed(before, await samples(router))
    counted = {name for name in grown if name.startswith("penstock_")}
    labels = {
        "environment": "production", "flag": "chat-model", "route": "chat", "arm": "candidate", "model": "new",
        "streaming": str(stream).lower(), "to_model": "old", "outcome": "ok", "reason": "drill",
    }  # fmt: skip
    assert counted == {f"penstock_fallbacks_total{json.dumps(labels, sort_keys=True)}"}
    assert grown[counted.pop()] == 1
    assert {json.loads(name[name.index("{") :])["model"] for name in grown if name.startswith("mcp_")} == {"old"}


async def test_the_series_of_drills_are_there_at_zero_before_the_first_one_and_only_for_the_candidate(router: Router) -> None:
    put(router, flag(1_000))
    for outcome in ("ok", "failed"):
        for streaming in (False, True):
            for to_model in ("old", "spare"):
                labels = {**CANDIDATE, "to_model": to_model, "outcome": outcome, "reason": "drill"}
                assert router.arm("penstock_fallbacks_total", labels, streaming=streaming) == 0
    assert router.arm("penstock_fallbacks_total", to_model="spare", outcome="ok", reason="drill") is None


async def test_a_control_of_the_same_model_has_its_series_too(router: Router) -> None:
    put(router, flag(1_000, control=Variant(model="new"), candidate=Variant(model="new", params={"temperature": 0.1})))
    labels = {"arm": "candidate", "model": "new", "to_model": "new", "outcome": "ok"}
    assert [router.arm("penstock_fallbacks_total", labels, reason=reason) for reason in ("failure", "drill")] == [0, 0]
    assert (await drill(router)).headers["x-penstock-fallback"] == "true"
    assert router.arm("penstock_fallbacks_total", labels, reason="drill") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_fallback_that_fails_as_well_is_counted_and_the_next_one_answers(
    router: Router, provider: Provider, stream: bool
) -> None:
    put(router, flag(1_000))
    provider.models["old"].behaviour = broken(server_error=1)
    got = await drill(router, stream=stream)
    assert (got.status, got.headers["x-penstock-model"]) == (200, "spare")
    tried = [("old", "failed"), ("old", "ok"), ("spare", "ok")]
    assert [
        router.arm("penstock_fallbacks_total", {**CANDIDATE, "to_model": m, "outcome": o, "reason": "drill"}, streaming=stream)
        for m, o in tried
    ] == [1, 0, 1]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_drill_that_nobody_answers_is_no_unavailable_user(router: Router, provider: Provider, stream: bool) -> None:
    put(router, flag(1_000))
    before = await samples(router)
    for name in ("old", "spare"):
        provider.models[name].behaviour = broken(server_error=1)
    got = await drill(router, stream=stream)
    assert (got.status, got.headers["x-penstock-drill"], got.headers["x-penstock-model"]) == (502, "fallback", "")
    assert "new: failed on purpose, as a drill asked; it was not called; old: status 500; spare: status 500" in got.text
    grown = changed(before, await samples(router))
    assert sorted(name.partition("{")[0] for name in grown if name.startswith("penstock_")) == ["penstock_fallbacks_total"] * 2


async def test_a_fallback_stream_that_breaks_is_a_failed_fallback_and_ends_without_done(
    router: Router, provider: Provider
) -> None:
    put(router, flag(1_000))
    provider.models["old"].behaviour = broken(cut=1)
    got = await drill(router, stream=True)
    assert got.status == 200 and got.events[-1] != "[DONE]"
    assert router.arm("penstock_fallbacks_total", {**CANDIDATE, "outcome": "failed", "reason": "drill"}, streaming=True) == 1
    assert router.arm("penstock_unavailable_total", {"arm": "candidate", "model": "new"}, streaming=True) == 0


async def test_users_go_on_as_before_beside_drills(router: Router, provider: Provider) -> None:
    put(router, flag(50_000))
    users = [f"user-{i}" for i in range(20)]
    alone = [(await router.ask(user=u)).headers["x-penstock-model"] for u in users]
    asked = {name: model.requests for name, model in provider.models.items()}
    beside, _ = await asyncio.gather(
        asyncio.gather(*(router.ask(user=u) for u in users)), asyncio.gather(*(drill(router) for _ in range(20)))
    )
    assert [(a.status, a.headers["x-penstock-model"]) for a in beside] == [(200, model) for model in alone]
    assert not any("x-penstock-drill" in a.headers or a.headers["x-penstock-fallback"] == "true" for a in beside)
    assert provider.models["new"].requests == 2 * asked["new"]
    assert router.arm("penstock_requests_total", {"arm": "candidate", "model": "new"}, outcome="ok") == 2 * asked["new"]
    assert router.arm("penstock_requests_total", {"arm": "candidate", "model": "new"}, outcome="error") == 0


# --- who may, and when --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], f"{TOKEN}x"], ids=str)
async def test_without_the_token_nothing_happens(router: Router, provider: Provider, token: str | None) -> None:
    put(router, flag(100_000))
    before = await samples(router)
    got = await drill(router, token=token)
    assert (got.status, got.json["error"]["code"]) == (403, "drill_token_wrong")
    assert "x-penstock-drill" not in got.headers and TOKEN not in got.text
    assert sum(model.requests for model in provider.models.values()) == 0
    assert changed(before, await samples(router)) == {}


@pytest.mark.parametrize(
    ("drills", "environ", "says"),
    [
        ({}, {}, "router.yaml has no `drills`"),
        ({"drills": DRILLS}, {}, "DRILL_TOKEN is empty"),
        ({"drills": DRILLS}, {"DRILL_TOKEN": " \n"}, "DRILL_TOKEN is empty"),
    ],
    ids=["no-drills", "no-variable", "blank-variable"],
)
async def test_a_router_without_a_token_takes_no_drill_whatever_the_sender_shows(
    upstream: Upstream, drills: dict[str, Any], environ: dict[str, str], says: str
) -> None:
    async with serve_router(config(upstream.url, **drills), environ=environ) as router:
        put(router, flag(100_000))
        for token in (None, "", TOKEN):
            got = await drill(router, token=token)
            assert (got.status, got.json["error"]["code"]) == (403, "drills_disabled")
            assert says in got.json["error"]["message"]
    assert upstream.calls == []


async def test_the_token_alone_makes_no_drill(router: Router, provider: Provider) -> None:
    put(router, flag(100_000))
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "user": "u"}
    async with await router.post(body, x_penstock_drill_token=TOKEN) as response:
        assert (response.status, response.headers["x-penstock-model"]) == (200, "new")
        assert "x-penstock-drill" not in response.headers
    assert provider.models["new"].requests == 1


@pytest.mark.parametrize("kind", ["timeout", "true", "Fallback", ""])
async def test_another_kind_of_drill_is_refused_by_name(router: Router, provider: Provider, kind: str) -> None:
    put(router, flag(100_000))
    got = await drill(router, kind=kind)
    assert (got.status, got.json["error"]["code"]) == (400, "drill_unknown")
    assert f"{kind!r}; this router knows 'fallback'" in got.json["error"]["message"]
    assert sum(model.requests for model in provider.models.values()) == 0


LAPSED = datetime.now(UTC) - timedelta(seconds=1)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (None, "drill_flag_unseen"),
        ({}, "drill_no_traffic"),
        ({"weight": 50_000, "killed": True}, "drill_flag_killed"),
        ({"weight": 50_000, "lease": LAPSED}, "drill_lease_lapsed"),
    ],
    ids=["unseen", "no-traffic", "killed", "lapsed"],
)
async def test_where_no_user_could_come_to_the_candidate_there_is_no_drill(
    router: Router, provider: Provider, changes: dict[str, Any] | None, code: str
) -> None:
    if changes is not None:
        put(router, flag(**changes))
    before = await samples(router)
    got = await drill(router)
    assert (got.status, got.json["error"]["code"]) == (409, code)
    assert "chat-model" in got.json["error"]["message"]
    assert sum(model.requests for model in provider.models.values()) == 0
    assert changed(before, await samples(router)) == {}


async def test_a_model_without_a_flag_has_no_candidate_that_could_fail(router: Router) -> None:
    got = await drill(router, "spare")
    assert (got.status, got.json["error"]["code"]) == (409, "drill_no_flag")
    assert (await drill(router, "nonsense")).status == 404


async def test_a_route_without_any_fallback_says_so(upstream: Upstream) -> None:
    routes = [{"name": "chat", "match": {"model": ["chat"]}, "flag": "chat-model", "default": "old"}]
    async with serve_router(config(upstream.url, drills=DRILLS, routes=routes), environ=ENVIRON) as router:
        put(router, flag(1_000, control=Variant(model="new"), candidate=Variant(model="new")))
        got = await drill(router)
        assert (got.status, got.json["error"]["code"]) == (409, "drill_no_fallback")
        put(router, flag(1_000, revision=2))
        assert (await drill(router)).headers["x-penstock-model"] == "old"


async def test_a_drill_whose_own_key_the_provider_refuses_is_no_failed_fallback() -> None:
    async with serve_upstream() as upstream:
        upstream.script["old"] = status(401)
        async with serve_router(config(upstream.url, drills=DRILLS), environ=ENVIRON) as router:
            put(router, flag(1_000))
            got = await drill(router)
            assert (got.status, upstream.models()) == (401, ["old"])
            assert "p wants a key of the sender's in the header authorization" in got.json["error"]["message"]
            assert router.arm("penstock_fallbacks_total", {**CANDIDATE, "outcome": "failed", "reason": "drill"}) == 0
            # With a key of the router's own it would be the fallback's failure, and so it is for a user.
            put(router, flag(100_000, revision=2))
            upstream.script["new"] = status(500)
            assert (await router.ask()).headers["x-penstock-model"] == "spare"
            assert router.arm("penstock_fallbacks_total", {**CANDIDATE, "outcome": "failed", "reason": "failure"}) == 1


# --- what the sender needs to know ----------------------------------------------------------------------------------------------


async def test_the_list_of_models_says_which_names_a_flag_decides_about(router: Router) -> None:
    async with router.http.get(f"{router.url}/v1/models") as response:
        shown = {m["id"]: m.get("penstock") for m in (await response.json())["data"]}
    assert shown == {
        "chat": {"environment": "production", "route": "chat", "flag": "chat-model"}, "old": None, "new": None, "spare": None, "auto": None,
    }  # fmt: skip
    async with router.http.get(f"{router.url}/v1/models/chat") as response:
        assert (await response.json())["penstock"]["flag"] == "chat-model"


def test_drills_need_the_name_of_a_variable() -> None:
    text = GOOD + "drills: {token_env: PENSTOCK_DRILL_TOKEN}\n"
    assert parse_text(RouterConfig, text).drills is not None
    assert parse_text(RouterConfig, GOOD).drills is None
    for wrong in ("{}", "{token_env: 'not a name'}", "{token: secret}"):
        with pytest.raises(SpecError, match="drills"):
            parse_text(RouterConfig, f"{GOOD}drills: {wrong}\n")
