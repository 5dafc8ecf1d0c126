"""The way a Zen MCP server calls (docs/how-to/zen-mcp-server.md): the synchronous openai SDK, no stream, an API key and no user."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest

from flagspec import in_share
from router.config import RouterConfig
from router.selection import unit_of
from specfile import parse_text
from tests.router.harness import Router, Upstream, flag, put

GUIDE = (Path(__file__).parents[2] / "docs/how-to/zen-mcp-server.md").read_text(encoding="utf-8")

TEXT = [{"role": "system", "content": "You review code."}, {"role": "user", "content": "Is this right?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
VISION = [{"role": "user", "content": [{"type": "text", "text": "What is in it?"}, IMAGE]}]


def sdk(router: Router, key: str) -> openai.OpenAI:
    """As the server makes its client: the address, the key, and no more."""
    return openai.OpenAI(api_key=key, base_url=f"{router.url}/v1", timeout=20)


async def call(router: Router, fields: dict[str, Any], key: str = "alice") -> Any:
    def create() -> Any:
        with sdk(router, key) as client:
            return client.chat.completions.create(**fields)

    return await asyncio.to_thread(create)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": TEXT, "stream": False, "temperature": 1.0},
        {"messages": TEXT, "stream": False, "temperature": 0.2, "max_tokens": 4096},
        {"messages": TEXT, "stream": False, "max_completion_tokens": 4096},
        {"messages": TEXT, "stream": False},
        {"messages": VISION, "stream": False, "temperature": 1.0},
        {"messages": TEXT, "stream": False, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"]},
    ],
    ids=["temperature", "max-tokens", "max-completion-tokens", "reasoning-model", "vision", "sampling"],
)
async def test_what_the_server_sends_arrives_untouched_and_nothing_is_added(
    router: Router, upstream: Upstream, fields: dict[str, Any]
) -> None:
    got = await call(router, {"model": "chat", **fields})
    assert (got.choices[0].message.content, got.choices[0].finish_reason, got.usage.total_tokens) == ("Hello", "stop", 1200)
    assert upstream.calls[0].body == {"model": "old", **fields}


async def test_each_key_is_a_unit_and_stays_on_its_side(router: Router) -> None:
    put(router, flag(50_000))
    keys = [f"person-{i}" for i in range(12)]
    units = {k: unit_of("user", None, None, f"Bearer {k}", "r") for k in keys}
    expected = {k: "new" if in_share("s", unit or "", 50_000) else "old" for k, unit in units.items()}
    for _ in range(2):
        answers = {k: await call(router, {"model": "chat", "messages": TEXT, "stream": False}, k) for k in keys}
        assert {k: a.model for k, a in answers.items()} == expected
    assert set(expected.values()) == {"old", "new"}


async def test_the_models_are_listed(router: Router) -> None:
    def listed() -> list[str]:
        with sdk(router, "k") as client:
            return [model.id for model in client.models.list()]

    assert await asyncio.to_thread(listed) == ["chat", "new", "old", "spare", "auto"]


def test_the_guides_router_yaml_and_model_list_are_what_they_say() -> None:
    found = re.search(r"```yaml\n(.*?)```", GUIDE, re.S)
    assert found
    config = parse_text(RouterConfig, found[1])
    models = re.search(r"```json\n(.*?)```", GUIDE, re.S)
    assert models
    declared = [entry["model_name"] for entry in json.loads(models[1])["models"]]
    assert set(declared) <= {name for route in config.routes for name in route.match.model}
