"""
Several processes behind one address: started, watched, started again when they die, stopped together; and their metrics as one page.

The parent holds the listening socket and answers nothing. What workers count together lies in `shared`. Its one rule: whatever a worker dies of,
the others answer, and what it held is free again.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from router import logs
from router.shared import Shared

log = logs.get_logger()

READY_S = 60.0
"""A worker that does not answer so long after its start is started again."""

EARLY_DEATHS = 3
"""A worker that dies so often in a row before it answered will not do better: everything is stopped."""

STOP_S = 15.0
"""After that a worker that was asked to stop is killed; uvicorn lets requests end for ten seconds."""

LOOK_EVERY_S = 0.1
PAUSE_S = (0.5, 10.0)
"""Before a worker is started again: first, and at most; doubled by each early death."""

SCRAPE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """
    A worker's place among the others.

    Args:
        index, count: Which one it is, from 0, and how many there are.
        home: Folder that they share.
        listening: Descriptor of the socket that requests come in by.
    """

    index: int
    count: int
    home: str
    listening: int

    @property
    def store_path(self) -> str:
        return f"{self.home}/counts"

    def own_address(self, index: int | None = None) -> str:
        """Where a worker can be asked by itself: a Unix socket."""
        return f"{self.home}/{self.index if index is None else index}.sock"

    def arguments(self) -> list[str]:
        return ["--place", f"{self.index},{self.count},{self.listening},{self.home}"]

    @classmethod
    def read(cls, text: str) -> "Place":
        """What `arguments` wrote. Raises ValueError."""
        index, count, listening, home = text.split(",", 3)
        return cls(index=int(index), count=int(count), listening=int(listening), home=home)


class _Worker:
    def __init__(self, place: Place, arguments: Sequence[str]) -> None:
        self._place, self._arguments = place, arguments
        self._early = 0
        self.hopeless = False
        self.start()

    def start(self) -> None:
        self._again_at: float | None = None
        self.ready = False
        self._began = time.monotonic()
        # It may be the address of one that was killed.
        Path(self._place.own_address()).unlink(missing_ok=True)
        command = [sys.executable, "-m", "router", *self._arguments, *self._place.arguments()]
        self.process = subprocess.Popen(command, pass_fds=[self._place.listening])

    def look(self) -> None:
        """Notices that it answers, or that it died; starts it again when its pause is over."""
        now = time.monotonic()
        if self._again_at is not None:
            if now >= self._again_at:
                self.start()
            return
        if (code := self.process.poll()) is None:
            if not self.ready and _answers(self._place.own_address()):
                self.ready, self._early = True, 0
            elif not self.ready and now - self._began > READY_S:
                self.process.kill()
            return
        self._early = 0 if self.ready else self._early + 1
        self.hopeless = self._early >= EARLY_DEATHS
        pause_s = min(PAUSE_S[0] * 2**self._early, PAUSE_S[1])
        self._again_at = now + pause_s
        log.error("worker_died", worker=self._place.index, code=code, again_in_s=pause_s)


def supervise(sock: socket.socket, arguments: Sequence[str], count: int, said: str) -> int:
    """
    Run workers until SIGINT or SIGTERM.

    Args:
        sock: Bound and listening; each worker accepts from it.
        arguments: Of a router that is alone.
        count: How many.
        said: To the person at the terminal, once all of them answer.

    Returns:
        Exit code: 0 after a stop that was asked for; 1 when a worker cannot be kept running.
    """
    stopping: list[int] = []
    before = {s: signal.signal(s, lambda number, _: stopping.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    # In memory where there is such a folder: what is counted there is written a thousand times a second and read by nobody else.
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        with TemporaryDirectory(prefix="penstock-router-", dir=folder) as home:
            places = [Place(index=i, count=count, home=home, listening=sock.fileno()) for i in range(count)]
            Shared.make(places[0].store_path)
            workers = [_Worker(place, arguments) for place in places]
            try:
                while not stopping and not any(w.hopeless for w in workers):
                    for worker in workers:
                        worker.look()
                    if said and all(w.ready for w in workers):
                        sys.stderr.write(f"{said}\n")
                        sys.stderr.flush()
                        said = ""
                    time.sleep(LOOK_EVERY_S)
            finally:
                _stop([w.process for w in workers])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if stopping else 1


def _stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    running = [p for p in processes if p.poll() is None]
    for process in running:
        process.terminate()
    until = time.monotonic() + STOP_S
    for process in running:
        try:
            process.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


# --- metrics --------------------------------------------------------------------------------------------------------------------


def exposition(place: Place, accept: str) -> tuple[int, bytes, bytes]:
    """
    The metrics of all workers on one page, each series with the label `worker`.

    Returns:
        Status, content type, page. A page is whole or it is none: a worker that does not answer is 503, and Prometheus takes the scrape for
        missed instead of the worker's traffic for gone.
    """
    pages = []
    for index in range(place.count):
        try:
            content_type, page = _page_of(place.own_address(index), accept)
        except (OSError, http.client.HTTPException) as exc:
            text = f"worker {index} does not answer: {type(exc).__name__}\n"
            return 503, b"text/plain; charset=utf-8", text.encode()
        pages.append(page)
    return 200, content_type, merged(pages)


def merged(pages: Sequence[bytes]) -> bytes:
    """
    Args:
        pages: Of each worker, in Prometheus' text format or in OpenMetrics.

    Returns:
        One page in the same format: the series of a name stand together.
    """
    families: dict[bytes, tuple[dict[bytes, None], list[bytes]]] = {}
    for worker, page in enumerate(pages):
        head, series = families.setdefault(b"", ({}, []))
        for line in page.splitlines():
            if line == b"# EOF":
                continue
            if line.startswith(b"# "):
                head, series = families.setdefault(line.split(b" ", 3)[2], ({}, []))
                head[line] = None
            elif line:
                series.append(_labelled(line, worker))
    lines = [line for head, series in families.values() for line in (*head, *series)]
    ending = [b"# EOF"] if pages and pages[0].rstrip().endswith(b"# EOF") else []
    return b"\n".join([*lines, *ending, b""])


def _labelled(line: bytes, worker: int) -> bytes:
    label = b'worker="%d"' % worker
    name, mark, rest = line.partition(b" ")
    bare, brace, labels = name.partition(b"{")
    if not brace:
        return b"%s{%s}%s%s" % (bare, label, mark, rest)
    more = b"" if labels.startswith(b"}") else b","
    return b"%s{%s%s%s%s%s" % (bare, label, more, labels, mark, rest)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, address: str) -> None:
        super().__init__("worker", timeout=SCRAPE_S)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SCRAPE_S)
        self.sock.connect(self._address)


def _page_of(address: str, accept: str) -> tuple[bytes, bytes]:
    connection = _UnixConnection(address)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        page = answer.read()
        if answer.status != 200:
            raise http.client.HTTPException(f"status {answer.status}")
        return (answer.getheader("Content-Type") or "").encode(), page
    finally:
        connection.close()
