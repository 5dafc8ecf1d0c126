"""
How much of one model may be used at a time: requests a second, tokens a minute, calls at once.

    Meter       what is used and what is left; pure, the clock is an argument
    Line        who waits for it: one place for each client in turn, so that a busy one delays itself and not the others
    share_s()   how long one attempt may take of what is left of the request's time

Its one rule: nobody overtakes. As long as somebody waits, a newcomer waits as well, behind those of its own client and in turn with
the others.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from math import inf
from operator import itemgetter

from router import config
from router.shared import Alone, Store

ELSEWHERE_S = 0.02
"""So often a line looks again whether a call of another worker has ended."""


class Bucket:
    """
    A token bucket. It may go into debt: what something costs is sometimes known only afterwards.

    Args:
        per_s: What flows in.
        most: What it holds; full at the start.
        store: Who else takes from it. Its lock is the caller's to hold.
    """

    __slots__ = ("_cells", "_most", "_per_s")

    def __init__(self, per_s: float, most: float, store: Store | None = None) -> None:
        self._per_s, self._most = per_s, most
        self._cells = (store or Alone()).cells(3)  # whether it was ever used, what is in it, since when

    def wait_s(self, amount: float, now: float, keep: float = 0.0) -> float:
        """Until so much is in it above the share `keep` of what it holds; an amount beyond that waits for a full bucket only."""
        missing = min(amount + keep * self._most, self._most) - self._level(now)
        return max(0.0, missing / self._per_s)

    def take(self, amount: float, now: float) -> None:
        """Negative amounts are given back."""
        self._cells[1] = min(self._most, self._level(now) - amount)
        self._cells[2] = max(now, self._cells[2]) if self._cells[0] else now
        self._cells[0] = 1.0

    def _level(self, now: float) -> float:
        used, level, at = self._cells
        return min(self._most, level + max(0.0, now - at) * self._per_s) if used else self._most


class Meter:
    """The limits of one model, and what is used of them, by all workers together."""

    __slots__ = ("_concurrency", "_lock", "_requests", "_tokens", "_under_way", "_worker", "shared")

    def __init__(self, spec: config.Limits, store: Store | None = None) -> None:
        store = store or Alone()
        per_s, per_min = spec.requests_per_s, spec.tokens_per_min
        # One second's requests may come at once: arrivals are never even.
        self._requests = None if per_s is None else Bucket(per_s, max(1.0, per_s), store)
        self._tokens = None if per_min is None else Bucket(per_min / 60, per_min, store)
        self._concurrency = spec.concurrency or inf
        self._under_way = store.cells(store.workers)
        # Whoever was this worker before is dead, and its calls with it.
        self._under_way[store.worker] = 0.0
        self._worker, self._lock = store.worker, store.lock
        self.shared = store.workers > 1

    @property
    def under_way(self) -> int:
        return int(sum(self._under_way))

    def wait_s(self, tokens: int, now: float, keep: float = 0.0) -> tuple[float, str]:
        """
        How long until a request may be made, and what it waits for.

        Args:
            tokens: Of the request's input.
            keep: Share of each limit that this request must leave free.

        Returns:
            0 when it may now; `inf` while only the end of another call can help.
        """
        if self.under_way + 1 > self._concurrency * (1 - keep):
            return inf, f"{self._concurrency:g} calls at once"
        waits = [(0.0, "")]
        if self._requests is not None:
            waits.append((self._requests.wait_s(1, now, keep), "requests per second"))
        if self._tokens is not None:
            waits.append((self._tokens.wait_s(tokens, now, keep), "tokens per minute"))
        return max(waits, key=itemgetter(0))

    def try_begin(self, tokens: int, now: float, keep: float = 0.0) -> float:
        """
        Begin if it may be begun now.

        Returns:
            0 when it was begun; else as `wait_s`, and nothing has changed.
        """
        with self._lock:
            wait_s, _ = self.wait_s(tokens, now, keep)
            if wait_s <= 0:
                self._under_way[self._worker] += 1
                if self._requests is not None:
                    self._requests.take(1, now)
                if self._tokens is not None:
                    self._tokens.take(tokens, now)
        return wait_s

    def end(self, reserved: int, used: int | None, now: float) -> None:
        """
        Args:
            reserved: What `try_begin` was told.
            used: Tokens in and out, as far as they are known.
        """
        with self._lock:
            self._under_way[self._worker] -= 1
            if self._tokens is not None and used is not None:
                self._tokens.take(used - reserved, now)


class _Waiter:
    __slots__ = ("called", "tokens")

    def __init__(self, tokens: int, called: "asyncio.Future[bool]") -> None:
        self.tokens, self.called = tokens, called

    @property
    def went(self) -> bool:
        return self.called.done() and not self.called.cancelled() and self.called.result()


class Line:
    """
    Args:
        most: How many may wait; of more, the newest of the client with most of them is sent away.
    """

    def __init__(self, meter: Meter, most: int, clock: Callable[[], float]) -> None:
        self._meter, self._most, self._clock = meter, most, clock
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self.length = 0

    def enter(self, tokens: int) -> bool:
        """Without waiting: True if it may go, and counts from now."""
        return not self.length and self._meter.try_begin(tokens, self._clock()) <= 0

    async def wait(self, client: str, tokens: int, patience_s: float) -> bool:
        """
        Waits for its turn.

        Returns:
            True if it may go, and counts from now; False if it was sent away or its patience ended.
        """
        if not self._make_room(client):
            return False
        waiter = _Waiter(tokens, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(client, deque()).append(waiter)
        self.length += 1
        self._serve()
        try:
            async with asyncio.timeout(patience_s):
                return await waiter.called
        except TimeoutError:
            return waiter.went
        except asyncio.CancelledError:
            if waiter.went:
                # Called and gone in the same moment.
                self._meter.end(tokens, 0, self._clock())
            raise
        finally:
            self._leave(client, waiter)
            self.left()

    def left(self) -> None:
        """A call has ended, or somebody has left the line: who may go now?"""
        if self.length:
            self._serve()

    def _make_room(self, client: str) -> bool:
        if self.length < self._most:
            return True
        if not self._waiting:
            return False
        busiest = max(self._waiting, key=lambda name: len(self._waiting[name]))
        if len(self._waiting[busiest]) <= len(self._waiting.get(client, ())) + 1:
            return False
        self._call(busiest, self._waiting[busiest][-1], False)
        return True

    def _serve(self) -> None:
        while self._waiting:
            client, theirs = next(iter(self._waiting.items()))
            if theirs[0].called.done():
                # It has left, and has not run since to say so.
                self._leave(client, theirs[0])
                continue
            if (wait_s := self._meter.try_begin(theirs[0].tokens, self._clock())) > 0:
                self._again_in(min(wait_s, ELSEWHERE_S) if self._meter.shared else wait_s)
                return
            self._call(client, theirs[0], True)
            if client in self._waiting:
                self._waiting.move_to_end(client)

    def _again_in(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait_s < inf:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._serve)

    def _call(self, client: str, waiter: _Waiter, go: bool) -> None:
        self._leave(client, waiter)
        if not waiter.called.done():
            waiter.called.set_result(go)

    def _leave(self, client: str, waiter: _Waiter) -> None:
        theirs = self._waiting.get(client)
        if theirs is not None and waiter in theirs:
            theirs.remove(waiter)
            self.length -= 1
            if not theirs:
                del self._waiting[client]


def share_s(left_s: float, after: int) -> float:
    """
    What one attempt may take of the time that is left.

    Args:
        after: How many could still be asked after it; as long as there is one, half of the time is kept for them.
    """
    return left_s / 2 if after else left_s
