"""The router's endpoints against their OpenAPI document, with inputs that nobody would think of (schemathesis), over real HTTP."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from bench.behaviour import Latency, ModelBehaviour
from bench.provider import Provider, running_provider
from tests.router.harness import config, serve_router

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "router.openapi.json"
QUICK = ModelBehaviour(ttft=Latency(median_s=0.001, sigma=0), tokens_per_s=100_000)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]

schema = schemathesis.openapi.from_dict(json.loads(DOCUMENT.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A router before simulated models, in a loop of its own: schemathesis asks with blocking calls."""
    started, loop = threading.Event(), asyncio.new_event_loop()
    found: list[str] = []
    over = asyncio.Event()

    async def run() -> None:
        async with (
            running_provider(Provider(dict.fromkeys(("old", "new", "spare"), QUICK))) as upstream,
            serve_router(config(f"{upstream}/v1")) as router,
        ):
            found.append(router.url)
            started.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(20)
    yield found[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(20)


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_no_request_breaks_an_endpoint_or_its_document(case: schemathesis.Case, address: str) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and case.body["model"]:
        case.body["model"] = "chat"  # hardly anybody would meet a name that there is
    elif case.path_parameters and len(str(case.path_parameters["name"])) % 2:
        case.path_parameters["name"] = "old"
    case.call_and_validate(base_url=address, checks=CHECKS)


def test_the_document_names_every_path_that_the_router_has() -> None:
    from router.app import ENDPOINTS

    assert {*ENDPOINTS, "/v1/models", "/v1/models/{name}", "/healthz", "/readyz"} == set(schema.raw_schema["paths"])
