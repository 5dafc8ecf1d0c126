"""
The circuit breaker of one model: whether it may be asked now, and what its answers say about that.

    admit(now) -> Ticket | None     before a call: None while nobody may ask
    report(ticket, verdict, now)    after it, exactly once

    closed    --the share of bad answers over the window reaches the limit-->  open
    open      --open_for has passed-->                                         half open
    half open --the probe was good--> closed    --it was bad--> open           (one probe at a time, on a lease)

Its one rule: only an answer that tells something about the model counts (`verdict_of`). What a client does wrong, or a rate limit,
never opens a breaker for everybody else. Pure: the clock is an argument.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import Literal

from router import config
from router.outcome import CLIENT_FAULTS, Failed

State = Literal["closed", "open", "half_open"]
Verdict = Literal["good", "bad", "unclear"]

TICKS_PER_S = 128
"""Resolution of the window. Answers of one tick share an entry, which bounds the memory of 2 minutes to 15,360 entries at any rate."""

OF_THE_KEY = frozenset({401, 403, 404})
"""Statuses that speak of the key that was sent: with the client's own they say nothing about the model."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """
    Leave to ask once.

    Args:
        episode: Counts closings and openings; an answer from before the last of them says nothing about now.
        lease: None in a closed breaker. In any other this call is a probe, and the time is that until which no other is sent.
    """

    episode: int
    lease: float | None


class Breaker:
    """Times are seconds of any clock that does not run backwards."""

    __slots__ = ("_bad", "_episode", "_lease", "_open_until", "_spec", "_ticks", "_total", "_window_ticks")

    def __init__(self, spec: config.Breaker) -> None:
        self._spec = spec
        self._window_ticks = ceil(spec.window.total_seconds() * TICKS_PER_S)
        self._ticks: deque[list[int]] = deque()  # [tick, answers, bad ones], oldest first
        self._total = self._bad = 0
        self._episode = 0
        self._open_until: float | None = None
        self._lease = 0.0

    def state(self, now: float) -> State:
        if self._open_until is None:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def admit(self, now: float, *, forced: bool = False) -> Ticket | None:
        """
        Args:
            forced: For a model of last resort: asked even while the breaker is open.
        """
        if self._open_until is None:
            return Ticket(self._episode, None)
        if now >= self._open_until and now >= self._lease:
            self._lease = now + self._spec.open_for.total_seconds()
            return Ticket(self._episode, self._lease)
        return Ticket(self._episode, now) if forced else None

    def wait_s(self, now: float) -> float:
        """How long until the next request may be let through; 0 when one may now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now, self._lease - now)

    def report(self, ticket: Ticket, verdict: Verdict, now: float) -> None:
        if ticket.episode != self._episode:
            return
        if ticket.lease is None:
            if verdict != "unclear":
                self._count(verdict == "bad", now)
        elif verdict == "good":
            self._episode += 1
            self._open_until = None
        elif verdict == "unclear":
            # Nobody knows more than before: the next request may try, unless another probe is under way.
            if ticket.lease == self._lease:
                self._lease = now
        elif self.state(now) == "half_open":
            self._open(now)

    def window(self, now: float) -> tuple[int, int]:
        """Answers and bad ones among them in the window that ends now."""
        self._forget(int(now * TICKS_PER_S))
        return self._total, self._bad

    def _count(self, bad: bool, now: float) -> None:
        tick = int(now * TICKS_PER_S)
        self._forget(tick)
        if not self._ticks or self._ticks[-1][0] != tick:
            self._ticks.append([tick, 0, 0])
        entry = self._ticks[-1]
        entry[1] += 1
        entry[2] += bad
        self._total += 1
        self._bad += bad
        if bad and self._total >= self._spec.min_requests and self._bad >= self._spec.failure_ratio * self._total:
            self._episode += 1
            self._open(now)

    def _open(self, now: float) -> None:
        self._open_until = now + self._spec.open_for.total_seconds()
        self._lease = 0.0
        # What led here is no evidence about the time after.
        self._ticks.clear()
        self._total = self._bad = 0

    def _forget(self, tick: int) -> None:
        while self._ticks and self._ticks[0][0] <= tick - self._window_ticks:
            _, total, bad = self._ticks.popleft()
            self._total -= total
            self._bad -= bad


def verdict_of(failed: Failed | None, *, own_key: bool, whole_time: bool) -> Verdict:
    """
    What an attempt says about its model; docs/reference/router-yaml.md has this as a table.

    Args:
        failed: None for a whole answer.
        own_key: The provider's key is the router's, not the client's.
        whole_time: The attempt had the model's own timeout, not less of it because the request's deadline was near.
    """
    if failed is None:
        return "good"
    match failed.outcome:
        case "timeout":
            return "bad" if whole_time else "unclear"
        case "error":
            return "unclear" if failed.status in CLIENT_FAULTS or (failed.status in OF_THE_KEY and not own_key) else "bad"
        case _:
            return "unclear"
