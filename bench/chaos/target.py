"""
What Prometheus scrapes in a trial: a router's counters, and an alarm, for as many flags as there are worlds.

Counters grow at the moment they are read, by the time that has passed, so that nothing runs between scrapes. Its one rule: what it serves is
the truth that a trial set, and nothing of the controller's.
"""

import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

ENVIRONMENT = "chaos"
RATE = 400.0
"""Requests a second of each arm."""

_OUTCOMES = ("ok", "error", "timeout", "rate_limited", "client_error", "cancelled")


class Truth(StrEnum):
    GOOD = "good"
    FAILING = "failing"
    """Every request to the candidate fails."""
    ALARM = "alarm"
    """An event that the plan allows at most 0 times is the case."""
    SILENT = "silent"
    """The candidate's counters stand still beside a baseline that has traffic."""


@dataclass(slots=True)
class Flow:
    """The traffic of one flag."""

    flag: str
    truth: Truth = Truth.GOOD
    counts: dict[tuple[str, str], float] = field(default_factory=dict)
    at_s: float = field(default_factory=time.monotonic)

    def lines(self, now_s: float) -> list[str]:
        passed, self.at_s = (now_s - self.at_s) * RATE, now_s
        for arm in ("baseline", "candidate"):
            outcome = "error" if arm == "candidate" and self.truth is Truth.FAILING else "ok"
            if not (arm == "candidate" and self.truth is Truth.SILENT):
                self.counts[arm, outcome] = self.counts.get((arm, outcome), 0.0) + passed
        lines = [f'chaos_alarm{{flag="{self.flag}"}} {int(self.truth is Truth.ALARM)}']
        for arm, model in (("baseline", "old"), ("candidate", "new")):
            common = f'environment="{ENVIRONMENT}",flag="{self.flag}",route="chat",arm="{arm}",model="{model}",streaming="false"'
            lines += [
                f'penstock_requests_total{{{common},outcome="{o}"}} {int(self.counts.get((arm, o), 0.0))}' for o in _OUTCOMES
            ]
        return lines


class Target:
    """The exporter; `flow` adds a flag, `drop` forgets it."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}
        self._lock = threading.Lock()
        self._scraped = threading.Event()
        target = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = target.text().encode()
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # Prometheus gave up: a scrape is missed

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def flow(self, flag: str) -> Flow:
        with self._lock:
            made = self._flows[flag] = Flow(flag)
        return made

    def drop(self, flag: str) -> None:
        with self._lock:
            self._flows.pop(flag, None)

    def wait_scraped(self) -> None:
        """Prometheus takes 5 s until its first scrape."""
        if not self._scraped.wait(30):
            raise TimeoutError("Prometheus does not scrape the target")

    def text(self) -> str:
        self._scraped.set()
        with self._lock:
            now_s = time.monotonic()
            return "\n".join((*(line for f in self._flows.values() for line in f.lines(now_s)), ""))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="chaos-target", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
