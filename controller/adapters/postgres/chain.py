"""
Whether the audit log is what was written: the hash chain, row by row, and every raw answer against its digest.

It reads as a stream, in one snapshot of the database, and with the rights of a reader. Its one rule: it trusts nothing that it can compute.
What a chain cannot show is that its end was cut off; for that, give it heads that were published elsewhere.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import psycopg
from psycopg.rows import dict_row

from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.rows import GENESIS, HASHED, Answer, raw, row_hash
from controller.adapters.postgres.tables import SCHEMA
from controller.ports import AuditUnavailable

PROBLEMS_SHOWN = 100
"""The first is what matters; a cut chain would otherwise fill the screen."""

STATEMENT_TIMEOUT = "1h"

_BATCH = 2000

# A quote inside a JSON string is escaped, so that this matches keys of the event and nothing that somebody typed.
_REFERENCES = re.compile(r'"(?:answer|before|traffic|after)":"sha256:([0-9a-f]{64})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last row of a chain: who knows it knows everything before it."""

    id: int
    hash: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """
    Args:
        audit_id: The row where it shows; None for an answer that no row is known for.
        kind: ``gap``, ``fork``, ``hash``, ``sequence``, ``evidence`` or ``head``.
        text: What was expected and what was found.
    """

    audit_id: int | None
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """
    Args:
        rows, rollouts, answers: How much was checked.
        head: The last row; None for an empty log.
        problems: The first ones found.
        problem_count: All of them.
    """

    rows: int
    rollouts: int
    answers: int
    head: Head | None
    problems: tuple[Problem, ...]
    problem_count: int

    @property
    def ok(self) -> bool:
        return self.problem_count == 0


@dataclass(slots=True)
class _Findings:
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, audit_id: int | None, kind: str, text: str) -> None:
        self.count += 1
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append(Problem(audit_id=audit_id, kind=kind, text=text))


def verify(url: str, heads: Sequence[Head] = ()) -> ChainReport:
    """
    Check the whole audit log.

    Args:
        url: Of any role that may read it.
        heads: Heads known from elsewhere, which the log must contain.

    Raises:
        BadDatabaseUrl: the URL is not one.
        AuditUnavailable: the log cannot be read to its end; nothing is said about it then.
    """
    with translated(AuditUnavailable, "verifying the audit log"), connect(url, autocommit=False) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'".encode())
        connection.execute(b"SET LOCAL idle_in_transaction_session_timeout = 0")
        findings = _Findings()
        known = set(_sound_answers(connection, findings))
        return _follow(connection, heads, known, findings)


def head(url: str) -> Head | None:
    """The last row now, to publish it; None for an empty log. Raises BadDatabaseUrl, AuditUnavailable."""
    with translated(AuditUnavailable, "reading the head of the audit log"), connect(url) as connection:
        row = connection.execute(f"SELECT id, hash, at FROM {SCHEMA}.audit ORDER BY id DESC LIMIT 1".encode()).fetchone()
    return None if row is None else Head(id=row[0], hash=row[1], at=row[2])


def _follow(connection: "psycopg.Connection[Any]", heads: Sequence[Head], known: set[bytes], findings: _Findings) -> ChainReport:
    expected = {h.id: h.hash for h in heads}
    last_id, last_hash, last_at, rows = 0, GENESIS, None, 0
    sequences: dict[str, int] = {}
    for row in _rows(connection):
        rows += 1
        audit_id = row["id"]
        if audit_id != last_id + 1:
            findings.add(audit_id, "gap", f"row {audit_id} follows row {last_id}: rows are missing between them")
        elif row["prev_hash"] != last_hash:
            findings.add(
                audit_id, "fork", f"row {audit_id} names {row['prev_hash'][:12]} as the row before it, which is {last_hash[:12]}"
            )
        computed = row_hash(row["prev_hash"], row)
        if computed != row["hash"]:
            text = f"row {audit_id} ({row['rollout_id']}/{row['seq']}) hashes to {computed[:12]}, stored is {row['hash'][:12]}: it was changed"
            findings.add(audit_id, "hash", text)
        before = sequences.get(row["rollout_id"], 0)
        if row["seq"] != before + 1:
            findings.add(audit_id, "sequence", f"row {row['rollout_id']}/{row['seq']} follows {row['rollout_id']}/{before}")
        sequences[row["rollout_id"]] = row["seq"]
        for digest in set(_REFERENCES.findall(row["event"])):
            if bytes.fromhex(digest) not in known:
                findings.add(
                    audit_id, "evidence", f"row {audit_id} rests on the answer {digest[:12]}, which is missing or was changed"
                )
        if expected.pop(audit_id, row["hash"]) != row["hash"]:
            findings.add(audit_id, "head", f"row {audit_id} has hash {row['hash'][:12]}, another one was published")
        last_id, last_hash, last_at = audit_id, row["hash"], row["at"]
    for audit_id, published in sorted(expected.items()):
        findings.add(
            audit_id,
            "head",
            f"row {audit_id} was published with hash {published[:12]} and is not there; the log ends at {last_id}",
        )
    return ChainReport(
        rows=rows,
        rollouts=len(sequences),
        answers=len(known),
        head=None if rows == 0 else Head(id=last_id, hash=last_hash, at=last_at),
        problems=tuple(findings.problems),
        problem_count=findings.count,
    )


def _rows(connection: "psycopg.Connection[Any]") -> Iterator[Mapping[str, Any]]:
    as_text = {"verdicts", "reasons", "event"}
    selected = ", ".join(f"{c}::text AS {c}" if c in as_text else c for c in (*HASHED, "prev_hash", "hash"))
    with connection.cursor("penstock_chain", row_factory=dict_row) as cursor:
        cursor.itersize = _BATCH
        yield from cursor.execute(f"SELECT {selected} FROM {SCHEMA}.audit ORDER BY id".encode())


def _sound_answers(connection: "psycopg.Connection[Any]", findings: _Findings) -> Iterator[bytes]:
    """Digests of the answers that are what their digest says."""
    with connection.cursor("penstock_answers") as cursor:
        cursor.itersize = _BATCH
        for digest, answer, encoding in cursor.execute(f"SELECT digest, answer, encoding FROM {SCHEMA}.audit_evidence".encode()):
            try:
                found = sha256(raw(Answer(digest=digest, answer=answer, encoding=encoding)))
            except ValueError:
                findings.add(None, "evidence", f"the answer {digest[:12]} cannot be decoded: it was changed")
                continue
            if found.hexdigest() == digest:
                yield found.digest()
            else:
                findings.add(None, "evidence", f"the answer {digest[:12]} hashes to {found.hexdigest()[:12]}: it was changed")
