"""
Reading histograms: how many requests were slower than a limit, and where a quantile lies.

Its one rule: a limit is judged at a bucket edge, where the count is exact, never at an interpolated point between two.
"""

from bisect import bisect_left

from controller.core.measurement import Counts, Histogram

EDGE_TOLERANCE = 1e-6
"""A limit counts as a bucket edge when it is that close, relatively; edges travel as decimal text."""


def above(histogram: Histogram, limit_s: float) -> Counts:
    """
    Requests slower than a limit that is a bucket edge.

    Raises:
        ValueError: the limit is not an edge, so the count is not known.
    """
    index = edge_at(histogram, limit_s)
    if index is None:
        low, high = neighbours(histogram, limit_s)
        raise ValueError(
            f"the limit {limit_s:g} s is not a bucket edge (the nearest are {low} and {high}): add it to the histogram"
        )
    return _counts(histogram, index)


def above_about(histogram: Histogram, limit_s: float) -> Counts:
    """Requests slower than the first edge at or above a limit: at most as many as are slower than the limit itself."""
    index = edge_at(histogram, limit_s)
    if index is None:
        index = bisect_left(histogram.edges_s, limit_s)
    if index >= len(histogram.edges_s):
        raise ValueError(f"{limit_s:.3g} s lies above the last bucket edge {histogram.edges_s[-1]:g} s")
    return _counts(histogram, index)


def edge_at(histogram: Histogram, limit_s: float) -> int | None:
    """Index of the edge that is the limit, or None."""
    index = bisect_left(histogram.edges_s, limit_s * (1 - EDGE_TOLERANCE))
    if index < len(histogram.edges_s) and histogram.edges_s[index] <= limit_s * (1 + EDGE_TOLERANCE):
        return index
    return None


def neighbours(histogram: Histogram, limit_s: float) -> tuple[str, str]:
    """The edges around a limit, in words."""
    index = bisect_left(histogram.edges_s, limit_s)
    low = f"{histogram.edges_s[index - 1]:g} s" if index > 0 else "none below"
    high = f"{histogram.edges_s[index]:g} s" if index < len(histogram.edges_s) else "none above"
    return low, high


def nearest_edge(histogram: Histogram, q: float) -> int | None:
    """
    Index of the finite edge whose share of requests at or below it is nearest to `q`; None when the quantile lies above all edges.

    Args:
        histogram: With total > 0.
        q: 0 < q < 1.
    """
    target = q * histogram.total
    index = bisect_left(histogram.cumulative, target)
    if index == len(histogram.cumulative):
        return None
    if index and target - histogram.cumulative[index - 1] <= histogram.cumulative[index] - target:
        return index - 1
    return index


def quantile(histogram: Histogram, q: float) -> float | None:
    """
    The quantile in seconds, interpolated within its bucket: for people and for a pass, never for a breach.

    Returns:
        None when it lies above the last edge, where a histogram does not know it.
    """
    target = q * histogram.total
    index = bisect_left(histogram.cumulative, target)
    if index == len(histogram.cumulative) or histogram.total <= 0:
        return None
    low_s = histogram.edges_s[index - 1] if index else 0.0
    low_n = histogram.cumulative[index - 1] if index else 0.0
    inside = histogram.cumulative[index] - low_n
    share = (target - low_n) / inside if inside > 0 else 1.0
    return low_s + (histogram.edges_s[index] - low_s) * share


def _counts(histogram: Histogram, index: int) -> Counts:
    return Counts(bad=max(histogram.total - histogram.cumulative[index], 0.0), total=histogram.total)
