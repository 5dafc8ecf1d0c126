"""
One audit row: from an event to columns, to the hash, and back.

Its one rule: what is hashed is what is stored. `event` is ASCII JSON kept verbatim, times are UTC to the microsecond, and the hash covers
every other column, so that a column changed for the eye of a reader breaks the chain as surely as a changed event.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from controller.codec import CodecError, canonical, document, event_from_json, event_to_json
from controller.core.chain import HASHED
from controller.core.decision import Why
from controller.core.rollout import Abandoned, Applied, Approved, Decided, Entry, Event, Opened, Overridden, Rejected

REFERENCE = "sha256:"
"""An answer in a stored event: this and the digest of the raw answer, which is in `audit_evidence`."""


GATHERED = ("before", "traffic", "after")
"""Fields of an event's gathered evidence."""

_REFERENCE = re.compile(r"sha256:[0-9a-f]{64}")


def is_reference(text: str) -> bool:
    """Whether it stands for a text in `audit_evidence`."""
    return _REFERENCE.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A raw answer as it is stored, under the SHA-256 of its bytes."""

    digest: str
    answer: str
    encoding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """An event ready to be stored: its JSON with references in the place of answers, and the answers."""

    event: str
    answers: tuple[Answer, ...]


def pack(event: Event) -> Packed:
    """
    Raises:
        ValueError: the event holds a number that JSON has no word for (NaN, infinity).
    """
    data = event_to_json(event)
    answers: dict[str, Answer] = {}
    for holder, key in _long_texts(data):
        # The case before a look is the one after the last, and was read from that row as a reference. An answer is never one.
        if holder[key] and not (key in GATHERED and is_reference(holder[key])):
            stored = store(holder[key])
            answers[stored.digest] = stored
            holder[key] = REFERENCE + stored.digest
    # In order of their digests, so that two writers with common answers lock them in the same order.
    return Packed(event=_ascii(data), answers=tuple(answers[d] for d in sorted(answers)))


def unpack(event: str, answers: Mapping[str, str] | None = None, *, bare: bool = False) -> Event:
    """
    Args:
        event: As stored.
        bare: Leave out the measurements, most of an event, which no replay needs.
        answers: Raw answers by digest, to put in the place of their references; None leaves the references.

    Raises:
        CodecError: it was written by a release that this one does not know, or by somebody else.
    """
    data = document(event)
    if bare and isinstance(data, dict) and isinstance(observed := data.get("observed"), dict):
        observed["measurements"] = []
    if answers:
        for holder, key in _referring(data):
            holder[key] = answers.get(holder[key].removeprefix(REFERENCE), holder[key])
    return event_from_json(data)


def references(event: str) -> tuple[str, ...]:
    """Digests of the texts that a stored event refers to. Raises CodecError."""
    found = (holder[key] for holder, key in _referring(document(event)))
    return tuple({a.removeprefix(REFERENCE): None for a in found if a.startswith(REFERENCE)})


def _referring(data: Any) -> list[tuple[dict[str, Any], str]]:
    """As `_long_texts`, of an event that anybody may have written. Raises CodecError."""
    try:
        found = list(_long_texts(data))
        odd = [key for holder, key in found if not isinstance(holder[key], str)]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise CodecError(f"a stored event does not hold its evidence where it should: {exc}") from exc
    if odd:
        raise CodecError(f"a stored event has no text where its evidence should be: {odd[0]}")
    return found


def raw(stored: Answer) -> bytes:
    """The bytes of an answer. Raises ValueError when they cannot be read."""
    return b64decode(stored.answer, validate=True) if stored.encoding == "base64" else stored.answer.encode()


def text_of(stored: Answer) -> str:
    return raw(stored).decode("utf-8", "surrogatepass")


def columns(entry: Entry, plan_digest: str, event: str, decided: Mapping[Any, Any] | None) -> dict[str, Any]:
    """
    The columns that an auditor reads without knowing the event.

    Args:
        entry: The row.
        plan_digest: Of the rollout's plan.
        event: The packed event.
        decided: For Applied and Abandoned: the columns of the decision that they settle.
    """
    row: dict[str, Any] = dict.fromkeys(READABLE)
    match entry.event:
        case Decided() as d:
            row |= {
                "decision_id": d.decision_id,
                "action": d.decision.kind,
                "source": d.source,
                "why": d.decision.why.value,
                "reason": d.decision.text,
                "verdicts": _ascii({r.gate: r.verdict.value for r in d.observed.results}),
                "reasons": _ascii({r.gate: r.reason for r in d.observed.results}),
                "weight_before": d.weights_before.live,
                "weight_after": d.weights_after.live,
                "shadow_weight_before": d.weights_before.shadow,
                "shadow_weight_after": d.weights_after.shadow,
                "flag_version_before": d.flag_version_before,
            }
        case Applied() as a:
            row |= _of_decision(decided) | {
                "decision_id": a.decision_id,
                "weight_after": a.weights.live,
                "shadow_weight_after": a.weights.shadow,
                "flag_version_after": a.flag_version,
            }
        case Abandoned() as a:
            row |= _of_decision(decided) | {"decision_id": a.decision_id, "reason": a.text, "flag_version_after": a.flag_version}
        case Rejected() as r:
            row |= {"source": "person", "why": Why.REJECTED.value, "reason": r.reason}
        case Overridden() as o:
            said = f"{', '.join(o.checks)} ({o.ticket}: {o.reason})"
            row |= {"source": "person", "why": Why.OVERRIDDEN.value, "reason": said}
        case Approved() | Opened():
            pass
    # What a person typed may hold characters that a text column refuses; the event keeps it as it was.
    row = {k: _storable(v) for k, v in row.items()}
    return row | {
        "rollout_id": entry.rollout_id,
        "seq": entry.seq,
        "at": entry.at,
        "kind": entry.event.kind,
        "actor": _storable(entry.actor),
        "plan_digest": plan_digest,
        "event": event,
    }


READABLE = (
    "decision_id",
    "action",
    "source",
    "why",
    "reason",
    "verdicts",
    "reasons",
    "weight_before",
    "weight_after",
    "shadow_weight_before",
    "shadow_weight_after",
    "flag_version_before",
    "flag_version_after",
)


def row_hash(prev_hash: str, row: Mapping[str, Any]) -> str:
    """
    Args:
        prev_hash: Of the row before, hexadecimal.
        row: At least the columns of HASHED.

    Returns:
        Hexadecimal SHA-256 of `prev_hash` followed by the row as canonical JSON (sorted keys, no spaces, UTF-8), in which `at` is
        ISO 8601 in UTC with six decimals and the JSON columns are strings.
    """
    document = {name: row[name] for name in HASHED}
    at: datetime = row["at"]
    document["at"] = at.astimezone(UTC).isoformat(timespec="microseconds")
    return sha256(prev_hash.encode() + canonical(document)).hexdigest()


def _long_texts(data: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where an event in JSON keeps long texts (raw answers, evidence gathered): the object and its key, to read or to change in place."""
    observed = data.get("observed") if isinstance(data, dict) else None
    if not isinstance(observed, dict):
        return
    for _gate, measurement in observed.get("measurements", ()):
        for evidence in measurement.get("evidence", ()):
            yield evidence, "answer"
    if (gathered := observed.get("gathered")) is not None:
        for key in GATHERED:
            yield gathered, key


def store(answer: str) -> Answer:
    data = answer.encode("utf-8", "surrogatepass")
    digest = sha256(data).hexdigest()
    try:
        plain = data.decode()
    except UnicodeDecodeError:
        plain = "\0"
    if "\0" in plain:
        return Answer(digest=digest, answer=b64encode(data).decode(), encoding="base64")
    return Answer(digest=digest, answer=plain, encoding="utf8")


def _of_decision(decided: Mapping[Any, Any] | None) -> dict[str, Any]:
    if decided is None:
        return {}
    kept = ("action", "source", "why", "reason", "weight_before", "shadow_weight_before", "flag_version_before")
    return {name: decided[name] for name in kept}


def _storable(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _ascii(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
