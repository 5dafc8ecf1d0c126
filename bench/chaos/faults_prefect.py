"""
Prefect dies, comes back, runs everything twice and late, or is told to pause: it schedules and shows, and no rollout may hang on it.

Gate checks are Prefect's here (`python -m flows.local` or `flows.serve`); the guard and the mail are processes without it. Its one rule: what Prefect loses is
a check, never a decision, and the next check is as good as the lost one.
"""

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from bench.chaos.fault import Trial, Violation, fault
from bench.chaos.faults_many import EVERY
from bench.chaos.faults_prometheus import CANARY, HALF
from bench.chaos.invariants import one_check_a_slot
from bench.chaos.process import Worker
from bench.chaos.target import Truth
from bench.chaos.world import World, broken
from flows import server as prefect
from services.ports import free_port
from services.process import ChildProcess, http_ready

START_S = 180.0
"""Prefect's server and a runner take 10 to 40 s each on a quiet machine."""

ASKED_TIMES = 15

LOCAL = ("flows.local", "--every", "1s")
SERVED = ("flows.serve", "--gate-every", "10s")
"""A process for each run: one costs seconds of CPU before it looks."""

STEP_S = 90.0
"""A gate check a second is asked for; one takes about a second here."""


class Server:
    """Prefect's own server, on a SQLite file of its own; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.home, self.port = folder, free_port()
        self.child: ChildProcess | None = None

    @property
    def api(self) -> str:
        return prefect.api_url(self.port)

    def start(self) -> None:
        self.child = ChildProcess(
            prefect.argv(self.port),
            log_path=self.home / "prefect.log",
            name="prefect",
            env={**os.environ, **prefect.environment(self.home, self.port)},
        )
        self.child.wait_ready(http_ready(f"{self.api}/health"), timeout_s=START_S)

    def kill(self) -> None:
        """The whole group at once, without a word."""
        assert self.child is not None
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.stop()
        self.child = None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Its API, for the driver; on SQLite it is busy now and then (503)."""
        request = urllib.request.Request(
            f"{self.api}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for left in reversed(range(ASKED_TIMES)):
            try:
                with opener.open(request, timeout=30) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except OSError:
                if not left:
                    raise
                time.sleep(1)
        raise AssertionError("the last try returns or raises")

    def gate_check(self) -> str:
        """Id of the deployment."""
        return str(self.ask("GET", "/deployments/name/gate-check/gate-check")["id"])

    def runs(self) -> bool:
        """Whether a gate check is carried out at the moment."""
        wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}, "deployment_id": {"any_": [self.gate_check()]}}}
        return bool(self.ask("POST", "/flow_runs/filter", wanted))


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    made = Server(folder)
    made.start()
    try:
        yield made
    finally:
        if made.child is not None:
            made.child.stop()


def runner(world: World, server: Server, crash_at: str = "", module: Sequence[str] = LOCAL) -> ChildProcess:
    """A process that runs what Prefect schedules."""
    child = ChildProcess(
        [sys.executable, "-m", *module],
        log_path=world.folder / "runner.log",
        name="runner",
        env={
            **os.environ,
            **prefect.client_environment(server.home, server.api),
            **world.environ(),
            "PENSTOCK_SLACK_TOKEN": "",
            "PENSTOCK_CRASH_AT": crash_at,
        },
    )
    world.stack.callback(child.stop)
    return child


def by_prefect(world: World, weight: int) -> bool:
    """Whether the weight is reached; nobody makes gate checks here but Prefect."""
    return world.until(lambda: world.weight() >= weight, STEP_S)


def begun(world: World, crash_at: str = "", module: Sequence[str] = LOCAL) -> tuple[Server, ChildProcess, Worker, str]:
    """A rollout at 5 % that Prefect's gate checks have raised, and a worker for guard and mail."""
    server: Server = world.stage.shared(_server)
    if server.child is None:
        server.start()
    worker = world.controller()
    rollout_id = world.start(worker, world.plan(every=EVERY))
    process = runner(world, server, crash_at, module)
    if not world.until(lambda: world.weight() >= CANARY or process.returncode is not None, START_S):
        raise AssertionError(f"no gate check of Prefect's came: {process.log_tail()}")
    return server, process, worker, rollout_id


