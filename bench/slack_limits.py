"""
Slack's rate limits and scripted faults: what goes wrong with a call although its arguments are right.

Its one rule: deterministic under a given clock; the limits are token buckets per method (per channel for chat.postMessage), as
docs.slack.dev/apis/web-api/rate-limits describes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from math import ceil
from typing import Any

# Calls a minute: tier 2 is 20, tier 3 is 50, tier 4 is 100 (docs.slack.dev/apis/web-api/rate-limits).
TIERS_PER_MIN = {
    "usergroups.list": 20,
    "usergroups.users.list": 20,
    "conversations.list": 20,
    "chat.update": 50,
    "conversations.history": 50,
    "conversations.replies": 50,
    "apps.connections.open": 50,
    "users.info": 100,
    "views.open": 100,
    "auth.test": 600,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """
    How much is allowed.

    Args:
        post_per_s: chat.postMessage, for each channel; 0 switches this limit off.
        post_burst: How many may come at once before that.
        tiers: Whether other methods have their tier's limit (a minute's worth may come at once).
    """

    post_per_s: float = 1.0
    post_burst: int = 4
    tiers: bool = True


class RateLimiter:
    """Token buckets over a given clock."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def retry_after_s(self, method: str, channel: str, *, now_s: float) -> int | None:
        """Seconds to wait as `Retry-After` says them; None if the call may pass, which then counts."""
        if method == "chat.postMessage":
            rate, burst, key = self._limits.post_per_s, float(self._limits.post_burst), (method, channel)
        else:
            per_min = TIERS_PER_MIN.get(method, 0) if self._limits.tiers else 0
            rate, burst, key = per_min / 60, float(per_min), (method, "")
        if rate <= 0:
            return None
        level, at_s = self._buckets.get(key, (burst, now_s))
        level = min(burst, level + max(0.0, now_s - at_s) * rate)
        if level < 1:
            self._buckets[key] = (level, now_s)
            return max(1, ceil((1 - level) / rate))
        self._buckets[key] = (level - 1, now_s)
        return None


class FaultKind(Enum):
    """What happens instead of the answer."""

    ERROR = "error"  # 200 with {"ok": false, "error": ...}
    STATUS = "status"  # that HTTP status with a page that is not JSON
    RATE_LIMITED = "rate_limited"  # 429 with Retry-After
    RESET = "reset"  # the connection is reset, nothing was done
    RESET_AFTER_ACCEPT = "reset_after_accept"  # it was done, then the connection is reset
    TIMEOUT = "timeout"  # nothing was done, and no answer comes for `hang_s`
    TIMEOUT_AFTER_ACCEPT = "timeout_after_accept"  # it was done, and no answer comes for `hang_s`
    SLOW = "slow"  # it is done and answered, `hang_s` late


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    The next `count` calls of `method` go wrong.

    Args:
        method: Web API method, or `*` for all.
        kind: How.
        count: For how many calls.
        error: Slack's error code, for `error`.
        status: HTTP status, for `status`.
        retry_after_s: For `rate_limited`.
        hang_s: For `timeout` and `slow`.
    """

    method: str
    kind: FaultKind
    count: int = 1
    error: str = "internal_error"
    status: int = 503
    retry_after_s: int = 1
    hang_s: float = 30.0

    @classmethod
    def from_json(cls, data: Any) -> "Fault":
        """Raises ValueError, naming the field."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a fault is an object, got {data!r}")
        if unknown := set(data) - {"method", "kind", "count", "error", "status", "retry_after_s", "hang_s"}:
            raise ValueError(f"{min(unknown)}: unknown field of a fault")
        if not isinstance(data.get("method"), str):
            raise ValueError(f"method: expected a method's name or *, got {data.get('method')!r}")
        try:
            kind = FaultKind(data.get("kind"))
        except ValueError as exc:
            raise ValueError(f"kind: {data.get('kind')!r} is none of {', '.join(k.value for k in FaultKind)}") from exc
        for name in ("count", "status", "retry_after_s", "hang_s"):
            value = data.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")
        return cls(**{**data, "kind": kind})

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "kind": self.kind.value,
            "count": self.count,
            "error": self.error,
            "status": self.status,
            "retry_after_s": self.retry_after_s,
            "hang_s": self.hang_s,
        }


@dataclass(slots=True)
class FaultScript:
    """The faults that are still to come, first in first out for each method."""

    faults: list[Fault] = field(default_factory=list)

    def take(self, method: str) -> Fault | None:
        """The fault of this call, if any; it is used up."""
        for i, fault in enumerate(self.faults):
            if fault.method in (method, "*"):
                if fault.count <= 1:
                    del self.faults[i]
                else:
                    self.faults[i] = replace(fault, count=fault.count - 1)
                return fault
        return None
