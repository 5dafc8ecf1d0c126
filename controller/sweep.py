"""
One look at every active rollout: what the gate check does each quarter of an hour and the guard every few seconds.

What looks have in common (the clock, new rows, flags, traffic) is read for all of them at once, and each then looks by itself. Its one rule:
rollouts do not wait for each other and do not fail together; each ends as its own Swept.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache

import structlog

from controller import metrics
from controller.core.rollout import LogError
from controller.gather import planned
from controller.ports import GATE_CHECK_FAILED, Planned, PortError, Ports
from controller.standing import standings
from controller.tick import Seen, Tick, due, tick

log = structlog.get_logger("penstock.sweep")

WAVE = 1_000
"""Rollouts whose log, flag and traffic are read together, at most."""

FRESH = timedelta(seconds=15)
"""For so long looks may begin on what was read together: half of `commit.RAISE_VALID`, after which the store refuses a raise. The rest is read anew."""

WORKERS = 8
"""Rollouts looked at side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a look at one rollout came to: a Tick, or the error that prevented it, in words."""

    rollout_id: str
    tick: Tick | None = None
    error: str = ""


def look(rollout_id: str, ports: Ports, *, may_raise: bool, force: bool = False) -> Swept:
    """One rollout; never raises: whatever goes wrong with it is its own Swept."""
    return _looked(
        rollout_id, lambda: tick(rollout_id, ports, ports.audit.now(), may_raise=may_raise, force=force), may_raise=may_raise
    )


def _looked(rollout_id: str, act: Callable[[], Tick], *, may_raise: bool) -> Swept:
    begun_s = time.monotonic()
    swept = _swept(rollout_id, act)
    outcome, results = ("failed", ()) if swept.tick is None else (swept.tick.outcome.value, swept.tick.results)
    metrics.looked("gate-check" if may_raise else "guard", outcome, results, time.monotonic() - begun_s)
    return swept


def _swept(rollout_id: str, act: Callable[[], Tick]) -> Swept:
    try:
        return Swept(rollout_id=rollout_id, tick=act())
    except (PortError, LogError) as exc:
        return Swept(rollout_id=rollout_id, error=f"{type(exc).__name__}: {exc}")
    except Exception as exc:  # a bug that one rollout meets must not cost the others their look
        log.exception("look_broke", rollout_id=rollout_id)
        return Swept(rollout_id=rollout_id, error=f"{type(exc).__name__}: {exc}")


def anybody_due(ports: Ports) -> bool:
    """
    Whether a gate check would find something to do now.

    Raises:
        AuditUnavailable: the log cannot be read.
    """
    active = ports.index.active()
    if not active:
        return False
    now = ports.audit.now()
    # One whose log contradicts itself is not there: the guard tells of it at every look; the others go on.
    return any(due(rollout, now) for rollout in standings(active, ports.audit, ports.standings).values())


def beat(ports: Ports, who: str, rollouts: Sequence[str] = ()) -> None:
    """Say that `who` looks; a look never fails because that could not be said."""
    if ports.heartbeats is None:
        return
    try:
        ports.heartbeats.beat(who, rollouts)
    except PortError as exc:
        log.warning("heartbeat_failed", who=who, error=f"{type(exc).__name__}: {exc}")


def gates_checked(ports: Ports, looked: Sequence[str], failed: Sequence[str]) -> None:
    """Say at which rollouts a gate check could look and at which it could not; the process that made it may end, and export nothing."""
    if looked:
        beat(ports, "gate-check", looked)
    if failed:
        beat(ports, GATE_CHECK_FAILED, failed)


def sweep(
    ports: Ports, *, may_raise: bool, only: Sequence[str] = (), force: bool = False, workers: int = WORKERS
) -> Iterator[Swept]:
    """
    Args:
        ports: The world; its adapters are safe to share between threads.
        may_raise: True for the gate check, False for the guard.
        only: Ids to look at; all active ones when empty.
        force: Check although nothing is due.
        workers: Rollouts looked at side by side.

    Yields:
        One Swept a rollout, as they finish in order.

    Raises:
        AuditUnavailable: not even the list of rollouts can be read.
    """
    waiting = list(only) or list(ports.index.active())
    if may_raise and not only:
        beat(ports, "gate-check")
    if len(waiting) <= 1:
        yield from (look(i, ports, may_raise=may_raise, force=force) for i in waiting)
        return
    _give_back()
    with (
        _few_collections(),
        ThreadPoolExecutor(max_workers=min(workers, len(waiting)), thread_name_prefix="look") as pool,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as reader,
    ):

        def read(ids: Sequence[str]) -> "Future[_Wave]":
            return reader.submit(_wave, ids[:WAVE], ports, may_raise=may_raise, force=force)

        reading, ahead = None, True
        while waiting:
            wave = (reading or read(waiting)).result()
            waiting = waiting[len(wave.ids) :]
            # Prometheus answers for the next ones while these are looked at, unless that took too long for what was read last.
            reading = read(waiting) if waiting and ahead else None
            late = []
            for rollout_id, swept in zip(wave.ids, pool.map(wave.look, wave.ids), strict=True):
                if swept is None:
                    late.append(rollout_id)
                else:
                    yield swept
            waiting, ahead = waiting + late, not late


M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3
"""glibc's names for what `mallopt` sets."""

