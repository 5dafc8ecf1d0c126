"""
Whether the audit log in the database is what was written: the hash chain, row by row, and every raw answer against its digest.

It reads streams of one snapshot of the database, two at a time, with the rights of a reader, and hands them to `controller.core.chain`. Its one
rule: what can be computed here is not believed. What a chain cannot show is that its end was cut off or that all of it was written anew; for
that, give it heads that were published elsewhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from typing import Any

import psycopg
from psycopg import sql

from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.rows import Answer, raw
from controller.adapters.postgres.tables import SCHEMA
from controller.core.chain import (
    HASHED,
    HEAD_NOTICE,
    NUMBERS,
    ChainReport,
    Findings,
    Head,
    Link,
    Stretch,
    absent,
    event_in_json,
    follow,
    join,
    known_heads,
    references,
    report,
)
from controller.core.digests import Digests
from controller.ports import AuditUnavailable

STATEMENT_TIMEOUT = "1h"

STREAMS = 2
"""Read at the same time: the server decompresses for one while the other's rows are hashed."""

BATCH = 2000
"""Rows between two words about progress, and between two checks of what they refer to."""

FEW = 4 * BATCH
"""Rows that are not worth a second stream."""

Progress = Callable[[str, int], None]
"""Told how many more ``rows`` or ``answers`` were checked; from any thread."""


def silent(what: str, more: int) -> None:
    """A `Progress` that tells nobody."""


Connection = psycopg.Connection[tuple[Any, ...]]

_JSON_TEXT = frozenset({"verdicts", "reasons", "event"})


def verify(url: str, heads: Sequence[Head] = (), *, since: Head | None = None, progress: Progress = silent) -> ChainReport:
    """
    Check the audit log.

    Args:
        url: Of any role that may read it.
        heads: Heads known from elsewhere, which the log must contain.
        since: A head up to which all was checked before: only its row and those after it are, and the answers that they rest on.
        progress: Told how far it is.

    Raises:
        BadDatabaseUrl: the URL is not one.
        AuditUnavailable: the log cannot be read to its end; nothing is said about it then.
    """
    known = known_heads((*heads, since) if since else heads)
    findings = Findings()
    with translated(AuditUnavailable, "verifying the audit log"), reading(url) as connection:
        lowest, highest = one_row(connection, "SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM {schema}.audit")
        low = lowest if since is None else since.id
        reader = _Reader(url, one_row(connection, "SELECT pg_export_snapshot()")[0], known, findings, progress)
        answers = reader.answers() if since is None else None
        found = reader.stretch(low, highest, answers)
        checked = join(Stretch() if since is None else _before(connection, low, found), found, findings)
        absent({i: h for i, h in known.items() if i >= low}, highest, findings)
        _strays(connection, findings)
    return report(checked, findings, answers=reader.sound, heads=len(known))


def head(url: str) -> Head | None:
    """The last row now, to publish it; None for an empty log. Raises BadDatabaseUrl, AuditUnavailable."""
    with translated(AuditUnavailable, "reading the head of the audit log"), connect(url) as connection:
        row = connection.execute(f"SELECT id, hash, at FROM {SCHEMA}.audit ORDER BY id DESC LIMIT 1".encode()).fetchone()
    return None if row is None else Head(id=row[0], hash=row[1], at=row[2])


Row = tuple[int, int, str, str, str, bytes, bytes, bytes]
"""id, seq, rollout_id, prev_hash, hash, and the canonical JSON of the row: up to the event, the event as stored, and after it."""


def rows(connection: Connection, where: str = "true") -> Iterator[Row]:
    """Rows in order of their ids, as they are hashed; `document` puts the three parts together."""
    names = sorted(HASHED)
    middle = names.index("event")
    head, tail = (", ".join(f"',\"{n}\":', {_value(n)}" for n in part) for part in (names[:middle], names[middle + 1 :]))
    # Every function is one of pg_catalog, so that nobody's own function of the same name is called.
    query = (
        f"SELECT id, seq, rollout_id, prev_hash, hash, '{{' || substr(pg_catalog.concat({head}, ',\"event\":'), 2), event, "
        f"pg_catalog.concat({tail}, '}}') FROM {SCHEMA}.audit WHERE {where} ORDER BY id"
    )
    return copied(connection, query, ("int8", "int4", "text", "text", "text", "bytea", "bytea", "bytea"))


