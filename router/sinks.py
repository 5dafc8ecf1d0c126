"""
Where shadow pairs go: a file, an address, or code of one's own.

    make_sinks(spec, ...)  ->  the sinks of router.yaml, each with the name of its series

Its one rule: a sink's trouble is the sink's. What it takes lies in a queue with bounds, in pairs and in bytes; what does not fit there, or
cannot be delivered, is counted and forgotten.
"""

import asyncio
import importlib
import logging
import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import stamina

from router import config
from router.logs import get_logger
from router.metrics import PairOutcome
from router.pairs import SCHEMA, PairSink

log = get_logger()

QUEUE_BYTES = 16 * 1024 * 1024
"""What waits for delivery, at most; a pair with content may have hundreds of kilobytes."""

RETRY_AFTER_MAX_S = 60.0

Count = Callable[[PairOutcome, int], None]


def make_sinks(
    spec: config.Pairs,
    *,
    environ: Mapping[str, str],
    directory: Path | None,
    drain_s: float,
    count: Callable[[str, PairOutcome, int], None],
) -> list[tuple[str, PairSink]]:
    """
    Args:
        directory: What the file's path is relative to.
        drain_s: How long a stop waits for the queues.
        count: Name of the sink, what became of pairs, how many.

    Raises:
        ValueError: code of one's own cannot be used.
    """
    made: list[tuple[str, PairSink]] = []
    if spec.file is not None:
        path = (directory or Path()) / spec.file.path
        made.append(("file", FileSink(spec.file, path, spec.queue, drain_s, lambda what, n: count("file", what, n))))
    if spec.http is not None:
        token = environ.get(spec.http.token_env, "") if spec.http.token_env else ""
        made.append(("http", HttpSink(spec.http, token, spec.queue, drain_s, lambda what, n: count("http", what, n))))
    if spec.python is not None:
        made.append(("python", _imported(spec.python, spec.options)))
    return made


def _imported(name: str, options: Mapping[str, Any]) -> PairSink:
    module, _, attribute = name.partition(":")
    try:
        sink: PairSink = getattr(importlib.import_module(module), attribute)(options)
    except Exception as exc:
        raise ValueError(f"shadow.pairs.python: {name!r} makes no sink: {type(exc).__name__}: {exc}") from exc
    if not callable(getattr(sink, "offer", None)) or not callable(getattr(sink, "close", None)):
        raise ValueError(f"shadow.pairs.python: what {name!r} makes has no offer() and close()")
    return sink


class _Queued:
    """A queue, and a task that empties it in batches."""

    def __init__(self, most: int, batch: int, gather_s: float, drain_s: float, count: Count) -> None:
        self._most, self._batch, self._gather_s, self._drain_s, self._count = most, batch, gather_s, drain_s, count
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._news, self._closing = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def offer(self, pair: Mapping[str, Any]) -> bool:
        line = orjson.dumps(pair)
        if self._closing.is_set() or len(self._waiting) >= self._most or self._bytes + len(line) > QUEUE_BYTES:
            return False
        self._waiting.append(line)
        self._bytes += len(line)
        self._news.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="pairs")
        return True

    async def close(self) -> None:
        self._closing.set()
        self._news.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._drain_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting:
            self._count("dropped", len(self._waiting))
            self._waiting.clear()
        await self._shut()

    @abstractmethod
    async def _deliver(self, batch: list[bytes]) -> None:
        """Raises what says why it could not."""

    async def _shut(self) -> None:
        """Nothing more comes."""

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                if self._closing.is_set():
                    return
                self._news.clear()
                await self._news.wait()
            if len(self._waiting) < self._batch and not self._closing.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), self._gather_s)
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            self._bytes -= sum(map(len, batch))
            try:
                await self._deliver(batch)
            except asyncio.CancelledError:
                self._count("dropped", len(batch))
                raise
            except Exception as exc:
                log.warning("pairs_not_delivered", pairs=len(batch), error=type(exc).__name__)
                self._count("failed", len(batch))
            else:
                self._count("delivered", len(batch))


class FileSink(_Queued):
    """One pair a line. The file is turned over before it grows beyond its limit, and only so many old ones are kept."""

    def __init__(self, spec: config.PairsFile, path: Path, most: int, drain_s: float, count: Count) -> None:
        super().__init__(most, 200, 0.05, drain_s, count)
        self._handler = _Rotated(path, maxBytes=spec.max_bytes, backupCount=spec.keep, encoding="utf-8", delay=True)

    async def _deliver(self, batch: list[bytes]) -> None:
        await asyncio.to_thread(self._write, batch)

    def _write(self, batch: list[bytes]) -> None:
        for line in batch:
            self._handler.emit(logging.makeLogRecord({"msg": line.decode()}))

    async def _shut(self) -> None:
        self._handler.close()


class _Rotated(RotatingFileHandler):
    """The standard library's, for its owner's eyes only, and without its silence about errors."""

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=lambda path, flags: os.open(path, flags, 0o600))

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class _Refused(Exception):
    """The receiver's status is none of 2xx."""

    def __init__(self, status: int, retry_after: str | None) -> None:
        super().__init__(f"status {status}")
        self.status, self.retry_after = status, retry_after


class HttpSink(_Queued):
    """``POST`` of ``{"schema": ..., "pairs": [...]}``; 2xx takes the batch. A repetition has the same ``idempotency-key``."""

    def __init__(self, spec: config.PairsHttp, token: str, most: int, drain_s: float, count: Count) -> None:
        super().__init__(most, spec.batch, spec.max_wait.total_seconds(), drain_s, count)
        self._spec = spec
        self._headers = {"Content-Type": "application/json", "User-Agent": "penstock-router"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None

    async def _deliver(self, batch: list[bytes]) -> None:
        body = b'{"schema":"' + SCHEMA.encode() + b'","pairs":[' + b",".join(batch) + b"]}"
        headers = {**self._headers, "Idempotency-Key": os.urandom(16).hex()}
        again = stamina.retry_context(on=_again, attempts=self._spec.attempts, timeout=None, wait_initial=0.2, wait_max=10.0)
        async for attempt in again:
            with attempt:
                await self._post(body, headers)

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        limit = aiohttp.ClientTimeout(total=self._spec.timeout.total_seconds(), ceil_threshold=1e9)
        async with self._session.post(
            self._spec.url, data=body, headers=headers, timeout=limit, allow_redirects=False
        ) as response:
            if not 200 <= response.status < 300:
                raise _Refused(response.status, response.headers.get("Retry-After"))

    async def _shut(self) -> None:
        if self._session is not None:
            await self._session.close()


def _again(exc: Exception) -> bool | timedelta:
    """Whether to send again, and where the receiver says so, when."""
    match exc:
        case _Refused(status=408 | 425 | 429 | 500 | 502 | 503 | 504):
            said = exc.retry_after or ""
            return timedelta(seconds=min(float(said), RETRY_AFTER_MAX_S)) if said.isdigit() else True
        case _Refused():
            return False
        case _:
            return isinstance(exc, aiohttp.ClientError | TimeoutError | OSError)
