"""
Everything that `penstock up` and the demo run: servers of others, our own processes, in order, with logs, until told to stop.

It knows how each thing is started and when it is ready, and nothing of what it is for. Its one rule: whatever was started here is
stopped here, in reverse order, whether the start succeeded, failed or was interrupted; a part that dies meanwhile is started again
and said so.

    1. Prefect's server (the slowest: 9 to 40 s) | PostgreSQL, migrations | Prometheus | programs of the caller
    2. penstock serve, penstock guard, the routers                         (need the database)
    3. the flows: deployments and their schedules                          (need Prefect and the database)
"""

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import controller
from controller.settings import Settings
from services.errors import ServiceError, ServiceFailed
from services.ports import free_port, port_in_use
from services.postgres import EmbeddedPostgres
from services.process import ChildProcess, http_ready
from services.prometheus import PrometheusServer
from specfile import format_duration

PREFECT_READY_S = 150.0
"""Prefect's server was measured at 9 to 40 s to healthy on two idle cores; a first start on a busy machine takes longer."""

READY_S = 60.0
LOOK_S = 0.5
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before a dead part is started again; the last one repeats."""

STEADY_S = 60.0
"""A part that lived so long is started again without a longer pause."""

Say = Callable[[str], None]


class StackError(Exception):
    """The stack cannot run; one sentence that names what and where."""


class Part(Protocol):
    """One thing that runs."""

    name: str
    log_path: Path

    def start(self) -> None:
        """Start it and wait until it is ready. Raises ServiceError."""

    def stop(self) -> None:
        """End it; safe to call again, and while `start` waits."""

    def ended(self) -> int | None:
        """Its exit status once it has ended by itself; None while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """
    A program of ours or of the caller.

    Args:
        name: What messages and the log file call it.
        argv: Module and arguments for our Python (`("bench.provider", "--listen", ...)`).
        ready_url: Answers 2xx once it is ready; None: it is ready when it was started.
        env: Beside the environment that all programs of the stack get.
        ready_s: How long to wait for `ready_url`.
    """

    name: str
    argv: tuple[str, ...]
    ready_url: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    ready_s: float = READY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """
    What to run.

    Args:
        prefect: Run Prefect's server and the flows.
        flows: Module that carries out the flows.
        prefect_port: Of its server; 0 chooses a free one.
        prometheus_port: The same for Prometheus.
        metric_relabel: Rules that Prometheus applies to what it scrapes.
        scrape: Scrape jobs: name to `host:port` addresses.
        programs: Started first, beside the servers.
        routers: Started last but for the flows; they read flags from `serve`.
        durable: False turns fsync of the database off, for data that nobody misses.
    """

    prefect: bool = True
    flows: str = "flows.serve"
    prefect_port: int = 4200
    prometheus_port: int = 9090
    metric_relabel: tuple[Mapping[str, object], ...] = ()
    scrape: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    programs: tuple[Program, ...] = ()
    routers: tuple[Program, ...] = ()
    durable: bool = True


