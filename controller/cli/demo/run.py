"""
`penstock demo`: a whole Penstock on loopback, rollouts that end well and badly, and what came of each.

It starts everything `penstock up` starts, on free ports and in a folder of its own, beside a provider simulator and a Slack stand-in, sends
traffic, and opens the rollouts through Prefect. Its one rule: from there on it watches; every decision comes from the gate check and the
guard, on the code path of production.
"""

import fcntl
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx
from ruamel.yaml import YAML

from bench.arrivals import Arrival, TraceError
from controller.cli.demo import propagation
from controller.cli.demo.report import as_expected, report
from controller.cli.demo.scenarios import (
    BASELINE,
    ENVIRONMENT,
    REQUESTER,
    Scenario,
    choose,
    dropped_series,
    provider_config,
    rollout_spec,
    router_config,
)
from controller.cli.demo.traffic import Traffic, load_trace, sample_trace
from controller.cli.demo.view import View
from controller.cli.demo.watch import Watch
from controller.cli.parts import Program
from controller.cli.stack import Stack, StackError, StackPlan
from controller.commands import rollout_id_of
from controller.settings import Settings
from controller.spec import RolloutSpec
from controller.wiring import Controller, open_controller
from services.ports import port_in_use
from specfile import parse_duration

TIME_LIMIT_S = 420.0
"""From the start of the rollouts; what has not ended by then is held."""

LOOK_S = 0.25
WARM_S = 6.0
"""Traffic before the rollouts: Prometheus makes its first scrape 5 s after it started, and a comparison needs a baseline."""

GATE_EVERY = "5s"
GUARD_EVERY = "2s"
ROUTER_WAIT_S = 15.0
AFTERMATH_S = 3.0
"""Traffic goes on for so long after the end of a rollout, so that the last answers of the candidate are counted."""

START_ATTEMPTS = 20
MARKER = "demo-home"
DEFAULT_HOME = Path(".penstock") / "demo"
SLACK_TOKEN = "xoxb-demo"
FREE_PORTS = range(20_000, 32_000)
"""Below the ports that kernels give to outgoing connections, so that no connection of our own takes one before its server does."""


class DemoError(Exception):
    """The demo cannot run; one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the parts listen, all on loopback."""

    console: int
    prefect: int
    prometheus: int
    router: int
    provider: int
    slack: int
    guard: int

    @classmethod
    def free(cls) -> "Ports":
        found: set[int] = set()
        while len(found) < 7:
            port = random.choice(FREE_PORTS)
            if not port_in_use("127.0.0.1", port):
                found.add(port)
        console, prefect, prometheus, router, provider, slack, guard = found
        return cls(
            console=console, prefect=prefect, prometheus=prometheus, router=router, provider=provider, slack=slack, guard=guard
        )


