"""
One reader of the flags for a whole process, and any number of readers behind it.

A thread of the hub waits for the source; the event loop hands what it found to everybody who waits. Readers are not queued for: each
compares what it has sent with what is current, so that a slow one skips what is no longer true and costs nobody anything. Its one rule:
when the source is down the last state stays, nobody is told a new one, and whoever comes fresh is told that it is down. A source that
went back in time (restored from a backup) is lifted above what was seen of it before anything of it is told.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from controller.ports import CaughtUp, FlagConflict, FlagUnavailable
from flagspec import RouteFlag, Snapshot, flag_to_json

log = structlog.get_logger("penstock.flags")

REGISTRY = CollectorRegistry()

_restored = Gauge(
    "penstock_flag_store_restored_timestamp_seconds",
    "When this door last lifted a flag store that had gone back in time, by its own clock; 0 for never.",
    registry=REGISTRY,
)
_ahead = Counter(
    "penstock_flag_readers_ahead",
    "Questions of readers that have seen a later revision than the flag store has, and were not taken at their word.",
    registry=REGISTRY,
)

RESYNC_S = 1.0
"""How often the source is read although it said nothing: a lost notification costs no more than this."""

BACKOFF_S = (0.1, 2.0)
"""First and longest pause between tries when the source is down."""

_STOP_NOTICED_S = 0.1

_SAY_AGAIN_S = 60.0
"""Between two lines about readers that are ahead."""

FIRST_STATE_WAIT_S = 5.0
"""How long the first requests wait for the first state."""


class FlagSource(Protocol):
    """Where the flags are. Blocking, used from one thread."""

    def read(self) -> Mapping[str, Snapshot]:
        """All environments; later changes are noticed from before the read on. Raises FlagUnavailable."""

    def wait_for_change(self, timeout_s: float) -> bool:
        """Wait for a change, at most so long. Raises FlagUnavailable."""

    def close(self) -> None: ...


class KillSwitch(Protocol):
    """The part of a flag store that people reach through the door."""

    def read(self, environment: str, key: str) -> RouteFlag | None: ...

    def set_killed(
        self, environment: str, key: str, killed: bool, *, actor: str, reason: str, expected_version: int | None = None
    ) -> RouteFlag: ...

    def catch_up(self, environment: str, seen: int, *, actor: str, reason: str) -> CaughtUp | None: ...


@dataclass(frozen=True)
class State:
    """A snapshot with its bytes, which are made once however many readers get them."""

    snapshot: Snapshot

    @cached_property
    def json(self) -> bytes:
        return orjson.dumps(self.snapshot.to_json())

    @cached_property
    def flags(self) -> Mapping[str, bytes]:
        return {f.key: orjson.dumps(flag_to_json(f)) for f in self.snapshot.flags}

    @property
    def revision(self) -> int:
        return self.snapshot.revision

    def newer_than(self, seen: Snapshot) -> tuple[RouteFlag, ...] | None:
        """
        The flags that were written after `seen`, in the order of their revisions.

        Returns:
            None when they do not tell everything: a write was overtaken by another one of the same flag, a flag is gone, or
            the store went back in time. Then only the whole snapshot does.
        """
        changed = sorted((f for f in self.snapshot.flags if f.revision > seen.revision), key=lambda f: f.revision)
        if [f.revision for f in changed] != list(range(seen.revision + 1, self.revision + 1)):
            return None
        return tuple(changed)


class FlagHub:
    """
    `flags_door.FlagFeed` on a source.

    Args:
        source: Where flags are read.
        switch: Where they are killed.
        resync_s: How often to read although nothing was heard.
    """

    def __init__(self, source: FlagSource, switch: KillSwitch, *, resync_s: float = RESYNC_S) -> None:
        self._source = source
        self._switch = switch
        self._resync_s = resync_s
        self._shared = _Shared()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._highest: dict[str, int] = {}
        self._catching_up = asyncio.Lock()
        self._said_s = -math.inf

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to read, on the running event loop; again is nothing."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="flag-hub", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """End the thread; it notices within a moment."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            await asyncio.to_thread(thread.join)

    @property
    def down(self) -> str | None:
        """Why the source cannot be read; None while it can."""
        return self._shared.down

    async def current(self, environment: str) -> State:
        """
        The newest state.

        Raises:
            FlagUnavailable: the source is down.
        """
        self.start()
        shared = self._shared
        if not shared.known and shared.down is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_STATE_WAIT_S):
                    await shared.changed.wait()
        if shared.down is not None or not shared.known:
            raise FlagUnavailable(shared.down or "the flags have not been read yet")
        return shared.state(environment)

    async def next(self, seen: Snapshot) -> State:
        """Waits until the environment is at another revision than `seen`, through whatever outage of the source."""
        shared = self._shared
        while True:
            # Taken before the comparison, so that no change falls between the two.
            changed = shared.changed
            state = shared.state(seen.environment)
            if shared.known and state.revision != seen.revision:
                return state
            await changed.wait()

    async def set_killed(
        self, environment: str, key: str, killed: bool, *, actor: str, reason: str, expected_version: int | None = None
    ) -> RouteFlag:
        """As `FlagStore.set_killed`; when it returns, readers of this process are already told."""

        def act() -> RouteFlag:
            return self._switch.set_killed(
                environment, key, killed, actor=actor, reason=reason, expected_version=expected_version
            )

        flag = await asyncio.to_thread(act)
        if self._thread is None:
            return flag  # nobody reads yet
        await self._reach(environment, flag.revision, self._resync_s)
        return flag

    async def overtaken(self, environment: str, seen: int, *, believed: bool) -> State:
        """
        For a reader that says to have seen a revision which is not here. It may be on its way from another door; if it does not come, the
        store was restored from a backup, and is lifted above it.

        Args:
            environment, seen: What the reader says.
            believed: Whether its word is enough to lower flags by. If not, people are told.

        Raises:
            FlagUnavailable: the source is down.
        """
        state = await self._reach(environment, seen, 2 * self._resync_s)
        if state.revision >= seen:
            return state
        why = "a reader's word is not enough where people have rights"
        if believed:
            async with self._catching_up:  # of a thousand readers one is enough
                if self._shared.state(environment).revision < seen:
                    try:
                        await asyncio.to_thread(self._catch_up, environment, seen, "readers")
                    except FlagUnavailable as exc:
                        why = str(exc)
                    else:
                        await self._reach(environment, seen, 2 * self._resync_s)
        state = await self.current(environment)
        if state.revision < seen:
            _ahead.inc()
            if time.monotonic() - self._said_s > _SAY_AGAIN_S:
                self._said_s = time.monotonic()
                log.error("flag_reader_ahead", environment=environment, seen=seen, revision=state.revision, kept_because=why)
        return state

    async def _reach(self, environment: str, revision: int, timeout_s: float) -> State:
        """The first state at this revision or above, or the newest one when the time is up."""
        state = self._shared.state(environment)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while state.revision < revision:
                    state = await self.next(state.snapshot)
        return state

    def _catch_up(self, environment: str, seen: int, who: str) -> CaughtUp | None:
        """Raises FlagUnavailable."""
        reason = f"the flag store went back in time: {who} had seen revision {seen}"
        done = self._switch.catch_up(environment, seen, actor="flag-door", reason=reason)
        if done is not None:
            _restored.set_to_current_time()
            log.error(
                "flag_store_restored",
                environment=environment,
                seen=seen,
                by=who,
                was=done.was,
                revision=done.revision,
                lowered=list(done.lowered),
                kept=list(done.kept),
            )
        return done

    def _read(self) -> Mapping[str, Snapshot]:
        """
        What the source has, which is never less than it had.

        Raises:
            FlagUnavailable: it is down, or went back and cannot be lifted: a reader without a memory would take it for news.
        """
        found = self._source.read()
        if behind := self._behind(found):
            for environment, seen in behind.items():
                self._catch_up(environment, seen, "this door")
            found = self._source.read()
            if behind := self._behind(found):
                raise FlagUnavailable(f"the flag store went back in time: {', '.join(sorted(behind))}")
        self._highest |= {name: snapshot.revision for name, snapshot in found.items()}
        return found

    def _behind(self, found: Mapping[str, Snapshot]) -> dict[str, int]:
        """What was seen of environments that are not as far any more."""
        return {name: seen for name, seen in self._highest.items() if seen > (found[name].revision if name in found else 0)}

    def _run(self) -> None:
        pause_s = BACKOFF_S[0]
        while not self._stop.is_set():
            try:
                self._publish(self._read(), None)
                pause_s = BACKOFF_S[0]
                while not self._stop.is_set():
                    self._await_change()
                    self._publish(self._read(), None)
            except FlagUnavailable as exc:
                self._publish(None, str(exc))
                self._stop.wait(pause_s)
                pause_s = min(pause_s * 2, BACKOFF_S[1])
            except Exception as exc:
                # Readers keep the last state; the thread must never be what ends.
                log.exception("flag_hub_broke")
                self._publish(None, f"{type(exc).__name__}: {exc}")
                self._stop.wait(BACKOFF_S[1])
        self._source.close()

    def _await_change(self) -> None:
        """Until the source says something, the resync is due, or the hub is closed."""
        due = time.monotonic() + self._resync_s
        while not self._stop.is_set() and (left_s := due - time.monotonic()) > 0:
            if self._source.wait_for_change(min(left_s, _STOP_NOTICED_S)):
                return

    def _publish(self, snapshots: Mapping[str, Snapshot] | None, down: str | None) -> None:
        assert self._loop is not None
        # A closed loop: the server has gone before the thread did.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._shared.take, snapshots, down)


