"""
Events, notices and plans as JSON, for everything that stores or sends them.

Its one rule: what was written stays readable. Each stored document carries its version; a reader of a newer version keeps the decoders
of all older ones.
"""

import json
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from controller.core.notice import Notice
from controller.core.plan import Plan
from controller.core.rollout import Event
from controller.core.traffic import Reading

EVENT_VERSION = 1
READINGS_VERSION = 1


class CodecError(ValueError):
    """A stored document that cannot be read; names the version and the first field that does not fit."""


@cache
def _events() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="kind")])


@cache
def _notices() -> TypeAdapter[Notice]:
    return TypeAdapter(Notice)


@cache
def _readings() -> TypeAdapter[tuple[Reading, ...]]:
    return TypeAdapter(tuple[Reading, ...])


@cache
def _plans() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


def document(text: str) -> Any:
    """JSON that was stored. Raises CodecError, whatever is wrong with it: somebody may have edited it, with more digits or depth than can be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CodecError(f"stored JSON cannot be read: {exc}") from exc


def event_to_json(event: Event) -> dict[str, Any]:
    """``{"v": 1, "kind": ..., ...}`` of plain JSON values."""
    return {"v": EVENT_VERSION, **_events().dump_python(event, mode="json")}


def event_from_json(data: Any) -> Event:
    """Raises CodecError."""
    version = data.get("v") if isinstance(data, dict) else None
    if version != EVENT_VERSION:
        raise CodecError(f"an event of version {version!r} was stored; this release reads version {EVENT_VERSION}")
    try:
        return _events().validate_python({k: v for k, v in data.items() if k != "v"})
    except (ValidationError, RecursionError) as exc:
        raise CodecError(f"a stored event of kind {data.get('kind')!r} cannot be read: {exc}") from exc


def notice_to_json(notice: Notice) -> dict[str, Any]:
    return {"v": EVENT_VERSION, **_notices().dump_python(notice, mode="json")}


def notice_from_json(data: Any) -> Notice:
    """Raises CodecError."""
    if not isinstance(data, dict):
        raise CodecError(f"a stored notice is no object but {type(data).__name__}")
    try:
        return _notices().validate_python({k: v for k, v in data.items() if k != "v"})
    except (ValidationError, RecursionError) as exc:
        raise CodecError(f"a stored notice cannot be read: {exc}") from exc


def plan_to_json(plan: Plan) -> dict[str, Any]:
    return dict(_plans().dump_python(plan, mode="json"))


def plan_digest(plan: Plan) -> str:
    """SHA-256, hexadecimal, of the plan as canonical JSON: sorted keys, no spaces."""
    return digest(plan_to_json(plan))


def digest(data: Any) -> str:
    return sha256(canonical(data)).hexdigest()


def canonical(data: Any) -> bytes:
    """The one byte form that digests are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def readings_to_text(readings: Sequence[Reading]) -> str:
    """What a row gathered, as `readings_from_text` reads it."""
    return canonical({"v": READINGS_VERSION, "readings": _readings().dump_python(tuple(readings), mode="json")}).decode()


def readings_from_text(text: str) -> tuple[Reading, ...]:
    """Raises CodecError."""
    try:
        data = json.loads(text)
        if data["v"] != READINGS_VERSION:
            raise CodecError(f"traffic of version {data['v']!r} was stored; this release reads version {READINGS_VERSION}")
        return _readings().validate_python(data["readings"])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise CodecError(f"stored traffic cannot be read: {exc}") from exc
