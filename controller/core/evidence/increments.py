"""
Cumulative counters in, increments out: the first step of every scrape.

A counter that falls has restarted, and what it shows since is its increment (as PromQL's ``increase`` reads it, without
extrapolation); with one counter all of its arm are read so, because they live in one process. Missed scrapes only make an increment longer.
Its one rule: what is not a finite, non-negative number in buckets that do not fall is a `Problem` and never a number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence.config import EngineConfig, RateLimit

Vector = NDArray[np.float64]

SLACK = 1e-9
"""Counters that travelled as text may fall by rounding; relative to the counter's size."""

WHOLE = 1.0
"""A bad event may be counted one scrape before the request that it belongs to."""

ARMS = ("candidate", "baseline")


@dataclass(frozen=True, slots=True)
class Problem:
    """A scrape that cannot be used, in words: which arm, which column, which value."""

    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """Increments of both arms between two scrapes, `scrapes` scrape intervals apart (1.0 if none was missed)."""

    cand: Vector
    base: Vector
    scrapes: float


class Counters:
    """The last counters of both arms. `step` is the only way forward."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.t: float | None = None
        self.last: Vector = np.zeros((2, len(config.columns)))
        rates = [g for g in config.gates if isinstance(g, RateLimit)]
        self._bad = np.array([config.column(g.bad) for g in rates], dtype=np.intp)
        self._all = np.array([config.column(g.total) for g in rates], dtype=np.intp)
        self._buckets = [(h.first, h.total + 1) for h in config.histograms]

    def step(self, t: float, cand: Sequence[float] | Vector, base: Sequence[float] | Vector) -> Step | Problem | None:
        """
        Args:
            t: Seconds, rising.
            cand: Cumulative counters of the candidate, in the order of the configured columns.
            base: The same of the baseline.

        Returns:
            The increments; None for the first scrape and for one that is not newer than the last; a Problem leaves everything as it was.
        """
        try:
            now = np.array((cand, base), dtype=np.float64)
        except (TypeError, ValueError):
            return Problem("a scrape is not a vector of numbers with the same length in both arms")
        if now.shape != self.last.shape:
            return Problem(f"a scrape has {now.shape[-1]} values, the configuration {self.last.shape[1]} columns")
        if not math.isfinite(t):
            return Problem(f"a scrape's time is {t}")
        inc = now - self.last
        # NaN fails every comparison; `last` is finite, so what grew by a finite amount is a finite count
        if not (inc.min() >= 0 and inc.max() < math.inf):
            if not (np.isfinite(now).all() and now.min() >= 0):
                return Problem(self._name(now, ~np.isfinite(now) | (now < 0)))
            fell = np.any(inc < -SLACK * (1 + self.last), axis=1, keepdims=True)
            inc = np.maximum(np.where(fell, now, inc), 0.0)
        if self.t is not None and t <= self.t:
            return None
        falls = any((inc[:, a + 1 : b] - inc[:, a : b - 1]).min() < 0 for a, b in self._buckets)
        if falls and (wrong := self._falling(inc)):
            return Problem(f"buckets of {wrong!r} fall with rising edge: their increments do not belong together")
        more = inc[:, self._bad] - inc[:, self._all] * (1 + SLACK)
        if more.size and self.t is not None and more.max() > WHOLE:
            return Problem(self._contradiction(inc, more))
        previous, self.t, self.last = self.t, t, now
        if previous is None:
            return None
        return Step(cand=inc[0], base=inc[1], scrapes=(t - previous) / self._config.scrape_s)

    def _falling(self, inc: Vector) -> str:
        """Name of a histogram whose increments fall by more than rounding; "" for none."""
        for h in self._config.histograms:
            buckets = inc[:, h.first : h.total + 1]
            if (buckets[:, 1:] - buckets[:, :-1] < -1e-6 * (1 + buckets[:, -1:])).any():
                return h.name
        return ""

    def _contradiction(self, inc: Vector, more: Vector) -> str:
        arm, gate = (int(i) for i in np.argwhere(more > WHOLE)[0])
        bad, all_ = int(self._bad[gate]), int(self._all[gate])
        names = self._config.columns
        return f"{ARMS[arm]} has {inc[arm, bad]:g} more {names[bad]}, but {inc[arm, all_]:g} more {names[all_]}"

    def _name(self, now: Vector, wrong: NDArray[np.bool_]) -> str:
        arm, column = (int(i) for i in np.argwhere(wrong)[0])
        return f"{ARMS[arm]} {self._config.columns[column]} is {now[arm, column]}"


def as_row(values: Sequence[float], columns: int) -> Vector | Problem:
    """One scrape of one arm as a vector; whether its values are counts is not looked at."""
    try:
        row = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return Problem("a scrape is not a vector of numbers")
    if row.shape != (columns,):
        return Problem(f"a scrape has {row.size} values, the configuration {columns} columns")
    return row


def increments_of(cumulative: Vector) -> Vector:
    """
    Reset-corrected increments of one arm's history at once.

    Args:
        cumulative: Shape (scrapes, columns), oldest first, finite and not negative.

    Returns:
        Shape (scrapes - 1, columns).

    Raises:
        ValueError: A value is not finite or negative.
    """
    if not (np.isfinite(cumulative).all() and (cumulative >= 0).all()):
        raise ValueError("a history holds a value that is not a finite, non-negative number")
    raw = np.diff(cumulative, axis=0)
    fell = np.any(raw < -SLACK * (1 + cumulative[:-1]), axis=1, keepdims=True)
    return np.maximum(np.where(fell, cumulative[1:], raw), 0.0)
