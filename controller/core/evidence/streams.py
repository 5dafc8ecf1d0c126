"""
Which entries of a scrape are counted for which gate: compiled once per phase, applied to every scrape.

A stream is a count of events among a count of trials, for one arm. Rates and absolute quantiles are counted alike in both arms; a quantile with
a margin is counted at x in the baseline and at x times (1 + margin) in the candidate, once for each margin in use. Its one rule: x is
fixed when the phase begins, from data before it.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence.config import EngineConfig, Histogram, QuantileLimit, QuantileMargin, RateLimit
from controller.core.evidence.quantiles import Shape, split
from controller.core.evidence.rates import Array

SNAP = 0.03
"""A bucket edge this close to the baseline's quantile (difference of logarithms) is taken instead of it: counts there are exact."""

REFERENCE_MIN = 100.0
"""Requests of the baseline that must have been seen before its quantile is fixed."""


@dataclass(slots=True)
class _Picker:
    """Index arrays that turn a scrape vector (with one zero appended) into events and trials."""

    plus: list[int] = field(default_factory=list)
    low: list[int] = field(default_factory=list)
    high: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)

    def rate(self, bad: int, total: int, zero: int) -> None:
        self._append(bad, zero, zero, 0.0, total)

    def exceedance(self, h: Histogram, at: tuple[int, int, float] | None, zero: int) -> None:
        if at is None:  # beyond the last edge: nothing can be counted
            self._append(zero, zero, zero, 0.0, zero)
            return
        low, high, w = at
        self._append(h.total, h.first + low if low >= 0 else zero, h.first + high, w, h.total)

    def _append(self, plus: int, low: int, high: int, weight: float, trials: int) -> None:
        self.plus.append(plus)
        self.low.append(low)
        self.high.append(high)
        self.weight.append(weight)
        self.trials.append(trials)

    def freeze(self) -> "Counter":
        index = np.array([self.plus, self.low, self.high, self.trials], dtype=np.intp)
        return Counter(index=index, weight=np.array(self.weight))


class Counts(NamedTuple):
    """What one stretch of time holds, per stream: events and trials of the candidate, then of the baseline."""

    xc: Array
    nc: Array
    xb: Array
    nb: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """Counts streams."""

    index: NDArray[np.intp]
    weight: Array

    def __call__(self, vector: Array) -> tuple[Array, Array]:
        """
        Args:
            vector: Increments that the index points into.

        Returns:
            Events and trials per stream, 0 <= events <= trials.
        """
        plus, low, high, trials = vector[self.index]
        events = plus - (low + self.weight * (high - low))
        return np.minimum(np.maximum(events, 0.0), trials), trials

    def then(self, other: "Counter", offset: int) -> "Counter":
        """This counter and another, whose vector begins `offset` entries later, as one."""
        return Counter(
            index=np.concatenate([self.index, other.index + offset], axis=1), weight=np.concatenate([self.weight, other.weight])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """
    Streams in the order rates, absolute quantiles, relative quantiles (once per multiple for the candidate).

    Args:
        rates, limits, margins: How many gates of each kind.
        multiples: Of the margins that are counted.
        both: Counts the candidate's streams and then the baseline's, in both arms' increments one after the other, each with a zero appended.
        baseline: Counts the baseline's streams alone.
        thresholds: x of each relative quantile; NaN where the baseline has not shown enough.
        density: Change of the share per unit of log latency at each threshold, absolute then relative.
    """

    rates: int
    limits: int
    margins: int
    multiples: tuple[float, ...]
    both: Counter
    baseline: Counter
    thresholds: tuple[float, ...]
    density: Array

    @property
    def own(self) -> int:
        """How many of the streams in `both` are the candidate's."""
        return len(self.both.weight) - len(self.baseline.weight)

    @property
    def ready(self) -> bool:
        return not any(np.isnan(t) for t in self.thresholds)

    def count(self, increments: Array) -> Counts:
        """
        Args:
            increments: Shape (2, columns + 1): candidate, baseline; the last column is zero.
        """
        events, trials = self.both(increments.ravel())
        return Counts(events[: self.own], trials[: self.own], events[self.own :], trials[self.own :])

    def at(self, multiple: float) -> slice:
        """The candidate's relative streams for one multiple of their margins."""
        start = self.rates + self.limits + self.margins * self.multiples.index(multiple)
        return slice(start, start + self.margins)


def compile_streams(config: EngineConfig, recent: Array) -> Streams:
    """
    Args:
        config: Gates and columns.
        recent: The baseline's latest counts (decayed sum of increments).
    """
    zero = len(config.columns)
    rates = [g for g in config.gates if isinstance(g, RateLimit)]
    limits = [g for g in config.gates if isinstance(g, QuantileLimit)]
    margins = [g for g in config.gates if isinstance(g, QuantileMargin)]
    of_phases = {m for p in config.phases for m in (p.multiple, p.wider) if m is not None}
    multiples = tuple(sorted({r.multiple for r in config.rungs} | of_phases | {1.0}))
    shapes: dict[str, Shape | None] = {}
    for h in config.histograms:
        counts = recent[h.first : h.total + 1]
        shapes[h.name] = Shape(h.edges, counts) if counts[-1] >= REFERENCE_MIN else None
    cand, base = _Picker(), _Picker()
    density: list[float] = []
    for rate in rates:
        for picker in (cand, base):
            picker.rate(config.column(rate.bad), config.column(rate.total), zero)
    for limit in limits:
        h, shape = config.histogram(limit.histogram), shapes[limit.histogram]
        at = split(h.edges, limit.limit, shape, 1.0)
        cand.exceedance(h, at, zero)
        base.exceedance(h, at, zero)
        density.append(shape.density(limit.limit) if shape else 0.5 * (1 - limit.q))
    thresholds: list[float] = []
    for margin in margins:
        h, shape = config.histogram(margin.histogram), shapes[margin.histogram]
        x = _threshold(h, shape, margin.q) if shape else float("nan")
        thresholds.append(x)
        base.exceedance(h, split(h.edges, x, shape, 1.0) if shape else None, zero)
        density.append(shape.density(x) if shape else 0.0)
    for multiple in multiples:
        for margin, x in zip(margins, thresholds, strict=True):
            h, shape = config.histogram(margin.histogram), shapes[margin.histogram]
            stretch = 1 + multiple * margin.margin
            cand.exceedance(h, split(h.edges, x * stretch, shape, stretch) if shape else None, zero)
    return Streams(
        rates=len(rates),
        limits=len(limits),
        margins=len(margins),
        multiples=multiples,
        both=cand.freeze().then(base.freeze(), zero + 1),
        baseline=base.freeze(),
        thresholds=tuple(thresholds),
        density=np.array(density),
    )


def _threshold(h: Histogram, shape: Shape, q: float) -> float:
    x = shape.quantile(q)
    nearest = min(h.edges, key=lambda edge: abs(np.log(edge / x)))
    return nearest if abs(np.log(nearest / x)) <= SNAP else x
