"""
One look at every active rollout: what the gate check does each quarter of an hour and the guard every few seconds.

Its one rule: rollouts do not wait for each other and do not fail together; each ends as its own Swept.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import structlog

from controller import metrics
from controller.core.rollout import LogError, replay
from controller.ports import PortError, Ports
from controller.tick import Tick, due, tick

log = structlog.get_logger("penstock.sweep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a look at one rollout came to: a Tick, or the error that prevented it, in words."""

    rollout_id: str
    tick: Tick | None = None
    error: str = ""


def look(rollout_id: str, ports: Ports, *, may_raise: bool, force: bool = False) -> Swept:
    """One rollout; never raises: whatever goes wrong with it is its own Swept."""
    begun_s = time.monotonic()
    swept = _look(rollout_id, ports, may_raise=may_raise, force=force)
    outcome, results = ("failed", ()) if swept.tick is None else (swept.tick.outcome.value, swept.tick.results)
    metrics.looked("gate-check" if may_raise else "guard", outcome, results, time.monotonic() - begun_s)
    return swept


def _look(rollout_id: str, ports: Ports, *, may_raise: bool, force: bool) -> Swept:
    try:
        return Swept(rollout_id=rollout_id, tick=tick(rollout_id, ports, ports.audit.now(), may_raise=may_raise, force=force))
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
    return any(_due(i, ports, now) for i in active)


def beat(ports: Ports, who: str, rollouts: Sequence[str] = ()) -> None:
    """Say that `who` looks; a look never fails because that could not be said."""
    if ports.heartbeats is None:
        return
    try:
        ports.heartbeats.beat(who, rollouts)
    except PortError as exc:
        log.warning("heartbeat_failed", who=who, error=f"{type(exc).__name__}: {exc}")


def _due(rollout_id: str, ports: Ports, now: datetime) -> bool:
    try:
        return due(replay(ports.audit.entries(rollout_id)), now)
    except (LogError, PortError):
        return False  # the guard tells of it at every look; the others go on


def sweep(ports: Ports, *, may_raise: bool, only: Sequence[str] = (), force: bool = False, workers: int = 8) -> Iterator[Swept]:
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
    ids = list(only) or list(ports.index.active())
    if may_raise and not only:
        beat(ports, "gate-check")
    if len(ids) <= 1:
        yield from (look(i, ports, may_raise=may_raise, force=force) for i in ids)
        return
    with ThreadPoolExecutor(max_workers=min(workers, len(ids)), thread_name_prefix="look") as pool:
        yield from pool.map(lambda i: look(i, ports, may_raise=may_raise, force=force), ids)
