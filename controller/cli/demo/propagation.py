"""
How fast a flag write reaches the router: the flag store's time of each write, and the router's own word of when it had it.

The store keeps a history of writes with its clock's time; the router logs `flag_applied` in the moment in which a flag is in force, and
its gauge `penstock_flag_revision_applied` confirms it. (Polling that gauge instead would cost more than it measures: a page of metrics
takes the router 90 ms for four flags.) Both clocks are this machine's. Its one rule: what was not seen is None, never 0.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
from sqlalchemy import select

from controller.adapters.postgres.connect import single_use_engine
from controller.adapters.postgres.tables import flag_history

_APPLIED = re.compile(r"^penstock_flag_revision_applied\{[^}]*\} ([0-9.e+]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """
    One write of a flag.

    Args:
        revision: Of the environment after it.
        at: The store's time of it.
        key: Of the flag.
        decision_id: The decision that made it.
    """

    revision: int
    at: datetime
    key: str
    decision_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Propagation:
    """
    Args:
        writes: By decision.
        applied: Flag, revision and time, as the router logged them.
        in_force: The revision that the router's metrics page names; None if it could not be read.
    """

    writes: Mapping[str, Write]
    applied: tuple[tuple[str, int, datetime], ...]
    in_force: int | None

    def seconds(self, write: Write) -> float | None:
        """From the write until the router had it, or a later one of the same flag, in force; None if it never did."""
        if self.in_force is None or self.in_force < write.revision:
            return None
        times = [at for key, revision, at in self.applied if key == write.key and revision >= write.revision]
        return max(0.0, (min(times) - write.at).total_seconds()) if times else None

    def last_of(self, rollout_id: str) -> Write | None:
        """The last write that a rollout made."""
        mine = [w for w in self.writes.values() if w.decision_id.startswith(f"{rollout_id}.")]
        return max(mine, key=lambda w: w.revision, default=None)


def read(database_url: str, environment: str, *, router: str, log: Path, timeout_s: float = 5.0) -> Propagation:
    """
    Args:
        database_url: Of the flag store.
        environment: Whose flags.
        router: Base address.
        log: The router's log file.
        timeout_s: How long to wait for the last write to reach the router.
    """
    writes = _writes(database_url, environment)
    newest = max((w.revision for w in writes.values()), default=0)
    deadline = time.monotonic() + timeout_s
    while ((in_force := _in_force(router)) is None or in_force < newest) and time.monotonic() < deadline:
        time.sleep(0.2)
    return Propagation(writes=writes, applied=tuple(_applied(log)), in_force=in_force)


def _writes(database_url: str, environment: str) -> Mapping[str, Write]:
    h = flag_history.c
    query = select(h.revision, h.at, h.key, h.decision_id).where(h.environment == environment).order_by(h.revision)
    with single_use_engine(database_url).connect() as connection:
        rows = connection.execute(query).all()
    return {r.decision_id: Write(revision=r.revision, at=r.at, key=r.key, decision_id=r.decision_id) for r in rows}


def _in_force(router: str) -> int | None:
    try:
        match = _APPLIED.search(httpx.get(f"{router}/metrics", timeout=5, trust_env=False).text)
    except httpx.HTTPError:
        return None
    return None if match is None else int(float(match[1]))


def _applied(log: Path) -> Iterator[tuple[str, int, datetime]]:
    for line in log.read_text(errors="replace").splitlines():
        if '"flag_applied"' not in line:
            continue
        try:
            data = json.loads(line)
            yield data["flag"], data["revision"], datetime.fromisoformat(data["timestamp"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut, or is somebody else's
