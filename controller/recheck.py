"""
The log, lived through once more: every row must follow from the rows before it and from what it holds itself.

It stands beside `tick`, which wrote the rows, and asks `core.recompute` for the verdicts and decisions. Its one rule: what a row claims about
itself is compared with what comes out of it, and every difference is told; nothing is repaired.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, assert_never

from controller.codec import CodecError, plan_digest, readings_from_text
from controller.core.gates import GateResult
from controller.core.question import step_digest
from controller.core.recompute import Recomputed, recompute
from controller.core.rollout import (
    Abandoned,
    Applied,
    Approved,
    Decided,
    Entry,
    LogError,
    Moving,
    Opened,
    Overridden,
    Rejected,
    Rollout,
    moves,
    replay,
    step,
)
from controller.ports import AuditLog, TextLost

COMPUTED = "computed"
KINDS = {
    COMPUTED: "verdicts, evidence and decision computed again",
    "by_person": "not a computed decision: a person's; its effect was computed again",
    "votes": "not a computed decision: approvals and rejections; the question was computed again",
    "opened": "not a computed decision: the plan; its digest was computed again",
    "settled": "not a computed decision: what became of one; compared with it",
    "incomplete": "written by an earlier release without what the decision was made from",
}
"""What a row can be to a recheck, and in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """
    Args:
        what: ``state``, ``decision``, ``weights``, ``evidence``, ``plan``, ``question``, a column, or a gate.
        stored: What the row says.
        again: What comes out of it.
    """

    rollout_id: str
    seq: int
    what: str
    stored: str
    again: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rechecked:
    """One row: what kind it is (of `KINDS`), and where it disagrees with itself."""

    rollout_id: str
    seq: int
    kind: str
    differences: tuple[Difference, ...] = ()


def recheck(rollout_id: str, audit: AuditLog) -> Iterator[Rechecked]:
    """
    Live through a rollout again.

    Args:
        rollout_id: Which.
        audit: The log; rows are read with their texts, one at a time.

    Yields:
        Each row, until one does not fit the state before it: no row after that means anything.

    Raises:
        UnknownRollout, AuditUnavailable: it cannot be read.
    """
    before: Rollout | None = None
    for bare in audit.entries(rollout_id):
        entry, lost = bare, ""
        if isinstance(bare.event, Decided):
            try:
                entry = audit.entry(rollout_id, bare.seq)
            except (ValueError, TextLost) as exc:
                lost = f"the row's texts cannot be read: {exc}"
        try:
            after = replay([bare]) if before is None else step(before, bare)
        except LogError as exc:
            yield Rechecked(
                rollout_id=rollout_id,
                seq=bare.seq,
                kind=_kind(entry, None),
                differences=(_differs(entry, "state", bare.event.kind, str(exc)),),
            )
            return
        try:
            if lost:
                raise ValueError(lost)
            kind, differences = _compared(before, entry)
        except (CodecError, ValueError, KeyError, TypeError, AssertionError) as exc:
            # Texts of an edited row can be anything; that it cannot be computed is the finding.
            kind, differences = COMPUTED, [_differs(entry, "evidence", "", f"cannot be computed: {type(exc).__name__}: {exc}")]
        yield Rechecked(rollout_id=rollout_id, seq=bare.seq, kind=kind, differences=tuple(differences))
        before = after


def recheck_all(rollout_ids: Sequence[str], audit: AuditLog) -> tuple[Counter[str], list[Difference]]:
    """How many rows of each kind, and all differences. Raises as `recheck`."""
    counts: Counter[str] = Counter()
    differences: list[Difference] = []
    for rollout_id in rollout_ids:
        for row in recheck(rollout_id, audit):
            counts[row.kind] += 1
            differences += row.differences
    return counts, differences


