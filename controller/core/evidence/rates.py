"""
E-variables for bad events: against an absolute limit, and against the other arm under whatever both share.

Each function returns a log-likelihood ratio whose exponential has expectation at most 1 under its null, for each block, whatever happened
before; products over blocks are therefore e-processes (Ville 1939: they cross 1/alpha with probability at most alpha, at any time).
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TINY = 1e-12


def odds(p: Array, ratio: Array) -> Array:
    """The probability whose odds are `ratio` times those of `p`."""
    return ratio * p / (1 - p + ratio * p)


def limit_log_lr(x: Array, n: Array, p0: Array, ratio: Array) -> Array:
    """
    Candidate alone against a limit.

    Args:
        x: Bad events (fractions allowed: interpolated buckets).
        n: All events.
        p0: Limit, 0..1.
        ratio: Odds ratio of the alternative: > 1 rejects p <= p0, < 1 rejects p >= p0.

    Returns:
        x log(p1 / p0) + (n - x) log((1 - p1) / (1 - p0)), with p1 the limit moved by `ratio`.

    Source:
        Wald 1945, the sequential probability ratio; one-sided because the Bernoulli family has a monotone likelihood ratio (its
        expectation at most 1 on the whole one-sided null). For Y in [0, 1], a^Y b^(1-Y) <= aY + b(1-Y) by convexity (Hoeffding
        1963, eq. 4.1; the same step as Waudby-Smith and Ramdas 2024, section 4), so interpolated counts keep the bound.
    """
    event, other = limit_steps(p0, ratio)
    return x * event + (n - x) * other


def limit_steps(p0: Array, ratio: Array) -> tuple[Array, Array]:
    """What one bad event and one good one add to `limit_log_lr`."""
    p1 = odds(p0, ratio)
    return np.log(p1 / p0), np.log((1 - p1) / (1 - p0))


def contrast(xc: Array, yc: Array, x: Array, y: Array, f: Array, bad: Array, good: Array) -> Array:
    """
    Candidate against baseline: the part of a likelihood ratio that what both arms share does not move.

    Args:
        xc, yc: The candidate's events and non-events in the block.
        x, y: Those of both arms together.
        f: The candidate's part of the requests; of the expected events at the margin where only events are compared.
        bad, good: How many times as likely the alternative makes an event, and a non-event, of the candidate.

    Returns:
        xc log(bad) + yc log(good) - x log(1 + f (bad - 1)) - y log(1 + f (good - 1)).

    Source:
        Both uses below. It is the log of prod (alternative / mixture of the arms), one factor for each request.
    """
    return xc * np.log(bad) + yc * np.log(good) - x * np.log1p(f * (bad - 1)) - y * np.log1p(f * (good - 1))


def ratio_log_lr(xc: Array, nc: Array, xb: Array, nb: Array, kappa: Array, ratio: Array) -> Array:
    """
    Candidate against baseline, given how many bad events both had together.

    Under rates p_c and p_b of rare events the candidate's part of x_c + x_b is Binomial with share p_c n_c / (p_c n_c + p_b n_b): a burst
    that multiplies both rates cancels. Null: p_c <= kappa p_b (ratio > 1) or p_c >= kappa p_b (ratio < 1).

    Args:
        xc, nc, xb, nb: Bad and all events of candidate and baseline in the block.
        kappa: Rate ratio at the margin.
        ratio: Alternative's rate ratio over kappa.

    Source:
        Lindon and Malek 2022 (NeurIPS), time-inhomogeneous Poisson counting processes: given the total, the arm of each arrival is
        multinomial, free of the common intensity. Simple alternatives instead of their Dirichlet mixture, one-sided as above.
    """
    one = np.ones_like(ratio)
    return contrast(xc, nc - xc, xc + xb, nc + nb - xc - xb, part(kappa * nc, nb), ratio, one)


def part(own: Array, other: Array) -> Array:
    """own / (own + other), 0 where there is neither."""
    result: Array = own / np.maximum(own + other, TINY)
    return result


def unlikely_at(x: Array, mean: Array) -> Array:
    """
    How surprised a Poisson law of this mean is by x or more events: minus the log of Chernoff's bound, 0 where x <= mean.

    Source:
        Chernoff 1952 for the Poisson law: P(X >= x) <= exp(-(x log(x / m) - x + m)).
    """
    m = np.maximum(mean, 1e-9)
    y = np.maximum(x, m)
    return y * np.log(y / m) - y + m
