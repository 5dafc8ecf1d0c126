"""
Flags as JSON: one codec for the store's HTTP door, the routers and the audit log.

The protocol, below a base address such as ``http://127.0.0.1:8420/flags/v1``:

* ``GET /snapshot?environment=production`` answers ``{"schema", "environment", "revision", "flags": [...]}`` with a strong
  ``ETag: "<environment>:<revision>"``; ``If-None-Match`` with it answers 304. With ``&after=<revision>&wait=<seconds>`` the answer
  waits until the environment is past that revision (long poll), and is 304 when the wait ends without a change.
* ``GET /events?environment=production`` is a stream of server-sent events: first ``event: snapshot`` with the whole snapshot, then
  one ``event: flag`` for each write with that flag; ``id`` is the revision, comments keep the line alive.

Its one rule: unknown fields are ignored and missing required ones refused, so that an older reader survives a newer store but a
broken answer never becomes a flag.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from flagspec.flag import FlagSpecError, RouteFlag, Variant

SNAPSHOT_SCHEMA = "penstock.flags/v1"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All flags of one environment at one revision."""

    environment: str
    revision: int
    flags: tuple[RouteFlag, ...]

    @property
    def etag(self) -> str:
        return f'"{self.environment}:{self.revision}"'

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SNAPSHOT_SCHEMA,
            "environment": self.environment,
            "revision": self.revision,
            "flags": [flag_to_json(f) for f in self.flags],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Snapshot":
        """Raises FlagSpecError when the data is not a snapshot of this schema."""
        if not isinstance(data, Mapping) or data.get("schema") != SNAPSHOT_SCHEMA:
            raise FlagSpecError(f"not a snapshot of schema {SNAPSHOT_SCHEMA!r}: {str(data)[:80]!r}")
        flags = data.get("flags")
        if not isinstance(flags, list):
            raise FlagSpecError("flags: a snapshot needs a list")
        return cls(
            environment=_need(data, "environment", str),
            revision=_need(data, "revision", int),
            flags=tuple(flag_from_json(f) for f in flags),
        )


def flag_to_json(flag: RouteFlag) -> dict[str, Any]:
    return {
        "environment": flag.environment,
        "key": flag.key,
        "version": flag.version,
        "revision": flag.revision,
        "killed": flag.killed,
        "weight": flag.weight,
        "shadow_weight": flag.shadow_weight,
        "salt": flag.salt,
        "unit": flag.unit,
        "control": {"model": flag.control.model, "params": dict(flag.control.params)},
        "candidate": {"model": flag.candidate.model, "params": dict(flag.candidate.params)},
        "decision_id": flag.decision_id,
        "lease": None if flag.lease is None else flag.lease.isoformat(),
    }


def flag_from_json(data: Any) -> RouteFlag:
    """Raises FlagSpecError, naming the field, when the data is not a flag."""
    if not isinstance(data, Mapping):
        raise FlagSpecError(f"a flag is an object, got {str(data)[:80]!r}")
    lease = data.get("lease")
    try:
        ends = None if lease is None else datetime.fromisoformat(lease)
    except (TypeError, ValueError) as exc:
        raise FlagSpecError(f"lease: {lease!r} is not an ISO 8601 time") from exc
    return RouteFlag(
        environment=_need(data, "environment", str),
        key=_need(data, "key", str),
        version=_need(data, "version", int),
        revision=_need(data, "revision", int),
        killed=_need(data, "killed", bool),
        weight=_need(data, "weight", int),
        shadow_weight=_need(data, "shadow_weight", int),
        salt=_need(data, "salt", str),
        unit=_need(data, "unit", str),
        control=_variant(data, "control"),
        candidate=_variant(data, "candidate"),
        decision_id=_need(data, "decision_id", str),
        lease=ends,
    )


def _variant(data: Mapping[str, Any], name: str) -> Variant:
    value = data.get(name)
    if not isinstance(value, Mapping):
        raise FlagSpecError(f"{name}: a flag needs an object with a model, got {value!r}")
    params = value.get("params", {})
    if not isinstance(params, Mapping):
        raise FlagSpecError(f"{name}.params: not an object: {params!r}")
    return Variant(model=_need(value, "model", str), params=dict(params))


def _need(data: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = data.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FlagSpecError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value
