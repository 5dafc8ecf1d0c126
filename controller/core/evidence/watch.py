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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence import means
from controller.core.evidence.config import EngineConfig, Gate, MeanMargin, QuantileLimit, QuantileMargin, RateLimit
from controller.core.evidence.eprocess import Wealth, log_mean_exp
from controller.core.evidence.overdispersion import PHI_MIN, PrivateNoise, count_phi
from controller.core.evidence.rates import Array, limit_steps, odds, part, unlikely_at
from controller.core.evidence.reference import Reference
from controller.core.evidence.streams import Counts, Streams

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


class Closed(NamedTuple):
    """
    A block of time that has ended.

    Args:
        counts: Of its streams.
        amounts: Candidate's requests and amount, baseline's requests and amount, per mean.
        per_block: Blocks of the configured length in it, inverted: below 1 where scrapes were missed.
    """

    counts: Counts
    amounts: Array
    per_block: float


class _Bets(NamedTuple):
    """
    What a scrape's log-likelihood ratios are made of, per rung and row (and ratio); everything here was fixed before the scrape.

    Args:
        event, other: What one event, and one non-event, of the candidate adds.
        more_events, more_others: How much likelier, less 1, the alternative makes them; contrast rows only.
        stretch: Rate ratio at the margin; contrast rows only.
        noise: phi is PHI_MIN and this times the candidate's requests of a block (of both arms, harmonically, in contrast rows).
    """

    event: Array
    other: Array
    more_events: Array
    more_others: Array
    stretch: Array
    noise: Array


