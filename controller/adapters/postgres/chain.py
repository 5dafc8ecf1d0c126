"""
Whether the audit log in the database is what was written: the hash chain, row by row, and every raw answer against its digest.

It reads pieces of one snapshot of the database, several at a time, with the rights of a reader, and hands them to `controller.core.chain`. Its one
rule: what can be computed here is not believed. What a chain cannot show is that its end was cut off or that all of it was written anew; for
that, give it heads that were published elsewhere.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from controller.adapters.evidence_files import EvidenceFiles
from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.rows import Answer, raw
from controller.adapters.postgres.strays import strays
from controller.adapters.postgres.tables import SCHEMA
from controller.core.chain import (
    HASHED,
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
"""Read at the same time by one process: the server decompresses for one while the other's rows are hashed."""

PROCESSES_MAX = 8
LARGE = 200_000_000
"""Bytes of rows from which processes of their own are worth the second that they take to start."""

BATCH = 2000
"""Rows between two checks of what they refer to."""

PIECE = 10 * BATCH
"""Rows that are followed in one go, answers' digests alike in sixteenths: small enough to tell how far it is."""

Progress = Callable[[str, int], None]
"""Told how many more ``rows`` or ``answers`` were checked."""


def silent(what: str, more: int) -> None:
    """A `Progress` that tells nobody."""


Connection = psycopg.Connection[tuple[Any, ...]]
Part = TypeVar("Part")

_JSON_TEXT = frozenset({"verdicts", "reasons", "event"})


def verify(
    url: str,
    heads: Sequence[Head] = (),
    *,
    since: Head | None = None,
    progress: Progress = silent,
    processes: int | None = None,
    files: EvidenceFiles | None = None,
    complete: bool = False,
) -> ChainReport:
    """
    Check the audit log.

    Args:
        url: Of any role that may read it.
        heads: Heads known from elsewhere, which the log must contain.
        since: A head up to which all was checked before: only its row and those after it are, and the answers that they rest on.
        progress: Told how far it is.
        files: Where answers are that were moved out of the database.
        complete: Every answer that was moved must be there; else those that are not are counted.
        processes: To share the work; None for as many as pay: where there is much to read, one for every two processors.

    Raises:
        BadDatabaseUrl: the URL is not one.
        AuditUnavailable: the log cannot be read to its end; nothing is said about it then.
    """
    known = known_heads((*heads, since) if since else heads)
    findings = Findings()
    with translated(AuditUnavailable, "verifying the audit log"), _alive(), reading(url) as connection:
        lowest, highest = one_row(connection, "SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM {schema}.audit")
        low = lowest if since is None else since.id
        filed, elsewhere, unchecked = _elsewhere(connection, files, findings, complete=complete)
        exported = one_row(connection, "SELECT pg_export_snapshot()")[0]
        snapshot = _Snapshot(url=url, id=exported, heads=known, elsewhere=elsewhere)
        work = _Work(connection, snapshot, processes or _processes(connection, low, lowest, highest), findings, progress)
        answers = work.answers() if since is None else None
        found = work.stretch(low, highest, answers)
        checked = join(Stretch() if since is None else _before(connection, low, found), found, findings)
        absent({i: h for i, h in known.items() if i >= low}, highest, findings)
        strays(connection, findings)
    return report(checked, findings, answers=work.sound, heads=len(known), filed=filed, unchecked=unchecked)


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except BrokenExecutor as exc:
        raise AuditUnavailable(f"verifying the audit log: a process that read it died ({exc})") from exc


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


def _elsewhere(
    connection: Connection, files: EvidenceFiles | None, findings: Findings, *, complete: bool
) -> tuple[int, Digests, int]:
    """How many answers in files are what their names say; the digests that need not be in the database; and how many of them nobody checked."""
    sound, odd = bytearray(), set[str]()
    for name, text, path in files.each() if files is not None else ():
        found = sha256(text)
        if found.hexdigest() == name:
            sound += found.digest()
        else:
            odd.add(name)
            findings.add(None, "evidence", f"{path}: {name[:12]} hashes to {found.hexdigest()[:12]}: it was changed")
    filed = Digests(bytes(sound))
    noted = [row[0] for row in connection.execute(f"SELECT digest FROM {SCHEMA}.archived_evidence".encode())]
    absent = list(filed.missing([n.encode() for n in noted])) if noted else []
    unchecked = [] if complete else [d for d in absent if d.decode() not in odd]
    return len(filed), Digests(bytes(sound) + b"".join(bytes.fromhex(d.decode()) for d in unchecked)), len(unchecked)


