"""
Means per request of a heavy-tailed quantity (cost): a normal mixture over block means.

Only sums and counts are known. A block's mean of many requests is nearly normal; how many that takes grows with the squared coefficient
of variation, and the variance comes from the baseline's history. So this is the one gate whose bound is asymptotic and not exact.
"""

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence.rates import Array

BLOCK_MIN = 30.0
"""Requests in a block of a quantity with coefficient of variation 1 or less: skewness of the block mean then at most 0.37 for a gamma law."""

VARIANCE_SLACK = 1.1
"""The variance is an estimate."""

EFFECTS = (0.05, 0.12, 0.30, 0.80)
"""Differences beyond the margin that the mixture bets on, in units of the baseline's mean."""


def block_requests(cv2: Array) -> Array:
    """Requests that the candidate needs in a block, by the squared coefficient of variation."""
    return BLOCK_MIN * np.maximum(1.0, cv2)


def enough(mu: Array, s2: Array, nc: Array, nb: Array) -> NDArray[np.bool_]:
    """
    Whether a block holds enough requests to be judged.

    Args:
        mu, s2: Mean and variance per request; 0 where unknown.
        nc, nb: Requests of candidate and baseline.
    """
    known = (s2 > 0) & (mu > 0)
    needed = block_requests(s2 / np.where(known, mu * mu, 1.0))
    return known & (nc >= needed) & (nb >= needed / 3)


def mean_log_lr(difference: Array, variance: Array, effect: Array) -> Array:
    """
    One block's log-evidence that a mean exceeds its margin. Null: E[difference] <= 0.

    Args:
        difference: Candidate mean - kappa * baseline mean (its negative proves "within the margin").
        variance: Of `difference`.
        effect: The excess that is bet on, > 0.

    Returns:
        lambda * difference - lambda^2 * variance / 2 with lambda = effect / variance.

    Source:
        Howard, Ramdas, McAuliffe and Sekhon 2021 (Ann. Statist. 49(2), 1055-1080), Definition 1 with psi(lambda) = lambda^2 / 2 and
        the method of mixtures of section 3 (their normal mixture, here on a grid of effects as in Robbins 1970).
    """
    return effect * (difference - effect / 2) / variance


def margin_variance(s2: Array, kappa: Array, nc: Array, nb: Array) -> Array:
    """
    Variance of (candidate mean - kappa * baseline mean) for a candidate at the margin.

    Args:
        s2: Variance per request of the baseline. At the margin the candidate's is kappa^2 times as large.
        kappa: 1 + margin.
        nc, nb: Requests in the block.

    Source:
        Variance of a difference of independent means; a quantity scaled by kappa has kappa^2 times the variance.
    """
    return VARIANCE_SLACK * s2 * kappa * kappa * (1.0 / nc + 1.0 / nb)
