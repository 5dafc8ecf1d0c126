"""
Evidence that the candidate is within its margins: the half of the engine that lets traffic rise, read at a gate.

Every metric must be proven (intersection-union, Berger 1982, Technometrics 24(4), 295-300): the chance to pass a candidate that is at or
beyond one margin is at most that one metric's alpha. Evidence is added once a minute and starts anew with each phase, except that
shadow evidence carries into the phase after it.
Minutes in which the baseline itself breaches a limit tell of the environment and are left out of absolute limits.
"""

import numpy as np

from controller.core.evidence import means
from controller.core.evidence.config import EngineConfig, MeanMargin, QuantileLimit, QuantileMargin, RateLimit
from controller.core.evidence.eprocess import grained, log_mean_exp
from controller.core.evidence.overdispersion import PrivateNoise, count_phi
from controller.core.evidence.quantiles import two_sample_log_lr
from controller.core.evidence.rates import Array, limit_log_lr, odds, ratio_log_lr, unlikely_at
from controller.core.evidence.reference import SURPRISE, Reference
from controller.core.evidence.streams import Streams
from controller.core.evidence.watch import Closed

RATE_RATIOS = 1 / np.array([1.2, 1.6, 3.0, 10.0])
"""Alternatives better than the margin, as odds or rate ratios: a good candidate fails a tenth as often as it may, or half as often."""

SHARE_RATIOS = 1 / np.array([1.12, 1.3, 1.75])
"""The same for exceedances of a threshold: 5 % faster than the margin moves the odds at the median by 1.15, 10 % by 1.3, at the p95 by 1.8."""

EFFECTS = (0.04, 0.10, 0.25)
"""Differences below the margin of a mean, in units of the baseline's mean."""

FRESH, CARRIED, WHOLE = 0, 1, 2
"""Layers of evidence: this phase alone; with the shadow phase before it; everything since the rollout began."""

MEAN_CAP = 5.0
"""Nats that one block of a mean may add."""

CALM_BLOCKS = 2
"""Minutes of the baseline that must not breach a limit before a gate opens."""


BESIDE_WORSE, BESIDE_SURE, BESIDE_DECAY = 1.25, 3.0, 0.5 ** (1 / 60)
"""The baseline has become worse when failures as many as these have probability below e^-3 at 1.25 times history's rate; those of sixty blocks ago
count half."""


