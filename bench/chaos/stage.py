"""
What all trials share: one Postgres with a migrated template, one Prometheus with its target, the fork server, a loop for Slack stand-ins.

Its one rule: a trial never sees another one's things. It gets a database, a flag, a Slack and processes of its own from here.
"""

import asyncio
import itertools
import multiprocessing
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from bench.chaos.target import Target
from bench.slack import SlackConfig, SlackServer
from bench.slack_limits import RateLimits
from controller.adapters.postgres.connect import connect, create_database
from controller.adapters.postgres.migrate import upgrade
from controller.adapters.postgres.tables import metadata
from services.postgres import EmbeddedPostgres
from services.prometheus import PrometheusServer

T = TypeVar("T")
SCRAPE = timedelta(milliseconds=250)
TEMPLATE = "chaos_template"
DATABASE = "chaos"
"""On servers that belong to one trial."""

_CONNECTIONS = 400
_APPEND_ONLY = ("audit", "audit_evidence", "flag_history")
_END_OTHERS = (
    b"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Stage:
    """Use it as a context; `postgres`, `prometheus` and `target` are there inside."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._image: Path | None = None
        self._free: list[str] = []
        self._made: dict[object, Any] = {}
        self._numbers = itertools.count(1)
        self.forked: ForkServerContext = multiprocessing.get_context("forkserver")
        self.spawned: SpawnContext = multiprocessing.get_context("spawn")

    def __enter__(self) -> Self:
        try:
            return self._start()
        except BaseException:
            self._stack.close()
            raise

    def _start(self) -> Self:
        for name in _ONE_THREAD:  # a process that has threads must not be forked from
            os.environ.setdefault(name, "1")
        self.forked.set_forkserver_preload(["bench.chaos.worker", "bench.chaos.faults_migration"])
        temporary = tempfile.TemporaryDirectory(prefix="penstock-chaos-", ignore_cleanup_errors=True)
        self.home = Path(self._stack.enter_context(temporary))
        # Not durable: what dies beside it are controllers. Faults of the server itself have a durable one of their own (`cluster`).
        self.postgres = self._stack.enter_context(
            EmbeddedPostgres(self.home / "pg" / "data", max_connections=_CONNECTIONS, durable=False)
        )
        upgrade(create_database(self.postgres.url, TEMPLATE))
        self.target = self._stack.enter_context(Target())
        self.prometheus = self._stack.enter_context(
            PrometheusServer(self.home / "prometheus", {"router": [self.target.address]}, scrape_interval=SCRAPE)
        )
        self.slacks = self._stack.enter_context(_Loop())
        self.target.wait_scraped()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def shared(self, make: Callable[[Path], AbstractContextManager[T]]) -> T:
        """What only some faults need and what takes long to start: made once, in a folder of its own, and kept to the end."""
        with self._lock:
            if make not in self._made:
                self._made[make] = self._stack.enter_context(make(self.home / f"shared-{len(self._made)}"))
            found: T = self._made[make]
            return found

    @contextmanager
    def database(self) -> Iterator[str]:
        """The owner's URL of an empty database with all tables, on the shared server; it is emptied and used again afterwards."""
        with self._lock:
            name = self._free.pop() if self._free else ""
        if not name:
            name = f"chaos_{next(self._numbers)}"
            with connect(self.postgres.url) as connection:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}".encode())
        try:
            yield self.postgres.url_for(name)
        finally:
            with connect(self.postgres.url_for(name)) as connection:
                connection.execute(_END_OTHERS)
                # Only an owner who disarms the triggers can empty these tables; that is the point of them.
                for table in _APPEND_ONLY:
                    connection.execute(f"ALTER TABLE penstock.{table} DISABLE TRIGGER {table}_append_only".encode())
                connection.execute(f"TRUNCATE {', '.join(metadata.tables)}".encode())
                for table in _APPEND_ONLY:
                    connection.execute(f"ALTER TABLE penstock.{table} ENABLE ALWAYS TRIGGER {table}_append_only".encode())
            with self._lock:
                self._free.append(name)

    def cluster(self) -> Path:
        """A data directory of its own with a migrated database `DATABASE`, for a server that a trial may break."""
        with self._lock:
            if self._image is None:
                image = self.home / "image" / "data"
                with EmbeddedPostgres(image) as server:
                    upgrade(create_database(server.url, DATABASE))
                self._image = image
            copy = self.home / f"own-{next(self._numbers)}" / "data"
            copy.parent.mkdir()
            # cp keeps the owner, without whom the server would not start.
            subprocess.run(["cp", "-a", "--reflink=auto", str(self._image), str(copy)], check=True)
        return copy

    @contextmanager
    def slack(self) -> Iterator[SlackServer]:
        """A Slack stand-in without rate limits; faults are scripted in `faults`."""
        server = SlackServer(SlackConfig(limits=RateLimits(post_per_s=0, tiers=False)))
        with self.slacks.running(server.running()):
            yield server


class _Loop:
    """An event loop in a thread, for servers that the synchronous trials use."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        threading.Thread(target=self._loop.run_forever, name="chaos-slack", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    @contextmanager
    def running(self, context: AbstractAsyncContextManager[T]) -> Iterator[T]:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), self._loop).result(20)
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), self._loop).result(20)