class Stack:
    """
    Args:
        settings: Where everything is; a service that they name is used and not started.
        plan: What to run.
        environ: The environment that children inherit, beneath what the stack sets.
        say: Takes one line for the person who runs it.
    """

    def __init__(self, settings: Settings, plan: StackPlan, *, environ: Mapping[str, str], say: Say) -> None:
        self.settings = settings
        self.plan = plan
        self.took_s: dict[str, float] = {}
        self._environ = dict(environ)
        self._say = say
        self._logs = settings.home / "logs"
        self._parts: list[Part] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._keepers: list[threading.Thread] = []
        self._held: int | None = None

    def start(self) -> Self:
        """
        Start everything and return when all of it is ready; on any failure nothing is left running.

        Raises:
            StackError: something cannot run.
        """
        try:
            self._take_home()
            self._check_ports()
            self._start_all()
        except ServiceError as exc:
            self.stop()
            raise StackError(str(exc)) from exc
        except BaseException:
            self.stop()
            raise
        for part in self._parts:
            keeper = threading.Thread(target=self._keep, args=(part,), name=f"keep-{part.name}", daemon=True)
            keeper.start()
            self._keepers.append(keeper)
        return self

    def stop(self) -> None:
        """Stop all of it in reverse order; safe to call again."""
        self._stopping.set()
        for _ in range(2):
            # The second round is for a part that a keeper was starting again during the first.
            for part in reversed(self._parts):
                part.stop()
            for keeper in self._keepers:
                keeper.join()
            self._keepers.clear()
        if self._held is not None:
            self.settings.run_file.unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """What every child sees: the addresses, explicitly, so that no child has to find them."""
        settings = self.settings
        named = {
            "PENSTOCK_HOME": str(settings.home),
            "PENSTOCK_DATABASE_URL": settings.database_url,
            "PENSTOCK_PROMETHEUS_URL": settings.prometheus_url,
            "PENSTOCK_SCRAPE_INTERVAL": format_duration(settings.scrape_interval),
            "PENSTOCK_LISTEN": settings.listen,
            "PENSTOCK_SLACK_TOKEN": settings.slack_token or None,
            "PENSTOCK_SLACK_CHANNEL": settings.slack_channel,
            "PENSTOCK_SLACK_API_URL": settings.slack_api_url,
            "PREFECT_API_URL": settings.prefect_api_url,
            "PYTHONUNBUFFERED": "1",
            # Children run in the home folder; this finds the packages there too, installed or in a checkout.
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_root()), self._environ.get("PYTHONPATH")))),
        }
        return self._environ | {name: value for name, value in named.items() if value is not None}

    # --- starting -------------------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        settings, plan = self.settings, self.plan
        own_prefect = plan.prefect and settings.prefect_api_url is None
        own_prometheus = settings.prometheus_url is None
        prefect_port = (plan.prefect_port or free_port()) if own_prefect else 0
        prometheus = self._prometheus() if own_prometheus else None
        if own_prefect:
            self.settings = replace(self.settings, prefect_api_url=f"http://127.0.0.1:{prefect_port}/api")
        with ThreadPoolExecutor(thread_name_prefix="start") as pool:
            first: dict[str, Future[object]] = {}
            if own_prefect:
                first["prefect"] = pool.submit(self._run, self._child(self._prefect_program(prefect_port)))
            first["database"] = pool.submit(self._start_database)
            if prometheus is not None:
                first["prometheus"] = pool.submit(self._run, prometheus)
            first |= {p.name: pool.submit(self._run, self._child(p)) for p in plan.programs}
            self._await([f for name, f in first.items() if name != "prefect"])
            if prometheus is not None:
                self.settings = replace(self.settings, prometheus_url=prometheus.url)
            self._write_run_file()
            second = [pool.submit(self._run, self._child(p)) for p in (self._serve_program(), _guard_program(), *plan.routers)]
            self._await([*second, *first.values()])
            if plan.prefect:
                self._await([pool.submit(self._run, self._child(self._flows_program()))])

    def _await(self, work: Iterable["Future[object]"]) -> None:
        """All of it, or the first failure; then the rest is stopped so that nobody waits for it."""
        done, _ = wait(list(work), return_when=FIRST_EXCEPTION)
        failed = [f for f in done if f.exception() is not None]
        if failed:
            self._stopping.set()
            for part in reversed(self._parts):
                part.stop()
            for future in failed:
                future.result()

    def _run(self, part: Part) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self._parts.append(part)
        begun = time.monotonic()
        part.start()
        self.took_s[part.name] = time.monotonic() - begun

    def _start_database(self) -> None:
        from controller.cli.database import prepare_database

        url = self.settings.database_url
        if url is None:
            postgres = _Postgres(self.settings.home / "postgres", durable=self.plan.durable)
            self._run(postgres)
            url = postgres.url
        self.settings = replace(self.settings, database_url=prepare_database(url))

    def _prometheus(self) -> "_Prometheus":
        return _Prometheus(
            PrometheusServer(
                self.settings.home / "prometheus",
                {name: list(addresses) for name, addresses in self.plan.scrape.items()},
                scrape_interval=self.settings.scrape_interval,
                port=self.plan.prometheus_port or free_port(),  # chosen once: a restart keeps its address
                fresh=False,
                metric_relabel=self.plan.metric_relabel,
            )
        )

    def _child(self, program: Program) -> "_Child":
        return _Child(program, log_path=self._logs / f"{program.name}.log", env=self.environment, cwd=self.settings.home)

    def _prefect_program(self, port: int) -> Program:
        return Program(
            name="prefect",
            argv=("flows.server", "--port", str(port), "--home", str(self.settings.home / "prefect")),
            ready_url=f"http://127.0.0.1:{port}/api/health",
            ready_s=PREFECT_READY_S,
        )

    def _serve_program(self) -> Program:
        url = f"http://{self.settings.listen}/flags/v1/snapshot?environment=production"
        return Program(name="serve", argv=("controller.cli.app", "serve"), ready_url=url)

    def _flows_program(self) -> Program:
        url = f"{self.settings.prefect_api_url}/deployments/name/rollout/rollout"
        # A process of Prefect's keeps its own settings and state there, apart from the user's.
        env = {"PREFECT_HOME": str(self.settings.home / "prefect")}
        return Program(name="flows", argv=(self.plan.flows,), ready_url=url, ready_s=PREFECT_READY_S, env=env)

    # --- the home folder --------------------------------------------------------------------------------------------------------

    def _take_home(self) -> None:
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            held = os.open(self.settings.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StackError(f"{self.settings.home}: cannot be used as PENSTOCK_HOME: {exc.strerror or exc}") from exc
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(held)
            raise StackError(f"another penstock runs on {self.settings.home}; stop it, or set PENSTOCK_HOME") from exc
        self._held = held

    def _check_ports(self) -> None:
        """Before anything starts: a taken port is the commonest mistake, and deserves the plainest sentence."""
        host, _, port = self.settings.listen.rpartition(":")
        if not host or not port.isdecimal():
            raise StackError(f"PENSTOCK_LISTEN: {self.settings.listen!r} is not an address; write host:port, such as 127.0.0.1:8420")
        wanted = [(host.strip("[]"), int(port), "the console (PENSTOCK_LISTEN)")]
        if self.plan.prefect and self.settings.prefect_api_url is None:
            wanted.append(("127.0.0.1", self.plan.prefect_port, "Prefect's server (PREFECT_API_URL uses one that runs)"))
        if self.settings.prometheus_url is None:
            wanted.append(("127.0.0.1", self.plan.prometheus_port, "Prometheus (PENSTOCK_PROMETHEUS_URL uses one that runs)"))
        for address, number, what in wanted:
            try:
                taken = number != 0 and port_in_use(address, number)
            except OSError as exc:
                raise StackError(f"{address}:{number}, wanted by {what}: {exc.strerror or exc}") from exc
            if taken:
                raise StackError(f"{address}:{number} is taken; it is wanted by {what}")

    def _write_run_file(self) -> None:
        settings = self.settings
        found = {
            "pid": os.getpid(),
            "database_url": settings.database_url,
            "prometheus_url": settings.prometheus_url,
            "prefect_api_url": settings.prefect_api_url,
            "scrape_interval": format_duration(settings.scrape_interval),
            "listen": settings.listen,
        }
        new = settings.run_file.with_suffix(".new")
        new.unlink(missing_ok=True)
        # Addresses of databases may carry passwords.
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({k: v for k, v in found.items() if v is not None}, file, indent=2)
        new.replace(settings.run_file)

    # --- keeping it up ----------------------------------------------------------------------------------------------------------

    def _keep(self, part: Part) -> None:
        """Start a part again whenever it dies, with growing pauses."""
        failures, up_since = 0, time.monotonic()
        while not self._stopping.wait(LOOK_S):
            if (status := part.ended()) is None:
                continue
            if time.monotonic() - up_since > STEADY_S:
                failures = 0
            pause_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            self._say(f"{part.name} ended with status {status}; starting it again in {pause_s:g} s (log: {part.log_path})")
            if self._stopping.wait(pause_s):
                return
            failures += 1
            part.stop()
            try:
                part.start()
            except ServiceError as exc:
                if not self._stopping.is_set():
                    self._say(f"{part.name} could not be started again: {str(exc).splitlines()[0]}")
                continue
            up_since = time.monotonic()
            self._say(f"{part.name} runs again")


class _Child:
    """A Python program in a process of its own."""

    def __init__(self, program: Program, *, log_path: Path, env: Callable[[], dict[str, str]], cwd: Path) -> None:
        self.name = program.name
        self.log_path = log_path
        self._program = program
        self._env = env
        self._cwd = cwd
        self._child: ChildProcess | None = None

    def start(self) -> None:
        program = self._program
        argv = [sys.executable, "-m", *program.argv]
        # The environment is made now: a restart sees the addresses of now.
        env = self._env() | dict(program.env)
        child = ChildProcess(argv, log_path=self.log_path, name=self.name, env=env, cwd=self._cwd)
        self._child = child
        if program.ready_url is not None:
            child.wait_ready(_slowly(http_ready(program.ready_url)), timeout_s=program.ready_s)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    def ended(self) -> int | None:
        return None if self._child is None else self._child.returncode


class _Postgres:
    name = "postgres"

    def __init__(self, data_dir: Path, *, durable: bool) -> None:
        self._server = EmbeddedPostgres(data_dir, durable=durable)
        self.log_path = self._server.log_path
        self.url = ""

    def start(self) -> None:
        self._server.start()
        if self.url and self._server.url != self.url:
            raise ServiceFailed(f"postgres: its socket moved from {self.url} to {self._server.url}; restart penstock")
        self.url = self._server.url

    def stop(self) -> None:
        self._server.stop()

    def ended(self) -> int | None:
        return self._server.returncode


class _Prometheus:
    name = "prometheus"

    def __init__(self, server: PrometheusServer) -> None:
        self._server = server
        self.log_path = server.log_path

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def ended(self) -> int | None:
        return self._server.returncode


def _guard_program() -> Program:
    return Program(name="guard", argv=("controller.cli.app", "guard"))


def _slowly(probe: Callable[[], bool]) -> Callable[[], bool]:
    """A probe that looks ten times a second: five servers starting on two cores have better things to do than to answer."""

    def slow() -> bool:
        time.sleep(0.1)
        return probe()

    return slow


def _root() -> Path:
    """The folder that holds our packages."""
    return Path(next(iter(controller.__path__))).parent
