"""Flags from the environment: what they amount to, when they are obeyed, and what the log says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flagspec import in_share
from router.config import RouterConfig
from router.environment import governed
from tests.router.harness import FlagServer, Upstream, flag, serve_router, status


def config(url: str = "http://h/v1", **changes: Any) -> RouterConfig:
    names = ("gpt-4.1", "gpt-5", "claude-opus-4-1-20250805", "o3")
    data: dict[str, Any] = {
        "apiVersion": "penstock/v1",
        "kind": "Router",
        "providers": [{"name": "p", "base_url": url}],
        "models": [{"name": n, "provider": "p"} for n in names],
        "routes": [{"name": "Chat!", "match": {"model": ["chat"]}, "default": "gpt-4.1", "fallbacks": ["gpt-5", "o3"]}],
    }  # fmt: skip
    data["routes"][0]["name"] = "Chat"
    return RouterConfig.model_validate({**data, **changes})


def test_without_any_variable_nothing_changes_and_nothing_is_said() -> None:
    before = config()
    got = governed(before, {"ENABLE_GPT5": " ", "PATH": "/bin"})
    assert (got.config, got.snapshot, got.said) == (before, None, {})


@pytest.mark.parametrize(
    ("environ", "candidate", "weight"),
    [
        ({"ENABLE_GPT5": "true", "ROLLOUT_PERCENTAGE": "25"}, "gpt-5", 25_000),
        ({"ENABLE_GPT5": "1", "ROLLOUT_PERCENTAGE": "0.5%"}, "gpt-5", 500),
        ({"ENABLE_GPT5": "true"}, "gpt-5", 0),
        ({"ENABLE_OPUS41": "YES", "ROLLOUT_PERCENTAGE": "100"}, "claude-opus-4-1-20250805", 100_000),
        ({"ENABLE_OPUS41": "on", "ENABLE_GPT5": "on", "ROLLOUT_PERCENTAGE": "5"}, "gpt-5", 5_000),
        ({"ENABLE_OPUS41": "on", "ENABLE_GPT5": "off", "ROLLOUT_PERCENTAGE": "5"}, "claude-opus-4-1-20250805", 5_000),
    ],
)
def test_an_enabled_model_is_rolled_out_to_the_percentage(environ: dict[str, str], candidate: str, weight: int) -> None:
    got = governed(config(), environ)
    assert got.snapshot is not None
    (one,) = got.snapshot.flags
    assert (one.control.model, one.candidate.model, one.weight, one.unit) == ("gpt-4.1", candidate, weight, "user")
    assert got.config.routes[0].flag == one.key == "route-chat"
    assert got.said["source"] == "environment"


def test_a_percentage_of_nothing_is_no_rollout() -> None:
    got = governed(config(), {"ROLLOUT_PERCENTAGE": "50"})
    assert (got.snapshot, got.said["candidates"]) == (None, {})


def test_a_disabled_model_is_gone_wherever_it_was_named() -> None:
    got = governed(config(), {"ENABLE_GPT5": "false"}).config
    assert [m.name for m in got.models] == ["gpt-4.1", "claude-opus-4-1-20250805", "o3"]
    assert got.routes[0].fallbacks == ["o3"]


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"ENABLE_GPT5": "maybe"}, "ENABLE_GPT5: 'maybe' is neither true nor false"),
        ({"ROLLOUT_PERCENTAGE": "101"}, "ROLLOUT_PERCENTAGE: '101' is not within 0..100"),
        ({"ROLLOUT_PERCENTAGE": "nan"}, "ROLLOUT_PERCENTAGE: 'nan' is not within 0..100"),
        ({"ROLLOUT_PERCENTAGE": "a few"}, "ROLLOUT_PERCENTAGE: 'a few' is not within 0..100"),
        ({"FALLBACK_ENABLED": "2"}, "FALLBACK_ENABLED: '2' is neither true nor false"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("?", r"\?")):
        governed(config(), environ)


def test_a_default_cannot_be_disabled() -> None:
    routes = [{"name": "chat", "match": {"model": ["chat"]}, "default": "gpt-5"}]
    with pytest.raises(ValueError, match="disables 'gpt-5', the default of route 'chat'"):
        governed(config(routes=routes), {"ENABLE_GPT5": "false"})


async def test_users_are_split_by_the_percentage_and_stay_where_they_are(upstream: Upstream) -> None:
    environ = {"ENABLE_GPT5": "true", "ROLLOUT_PERCENTAGE": "50"}
    users = [f"user-{i}" for i in range(24)]
    for _ in range(2):
        async with serve_router(config(upstream.url), environ=environ) as router:
            got = {u: (await router.ask(user=u)).headers["x-penstock-model"] for u in users}
            assert got == {u: "gpt-5" if in_share("environment/route-chat", u, 50_000) else "gpt-4.1" for u in users}
            labels = {"flag": "route-chat", "route": "Chat", "streaming": "false", "arm": "candidate", "model": "gpt-5"}
            answered = list(got.values()).count("gpt-5")
            assert router.metric("penstock_requests_total", **labels, outcome="ok") == answered > 0
            assert router.metric("penstock_flag_weight_applied", flag="route-chat") == 50_000


async def test_without_fallbacks_nobody_else_is_asked_not_even_the_control(upstream: Upstream) -> None:
    environ = {"ENABLE_GPT5": "true", "ROLLOUT_PERCENTAGE": "100", "FALLBACK_ENABLED": "false"}
    upstream.script["gpt-5"] = status(500)
    async with serve_router(config(upstream.url), environ=environ) as router:
        got = await router.ask()
        assert (got.status, upstream.models()) == (502, ["gpt-5"])
        upstream.script["gpt-5"] = status(400)
        assert (await router.ask()).status == 400


async def test_a_flag_source_wins(upstream: Upstream, flag_server: FlagServer) -> None:
    environ = {"ENABLE_GPT5": "false", "ROLLOUT_PERCENTAGE": "100", "FALLBACK_ENABLED": "false"}
    spec = config(upstream.url, flags={"source": flag_server.url})
    got = governed(spec, environ)
    assert (got.config, got.snapshot) == (spec, None)
    assert got.said == {"source": flag_server.url, "not_obeyed": ["ENABLE_GPT5", "FALLBACK_ENABLED", "ROLLOUT_PERCENTAGE"]}
    flag_server.write(flag(0))
    upstream.script["gpt-4.1"] = status(500)
    async with serve_router(spec, environ=environ) as router:
        assert (await router.ask()).headers["x-penstock-model"] == "gpt-5"


def test_the_start_up_log_says_which_flags_are_in_force(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(config().model_dump_json(by_alias=True, exclude_defaults=False, exclude_none=True))
    command = [sys.executable, "-m", "router", "--config", str(path), "--listen", "127.0.0.1:0"]
    environ = {**os.environ, "ENABLE_GPT5": "true", "ROLLOUT_PERCENTAGE": "10"}
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root, env=environ) as child:
        assert child.stderr is not None
        lines = []
        while not lines or "listening" not in lines[-1]:
            lines.append(child.stderr.readline())
            assert lines[-1], lines
        os.kill(child.pid, signal.SIGTERM)
        child.wait()
    said = next(e for e in (json.loads(line) for line in lines[:-1]) if e["event"] == "flags_in_force")
    assert (said["source"], said["enable_gpt5"], said["rollout_percentage"]) == ("environment", "true", "10")
    assert said["candidates"] == {"route-chat": "gpt-5"}
