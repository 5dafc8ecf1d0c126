"""
The things that a stack is made of: a server of somebody else's, or a Python program of ours in a process of its own.

Each is started, awaited, asked whether it still runs, and stopped in the same way. Its one rule: a part keeps its address when it is
started again, because others have been told it.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.errors import ServiceFailed
from services.postgres import EmbeddedPostgres
from services.process import ChildProcess, http_ready
from services.prometheus import PrometheusServer

READY_S = 60.0


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


class ChildPart:
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


class PostgresPart:
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


class PrometheusPart:
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


def _slowly(probe: Callable[[], bool]) -> Callable[[], bool]:
    """A probe that looks ten times a second: five servers starting on two cores have better things to do than to answer."""

    def slow() -> bool:
        time.sleep(0.1)
        return probe()

    return slow
