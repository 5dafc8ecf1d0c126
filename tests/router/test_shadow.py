"""Mirrored copies: the candidate sees them, the user never does."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from tests.router.harness import Router, Upstream, answer, config, eventually, flag, put, serve_router, status

SHADOW = {"arm": "shadow", "model": "new"}
MIRRORED = {"flag": "chat-model", "route": "chat", **SHADOW}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_copy_goes_to_the_candidate_and_its_answer_to_nobody(router: Router, upstream: Upstream, stream: bool) -> None:
    put(router, flag(0, shadow_weight=100_000))
    got = await router.ask(stream=stream)
    assert (got.headers["x-penstock-model"], got.headers["x-penstock-arm"]) == ("old", "baseline")
    await eventually(lambda: router.metric("penstock_shadow_total", **MIRRORED, outcome="mirrored") == 1)
    assert sorted(upstream.models()) == ["new", "old"]
    copy = next(c for c in upstream.calls if c.model == "new")
    assert (copy.body["messages"], copy.body["reasoning_effort"]) == ([{"role": "user", "content": "Hi"}], "low")
    assert router.arm("penstock_requests_total", SHADOW, streaming=stream, outcome="ok") == 1
    assert router.arm("penstock_requests_total", streaming=stream, outcome="ok") == 1
    assert router.arm("penstock_cost_usd_total", SHADOW, streaming=stream) == pytest.approx(0.0036)
    assert router.arm("penstock_ttft_seconds_count", SHADOW, streaming=stream) == int(stream)


async def test_a_copy_that_fails_or_hangs_costs_the_user_nothing(upstream: Upstream) -> None:
    async with serve_router(config(upstream.url, shadow={"drain": "10ms"})) as router:
        put(router, flag(0, shadow_weight=100_000))
        upstream.script["new"] = status(500)
        assert (await router.ask()).status == 200
        await eventually(lambda: router.metric("penstock_shadow_total", **MIRRORED, outcome="failed") == 1)
        assert router.arm("penstock_requests_total", SHADOW, outcome="error") == 1
        assert router.arm("penstock_unavailable_total", SHADOW) == 0
        upstream.script["new"] = upstream.hang
        assert (await router.ask()).status == 200
    assert upstream.models().count("old") == 2, "a copy has no fallback"


async def test_copies_beyond_the_cap_are_skipped_and_counted(upstream: Upstream) -> None:
    upstream.script["new"] = upstream.hang
    async with serve_router(config(upstream.url, shadow={"concurrency": 2, "drain": "10ms"})) as router:
        put(router, flag(0, shadow_weight=100_000))
        answers = [await router.ask() for _ in range(5)]
        await eventually(lambda: upstream.models().count("new") == 2)
        assert [a.status for a in answers] == [200] * 5
        assert router.metric("penstock_shadow_total", **MIRRORED, outcome="skipped_concurrency") == 3
    assert router.arm("penstock_requests_total", SHADOW, outcome="cancelled") == 2, "shutdown cancels what does not drain"


async def test_shutdown_lets_copies_finish(upstream: Upstream) -> None:
    release = asyncio.Event()

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return await answer(request, body)

    upstream.script["new"] = slow
    async with serve_router(config(upstream.url)) as router:
        put(router, flag(0, shadow_weight=100_000))
        await router.ask()
        await eventually(lambda: "new" in upstream.models())
        asyncio.get_running_loop().call_later(0.1, release.set)
    assert router.metric("penstock_shadow_total", **MIRRORED, outcome="mirrored") == 1


async def test_a_unit_that_the_candidate_answers_is_not_mirrored_as_well(router: Router, upstream: Upstream) -> None:
    put(router, flag(100_000, shadow_weight=100_000))
    await router.ask()
    assert upstream.models() == ["new"]