def ended(world: World, worker: Worker, rollout_id: str, found: list[Violation], took_s: float) -> Trial:
    """The candidate turns bad, the guard lowers, without a look of Prefect's; and everybody is told."""
    world.turn(Truth.ALARM, rollout_id)
    recovered_s = world.recover(worker, check_gates=False)
    trial = world.finish(max(took_s, recovered_s) if recovered_s == float("inf") else took_s, one_check_a_slot)
    return Trial(violations=(*found, *trial.violations), recover_s=trial.recover_s)


def goes_on(world: World, found: list[Violation], what: str) -> float:
    """Seconds until Prefect's gate checks have raised to 50 %."""
    begun_s = time.monotonic()
    if not by_prefect(world, HALF):
        found.append(broken("goes_on", f"{what}, and no gate check raises a good candidate"))
    return time.monotonic() - begun_s


def unaffected(world: World, worker: Worker, rollout_id: str, looks: int = 3) -> list[Violation]:
    """The guard looks while Prefect's server is not there."""
    found = []
    for _ in range(looks):
        if world.look(worker, rollout_id, may_raise=False)["outcome"] == "error":
            found.append(broken("guard_unaffected", "the guard needs Prefect"))
        time.sleep(1)
    return found


@fault("Prefect: server killed and started again", group="prefect", quick=0, full=5, alone=True, recover_s_max=STEP_S)
def server_killed(world: World, rng: Random) -> Trial:
    server, _process, worker, rollout_id = begun(world)
    time.sleep(rng.uniform(0, 2))
    server.kill()
    found = unaffected(world, worker, rollout_id)
    server.start()
    took_s = goes_on(world, found, "Prefect's server is back")
    return ended(world, worker, rollout_id, found, took_s)


@fault("Prefect: server down through a breach", group="prefect", quick=0, full=5, alone=True, recover_s_max=STEP_S)
def server_down(world: World, rng: Random) -> Trial:
    server, _process, worker, rollout_id = begun(world)
    server.kill()
    begun_s = time.monotonic()
    trial = ended(world, worker, rollout_id, [], 0.0)
    world.note(f"without Prefect's server for {time.monotonic() - begun_s:.1f} s")
    server.start()
    return trial


@fault("Prefect: runner killed in mid-check", group="prefect", quick=0, full=5, alone=True, recover_s_max=STEP_S)
def runner_killed(world: World, rng: Random) -> Trial:
    point = rng.choice(("recorded:2", "raised:2", "flag_committed:2", "row_committed:4", "query_answered:6", "measured:3"))
    server, process, worker, rollout_id = begun(world, crash_at=point)
    if not world.until(lambda: process.returncode is not None, STEP_S):
        raise AssertionError(f"the runner did not reach {point}")
    world.restarts.append(world.now())
    runner(world, server)
    found: list[Violation] = []
    took_s = goes_on(world, found, f"the runner died at {point}")
    return ended(world, worker, rollout_id, found, took_s)


@fault("Prefect: checks that overlap and come late", group="prefect", quick=0, full=5, alone=True, recover_s_max=STEP_S)
def overlapping(world: World, rng: Random) -> Trial:
    server, _process, worker, rollout_id = begun(world)
    other = runner(world, server)
    deployment = server.gate_check()
    for _ in range(rng.randint(4, 10)):
        late = datetime.now(UTC) - timedelta(minutes=rng.choice((0, 0, 15, 600)))
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": late.isoformat()}}
        server.ask("POST", f"/deployments/{deployment}/create_flow_run", {"state": state})
    found: list[Violation] = []
    took_s = goes_on(world, found, "checks overlap")
    if other.returncode is not None:
        found.append(broken("the trial itself", f"the second runner ended: {other.log_tail()}"))
    return ended(world, worker, rollout_id, found, took_s)