class Watch:
    """The e-processes for rollback. `step` advances them by a scrape."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        rungs = config.rungs
        rates = [g for g in config.gates if isinstance(g, RateLimit)]
        limits = [g for g in config.gates if isinstance(g, QuantileLimit)]
        margins = [g for g in config.gates if isinstance(g, QuantileMargin)]
        averages = [g for g in config.gates if isinstance(g, MeanMargin)]
        self.gates: list[Gate] = [*rates, *limits, *margins, *averages]
        self.nr, self.nq, self.nm, self.nc = len(rates), len(limits), len(margins), len(averages)
        # rows: absolute (rates, quantiles), contrast (rates, absolute quantiles, relative quantiles), then once a block means and limits alone
        self.absolute = self.nr + self.nq
        self.contrasts = self.absolute + self.nm
        self.rows = self.absolute + self.contrasts + self.nc + self.nr
        # axes: rung, gate, ratio
        multiple = np.array([r.multiple for r in rungs])
        allowed = np.array([*(g.limit for g in rates), *(1 - g.q for g in limits)])
        self.ratio: Array = np.array([r.ratios for r in rungs])[:, None, :]
        self.limit: Array = odds(allowed[None, :], multiple[:, None])[:, :, None]
        self._limit_steps = limit_steps(self.limit, self.ratio)
        self._gust_steps = limit_steps(np.minimum(GUST * self.limit[:, : self.nr], 0.95), self.ratio)
        self.worse: Array = np.array([r.worse for r in rungs])[:, None]
        self.kappa_mean: Array = 1 + multiple[:, None, None] * np.array([g.margin for g in averages])[None, :, None]
        self.noisy: Array = np.array([float(r.private_noise) for r in rungs])[:, None]
        weight = np.array([g.weight for g in self.gates])
        self.log_weight: Array = np.log(weight / weight.sum())
        self.threshold: Array = np.log(1 / np.array([r.alpha for r in rungs]))
        quarter = config.block_scrapes / 4
        self.wealth = Wealth(
            cap=[r.cap_nats for r in rungs],
            block=[max(round(r.block * quarter), 1) for r in rungs],
            every=[r.every for r in rungs],
            at_once=[r.at_once for r in rungs],
            shape=(self.rows, self.ratio.shape[2]),
        )
        self.log_e: Array = np.zeros((len(rungs), len(self.gates)))
        self.mean_block: Array = np.zeros((4, self.nc))
        """Candidate's requests and amount, baseline's requests and amount, since the last block of a mean."""
        self.alone = False
        self._bets: _Bets | None = None
        self._pick: NDArray[np.intp] = np.zeros((2, 0, 0), dtype=np.intp)

    def begin(self, weight: float, *, alone: bool = False) -> None:
        """
        A phase begins, with its share of the starts.

        Args:
            weight: Of the starts.
            alone: No baseline runs: limits are judged by themselves. What they gathered beside a baseline, which excused shared incidents,
                is dropped.
        """
        if alone and not self.alone:
            for rows in (slice(0, self.absolute), slice(self.rows - self.nr, self.rows)):
                self.wealth.base[:, rows] = -np.inf
                self.wealth.run[:, rows] = 0.0
        self.alone = alone
        self.wealth.begin(weight)
        self.again()

    def again(self) -> None:
        """The phase is entered anew, after a pause: its starts go on being spread, half-filled blocks are dropped."""
        self.mean_block[:] = 0

    def use(self, streams: Streams) -> None:
        """Thresholds for the data from now on."""
        shared = np.broadcast_to(np.arange(self.absolute), (len(self._config.rungs), self.absolute))
        own = np.array([np.arange(streams.at(r.multiple).start, streams.at(r.multiple).stop) for r in self._config.rungs])
        baseline = np.broadcast_to(np.arange(self.contrasts), (len(self._config.rungs), self.contrasts))
        own = np.concatenate([shared, shared, own.astype(np.intp)], axis=1)
        self._pick = np.stack([own, np.concatenate([shared, baseline], axis=1)])

    def bet(self, share: Array, reference: Reference, noise: PrivateNoise) -> None:
        """
        Fix the bets for the data from now on.

        Args:
            share: The baseline's recent shares (absolute, then relative quantiles).
            reference: Of the baseline.
            noise: Private to the arms.
        """
        rungs, nr, nq = len(self._config.rungs), self.nr, self.nq
        own_limit, other_limit = self._limit_steps
        better = odds(share[None, :, None], self.ratio)
        events = np.concatenate([np.broadcast_to(self.ratio, (rungs, nr, self.ratio.shape[2])), better / share[None, :, None]], axis=1)
        others = np.concatenate([np.ones((rungs, nr, self.ratio.shape[2])), (1 - better) / (1 - share[None, :, None])], axis=1)
        kappa = self.worse * np.maximum(reference.limit / reference.calm_rate, 1.0)
        spread = share * (1 - share)
        clustering = reference.clustering[None, :]
        relative = np.concatenate([2 * clustering * reference.calm_rate * self.noisy, self.noisy * noise.tau2 / spread], axis=1)
        absolute = np.concatenate(
            [self.noisy * clustering * self.limit[:, :nr, 0], self.noisy * noise.tau2[:nq] / spread[:nq]], axis=1
        )
        self._bets = _Bets(
            event=np.concatenate([own_limit, np.log(events)], axis=1),
            other=np.concatenate([other_limit, np.log(others)], axis=1),
            more_events=events - 1,
            more_others=others - 1,
            stretch=np.concatenate([kappa, np.ones((rungs, self.contrasts - nr))], axis=1),
            noise=np.concatenate([absolute, relative], axis=1),
        )

    def step(self, counts: Counts, per_block: float, closed: Closed | None, reference: Reference) -> Breach | None:
        """
        Args:
            counts: Of the scrape.
            per_block: Scrapes like this one in a block, at least 1: noise is known per block.
            closed: The block that this scrape completes, if it does.
            reference: Of the baseline.

        Returns:
            What must roll back, if anything.
        """
        rest = None if closed is None else np.concatenate([self._means(closed.amounts, reference), self._alone(closed, reference)], axis=1)
        rows = self.wealth.add(self._counts(counts, per_block), rest)
        nr, a, b = self.nr, self.absolute, self.absolute + self.contrasts
        self.log_e[:, :a] = rows[:, :a] if self.alone else np.minimum(rows[:, :a], rows[:, a : 2 * a])
        self.log_e[:, a:] = rows[:, 2 * a : b + self.nc]
        if nr:
            limit_alone = rows[:, b + self.nc :]
            if not self.alone:
                limit_alone = np.logaddexp(self.log_e[:, :nr] + math.log(1 - ALONE), limit_alone + math.log(ALONE))
            self.log_e[:, :nr] = np.where(self.noisy > 0, limit_alone, self.log_e[:, :nr])
        combined = self.combined()
        for i in np.flatnonzero(combined >= self.threshold)[::-1]:
            gate = self.gates[int(np.argmax(self.log_e[i] + self.log_weight))]
            return Breach(
                rung=self._config.rungs[i].name, gate=gate.name, log_e=float(combined[i]), log_needed=float(self.threshold[i])
            )
        return None

    def combined(self) -> Array:
        """
        Log of the weighted average of the gates' e-values, per rung.

        Source:
            Vovk and Wang 2021 (Ann. Statist. 49(3), 1736-1754), Proposition 3.1: a weighted average of e-values is an e-value, however they depend.
        """
        return log_mean_exp(self.log_e + self.log_weight, axis=1) + math.log(len(self.gates))

    def _counts(self, counts: Counts, per_block: float) -> Array:
        """Log-likelihood ratios of one scrape: `limit_log_lr` of the absolute rows, `contrast` of the others, softened by phi."""
        bets = self._bets
        assert bets is not None
        a = self.absolute
        own, other = self._pick
        x, n = counts.xc[own], counts.nc[own]
        log_lr = x[:, :, None] * bets.event + (n - x)[:, :, None] * bets.other
        against = other[:, a:]
        xb, nb = counts.xb[against], counts.nb[against]
        weighted = bets.stretch * n[:, a:]
        share = part(weighted, nb)
        f = share[:, :, None]
        events = x[:, a:] + xb
        others = n[:, a:] + nb - events
        log_lr[:, a:] -= events[:, :, None] * np.log1p(f * bets.more_events) + others[:, :, None] * np.log1p(f * bets.more_others)
        n[:, a:] = weighted * (1 - share)
        phi = PHI_MIN + per_block * (bets.noise * n)
        result: Array = log_lr / phi[:, :, None]
        return result

    def _means(self, amounts: Array, reference: Reference) -> Array:
        table = np.zeros((len(self._config.rungs), self.nc, self.ratio.shape[2]))
        if self.nc == 0:
            return table
        self.mean_block += amounts
        nc, ac, nb, ab = self.mean_block
        mu, s2 = reference.mean_and_variance()
        full = means.enough(mu, s2, nc, nb)
        if not full.any():
            return table
        c, b = np.where(full, nc, 1.0), np.where(full, nb, 1.0)
        kappa = self.kappa_mean
        difference = (ac / c)[None, :, None] - kappa * (ab / b)[None, :, None]
        variance = means.margin_variance(np.where(full, s2, 1.0)[None, :, None], kappa, c[None, :, None], b[None, :, None])
        effect = np.array(means.EFFECTS)[None, None, :] * mu[None, :, None]
        table = np.where(full[None, :, None], means.mean_log_lr(difference, variance, effect), 0.0)
        self.mean_block[:, full] = 0.0
        return table

    def _alone(self, closed: Closed, reference: Reference) -> Array:
        nr = self.nr
        counts = closed.counts
        xc, nc, xb, nb = counts.xc[:nr], counts.nc[:nr], counts.xb[:nr], counts.nb[:nr]
        calm = ((nb > 0) | self.alone) & (unlikely_at(xb, nb * reference.calm_rate) < SURGE)
        phi = count_phi(reference.clustering_all, self.limit[:, :nr, 0] * nc * closed.per_block, None)[:, :, None]
        event, other = self._gust_steps
        lr = xc[None, :, None] * event + (nc - xc)[None, :, None] * other
        return np.where(calm[None, :, None] & (self.noisy[:, :, None] > 0), lr / phi, 0.0)