def _value(name: str) -> str:
    if name in NUMBERS:
        return f"coalesce({name}::pg_catalog.text, 'null')"
    if name == "at":
        return f"""'"', pg_catalog.to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '+00:00"'"""
    text = f"{name}::pg_catalog.text" if name in _JSON_TEXT else name
    return f"coalesce(pg_catalog.to_json({text})::pg_catalog.text, 'null')"


@contextmanager
def reading(url: str, snapshot: str | None = None) -> Iterator[Connection]:
    """A transaction that only reads, of a snapshot that others may share."""
    with connect(url, autocommit=False) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        if snapshot is not None:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'".encode())
        connection.execute(b"SET LOCAL idle_in_transaction_session_timeout = 0")
        # In order of the ids by their index: sorting would write all rows to disk first.
        connection.execute(b"SET LOCAL enable_sort = off")
        yield connection


class _Reader:
    """Streams of one snapshot. What they find goes to `findings`, in the order of the streams."""

    def __init__(self, url: str, snapshot: str, heads: Mapping[int, set[str]], findings: Findings, progress: Progress) -> None:
        self._url, self._snapshot, self._heads = url, snapshot, heads
        self._findings, self._progress = findings, progress
        self.sound = 0

    def answers(self) -> Digests:
        """Digests of all answers that are what their digest says."""
        halves = ("digest < '8'", "NOT digest < '8'")
        with ThreadPoolExecutor(STREAMS, thread_name_prefix="answers") as pool:
            found = list(pool.map(self._sound, (f"SELECT * FROM {SCHEMA}.audit_evidence WHERE {half}" for half in halves)))
        for _, findings in found:
            self._findings.take(findings)
        digests = Digests(b"".join(packed for packed, _ in found))
        self.sound += len(digests)
        return digests

    def stretch(self, low: int, high: int, answers: Digests | None) -> Stretch:
        """
        Follow the rows from `low` to `high`.

        Args:
            low, high: Ids, both included.
            answers: The sound ones; None reads those that the rows refer to.
        """
        cuts = [low, high + 1] if high - low < FEW else [low, (low + high) // 2, high + 1]
        with ThreadPoolExecutor(STREAMS, thread_name_prefix="rows") as pool:
            parts = list(pool.map(lambda ends: self._part(ends[0], ends[1], answers), pairwise(cuts)))
        whole = Stretch()
        for number, (found, findings) in enumerate(parts):
            self._findings.take(findings)
            whole = join(whole, found, self._findings) if number else found
        return whole

    def _part(self, low: int, end: int, answers: Digests | None) -> tuple[Stretch, Findings]:
        findings = Findings()
        with reading(self._url, self._snapshot) as connection:
            return follow(self._links(connection, low, end, answers, findings), self._heads, findings), findings

    def _links(self, connection: Connection, low: int, end: int, answers: Digests | None, findings: Findings) -> Iterator[Link]:
        wanted: dict[bytes, int] = {}
        count = 0
        for audit_id, seq, rollout_id, prev_hash, stored, head, event, tail in rows(connection, f"id >= {low} AND id < {end}"):
            hashed = sha256(prev_hash.encode() + head)
            hashed.update(event_in_json(event))
            hashed.update(tail)
            yield audit_id, seq, rollout_id, prev_hash, stored, hashed.hexdigest()
            for digest in references(event):
                wanted.setdefault(digest, audit_id)
            count += 1
            if count == BATCH:
                self._check(wanted, answers, findings)
                self._progress("rows", count)
                wanted, count = {}, 0
        self._check(wanted, answers, findings)
        self._progress("rows", count)

    def _check(self, wanted: Mapping[bytes, int], answers: Digests | None, findings: Findings) -> None:
        if not wanted:
            return
        if answers is None:
            named = sql.SQL("SELECT * FROM {}.audit_evidence WHERE digest IN ({})").format(
                sql.Identifier(SCHEMA), sql.SQL(",").join(sql.Literal(d.decode()) for d in wanted)
            )
            packed, odd = self._sound(named.as_string())
            findings.take(odd)
            answers = Digests(packed)
            self.sound += len(answers)
        for digest in answers.missing(wanted):
            text = f"row {wanted[digest]} rests on the answer {digest.decode()[:12]}, which is missing or was changed"
            findings.add(wanted[digest], "evidence", text)

    def _sound(self, query: str) -> tuple[bytearray, Findings]:
        """Digests of the answers of a query that are what their digest says, one after the other."""
        packed, findings, count = bytearray(), Findings(), 0
        asked = f"SELECT digest, encoding, pg_catalog.convert_to(answer, 'UTF8') FROM ({query}) AS asked"
        with reading(self._url, self._snapshot) as connection:
            for digest, encoding, stored in copied(connection, asked, ("text", "text", "bytea")):
                try:
                    found = sha256(
                        stored if encoding == "utf8" else raw(Answer(digest=digest, answer=stored.decode(), encoding=encoding))
                    )
                except ValueError:
                    findings.add(None, "evidence", f"the answer {digest[:12]} cannot be decoded: it was changed")
                    continue
                if found.hexdigest() == digest:
                    packed += found.digest()
                else:
                    findings.add(None, "evidence", f"the answer {digest[:12]} hashes to {found.hexdigest()[:12]}: it was changed")
                count += 1
                if count % BATCH == 0:
                    self._progress("answers", BATCH)
        return packed, findings


def copied(connection: Connection, query: str, types: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of a query as a stream, in binary, which costs least."""
    with connection.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT binary)".encode()) as copy:
        copy.set_types(types)
        yield from copy.rows()


def one_row(connection: Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query.format(schema=SCHEMA).encode()).fetchone()
    assert row is not None, "an aggregate always has a row"
    return row


def _before(connection: Connection, low: int, found: Stretch) -> Stretch:
    """What stands before a known head: its hash is the head's word, the sequences are those of the rows."""
    query = f"SELECT rollout_id, max(seq) FROM {SCHEMA}.audit WHERE id < %s AND rollout_id = ANY(%s) GROUP BY rollout_id"
    rows = connection.execute(query.encode(), (low, list(found.begins))).fetchall()
    return Stretch(last=low - 1, hash=found.prev_hash, ends=dict(rows))


_STRAYS = {
    "orphan": (
        "SELECT 'flag ' || h.flag || ' in ' || h.environment || ' is held by ' || h.rollout_id || ' since row ' || h.audit_id "
        "|| ', which is not there' FROM {schema}.flag_holds h "
        "LEFT JOIN {schema}.audit a ON a.id = h.audit_id AND a.rollout_id = h.rollout_id AND a.seq = 1 WHERE a.id IS NULL",
        "SELECT 'a notice tells of row ' || o.rollout_id || '/' || o.seq || ', which is not there' FROM {schema}.outbox o "
        "LEFT JOIN {schema}.audit a ON a.rollout_id = o.rollout_id AND a.seq = o.seq "
        f"WHERE a.id IS NULL AND o.rollout_id <> '{HEAD_NOTICE}'",
        # A lowering may come before its row; a raise never does.
        "SELECT DISTINCT 'flag ' || d.key || ' in ' || d.environment || ' was written by ' || d.decision_id || ', which no row decided' "
        "FROM (SELECT h.*, regexp_match(h.decision_id, '^(.+)[.]([0-9]{{1,9}})[.](advance|promote|resume)([.]abandoned)?$') AS parts "
        "FROM {schema}.flag_history h WHERE h.action = 'write') d "
        "LEFT JOIN {schema}.audit a ON a.rollout_id = d.parts[1] AND a.seq = d.parts[2]::integer AND a.action = d.parts[3] "
        "WHERE d.parts IS NOT NULL AND a.id IS NULL",
    ),
    "history": (
        "SELECT 'flag ' || f.key || ' in ' || f.environment || ' is at revision ' || f.revision || ', which its history does not tell of so' "
        "FROM {schema}.flags f LEFT JOIN {schema}.flag_history h ON h.environment = f.environment AND h.revision = f.revision "
        "AND (h.key, h.version, h.killed, h.weight, h.shadow_weight, h.decision_id) "
        "= (f.key, f.version, f.killed, f.weight, f.shadow_weight, f.decision_id) WHERE h.revision IS NULL",
    ),
}


def _strays(connection: Connection, findings: Findings) -> None:
    """What other tables tell of rows that are not there, and flags that are not as their history has them."""
    connection.execute(b"SET LOCAL enable_sort = on")
    for kind, queries in _STRAYS.items():
        for query in queries:
            for (text,) in connection.execute(query.format(schema=SCHEMA).encode()):
                findings.add(None, kind, text)


__all__ = ["ChainReport", "Head", "Progress", "head", "reading", "rows", "silent", "verify"]
