"""
What is known of the baseline before a phase: rates, how they fluctuate, cost per request, and its latest distribution.

Everything here comes from data before the block it is used for (predictable), so that it can cost power but not validity.
"""

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence import gusts
from controller.core.evidence.config import EngineConfig, MeanMargin, RateLimit
from controller.core.evidence.overdispersion import clustering, long_run_noise
from controller.core.evidence.rates import Array, unlikely_at

RECENT_BLOCKS = 10.0
"""Half-life of the latest distribution, blocks (ten minutes)."""

HISTORY_ENOUGH = 60.0
"""Blocks (an hour). With so much history the long-run rates stay fixed during the rollout; with less they go on being learned from the baseline."""

RATE_UNKNOWN = 1 / 3
"""Guess of a baseline rate without history, as a part of its limit, worth half an event."""

SURPRISE = 6.9
"""A block whose count has probability below 1/1000 at the baseline's limit is an incident."""

GUSTY = 4.6
"""A minute of history whose count has probability below 1/100 at the calm rate, for any of the rates, is a burst, and so are its neighbours:
bursts do not keep to minutes, and hit several kinds of failure at once. Leaving out too much only makes the calm rate lower and rollback
more patient."""


GUST_SEEN = 0.5
"""Failures that a calm minute must have for the strength of a gust to be read off it: of rare ones only the strongest would be seen."""

OWN = 0.5
"""Part of the gusts of one arm's history that are taken for its own, and not for weather of both arms; history does not tell them apart."""

SPARED = 2.0
"""A rate that fails at most this many times as often as in calm weather while others have gusts has none with them."""

GUSTS_MIN = 5
"""Minutes of gusts that are needed for that."""


