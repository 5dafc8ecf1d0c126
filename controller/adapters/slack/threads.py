"""
Which Slack message belongs to which rollout.

Its one rule: this is a memory aid, not the truth. A rollout that is not in here is looked for in the channel before a second message is
posted.
"""

from typing import Protocol

from sqlalchemy import Column, Engine, MetaData, Table, Text, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from controller.ports import NotifierUnavailable

Thread = tuple[str, str]
"""Channel id and timestamp of a rollout's message."""

SLACK_THREADS = Table(
    "slack_threads",
    MetaData(schema="penstock"),
    Column("rollout_id", Text, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("ts", Text, nullable=False),
)


class ThreadStore(Protocol):
    """Both methods raise NotifierUnavailable when the store cannot be reached."""

    def get(self, rollout_id: str) -> Thread | None:
        """None when nothing is known."""

    def put(self, rollout_id: str, channel: str, ts: str) -> None:
        """The last one put counts."""


class MemoryThreads:
    """For tests and for a process that sends a single notice."""

    def __init__(self) -> None:
        self._threads: dict[str, Thread] = {}

    def get(self, rollout_id: str) -> Thread | None:
        return self._threads.get(rollout_id)

    def put(self, rollout_id: str, channel: str, ts: str) -> None:
        self._threads[rollout_id] = (channel, ts)


class PostgresThreads:
    """In the controller's database, table `penstock.slack_threads`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(self, rollout_id: str) -> Thread | None:
        found = select(SLACK_THREADS.c.channel, SLACK_THREADS.c.ts).where(SLACK_THREADS.c.rollout_id == rollout_id)
        try:
            with self._engine.connect() as db:
                row = db.execute(found).one_or_none()
        except SQLAlchemyError as exc:
            raise NotifierUnavailable(f"slack_threads cannot be read: {type(exc).__name__}") from exc
        return None if row is None else (row.channel, row.ts)

    def put(self, rollout_id: str, channel: str, ts: str) -> None:
        row = insert(SLACK_THREADS).values(rollout_id=rollout_id, channel=channel, ts=ts)
        kept = row.on_conflict_do_update(index_elements=["rollout_id"], set_={"channel": channel, "ts": ts})
        try:
            with self._engine.begin() as db:
                db.execute(kept)
        except SQLAlchemyError as exc:
            raise NotifierUnavailable(f"slack_threads cannot be written: {type(exc).__name__}") from exc
