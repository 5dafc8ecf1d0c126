"""
Which moments a reading asks about.

It stands between a look's scope and the queries. Its one rule: beats are whole multiples of their distance since the epoch, so
that everybody reads the same ones, and Prometheus, which counts the steps of a subquery in the same way, gives just these.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controller.adapters.prometheus.memory import Memory
from controller.ports import Scope

BEATS_MAX = 2_000
"""Beats of one reading; after a longer gap they lie further apart."""

POINTS_MAX = 100_000
"""Values that one answer may have, about 25 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When a reading reads, in milliseconds: `beats` are what it wants to know of, `every` apart, after `start`."""

    start: int
    base: int
    step: int
    every: int
    beats: tuple[int, ...]


def times_of(scope: Scope, memory: Memory, base_ms: int, new: bool, size: int) -> Times:
    """
    Which beats are read.

    Args:
        scope: The step, and the time up to which.
        memory: What was read.
        base_ms: Where counting begins in this phase.
        new: The phase begins with this reading.
        size: Series of the largest question.
    """
    step = max(1, ms_of(scope.step))
    start = max(base_ms // step * step, memory.at) if new else memory.at
    steps = max(0, ms(scope.at) // step - start // step)
    stride = max(1, math.ceil(steps / max(1, min(BEATS_MAX, POINTS_MAX // max(size, 1)))))
    # Prometheus counts a subquery's steps from the epoch, too.
    every = stride * step
    beats = tuple(range((start // every + 1) * every, start + steps * step + 1, every))
    return Times(start=start, base=base_ms, step=step, every=every, beats=beats)


def time_of(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def ms_of(span: timedelta) -> int:
    return round(span / timedelta(milliseconds=1))
