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
from router.shared import Alone, Store

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


class Window:
    """How many answers there were lately and how many bad ones, by ticks; in this process alone."""

    __slots__ = ("_length", "_ticks", "bad", "total")

    def __init__(self, length: int) -> None:
        self._length = length
        self._ticks: deque[list[int]] = deque()  # [tick, answers, bad ones], oldest first
        self.total = self.bad = 0

    def add(self, bad: bool, tick: int) -> None:
        if not self._ticks or self._ticks[-1][0] != tick:
            self._ticks.append([tick, 0, 0])
        entry = self._ticks[-1]
        entry[1] += 1
        entry[2] += bad
        self.total += 1
        self.bad += bad

    def forget(self, tick: int) -> None:
        """What is older than the window that ends with this tick."""
        while self._ticks and self._ticks[0][0] <= tick - self._length:
            _, total, bad = self._ticks.popleft()
            self.total -= total
            self.bad -= bad

    def clear(self) -> None:
        self._ticks.clear()
        self.total = self.bad = 0


class SharedWindow:
    """As `Window`, of all workers: a ring with a place for each tick. The store's lock is the caller's to hold."""

    __slots__ = ("_all", "_bad", "_cells", "_length", "_none")

    def __init__(self, length: int, store: Store) -> None:
        answers, bad = store.counts(length), store.counts(length)
        assert answers is not None and bad is not None, "of several workers"
        self._length, self._all, self._bad = length, answers, bad
        self._cells = store.cells(3)  # answers, bad ones, the oldest tick that counts
        self._none = memoryview(bytes(4 * length)).cast("I")

    @property
    def total(self) -> int:
        return int(self._cells[0])

    @property
    def bad(self) -> int:
        return int(self._cells[1])

    def add(self, bad: bool, tick: int) -> None:
        self.forget(tick)
        place = tick % self._length
        self._all[place] += 1
        self._cells[0] += 1
        if bad:
            self._bad[place] += 1
            self._cells[1] += 1

    def forget(self, tick: int) -> None:
        oldest, keep = int(self._cells[2]), tick - self._length + 1
        if keep <= oldest:
            return
        self._cells[2] = keep
        if self._cells[0]:
            count = min(keep - oldest, self._length)
            begin = oldest % self._length
            self._drop(begin, min(begin + count, self._length))
            self._drop(0, begin + count - self._length)

    def clear(self) -> None:
        self._drop(0, self._length)

    def _drop(self, begin: int, end: int) -> None:
        if end > begin:
            self._cells[0] -= sum(self._all[begin:end])
            self._cells[1] -= sum(self._bad[begin:end])
            self._all[begin:end] = self._bad[begin:end] = self._none[begin:end]


class Breaker:
    """
    Times are seconds of any clock that does not run backwards, and is the same for all workers.

    Args:
        spec: Of the model.
        store: Who else sees answers of it.
    """

    __slots__ = ("_cells", "_lock", "_spec", "_window", "_window_ticks")

    def __init__(self, spec: config.Breaker, store: Store | None = None) -> None:
        store = store or Alone()
        self._spec, self._lock = spec, store.lock
        self._window_ticks = ceil(spec.window.total_seconds() * TICKS_PER_S)
        self._cells = store.cells(4)  # episode, whether it is open, until when, the probe's lease
        self._window: Window | SharedWindow
        self._window = Window(self._window_ticks) if store.workers == 1 else SharedWindow(self._window_ticks, store)

    def state(self, now: float) -> State:
        _, is_open, until, _ = self._cells
        if not is_open:
            return "closed"
        return "open" if now < until else "half_open"

    def admit(self, now: float, *, forced: bool = False) -> Ticket | None:
        """
        Args:
            forced: For a model of last resort: asked even while the breaker is open.
        """
        episode, is_open, _, _ = self._cells
        if not is_open:
            return Ticket(int(episode), None)
        with self._lock:
            episode, is_open, until, lease = self._cells
            if not is_open:
                return Ticket(int(episode), None)
            if now >= until and now >= lease:
                self._cells[3] = lease = now + self._spec.open_for.total_seconds()
                return Ticket(int(episode), lease)
        return Ticket(int(episode), now) if forced else None

    def wait_s(self, now: float) -> float:
        """How long until the next request may be let through; 0 when one may now."""
        _, is_open, until, lease = self._cells
        return max(0.0, until - now, lease - now) if is_open else 0.0

    def report(self, ticket: Ticket, verdict: Verdict, now: float) -> None:
        with self._lock:
            self._report(ticket, verdict, now)

    def _report(self, ticket: Ticket, verdict: Verdict, now: float) -> None:
        if ticket.episode != self._cells[0]:
            return
        if ticket.lease is None:
            if verdict != "unclear":
                self._count(verdict == "bad", now)
        elif verdict == "good":
            self._cells[0] += 1
            self._cells[1] = 0.0
        elif verdict == "unclear":
            # Nobody knows more than before: the next request may try, unless another probe is under way.
            if ticket.lease == self._cells[3]:
                self._cells[3] = now
        elif self.state(now) == "half_open":
            self._open(now)

    def window(self, now: float) -> tuple[int, int]:
        """Answers and bad ones among them in the window that ends now."""
        with self._lock:
            self._window.forget(int(now * TICKS_PER_S))
            return self._window.total, self._window.bad

    def _count(self, bad: bool, now: float) -> None:
        tick, window = int(now * TICKS_PER_S), self._window
        window.forget(tick)
        window.add(bad, tick)
        if bad and window.total >= self._spec.min_requests and window.bad >= self._spec.failure_ratio * window.total:
            self._cells[0] += 1
            self._open(now)

    def _open(self, now: float) -> None:
        self._cells[2], self._cells[3] = now + self._spec.open_for.total_seconds(), 0.0
        self._cells[1] = 1.0
        # What led here is no evidence about the time after.
        self._window.clear()


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
