"""
A controller process as the driver of a trial holds it.

Its one rule: nothing waits for ever. A process that does not answer in time is a finding, not a hang.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from multiprocessing.spawn import get_executable, set_executable
from pathlib import Path
from typing import Any

from bench.chaos.worker import work

_STARTING = threading.Lock()
"""multiprocessing keeps its children in module globals."""

ANSWER_S = 60.0


class Died(Exception):
    """The process ended instead of answering."""


class Refused(Exception):
    """The product said no; says what."""


class Unanswered(Exception):
    """No answer in time."""


@contextmanager
def _started_by(program: Path | None) -> Iterator[None]:
    """Processes that are spawned here are started by another program than Python itself."""
    if program is None:
        yield
        return
    usual = get_executable()
    set_executable(str(program))
    try:
        yield
    finally:
        set_executable(usual)


class Worker:
    """One controller. `call` gives an order and waits, `order` and `answer` do it in two steps."""

    def __init__(
        self,
        context: ForkServerContext | SpawnContext,
        environ: Mapping[str, str],
        *,
        prelude: str = "",
        log_path: Path,
        program: Path | None = None,
    ) -> None:
        ours, theirs = context.Pipe()
        with _STARTING, _started_by(program):
            self._process: ForkServerProcess | SpawnProcess = context.Process(
                target=work, args=(theirs, dict(environ), prelude, str(log_path), os.getpid()), daemon=True
            )
            self._process.start()
        theirs.close()
        self._connection = ours
        self._ready = False
        self.pid = self._process.pid or 0

    def call(self, verb: str, timeout_s: float = ANSWER_S, **args: Any) -> Any:
        """
        Give an order and wait for its answer.

        Raises:
            Died, Refused, Unanswered.
        """
        self.order(verb, **args)
        return self.answer(timeout_s)

    def order(self, verb: str, **args: Any) -> None:
        """Raises Died."""
        try:
            self._connection.send((verb, args))
        except (BrokenPipeError, ConnectionResetError) as exc:
            raise Died(f"{self.pid} is dead: {verb}") from exc

    def answer(self, timeout_s: float = ANSWER_S) -> Any:
        """The answer to the oldest order. Raises Died, Refused, Unanswered."""
        deadline = time.monotonic() + timeout_s
        self.ready(timeout_s)
        kind, value = self._receive(deadline)
        if kind == "refused":
            raise Refused(value)
        return value

    def ready(self, timeout_s: float = ANSWER_S) -> None:
        """Wait until it has opened everything. Raises Died, Unanswered."""
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            self._ready = self._receive(deadline)[0] == "ready"

    def _receive(self, deadline: float) -> tuple[str, Any]:
        try:
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                raise Unanswered(f"{self.pid}")
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError) as exc:
            raise Died(f"{self.pid} died") from exc
        return str(kind), value

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def frozen(self) -> bool:
        """Whether it is stopped by a signal."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return False

    def wait_frozen(self, timeout_s: float = ANSWER_S) -> bool:
        """Whether it stopped itself before it answered or the time was up."""
        deadline = time.monotonic() + timeout_s
        while not self.frozen:
            if (self._connection.poll(0.005) and self._ready) or time.monotonic() > deadline or not self.alive:
                return False
            if not self._ready and self._connection.poll(0):
                self.ready()
        return True

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.join(10)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        # Not by number after it was reaped: that may be somebody else's by then.
        if self._process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """End it; safe to call again."""
        self.kill()
        self._connection.close()
