"""
What a phase has shown of each gate so far, for people: value, limit, and an interval that holds at every look.

It reads plain totals of the phase and decides nothing, except that a gate whose whole interval lies beyond its limit does not open. Its one rule:
a value without data is NaN and never zero.
"""

import math
from dataclasses import dataclass

import numpy as np

from controller.core.evidence.confidence import proportion_interval, quantile_band, ratio_halfwidth
from controller.core.evidence.config import EngineConfig, Gate, MeanMargin, QuantileLimit, QuantileMargin, RateLimit
from controller.core.evidence.quantiles import Shape
from controller.core.evidence.rates import Array
from controller.core.evidence.reference import Reference

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """
    Args:
        value: Candidate's rate, quantile, or ratio to the baseline; NaN without data.
        baseline: Baseline's rate, quantile or mean; NaN without data.
        limit: In the unit of `value`.
        interval: Of `value`; None without data.
        requests, requests_baseline: Trials.
        relative: The limit is a ratio to the baseline.
    """

    value: float
    baseline: float
    limit: float
    interval: Interval | None
    requests: float
    requests_baseline: float
    relative: bool = False

    @property
    def beyond(self) -> bool:
        """The whole interval lies beyond the limit, and beyond what the baseline shows where that breaks the limit itself (an incident)."""
        allowed = self.limit if self.relative or math.isnan(self.baseline) else max(self.limit, self.baseline)
        return self.interval is not None and self.interval[0] > allowed


def observe(gate: Gate, config: EngineConfig, tally: Array, reference: Reference, *, look_closely: bool = True) -> Observed:
    """
    Args:
        gate: One of the configuration's.
        config: Columns, and alpha of the intervals.
        tally: Increments of the phase, shape (2, columns): candidate, baseline.
        reference: Variance of means.
        look_closely: Without it there is an interval only where the value lies beyond the limit (`beyond` is the same, and cheaper).
    """
    match gate:
        case RateLimit():
            bad, total = config.column(gate.bad), config.column(gate.total)
            n, m = (float(v) for v in tally[:, total])
            x, y = (float(min(a, b)) for a, b in zip(tally[:, bad], tally[:, total], strict=True))
            value, other, limit = _over(x, n), _over(y, m), gate.limit
        case MeanMargin():
            amount, count = config.column(gate.amount), config.column(gate.count)
            n, m = (float(v) for v in tally[:, count])
            x, other = float(tally[0, amount]), _over(float(tally[1, amount]), m)
            value, limit = _over(_over(x, n), other), 1 + gate.margin
        case QuantileLimit() | QuantileMargin():
            h = config.histogram(gate.histogram)
            buckets = tally[:, h.first : h.total + 1]
            n, m = (float(v) for v in buckets[:, -1])
            own, other = (_estimate(h.edges, row, gate.q) for row in buckets)
            value, limit = (_over(own, other), 1 + gate.margin) if isinstance(gate, QuantileMargin) else (own, gate.limit)
    interval: Interval | None = None
    relative = isinstance(gate, MeanMargin | QuantileMargin)
    if (look_closely or value > limit) and not math.isnan(value):
        match gate:
            case RateLimit():
                interval = proportion_interval(x, n, config.interval_alpha, gate.limit)
            case MeanMargin():
                interval = _ratio_interval(value, reference.variance_of(gate.name) / (other * other), n, m, config.interval_alpha)
            case QuantileLimit() | QuantileMargin():
                interval = _quantile_interval(h.edges, buckets, gate.q, config.interval_alpha, relative=relative)
    return Observed(
        value=value, baseline=other, limit=limit, interval=interval, requests=n, requests_baseline=m, relative=relative
    )


def _ratio_interval(ratio: float, cv2: float, n: float, m: float, alpha: float) -> Interval | None:
    """Of a ratio of two means whose requests have the squared coefficient of variation `cv2`; None where that is unknown."""
    if not cv2 > 0:
        return None
    half = ratio_halfwidth(cv2 * ratio * ratio * (1 / n + 1 / m), alpha)
    return max(ratio - half, 0.0), ratio + half


def _quantile_interval(edges: tuple[float, ...], buckets: Array, q: float, alpha: float, *, relative: bool) -> Interval:
    """Of the candidate's quantile, or of its ratio to the baseline's: that misses only if one of two bands does."""
    if not relative:
        return _band(edges, buckets[0], q, alpha)
    (low, high), (other_low, other_high) = (_band(edges, row, q, alpha / 2) for row in buckets)
    return low / other_high, high / other_low


def _over(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan


def _estimate(edges: tuple[float, ...], cumulative: Array, q: float) -> float:
    """The quantile as it lies in the buckets, interpolated over the logarithm; NaN without data, at most the last finite edge."""
    total = float(cumulative[-1])
    if total <= 0:
        return math.nan
    i = int(np.searchsorted(cumulative[:-1], q * total))
    if i == len(edges):
        return edges[-1]
    if i == 0:
        return edges[0]
    low, high = float(cumulative[i - 1]), float(cumulative[i])
    part = (q * total - low) / (high - low) if high > low else 1.0
    return float(edges[i - 1] * (edges[i] / edges[i - 1]) ** part)


def _band(edges: tuple[float, ...], cumulative: Array, q: float, alpha: float) -> Interval:
    """Anytime-valid bounds of a quantile, kept within the finite edges."""
    shape = Shape(edges, cumulative)
    low, high = quantile_band(q, float(cumulative[-1]), alpha)
    return shape.quantile(max(low, 1e-9)), shape.quantile(min(high, 1 - 1e-9))
