"""
The bucket edges of the router's latency histograms: the router counts at them, the controller judges at them.

Its one rule: an edge that a limit can stand on is never taken away, or a running rollout's gate would lose its count.
"""

from bisect import bisect_left

RATIO = 1.1
"""Neighbouring edges of the grid: an increase of 10 % falls on an edge."""

_LIMITS_S = (0.25, 0.5, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0)
"""Round limits that people write in objectives, beside the grid through 1.0 s."""


def _edges() -> tuple[float, ...]:
    grid = (float(f"{RATIO**k:.6g}") for k in range(-32, 48))
    return tuple(sorted({*grid, *_LIMITS_S}))


LATENCY_EDGES_S = _edges()
"""Upper edges in seconds, rising, from about 0.047 s to 90 s: 1.1**k and the round limits."""


def nearest_edges(limit_s: float) -> str | None:
    """None when a limit is an edge; else the edges around it, in words."""
    index = bisect_left(LATENCY_EDGES_S, limit_s * (1 - 1e-9))
    if index < len(LATENCY_EDGES_S) and LATENCY_EDGES_S[index] <= limit_s * (1 + 1e-9):
        return None
    near = [LATENCY_EDGES_S[i] for i in (index - 1, index) if 0 <= i < len(LATENCY_EDGES_S)]
    return " and ".join(f"{edge:g}s" for edge in near)
