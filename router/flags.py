"""
The flags in force, kept up to date from the control plane.

    snapshot -> events (SSE) -> on trouble: back off, snapshot, again; where streams do not pass: long poll

Its one rule: the last good flags stay in force, whatever becomes of their source, unless the file asks for the control then. An older revision never replaces a newer one, a
snapshot with one bad flag is refused whole, and a router that never saw a flag serves the routes' defaults.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlencode

import aiohttp
import orjson
from yarl import URL

from flagspec import FlagSpecError, RouteFlag, Snapshot, flag_from_json
from router.config import Flags
from router.logs import get_logger
from router.metrics import RouterMetrics, weight_in_force
from router.sse import SseOverflow, SseSplitter, parse_event

log = get_logger()

BACKOFF_S = (0.05, 2.0)
"""First and longest pause between tries; each is drawn at random from the upper half, so that routers do not return as one."""

LONG_POLL_S = 25.0
"""Below the 30 to 60 s after which proxies drop a silent request."""

STREAM_AGAIN_S = 300.0
"""How long to poll before the stream is tried again."""


class FlagTable:
    """Which flags are in force. Reading is a dictionary look-up; only snapshots and flags of a newer revision get in."""

    def __init__(self, environment: str) -> None:
        self.environment = environment
        self.revision: int | None = None
        self.flags: Mapping[str, RouteFlag] = MappingProxyType({})
        self._withheld: Mapping[str, RouteFlag] | None = None
        self._on_change: Callable[[list[RouteFlag]], None] | None = None

    def subscribe(self, on_change: Callable[[list[RouteFlag]], None]) -> None:
        """`on_change` is called after each change with the flags that are new or different."""
        self._on_change = on_change

    def get(self, key: str) -> RouteFlag | None:
        return (self.flags if self._withheld is None else self._withheld).get(key)

    def withhold(self, yes: bool) -> None:
        """As long as yes, every flag sends its candidate nothing: nobody knows any more what its source wants."""
        if yes:
            self._withheld = {key: replace(flag, weight=0, shadow_weight=0) for key, flag in self.flags.items()}
        else:
            self._withheld = None

    def take_snapshot(self, snapshot: Snapshot) -> bool:
        """
        Returns:
            True if it is now in force; False if what is in force is as new or newer.

        Raises:
            FlagSpecError: it belongs to another environment, or names a flag twice.
        """
        check_snapshot(snapshot, self.environment)
        if self.revision is not None and snapshot.revision <= self.revision:
            if snapshot.revision < self.revision:
                log.warning("flag_snapshot_older", revision=snapshot.revision, in_force=self.revision)
            return False
        self._apply({f.key: f for f in snapshot.flags}, snapshot.revision)
        return True

    def take_flag(self, flag: RouteFlag) -> bool:
        """
        Returns:
            True if nothing was missed between what is in force and this flag; False asks for a snapshot.

        Raises:
            FlagSpecError: it belongs to another environment.
        """
        if flag.environment != self.environment:
            raise FlagSpecError(f"environment: a flag of {flag.environment!r} where {self.environment!r} was asked for")
        if self.revision is not None and flag.revision <= self.revision:
            return True
        gapless = self.revision is not None and flag.revision == self.revision + 1
        # After a gap only this flag is known to be newer: it comes into force, the revision stays until the snapshot is here.
        self._apply({**self.flags, flag.key: flag}, flag.revision if gapless else self.revision)
        return gapless

    def _apply(self, flags: dict[str, RouteFlag], revision: int | None) -> None:
        changed = [f for key, f in flags.items() if self.flags.get(key) != f]
        self.flags, self.revision = MappingProxyType(flags), revision
        for flag in changed:
            log.info(
                "flag_applied",
                flag=flag.key,
                version=flag.version,
                revision=flag.revision,
                weight=flag.weight,
                shadow_weight=flag.shadow_weight,
                killed=flag.killed,
                decision_id=flag.decision_id,
            )
        if self._on_change is not None:
            self._on_change(changed)


def check_snapshot(snapshot: Snapshot, environment: str) -> None:
    """Raises FlagSpecError when it belongs to another environment, or names a flag twice."""
    strangers = {f.environment for f in snapshot.flags} | {snapshot.environment}
    if strangers != {environment}:
        raise FlagSpecError(f"environment: flags of {sorted(strangers)} where {environment!r} was asked for")
    keys = [f.key for f in snapshot.flags]
    if len(set(keys)) != len(keys):
        raise FlagSpecError(f"flags: a key appears twice among {sorted(keys)}")


def read_snapshot_file(path: Path) -> Snapshot:
    """
    Raises:
        FlagSpecError: the file cannot be read or is no snapshot; the message names it.
    """
    try:
        return Snapshot.from_json(orjson.loads(path.read_bytes()))
    except OSError as exc:
        raise FlagSpecError(f"{path}: {exc.strerror}") from exc
    except orjson.JSONDecodeError as exc:
        raise FlagSpecError(f"{path}: not JSON: {exc}") from exc
    except FlagSpecError as exc:
        raise FlagSpecError(f"{path}: {exc}") from exc


class _StreamUnusable(Exception):
    """The event stream does not get through here; long polling may."""


class FlagClient:
    """Keeps a FlagTable in step with a source until it is closed."""

    def __init__(self, spec: Flags, table: FlagTable, metrics: RouterMetrics) -> None:
        self._base = spec.source
        self._table = table
        self._metrics = metrics
        self._stale_after_s = spec.stale_after.total_seconds()
        self._keeps = spec.on_stale == "keep"
        self._silence_s = spec.stream_silence.total_seconds()
        self._tasks: list[asyncio.Task[None]] = []
        self._heard_at = 0.0
        self._stale = False
        self.polling = False
        self.first_snapshot = asyncio.Event()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._heard_at = time.monotonic()
        self._metrics.flag_stale.set_function(lambda: float(self.stale))  # called on the thread that writes the page
        self._tasks = [loop.create_task(self._follow(), name="flags"), loop.create_task(self._watch(), name="flags-stale")]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def stale(self) -> bool:
        """Whether the source has been silent for longer than `stale_after`."""
        return time.monotonic() - self._heard_at > self._stale_after_s

    async def _follow(self) -> None:
        pause, stream_after = BACKOFF_S[0], 0.0
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession(trust_env=False, auto_decompress=True) as session:
            while True:
                began = loop.time()
                self.polling = began < stream_after
                try:
                    if self.polling:
                        await self._snapshot(session, wait_s=LONG_POLL_S)
                    else:
                        await self._stream(session)
                except _StreamUnusable as exc:
                    stream_after = loop.time() + STREAM_AGAIN_S
                    log.warning("flag_stream_unusable", source=self._base, detail=str(exc), polling_for_s=STREAM_AGAIN_S)
                except (aiohttp.ClientError, OSError, FlagSpecError, SseOverflow, orjson.JSONDecodeError) as exc:
                    # TimeoutError is an OSError.
                    if loop.time() - began > BACKOFF_S[1]:
                        pause = BACKOFF_S[0]  # it was well for a while: outages of long ago do not slow this one down
                    log.warning(
                        "flag_source_failed", source=self._base, detail=f"{type(exc).__name__}: {exc}"[:300], again_in_s=pause
                    )
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(pause * 2, BACKOFF_S[1])
                except Exception as exc:
                    # The requests go on with the last good flags; this task must never be the one that ends.
                    log.error("flag_client_bug", error=type(exc).__name__, detail=str(exc)[:300])
                    await asyncio.sleep(BACKOFF_S[1])

    async def _stream(self, session: aiohttp.ClientSession) -> None:
        """Follows the event stream until it breaks. Raises _StreamUnusable when nothing ever comes through."""
        # A stream can be silent for as long as comments may be apart; beyond that the connection is taken for dead.
        quiet_s = max(self._stale_after_s, self._silence_s)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        splitter = SseSplitter()
        await self._snapshot(session)
        try:
            async with asyncio.timeout(self._silence_s):
                response = await session.get(self._url("events"), headers={"Accept": "text/event-stream"}, timeout=timeout)
        except TimeoutError as exc:
            raise _StreamUnusable(f"no answer within {self._silence_s:g}s") from exc
        async with response:
            if response.status != 200 or response.content_type != "text/event-stream":
                if response.status >= 500:
                    response.raise_for_status()
                raise _StreamUnusable(f"status {response.status}, {response.content_type}")
            heard = False
            while True:
                try:
                    async with asyncio.timeout(quiet_s if heard else self._silence_s):
                        chunk = await response.content.readany()
                except TimeoutError as exc:
                    if heard:
                        raise
                    raise _StreamUnusable(f"no event within {self._silence_s:g}s") from exc
                if not chunk:
                    raise aiohttp.ClientPayloadError("the stream ended")
                heard = True
                self._hear()
                for raw in splitter.feed(chunk):
                    await self._event(session, raw)

    async def _event(self, session: aiohttp.ClientSession, raw: bytes) -> None:
        event = parse_event(raw)
        if event.data is None:
            return
        try:
            data = orjson.loads(event.data)
            if event.name == "snapshot":
                self._take(Snapshot.from_json(data))
            elif event.name == "flag" and not self._table.take_flag(flag_from_json(data)):
                await self._snapshot(session)
        except (FlagSpecError, orjson.JSONDecodeError) as exc:
            # The stream itself is sound: what comes next may be good, and the gap then asks for a snapshot.
            log.error("flag_refused", source=self._base, event_name=event.name, detail=str(exc)[:300])

    async def _snapshot(self, session: aiohttp.ClientSession, wait_s: float | None = None) -> None:
        query: dict[str, str] = {}
        headers: dict[str, str] = {}
        if (revision := self._table.revision) is not None:
            headers["If-None-Match"] = f'"{self._table.environment}:{revision}"'
            if wait_s is not None:
                query = {"after": str(revision), "wait": f"{wait_s:g}"}
        timeout = aiohttp.ClientTimeout(total=(wait_s or 0.0) + 10.0, sock_connect=5.0)
        started = asyncio.get_running_loop().time()
        async with session.get(self._url("snapshot", query), headers=headers, timeout=timeout) as response:
            if response.status == 304:
                self._hear()
            else:
                response.raise_for_status()
                if response.status != 200:
                    raise FlagSpecError(f"status {response.status} where a snapshot was asked for")
                body = await response.read()
                self._hear()
                self._take(Snapshot.from_json(orjson.loads(body)))
        if query and asyncio.get_running_loop().time() - started < BACKOFF_S[0]:
            # A source that does not know how to wait answers at once: poll it once a second, not a thousand times.
            await asyncio.sleep(0 if self._table.revision != revision else 1.0)

    def _take(self, snapshot: Snapshot) -> None:
        self._table.take_snapshot(snapshot)
        self.first_snapshot.set()

    def _hear(self) -> None:
        self._heard_at = time.monotonic()

    async def _watch(self) -> None:
        """Says once when the source falls silent and once when it is back."""
        while True:
            await asyncio.sleep(min(1.0, self._stale_after_s / 10))
            if self.stale != self._stale:
                self._tell()

    def _tell(self) -> None:
        self._stale = self.stale
        self._table.withhold(self._stale and not self._keeps)
        if self._stale:
            log.warning(
                "flag_source_stale",
                source=self._base,
                stale_after_s=self._stale_after_s,
                revision=self._table.revision,
                in_force="the last flags" if self._keeps else "the control",
            )
        else:
            log.info("flag_source_back", source=self._base, revision=self._table.revision)

    def _url(self, path: str, query: Mapping[str, str] | None = None) -> URL:
        full = urlencode({"environment": self._table.environment, **(query or {})})
        return URL(f"{self._base}/{path}?{full}", encoded=True)


def track(table: FlagTable, metrics: RouterMetrics) -> None:
    """Puts the table's revision and weights into the metrics."""
    metrics.flag_revision.set_function(lambda: float(table.revision or 0))
    for key in table.flags:
        metrics.weight(key, lambda key=key: _weight(table.get(key)))  # type: ignore[misc]


def _weight(flag: RouteFlag | None) -> int:
    lapsed = flag is not None and flag.lease is not None and datetime.now(UTC) >= flag.lease
    return weight_in_force(flag, lapsed)
