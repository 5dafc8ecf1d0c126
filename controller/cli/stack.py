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
import importlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import controller
from controller.cli.parts import ChildPart, Part, PostgresPart, Program, PrometheusPart
from controller.people import hash_password
from controller.ports import Unavailable
from controller.settings import Settings
from services.errors import ServiceError
from services.ports import free_port, port_in_use
from services.process import http_ready
from services.prometheus import PrometheusServer
from specfile import format_duration

PREFECT_READY_S = 150.0
"""Prefect's server was measured at 9 to 40 s to healthy on two idle cores; a first start on a busy machine takes longer."""

LOOK_S = 0.5
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before a dead part is started again; the last one repeats."""

STEADY_S = 60.0
"""A part that lived so long is started again without a longer pause."""

RULES = ("penstock-rules.yaml", "penstock-router-rules.yaml")
"""Alerts about the controller and about routers."""

Say = Callable[[str], None]


class StackError(Exception):
    """The stack cannot run; one sentence that names what and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """
    What to run.

    Args:
        prefect: Run Prefect's server and the flows.
        flows: Module that carries out the flows, and its arguments.
        guard: Arguments of `penstock guard`.
        prefect_port: Of its server; 0 chooses a free one.
        prometheus_port: The same for Prometheus.
        metric_relabel: Rules that Prometheus applies to what it scrapes.
        scrape: Scrape jobs: name to `host:port` addresses.
        programs: Started first, beside the servers.
        routers: Started last but for the flows; they read flags from `serve`.
        listens: Addresses that these programs will listen on, by what messages call them.
        durable: False turns fsync of the database off, for data that nobody misses.
    """

    prefect: bool = True
    flows: tuple[str, ...] = ("flows.local",)
    guard: tuple[str, ...] = ()
    prefect_port: int = 4200
    prometheus_port: int = 9090
    metric_relabel: tuple[Mapping[str, object], ...] = ()
    scrape: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    programs: tuple[Program, ...] = ()
    routers: tuple[Program, ...] = ()
    listens: Mapping[str, str] = field(default_factory=dict)
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
        self._password = secrets.token_urlsafe(12)

    def start(self) -> Self:
        """
        Start everything and return when all of it is ready; on any failure nothing is left running.

        Raises:
            StackError: something cannot run.
        """
        try:
            self._take_home()
            self._check_ports()
            self._check_given()
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
            self._stop_parts()
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
            "PENSTOCK_FLAGS_DATABASE_URL": settings.flags_database_url,
            "PENSTOCK_PROMETHEUS_URL": settings.prometheus_url,
            "PENSTOCK_SCRAPE_INTERVAL": format_duration(settings.scrape_interval),
            "PENSTOCK_LISTEN": settings.listen,
            "PENSTOCK_GUARD_LISTEN": settings.guard_listen or "off",
            "PENSTOCK_FLOWS_LISTEN": settings.flows_listen,
            "PENSTOCK_ROUTER_URL": settings.router_url,
            "PENSTOCK_SLACK_TOKEN": settings.slack_token or None,
            "PENSTOCK_SLACK_CHANNEL": settings.slack_channel,
            "PENSTOCK_SLACK_API_URL": settings.slack_api_url,
            "PREFECT_API_URL": settings.prefect_api_url,
            "PYTHONUNBUFFERED": "1",
            # Children run in the home folder; this finds the packages there too, installed or in a checkout.
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_root()), self._environ.get("PYTHONPATH")))),
        }
        return self._environ | {name: value for name, value in named.items() if value is not None}

    def _stop_parts(self) -> None:
        for part in reversed(self._parts):
            part.stop()

    # --- starting -------------------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        with ThreadPoolExecutor(thread_name_prefix="start") as pool:
            try:
                self._start_in(pool)
            except BaseException:
                # What is still being waited for must end, or the pool would wait for it.
                self._stopping.set()
                self._stop_parts()
                raise

    def _start_in(self, pool: ThreadPoolExecutor) -> None:
        plan = self.plan
        first: list[Future[None]] = []
        prefect: list[Future[None]] = []
        if plan.prefect and plan.flows[0] == "flows.local" and self.settings.flows_listen is None:
            self.settings = replace(self.settings, flows_listen=f"127.0.0.1:{free_port()}")
        prometheus = self._prometheus() if self.settings.prometheus_url is None else None
        if plan.prefect and self.settings.prefect_api_url is None:
            port = plan.prefect_port or free_port()
            self.settings = replace(self.settings, prefect_api_url=_flows_server().api_url(port))
            prefect.append(pool.submit(self._run, self._child(self._prefect_program(port))))
        first.append(pool.submit(self._start_database))
        if prometheus is not None:
            first.append(pool.submit(self._run, prometheus))
        first += [pool.submit(self._run, self._child(p)) for p in plan.programs]
        _await(first, prefect)
        if prometheus is not None:
            self.settings = replace(self.settings, prometheus_url=prometheus.url)
        self._write_run_file()
        guard = Program(name="guard", argv=("controller.cli.app", "guard", *plan.guard))
        programs = (self._serve_program(), guard, *plan.routers)
        second = [pool.submit(self._run, self._child(p)) for p in programs]
        _await([*second, *prefect])
        if plan.prefect:
            _await([pool.submit(self._run, self._child(self._flows_program()))])

    def _run(self, part: Part) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self._parts.append(part)
        begun = time.monotonic()
        part.start()
        self.took_s[part.name] = time.monotonic() - begun

    def _start_database(self) -> None:
        url = self.settings.database_url
        embedded = PostgresPart(self.settings.home / "postgres", durable=self.plan.durable) if url is None else None
        if embedded is not None:
            self._run(embedded)
            url = embedded.url
        if not url:
            return  # another part has failed meanwhile
        begun = time.monotonic()
        self.settings = replace(self.settings, database_url=_prepared(url, embedded=embedded is not None))
        if self.settings.flags_database_url is not None:
            _prepared(self.settings.flags_database_url, embedded=False)
        self.took_s["migrations"] = time.monotonic() - begun

    def _prometheus(self) -> PrometheusPart:
        return PrometheusPart(
            PrometheusServer(
                self.settings.home / "prometheus",
                {name: list(addresses) for name, addresses in self._scraped().items()},
                scrape_interval=self.settings.scrape_interval,
                port=self.plan.prometheus_port or free_port(),  # chosen once: a restart keeps its address
                fresh=False,
                metric_relabel=self.plan.metric_relabel,
                rule_files=rule_files(),
            )
        )

    def _scraped(self) -> dict[str, tuple[str, ...]]:
        """What the plan scrapes, and our own processes."""
        settings = self.settings
        ours = {
            "penstock-serve": settings.listen,
            "penstock-guard": settings.guard_listen,
            "penstock-flows": settings.flows_listen,
        }
        return {**self.plan.scrape, **{job: (address,) for job, address in ours.items() if address is not None}}

    def _child(self, program: Program) -> ChildPart:
        return ChildPart(program, log_path=self._logs / f"{program.name}.log", env=self.environment, cwd=self.settings.home)

    def _prefect_program(self, port: int) -> Program:
        server = _flows_server()
        argv: list[str] = server.argv(port)
        return Program(
            name="prefect",
            argv=tuple(argv[argv.index("-m") + 1 :]),
            env=server.environment(self.settings.home, port),
            ready_url=f"{server.api_url(port)}/health",
            ready_s=PREFECT_READY_S,
        )

    def _serve_program(self) -> Program:
        env = {}
        if self.console_login:
            env["PENSTOCK_CONSOLE_LOGIN"] = f"{self.settings.actor}={hash_password(self._password)}"
        url = f"http://{self.settings.listen}/readyz/flags"
        return Program(name="serve", argv=("controller.cli.app", "serve"), env=env, ready_url=url)

    @property
    def console_login(self) -> str:
        """Name and password that were made for the console of this stack; "" where people log in as the settings say."""
        settings = self.settings
        named = settings.people_file is not None or settings.console_login or not settings.actor
        return "" if named else f"{settings.actor}, password {self._password} (until this stops)"

    def _flows_program(self) -> Program:
        url = str(self.settings.prefect_api_url)
        return Program(
            name="flows",
            argv=self.plan.flows,
            env=_flows_server().client_environment(self.settings.home, url),
            ready_url=f"{url}/deployments/name/rollout/rollout",
            ready_s=PREFECT_READY_S,
        )

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
        settings, plan = self.settings, self.plan
        wanted = {"the console (PENSTOCK_LISTEN)": settings.listen, **plan.listens}
        if settings.guard_listen is not None:
            wanted["the guard's metrics (PENSTOCK_GUARD_LISTEN)"] = settings.guard_listen
        if plan.prefect and settings.prefect_api_url is None:
            wanted["Prefect's server (PREFECT_API_URL uses one that runs)"] = f"127.0.0.1:{plan.prefect_port}"
        if settings.prometheus_url is None:
            wanted["Prometheus (PENSTOCK_PROMETHEUS_URL uses one that runs)"] = f"127.0.0.1:{plan.prometheus_port}"
        for what, address in wanted.items():
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise StackError(f"{address!r}, wanted by {what}, is not an address; write host:port, such as 127.0.0.1:8420")
            try:
                taken = int(port) != 0 and port_in_use(host.strip("[]"), int(port))
            except OSError as exc:
                raise StackError(f"{address}, wanted by {what}: {exc.strerror or exc}") from exc
            if taken:
                raise StackError(f"{address} is taken; it is wanted by {what}")

    def _check_given(self) -> None:
        """Services of others that the settings name must answer; the database is asked when its tables are looked at."""
        settings = self.settings
        if settings.prometheus_url is not None:
            from controller.adapters.prometheus import PrometheusSource

            try:
                PrometheusSource(settings.prometheus_url).probe()
            except (Unavailable, ValueError) as exc:
                raise StackError(f"PENSTOCK_PROMETHEUS_URL={settings.prometheus_url}: {exc}") from exc
        if self.plan.prefect and settings.prefect_api_url is not None:
            url = f"{settings.prefect_api_url.rstrip('/')}/health"
            if not http_ready(url, timeout_s=5.0)():
                raise StackError(f"PREFECT_API_URL={settings.prefect_api_url}: no Prefect server answers at {url}")

    def _write_run_file(self) -> None:
        settings = self.settings
        found = {
            "pid": os.getpid(),
            "database_url": settings.database_url,
            "flags_database_url": settings.flags_database_url,
            "prometheus_url": settings.prometheus_url,
            "prefect_api_url": settings.prefect_api_url,
            "scrape_interval": format_duration(settings.scrape_interval),
            "listen": settings.listen,
            "guard_listen": settings.guard_listen or "off",
            "router_url": settings.router_url,
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


def _await(work: Sequence["Future[None]"], beside: Sequence["Future[None]"] = ()) -> None:
    """All of `work`, or the first failure of it or of what runs beside it. Raises that failure."""
    waiting = {*work, *beside}
    while not all(f.done() for f in work):
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
    for future in work:
        future.result()


def _prepared(url: str, *, embedded: bool) -> str:
    """
    A database with this release's tables, as the role that the controller works as.

    An embedded server trusts local roles, so the controller gets one that may only do its work. Elsewhere the address names the
    role, and that role migrates only what is not there yet.
    """
    from controller.adapters.postgres.connect import app_url, create_database
    from controller.adapters.postgres.errors import BadDatabaseUrl, DatabaseProblem, SchemaMismatch
    from controller.adapters.postgres.migrate import check, upgrade

    try:
        if embedded:
            url = create_database(url, "penstock")
            upgrade(url)
            return app_url(url)
        try:
            check(url)
        except SchemaMismatch:
            upgrade(url)
    except (BadDatabaseUrl, DatabaseProblem) as exc:
        raise StackError(str(exc)) from exc
    return url


def _flows_server() -> Any:
    """How Prefect is started. `flows` stands above this package, so it is looked up when needed and not imported."""
    return importlib.import_module("flows.server")


def _root() -> Path:
    """The folder that holds our packages."""
    return Path(next(iter(controller.__path__))).parent


def rule_files() -> list[Path]:
    """The alert rules: in an installed release within its package, in a checkout where they are kept."""
    installed = _root() / "controller" / "rules"
    folder = installed if installed.is_dir() else _root() / "deployments" / "prometheus"
    return [folder / name for name in RULES]