@dataclass(slots=True)
class _Shared:
    """What the readers see; touched on the event loop only."""

    states: dict[str, State] = field(default_factory=dict)
    known: bool = False
    down: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def state(self, environment: str) -> State:
        return self.states.get(environment) or State(Snapshot(environment=environment, revision=0, flags=()))

    def take(self, snapshots: Mapping[str, Snapshot] | None, down: str | None) -> None:
        before = (self.known, self.down)
        self.down = down
        moved = False
        if snapshots is not None:
            self.known = True
            # Unchanged environments keep their state and its bytes.
            kept = {
                name: self.states[name] if name in self.states and self.states[name].snapshot == snap else State(snap)
                for name, snap in snapshots.items()
            }
            moved = any(self.states.get(name) is not state for name, state in kept.items()) or len(kept) != len(self.states)
            self.states = kept
        if moved or before != (self.known, self.down):
            # Waiters hold the old event; a new one is there before they look again.
            self.changed, woken = asyncio.Event(), self.changed
            woken.set()


class LocalSource:
    """A source on snapshots in memory, for tests and `--dry-run`."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._snapshots: dict[str, Snapshot] = {}
        self._changes = 0
        self._seen = 0
        self._down: str | None = None

    def put(self, flag: RouteFlag) -> None:
        """Write one flag; its revision becomes that of its environment."""
        with self._condition:
            old = self._snapshots.get(flag.environment)
            if old is not None and flag.revision <= old.revision:
                raise FlagConflict(f"flag {flag.key!r} has revision {flag.revision}, {flag.environment} is at {old.revision}")
            others = tuple(f for f in old.flags if f.key != flag.key) if old else ()
            self._snapshots[flag.environment] = Snapshot(
                environment=flag.environment, revision=flag.revision, flags=(*others, flag)
            )
            self._changes += 1
            self._condition.notify_all()

    def fail(self, reason: str | None) -> None:
        """Be down for this reason, or up again."""
        with self._condition:
            self._down = reason
            self._condition.notify_all()

    def read(self) -> Mapping[str, Snapshot]:
        with self._condition:
            if self._down is not None:
                raise FlagUnavailable(self._down)
            self._seen = self._changes
            return dict(self._snapshots)

    def wait_for_change(self, timeout_s: float) -> bool:
        with self._condition:
            told = self._condition.wait_for(lambda: self._changes != self._seen or self._down is not None, timeout_s)
            if self._down is not None:
                raise FlagUnavailable(self._down)
            return told

    def close(self) -> None:
        pass
