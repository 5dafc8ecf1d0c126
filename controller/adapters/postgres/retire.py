"""
Moving the texts that ended rollouts rest on out of the database and into files.

It runs as the owner of the tables, since the application may take nothing out of the log. Its one rule: a text leaves the database only when it
was read back from a file, and only if no row of a rollout that goes on refers to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from controller.adapters.evidence_files import EvidenceFiles
from controller.adapters.postgres.chain import Progress, copied, one_row, reading, silent
from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.rows import Answer, raw
from controller.adapters.postgres.tables import CHAIN_LOCK, SCHEMA
from controller.core.chain import references
from controller.core.rollout import LogError, replay
from controller.ports import AuditLog, AuditUnavailable, RolloutIndex

BATCH = 2_000
"""Texts that leave the database in one transaction: while it lasts, rows wait to be written."""

FILE_TEXTS = 50_000
"""Texts in one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """
    What was moved, or would be.

    Args:
        rollouts: Ended before the time that was named.
        texts: That only they rest on, and that were still in the database.
        size: Characters of them.
        files: Names of the files that were written now.
        renewals: Rows of the flags' history that only renewed a lease, removed.
    """

    rollouts: int
    texts: int
    size: int
    files: tuple[str, ...] = ()
    renewals: int = 0


def ended_before(audit: AuditLog, index: RolloutIndex, before: datetime, limit: int) -> list[str]:
    """
    The rollouts that ended before a time.

    One whose log cannot be read is not among them. Raises AuditUnavailable.
    """
    found = []
    for rollout_id in index.known(limit):
        entries = audit.entries(rollout_id)
        try:
            ended = replay(entries).ended
        except LogError:
            continue
        if ended and entries[-1].at < before:
            found.append(rollout_id)
    return found


