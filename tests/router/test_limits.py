"""Limits of a model: what is used, who waits, whose turn it is; and what clients are told."""

import asyncio
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import Limits
from router.limits import Bucket, Line, Meter, share_s
from tests.router.harness import Upstream, answer, config, eventually, flag, put, serve_router
from tests.router.test_breaker import Clock


@given(st.floats(0.5, 50), st.integers(1, 60), st.lists(st.floats(0, 3), max_size=60))
def test_a_bucket_never_lets_more_through_than_its_burst_and_what_flowed_in(per_s: float, most: int, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(per_s, most), 0.0, 0
    for gap in gaps:
        now += gap
        while bucket.wait_s(1, now) == 0:
            bucket.take(1, now)
            taken += 1
        assert taken <= most + per_s * now + 1e-6
        assert bucket.wait_s(1, now) <= 1 / per_s + 1e-9


def test_an_amount_beyond_the_bucket_waits_until_it_is_full_and_leaves_a_debt() -> None:
    bucket = Bucket(10, 100)
    bucket.take(50, 0.0)
    assert bucket.wait_s(300, 0.0) == 5.0
    bucket.take(300, 5.0)
    assert bucket.wait_s(1, 5.0) == pytest.approx(20.1)


def test_output_is_charged_when_it_is_known_and_input_that_was_less_is_given_back() -> None:
    meter = Meter(Limits(tokens_per_min=600))
    assert meter.try_begin(100, 0.0) == 0
    meter.end(100, 500, 0.0)
    assert meter.wait_s(100, 0.0) == (0.0, "")
    assert meter.wait_s(101, 0.0) == (pytest.approx(0.1), "tokens per minute")
    assert meter.try_begin(100, 0.0) == 0
    meter.end(100, 0, 0.0)
    assert meter.wait_s(100, 0.0)[0] == 0.0


def test_half_of_the_time_is_kept_for_those_who_come_after() -> None:
    assert (share_s(60, 2), share_s(30, 1), share_s(15, 0)) == (30, 15, 15)


async def in_turn(order: list[tuple[str, int]], most: int = 100) -> list[str]:
    """Who is served in which order when clients come with so many requests each, and one call at a time is allowed."""
    line = Line(meter := Meter(Limits(concurrency=1)), most, asyncio.get_running_loop().time)
    served: list[str] = []

    async def one(client: str) -> None:
        if await line.wait(client, 0, 60):
            served.append(client)
            meter.end(0, 0, 0.0)
            line.left()
        else:
            served.append(f"-{client}")

    assert line.enter(0)
    waiting = []
    for client, count in order:
        for _ in range(count):
            waiting.append(asyncio.create_task(one(client)))
            await asyncio.sleep(0)
    assert not line.enter(0), "nobody overtakes"
    meter.end(0, 0, 0.0)
    line.left()
    await asyncio.gather(*waiting)
    assert (line.length, meter.under_way) == (0, 0)
    return served


async def test_clients_are_served_in_turn_however_much_one_of_them_asks() -> None:
    assert await in_turn([("busy", 4), ("a", 1), ("b", 2)]) == ["busy", "a", "b", "busy", "b", "busy", "busy"]


async def test_of_a_full_line_the_busiest_clients_newest_is_sent_away() -> None:
    assert await in_turn([("busy", 3), ("a", 1)], most=3) == ["-busy", "busy", "a", "busy"]
    assert await in_turn([("a", 1), ("b", 1), ("c", 1)], most=2) == ["-c", "a", "b"]


async def test_who_loses_patience_or_leaves_takes_no_place_along() -> None:
    line = Line(meter := Meter(Limits(concurrency=1)), 10, asyncio.get_running_loop().time)
    assert line.enter(0)
    assert not await line.wait("a", 0, 0.01)
    gone, stays = (asyncio.create_task(line.wait(c, 0, 60)) for c in ("gone", "stays"))
    await asyncio.sleep(0)
    meter.end(0, 0, 0.0)
    line.left()  # calls `gone` in the same moment in which it leaves
    gone.cancel()
    assert await stays is True
    assert (line.length, meter.under_way) == (0, 1)


async def test_who_is_leaving_when_its_turn_comes_takes_no_place_along() -> None:
    line = Line(meter := Meter(Limits(concurrency=1)), 10, asyncio.get_running_loop().time)
    assert line.enter(0)
    gone, stays = (asyncio.create_task(line.wait(c, 0, 60)) for c in ("gone", "stays"))
    await asyncio.sleep(0)
    gone.cancel()  # it has not run since, and stands in line still
    meter.end(0, 0, 0.0)
    line.left()
    assert await stays is True
    assert (line.length, meter.under_way) == (0, 1)


def limited(upstream: Upstream, **limits: Any) -> Any:
    models = [
        {"name": "old", "provider": "p", "limits": limits},
        {"name": "new", "provider": "p", "limits": limits},
        {"name": "spare", "provider": "p"},
    ]
    route = {"name": "chat", "match": {"model": ["chat"]}, "flag": "chat-model", "default": "old"}
    return config(upstream.url, models=models, routes=[route])


async def test_beyond_the_rate_the_client_gets_429_and_when_to_come_back(upstream: Upstream) -> None:
    clock = Clock()
    async with serve_router(limited(upstream, requests_per_s=0.1, queue=0), clock=clock) as router:
        assert (await router.ask()).status == 200
        clock.now += 3
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(model="chat", messages=[])
        assert refused.value.response.headers["retry-after"] == "7"
        assert (refused.value.code, len(upstream.calls)) == ("rate_limit_exceeded", 1)
        assert "requests per second" in refused.value.message
        assert router.metric("penstock_limited_total", model="old") == 1
        assert router.arm("penstock_requests_total", outcome="rate_limited") == 1
        clock.now += 7
        assert (await router.ask()).status == 200


async def test_tokens_of_the_answer_count_against_the_next_requests(upstream: Upstream) -> None:
    clock = Clock()
    async with serve_router(limited(upstream, tokens_per_min=1200, queue=0), clock=clock) as router:
        assert (await router.ask()).status == 200  # 1,200 tokens, as the answer says
        refused = await router.ask()
        assert (refused.status, "tokens per minute" in refused.text) == (429, True)
        clock.now += 2
        assert (await router.ask()).status == 200


async def test_a_full_model_is_passed_over_for_its_fallback(upstream: Upstream) -> None:
    spec = limited(upstream, requests_per_s=0.01, queue=0)
    route = spec.routes[0].model_copy(update={"fallbacks": ["spare"]})
    async with serve_router(spec.model_copy(update={"routes": [route]})) as router:
        served = [(await router.ask()).headers["x-penstock-model"] for _ in range(2)]
        assert served == ["old", "spare"]


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_beyond_the_cap_wait_for_their_turn_and_none_is_lost(upstream: Upstream, stream: bool) -> None:
    under_way = most = 0

    async def slow(request: Any, body: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        try:
            return await answer(request, body)
        finally:
            under_way -= 1

    upstream.script["old"] = slow
    async with serve_router(limited(upstream, concurrency=2, max_wait="20s")) as router:
        answers = await asyncio.gather(*(router.ask(user=f"u-{i % 3}", stream=stream) for i in range(12)))
        assert [a.status for a in answers] == [200] * 12
        assert most <= 2
        assert router.metric("penstock_waiting", model="old") == 0


async def test_a_client_that_leaves_while_it_waits_gives_its_turn_back(upstream: Upstream) -> None:
    upstream.script["old"] = upstream.hang
    async with serve_router(limited(upstream, concurrency=1, max_wait="20s")) as router:
        holds, waits = (asyncio.create_task(router.ask()) for _ in range(2))
        await eventually(lambda: router.metric("penstock_waiting", model="old") == 1)
        waits.cancel()
        await eventually(lambda: router.metric("penstock_waiting", model="old") == 0)
        assert router.arm("penstock_requests_total", outcome="cancelled") == 1, "who left in line is booked as any who left"
        holds.cancel()
        await upstream.cancelled.wait()
        upstream.script.clear()
        assert (await router.ask()).status == 200


async def test_a_client_that_leaves_before_the_first_byte_of_its_stream_gives_its_place_back(upstream: Upstream) -> None:
    async with serve_router(limited(upstream, concurrency=1, max_wait="20s")) as router:
        body = b'{"model": "old", "messages": [], "stream": true}'
        arrived, left = [{"type": "http.request", "body": body}], asyncio.Event()

        async def receive() -> Any:
            if arrived:
                return arrived.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            left.set()  # a client that has stopped reading, and then goes
            await asyncio.Event().wait()

        await router.app({"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}, receive, send)
        labels = {"flag": "", "route": "", "streaming": "true", "arm": "baseline", "model": "old"}
        assert router.metric("penstock_requests_total", **labels, outcome="cancelled") == 1
        async with asyncio.timeout(5):
            assert (await router.ask("old")).status == 200


async def test_a_bug_gives_its_place_back(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_router(limited(upstream, concurrency=1, max_wait="20s")) as router:
        with monkeypatch.context() as broken:
            broken.setattr("router.caller.reasoned", lambda *_, **__: {"x": object()})
            got = await router.ask("old")
            assert (got.status, "object" in got.text) == (500, False)
        async with asyncio.timeout(5):
            assert (await router.ask("old")).status == 200


async def test_patience_ends_and_says_so(upstream: Upstream) -> None:
    upstream.script["old"] = upstream.hang
    async with serve_router(limited(upstream, concurrency=1, max_wait="20ms")) as router:
        holds = asyncio.create_task(router.ask())
        await eventually(lambda: bool(upstream.calls))
        refused = await router.ask()
        assert (refused.status, refused.headers["retry-after"], "1 calls at once" in refused.text) == (429, "1", True)
        holds.cancel()


async def test_copies_leave_half_of_every_limit_to_users(upstream: Upstream) -> None:
    release = asyncio.Event()

    async def held(request: Any, body: Any) -> Any:
        await release.wait()
        return await answer(request, body)

    upstream.script["new"] = held
    async with serve_router(limited(upstream, concurrency=4)) as router:
        put(router, flag(0, shadow_weight=100_000))
        for _ in range(4):
            assert (await router.ask()).status == 200
        await eventually(lambda: upstream.models().count("new") == 2)
        skipped = {"flag": "chat-model", "route": "chat", "arm": "shadow", "model": "new", "outcome": "skipped_limit"}
        await eventually(lambda: router.metric("penstock_shadow_total", **skipped) == 2)
        release.set()


def deadline(upstream: Upstream, **spec: str) -> Any:
    models = [{"name": n, "provider": "p", "timeout": {"request": "5s", "stream": "5s"}} for n in ("old", "new", "spare")]
    return config(upstream.url, models=models, deadline=spec)


@pytest.mark.parametrize("stream", [False, True])
async def test_one_deadline_is_shared_out_over_the_attempts(upstream: Upstream, stream: bool) -> None:
    upstream.script = {"old": upstream.hang, "spare": upstream.hang}
    async with serve_router(deadline(upstream, request="400ms", stream="400ms")) as router:
        got = await router.ask(stream=stream)
        assert (got.status, got.json["error"]["code"], upstream.models()) == (504, "timeout", ["old", "spare"])
        first = router.arm("penstock_request_duration_seconds_sum", streaming=stream)
        assert first == pytest.approx(0.2, abs=0.1), "half for the first, the rest for the second"


async def test_time_after_the_first_token_is_kept_for_nobody_else(upstream: Upstream) -> None:
    from tests.router.test_failures import DONE, ROLE, STOP, WORD

    async def slow_tail(request: Any, body: Any) -> Any:
        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(ROLE + WORD)
        await asyncio.sleep(0.7)
        await response.write(STOP + DONE)
        return response

    upstream.script["old"] = slow_tail
    async with serve_router(deadline(upstream, stream="1s")) as router:
        assert (await router.ask(stream=True)).events[-1] == "[DONE]"
