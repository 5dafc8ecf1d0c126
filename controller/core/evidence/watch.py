"""
Evidence that the candidate is beyond a margin: the half of the engine that rolls back, looked at after every scrape.

For each rung (the SLO, 2.5 times its margin, a catastrophe) and each metric there are e-processes as rows of one `Wealth`. A rate and an absolute
quantile must be beyond their limit and worse than the baseline at the same time, so they have two rows each and count the smaller
(an e-process for the union of both nulls): an incident that both arms share is no evidence against the candidate. Where the baseline fails
too rarely to be compared with, that comparison learns nothing; so a rate's evidence is a weighted average of this pair and of a third row: the
limit alone, in minutes in which the baseline is calm, softened by all the burstiness that history has shown.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence import means
from controller.core.evidence.config import EngineConfig, MeanMargin, QuantileLimit, QuantileMargin, RateLimit
from controller.core.evidence.eprocess import Wealth, log_mean_exp
from controller.core.evidence.overdispersion import PHI_MIN, PrivateNoise, count_phi
from controller.core.evidence.quantiles import two_sample_log_lr
from controller.core.evidence.rates import Array, limit_steps, odds, ratio_log_lr, unlikely_at
from controller.core.evidence.reference import Reference
from controller.core.evidence.streams import Streams

SURGE = 3.0
"""A minute whose count of the baseline's failures has probability below e^-3 at its calm rate is left out of the limit alone. The choice
rests on the baseline, never on the candidate."""

ALONE = 0.25
"""Weight of the limit alone in a rate's evidence."""

GUST = 1.15
"""What the limit alone is stretched by: bursts of one arm are part of its long-run mean, but not of the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A rung's evidence has reached its threshold; `gate` is the metric that contributed most."""

    rung: str
    gate: str
    log_e: float
    log_needed: float


