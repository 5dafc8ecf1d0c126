"""What /metrics says, against docs/reference/router-metrics.md."""

import asyncio
import re
from math import inf
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from flagspec.latency import LATENCY_EDGES_S, RATIO
from router.metrics import OUTCOMES
from tests.router.harness import Router, Upstream, answer, flag, put

REFERENCE = Path(__file__).parents[2] / "docs/reference/router-metrics.md"


async def exposed(router: Router) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    async with router.http.get(f"{router.url}/metrics") as response:
        assert response.headers["content-type"].startswith("text/plain")
        text = await response.text()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


async def test_every_metric_of_the_reference_is_there_before_any_request_and_no_other(router: Router) -> None:
    put(router, flag(1_000))
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", REFERENCE.read_text(), re.M))
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name, _ in await exposed(router)}
    assert names == documented


async def test_both_arms_and_the_shadow_of_a_flag_start_at_zero(router: Router) -> None:
    put(router, flag(1_000))
    samples = await exposed(router)
    for arm, model in (("baseline", "old"), ("candidate", "new"), ("shadow", "new")):
        for streaming in ("false", "true"):
            common = {"environment": "production", "flag": "chat-model", "route": "chat"}
            labels = {**common, "arm": arm, "model": model, "streaming": streaming}
            for outcome in OUTCOMES:
                assert samples["penstock_requests_total", tuple(sorted({**labels, "outcome": outcome}.items()))] == 0
            for name in ("penstock_unavailable_total", "penstock_request_duration_seconds_count", "penstock_cost_requests_total"):
                assert samples[name, tuple(sorted(labels.items()))] == 0
    for copied in ("mirrored", "failed", "skipped_concurrency"):
        labels = {"environment": "production", "flag": "chat-model", "route": "chat", "arm": "shadow", "model": "new"}
        assert samples["penstock_shadow_total", tuple(sorted({**labels, "outcome": copied}.items()))] == 0


@pytest.mark.parametrize("name", ["penstock_request_duration_seconds", "penstock_ttft_seconds"])
async def test_latencies_are_counted_at_the_edges_that_the_gates_judge_by(router: Router, name: str) -> None:
    edges = {dict(labels)["le"] for sample, labels in await exposed(router) if sample == f"{name}_bucket"}
    assert sorted(float(edge) for edge in edges) == [*LATENCY_EDGES_S, inf]


def test_the_reference_names_every_round_limit_among_the_edges() -> None:
    sentence = re.search(r"the round limits ([\d., and]+) s", REFERENCE.read_text())
    assert sentence
    grid = {float(f"{RATIO**k:.6g}") for k in range(-32, 48)}
    assert {float(limit) for limit in re.findall(r"[\d.]*\d", sentence[1])} == set(LATENCY_EDGES_S) - grid
    assert grid < set(LATENCY_EDGES_S)


async def test_an_answer_is_counted_timed_and_priced_once(router: Router) -> None:
    await router.ask()
    assert router.arm("penstock_requests_total", outcome="ok") == 1
    assert router.arm("penstock_request_duration_seconds_count") == 1
    assert router.arm("penstock_cost_usd_total") == pytest.approx(0.0036)
    assert router.metric("mcp_request_duration_seconds_count", model="old", provider="p", tool="chat") == 1
    assert router.metric("mcp_tokens_total", model="old", direction="input") == 1000


async def test_what_clients_invent_creates_no_series(router: Router) -> None:
    put(router, flag(50_000))
    await router.ask()
    before = set(await exposed(router))
    for i in range(30):
        await router.ask(f"model-{i}", user=f"user-{i}")
        await router.ask("chat", user=f"tenant-{i}", stream=True, penstock={"preferred_model": f"m-{i}"})
        async with await router.post({"model": "chat", "messages": [], "user": f"{i}"}, x_penstock_unit=f"u{i}") as response:
            await response.read()
    new = {name for name in set(await exposed(router)) - before if "new" not in str(name) and "spare" not in str(name)}
    assert not new


async def test_overhead_is_what_is_left_without_the_provider(router: Router, upstream: Upstream) -> None:
    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return await answer(request, body)

    upstream.script = {"old": slow}
    labels = {"route": "chat", "streaming": "false"}
    assert router.metric("penstock_router_overhead_seconds_count", **labels) == 0
    await router.ask()
    assert router.metric("penstock_router_overhead_seconds_count", **labels) == 1
    took = router.metric("penstock_router_overhead_seconds_sum", **labels)
    assert took is not None and 0 < took < 0.4, "the provider's half second is not the router's"
    assert router.metric("mcp_request_duration_seconds_sum", model="old", provider="p", tool="chat") > 0.5
    await router.ask(stream=True)
    assert router.metric("penstock_router_overhead_seconds_count", route="chat", streaming="true") == 1
    await router.ask("old")
    assert router.metric("penstock_router_overhead_seconds_count", route="", streaming="false") == 1


async def test_openmetrics_is_for_who_asks_for_it(router: Router) -> None:
    async with router.http.get(f"{router.url}/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        text = await response.text()
    assert text.endswith("# EOF\n")
    names = {family.name for family in openmetrics.text_string_to_metric_families(text)}
    assert "penstock_router_overhead_seconds" in names
