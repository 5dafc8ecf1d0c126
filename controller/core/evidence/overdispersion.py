"""
Noise that one arm has for itself: requests of one minute are more alike than independent ones.

A slow pod or a burst of failures in one arm makes counts vary more than a binomial law; log-likelihood ratios are divided by the factor
phi = 1 + tau^2 / v by which the variance is too large (quasi-likelihood, McCullagh and Nelder 1989, section 4.5; for exponents 1/phi <= 1
the expectation stays at most 1 by Jensen). For failures phi comes from the baseline's history; for latencies a prior from that history
is updated by the rollout's own minutes, lagging five minutes and centred per phase, so that a fresh fault does not excuse itself.
Its one rule: phi is never below `PHI_MIN`.
"""

import numpy as np

from controller.core.evidence.config import Histogram
from controller.core.evidence.rates import Array

PHI_MIN = 1.05

LAGS = 4
"""Minutes over which noise may hang together (Bartlett weights, Newey and West 1987)."""

LAG_BLOCKS = 5
"""Minutes that the estimate lags."""

PRIOR_BLOCKS = 15.0
"""The prior counts as so many minutes."""

UNSEEN = 1.5
"""Noise that hangs together for longer than `LAGS` minutes, or as long as a phase, is seen only in part: what is found counts so many times."""

PRIVATE_SD_MIN = 0.02
"""Least private fluctuation of the logarithm of latency that the prior assumes, over minutes."""

PRIVATE_PART = 0.1
"""Part of the baseline's own minute-to-minute variance that the prior takes for private; the rest is shared load."""

CLUSTERING_PRIOR = 0.1
"""Squared coefficient of variation of a failure rate between minutes, where history cannot tell."""


def long_run(e: Array) -> float:
    """
    Long-run variance of centred residuals, Bartlett weights.

    Source:
        Newey and West 1987 (Econometrica 55(3), 703-708), eq. 5, for one variable.
    """
    s = float((e * e).sum())
    for lag in range(1, min(LAGS, len(e) - 1) + 1):
        s += 2 * (1 - lag / (LAGS + 1)) * float((e[lag:] * e[:-lag]).sum())
    return float(max(s, 0.0) / max(len(e), 1))


def clustering(x: Array, mean: Array) -> float:
    """
    Squared coefficient of variation of a rate between blocks, beyond Poisson.

    Args:
        x: Events per block, bursts left out.
        mean: Expected events per block, positive.

    Returns:
        Estimate, shrunk towards `CLUSTERING_PRIOR` with the precision that the counts allow, at most 10.

    Source:
        McCullagh and Nelder 1989, section 6.2.3: counts whose mean itself varies with squared coefficient of variation c have
        variance m + c m^2; solved for c by moments.
    """
    if len(x) < 20 or x.sum() < 5:
        return CLUSTERING_PRIOR
    mu = float(mean.mean())
    found = max(long_run((x - mean) / np.sqrt(mean)) - 1, 0.0) / mu
    error = 18.0 / (len(x) * mu * mu)  # variance of the estimate: 2/K times (1 + 2 * LAGS) over mu^2
    trust = 0.25 / (0.25 + error)
    return float(min(trust * found + (1 - trust) * CLUSTERING_PRIOR, 10.0))


def long_run_noise(histogram: Histogram, buckets: Array) -> float:
    """
    Long-run variance per minute of the baseline's log latency, the hour's trend removed.

    Args:
        histogram: Whose buckets these are.
        buckets: Cumulative over edges, shape (blocks, edges + 1).
    """
    n = buckets[:, -1]
    seen = n > 0
    total = buckets.sum(axis=0)
    if seen.sum() < 60 or total[-1] <= 0:
        return 0.0
    edges = np.array(histogram.edges)
    share = total[:-1] / total[-1]
    i = int(np.argmin(np.abs(share - 0.5)))
    lo, hi = max(i - 1, 0), min(i + 1, len(edges) - 1)
    slope = (share[hi] - share[lo]) / np.log(edges[hi] / edges[lo]) if hi > lo else 0.0
    p = share[i]
    if slope <= 0 or not 0 < p < 1:
        return 0.0
    r = buckets[seen, i] / n[seen]
    window = np.ones(60)
    trend = np.convolve(r, window, mode="same") / np.convolve(np.ones_like(r), window, mode="same")
    binomial = p * (1 - p) * float((1 / n[seen]).mean())
    return float(max(long_run(r - trend) - binomial, 0.0) / (slope * slope))


def prior_variance(noise: Array, density: Array) -> Array:
    """
    Prior long-run variance per minute of the difference of two arms' exceedance shares.

    Args:
        noise: Of the baseline's log latency (`long_run_noise`).
        density: Change of the share per unit of log latency at the threshold.

    Source:
        Delta method: a shift d of log latency moves the share by density * d; two arms have twice its variance.
    """
    # 4: noise that lasts two minutes adds up to 2 * 2 minute-variances
    private = np.maximum(4 * PRIVATE_SD_MIN**2, PRIVATE_PART * noise)
    return 2 * private * density * density


