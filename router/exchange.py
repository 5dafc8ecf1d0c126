"""
One request under way, as those see it who watch: what the router itself took of its time, and its trace where there is one.

It stands beside the request's way and not on it: `app` begins it; `engine`, `caller`, `attempt`, `booking` and `mirror` tell it what
happens. A context variable carries it, as OpenTelemetry does, so that no signature between them speaks of telemetry.

Its one rule: nothing that is decided about a request depends on it, and without a trace it is a clock and three fields.
"""

import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING

from flagspec import RouteFlag
from router.selection import Plan

if TYPE_CHECKING:
    from router.tracing import RequestTrace

NOTHING: Mapping[str, str] = MappingProxyType({})

_CARRIED = (
    (b"traceparent", "traceparent", re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-[\x21-\x7e]{1,200})?")),
    (b"tracestate", "tracestate", re.compile(rb"[\x20-\x7e]{1,512}")),
    (b"baggage", "baggage", re.compile(rb"[\x20-\x7e]{1,8192}")),
)
"""W3C Trace Context and Baggage: who takes no part in a trace hands these on as they came."""


class Exchange:
    """
    Attributes:
        route: Of its plan; None until there is one.
        waited_s: How long it waited for others so far: for providers, and in line.
        carried: Headers that go upstream where the router itself makes no spans.
        trace: None where it makes none.
    """

    __slots__ = ("_started", "carried", "route", "trace", "waited_s")

    def __init__(self, trace: "RequestTrace | None" = None, carried: Mapping[str, str] = NOTHING) -> None:
        self._started = time.perf_counter()
        self.waited_s = 0.0
        self.route: str | None = None
        self.carried = carried
        self.trace = trace

    def received(self) -> None:
        """Its body is there: what a client took to send it is not the router's time."""
        self._started = time.perf_counter()

    def planned(self, plan: Plan, flag: RouteFlag | None, revision: int | None) -> None:
        self.route = plan.route
        if self.trace is not None:
            self.trace.planned(plan, flag, revision)

    def own_s(self) -> float:
        """What of the time since `received` was spent on nobody else."""
        return max(0.0, time.perf_counter() - self._started - self.waited_s)

    def copy(self) -> "Exchange":
        """Of a mirrored copy, whose waiting is not the user's."""
        return Exchange(None if self.trace is None else self.trace.copy(), self.carried)


CURRENT: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def carried(headers: Mapping[bytes, bytes]) -> Mapping[str, str]:
    """What of a client's headers belongs to its trace, where it is what it should be."""
    if b"traceparent" not in headers and b"baggage" not in headers:
        return NOTHING
    found = {name: headers[key].decode("latin-1") for key, name, form in _CARRIED if form.fullmatch(headers.get(key, b""))}
    if "traceparent" not in found:
        found.pop("tracestate", None)
    return found


class waiting:
    """``with waiting():`` around an await on somebody else."""

    __slots__ = ("_since",)

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_exc: object) -> None:
        if (exchange := CURRENT.get()) is not None:
            exchange.waited_s += time.perf_counter() - self._since
