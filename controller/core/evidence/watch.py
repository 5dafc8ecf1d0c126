"""
Evidence that the candidate is beyond a margin: the half of the engine that rolls back, looked at after every scrape.

For each rung (the SLO, 2.5 times its margin, a catastrophe) and each metric there are e-processes as rows of one `Wealth`. A rate and an absolute
quantile must be beyond their limit and worse than the baseline at the same time, so they have two rows each and count the smaller
(an e-process for the union of both nulls): an incident that both arms share is no evidence against the candidate. Where the baseline fails
too rarely to be compared with, that comparison learns nothing; so a rate's evidence is a weighted average of this pair and of a third row: the
limit alone, in minutes in which the baseline is calm. Rates have gusts (`gusts`): by the minute they are left aside, and a catastrophe, which is judged
by the scrape, must be worse than they are.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence import means
from controller.core.evidence.config import EngineConfig, Gate, MeanMargin, QuantileLimit, QuantileMargin, RateLimit
from controller.core.evidence.eprocess import Wealth, log_mean_exp
from controller.core.evidence.gusts import GUSTS, Weather
from controller.core.evidence.overdispersion import PHI_MIN, PrivateNoise
from controller.core.evidence.rates import Array, limit_steps, odds, part, unlikely_at
from controller.core.evidence.reference import Reference
from controller.core.evidence.streams import Counts, Streams

SURGE = 3.0
"""A minute whose count of the baseline's failures has probability below e^-3 at its calm rate is left out of the limit alone. The choice
rests on the baseline, never on the candidate."""

ALONE = 0.75
"""Weight of the limit alone in a rate's evidence."""

RESTLESS, RESTLESS_DECAY = 1.0, 0.8
"""The baseline is restless while its failures of the last scrapes (which fade by the second number a scrape) have probability below e^-1 at its calm
rate."""

LONELY = 0.5
"""With fewer trials of the baseline than this in the last scrapes there is nothing beside the candidate that could excuse it."""

