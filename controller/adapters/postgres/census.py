"""
Numbers about the whole controller, read from its database: what waits in the outbox, what was decided, how long rollouts took.

`penstock serve` exports them, so that they are there whichever processes look. Its one rule: counts of the log are counts of its rows, read
once each: a process that starts anew comes to the same numbers.
"""

import json
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Engine, RowMapping, and_, func, not_, or_, select

from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.tables import audit, flag_holds, heartbeats, outbox
from controller.ports import GATE_CHECK_FAILED, AuditUnavailable

BLOCK = 5_000
"""Rows that are read at once."""

DURATION_EDGES_S = tuple(timedelta(hours=h).total_seconds() for h in (1, 6, 24, 72, 168, 336, 720))

ENDS = {"promote": "promoted", "roll_back": "rolled_back", "abort": "aborted"}


@dataclass(slots=True)
class Durations:
    """A histogram of rollouts of one outcome: `counts` has one entry for each of `DURATION_EDGES_S` and one beyond."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(DURATION_EDGES_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(DURATION_EDGES_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> Sequence[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        edges = [*(f"{edge:g}" for edge in DURATION_EDGES_S), "+Inf"]
        return [(edge, float(sum(self.counts[: i + 1]))) for i, edge in enumerate(edges)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """
    What is the case now, by the database's clock.

    Args:
        active: Rollouts that hold a flag.
        waiting: Notices that are not delivered yet.
        oldest_s: Age of the oldest of them; 0 without any.
        refused: Notices that will never be delivered.
        beats: Seconds since each looker was last alive.
        unchecked: Rollouts that hold a flag and could not be looked at by their last gate check.
    """

    active: int
    waiting: int
    oldest_s: float
    refused: int
    beats: dict[str, float]
    unchecked: int


_good, _bad = heartbeats.alias(), heartbeats.alias()
_UNCHECKED = (
    select(func.count(func.distinct(flag_holds.c.rollout_id)))
    .join_from(flag_holds, _bad, and_(_bad.c.who == GATE_CHECK_FAILED, _bad.c.rollout_id == flag_holds.c.rollout_id))
    .outerjoin(_good, and_(_good.c.who == "gate-check", _good.c.rollout_id == flag_holds.c.rollout_id))
    .where(or_(_good.c.at.is_(None), _good.c.at < _bad.c.at))
)


class Census:
    """Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._last_id = 0
        self._opened: dict[str, datetime] = {}
        self.decisions: Counter[tuple[str, str]] = Counter()
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.durations = {outcome: Durations() for outcome in ENDS.values()}

    def moment(self) -> Moment:
        """Raises AuditUnavailable."""
        waits = and_(outbox.c.delivered_at.is_(None), not_(outbox.c.refused))
        now = func.clock_timestamp()
        age = func.extract("epoch", now - func.min(outbox.c.created_at).filter(waits))
        letters = select(func.count().filter(waits), age, func.count().filter(outbox.c.refused)).select_from(outbox)
        beats = select(heartbeats.c.who, func.extract("epoch", now - heartbeats.c.at)).where(heartbeats.c.rollout_id == "")
        with translated(AuditUnavailable, "counting"), self._engine.connect() as connection:
            active = int(connection.scalar(select(func.count()).select_from(flag_holds)) or 0)
            waiting, oldest, refused = connection.execute(letters).one()
            ages = {who: float(seconds) for who, seconds in connection.execute(beats)}
            unchecked = int(connection.scalar(_UNCHECKED) or 0)
        return Moment(
            active=active, waiting=waiting, oldest_s=float(oldest or 0.0), refused=refused, beats=ages, unchecked=unchecked
        )

    def read_on(self) -> None:
        """Count the rows that were written since the last time. Raises AuditUnavailable."""
        columns = (audit.c.id, audit.c.rollout_id, audit.c.at, audit.c.kind, audit.c.source, audit.c.action, audit.c.verdicts)
        with self._lock:
            while True:
                query = select(*columns).where(audit.c.id > self._last_id).order_by(audit.c.id).limit(BLOCK)
                with translated(AuditUnavailable, "counting the log's rows"), self._engine.connect() as connection:
                    rows = connection.execute(query).mappings().all()
                for row in rows:
                    self._count(row)
                    self._last_id = row["id"]
                if len(rows) < BLOCK:
                    return

    def _count(self, row: RowMapping) -> None:
        kind, source, action = row["kind"], row["source"], row["action"]
        if kind == "opened":
            self._opened[row["rollout_id"]] = row["at"]
        elif kind == "decided":
            self.decisions[source, action] += 1
            for verdict in json.loads(row["verdicts"] or "{}").values():
                self.verdicts[source, verdict] += 1
        elif kind == "applied" and action in ENDS and (began := self._opened.pop(row["rollout_id"], None)) is not None:
            self.durations[ENDS[action]].add((row["at"] - began).total_seconds())