def retire(
    owner_url: str,
    ended: Sequence[str],
    before: datetime,
    files: EvidenceFiles,
    *,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Retired:
    """
    Args:
        owner_url: Of the tables' owner.
        ended: Rollouts whose texts may go.
        before: Renewals of leases that are older are removed as well.
        files: Where to.
        dry_run: Only count.
        progress: Told how far it is.

    Raises:
        BadDatabaseUrl: the URL is not one.
        AuditUnavailable: the database cannot be read or changed; what was moved until then is in files and noted.
        BadEvidenceFiles: a file cannot be written; nothing of it has left the database.
    """
    with translated(AuditUnavailable, "archiving the evidence of ended rollouts"):
        with reading(owner_url) as connection:
            user, owns = one_row(
                connection,
                "SELECT current_user, pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = '{schema}.audit_evidence'::regclass",
            )
            if not owns and not dry_run:
                raise AuditUnavailable(
                    f"only the owner of the tables may archive, and {user} is not: name its address (--database)"
                )
            seen, gone = _only_of(connection, ended)
            sizes = dict(_sizes(connection, gone))
        if dry_run or not gone:
            renewals = 0 if dry_run else _drop_renewals(owner_url, before)
            return Retired(rollouts=len(ended), texts=len(sizes), size=sum(sizes.values()), renewals=renewals)
        filed, written = files.digests(), []
        fresh = [d for d in sizes if d not in filed]
        for start in range(0, len(fresh), FILE_TEXTS):
            path = files.add(_texts(owner_url, fresh[start : start + FILE_TEXTS], progress), datetime.now(UTC))
            written += [] if path is None else [path.name]
        _forget(owner_url, list(sizes), seen, files)
        renewals = _drop_renewals(owner_url, before)
    return Retired(rollouts=len(ended), texts=len(sizes), size=sum(sizes.values()), files=tuple(written), renewals=renewals)


Connection = psycopg.Connection[tuple[Any, ...]]


def _only_of(connection: Connection, ended: Sequence[str]) -> tuple[int, set[str]]:
    """The last row that was seen, and the digests that rows of these rollouts refer to and no others."""
    (last,) = connection.execute(f"SELECT coalesce(max(id), 0) FROM {SCHEMA}.audit".encode()).fetchone() or (0,)
    theirs = _referred(connection, sql.SQL("rollout_id = ANY({})").format(sql.Literal(list(ended))))
    others = _referred(connection, sql.SQL("rollout_id <> ALL({})").format(sql.Literal(list(ended))))
    return int(last), theirs - others


def _referred(connection: Connection, where: sql.Composed) -> set[str]:
    query = f"SELECT event::text FROM {SCHEMA}.audit WHERE {where.as_string(connection)}"
    return {d.decode() for (event,) in copied(connection, query, ("bytea",)) for d in references(event)}


def _sizes(connection: Connection, digests: set[str]) -> Iterator[tuple[str, int]]:
    """Of those that are in the database."""
    for part in _parts(sorted(digests)):
        query = f"SELECT digest, length(answer) FROM {SCHEMA}.audit_evidence WHERE digest = ANY(%s)"
        for digest, size in connection.execute(query.encode(), (part,)):
            yield digest, int(size)


def _texts(owner_url: str, digests: Sequence[str], progress: Progress) -> Iterator[tuple[str, bytes]]:
    with reading(owner_url) as connection:
        for part in _parts(digests):
            query = f"SELECT digest, answer, encoding FROM {SCHEMA}.audit_evidence WHERE digest = ANY(%s)"
            for digest, answer, encoding in connection.execute(query.encode(), (part,)):
                yield digest, raw(Answer(digest=digest, answer=answer, encoding=encoding))
            progress("answers", len(part))


def _forget(owner_url: str, digests: Sequence[str], seen: int, files: EvidenceFiles) -> None:
    """Take out of the database what is in the files, a batch a transaction, while no row can be written."""
    for part in _parts(digests):
        places = [(d, path.name) for d in part if (path := files.place(d)) is not None]
        with connect(owner_url) as connection, connection.transaction():
            connection.execute(b"SELECT pg_advisory_xact_lock(%s)", (CHAIN_LOCK,))
            # Rows that were written meanwhile may rest on one of these after all.
            wanted = _referred(connection, sql.SQL("id > {}").format(sql.Literal(seen)))
            going = [(d, name) for d, name in places if d not in wanted]
            connection.execute(f"ALTER TABLE {SCHEMA}.audit_evidence DISABLE TRIGGER audit_evidence_append_only".encode())
            connection.cursor().executemany(
                f"INSERT INTO {SCHEMA}.archived_evidence (digest, archive) VALUES (%s, %s) ON CONFLICT (digest) DO NOTHING".encode(),
                going,
            )
            connection.execute(f"DELETE FROM {SCHEMA}.audit_evidence WHERE digest = ANY(%s)".encode(), ([d for d, _ in going],))
            connection.execute(f"ALTER TABLE {SCHEMA}.audit_evidence ENABLE ALWAYS TRIGGER audit_evidence_append_only".encode())


def _drop_renewals(owner_url: str, before: datetime) -> int:
    """Renewals of leases tell nothing that the rows about them do not; a flag's own last row stays."""
    with connect(owner_url) as connection, connection.transaction():
        connection.execute(f"ALTER TABLE {SCHEMA}.flag_history DISABLE TRIGGER flag_history_append_only".encode())
        done = connection.execute(
            f"DELETE FROM {SCHEMA}.flag_history h USING {SCHEMA}.flags f WHERE h.action = 'renew' AND h.at < %s "
            "AND f.environment = h.environment AND f.key = h.key AND f.revision <> h.revision".encode(),
            (before,),
        ).rowcount
        connection.execute(f"ALTER TABLE {SCHEMA}.flag_history ENABLE ALWAYS TRIGGER flag_history_append_only".encode())
    return done


def _parts(digests: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(digests), BATCH):
        yield list(digests[start : start + BATCH])
