"""
A controller process: the product's own wiring, doing what the driver of a trial tells it.

It is forked from a server that has imported everything, so that five hundred of them take minutes. Its one rule: what it does with the world it
does through `tick`, `commands`, `guard` and `deliver`, as the command line does; only the pauses between them are shorter.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import structlog

# Imported here so that the fork server has them; the product imports them where it needs them.
import controller.adapters.postgres
import controller.adapters.prometheus
import controller.adapters.slack
import controller.core.evidence.case  # noqa: F401
from controller import commands, crash, guard
from controller.codec import plan_digest
from controller.core.plan import Plan
from controller.deliver import Pace, deliver
from controller.ports import PortError, Unavailable
from controller.settings import load
from controller.sweep import sweep
from controller.tick import Tick, tick
from controller.wiring import Controller, open_controller

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_REOPEN_S = 0.1


def work(connection: Connection, environ: Mapping[str, str], prelude: str, log_path: str, driver: int) -> None:
    """
    Obey orders until the driver hangs up.

    Args:
        connection: Orders come as (verb, arguments), answers go as (kind, value): ``ready`` once, then ``done`` or ``refused``.
        environ: Added to the environment, where the product's settings are read from.
        prelude: ``module:function`` that is called first, for faults of the process itself; "" for none.
        log_path: Takes everything that it prints.
        driver: Its process.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environ)
    time.tzset()
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    if prelude:
        module, _, name = prelude.partition(":")
        getattr(import_module(module), name)()
    try:
        # While nothing can be opened no order is read, so that a driver that hung up would not be noticed.
        while not _serve(connection) and _exists(driver):
            time.sleep(_REOPEN_S)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _serve(connection: Connection) -> bool:
    """False when the controller could not be opened: whoever supervises it starts it again."""
    try:
        with open_controller(load()) as opened:
            orders = _Orders(opened)
            connection.send(("ready", None))
            while True:
                verb, args = connection.recv()
                try:
                    connection.send(("done", getattr(orders, verb)(**args)))
                except Exception as exc:  # a bug is an answer, too: the product's own loops outlive it
                    if not isinstance(exc, PortError | commands.CommandRefused):
                        structlog.get_logger().exception("order_broke", verb=verb)
                    connection.send(("refused", f"{type(exc).__name__}: {exc}"))
    except Unavailable:
        return False


class _Orders:
    """What a driver can ask for."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, plan: Plan, key: str = "k") -> str:
        return commands.start(plan, plan_digest(plan), self._controller.ports, actor="rita", key=key).id

    def tick(self, rollout_id: str, may_raise: bool, force: bool = True) -> Mapping[str, Any]:
        ports = self._controller.ports
        return _told(tick(rollout_id, ports, ports.audit.now(), may_raise=may_raise, force=force and may_raise))

    def command(self, name: str, rollout_id: str, **args: Any) -> int:
        return int(getattr(commands, name)(rollout_id, self._controller.ports, **args).seq)

    def deliver(self, limit: int = 20) -> int:
        done = deliver(self._controller.outbox, self._controller.notifier, limit, pace=Pace(pause_s=0.0))
        return done.sent

    def mail(self) -> None:
        """The product's own loop for letters, in a thread until `halt`."""
        self._go(lambda: guard.mail(self._controller.outbox, self._controller.notifier, self._stop))

    def _go(self, *loops: Callable[[], None]) -> None:
        threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        self._threads += threads
        for thread in threads:
            thread.start()

    def clock(self) -> tuple[float, str]:
        """What this process takes for the time: seconds since the epoch, and what a wall clock would show."""
        return time.time(), time.strftime("%Y-%m-%d %H:%M:%S %Z")

    def passed(self) -> Mapping[str, int]:
        return {p.value: n for p, n in crash.passed().items()}

    def run(self, guard_s: float = 0.25, check_s: float = 0.5, mail_s: float = 0.3) -> None:
        """Guard, gate checks and mail, each in its thread, until the process ends or `halt`."""
        ports, stop = self._controller.ports, self._stop

        def checks() -> None:
            while not stop.wait(check_s):
                try:
                    for _ in sweep(ports, may_raise=True):
                        pass
                except PortError:
                    continue

        def letters() -> None:
            while not stop.wait(mail_s):
                try:
                    self.deliver()
                except PortError:
                    continue

        self._go(checks, letters, lambda: guard.guard(ports, timedelta(seconds=guard_s), stop))

    def halt(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=20)
        self._stop, self._threads = threading.Event(), []


def _told(seen: Tick) -> Mapping[str, Any]:
    decision = seen.decision
    return {
        "outcome": seen.outcome.value,
        "decision": "" if decision is None else decision.kind,
        "why": "" if decision is None else decision.why.value,
        "text": "" if decision is None else decision.text,
        "seq": seen.rollout.seq,
        "ended": seen.rollout.ended,
        "verdicts": {r.gate: f"{r.verdict.value}: {r.reason}" for r in seen.results},
    }
