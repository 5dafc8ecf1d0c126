"""
When those who look did so last: `controller.ports.Heartbeats` on a small table that is overwritten.

It is no part of the audit log: it says who is alive, not what was decided. Its one rule: the database's clock alone, so that a looker with a
wrong clock neither seems dead nor alive.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import ARRAY, Engine, Text, delete, func, literal, select
from sqlalchemy.dialects.postgresql import insert

from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.tables import heartbeats
from controller.ports import AuditUnavailable

KEPT = timedelta(days=7)
"""Rollouts that nobody has looked at for so long have ended, and their rows go."""


class PostgresHeartbeats:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def beat(self, who: str, rollouts: Sequence[str] = ()) -> None:
        # In one order, so that two lookers with the same rollouts never wait for each other's rows.
        ids = func.unnest(literal(sorted({"", *rollouts}), ARRAY(Text))).column_valued("rollout_id")
        rows = select(literal(who), ids, func.clock_timestamp()).order_by(ids)
        statement = insert(heartbeats).from_select(["who", "rollout_id", "at"], rows)
        statement = statement.on_conflict_do_update(index_elements=["who", "rollout_id"], set_={"at": statement.excluded.at})
        old = delete(heartbeats).where(
            heartbeats.c.who == who, heartbeats.c.rollout_id != "", heartbeats.c.at < func.clock_timestamp() - KEPT
        )
        with translated(AuditUnavailable, f"writing the heartbeat of {who}"), self._engine.begin() as connection:
            connection.execute(statement)
            connection.execute(old)

    def last_beat(self, who: str, rollout_id: str = "") -> datetime | None:
        query = select(heartbeats.c.at).where(heartbeats.c.who == who, heartbeats.c.rollout_id == rollout_id)
        with translated(AuditUnavailable, f"reading the heartbeat of {who}"), self._engine.connect() as connection:
            at: datetime | None = connection.scalar(query)
        return None if at is None else at.astimezone(UTC)

    def age_s(self, who: str) -> float | None:
        """Seconds since `who` was last alive, by the database's clock; None for never. Raises AuditUnavailable."""
        age = func.extract("epoch", func.clock_timestamp() - heartbeats.c.at)
        query = select(age).where(heartbeats.c.who == who, heartbeats.c.rollout_id == "")
        with translated(AuditUnavailable, f"reading the heartbeat of {who}"), self._engine.connect() as connection:
            found = connection.scalar(query)
        return None if found is None else float(found)
