"""
The flag itself, and the one function that reads it: which model answers this request, and whether a copy goes to the candidate.

Its one rule: whenever anything is unclear (no unit, a kill, a lapsed lease), the control answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flagspec.bucket import SHADOW_SUFFIX, WEIGHT_MAX, in_share


class FlagSpecError(ValueError):
    """A flag that breaks the contract; the message names the field and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """
    One side of a flag.

    Args:
        model: The model's name, as clients and the router's model table write it.
        params: Request parameters this side adds (for example ``{"reasoning_effort": "low"}``).
    """

    model: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            raise FlagSpecError("model: a variant needs the name of a model, got ''")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFlag:
    """
    What every router needs to know about one flag in one environment.

    Args:
        environment: Where the flag applies (``production``).
        key: The flag's name (``chat-model``).
        version: Counts the writes of this flag, from 1; compare-and-set is on it.
        revision: Counts the writes of all flags of the environment; readers order what they see by it.
        killed: Latched: everybody gets the control, whatever the weights say.
        weight: Share of units that the candidate answers, 0..100000 thousandths of a percent.
        shadow_weight: Share of units whose requests are mirrored to the candidate, on the same scale.
        salt: Frozen while weight > 0.
        unit: What is bucketed: user, tenant, session or request.
        control: Who answers otherwise.
        candidate: The model under evaluation.
        decision_id: The decision that wrote this version; after a crash it tells whether a write landed.
        lease: Until when the weights hold (aware UTC); afterwards readers fall back to the control. None: no end.
    """

    environment: str
    key: str
    version: int
    revision: int
    control: Variant
    candidate: Variant
    salt: str
    unit: str = "user"
    killed: bool = False
    weight: int = 0
    shadow_weight: int = 0
    decision_id: str = ""
    lease: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "shadow_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= WEIGHT_MAX:
                raise FlagSpecError(f"{name}: {value!r} of flag {self.key!r} is not a whole number within 0..{WEIGHT_MAX}")
        if not self.environment or not self.key or not self.salt:
            raise FlagSpecError(
                f"environment, key and salt must not be empty, got {self.environment!r}, {self.key!r}, {self.salt!r}"
            )
        if self.version < 0 or self.revision < 0:
            raise FlagSpecError(f"version and revision of flag {self.key!r} count from 0, got {self.version} and {self.revision}")
        if self.lease is not None and self.lease.tzinfo is None:
            raise FlagSpecError(f"lease: {self.lease.isoformat()} of flag {self.key!r} has no time zone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """
    What a flag says about one request.

    Args:
        arm: ``baseline`` or ``candidate``: who answers the user.
        variant: The side that answers.
        mirror: The candidate if a copy of the request goes to it as well, else None.
        reason: ``split``, ``no_unit``, ``killed`` or ``lease_lapsed``.
    """

    arm: str
    variant: Variant
    mirror: Variant | None
    reason: str


def assign(flag: RouteFlag, unit: str | None, now: datetime) -> Assignment:
    """
    Read a flag for one request.

    Args:
        flag: The flag as last seen.
        unit: The request's unit; None or "" if the request carries none.
        now: Aware time, to judge the lease by.

    Returns:
        Who answers, and whether the request is mirrored. A unit that the candidate answers is never mirrored as well.
    """
    if flag.killed:
        return Assignment(arm="baseline", variant=flag.control, mirror=None, reason="killed")
    if flag.lease is not None and now.astimezone(UTC) >= flag.lease:
        return Assignment(arm="baseline", variant=flag.control, mirror=None, reason="lease_lapsed")
    if not unit:
        # 100 % is everybody, also those without a unit: a promoted candidate must not leave them behind.
        if flag.weight == WEIGHT_MAX:
            return Assignment(arm="candidate", variant=flag.candidate, mirror=None, reason="no_unit")
        return Assignment(arm="baseline", variant=flag.control, mirror=None, reason="no_unit")
    if in_share(flag.salt, unit, flag.weight):
        return Assignment(arm="candidate", variant=flag.candidate, mirror=None, reason="split")
    mirrored = in_share(flag.salt + SHADOW_SUFFIX, unit, flag.shadow_weight)
    return Assignment(arm="baseline", variant=flag.control, mirror=flag.candidate if mirrored else None, reason="split")