RESTLESS_WORSE = 5.0
"""How much worse than usual, against a restless baseline, a catastrophe must be: a gust of one arm may fall into one of both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """The evidence of all rungs together has reached what a rollback needs; `rung` contributed most to it, and `gate` most to the rung."""

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
        # rows of every scrape: absolute (rates, quantiles), contrast (rates, absolute quantiles, relative quantiles);
        # rows of every block: means, and rates against the limit, against the baseline, and against the limit while the baseline is calm
        self.absolute = self.nr + self.nq
        self.contrasts = self.absolute + self.nm
        self.rows = self.absolute + self.contrasts + self.nc + 3 * self.nr
        # axes: rung, gate, ratio
        multiple = np.array([r.multiple for r in rungs])
        allowed = np.array([*(g.limit for g in rates), *(1 - g.q for g in limits)])
        self.multiple: Array = multiple[:, None]
        self.ratio: Array = np.array([r.ratios for r in rungs])[:, None, :]
        self.limit: Array = odds(allowed[None, :], multiple[:, None])[:, :, None]
        self._limit_steps = limit_steps(self.limit, self.ratio)
        grid = np.broadcast_to(np.array(GUSTS), (len(rungs), 1, len(GUSTS)))
        self._weather_steps = limit_steps(self.limit[:, : self.nr], np.concatenate([self.ratio, grid], axis=2))
        self._weather_ratios: Array = np.concatenate([self.ratio, grid, 1.0 / grid], axis=2, dtype=np.float64)
        self._allowed: Array = np.array([g.limit for g in rates])
        self.worse: Array = np.array([r.worse for r in rungs])[:, None]
        self.worse_max: Array = np.array([r.worse_max for r in rungs])[:, None]
        self.kappa_mean: Array = 1 + multiple[:, None, None] * np.array([g.margin for g in averages])[None, :, None]
        self.sudden: NDArray[np.bool_] = np.array([r.sudden for r in rungs])[:, None]
        self.noisy: Array = np.where(self.sudden, 0.0, 1.0)
        weight = np.array([[g.weight * (r.rates if isinstance(g, RateLimit) else 1.0) for g in self.gates] for r in rungs])
        self.log_weight: Array = np.log(weight / weight.sum(axis=1, keepdims=True))
        self.threshold: Array = np.log(1 / np.array([r.alpha for r in rungs]))
        self.log_needed = math.log(1 / sum(r.alpha for r in rungs))
        quarter = config.block_scrapes / 4
        self.wealth = Wealth(
            cap=np.array([[r.cap_nats] * (self.rows - 3 * self.nr) + [r.cap_rates] * 3 * self.nr for r in rungs]),
            block=[max(round(r.block * quarter), 1) for r in rungs],
            every=[r.every for r in rungs],
            at_once=[r.at_once for r in rungs],
            shape=(self.rows, self.ratio.shape[2]),
        )
        self.log_e: Array = np.zeros((len(rungs), len(self.gates)))
        self.mean_block: Array = np.zeros((4, self.nc))
        """Candidate's requests and amount, baseline's requests and amount, since the last block of a mean."""
        self.weather = Weather(1, (len(rungs), self.nr, self.ratio.shape[2]))
        self.weather_both = Weather(2, (len(rungs), self.nr, self.ratio.shape[2]))
        self.surge: Array = np.zeros((2, self.nr))
        """Failures and requests of the baseline's last scrapes, fading."""
        self.beside: Array = np.zeros(self.absolute)
        """Trials of the baseline in the last scrapes, fading."""
        self.alone = False
        self._bets: _Bets | None = None
        self._stake: Array = self.log_weight - self.threshold[:, None]
        self._own = 0
        self._pick: NDArray[np.intp] = np.zeros((len(rungs), 0), dtype=np.intp)
        """Streams of each row's candidate, then of each contrast's baseline, in events and trials of both arms one after the other."""

    def begin(self, weight: float, *, alone: bool = False) -> None:
        """
        A phase begins, with its share of the starts.

        Args:
            weight: Of the starts.
            alone: No baseline runs: limits are judged by themselves. What they gathered beside a baseline, which excused shared incidents,
                is dropped.
        """
        if alone and not self.alone:
            for rows in (slice(0, self.absolute), slice(self.rows - 3 * self.nr, self.rows)):
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
        rungs, a = self._config.rungs, self.absolute
        self._own = streams.own
        shared = np.broadcast_to(np.arange(a), (len(rungs), a))
        own = np.array([np.arange(streams.at(r.multiple).start, streams.at(r.multiple).stop) for r in rungs])
        baseline = np.broadcast_to(streams.own + np.arange(self.contrasts), (len(rungs), self.contrasts))
        self._pick = np.concatenate([shared, shared, own.astype(np.intp), baseline], axis=1)

    def bet(self, share: Array, reference: Reference, noise: PrivateNoise) -> None:
        """
        Fix the bets for the data from now on.

        Args:
            share: The baseline's recent shares (absolute, then relative quantiles).
            reference: Of the baseline.
            noise: Private to the arms.
        """
        rungs, nr, nq = len(self._config.rungs), self.nr, self.nq
        own_limit, other_limit = (steps.copy() for steps in self._limit_steps)
        # rates: scrape by scrape on sudden rungs only, and there only what is worse than the strongest gusts
        gusty = odds(self._allowed, np.maximum(self.multiple, reference.gust_factor))
        on = self.sudden[:, :, None]
        for steps, gust_steps in zip((own_limit, other_limit), limit_steps(gusty[:, :, None], self.ratio), strict=True):
            steps[:, :nr] = np.where(on, gust_steps, 0.0)
        better = odds(share[None, :, None], self.ratio)
        rates = np.where(on, np.broadcast_to(self.ratio, (rungs, nr, self.ratio.shape[2])), 1.0)
        events = np.concatenate([rates, better / share[None, :, None]], axis=1)
        others = np.concatenate([np.ones_like(rates), (1 - better) / (1 - share[None, :, None])], axis=1)
        spread = share * (1 - share)
        clustering = self.sudden * reference.clustering
        relative = np.concatenate([2 * clustering * reference.calm_rate, self.noisy * noise.tau2 / spread], axis=1)
        absolute = np.concatenate([clustering * gusty, self.noisy * noise.tau2[:nq] / spread[:nq]], axis=1)
        self._bets = _Bets(
            event=np.concatenate([own_limit, np.log(events)], axis=1),
            other=np.concatenate([other_limit, np.log(others)], axis=1),
            more_events=events - 1,
            more_others=others - 1,
            stretch=np.concatenate([self._kappa(reference), np.ones((rungs, self.contrasts - nr))], axis=1),
            noise=np.concatenate([absolute, relative], axis=1),
        )

    def _kappa(self, reference: Reference) -> Array:
        """Rate ratio to the baseline at the margin, per rung and rate."""
        kappa: Array = np.minimum(self.worse * np.maximum(reference.limit / reference.calm_rate, 1.0), self.worse_max)
        return kappa

    def step(self, events: Array, trials: Array, per_block: float, closed: Closed | None, reference: Reference) -> Breach | None:
        """
        Args:
            events, trials: Of the scrape: the candidate's streams, then the baseline's.
            per_block: Scrapes like this one in a block, at least 1: noise is known per block.
            closed: The block that this scrape completes, if it does.
            reference: Of the baseline.

        Returns:
            What must roll back, if anything: when the average of the rungs' e-values, weighted by their alphas, reaches one over the sum of
            the alphas. That is an e-value too, and reaches it no later than some rung its own threshold.
        """
        rest = None
        if closed is not None:
            rest = np.concatenate([self._means(closed.amounts, reference), *self._rates(closed, reference)], axis=1)
        rows = self.wealth.add(self._counts(events, trials, per_block, reference), rest)
        nr, a = self.nr, self.absolute
        block = a + self.contrasts
        lonely = self.alone | (self.beside < LONELY)
        self.log_e[:, :a] = np.where(lonely, rows[:, :a], np.minimum(rows[:, :a], rows[:, a : 2 * a]))
        # alone there is nothing left to compare with; what still drains out of the baseline must not decide
        self.log_e[:, a:] = -np.inf if self.alone else rows[:, 2 * a : block + self.nc]
        if nr:
            first = block + self.nc
            limit, ratio, alone = (rows[:, first + i * nr : first + (i + 1) * nr] for i in range(3))
            beside = np.logaddexp(np.minimum(limit, ratio) + math.log(1 - ALONE), alone + math.log(ALONE))
            alone = alone if self.alone else np.where(lonely[:nr], limit, beside)
            self.log_e[:, :nr] = np.where(self.sudden, self.log_e[:, :nr], alone)
        total = float(np.exp(self.log_e + self._stake).sum())
        if total < 1:
            return None
        i = int(np.argmax(self.combined() - self.threshold))
        return Breach(
            rung=self._config.rungs[i].name,
            gate=self.gates[int(np.argmax(self.log_e[i] + self.log_weight[i]))].name,
            log_e=math.log(total) + self.log_needed,
            log_needed=self.log_needed,
        )

    def combined(self) -> Array:
        """
        Log of the weighted average of the gates' e-values, per rung.

        Source:
            Vovk and Wang 2021 (Ann. Statist. 49(3), 1736-1754), Proposition 3.1: a weighted average of e-values is an e-value, however they depend.
        """
        return log_mean_exp(self.log_e + self.log_weight, axis=1) + math.log(len(self.gates))

    def _counts(self, events: Array, trials: Array, per_block: float, reference: Reference) -> Array:
        """Log-likelihood ratios of one scrape: `limit_log_lr` of the absolute rows, `contrast` of the others, softened by phi."""
        bets = self._bets
        assert bets is not None
        a, b = self.absolute, self.absolute + self.contrasts
        all_x, all_n = events[self._pick], trials[self._pick]
        x, n, xb, nb = all_x[:, :b], all_n[:, :b], all_x[:, b:], all_n[:, b:]
        log_lr = x[:, :, None] * bets.event + (n - x)[:, :, None] * bets.other
        weighted = bets.stretch * n[:, a:]
        if self.nr:
            failed, seen = self.surge
            weighted[:, : self.nr] *= np.where(unlikely_at(failed, seen * reference.calm_rate) > RESTLESS, RESTLESS_WORSE, 1.0)
            self.surge *= RESTLESS_DECAY
            failed += events[self._own : self._own + self.nr]
            seen += trials[self._own : self._own + self.nr]
        self.beside *= RESTLESS_DECAY
        self.beside += trials[self._own : self._own + a]
        share = part(weighted, nb)
        f = share[:, :, None]
        both = x[:, a:] + xb
        others = n[:, a:] + nb - both
        log_lr[:, a:] -= both[:, :, None] * np.log1p(f * bets.more_events) + others[:, :, None] * np.log1p(f * bets.more_others)
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

    def _rates(self, closed: Closed, reference: Reference) -> tuple[Array, Array, Array]:
        """A block's evidence of the rates on the rungs that are not sudden, gusts left aside: limit, contrast, limit while the baseline is calm."""
        nr, ratios = self.nr, self.ratio.shape[2]
        if nr == 0:
            empty = np.zeros((len(self._config.rungs), 0, ratios))
            return empty, empty, empty
        xc, nc, xb, nb = (v[:nr] for v in closed.counts)
        entry, stay = reference.gust_entry, reference.gust_stay
        event, other = self._weather_steps
        phi = PHI_MIN + reference.clustering * self.limit[:, :nr, 0] * (nc * closed.per_block)
        lr = (xc[:, None] * event + (nc - xc)[:, None] * other) / phi[:, :, None]
        limit = self.weather.step(lr[:, :, :ratios], [lr[:, :, ratios:]], entry, stay)
        weighted = self._kappa(reference) * nc
        share = part(weighted, nb)
        phi = PHI_MIN + 2 * reference.clustering * reference.calm_rate * weighted * (1 - share) * closed.per_block
        bad = self._weather_ratios
        lr = (xc[:, None] * np.log(bad) - (xc + xb)[:, None] * np.log1p(share[:, :, None] * (bad - 1))) / phi[:, :, None]
        contrast = self.weather_both.step(
            lr[:, :, :ratios], [lr[:, :, ratios : ratios + len(GUSTS)], lr[:, :, ratios + len(GUSTS) :]], entry, stay
        )
        calm = ((nb > 0) | self.alone) & (unlikely_at(xb, nb * reference.calm_rate) < SURGE)
        on = ~self.sudden[:, :, None]
        return np.where(on, limit, 0.0), np.where(on, contrast, 0.0), np.where(on & calm[:, None], limit, 0.0)