def _processes(connection: Connection, low: int, lowest: int, highest: int) -> int:
    """How many pay."""
    (size,) = one_row(connection, "SELECT pg_total_relation_size('{schema}.audit')")
    if size * (highest + 1 - low) < LARGE * (highest + 1 - lowest):
        return 1
    if multiprocessing.current_process().daemon:
        return 1  # it may not have any
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores // 2, PROCESSES_MAX), 1)  # the server decompresses for each of them


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """
    What every piece is read from.

    Args:
        elsewhere: Digests of answers that need not be in the database.
        answers: Digests of the sound ones in it; None reads those that the rows refer to.
    """

    url: str
    id: str
    heads: Mapping[int, set[str]]
    elsewhere: Digests
    answers: Digests | None = None

    def piece(self, low: int, end: int) -> tuple[Stretch, int, Findings]:
        """Follow the rows from `low` to before `end`; how many answers were read, and what was found."""
        findings = Findings()
        sound = [0]
        with reading(self.url, self.id) as connection:
            return follow(self._links(connection, low, end, sound, findings), self.heads, findings), sound[0], findings

    def _links(self, connection: Connection, low: int, end: int, sound: list[int], findings: Findings) -> Iterator[Link]:
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
                sound[0] += self._check(wanted, findings)
                wanted, count = {}, 0
        sound[0] += self._check(wanted, findings)

    def _check(self, wanted: Mapping[bytes, int], findings: Findings) -> int:
        """Whether the answers are there that rows refer to; how many were read for it."""
        if not wanted:
            return 0
        answers, read = self.answers, 0
        if answers is None:
            named = sql.SQL("SELECT * FROM {}.audit_evidence WHERE digest IN ({})").format(
                sql.Identifier(SCHEMA), sql.SQL(",").join(sql.Literal(d.decode()) for d in wanted)
            )
            packed, odd = self.sound(named.as_string())
            findings.take(odd)
            answers = Digests(packed)
            read = len(answers)
        lacking = list(answers.missing(wanted))
        for digest in self.elsewhere.missing(lacking) if lacking else ():
            text = f"row {wanted[digest]} rests on the answer {digest.decode()[:12]}, which is missing or was changed"
            findings.add(wanted[digest], "evidence", text)
        return read

    def sound(self, query: str) -> tuple[bytes, Findings]:
        """Digests of the answers of a query that are what their digest says, one after the other."""
        packed, findings = bytearray(), Findings()
        asked = f"SELECT digest, encoding, pg_catalog.convert_to(answer, 'UTF8') FROM ({query}) AS asked"
        with reading(self.url, self.id) as connection:
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
        return bytes(packed), findings


_mine: _Snapshot
"""What a process of the pool reads from: given to it once, since digests may be many."""


def _take(snapshot: _Snapshot) -> None:
    global _mine
    _mine = snapshot


def _piece(low: int, end: int) -> tuple[Stretch, int, Findings]:
    return _mine.piece(low, end)


def _sound(query: str) -> tuple[bytes, Findings]:
    return _mine.sound(query)


@dataclass(slots=True)
class _Work:
    """All pieces, by threads or by processes. What they find goes to `findings` in the order of the pieces, whoever is done first."""

    connection: Connection
    snapshot: _Snapshot
    processes: int
    findings: Findings
    progress: Progress
    sound: int = field(default=0, init=False)

    def answers(self) -> Digests:
        """Digests of all answers that are what their digest says."""
        parts = "0123456789abcdef"
        halves = [f"digest < '{parts[1]}'"]
        halves += [f"digest >= '{a}' AND digest < '{b}'" for a, b in pairwise(parts[1:])]
        queries = [f"SELECT * FROM {SCHEMA}.audit_evidence WHERE {half}" for half in (*halves, f"digest >= '{parts[-1]}'")]
        with self._pool(self.snapshot) as pool:
            run = self.snapshot.sound if self.processes == 1 else _sound
            found = self._done("answers", [pool.submit(run, q) for q in queries], lambda part: len(part[0]) // 32)
        for _, findings in found:
            self.findings.take(findings)
        digests = Digests(b"".join(packed for packed, _ in found))
        self.sound += len(digests)
        return digests

    def stretch(self, low: int, high: int, answers: Digests | None) -> Stretch:
        """The rows from `low` to `high` (both included)."""
        snapshot = replace(self.snapshot, answers=answers)
        with self._pool(snapshot) as pool:
            run = snapshot.piece if self.processes == 1 else _piece
            found = self._done("rows", [pool.submit(run, a, a + PIECE) for a in self._cuts(low, high)], lambda part: part[0].rows)
        whole = Stretch()
        for number, (stretch, sound, findings) in enumerate(found):
            self.findings.take(findings)
            self.sound += sound
            whole = join(whole, stretch, self.findings) if number else stretch
        return whole

    def _cuts(self, low: int, high: int) -> Iterator[int]:
        """Where pieces begin: at rows that are there, as an id that somebody set far beyond the others must not make empty pieces without end."""
        query = f"SELECT min(id) FROM {SCHEMA}.audit WHERE id BETWEEN %s AND %s".encode()
        at: int | None = low
        while (
            at is not None and (row := self.connection.execute(query, (at, high)).fetchone()) is not None and row[0] is not None
        ):
            yield row[0]
            at = row[0] + PIECE

    def _pool(self, snapshot: _Snapshot) -> Executor:
        if self.processes == 1:
            return ThreadPoolExecutor(STREAMS, thread_name_prefix="audit")
        # Forked, a process would hold the sockets of the others.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.processes, mp_context=context, initializer=_take, initargs=(snapshot,))

    def _done(self, what: str, pieces: "Sequence[Future[Part]]", size: Callable[[Part], int]) -> list[Part]:
        try:
            for piece in as_completed(pieces):
                self.progress(what, size(piece.result()))
        except BaseException:
            for piece in pieces:
                piece.cancel()
            raise
        return [piece.result() for piece in pieces]


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


__all__ = ["ChainReport", "Head", "Progress", "head", "reading", "rows", "silent", "verify"]
