"""The examples of the documentation, each run against the provider simulator: what a reader copies is what works."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest

from bench.behaviour import ModelBehaviour
from bench.provider import running_provider
from flagspec import Snapshot, Variant
from router.config import RouterConfig, read_config
from specfile import parse_text
from tests.router.harness import Router, Upstream, eventually, flag, put, serve_router
from tests.router.test_config import GOOD

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def moved(name: str, base_url: str, tmp_path: Path) -> RouterConfig:
    """An example's file with another address for its providers, another folder for its pairs and no flag source."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    text = re.sub(r"^flags: .*\n", "", text, flags=re.M)
    text = re.sub(r"base_url: \S+", f"base_url: {base_url}", text)
    text = text.replace("preset: openai}", f"preset: openai, base_url: '{base_url}'}}").replace("path: ", f"path: {tmp_path}/")
    return parse_text(RouterConfig, text, name)


def shadowed(config: RouterConfig) -> Snapshot:
    route, (control, candidate) = config.routes[0], config.models
    assert route.flag and route.default == control.name
    one = flag(
        0, shadow_weight=100_000, key=route.flag, control=Variant(model=control.name), candidate=Variant(model=candidate.name)
    )
    return Snapshot(environment="production", revision=1, flags=(one,))


@asynccontextmanager
async def running(name: str, tmp_path: Path, environ: dict[str, str]) -> AsyncIterator[tuple[Router, RouterConfig]]:
    models = [model.name for model in read_config(EXAMPLES / name).models]
    async with running_provider({model: ModelBehaviour() for model in models}, speed=100.0) as url:
        config = moved(name, f"{url}/v1", tmp_path)
        async with serve_router(config, environ=environ) as router:
            put(router, *shadowed(config).flags)
            yield router, config


async def test_a_zen_server_that_is_pointed_at_the_router(tmp_path: Path) -> None:
    lines = (EXAMPLES / "zen/zen.env").read_text(encoding="utf-8").split()
    env = dict(line.split("=", 1) for line in lines)
    (declared,) = json.loads((EXAMPLES / "zen" / env["CUSTOM_MODELS_CONFIG_PATH"]).read_text(encoding="utf-8"))["models"]
    assert env["DEFAULT_MODEL"] == declared["model_name"]
    assert env["CUSTOM_API_URL"] == f"http://{read_config(EXAMPLES / 'zen/router.yaml').listen}/v1"
    async with running("zen/router.yaml", tmp_path, {"OPENAI_API_KEY": "k"}) as (router, _):
        # What Zen 9.4.1 sends over stdio's `chat`: the SDK, a system and a user message, a temperature, no stream and no user.
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key=env["CUSTOM_API_KEY"], max_retries=0) as client:
            messages = [
                {"role": "system", "content": "You are a senior engineer."},
                {"role": "user", "content": "What is a penstock?"},
            ]
            fields = {"model": env["DEFAULT_MODEL"], "messages": messages, "stream": False, "temperature": 1.0}
            answer = await client.chat.completions.create(**fields)  # type: ignore[call-overload]
        assert (answer.model, answer.choices[0].finish_reason) == ("gpt-4.1", "stop")
        await eventually(lambda: router.metric("penstock_shadow_pairs_total", sink="file", outcome="delivered") == 1)
    (pair,) = (tmp_path / "assistants-pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(pair)["shadow"]["model"] == "gpt-5"


async def test_litellm_as_the_routers_upstream(tmp_path: Path, upstream: Upstream) -> None:
    name = "litellm/router.yaml"
    async with running(name, tmp_path, {"LITELLM_KEY": "sk-litellm"}) as (router, config):
        for stream in (False, True):
            assert (await router.ask(stream=stream)).status == 200
        await eventually(lambda: router.metric("penstock_shadow_pairs_total", sink="file", outcome="delivered") == 2)
        assert router.metric("penstock_shadow_budget_used", window="day", unit="usd") > 0  # type: ignore[operator]
    served = [model["model_name"] for model in _models(EXAMPLES / "litellm/litellm.yaml")]
    assert served == [model.name for model in config.models], "both files name the same models"
    async with serve_router(moved(name, upstream.url, tmp_path), environ={"LITELLM_KEY": "sk-litellm"}) as router:
        await router.ask()
    headers = upstream.calls[0].headers
    assert (headers["authorization"], headers["x-litellm-num-retries"], headers["x-litellm-tags"]) == (
        "Bearer sk-litellm",
        "0",
        "penstock",
    )


def _models(path: Path) -> list[dict[str, str]]:
    from ruamel.yaml import YAML

    models: list[dict[str, str]] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["model_list"]
    return models


@pytest.mark.parametrize(
    ("candidate_weight", "said"), [(0, "gpt-4.1 baseline stop"), (100_000, "claude-opus-4-1 candidate stop")]
)
async def test_an_application_with_the_router_in_its_own_process(tmp_path: Path, candidate_weight: int, said: str) -> None:
    name = "litellm/router.yaml"
    models = [model.name for model in read_config(EXAMPLES / name).models]
    async with running_provider({model: ModelBehaviour() for model in models}, speed=100.0) as url:
        text = (EXAMPLES / name).read_text(encoding="utf-8").replace("http://127.0.0.1:8420/flags/v1", "file:flags.json")
        (tmp_path / "router.yaml").write_text(re.sub(r"base_url: \S+", f"base_url: {url}/v1", text), encoding="utf-8")
        two = {"control": Variant(model=models[0]), "candidate": Variant(model=models[1])}
        snapshot = Snapshot(environment="production", revision=1, flags=(flag(candidate_weight, **two),))
        (tmp_path / "flags.json").write_text(json.dumps(snapshot.to_json()), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLES / "in_process.py"), str(tmp_path / "router.yaml"), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    lines = [line for line in out.decode().splitlines() if "flag_applied" not in line]
    assert (process.returncode, lines) == (0, [said, f"{said.split()[0]} True"])


@pytest.mark.parametrize("page", ["migrate.md", "judge-answers.md", "zen-mcp-server.md"])
def test_the_guides_router_files_and_parts_of_them_can_be_used(page: str) -> None:
    text = (EXAMPLES.parent / "how-to" / page).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if not block.startswith("phases:")]
    assert blocks
    for block in blocks:
        whole = block if block.startswith("apiVersion:") else GOOD + block
        assert parse_text(RouterConfig, whole, page).routes
