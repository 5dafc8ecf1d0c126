"""
Quantiles as exceedances: which share of requests is slower than a threshold, in either arm.

"p95 at most 3 s" is "at most 5 % slower than 3 s"; "p95 at most 1.15 times the baseline's" is "the candidate exceeds 1.15 x no more often
than the baseline exceeds x", for an x fixed before the data (here the baseline's own quantile). Thresholds that are no bucket edge are
interpolated, which keeps counts fractional within [0, 1] per request, and so keeps the bounds of `rates`.
"""

import math
from bisect import bisect_left
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence.rates import Array, contrast, odds, part

_NORMAL = NormalDist()


def two_sample_log_lr(xc: Array, nc: Array, xb: Array, nb: Array, pb: Array, ratio: Array) -> Array:
    """
    Safe test of two proportions, one block. Null: p_c <= p_b (ratio > 1) or p_c >= p_b (ratio < 1), whatever they are.

    Args:
        xc, nc, xb, nb: Exceedances and requests of both arms.
        pb: Guess of the baseline's proportion from earlier blocks only. A bad guess costs power, not validity.
        ratio: Odds ratio of the alternative.

    Source:
        Turner, Ly and Gruenwald 2024 (J. Statist. Plann. Inference 230, 106116), Theorem 1: with alternative (t_c, t_b) and
        t_0 = (n_c t_c + n_b t_b) / (n_c + n_b), the product of the two likelihood ratios against t_0 is an e-variable for p_c = p_b;
        one-sided nulls by their extension to convex nulls.
    """
    pc = odds(pb, ratio)
    return contrast(xc, nc - xc, xc + xb, nc + nb - xc - xb, part(nc, nb), pc / pb, (1 - pc) / (1 - pb))


class Shape:
    """
    A baseline's distribution function between bucket edges: linear in the normal quantile over the logarithm.

    Exact for log-normal latencies, second-order wrong for other smooth ones; nowhere worse than linear interpolation of the counts.
    """

    def __init__(self, edges: tuple[float, ...], cumulative: NDArray[np.float64]) -> None:
        """
        Args:
            edges: Finite upper bounds.
            cumulative: Counts at or below each edge, then the total; the total is positive.
        """
        self.edges = edges
        # half a request keeps the normal quantile finite where no request was seen
        share = (cumulative[:-1] + 0.5) / (float(cumulative[-1]) + 1.0)
        rising = np.maximum.accumulate(np.clip(share, 1e-6, 1 - 1e-6) + 1e-12 * np.arange(len(edges)))
        self._share: Array = np.minimum(rising, 1 - 1e-9)

    def below(self, x: float) -> float:
        """Share of requests at or below x."""
        if len(self.edges) == 1:
            return _NORMAL.cdf(self._z(0) + math.log(x / self.edges[0]))
        i = min(max(bisect_left(self.edges, x), 1), len(self.edges) - 1)
        part = math.log(x / self.edges[i - 1]) / math.log(self.edges[i] / self.edges[i - 1])
        return _NORMAL.cdf(self._z(i - 1) + part * (self._z(i) - self._z(i - 1)))

    def quantile(self, q: float) -> float:
        """The x that a share q lies at or below, kept within the finite edges."""
        i = int(np.searchsorted(self._share, q))
        if i == 0:
            return self.edges[0]
        if i == len(self.edges):
            return self.edges[-1]
        z0, z1 = self._z(i - 1), self._z(i)
        part = (_NORMAL.inv_cdf(q) - z0) / (z1 - z0) if z1 > z0 else 1.0
        return float(self.edges[i - 1] * (self.edges[i] / self.edges[i - 1]) ** part)

    def _z(self, i: int) -> float:
        return _NORMAL.inv_cdf(float(self._share[i]))

    def density(self, x: float) -> float:
        """Change of `below` per unit of log x."""
        step = 0.05
        return max(self.below(x * math.exp(step)) - self.below(x * math.exp(-step)), 1e-6) / (2 * step)


def split(edges: tuple[float, ...], threshold: float, shape: Shape | None, stretch: float) -> tuple[int, int, float] | None:
    """
    How to count requests at or below a threshold from cumulative buckets.

    Args:
        edges: Finite bucket edges.
        threshold: In the unit of the edges.
        shape: The baseline's distribution; None interpolates linearly over the logarithm.
        stretch: The candidate at its margin is the baseline slowed by this factor: its shape inside the bucket is the baseline's at
            threshold / stretch.

    Returns:
        (lower bucket, upper bucket, w): count = (1 - w) * cumulative[lower] + w * cumulative[upper], lower -1 for none; None if the
        threshold lies beyond the last finite edge, where nothing can be counted.
    """
    tolerance = 1e-4
    hi = int(np.searchsorted(np.array(edges), threshold * (1 - tolerance)))
    if hi >= len(edges):
        return None
    if abs(edges[hi] / threshold - 1) <= tolerance:
        return hi, hi, 1.0
    if hi == 0:
        return -1, 0, 1.0 if shape is None else _part(shape.below(threshold / stretch), 0.0, shape.below(edges[0] / stretch))
    if shape is None:
        w = math.log(threshold / edges[hi - 1]) / math.log(edges[hi] / edges[hi - 1])
        return hi - 1, hi, w
    low, high = shape.below(edges[hi - 1] / stretch), shape.below(edges[hi] / stretch)
    return hi - 1, hi, _part(shape.below(threshold / stretch), low, high)


def _part(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0) if high - low > 1e-9 else 0.5
