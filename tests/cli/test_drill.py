"""`penstock drill fallback`: a rollout in a real database, a real router and the provider simulator behind it."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from bench.behaviour import Errors, Latency, ModelBehaviour
from bench.provider import Provider, running_provider
from flagspec import Variant
from services.prometheus import PrometheusServer
from tests.cli.conftest import Cli
from tests.router.harness import Router, config, flag, put, serve_router

pytestmark = pytest.mark.services

T = TypeVar("T")
TOKEN = "a token"
QUICK = ModelBehaviour(ttft=Latency(median_s=0.001, sigma=0), tokens_per_s=100_000)
BROKEN = ModelBehaviour(ttft=Latency(median_s=0.001, sigma=0), errors=Errors(server_error=1))


@dataclass
class Plane:
    """The data plane on an event loop of its own: the command line is synchronous."""

    provider: Provider
    router: Router
    loop: asyncio.AbstractEventLoop
    revision: int = 0

    def flag(self, **changes: Any) -> None:
        self.revision += 1
        sides = {"control": Variant(model="gpt-4.1"), "candidate": Variant(model="gpt-5")}
        self.run(_put(self.router, flag(**{**sides, **changes}, revision=self.revision)))

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(20)

    def counted(self, outcome: str, *, streaming: bool = False) -> float | None:
        labels = {"arm": "candidate", "model": "gpt-5", "to_model": "gpt-4.1", "outcome": outcome, "reason": "drill"}
        return self.router.arm("penstock_fallbacks_total", labels, streaming=streaming)


async def _put(router: Router, one: Any) -> None:
    put(router, one)


@pytest.fixture
def plane() -> Iterator[Plane]:
    ready: list[Plane] = []
    up, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        provider = Provider({"gpt-4.1": QUICK, "gpt-5": QUICK})
        async with running_provider(provider) as base:
            route = {"name": "chat", "match": {"model": ["team-model"]}, "flag": "chat-model", "default": "gpt-4.1"}
            other = {"name": "other", "match": {"model": ["x"]}, "flag": "other-flag", "default": "gpt-4.1"}
            models = [{"name": n, "provider": "p"} for n in ("gpt-4.1", "gpt-5")]
            spec = config(f"{base}/v1", models=models, routes=[other, route], drills={"token_env": "T"})
            async with serve_router(spec, environ={"T": TOKEN}) as router:
                ready.append(Plane(provider, router, asyncio.get_running_loop()))
                up.set()
                await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    with capture_logs():  # the router's, which a process of its own would write elsewhere
        thread.start()
        try:
            assert up.wait(30)
            yield ready[0]
        finally:
            stop.set()
            thread.join(30)


@pytest.fixture
def rollout(cli: Cli, rollout_yaml: Path, plane: Plane, monkeypatch: pytest.MonkeyPatch) -> str:
    """An open rollout; the environment has the token, and the router is named on the command line."""
    monkeypatch.setenv("PENSTOCK_DRILL_TOKEN", TOKEN)
    monkeypatch.delenv("PENSTOCK_DRILL_API_KEY", raising=False)
    answer = cli("start", str(rollout_yaml), "-o", "json")
    assert answer.code == 0, answer.err
    return str(json.loads(answer.out)["rollout_id"])


def test_a_drill_says_who_answered_in_whose_place_and_how_long_it_took(cli: Cli, plane: Plane, rollout: str) -> None:
    plane.flag(weight=5_000)
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url, "-o", "json")
    assert answer.code == 0, answer.err
    row = json.loads(answer.out)
    assert row.pop("took_s") > 0
    assert row == {
        "rollout_id": rollout, "drill": 1, "outcome": "answered", "answered_by": "gpt-4.1", "in_place_of": "gpt-5", "text": "",
    }  # fmt: skip
    assert (plane.provider.models["gpt-4.1"].requests, plane.provider.models["gpt-5"].requests) == (1, 0)
    assert plane.counted("ok") == 1


def test_the_table_is_for_people_and_the_router_may_come_from_the_environment(
    cli: Cli, plane: Plane, rollout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.flag(shadow_weight=5_000)
    monkeypatch.setenv("PENSTOCK_ROUTER_URL", f"{plane.router.url}/")
    answer = cli("drill", "fallback", rollout)
    head, line = answer.out.splitlines()
    assert head.split() == ["drill", "outcome", "answered", "by", "in", "place", "of", "took", "s", "text"]
    assert line.split()[:4] == ["1", "answered", "gpt-4.1", "gpt-5"]
    assert "gates see it once Prometheus has scraped it" in answer.err


def test_repeated_drills_are_counted_one_by_one_and_may_stream(cli: Cli, plane: Plane, rollout: str) -> None:
    plane.flag(weight=5_000)
    words = ("drill", "fallback", rollout, "--router", plane.router.url, "--repeat", "3", "--stream", "-o", "json")
    answer = cli(*words)
    assert answer.code == 0
    assert [json.loads(line)["drill"] for line in answer.out.splitlines()] == [1, 2, 3]
    assert (plane.counted("ok", streaming=True), plane.counted("ok")) == (3, 0)


def test_nothing_is_written_into_the_audit_log(cli: Cli, plane: Plane, rollout: str) -> None:
    plane.flag(weight=5_000)
    before = cli("history", rollout, "-o", "json").out
    assert cli("drill", "fallback", rollout, "--router", plane.router.url).code == 0
    assert cli("history", rollout, "-o", "json").out == before


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["json", "stream"])
def test_a_fallback_that_does_not_answer_is_exit_code_1_with_the_reason(
    cli: Cli, plane: Plane, rollout: str, stream: tuple[str, ...]
) -> None:
    plane.flag(weight=5_000)
    plane.provider.models["gpt-4.1"].behaviour = BROKEN
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url, "-o", "json", *stream)
    row = json.loads(answer.out)
    assert (answer.code, row["outcome"], row["answered_by"]) == (1, "unanswered", None)
    assert "502: No model answered" in row["text"] and "gpt-4.1: status 500" in row["text"]
    assert plane.counted("failed", streaming=bool(stream)) == 1


def test_a_fallback_stream_that_breaks_off_has_not_answered(cli: Cli, plane: Plane, rollout: str) -> None:
    plane.flag(weight=5_000)
    plane.provider.models["gpt-4.1"].behaviour = ModelBehaviour(ttft=QUICK.ttft, tokens_per_s=100_000, errors=Errors(cut=1))
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url, "--stream", "-o", "json")
    row = json.loads(answer.out)
    assert (answer.code, row["outcome"], row["text"]) == (1, "unanswered", "the stream broke off before its end")


def test_when_the_router_has_no_traffic_for_the_candidate_its_reason_is_told_once(cli: Cli, plane: Plane, rollout: str) -> None:
    plane.flag()
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url, "--repeat", "5", "-o", "json")
    (row,) = [json.loads(line) for line in answer.out.splitlines()]
    assert (answer.code, row["outcome"]) == (1, "refused")
    assert "(409): No drill now: the flag 'chat-model' sends the candidate no traffic" in row["text"]


def test_a_router_that_is_down_is_named_and_asked_once(cli: Cli, rollout: str) -> None:
    answer = cli("drill", "fallback", rollout, "--router", "http://127.0.0.1:1", "--repeat", "5", "-o", "json")
    (row,) = [json.loads(line) for line in answer.out.splitlines()]
    assert (answer.code, row["outcome"]) == (1, "unreachable")
    assert "the router at http://127.0.0.1:1 cannot be asked" in row["text"]


def test_another_token_is_refused_and_none_is_shown(
    cli: Cli, plane: Plane, rollout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.flag(weight=5_000)
    monkeypatch.setenv("PENSTOCK_DRILL_TOKEN", "another-secret")
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url)
    assert answer.code == 1 and "(403)" in answer.out and "x-penstock-drill-token" in answer.out
    assert "another-secret" not in answer.out + answer.err
    monkeypatch.setenv("PENSTOCK_DRILL_TOKEN", "two\nlines")
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url)
    assert answer.code == 1 and "the token of drills has characters that no HTTP header can carry" in answer.err
    assert "lines" not in answer.err


def test_a_router_of_another_environment_or_without_the_flag_is_told_apart(
    cli: Cli, plane: Plane, rollout: str, rollout_yaml: Path
) -> None:
    plane.flag(weight=5_000)
    rollout_yaml.write_text(rollout_yaml.read_text().replace("flag: chat-model", "flag: chat-model\nenvironment: staging"))
    staging = json.loads(cli("start", str(rollout_yaml), "-o", "json").out)["rollout_id"]
    answer = cli("drill", "fallback", staging, "--router", plane.router.url, "-o", "json")
    text = json.loads(answer.out)["text"]
    assert answer.code == 1 and "does not decide by the flag chat-model of staging" in text
    assert "its flags: other-flag of production (route other); chat-model of production (route chat)" in text
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url, "--route", "other", "-o", "json")
    assert "the flag chat-model of production by route other" in json.loads(answer.out)["text"]
    assert sum(model.requests for model in plane.provider.models.values()) == 0


def test_what_is_missing_is_named(cli: Cli, plane: Plane, rollout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = cli("drill", "fallback", rollout)
    assert (answer.code, answer.err.strip()) == (1, "penstock: no router: name one with --router or PENSTOCK_ROUTER_URL")
    answer = cli("drill", "fallback", "nonsense", "--router", plane.router.url)
    assert answer.code == 1 and "no rollout 'nonsense'" in answer.err
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url, "--repeat", "0")
    assert answer.code == 2
    monkeypatch.delenv("PENSTOCK_DRILL_TOKEN")
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url)
    assert answer.code == 1 and "set PENSTOCK_DRILL_TOKEN to what the router has in its drills.token_env" in answer.err


def test_a_rollout_that_is_over_has_nothing_to_drill_for(cli: Cli, plane: Plane, rollout: str) -> None:
    plane.flag(weight=5_000)
    assert cli("abort", rollout, "--reason", "test").code == 0
    answer = cli("drill", "fallback", rollout, "--router", plane.router.url)
    assert answer.code == 1 and "is over (aborted" in answer.err
    assert plane.counted("ok") == 0


# --- with a Prometheus that scrapes the router ------------------------------------------------------------------------------------

EXERCISED = """\
apiVersion: penstock/v1
kind: Rollout
metadata: {name: exercised}
flag: chat-model
baseline: {model: gpt-4.1}
candidate: {model: gpt-5}
slos: [{name: errors, indicator: error_ratio, max: 50%}]
events: [{name: fallback-exercised, indicator: fallbacks, at_least: 2, by_phase: canary, exercise: true}]
gates: {every: 15m, guard_every: 1s, block: 1s, min_requests: 20}
phases:
  - {name: canary, traffic: 50%, bake: 0s}
  - {name: full, traffic: 100%, bake: 1h}
