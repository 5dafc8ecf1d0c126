"""
Intervals that hold at every look: what a verdict shows beside its e-values.

Source:
    Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021, section 3 (conjugate mixtures): the Beta mixture of Bernoulli likelihood
    ratios is a martingale at the true proportion, so the proportions at which it stays below 1/alpha cover the truth at all times
    with probability at least 1 - alpha (Ville).
"""

import math
from collections.abc import Callable

STEPS = 60

RATIO_RHO = 100.0
"""Fixed beforehand, as the mixture needs: the interval is tightest where a ratio's standard error is 0.03, which a margin of 10 % asks for."""


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def proportion_interval(events: float, trials: float, alpha: float, prior: float = 0.5) -> tuple[float, float]:
    """
    Confidence sequence of a proportion.

    Args:
        events: Seen so far, 0 <= events <= trials.
        trials: Seen so far.
        alpha: Probability of ever missing the truth.
        prior: Guess of the proportion before the data, 0..1; two pseudo-observations. Costs width, not validity.

    Returns:
        (low, high); (0, 1) without data.
    """
    if not 0 <= events <= trials or not 0 < alpha < 1:
        raise ValueError(f"an interval needs 0 <= events <= trials and 0 < alpha < 1, got {events} of {trials} at {alpha}")
    if trials == 0:
        return 0.0, 1.0
    prior = min(max(prior, 1e-4), 1 - 1e-4)
    a, b = 2 * prior, 2 * (1 - prior)
    mixture = _log_beta(a + events, b + trials - events) - _log_beta(a, b)

    def inside(p: float) -> bool:
        log_p = events * math.log(p) if events else 0.0
        log_q = (trials - events) * math.log1p(-p) if trials > events else 0.0
        return mixture - log_p - log_q < math.log(1 / alpha)

    centre = min(max(events / trials, 1e-12), 1 - 1e-12)
    return (_edge(inside, centre, 1e-12), _edge(inside, centre, 1 - 1e-12))


def quantile_band(q: float, trials: float, alpha: float) -> tuple[float, float]:
    """
    Which empirical shares the true `q` quantile can have: between the empirical quantiles of these two levels lies the true one.

    The empirical share below the true quantile is Binomial(trials, q) / trials whatever the distribution, so the levels at which the Beta
    mixture of `proportion_interval` stays below 1/alpha at p = q hold the truth at all times.

    Args:
        q: 0..1.
        trials: Requests so far.
        alpha: Probability of ever missing the truth.

    Returns:
        (low, high) levels in 0..1.
    """
    if trials <= 0:
        return 0.0, 1.0
    a, b = 2 * q, 2 * (1 - q)

    def inside(level: float) -> bool:
        x = level * trials
        mixture = _log_beta(a + x, b + trials - x) - _log_beta(a, b)
        return mixture - x * math.log(q) - (trials - x) * math.log1p(-q) < math.log(1 / alpha)

    return _edge(inside, q, 0.0), _edge(inside, q, 1.0)


def ratio_halfwidth(variance: float, alpha: float) -> float:
    """
    Half the width of a confidence sequence around a ratio of two means of many requests.

    Args:
        variance: Of the ratio so far.
        alpha: Probability of ever missing the truth.

    Returns:
        sqrt((v + rho) log((v + rho) / (alpha^2 rho))) / v with information v = 1 / variance.

    Source:
        Howard, Ramdas, McAuliffe and Sekhon 2021, eq. (14), the two-sided normal mixture (Robbins 1970). Exact for normal increments of known
        variance; here block means are nearly normal and the variance is estimated, so it holds for large samples.
    """
    v = 1 / variance
    return math.sqrt((v + RATIO_RHO) * math.log((v + RATIO_RHO) / (alpha * alpha * RATIO_RHO))) / v


def _edge(inside: Callable[[float], bool], centre: float, end: float) -> float:
    if inside(end):
        return float(round(end))
    near, far = centre, end
    for _ in range(STEPS):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(middle) else (near, middle)
    return far
