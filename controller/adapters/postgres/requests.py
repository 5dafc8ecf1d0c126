"""
Requests of the HTTP API that carry an idempotency key: `controller.ports.RequestLog` in Postgres.

Its one rule: (caller, key) decides who does the work. Whoever takes the row works; everybody else is told the answer, or to come back.
"""

from datetime import timedelta

from sqlalchemy import Engine, and_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.tables import api_requests
from controller.ports import AuditUnavailable, Taken

LEASE = timedelta(seconds=60)
"""After so long without an answer whoever took the row is taken for dead: every statement of a command has a shorter limit."""

KEPT = timedelta(days=7)


class PostgresRequests:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, caller: str, key: str, fingerprint: str) -> Taken:
        row = api_requests.c
        now = func.clock_timestamp()
        fresh = {"fingerprint": fingerprint, "taken_at": now}
        take = (
            insert(api_requests)
            .values(caller=caller, key=key, **fresh)
            .on_conflict_do_update(
                index_elements=["caller", "key"],
                set_=fresh,
                # The work of a process that died is done again: each command finds out by itself what is done already.
                where=and_(row.status.is_(None), row.taken_at < now - LEASE, row.fingerprint == fingerprint),
            )
            .returning(row.caller)
        )
        with translated(AuditUnavailable, "taking an idempotency key"), self._engine.begin() as connection:
            if connection.scalar(take) is not None:
                connection.execute(delete(api_requests).where(row.taken_at < now - KEPT))
                return Taken(ours=True)
            found = connection.execute(select(api_requests).where(row.caller == caller, row.key == key)).one_or_none()
        if found is None:  # given back between the two statements
            return Taken()
        return Taken(same=found.fingerprint == fingerprint, status=found.status, answer=found.answer)

    def answer(self, caller: str, key: str, status: int, answer: str) -> None:
        row = api_requests.c
        mine = and_(row.caller == caller, row.key == key, row.status.is_(None))
        with translated(AuditUnavailable, "keeping an answer"), self._engine.begin() as connection:
            connection.execute(update(api_requests).where(mine).values(status=status, answer=answer))

    def give_back(self, caller: str, key: str) -> None:
        row = api_requests.c
        mine = and_(row.caller == caller, row.key == key, row.status.is_(None))
        with translated(AuditUnavailable, "giving an idempotency key back"), self._engine.begin() as connection:
            connection.execute(delete(api_requests).where(mine))