"""


@pytest.fixture
def scraped(plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    address = plane.router.url.removeprefix("http://")
    with PrometheusServer(tmp_path / "scraped", {"router": [address]}, scrape_interval=timedelta(seconds=1)) as running:
        monkeypatch.setenv("PENSTOCK_PROMETHEUS_URL", running.url)
        monkeypatch.setenv("PENSTOCK_SCRAPE_INTERVAL", "1s")
        yield


def checks(cli: Cli, wanted: Callable[[dict[str, Any]], bool], between: Callable[[], None]) -> dict[str, Any]:
    """Gate checks until one is as wanted; pytest's own timeout is the limit of patience."""
    while True:
        answer = cli("tick", "--force", "-o", "json")
        assert answer.code == 0, answer.err
        row: dict[str, Any] = json.loads(answer.out)
        if wanted(row):
            return row
        between()


def test_a_gate_check_that_lacks_only_the_event_exercises_it_and_the_next_one_that_sees_it_advances(
    cli: Cli, plane: Plane, scraped: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_DRILL_TOKEN", TOKEN)
    monkeypatch.setenv("PENSTOCK_ROUTER_URL", plane.router.url)
    (tmp_path / "exercised.yaml").write_text(EXERCISED)
    assert cli("start", str(tmp_path / "exercised.yaml")).code == 0
    assert json.loads(cli("tick", "-o", "json").out)["decision"] == "advance"
    plane.flag(weight=50_000)

    def users() -> None:
        async def ask() -> None:
            names = [f"user-{i}" for i in range(40)]
            await asyncio.gather(*(plane.router.ask("team-model", user=name) for name in names))

        plane.run(ask())

    held = checks(cli, lambda row: bool(row["drills"]), users)
    asked = plane.provider.models["gpt-5"].requests
    assert (held["decision"], held["why"]) == ("hold", "not_enough_evidence")
    assert {g["gate"]: g["verdict"] for g in held["gates"] if g["verdict"] != "pass"} == {"fallback-exercised": "insufficient"}
    assert [said.rpartition(" after ")[0] for said in held["drills"]] == [
        "fallback-exercised: drill, gpt-4.1 answered in place of gpt-5"
    ] * 2
    assert plane.counted("ok") == 2

    advanced = checks(cli, lambda row: row["decision"] == "advance", lambda: None)
    assert {g["gate"]: g["verdict"] for g in advanced["gates"]}["fallback-exercised"] == "pass"
    errors = next(g for g in advanced["gates"] if g["gate"] == "errors")
    assert errors["observed"] == 0 and 20 <= errors["n"] <= asked, "a drill is no error and no request of the candidate"
    assert plane.provider.models["gpt-5"].requests == asked