class Reference:
    """Learned from baseline-only history, then carried along with each scrape of the rollout."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._rates = [g for g in config.gates if isinstance(g, RateLimit)]
        self._means = [g for g in config.gates if isinstance(g, MeanMargin)]
        self._bad = np.array([config.column(g.bad) for g in self._rates], dtype=np.intp)
        self._all = np.array([config.column(g.total) for g in self._rates], dtype=np.intp)
        self._amount = np.array([config.column(g.amount) for g in self._means], dtype=np.intp)
        self._count = np.array([config.column(g.count) for g in self._means], dtype=np.intp)
        self.limit: Array = np.array([g.limit for g in self._rates])
        self.scrapes = 0.0
        self.recent: Array = np.zeros(len(config.columns))
        self.events: Array = np.zeros((2, len(self._rates)))
        self.mean_rate: Array = self.limit * RATE_UNKNOWN
        self.calm_rate: Array = self.mean_rate.copy()
        self.clustering: Array = np.full(len(self._rates), 0.1)
        self.gust_entry: Array = np.full(len(self._rates), gusts.ENTRY)
        self.gust_stay: Array = np.full(len(self._rates), gusts.STAY)
        self.gust_factor: Array = np.full(len(self._rates), gusts.FACTOR)
        self.noise: Array = np.zeros(len(config.histograms))
        self.mean_sums: Array = np.zeros((4, len(self._means)))
        """Blocks, requests, amount, and sum of amount^2 / requests, per mean."""
        self._decay = 0.5 ** (1 / (config.block_scrapes * RECENT_BLOCKS))

    def learn(self, increments: Array, scrapes_each: float = 1.0) -> None:
        """
        Args:
            increments: Of the baseline alone, shape (increments, columns), oldest first.
            scrapes_each: Length of an increment, in scrape intervals.
        """
        n = len(increments)
        if n == 0:
            return
        self.scrapes += n * scrapes_each
        decay = self._decay**scrapes_each
        self.recent = self.recent * decay**n + (increments * (decay ** np.arange(n - 1, -1, -1.0))[:, None]).sum(axis=0)
        per = max(round(self._config.block_scrapes / scrapes_each), 1)
        k = n // per
        blocks = increments[n - k * per :].reshape(k, per, -1).sum(axis=1)
        if k:
            self._learn_rates(blocks)
            self.add_means(blocks)
            for i, h in enumerate(self._config.histograms):
                self.noise[i] = long_run_noise(h, blocks[:, h.first : h.total + 1])

    def _learn_rates(self, blocks: Array) -> None:
        x, n = blocks[:, self._bad], blocks[:, self._all]
        self.events += np.stack([x.sum(axis=0), n.sum(axis=0)])
        self._guess()
        calm = self.mean_rate.copy()
        kept = np.ones(len(x), dtype=bool)
        gust = np.zeros(x.shape, dtype=bool)
        for _ in range(4):  # each round drops bursts that the round before still held in its rate
            gust = unlikely_at(x, n * calm) > GUSTY
            near = np.any(gust, axis=1)
            near[1:] |= np.any(gust[:-1], axis=1)
            near[:-1] |= np.any(gust[1:], axis=1)
            if near.mean() > 0.5:
                break
            kept = ~near
            calm = self._shrunk(x[kept].sum(axis=0), n[kept].sum(axis=0))
        self.calm_rate = np.minimum(calm, self.mean_rate)
        for j in range(len(self.limit)):
            entry, self.gust_stay[j] = gusts.habits(self._hits(j, gust, x, n))
            self.gust_entry[j] = OWN * entry
            seen = kept & (n[:, j] > 0)
            self.clustering[j] = clustering(x[seen, j], n[seen, j] * self.calm_rate[j])
            expected = n[:, j] * self.calm_rate[j]
            strong = gust[:, j] & (expected >= GUST_SEEN)
            if strong.sum() >= GUSTS_MIN:
                factor = float(np.quantile(x[strong, j] / expected[strong], 0.75))
                self.gust_factor[j] = min(max(factor, 1.0), gusts.FACTOR_MAX)

    def _hits(self, j: int, gust: NDArray[np.bool_], x: Array, n: Array) -> NDArray[np.bool_]:
        """
        Minutes of history in which rate j had a gust. Seldom failures do not show one; so a gust of the other rates counts, unless
        j is seen to be spared by them.
        """
        others = np.any(np.delete(gust, j, axis=1), axis=1)
        failures, expected = float(x[others, j].sum()), float(n[others, j].sum() * self.calm_rate[j])
        spared = expected >= 1 and failures <= SPARED * expected
        own: NDArray[np.bool_] = gust[:, j] if spared else np.any(gust, axis=1)
        return own

    def _guess(self) -> None:
        rate = self._shrunk(*self.events)
        self.mean_rate = np.clip(rate, self.limit / 50, 0.9)

    def _shrunk(self, x: Array, n: Array) -> Array:
        guess = self.limit * RATE_UNKNOWN
        return np.clip((x + 0.5) / (n + 0.5 / guess), self.limit / 50, 0.9)

    def advance(self, base: Array, scrapes: float) -> None:
        """One scrape of the baseline's increments, after its evidence was judged."""
        self.recent *= self._decay ** min(scrapes, 1000.0)
        self.recent += base
        if self.scrapes < HISTORY_ENOUGH * self._config.block_scrapes:
            self.scrapes += scrapes
            self.events += np.stack([base[self._bad], base[self._all]])

    def enter(self) -> None:
        """A phase begins: with little history, take over what the baseline has shown since."""
        if self.scrapes < HISTORY_ENOUGH * self._config.block_scrapes:
            self._guess()
            self.calm_rate = self.mean_rate.copy()

    def add_means(self, blocks: Array) -> None:
        """Blocks of the baseline, shape (blocks, columns): cost per request and its variance."""
        n, a = blocks[:, self._count], blocks[:, self._amount]
        seen = n > 0
        square = np.where(seen, a * a / np.where(seen, n, 1.0), 0.0)
        self.mean_sums += np.stack([seen.sum(axis=0), n.sum(axis=0), np.where(seen, a, 0.0).sum(axis=0), square.sum(axis=0)])

    def mean_and_variance(self) -> tuple[Array, Array]:
        """
        Mean and variance per request of each mean gate's amount; variance 0 where fewer than ten blocks were seen.

        Block sums a_i of n_i requests: E[sum a_i^2 / n_i - (sum a_i)^2 / sum n_i] = (K - 1) s^2 for K blocks.
        """
        k, n, a, square = self.mean_sums
        mu = a / np.maximum(n, 1.0)
        s2 = np.maximum(square - a * mu, 0.0) / np.maximum(k - 1, 1.0)
        return mu, np.where(k >= 10, s2, 0.0)

    def variance_of(self, gate: str) -> float:
        """Variance per request of a mean gate's amount; 0 where unknown."""
        at = [g.name for g in self._means].index(gate)
        return float(self.mean_and_variance()[1][at])