def count_phi(cv2: Array, expected_c: Array, expected_b: Array | None) -> Array:
    """
    Overdispersion of failure counts per minute.

    Args:
        cv2: Squared coefficient of variation between minutes.
        expected_c: Candidate's expected failures per minute at the margin.
        expected_b: Baseline's; None for a comparison with a fixed limit.

    Source:
        phi = 1 + tau^2 / v as above, for the logarithm of a rate (v = 1 / expected) or of a ratio of two (the sum of both v).
    """
    own = 1 / np.maximum(expected_c, 1e-9)
    if expected_b is None:
        return PHI_MIN + cv2 / own
    return PHI_MIN + 2 * cv2 / (own + 1 / np.maximum(expected_b, 1e-9))


class PrivateNoise:
    """
    The rollout's own minutes: how much more the difference of two exceedance shares varies than requests explain.

    Source:
        Method of moments between blocks of known variance: DerSimonian and Laird 1986 (Control. Clin. Trials 7(3), 177-188), without their
        correction for the estimated centre, and with the long-run variance in place of the variance.
    """

    def __init__(self, size: int) -> None:
        self.prior: Array = np.zeros(size)
        self.tau2: Array = np.zeros(size)
        self.sums: Array = np.zeros((4, size))
        self.blocks = 0
        self.queue: list[Array] = []
        self.last: Array = np.zeros((LAGS, size))
        self.products: Array = np.zeros((LAGS + 1, size))
        self.precision: Array = np.zeros(size)
        self.count: Array = np.zeros(size)

    def enter(self, prior: Array) -> None:
        """A phase begins: thresholds may have moved, so minutes are centred anew; what was learned of the noise stays."""
        learned = self.prior.any()
        self.tau2 = (
            np.maximum(self.tau2 * np.where(self.prior > 0, prior / np.maximum(self.prior, 1e-300), 1.0), 0)
            if learned
            else prior.copy()
        )
        if learned:
            scale = np.where(prior > 0, self.prior / np.maximum(prior, 1e-300), 1.0)
            self.precision = self.precision * scale
        self.prior = prior
        self.sums[:] = 0
        self.blocks = 0
        self.queue = []
        self.last[:] = 0

    def add(self, xc: Array, nc: Array, xb: Array, nb: Array) -> None:
        """One minute of exceedances and requests of both arms."""
        self.queue.append(np.stack([xc, nc, xb, nb]))
        if len(self.queue) > LAG_BLOCKS:
            self._absorb(self.queue.pop(0))

    def _absorb(self, block: Array) -> None:
        xc, nc, xb, nb = block
        if self.blocks:
            sxc, snc, sxb, snb = self.sums
            ok = (nc > 0) & (nb > 0) & (snc > 0) & (snb > 0)
            pc, pb = (sxc + 0.5) / (snc + 1), (sxb + 0.5) / (snb + 1)
            m, k = np.where(ok, nc, 1.0), np.where(ok, nb, 1.0)
            v = pc * (1 - pc) / m + pb * (1 - pb) / k
            e = (xc / m - xb / k - (pc - pb)) / np.sqrt(v * (1 + 1 / self.blocks))
            e = np.where(ok, np.clip(e, -5, 5), 0.0)
            self.products[0] += e * e
            self.products[1:] += e * self.last
            self.last = np.vstack([e[None, :], self.last[:-1]])
            self.precision += np.where(ok, 1 / v, 0.0)
            self.count += ok
            weights = 2 * (1 - np.arange(1, LAGS + 1) / (LAGS + 1))
            k_ = np.maximum(self.count, 1)
            variance = np.maximum(self.products[0] + (weights[:, None] * self.products[1:]).sum(axis=0), 0) / k_
            found = UNSEEN * np.maximum(variance - 1, 0) * self.count / np.maximum(self.precision, 1e-300)
            blend = (PRIOR_BLOCKS * self.prior + self.count * found) / (PRIOR_BLOCKS + self.count)
            self.tau2 = np.maximum(blend, self.prior)  # quiet minutes do not take the prior away
        self.sums += block
        self.blocks += 1

    def phi(self, p: Array, nc: Array, nb: Array | None, tau2: Array) -> Array:
        """
        Factor for a comparison with minute counts nc and nb (None: with a fixed limit) at share p: 1 + tau^2 / v, v binomial.
        """
        spread = p * (1 - p)
        v = spread / np.maximum(nc, 1e-9)
        if nb is not None:
            v = v + spread / np.maximum(nb, 1e-9)
        return PHI_MIN + tau2 / v
