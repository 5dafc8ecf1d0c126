"""
The hash chain of the audit log, wherever its rows lie: in the database or in an export.

Rows come in as links, computed hash included; what comes out is where they do not fit. Its one rule: a stretch of the chain can be followed by
itself and joined to the stretch before it, so that a log can be read from several places at once, or from a known head on.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

GENESIS = "0" * 64
"""`prev_hash` of the first row."""

HEAD_NOTICE = "audit:head"
"""Stands for a rollout's id in notices of published heads; no rollout can have it."""

HASHED = (
    "id", "rollout_id", "seq", "at", "kind", "actor", "plan_digest",
    "decision_id", "action", "source", "why", "reason", "verdicts", "reasons", "weight_before", "weight_after", "shadow_weight_before",
    "shadow_weight_after", "flag_version_before", "flag_version_after",
    "event",
)  # fmt: skip
"""Every column but the two hashes."""

NUMBERS = frozenset(
    {"id", "seq", "weight_before", "weight_after", "shadow_weight_before", "shadow_weight_after", "flag_version_before", "flag_version_after"}
)  # fmt: skip
"""Columns that hold whole numbers; all others hold text."""

PROBLEMS_SHOWN = 100
"""The first is what matters; a cut chain would otherwise fill the screen."""


_KEYS = tuple(start + key for key in (b'"answer', b'"before', b'"traffic', b'"after') for start in (b"{", b","))


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last row of a chain: who knows it knows everything before it."""

    id: int
    hash: str
    at: datetime | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.id}:{self.hash}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """
    Args:
        audit_id: The row where it shows; None where no row is known for it.
        kind: ``gap``, ``fork``, ``hash``, ``sequence``, ``evidence``, ``head``, ``signature``, ``orphan``, ``history``, ``rights`` or ``file``.
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
        heads: How many known heads were looked for.
        filed: Answers that were checked in files and are no longer in the database.
        unchecked: Answers that were moved to files which were not at hand.
        head: The last row; None for an empty log.
        problems: The first ones found, in the order of their rows.
        problem_count: All of them.
    """

    rows: int
    rollouts: int
    answers: int
    heads: int = 0
    filed: int = 0
    unchecked: int = 0
    head: Head | None
    problems: tuple[Problem, ...]
    problem_count: int

    @property
    def ok(self) -> bool:
        return self.problem_count == 0


@dataclass(slots=True)
class Findings:
    """Problems as they are found: all are counted, the first are kept."""

    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, audit_id: int | None, kind: str, text: str) -> None:
        self.count += 1
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append(Problem(audit_id=audit_id, kind=kind, text=text))

    def take(self, other: "Findings") -> None:
        self.count += other.count
        self.problems = (self.problems + other.problems)[:PROBLEMS_SHOWN]


Link = tuple[int, int, str, str, str, str]
"""A row as the chain sees it: id, seq, rollout_id, prev_hash, hash as stored, hash as computed. A tuple, as there are very many."""


@dataclass(slots=True)
class Stretch:
    """
    Consecutive rows that were followed.

    Args:
        first, last: Ids; 0 before any row.
        prev_hash: That the first row names.
        hash: Of the last row, as stored.
        rows: How many.
        begins, ends: By rollout, the first and the last `seq` in it.
    """

    first: int = 0
    last: int = 0
    prev_hash: str = GENESIS
    hash: str = GENESIS
    rows: int = 0
    begins: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)


def follow(links: Iterable[Link], heads: Mapping[int, set[str]], findings: Findings, *, sparse: bool = False) -> Stretch:
    """
    Follow consecutive rows.

    Args:
        links: In order of their ids.
        heads: Hashes that rows are known to have, by id.
        findings: Where problems go.
        sparse: Rows may be missing between these, as in an export of some.

    Returns:
        What is needed to join it to the stretch before it.
    """
    found = Stretch()
    begins, ends = found.begins, found.ends
    last_id, last_hash, rows = 0, GENESIS, 0
    for audit_id, seq, rollout_id, prev_hash, stored, computed in links:
        if not rows:
            found.first, found.prev_hash = audit_id, prev_hash
        elif audit_id != last_id + 1:
            if not sparse or audit_id <= last_id:
                findings.add(audit_id, "gap", _gap(audit_id, last_id))
        elif prev_hash != last_hash:
            findings.add(audit_id, "fork", _fork(audit_id, prev_hash, last_hash))
        if computed != stored:
            text = f"row {audit_id} ({rollout_id}/{seq}) hashes to {computed[:12]}, stored is {stored[:12]}: it was changed"
            findings.add(audit_id, "hash", text)
        before = ends.get(rollout_id)
        if before is None:
            begins[rollout_id] = seq
        elif seq != before + 1 and not (sparse and seq > before):
            findings.add(audit_id, "sequence", _sequence(rollout_id, seq, before))
        ends[rollout_id] = seq
        if audit_id in heads and heads[audit_id] != {stored}:
            findings.add(audit_id, "head", f"row {audit_id} has hash {stored[:12]}, another one was published")
        last_id, last_hash, rows = audit_id, stored, rows + 1
    found.last, found.hash, found.rows = last_id, last_hash, rows
    return found


def join(before: Stretch, after: Stretch, findings: Findings) -> Stretch:
    """
    Two stretches as one; what does not fit between them goes to `findings`.

    Args:
        before: What comes first; an empty one is the beginning of the log. It is used up: what is returned grows out of it.
        after: What follows it.
        findings: Where problems go.
    """
    if not after.rows:
        return before
    if after.first != before.last + 1:
        findings.add(after.first, "gap", _gap(after.first, before.last))
    elif after.prev_hash != before.hash:
        findings.add(after.first, "fork", _fork(after.first, after.prev_hash, before.hash))
    for rollout_id, seq in after.begins.items():
        ended = before.ends.get(rollout_id, 0)
        if seq != ended + 1:
            findings.add(None, "sequence", _sequence(rollout_id, seq, ended))
        before.begins.setdefault(rollout_id, seq)
    before.ends.update(after.ends)
    return Stretch(
        first=before.first or after.first,
        last=after.last,
        prev_hash=before.prev_hash if before.rows else after.prev_hash,
        hash=after.hash,
        rows=before.rows + after.rows,
        begins=before.begins,
        ends=before.ends,
    )


def absent(heads: Mapping[int, set[str]], last: int, findings: Findings) -> None:
    """Heads that were published for rows beyond the last one."""
    for audit_id, published in sorted(heads.items()):
        if audit_id > last:
            known = ", ".join(sorted(h[:12] for h in published))
            text = f"row {audit_id} was published with hash {known} and is not there; the log ends at {last}"
            findings.add(audit_id, "head", text)


def known_heads(heads: Iterable[Head]) -> dict[int, set[str]]:
    """Heads by id, as `follow` takes them."""
    found: dict[int, set[str]] = {}
    for head in heads:
        found.setdefault(head.id, set()).add(head.hash)
    return found


def report(found: Stretch, findings: Findings, *, answers: int, heads: int, filed: int = 0, unchecked: int = 0) -> ChainReport:
    """The end of following a chain."""
    ordered = sorted(findings.problems, key=lambda p: (p.audit_id is None, p.audit_id or 0))
    return ChainReport(
        rows=found.rows,
        rollouts=len(found.ends),
        answers=answers,
        heads=heads,
        filed=filed,
        unchecked=unchecked,
        head=None if not found.rows else Head(id=found.last, hash=found.hash),
        problems=tuple(ordered),
        problem_count=findings.count,
    )


def event_in_json(event: bytes) -> bytes:
    """A stored event as the JSON string that it is in the hashed document."""
    if event.isascii() and not (b"\n" in event or b"\t" in event or b"\r" in event):
        # JSON has no other control characters; this is several times as fast as the encoder.
        return b'"' + (event.replace(b"\\", b"\\\\") if b"\\" in event else event).replace(b'"', b'\\"') + b'"'
    return json.dumps(event.decode(), ensure_ascii=False).encode()


def references(event: bytes) -> Iterator[bytes]:
    """
    Digests, hexadecimal, that a stored event refers to.

    A quote inside a JSON string is escaped, so that this finds values of the event and nothing that somebody typed.
    """
    before, *pieces = event.split(b'":"sha256:')
    for piece in pieces:
        if before.endswith(_KEYS):
            yield piece[:64]
        before = piece


def _gap(audit_id: int, last_id: int) -> str:
    return f"row {audit_id} follows row {last_id}: rows are missing between them"


def _fork(audit_id: int, prev_hash: str, last_hash: str) -> str:
    return f"row {audit_id} names {prev_hash[:12]} as the row before it, which is {last_hash[:12]}"


def _sequence(rollout_id: str, seq: int, before: int) -> str:
    return f"row {rollout_id}/{seq} follows {rollout_id}/{before}"