@fault("Prefect: schedule paused", group="prefect", quick=0, full=5, alone=True, recover_s_max=STEP_S)
def paused(world: World, rng: Random) -> Trial:
    server, process, worker, rollout_id = begun(world)
    deployment = server.gate_check()
    server.ask("PATCH", f"/deployments/{deployment}", {"paused": True})
    if rng.random() < 0.5:
        process.stop()
    try:
        return ended(world, worker, rollout_id, [], 0.0)
    finally:
        server.ask("PATCH", f"/deployments/{deployment}", {"paused": False})


def _family(pid: int) -> list[int]:
    """A process and all that it started; Prefect's runner gives each run a session of its own, so that no group holds them."""
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(found for child in children for found in _family(int(child)))]
    return []


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _in_mid_run(world: World, server: Server, process: ChildProcess, rng: Random) -> list[int]:
    """The runner and its runs, at some moment while a gate check is carried out."""

    def found() -> bool:
        return server.runs() and len(_family(process.pid)) > 1

    if not world.until(found, STEP_S):
        raise AssertionError("no gate check of Prefect's began")
    time.sleep(rng.uniform(0, 1))
    return _family(process.pid)


@fault("Prefect: flows.serve killed in mid-run", group="prefect", quick=0, full=3, alone=True, recover_s_max=STEP_S)
def serve_killed(world: World, rng: Random) -> Trial:
    server, process, worker, rollout_id = begun(world, module=SERVED)
    everything = _in_mid_run(world, server, process, rng)
    if rng.random() < 0.5:
        _signal(everything, signal.SIGKILL)
        world.restarts.append(world.now())
    else:  # the check itself goes on without its runner
        _signal(everything[:1], signal.SIGKILL)
        world.stack.callback(_signal, everything[1:], signal.SIGKILL)
    runner(world, server, module=SERVED)
    found: list[Violation] = []
    took_s = goes_on(world, found, "flows.serve was killed and started again")
    return ended(world, worker, rollout_id, found, took_s)


@fault("Prefect: flows.serve frozen past its slot", group="prefect", quick=0, full=3, alone=True, recover_s_max=STEP_S)
def serve_frozen(world: World, rng: Random) -> Trial:
    server, process, worker, rollout_id = begun(world, module=SERVED)
    everything = _in_mid_run(world, server, process, rng)
    _signal(everything, signal.SIGSTOP)
    try:
        runner(world, server, module=rng.choice((LOCAL, SERVED)))
        found: list[Violation] = []
        took_s = goes_on(world, found, "another runner is there for one that is frozen")
    finally:
        _signal(everything, signal.SIGCONT)
    # What was frozen in the middle of a check wakes up, and finds its slot taken.
    time.sleep(5)
    return ended(world, worker, rollout_id, found, took_s)


@fault("Prefect: server restarted under flows.serve", group="prefect", quick=0, full=3, alone=True, recover_s_max=STEP_S)
def serve_without_server(world: World, rng: Random) -> Trial:
    server, process, worker, rollout_id = begun(world, module=SERVED)
    _in_mid_run(world, server, process, rng)
    server.kill()
    found = unaffected(world, worker, rollout_id)
    server.start()
    took_s = goes_on(world, found, "Prefect's server is back")
    return ended(world, worker, rollout_id, found, took_s)


@fault("Prefect: flows.serve and flows.local at once", group="prefect", quick=0, full=3, alone=True, recover_s_max=STEP_S)
def two_runners(world: World, rng: Random) -> Trial:
    server, first, worker, rollout_id = begun(world, module=SERVED)
    second = runner(world, server, module=rng.choice((LOCAL, SERVED)))
    found: list[Violation] = []
    took_s = goes_on(world, found, "two runners are there")
    for one in (first, second):
        if one.returncode is not None:
            found.append(broken("the trial itself", f"a runner ended: {one.log_tail()}"))
    return ended(world, worker, rollout_id, found, took_s)
