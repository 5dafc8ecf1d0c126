"""
One child process with its log file: start it, wait until it serves, end it and everything it started.

Its one rule: a child never outlives its parent. On Linux the kernel signals the child when the parent dies (prctl
PR_SET_PDEATHSIG); everywhere, `stop` signals the child's whole process group, first politely and then with SIGKILL.
"""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.errors import ServiceFailed, ServiceMissing

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.02


class ChildProcess:
    """
    A running child, the leader of its own session and process group.

    Args:
        argv: Program and arguments; never a shell line.
        log_path: File that takes stdout and stderr, appended; its folder must exist.
        name: What messages call the child; default is the program's file name.
        env: The child's whole environment; None passes on the parent's.
        cwd: Working directory.
        user: Account to run as (only root can change it).
        death_signal: What the child gets when the parent dies without `stop`.

    Raises:
        ServiceMissing: there is no such program.
        ServiceFailed: it cannot be executed.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log_path: Path,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.argv = [str(a) for a in argv]
        self.name = name or Path(self.argv[0]).name
        self.log_path = log_path
        self._stopped = False
        self._log_start = log_path.stat().st_size if log_path.exists() else 0
        options: dict[str, Any] = {"env": None if env is None else dict(env), "cwd": cwd}
        if user is not None:
            options |= {"user": user, "group": user, "extra_groups": []}
        with log_path.open("ab") as log:
            options |= {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            if sys.platform == "linux":
                options["preexec_fn"] = _die_with_parent(death_signal)
            try:
                self._popen = _SPAWNER.popen(self.argv, options)
            except FileNotFoundError as exc:
                raise ServiceMissing(f"{self.name}: no such program: {self.argv[0]}") from exc
            except (OSError, subprocess.SubprocessError) as exc:
                raise ServiceFailed(f"{self.name}: cannot be started: {exc}") from exc

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    def wait_ready(self, probe: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
        """
        Block until the probe is true.

        Raises:
            ServiceFailed: the child ended first, or the time ran out. The child is stopped in either case.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if (code := self.returncode) is not None:
                self.stop()
                raise ServiceFailed(f"{self.name}: ended with status {code} before it was ready{self._log_for_message()}")
            if probe():
                return
            if time.monotonic() >= deadline:
                self.stop()
                raise ServiceFailed(f"{self.name}: not ready after {timeout_s:g} s{self._log_for_message()}")
            time.sleep(_POLL_S)

    def stop(self, *, how: signal.Signals = signal.SIGTERM, grace_s: float = 10.0) -> int:
        """
        End the child: `how` to its process group, SIGKILL to what is left after `grace_s`. Safe to call again.

        Returns:
            The child's exit status.
        """
        if self._stopped:
            return self._popen.wait()
        self._stopped = True
        if self._popen.poll() is None:
            self._signal_group(how)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace_s)
        # Once only, and right after the leader: later the number of an empty group may be somebody else's.
        self._signal_group(signal.SIGKILL)
        return self._popen.wait()

    def log_tail(self, lines: int = 12) -> str:
        """The last lines this child wrote to its log."""
        with suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 16_384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)

    def _log_for_message(self) -> str:
        tail = self.log_tail()
        return f"; its log {self.log_path} ends:\n{tail}" if tail else f"; its log {self.log_path} is empty"


def http_ready(url: str, *, timeout_s: float = 1.0) -> Callable[[], bool]:
    """A probe for `wait_ready`: true once the address answers 2xx. Proxies of the environment are not used."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def probe() -> bool:
        try:
            with opener.open(url, timeout=timeout_s) as answer:
                return 200 <= int(answer.status) < 300
        except (OSError, ValueError, urllib.error.URLError):
            return False

    return probe


def _die_with_parent(number: signal.Signals) -> Callable[[], None]:
    # Everything is looked up before the fork: between fork and exec only one C call is made.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask_kernel


class _Spawner:
    """
    A daemon thread that starts every child.

    The kernel sends PDEATHSIG when the *thread* that forked ends, not the process: a child started from a worker thread would
    die with that thread. This thread lives as long as the process.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[list[str], dict[str, Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._owner = 0

    def popen(self, argv: list[str], options: dict[str, Any]) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._owner != os.getpid():  # first use, or first use after a fork, which does not carry threads over
                self._owner = os.getpid()
                self._work = queue.SimpleQueue()
                threading.Thread(target=self._run, args=(self._work,), name="services-spawner", daemon=True).start()
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._work.put((argv, options, answer))
        result = answer.get()
        if isinstance(result, BaseException):
            raise result
        assert isinstance(result, subprocess.Popen)
        return result

    @staticmethod
    def _run(work: "queue.SimpleQueue[tuple[list[str], dict[str, Any], queue.SimpleQueue[Any]]]") -> None:
        while True:
            argv, options, answer = work.get()
            try:
                answer.put(subprocess.Popen(argv, **options))
            except Exception as exc:
                answer.put(exc)


_SPAWNER = _Spawner()
