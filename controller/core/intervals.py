"""
Intervals for proportions, from statsmodels: the only place of the core that touches a numerical library.

statsmodels costs about two seconds at import, so it is imported at the first interval and not with the module. The same counts
give the same interval, so results are kept: a guard that looks at unchanged counts pays nothing.
"""

import math
from functools import lru_cache

from controller.core.measurement import Counts, Moments


@lru_cache(maxsize=8192)
def _wilson(bad: float, total: float, alpha: float) -> tuple[float, float]:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(min(bad, total), total, alpha=alpha, method="wilson")
    # Without bad requests the closed form leaves the bound at some 1e-17 instead of 0.
    return (float(low) if bad > 0 else 0.0), (float(high) if bad < total else 1.0)


def wilson(counts: Counts, alpha: float) -> tuple[float, float]:
    """
    Two-sided score interval of a proportion.

    Args:
        counts: With total > 0; fractional counts are taken as they are.
        alpha: Error probability of both sides together, 0 < alpha < 1.

    Returns:
        Lower and upper bound, within 0..1.

    Source:
        Wilson (1927), JASA 22:209-212, equation on p. 212; computed by ``statsmodels.stats.proportion.proportion_confint``.
    """
    return _wilson(counts.bad, counts.total, alpha)


@lru_cache(maxsize=8192)
def _exact_low(bad: float, total: float, alpha: float) -> float:
    from statsmodels.stats.proportion import proportion_confint

    return float(proportion_confint(min(bad, total), total, alpha=alpha, method="beta")[0])


def exact_low(counts: Counts, alpha: float) -> float:
    """
    Lower bound of the exact interval of a proportion: for a breach, where the score interval is too bold on few requests (one bad
    request of one would have been enough).

    Args:
        counts: With total > 0.
        alpha: Error probability of both sides together, 0 < alpha < 1.

    Returns:
        Within 0..1; 0 without bad requests.

    Source:
        Clopper and Pearson (1934), Biometrika 26:404-413; computed by ``statsmodels`` (``method="beta"``).
    """
    return _exact_low(counts.bad, counts.total, alpha) if counts.bad > 0 else 0.0


@lru_cache(maxsize=8192)
def _newcombe(c_bad: float, c_total: float, b_bad: float, b_total: float, alpha: float) -> tuple[float, float]:
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(
        min(c_bad, c_total), c_total, min(b_bad, b_total), b_total, method="newcomb", compare="diff", alpha=alpha
    )
    return float(low), float(high)


def newcombe(candidate: Counts, baseline: Counts, alpha: float) -> tuple[float, float]:
    """
    Two-sided interval of the difference of two independent proportions, candidate minus baseline.

    Args:
        candidate, baseline: With total > 0.
        alpha: Error probability of both sides together, 0 < alpha < 1.

    Returns:
        Lower and upper bound, within -1..1.

    Source:
        Newcombe (1998), Statistics in Medicine 17:873-890, method 10; computed by ``statsmodels`` (``method="newcomb"``).
    """
    return _newcombe(candidate.bad, candidate.total, baseline.bad, baseline.total, alpha)


@lru_cache(maxsize=64)
def _z(alpha: float) -> float:
    from scipy.special import ndtri

    return float(-ndtri(alpha / 2))


def mean_ratio(candidate: Moments, baseline: Moments, alpha: float) -> tuple[float, float]:
    """
    Two-sided interval of the ratio of two means, candidate over baseline, by the delta method on the logarithm.

    Args:
        candidate, baseline: With n > 1 and total > 0.
        alpha: Error probability of both sides together, 0 < alpha < 1.

    Returns:
        Lower and upper bound of the ratio, >= 0. Asymptotic: it wants some dozens of requests on each side.

    Source:
        Casella and Berger, Statistical Inference, 2nd ed., section 5.5.4 (delta method), applied to log(mean_c) - log(mean_b).
    """
    variance = 0.0
    for side in (candidate, baseline):
        mean = side.total / side.n
        spread = max(side.squares / side.n - mean * mean, 0.0)
        variance += spread / (side.n * mean * mean)
    ratio = (candidate.total / candidate.n) / (baseline.total / baseline.n)
    half = _z(alpha) * math.sqrt(variance)
    return ratio * math.exp(-half), ratio * math.exp(half)