def run_demo(
    scenario: str = "all",
    *,
    seed: int = 1,
    trace: Path | None = None,
    speed: float | None = None,
    output: Literal["live", "json"] = "live",
    keep: bool = False,
    home: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """
    Args:
        scenario: A name of `scenarios.SCENARIOS`, or "all" for all of them side by side.
        seed: Of the traffic and of the simulator.
        trace: Arrivals to replay instead of a generated trace.
        speed: Replay it so many times as fast; None fits it to each scenario's rate.
        output: "live" for people, "json" for one line a scenario on stdout.
        keep: Leave everything running at the end until interrupted.
        home: The demo's own folder; emptied at the start if an earlier demo made it.
        time_limit_s: From the start of the rollouts.
        environ: What the parts inherit; settings of Penstock and Prefect in it are left out.

    Returns:
        0 if each scenario ended as expected, 1 if not or the demo could not run, 2 for wrong usage, 130 when interrupted.
    """
    view = View(json=output == "json")
    try:
        chosen = choose(scenario)
        arrivals = None if trace is None else load_trace(trace, speed)
    except (ValueError, TraceError) as exc:
        view.say(str(exc))
        return 2
    try:
        place = fresh_home(home or DEFAULT_HOME)
        demo = _Demo(chosen, place, seed=seed, trace=arrivals, speed=speed, view=view, environ=environ)
        return demo.run(time_limit_s=time_limit_s, keep=keep)
    except (StackError, DemoError) as exc:
        view.end()
        view.say(f"penstock demo: {exc}")
        return 1
    except KeyboardInterrupt:
        view.end()
        view.say("interrupted; everything is stopped")
        return 130


class _Demo:
    def __init__(
        self,
        scenarios: tuple[Scenario, ...],
        home: Path,
        *,
        seed: int,
        trace: Sequence[Arrival] | None,
        speed: float | None,
        view: View,
        environ: Mapping[str, str],
    ) -> None:
        self._scenarios = scenarios
        self._home = home
        self._view = view
        self._ports = ports = Ports.free()
        self._router = f"127.0.0.1:{ports.router}"
        self._provider = f"http://127.0.0.1:{ports.provider}"
        self._write_files(seed)
        self._stack = Stack(
            Settings(
                home=home,
                scrape_interval=parse_duration("2s"),
                listen=f"127.0.0.1:{ports.console}",
                guard_listen=f"127.0.0.1:{ports.guard}",
                slack_token=SLACK_TOKEN,
                slack_api_url=f"http://127.0.0.1:{ports.slack}/api/",
                actor=REQUESTER,
            ),
            self._plan(),
            environ={k: v for k, v in environ.items() if not k.startswith(("PENSTOCK_", "PREFECT_"))},
            say=view.say,
        )
        self._traffic = Traffic(
            f"http://{self._router}/v1", scenarios, trace or sample_trace(home / "trace.csv", seed), speed=speed, seed=seed
        )

    def run(self, *, time_limit_s: float, keep: bool) -> int:
        names = ", ".join(s.name for s in self._scenarios)
        self._view.say(f"starting Postgres, Prometheus, Prefect, the router and the rest in {self._home} (about half a minute)")
        begun = time.monotonic()
        try:
            with self._stack:
                self._view.say(f"watch it at http://{self._stack.settings.listen}: log in as {self._stack.console_login}")
                slowest = ", ".join(f"{n} {t:.0f} s" for n, t in sorted(self._stack.took_s.items(), key=lambda p: -p[1])[:3])
                self._view.say(f"all parts are ready after {time.monotonic() - begun:.0f} s ({slowest}); scenarios: {names}")
                with open_controller(self._stack.settings) as controller:
                    return self._with(controller, time_limit_s=time_limit_s, keep=keep)
        finally:
            self._traffic.stop()

    def _with(self, controller: Controller, *, time_limit_s: float, keep: bool) -> int:
        self._traffic.start()
        time.sleep(WARM_S)
        rows, watches = self._roll_out(controller, time_limit_s)
        self._traffic.stop()
        self._view.end()
        for row in rows:
            self._view.data(json.dumps(row))
        (self._home / "report.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._view.summary(rows, watches)
        self._say_where(rows, keep=keep)
        good = all(as_expected(row) for row in rows)
        if keep:
            self._view.say("everything keeps running; Ctrl-C stops it")
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                pass
        return 0 if good else 1

    def _roll_out(self, controller: Controller, time_limit_s: float) -> tuple[list[dict[str, Any]], list[Watch]]:
        watches = [Watch(s, self._start(s), controller.ports, spoil=self._spoil, say=self._view.say) for s in self._scenarios]
        self._view.begin()
        deadline = time.monotonic() + time_limit_s
        while any(w.outcome is None for w in watches) and time.monotonic() < deadline:
            for watch in watches:
                watch.look()
                if watch.ended_for_s > AFTERMATH_S:
                    self._traffic.end(watch.scenario)
            if self._traffic.failure is not None:
                raise DemoError(f"the traffic driver failed: {self._traffic.failure!r}")
            self._view.draw(watches, self._requests)
            time.sleep(LOOK_S)
        for watch in watches:
            watch.give_up()
        writes = propagation.read(
            str(self._stack.settings.database_url),
            ENVIRONMENT,
            router=f"http://{self._router}",
            log=self._home / "logs" / "router.log",
            timeout_s=ROUTER_WAIT_S,
        )
        return [report(w, controller.ports, writes, exposed=self._requests(w)[1]) for w in watches], watches

    def _start(self, scenario: Scenario) -> str:
        """Open a rollout as the form in Prefect's UI does: a run of the deployment `rollout/rollout` with the spec as parameters."""
        body = rollout_spec(scenario)
        run_id = start_run(str(self._stack.settings.prefect_api_url), {"spec": body, "requested_by": REQUESTER})
        rollout_id = rollout_id_of(RolloutSpec.model_validate(body).to_plan(), run_id)
        self._view.say(f"{scenario.name}: {BASELINE} → {scenario.candidate}, {scenario.story}; rollout {rollout_id}")
        return rollout_id

    def _spoil(self, scenario: Scenario) -> None:
        assert scenario.trouble is not None
        url = f"{self._provider}/control/models/{scenario.candidate}"
        try:
            httpx.post(url, json=scenario.trouble.change, timeout=10, trust_env=False).raise_for_status()
        except httpx.HTTPError as exc:
            raise DemoError(f"the provider simulator at {url} did not take the change: {exc}") from exc

    def _requests(self, watch: Watch) -> tuple[int, int]:
        tally = self._traffic.tallies[watch.scenario.name]
        return tally.finished, self._traffic.answered(watch.scenario, watch.scenario.candidate, "candidate")

    def _write_files(self, seed: int) -> None:
        """The same files that a user writes, for people to look at."""
        yaml = YAML()
        (self._home / "rollouts").mkdir(exist_ok=True)
        console = f"http://127.0.0.1:{self._ports.console}/flags/v1"
        router = router_config(self._scenarios, listen=self._router, flags=console, provider=f"{self._provider}/v1")
        yaml.dump(router, self._home / "router.yaml")
        yaml.dump(provider_config(self._scenarios, seed=seed), self._home / "provider.yaml")
        for s in self._scenarios:
            yaml.dump(rollout_spec(s), self._home / "rollouts" / f"{s.flag}.yaml")

    def _plan(self) -> StackPlan:
        ports = self._ports
        provider = ("bench.provider", "--listen", f"127.0.0.1:{ports.provider}", "--config", str(self._home / "provider.yaml"))
        slack = ("bench.slack", "--listen", f"127.0.0.1:{ports.slack}")
        router = ("controller.cli.app", "router", "--config", str(self._home / "router.yaml"))
        return StackPlan(
            flows=("flows.local", "--every", GATE_EVERY),
            guard=("--every", GUARD_EVERY),
            prefect_port=ports.prefect,
            prometheus_port=ports.prometheus,
            metric_relabel=dropped_series(self._scenarios),
            scrape={"router": (self._router,)},
            programs=(
                Program(name="provider", argv=provider, ready_url=f"{self._provider}/health"),
                Program(name="slack", argv=slack, ready_url=f"http://127.0.0.1:{ports.slack}/"),
            ),
            routers=(Program(name="router", argv=router, ready_url=f"http://{self._router}/readyz"),),
            durable=False,
        )

    def _say_where(self, rows: Sequence[Mapping[str, Any]], *, keep: bool) -> None:
        settings = self._stack.settings
        prefect = str(settings.prefect_api_url).removesuffix("/api")
        if not keep:
            self._view.say("all parts are stopped now; `penstock demo --keep` leaves them running to look around")
        self._view.addresses(
            {
                "Prefect": f"{prefect}/runs",
                "console": f"http://{settings.listen}",
                "console login": self._stack.console_login,
                "Slack stand-in": f"http://127.0.0.1:{self._ports.slack}/",
                "Prometheus": str(settings.prometheus_url),
                "router": f"http://{self._router}/v1",
                "files and logs": str(self._home),
            }
            if keep
            else {"files and logs": str(self._home), "bring it back": f"PENSTOCK_HOME={self._home} {_command()} up"}
        )
        self._view.console.print("look closer:")
        for row in rows:
            self._view.console.print(f"  PENSTOCK_HOME={self._home} {_command()} why {row['rollout_id']}", soft_wrap=True)


def _command() -> str:
    """How the person who reads this can call penstock: as it was called, from the folder they are in."""
    program = Path(sys.argv[0])
    if program.name != "penstock":
        return "penstock"
    return os.path.relpath(program) if program.is_absolute() and program.is_relative_to(Path.cwd()) else str(program)


def start_run(api: str, parameters: Mapping[str, Any], *, deployment: str = "rollout/rollout") -> str:
    """
    Ask Prefect for a run of a deployment.

    Returns:
        The run's id.

    Raises:
        DemoError: Prefect refused, or stayed busy.
    """
    # The key makes asking again harmless: with SQLite under it Prefect answers 503 when it is busy for a moment.
    body = {"parameters": dict(parameters), "idempotency_key": str(uuid4())}
    problem = ""
    with httpx.Client(base_url=f"{api}/", timeout=30, trust_env=False) as client:
        for _ in range(START_ATTEMPTS):
            try:
                found = client.get(f"deployments/name/{deployment}").raise_for_status().json()
                made = client.post(f"deployments/{found['id']}/create_flow_run", json=body)
                return str(made.raise_for_status().json()["id"])
            except httpx.HTTPStatusError as exc:
                problem = exc.response.text[:300]
                if exc.response.status_code < 500:
                    break
            except (httpx.HTTPError, KeyError, ValueError) as exc:
                problem = str(exc)
            time.sleep(1)
    raise DemoError(f"Prefect at {api} did not start a run of {deployment}: {problem}")


def fresh_home(home: Path) -> Path:
    """
    An empty folder for the demo.

    Raises:
        DemoError: another demo runs there, or it holds what no demo made.
    """
    home = home.absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        if any(home.iterdir()) and not (home / MARKER).exists():
            raise DemoError(f"{home} is not empty and was not made by a demo; name another --home")
        with (home / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in home.iterdir():
                if path.name not in ("lock", MARKER):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        (home / MARKER).write_text("Made by `penstock demo`, which empties this folder each time.\n")
    except BlockingIOError as exc:
        raise DemoError(f"another penstock runs on {home}; stop it, or name another --home") from exc
    except OSError as exc:
        raise DemoError(f"{home}: cannot be used: {exc.strerror or exc}") from exc
    return home
