"""Mirrored copies: the candidate sees them, the user never does."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from router.metrics import OUTCOMES
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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("control", "booked"),
    [(200, "error"), (400, "client_error"), (503, "client_error")],
    ids=["answered", "refused-as-well", "nobody-answered"],
)
async def test_a_copy_that_is_refused_is_judged_by_what_became_of_the_users_own_request(
    router: Router, upstream: Upstream, stream: bool, control: int, booked: str
) -> None:
    put(router, flag(0, shadow_weight=100_000))
    upstream.script["new"] = status(400)
    if control != 200:
        upstream.script |= {"old": status(control), "spare": status(503)}
    await router.ask(stream=stream)
    await eventually(lambda: router.metric("penstock_shadow_total", **MIRRORED, outcome="failed") == 1)
    assert [o for o in OUTCOMES if router.arm("penstock_requests_total", SHADOW, streaming=stream, outcome=o)] == [booked]


async def test_a_refused_copy_is_booked_when_the_users_answer_is_known_and_not_before(router: Router, upstream: Upstream) -> None:
    refused, release = asyncio.Event(), asyncio.Event()

    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        refused.set()
        return await status(422)(request, body)

    async def late(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return await answer(request, body)

    put(router, flag(0, shadow_weight=100_000))
    upstream.script = {"new": refuse, "old": late}
    asking = asyncio.create_task(router.ask())
    await refused.wait()
    assert router.arm("penstock_requests_total", SHADOW, outcome="client_error") == 0
    release.set()
    assert (await asking).status == 200
    await eventually(lambda: router.arm("penstock_requests_total", SHADOW, outcome="error") == 1)


async def test_a_refused_copy_waits_for_the_users_answer_no_longer_than_its_own_timeout(upstream: Upstream) -> None:
    timeouts = {"old": "5s", "new": "50ms", "spare": "5s"}
    models = [{"name": n, "provider": "p", "timeout": {"request": t}} for n, t in timeouts.items()]
    upstream.script = {"new": status(400), "old": upstream.hang}
    async with serve_router(config(upstream.url, models=models)) as router:
        put(router, flag(0, shadow_weight=100_000))
        asking = asyncio.create_task(router.ask())
        await eventually(lambda: router.arm("penstock_requests_total", SHADOW, outcome="client_error") == 1)
        assert not asking.done()
        asking.cancel()