class Watch:
    """The e-processes for rollback. `step` advances them by a scrape."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        rungs = config.rungs
        self.gates = (
            [g for g in config.gates if isinstance(g, RateLimit)]
            + [g for g in config.gates if isinstance(g, QuantileLimit)]
            + [g for g in config.gates if isinstance(g, QuantileMargin)]
            + [g for g in config.gates if isinstance(g, MeanMargin)]
        )
        kinds = [g.kind for g in self.gates]
        self.nr, self.nq = kinds.count("rate_limit"), kinds.count("quantile_limit")
        self.nm, self.nc = kinds.count("quantile_margin"), kinds.count("mean_margin")
        self.rows = 2 * (self.nr + self.nq) + self.nm + self.nc + self.nr
        ratios = np.array([r.ratios for r in rungs])
        rate = np.array([g.limit for g in self.gates if isinstance(g, RateLimit)])
        share = np.array([1 - g.q for g in self.gates if isinstance(g, QuantileLimit)])
        multiple = np.array([r.multiple for r in rungs])
        # axes: rung, gate, ratio
        self.ratio: Array = ratios[:, None, :]
        self.limit: Array = odds(np.concatenate([rate, share])[None, :], multiple[:, None])[:, :, None]
        self._event, self._other = limit_steps(self.limit, self.ratio)
        self.worse: Array = np.array([r.worse for r in rungs])[:, None, None]
        self._gust_event, self._gust_other = limit_steps(np.minimum(GUST * self.limit[:, : self.nr], 0.95), self.ratio)
        self.margin: Array = np.array([g.margin for g in self.gates if isinstance(g, MeanMargin)])
        self.kappa_mean: Array = 1 + multiple[:, None, None] * self.margin[None, :, None]
        self.noisy: Array = np.array([float(r.private_noise) for r in rungs])[:, None, None]
        weight = np.array([g.weight for g in self.gates])
        self.log_weight: Array = np.log(weight / weight.sum())
        self.threshold: Array = np.log(1 / np.array([r.alpha for r in rungs]))
        quarter = config.block_scrapes / 4
        self.wealth = Wealth(
            cap=np.repeat(np.array([r.cap_nats for r in rungs]), self.rows),
            block=np.repeat(np.array([max(round(r.block * quarter), 1) for r in rungs], dtype=np.int64), self.rows),
            every=np.repeat(np.array([r.every for r in rungs], dtype=np.int64), self.rows),
            at_once=np.repeat(np.array([r.at_once for r in rungs]), self.rows),
            columns=ratios.shape[1],
        )
        self.log_e: Array = np.zeros((len(rungs), len(self.gates)))
        self.mean_block: Array = np.zeros((5, self.nc))
        """Scrapes, candidate's requests and amount, baseline's requests and amount."""
        self.rate_block: Array = np.zeros((4, self.nr))
        self.rate_age = 0.0
        self.alone = False
        self._streams: Streams | None = None
        self._relative: NDArray[np.intp] = np.zeros((0, 0), dtype=np.intp)

    def begin(self, weight: float, *, alone: bool = False) -> None:
        """
        A phase begins, with its share of the starts.

        Args:
            weight: Of the starts.
            alone: No baseline runs: limits are judged by themselves. What they gathered beside a baseline, which excused shared incidents,
                is dropped.
        """
        if alone and not self.alone:
            rows = np.arange(len(self.wealth.base)) % self.rows
            own = (rows < self.nr + self.nq) | (rows >= self.rows - self.nr)
            self.wealth.base[own] = -np.inf
            self.wealth.run[own] = 0.0
        self.alone = alone
        self.wealth.begin(weight)
        self.again()

    def again(self) -> None:
        """The phase is entered anew, after a pause: its starts go on being spread, half-filled blocks are dropped."""
        self.mean_block[:] = 0
        self.rate_block[:] = 0
        self.rate_age = 0.0

    def use(self, streams: Streams) -> None:
        """Thresholds for the data from now on."""
        self._streams = streams
        self._relative = np.array(
            [np.arange(streams.at(r.multiple).start, streams.at(r.multiple).stop) for r in self._config.rungs], dtype=np.intp
        )

    def step(
        self,
        counts: tuple[Array, Array, Array, Array],
        share: Array,
        amounts: Array,
        scrapes: float,
        reference: Reference,
        noise: PrivateNoise,
    ) -> Breach | None:
        """
        Args:
            counts: Events and trials of the candidate's streams, then of the baseline's.
            share: The baseline's recent shares (absolute, then relative quantiles), from earlier scrapes.
            amounts: Candidate's requests and amount, baseline's requests and amount, per mean.
            scrapes: Length of the increment.
            reference: Of the baseline.
            noise: Private to the arms.

        Returns:
            What must roll back, if anything.
        """
        rungs = len(self._config.rungs)
        table = np.zeros((rungs, self.rows, self.ratio.shape[2]))
        self._counts(table, counts, share, max(self._per_block / max(scrapes, 1e-9), 1.0), reference, noise)
        self._means(table, amounts, scrapes, reference)
        self._rates_alone(table, counts, scrapes, reference)
        rows = self.wealth.add(table.reshape(rungs * self.rows, -1)).reshape(rungs, self.rows)
        nr, nq = self.nr, self.nq
        a, end = nr + nq, self.rows - nr
        self.log_e[:, :a] = rows[:, :a] if self.alone else np.minimum(rows[:, :a], rows[:, a : 2 * a])
        self.log_e[:, a:] = rows[:, 2 * a : end]
        if nr and self.alone:
            self.log_e[:, :nr] = np.where(self.noisy[:, :, 0] > 0, rows[:, end:], self.log_e[:, :nr])
        elif nr:
            either = np.logaddexp(self.log_e[:, :nr] + math.log(1 - ALONE), rows[:, end:] + math.log(ALONE))
            self.log_e[:, :nr] = np.where(self.noisy[:, :, 0] > 0, either, self.log_e[:, :nr])
        # a weighted average of e-values is an e-value under any dependence (Vovk and Wang 2021, Proposition 3.1)
        combined = self.combined()
        for i in np.flatnonzero(combined >= self.threshold)[::-1]:
            gate = self.gates[int(np.argmax(self.log_e[i] + self.log_weight))]
            return Breach(
                rung=self._config.rungs[i].name, gate=gate.name, log_e=float(combined[i]), log_needed=float(self.threshold[i])
            )
        return None

    def combined(self) -> Array:
        """Log of the weighted average of the gates' e-values, per rung."""
        return log_mean_exp(self.log_e + self.log_weight, axis=1) + math.log(len(self.gates))

    @property
    def _per_block(self) -> float:
        return self._config.block_scrapes

    def _counts(
        self,
        table: Array,
        counts: tuple[Array, Array, Array, Array],
        share: Array,
        minute: float,
        reference: Reference,
        noise: PrivateNoise,
    ) -> None:
        nr, nq, nm = self.nr, self.nq, self.nm
        xc, nc, xb, nb = counts
        a, b = nr + nq, 2 * (nr + nq)
        pc, pn = xc[None, :a, None], nc[None, :a, None]
        # candidate against the limit: rates and absolute quantiles together
        absolute = pc * self._event + (pn - pc) * self._other  # limit_log_lr
        rate_c, rate_b = minute * nc[:nr], minute * nb[:nr]
        limit = self.limit[:, :nr, 0]
        phi_limit = count_phi(reference.clustering, limit * rate_c, None)
        phi_ratio = count_phi(reference.clustering, limit * rate_c, reference.calm_rate * rate_b)
        kappa = self.worse * np.maximum(reference.limit / reference.calm_rate, 1.0)[None, :, None]
        ratio = ratio_log_lr(
            xc[None, :nr, None], nc[None, :nr, None], xb[None, :nr, None], nb[None, :nr, None], kappa, self.ratio
        )
        table[:, :nr] = absolute[:, :nr] / self._soften(phi_limit[:, :, None])
        table[:, a : a + nr] = ratio / self._soften(phi_ratio[:, :, None])
        if nq + nm == 0:
            return
        # against the baseline: absolute quantiles at the same threshold, relative ones at the rung's multiple
        index = np.concatenate([np.broadcast_to(np.arange(nr, a), (len(table), nq)), self._relative], axis=1)
        cx, cn = xc[index][:, :, None], nc[index][:, :, None]
        bx, bn, p = xb[None, nr:, None], nb[None, nr:, None], share[None, :, None]
        pair = two_sample_log_lr(cx, cn, bx, bn, p, self.ratio)
        trials_c, trials_b = minute * nc[nr : a + nm], minute * nb[nr:]
        phi = noise.phi(share, trials_c, trials_b, noise.tau2)[None, :, None]
        own = noise.phi(share[:nq], trials_c[:nq], None, noise.tau2[:nq])[None, :, None]
        pair = pair / self._soften(phi)
        table[:, nr:a] = absolute[:, nr:] / self._soften(own)
        table[:, a + nr : b] = pair[:, :nq]
        table[:, b : b + nm] = pair[:, nq:]

    def _soften(self, phi: Array) -> Array:
        return np.where(self.noisy > 0, phi, PHI_MIN)

    def _means(self, table: Array, amounts: Array, scrapes: float, reference: Reference) -> None:
        if self.nc == 0:
            return
        self.mean_block[0] += scrapes
        self.mean_block[1:] += amounts
        if self.mean_block[0].max() < self._per_block - 1e-6:
            return
        age, nc, ac, nb, ab = self.mean_block
        mu, s2 = reference.mean_and_variance()
        safe = np.where((s2 > 0) & (mu > 0), s2, 1.0)
        needed = means.BLOCK_MIN * np.maximum(1.0, safe / np.where(mu > 0, mu * mu, 1.0))
        full = (s2 > 0) & (mu > 0) & (nc >= needed) & (nb >= needed / 3) & (age >= self._per_block - 1e-6)
        if not full.any():
            return
        c, b = np.where(full, nc, 1.0), np.where(full, nb, 1.0)
        kappa = self.kappa_mean
        difference = (ac / c)[None, :, None] - kappa * (ab / b)[None, :, None]
        variance = means.margin_variance(safe[None, :, None], kappa, c[None, :, None], b[None, :, None])
        effect = np.array(means.EFFECTS)[None, None, :] * mu[None, :, None]
        lr = means.mean_log_lr(difference, variance, effect)
        end = self.rows - self.nr
        table[:, end - self.nc : end] = np.where(full[None, :, None], lr, 0.0)
        self.mean_block[:, full] = 0.0

    def _rates_alone(self, table: Array, counts: tuple[Array, Array, Array, Array], scrapes: float, reference: Reference) -> None:
        nr = self.nr
        for total, count in zip(self.rate_block, counts, strict=True):
            total += count[:nr]
        self.rate_age += scrapes
        if nr == 0 or self.rate_age < self._per_block - 1e-6:
            return
        xc, nc, xb, nb = self.rate_block
        per_block = self._per_block / self.rate_age
        calm = ((nb > 0) | self.alone) & (unlikely_at(xb, nb * reference.calm_rate) < SURGE)
        phi = count_phi(reference.clustering_all, self.limit[:, :nr, 0] * nc * per_block, None)[:, :, None]
        lr = xc[None, :, None] * self._gust_event + (nc - xc)[None, :, None] * self._gust_other
        table[:, self.rows - nr :] = np.where(calm[None, :, None] & (self.noisy > 0), lr / phi, 0.0)
        self.rate_block[:] = 0
        self.rate_age = 0.0
