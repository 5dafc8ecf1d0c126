"""
The audit log out of the database and into an export, as a stream of one snapshot.

It stands between `chain.rows` and `controller.adapters.archive`. Its one rule: rows leave as they were hashed, so that an auditor needs neither this
program nor this database to check them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from psycopg import sql

from controller.adapters.archive import ANSWERS, HEADS, Archive
from controller.adapters.evidence_files import EvidenceFiles
from controller.adapters.heads import line
from controller.adapters.postgres.chain import BATCH, Connection, Progress, copied, one_row, reading, rows, silent
from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.rows import store
from controller.adapters.postgres.tables import SCHEMA
from controller.core.chain import Head, event_in_json, references
from controller.ports import AuditUnavailable, SignedHead


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """
    Which rows.

    Args:
        rollout_id: Of one rollout; None for all.
        since, until: Written from `since` on and before `until`; None for no bound.
        answers: With the texts that the rows refer to.
    """

    rollout_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    answers: bool = False

    @property
    def whole(self) -> bool:
        return self.rollout_id is None and self.since is None and self.until is None


@dataclass(slots=True)
class _Seen:
    """What went by."""

    digests: set[bytes]
    count: int = 0
    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None


def export(
    url: str,
    to: Archive,
    wanted: Wanted,
    *,
    sign: Callable[[Head, datetime], SignedHead],
    published: Sequence[SignedHead] = (),
    alone: bool = False,
    progress: Progress = silent,
    files: EvidenceFiles | None = None,
) -> dict[str, Any]:
    """
    Write rows, their answers, heads and the manifest.

    Args:
        url: Of any role that may read the log.
        to: Where.
        wanted: Which rows.
        sign: Makes a published head of the log's last row.
        published: Heads that were published before.
        alone: Rows only, for a stream.
        progress: Told how far it is.
        files: Where answers are that were moved out of the database.

    Returns:
        The manifest.

    Raises:
        BadDatabaseUrl: the URL is not one.
        AuditUnavailable: the log cannot be read to its end, or an answer is in a file that is not at hand.
        OSError: it cannot be written.
    """
    seen = _Seen(digests=set())
    with translated(AuditUnavailable, "exporting the audit log"), reading(url) as connection:
        snapshot, now, schema = one_row(
            connection, "SELECT pg_export_snapshot(), now(), (SELECT version_num FROM {schema}.alembic_version)"
        )
        last = connection.execute(f"SELECT id, hash, at FROM {SCHEMA}.audit ORDER BY id DESC LIMIT 1".encode()).fetchone()
        head = None if last is None else sign(Head(id=last[0], hash=last[1], at=last[2]), now.astimezone(UTC))
        to.rows(_documents(connection, wanted, seen, progress))
        if wanted.answers:
            with reading(url, snapshot) as other:
                to.lines(ANSWERS, _answers(other, None if wanted.whole else sorted(seen.digests), files))
        if not alone:
            to.lines(HEADS, (line(h) for h in (*published, head) if h is not None))
    times = {name: None if (at := getattr(wanted, name)) is None else at.isoformat() for name in ("since", "until")}
    return to.manifest(
        {
            "made_at": now.astimezone(UTC).isoformat(),
            "release": version("penstock"),
            "schema": schema,
            "filter": {"rollout_id": wanted.rollout_id, **times},
            "count": seen.count,
            "first": seen.first,
            "last": seen.last,
            "head": None if head is None else {"id": head.id, "hash": head.hash, "key": head.key},
        }
    )


def _documents(connection: Connection, wanted: Wanted, seen: _Seen, progress: Progress) -> Iterator[tuple[bytes, str, str]]:
    bounds = {"rollout_id = {}": wanted.rollout_id, "at >= {}": wanted.since, "at < {}": wanted.until}
    asked = [sql.SQL(text).format(sql.Literal(value)) for text, value in bounds.items() if value is not None]
    where = sql.SQL(" AND ").join(asked).as_string(connection) if asked else "true"
    for audit_id, _, _, prev_hash, stored, before, event, after in rows(connection, where):
        yield before + event_in_json(event) + after, prev_hash, stored
        place = {"id": audit_id, "hash": stored}
        seen.first, seen.last, seen.count = seen.first or place, place, seen.count + 1
        if wanted.answers and not wanted.whole:
            seen.digests.update(references(event))
        if seen.count % BATCH == 0:
            progress("rows", BATCH)


def _answers(connection: Connection, digests: Sequence[bytes] | None, files: EvidenceFiles | None) -> Iterator[str]:
    """All texts, or those with these digests."""
    noted = {str(row[0]) for row in connection.execute(f"SELECT digest FROM {SCHEMA}.archived_evidence".encode())}
    moved = noted if digests is None else noted.intersection(d.decode() for d in digests)
    for digest in sorted(moved):
        text = None if files is None else files.get(digest)
        if text is None:
            where = "no folder is named" if files is None else f"it is not in {files.folder}"
            raise AuditUnavailable(f"the answer {digest[:12]} was moved to a file, and {where} (PENSTOCK_EVIDENCE_FOLDER)")
        stored = store(text.decode("utf-8", "surrogatepass"))
        yield _line(digest, stored.encoding, stored.answer)
    everything = f"SELECT digest, encoding, answer FROM {SCHEMA}.audit_evidence"
    if digests is None:
        parts: Iterable[str] = (everything,)
    else:
        few = (digests[i : i + BATCH] for i in range(0, len(digests), BATCH))
        lists = (sql.SQL(",").join(sql.Literal(d.decode()) for d in part).as_string(connection) for part in few)
        parts = (f"{everything} WHERE digest IN ({each})" for each in lists)
    for part in parts:
        for digest, encoding, answer in copied(connection, part, ("text", "text", "text")):
            if digest not in moved:
                yield _line(digest, encoding, answer)


def _line(digest: str, encoding: str, answer: str) -> str:
    return json.dumps({"digest": digest, "encoding": encoding, "answer": answer}, ensure_ascii=False, separators=(",", ":"))
