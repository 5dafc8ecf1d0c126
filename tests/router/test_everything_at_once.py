"""Every feature at once against a provider with every fault, and clients that leave: whatever happens, nothing is lost or left behind."""

import asyncio
import random
from collections import Counter

import aiohttp
import pytest

from bench.behaviour import Errors, Latency, ModelBehaviour, OutputTokens
from bench.provider import Provider, running_provider
from tests.router.harness import Router, config, eventually, flag, put, serve_router

FAULTS = Errors(rate_limited=0.08, server_error=0.08, reset=0.08, cut=0.08, garbage=0.08, timeout=0.02, hang_s=5)
SHAKY = ModelBehaviour(
    ttft=Latency(median_s=0.004, sigma=1), tokens_per_s=4000, output_tokens=OutputTokens(median=40), errors=FAULTS
)
REQUESTS = 400


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_request_is_booked_once_and_every_place_is_given_back(seed: int) -> None:
    names = ("old", "new", "spare")
    price = {"input_per_mtok": "2 USD", "output_per_mtok": "8 USD"}
    models = [
        {
            "name": name, "provider": "p", "price": price, "timeout": {"request": "150ms", "stream": "300ms", "first_token": "150ms"},
            "limits": {"concurrency": 6, "requests_per_s": 400, "tokens_per_min": 10**7, "queue": 8, "max_wait": "60ms"},
            "breaker": {"min_requests": 20, "open_for": "50ms", "window": "1s", "failure_ratio": "60%"},
        }
        for name in names
    ]  # fmt: skip
    provider = Provider(dict.fromkeys(names, SHAKY), seed=seed)
    async with running_provider(provider) as url:
        spec = config(f"{url}/v1", models=models, caps={"output_tokens": 500}, deadline={"request": "400ms", "stream": "700ms"})
        async with serve_router(spec) as router:
            put(router, flag(50_000, shadow_weight=50_000))
            outcomes = await _storm(router, random.Random(seed))
            # Of those that left, some did so before the router had read them.
            await eventually(lambda: REQUESTS - outcomes["left"] <= _booked(router) <= REQUESTS)
            await router.app.engine._mirror.close()  # type: ignore[union-attr]
            gates = router.app.engine._admission._gates  # type: ignore[union-attr]
            await eventually(lambda: not any(gate._meter.under_way or gate._line.length for gate in gates.values()))  # type: ignore[union-attr]
            assert min(outcomes[kind] for kind in ("ok", "failed", "broken off", "left")) > 0, outcomes
            assert not outcomes["no OpenAI error"] and not outcomes["quiet end"], outcomes
            unavailable = sum(
                router.arm("penstock_unavailable_total", {"arm": arm, "model": model}, streaming=streaming) or 0
                for arm, model in (("baseline", "old"), ("candidate", "new"))
                for streaming in (False, True)
            )
            # Of those that left, some did so when nobody was left to ask for them.
            told = outcomes["failed"] + outcomes["broken off"]
            assert told <= unavailable <= told + outcomes["left"]


def _booked(router: Router) -> float:
    found = 0.0
    for family in router.app.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "penstock_requests_total" and sample.labels["arm"] != "shadow":
                found += sample.value
    return found


async def _storm(router: Router, chance: random.Random) -> "Counter[str]":
    """Sends the requests, some of which leave early; what became of each."""
    outcomes: Counter[str] = Counter()
    todo = [(f"user-{i % 40}", chance.random() < 0.5, chance.random() < 0.1) for i in range(REQUESTS)]

    async def one(user: str, stream: bool, leaves: bool) -> None:
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "user": user, "stream": stream}
        patience = aiohttp.ClientTimeout(sock_read=0.01 if leaves else 30)
        try:
            async with router.http.post(f"{router.url}/v1/chat/completions", json=body, timeout=patience) as response:
                text = await response.text()
        except TimeoutError:
            outcomes["left"] += 1
            return
        if leaves:
            outcomes["left, but was answered"] += response.status == 200
        if response.status != 200:
            outcomes["failed" if '"error"' in text else "no OpenAI error"] += 1
        elif not stream or text.endswith("data: [DONE]\n\n"):
            outcomes["ok"] += 1
        else:
            outcomes["broken off" if '"error"' in text else "quiet end"] += 1

    async def worker() -> None:
        while todo:
            await one(*todo.pop())

    await asyncio.gather(*(worker() for _ in range(30)))
    return outcomes