LARGE_BYTES = 1024 * 1024


@cache
def _give_back() -> None:
    """
    Have memory that is not used any more given back to the system, where the C library is glibc.

    Answers about many rollouts are long, and are read by several threads. As it comes, glibc keeps what was freed for the thread that had it,
    a third of a gigabyte of a thousand rollouts.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


@contextmanager
def _few_collections() -> Iterator[None]:
    """
    Seldom look for garbage in cycles, of which looks leave next to none.

    With the cases of many rollouts at hand, looking through all that is alive is a fifth of a pass.
    """
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wave:
    """
    Rollouts whose log, flag and traffic were read together.

    Args:
        ids: Which.
        ports: The world; its metric source has asked for all of them.
        now: The database's clock before anything was read.
        seen: What was read, by id; a rollout without it is read by its own look.
        until: Of this machine's monotonic clock, seconds: when all this is too old to begin a look with.
    """

    ids: Sequence[str]
    ports: Ports
    now: datetime
    seen: Mapping[str, Seen]
    until: float
    may_raise: bool
    force: bool

    def look(self, rollout_id: str) -> Swept | None:
        """None where what was read is too old."""
        seen = self.seen.get(rollout_id)
        if seen is None:
            return look(rollout_id, self.ports, may_raise=self.may_raise, force=self.force)
        if time.monotonic() > self.until:
            return None
        return _looked(
            rollout_id,
            lambda: tick(rollout_id, self.ports, self.now, may_raise=self.may_raise, force=self.force, seen=seen),
            may_raise=self.may_raise,
        )


def _wave(ids: Sequence[str], ports: Ports, *, may_raise: bool, force: bool) -> _Wave:
    """Reads for the first of `ids`, as many as the metric source can ask for together. What cannot be read so, each look reads for itself."""
    seen: dict[str, Seen] = {}
    wanted: list[tuple[int, Planned]] = []
    now, taken, source = datetime.min.replace(tzinfo=UTC), len(ids), ports.metrics
    try:
        now = ports.audit.now()
        rollouts = standings(ids, ports.audit, ports.standings)
        flags = ports.flags.read_all([(r.plan.environment, r.plan.flag) for r in rollouts.values()])
        for index, rollout_id in enumerate(ids):
            rollout = rollouts.get(rollout_id)
            flag = None if rollout is None else flags.get((rollout.plan.environment, rollout.plan.flag))
            if rollout is None or (flag is None and rollout.applied):
                continue
            seen[rollout_id] = Seen(rollout=rollout, flag=flag)
            if rollout.ended or (may_raise and not force and not due(rollout, now)):
                continue
            with suppress(PortError):  # its own case cannot be read: its look says so
                if (look_planned := planned(rollout, ports.audit, ports.shelf, now)) is not None:
                    wanted.append((index, look_planned))
        source, count = ports.metrics.together([p for _, p in wanted])
        taken = wanted[count][0] if count < len(wanted) else len(ids)
    except PortError as exc:
        log.warning("not_read_together", rollouts=len(ids), error=f"{type(exc).__name__}: {exc}")
        seen = {}
    except Exception:  # as in `look`: a bug on the way to many looks must not cost all of them
        log.exception("reading_together_broke")
        seen = {}
    joined, until = replace(ports, metrics=source), time.monotonic() + FRESH.total_seconds()
    return _Wave(ids=ids[:taken], ports=joined, now=now, seen=seen, until=until, may_raise=may_raise, force=force)
