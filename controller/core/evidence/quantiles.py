"""
Quantiles as exceedances: which share of requests is slower than a threshold, in either arm.

"p95 at most 3 s" is "at most 5 % slower than 3 s"; "p95 at most 1.15 times the baseline's" is "the candidate exceeds 1.15 x no more often
than the baseline exceeds x", for an x fixed before the data (here the baseline's own quantile). Thresholds that are no bucket edge are
interpolated, which keeps counts fractional within [0, 1] per request, and so keeps the bounds of `rates`.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence.rates import Array, odds

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
    seen = (nc > 0) & (nb > 0)
    pc = odds(pb, ratio)
    p0 = pb + (pc - pb) * (nc / np.maximum(nc + nb, 1e-12))
    q0 = 1 - p0
    lr = xc * np.log(pc / p0) + (nc - xc) * np.log((1 - pc) / q0) + xb * np.log(pb / p0) + (nb - xb) * np.log((1 - pb) / q0)
    return np.where(seen, lr, 0.0)


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
        self.total = float(cumulative[-1])
        self._log = np.log(np.array(edges))
        # half a request keeps the normal quantile finite where no request was seen
        share = (cumulative[:-1] + 0.5) / (self.total + 1.0)
        share = np.maximum.accumulate(np.clip(share, 1e-6, 1 - 1e-6) + 1e-12 * np.arange(len(edges)))
        self._z = np.array([_NORMAL.inv_cdf(min(float(s), 1 - 1e-9)) for s in share])

    def below(self, x: float) -> float:
        """Share of requests at or below x."""
        if len(self.edges) == 1:
            return _NORMAL.cdf(float(self._z[0]) + math.log(x / self.edges[0]))
        return _NORMAL.cdf(self._line(math.log(x), self._log, self._z))

    def quantile(self, q: float) -> float:
        """The x that a share q lies at or below, kept within the finite edges."""
        i = int(np.searchsorted(self._z, _NORMAL.inv_cdf(q)))
        if i == 0:
            return self.edges[0]
        if i == len(self.edges):
            return self.edges[-1]
        z0, z1 = float(self._z[i - 1]), float(self._z[i])
        part = (_NORMAL.inv_cdf(q) - z0) / (z1 - z0) if z1 > z0 else 1.0
        return math.exp(float(self._log[i - 1]) + part * float(self._log[i] - self._log[i - 1]))

    def density(self, x: float) -> float:
        """Change of `below` per unit of log x."""
        step = 0.05
        return max(self.below(x * math.exp(step)) - self.below(x * math.exp(-step)), 1e-6) / (2 * step)

    @staticmethod
    def _line(at: float, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> float:
        i = min(max(int(np.searchsorted(xs, at)), 1), len(xs) - 1)
        x0, x1, y0, y1 = float(xs[i - 1]), float(xs[i]), float(ys[i - 1]), float(ys[i])
        return y0 + (at - x0) * (y1 - y0) / (x1 - x0)


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
