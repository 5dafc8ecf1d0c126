"""From a bucket to the trace of a request in it, by way of a real Prometheus."""

import asyncio
from pathlib import Path

import pytest

from bench.otlp import Receiver
from services.prometheus import PrometheusServer
from tests.router.harness import Upstream
from tests.router.test_tracing import PARENT, otlp, own_variables, traced

__all__ = ["otlp", "own_variables"]


@pytest.mark.services
async def test_prometheus_keeps_the_trace_of_a_request_in_a_bucket(
    upstream: Upstream, otlp: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with traced(upstream, otlp, monkeypatch) as router:
        async with await router.post({"model": "chat", "messages": []}, traceparent=PARENT) as response:
            assert response.status == 200
        address = router.url.removeprefix("http://")
        prometheus = PrometheusServer(tmp_path, {"router": [address]}, features=["exemplar-storage"])
        await asyncio.to_thread(prometheus.start)
        try:
            names = ("mcp_request_duration_seconds_bucket", "penstock_router_overhead_seconds_bucket")
            found: dict[str, list[str]] = {name: [] for name in names}
            async with asyncio.timeout(60):
                while not all(found.values()):
                    await asyncio.sleep(0.2)
                    for name in names:
                        query = {"query": name, "start": "0", "end": "4000000000"}
                        async with router.http.get(f"{prometheus.url}/api/v1/query_exemplars", params=query) as response:
                            groups = (await response.json())["data"] or []
                        found[name] = [each["labels"]["trace_id"] for group in groups for each in group["exemplars"]]
            query = {"query": "penstock_requests_total"}
            async with router.http.get(f"{prometheus.url}/api/v1/query", params=query) as response:
                series = (await response.json())["data"]["result"]
        finally:
            await asyncio.to_thread(prometheus.stop)
    trace = PARENT.split("-")[1]
    assert found == {name: [trace] for name in found}
    assert sum(float(one["value"][1]) for one in series) == 1, "counters keep their names in OpenMetrics"
