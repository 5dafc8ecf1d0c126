"""
Who is logged in to the web console: `controller.ports.Sessions` in Postgres, so that a restart logs nobody out and a logout holds everywhere.

Its one rule: a key is never stored, only its digest; who reads the table can become nobody.
"""

from datetime import UTC, timedelta

from sqlalchemy import Engine, delete, func, insert, select

from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.tables import console_sessions
from controller.ports import AuditUnavailable, Session


class PostgresSessions:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open(self, digest: str, person: str, proof: str, lasts: timedelta) -> None:
        row, now = console_sessions.c, func.clock_timestamp()
        values = {"digest": digest, "person": person, "proof": proof, "opened_at": now, "expires_at": now + lasts}
        with translated(AuditUnavailable, "opening a session"), self._engine.begin() as connection:
            connection.execute(delete(console_sessions).where(row.expires_at < now))
            connection.execute(insert(console_sessions).values(**values))

    def find(self, digest: str) -> Session | None:
        row = console_sessions.c
        query = select(console_sessions).where(row.digest == digest, row.expires_at > func.clock_timestamp())
        with translated(AuditUnavailable, "reading a session"), self._engine.connect() as connection:
            found = connection.execute(query).one_or_none()
        if found is None:
            return None
        return Session(person=found.person, proof=found.proof, expires_at=found.expires_at.astimezone(UTC))

    def close(self, digest: str) -> None:
        with translated(AuditUnavailable, "ending a session"), self._engine.begin() as connection:
            connection.execute(delete(console_sessions).where(console_sessions.c.digest == digest))
