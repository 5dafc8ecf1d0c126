"""
Whether a model may be asked now, and what its answers are reported to.

It stands between `engine`, which knows whom to ask next, and `attempt`, which asks. `breaker` and `limits` decide; the clock and the
waiting are here.

Its one rule: every permit that is given out is closed exactly once, by the booking of the attempt, however the attempt ends.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite

from router import config
from router.breaker import Breaker, State, Ticket, Verdict
from router.config import RouterConfig
from router.exchange import CURRENT
from router.limits import Line, Meter
from router.logs import get_logger
from router.metrics import RouterMetrics
from router.outcome import Failed
from router.shared import Alone, Store

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """
    Who asks for a model.

    Args:
        client: Whose turn it is in the line: a unit, or a key.
        tokens: Of the input, estimated.
        patience_s: How long it can wait at most.
        forced: It is the last resort, and asked even if its breaker is open.
    """

    client: str
    tokens: int
    patience_s: float
    forced: bool = False


class Permit:
    """Leave for one call."""

    __slots__ = ("_gate", "_ticket", "_tokens")

    def __init__(self, gate: "Gate", ticket: Ticket | None, tokens: int) -> None:
        self._gate: Gate | None = gate
        self._ticket, self._tokens = ticket, tokens

    def promising(self) -> None:
        """A stream has brought its first token: a probe need not wait for the last one."""
        ticket = self._ticket
        if ticket is not None and ticket.lease is not None and self._gate is not None:
            self._ticket = None
            self._gate.report(ticket, "good")

    def close(self, verdict: Verdict, used: int | None = None) -> None:
        """
        The call is over, as far as the gate is concerned; a second call does nothing.

        Args:
            used: Tokens in and out; None if nobody knows.
        """
        gate, self._gate = self._gate, None
        if gate is not None:
            if self._ticket is not None:
                gate.report(self._ticket, verdict)
            gate.leave(self._tokens, used)


class Gate:
    """What stands before one model."""

    def __init__(self, model: config.Model, metrics: RouterMetrics, clock: Callable[[], float], store: Store) -> None:
        self._model = model.name
        self._clock = clock
        self._breaker = None if model.breaker is None else Breaker(model.breaker, store)
        self._series = metrics.breaker(model.name, self.state)
        self._limited = metrics.limited(model.name, lambda: 0 if self._line is None else self._line.length)
        self._meter: Meter | None = None
        self._line: Line | None = None
        self._max_wait_s = 0.0
        if model.limits is not None:
            self._meter = Meter(model.limits, store)
            self._line = Line(self._meter, model.limits.queue, clock)
            self._max_wait_s = model.limits.max_wait.total_seconds()

    def state(self) -> State:
        return "closed" if self._breaker is None else self._breaker.state(self._clock())

    async def enter(self, visitor: Visitor) -> Permit | Failed:
        if self._breaker is not None and not visitor.forced and (wait_s := self._breaker.wait_s(self._clock())) > 0:
            return self._refused_by_breaker(wait_s)
        if self._line is not None and not self._line.enter(visitor.tokens):
            patience_s = min(visitor.patience_s, self._max_wait_s)
            if not await self._line.wait(visitor.client, visitor.tokens, patience_s):
                return self._refused_by_limit(visitor.tokens)
        if self._breaker is None:
            return Permit(self, None, visitor.tokens)
        # After the wait and not before: nobody shall hold the one probe while standing in line.
        now = self._clock()
        ticket = self._breaker.admit(now, forced=visitor.forced)
        if ticket is None:
            self.leave(visitor.tokens, 0)
            return self._refused_by_breaker(self._breaker.wait_s(now))
        return Permit(self, ticket, visitor.tokens)

    def enter_copy(self, tokens: int) -> Permit | None:
        """A copy takes only what is free at once, and leaves half of each limit to users."""
        if self._meter is None or self._line is None:
            return Permit(self, None, tokens)
        if self._line.length or self._meter.try_begin(tokens, self._clock(), keep=0.5) > 0:
            return None
        return Permit(self, None, tokens)

    def leave(self, reserved: int, used: int | None) -> None:
        if self._meter is not None and self._line is not None:
            self._meter.end(reserved, used, self._clock())
            self._line.left()

    def report(self, ticket: Ticket, verdict: Verdict) -> None:
        assert self._breaker is not None
        now = self._clock()
        before = self._breaker.state(now)
        self._breaker.report(ticket, verdict, now)
        after = self._breaker.state(now)
        if before == after:
            return
        if after == "open":
            self._series.opened.inc()
            log.warning("breaker_opened", model=self._model, after=before)
            if (exchange := CURRENT.get()) is not None and exchange.trace is not None:
                exchange.trace.breaker_opened(self._model)
        else:
            log.info("breaker_closed", model=self._model)

    def _refused_by_breaker(self, wait_s: float) -> Failed:
        self._series.skipped.inc()
        detail = "its circuit breaker is open"
        return Failed(outcome="error", detail=detail, retry_after=_whole(wait_s), unasked="breaker")

    def _refused_by_limit(self, tokens: int) -> Failed:
        assert self._meter is not None
        self._limited.inc()
        wait_s, what = self._meter.wait_s(tokens, self._clock())
        detail = f"its limit of {what} is used up" if what else "too many wait for it"
        return Failed(outcome="rate_limited", detail=detail, retry_after=_whole(wait_s), unasked="limit")


def _whole(seconds: float) -> str:
    """As Retry-After wants it; 1 where only somebody else's end can help."""
    return str(max(1, ceil(seconds))) if isfinite(seconds) else "1"


class Admission:
    """
    The gates of all models.

    Args:
        clock: Seconds, never backwards.
        store: Who else asks these models.
    """

    def __init__(
        self, spec: RouterConfig, metrics: RouterMetrics, clock: Callable[[], float] = time.monotonic, store: Store | None = None
    ) -> None:
        store = store or Alone()
        self._gates = {model.name: Gate(model, metrics, clock, store) for model in spec.models}

    def closed(self, model: str) -> bool:
        """Whether its breaker lets everybody through."""
        return self._gates[model].state() == "closed"

    async def enter(self, model: str, visitor: Visitor) -> Permit | Failed:
        """Waits for its turn where the model has limits. `model` is one of this configuration."""
        return await self._gates[model].enter(visitor)

    def enter_copy(self, model: str, tokens: int) -> Permit | None:
        return self._gates[model].enter_copy(tokens)