def _compared(before: Rollout | None, entry: Entry) -> tuple[str, list[Difference]]:
    match entry.event:
        case Opened() as event:
            return _kind(entry, None), list(_where(entry, "plan", event.plan_digest, plan_digest(event.plan)))
        case Decided() as event:
            assert before is not None, "the first row opens"
            gathered = event.observed.gathered
            again = recompute(before, entry, () if gathered is None else readings_from_text(gathered.traffic))
            return _kind(entry, again), [
                *_of_effect(before, entry, event),
                *(_of_decision(before, entry, event, again) if again else ()),
            ]
        case Applied(weights=weights):
            moving = None if before is None else before.state
            asked = moving.weights if isinstance(moving, Moving) else None
            return _kind(entry, None), list(_where(entry, "weights", weights, asked))
        case Approved(digest=digest) | Rejected(digest=digest) | Overridden(digest=digest):
            # "" is of a release before answers named their question.
            assert before is not None, "the first row opens"
            return _kind(entry, None), list(_where(entry, "question", digest, step_digest(before) if digest else ""))
        case Abandoned():
            return _kind(entry, None), []
        case _:
            assert_never(entry.event)


def _kind(entry: Entry, again: Recomputed | None) -> str:
    match entry.event:
        case Opened():
            return "opened"
        case Approved() | Rejected():
            return "votes"
        case Overridden():
            return "by_person"
        case Applied() | Abandoned():
            return "settled"
        case Decided(source="person"):
            return "by_person"
        case Decided():
            return "incomplete" if again is not None and again.decision is None else COMPUTED
        case _:
            assert_never(entry.event)


def _of_effect(before: Rollout, entry: Entry, event: Decided) -> Iterator[Difference]:
    """What every decision says of its effect, a person's as well."""
    yield from _where(entry, "decision id", event.decision_id, f"{entry.rollout_id}.{entry.seq}.{event.decision.kind}")
    asked = moves(before.plan, before.settled, event.decision)
    yield from _where(entry, "weights", event.weights_after, event.weights_before if asked is None else asked)


def _of_decision(before: Rollout, entry: Entry, event: Decided, again: Recomputed) -> Iterator[Difference]:
    observed, gathered = event.observed, event.observed.gathered
    if observed.at is None:
        return
    stored, computed = ({r.gate: r for r in results} for results in (observed.results, again.results))
    for gate in dict.fromkeys((*stored, *computed)):
        yield from _of_result(entry, gate, stored.get(gate), computed.get(gate))
    if again.decision is not None:
        yield from _where(entry, "decision", event.decision, again.decision)
    if gathered is not None:
        if again.evidence != gathered.after:
            yield _differs(entry, "evidence", f"after {_digest(gathered.after)[:19]}", f"{_digest(again.evidence)[:19]}")
        # "" where the recorded case could not be read by who looked: the row's own words say so.
        if gathered.before and before.evidence not in (gathered.before, _digest(gathered.before)):
            yield _differs(
                entry, "evidence", f"before {_digest(gathered.before)[:19]}", f"the last row left {before.evidence[:19]}"
            )


def _of_result(entry: Entry, gate: str, stored: GateResult | None, again: GateResult | None) -> Iterator[Difference]:
    if stored == again:
        return
    if stored is None or again is None:
        yield from _where(entry, gate, stored, again)
        return
    odd = [f.name for f in fields(GateResult) if getattr(stored, f.name) != getattr(again, f.name)]
    said, out = (", ".join(f"{n}={_word(getattr(r, n))}" for n in odd) for r in (stored, again))
    yield _differs(entry, gate, said, out)


def _where(entry: Entry, what: str, stored: Any, again: Any) -> Iterator[Difference]:
    if stored != again:
        yield _differs(entry, what, _word(stored), _word(again))


def _differs(entry: Entry, what: str, stored: str, again: str) -> Difference:
    return Difference(rollout_id=entry.rollout_id, seq=entry.seq, what=what, stored=stored, again=again)


def _word(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _digest(text: str) -> str:
    return "sha256:" + sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