class Proof:
    """Log e-values against "at or beyond the margin", for each multiple of the margins that a phase asks for."""

    def __init__(self, config: EngineConfig) -> None:
        rates = [g for g in config.gates if isinstance(g, RateLimit)]
        limits = [g for g in config.gates if isinstance(g, QuantileLimit)]
        margins = [g for g in config.gates if isinstance(g, QuantileMargin)]
        averages = [g for g in config.gates if isinstance(g, MeanMargin)]
        self.multiples = tuple(sorted({m for p in config.phases for m in (p.multiple, p.wider) if m is not None}))
        self.nr, self.nq, self.nm, self.nc = len(rates), len(limits), len(margins), len(averages)
        k = np.array(self.multiples)
        self.limit: Array = np.array([g.limit for g in rates])
        # axes: gate, multiple, ratio
        self.rate: Array = np.minimum(self.limit[:, None] * k, 0.9)[:, :, None]
        self.share: Array = odds(np.array([1 - g.q for g in limits])[:, None], k[None, :])[:, :, None]
        self.kappa_mean: Array = (1 + k[None, :] * np.array([g.margin for g in averages])[:, None])[:, :, None]
        # axes: layer, gate, multiple, alternative
        self.rate_limit: Array = np.zeros((3, self.nr, len(k), len(RATE_RATIOS)))
        self.rate_ratio: Array = np.zeros((3, self.nr, len(k), len(RATE_RATIOS)))
        self.quantile: Array = np.zeros((3, self.nq, len(k), len(SHARE_RATIOS)))
        self.relative: Array = np.zeros((3, self.nm, len(k), len(SHARE_RATIOS)))
        self.mean: Array = np.zeros((3, self.nc, len(k), len(EFFECTS)))
        self.mean_block: Array = np.zeros((4, self.nc))
        self.delayed: Array = np.zeros(self.rate_limit.shape[1:])
        """Evidence of the last minute against absolute limits: left out too if the next minute is an incident."""
        self.incident_blocks = CALM_BLOCKS
        """Minutes since the baseline breached a limit."""
        self.beside: Array = np.zeros((2, self.nr))
        """Failures of the baseline beside the candidate, and how many history expects; fading."""

    def begin(self, *, carry: bool) -> None:
        """A phase begins; `carry` keeps the evidence of the shadow phase before it."""
        for table in (self.rate_limit, self.rate_ratio, self.quantile, self.relative, self.mean):
            table[FRESH] = 0.0
            if not carry:
                table[CARRIED] = 0.0
        self.mean_block[:] = 0.0
        self.delayed[:] = 0.0

    def add(self, closed: Closed, share: Array, streams: Streams, reference: Reference, noise: PrivateNoise) -> None:
        """
        Args:
            closed: The block that has ended.
            share: The baseline's shares, from before it.
            streams: What was counted.
            reference: Of the baseline.
            noise: Private to the arms.
        """
        nr, nq, nm = self.nr, self.nq, self.nm
        xc, nc, xb, nb = closed.counts
        a = nr + nq
        c = closed.per_block
        self._rates(xc[:nr], nc[:nr], xb[:nr], nb[:nr], c, reference)
        if nq:
            phi = noise.phi(share[:nq], c * nc[nr:a], None, noise.tau2[:nq])[:, None, None]
            lr = limit_log_lr(xc[nr:a, None, None], nc[nr:a, None, None], self.share, SHARE_RATIOS) / phi
            self.quantile += grained(lr)
        if nm:
            index = np.stack([np.arange(streams.at(k).start, streams.at(k).stop) for k in self.multiples], axis=1)
            phi = noise.phi(share[nq:], c * nc[a : a + nm], c * nb[a:], noise.tau2[nq:])[:, None, None]
            lr = two_sample_log_lr(
                xc[index][:, :, None],
                nc[index][:, :, None],
                xb[a:, None, None],
                nb[a:, None, None],
                share[nq:, None, None],
                SHARE_RATIOS,
            )
            self.relative += grained(lr / phi)
        if self.nc:
            self._means(closed.amounts, reference)

    def _rates(self, xc: Array, nc: Array, xb: Array, nb: Array, c: float, reference: Reference) -> None:
        if self.nr == 0:
            return
        self.beside *= BESIDE_DECAY
        expected = nb * reference.mean_rate
        # a gust or an incident of some minutes is weather; what stays worse exceeds this in minute after minute
        self.beside += np.stack([np.minimum(xb, expected + 2 * np.sqrt(expected) + 1), expected])
        incident = bool((unlikely_at(xb, nb * self.limit) > SURPRISE).any())
        ratio = ratio_log_lr(
            xc[:, None, None],
            nc[:, None, None],
            xb[:, None, None],
            nb[:, None, None],
            np.maximum(self.rate / reference.mean_rate[:, None, None], 1.0),
            RATE_RATIOS,
        )
        phi = count_phi(reference.clustering, reference.mean_rate * c * nc, reference.mean_rate * c * nb)[:, None, None]
        self.rate_ratio += grained(ratio / phi)
        if not incident:
            calm = self.incident_blocks >= 1
            if calm:
                self.rate_limit += self.delayed
            phi = count_phi(reference.clustering, reference.mean_rate * c * nc, None)[:, None, None]
            lr = limit_log_lr(xc[:, None, None], nc[:, None, None], self.rate, RATE_RATIOS) / phi
            self.delayed = grained(lr) if calm else np.zeros_like(self.delayed)
            self.incident_blocks = min(self.incident_blocks + 1, CALM_BLOCKS)
        else:
            self.delayed = np.zeros_like(self.delayed)
            self.incident_blocks = 0

    def _means(self, amounts: Array, reference: Reference) -> None:
        self.mean_block += amounts
        nc, ac, nb, ab = self.mean_block
        mu, s2 = reference.mean_and_variance()
        full = means.enough(mu, s2, nc, nb)
        if not full.any():
            return
        c, b = np.where(full, nc, 1.0)[:, None, None], np.where(full, nb, 1.0)[:, None, None]
        kappa = self.kappa_mean
        difference = kappa * ab[:, None, None] / b - ac[:, None, None] / c
        variance = means.margin_variance(np.where(full, s2, 1.0)[:, None, None], kappa, c, b)
        effect = np.array(EFFECTS) * mu[:, None, None]
        lr = np.minimum(means.mean_log_lr(difference, variance, effect), MEAN_CAP)
        self.mean += np.where(full[:, None, None], grained(lr), 0.0)
        self.mean_block[:, full] = 0.0

    def log_e(self, multiple: float) -> Array:
        """
        Args:
            multiple: Of the margins.

        Returns:
            Log e-values, shape (layers, gates). A rate's is the average of its comparison with the limit and with the baseline, both e-values
            for the same null as long as the baseline is what history says. Where it is not, the limit alone counts: against a baseline that
            has become worse, "better than (limit / baseline as it was) times the baseline as it is" allows more than the limit.
        """
        k = self.multiples.index(multiple)
        limit = log_mean_exp(self.rate_limit[:, :, k], axis=2)
        ratio = log_mean_exp(self.rate_ratio[:, :, k], axis=2)
        failed, expected = self.beside
        worse = unlikely_at(failed, BESIDE_WORSE * expected) > BESIDE_SURE
        rates = np.logaddexp(limit, np.where(worse, -np.inf, ratio)) - np.log(2)
        rest = [log_mean_exp(t[:, :, k], axis=2) for t in (self.quantile, self.relative, self.mean)]
        return np.concatenate([rates, *rest], axis=1)

    @property
    def calm(self) -> bool:
        """The baseline has kept its own limits for the last minutes."""
        return self.incident_blocks >= CALM_BLOCKS
