"""
Whether a model may be asked now, and what its answers are reported to.

It stands between `engine`, which knows whom to ask next, and `attempt`, which asks. `breaker` decides; the clock is here.

Its one rule: every permit that is given out is closed exactly once, by the booking of the attempt, however the attempt ends.
"""

import time
from collections.abc import Callable
from math import ceil

from router import config
from router.breaker import Breaker, State, Ticket, Verdict
from router.config import RouterConfig
from router.logs import get_logger
from router.metrics import RouterMetrics
from router.outcome import Failed

log = get_logger()


class Permit:
    """Leave for one call."""

    __slots__ = ("_gate", "_ticket")

    def __init__(self, gate: "Gate", ticket: Ticket | None) -> None:
        self._gate, self._ticket = gate, ticket

    def promising(self) -> None:
        """A stream has brought its first token: a probe need not wait for the last one."""
        if self._ticket is not None and self._ticket.lease is not None:
            self.close("good")

    def close(self, verdict: Verdict) -> None:
        """The call is over, as far as the gate is concerned; a second call does nothing."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._gate.report(ticket, verdict)


class Gate:
    """What stands before one model."""

    def __init__(self, model: config.Model, metrics: RouterMetrics, clock: Callable[[], float]) -> None:
        self._model = model.name
        self._clock = clock
        self._breaker = None if model.breaker is None else Breaker(model.breaker)
        self._series = metrics.breaker(model.name, self.state)

    def state(self) -> State:
        return "closed" if self._breaker is None else self._breaker.state(self._clock())

    def enter(self, *, forced: bool) -> Permit | Failed:
        if self._breaker is None:
            return Permit(self, None)
        now = self._clock()
        ticket = self._breaker.admit(now, forced=forced)
        if ticket is not None:
            return Permit(self, ticket)
        self._series.skipped.inc()
        wait_s = max(1, ceil(self._breaker.wait_s(now)))
        return Failed(outcome="error", detail="its circuit breaker is open", retry_after=str(wait_s), unasked="breaker")

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
        else:
            log.info("breaker_closed", model=self._model)


class Admission:
    """
    The gates of all models.

    Args:
        clock: Seconds, never backwards.
    """

    def __init__(self, spec: RouterConfig, metrics: RouterMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._gates = {model.name: Gate(model, metrics, clock) for model in spec.models}

    def enter(self, model: str, *, forced: bool = False) -> Permit | Failed:
        """
        Args:
            model: One of this configuration.
            forced: Asked even if its breaker is open.
        """
        return self._gates[model].enter(forced=forced)
