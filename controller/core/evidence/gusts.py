"""
Gusts: minutes in which an arm fails more often than usual, and stops by itself. A rate's limit is meant for calm weather.

Every minute is calm or a gust, and which of them is hidden; gusts come and go as often as the baseline's history shows. A candidate at its limit has
such gusts too, so a minute of many failures is weak evidence, and many minutes are strong: the null, too, may explain what it sees by
weather. Its one rule: the weather of a block is foreseen from earlier blocks only.

Source:
    Forward recursion of a hidden Markov chain: Rabiner 1989 (Proc. IEEE 77(2), 257-286), eqs. 19-21. The ratio of two predictive likelihoods has
    conditional expectation 1 under the one in the denominator, so its product is a test martingale (Wald 1945; Ramdas, Gruenwald, Vovk and
    Shafer 2023, Statist. Sci. 38(4), section 2). Contaminating the null follows Huber 1965 (Ann. Math. Statist. 36(6), 1753-1758).
"""

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence.eprocess import grained, log_mean_exp
from controller.core.evidence.rates import Array

GUSTS = (3.0, 6.0, 12.0, 24.0)
"""How many times as often an arm may fail in a gust; each block's gust is one of them, equally likely, whatever the last block's was."""

ENTRY, STAY, FACTOR = 1 / 60, 0.5, 6.0
"""Without history: a gust an hour, of two minutes, six times as many failures."""

FACTOR_MAX = 20.0


class Weather:
    """What is foreseen of the next block, under the null and under each alternative. States: calm, then gusts."""

    def __init__(self, gusts: int, shape: tuple[int, int, int]) -> None:
        """
        Args:
            gusts: 1 if only the candidate can have one, 2 if the baseline can too.
            shape: Rungs, gates, alternatives.
        """
        self.null: Array = np.zeros((1 + gusts, *shape[:2]))
        self.other: Array = np.zeros((1 + gusts, *shape))
        for table in (self.null, self.other):
            table[0], table[1:] = 1 - gusts * ENTRY, ENTRY

    def step(self, calm: Array, gusts: list[Array], entry: Array, stay: Array) -> Array:
        """
        One block.

        Args:
            calm: Log-likelihood ratio of each alternative to the margin in calm weather, shape (rungs, gates, alternatives).
            gusts: For each gust state the same of each of `GUSTS`, shape (rungs, gates, len(GUSTS)); in a gust null and alternative are alike.
            entry, stay: Chances that a calm block is followed by a gust of one kind, and a gust by a gust, per gate.

        Returns:
            Log of the ratio of the predictive likelihoods, alternative over null.
        """
        null, other = np.zeros(self.null.shape), np.empty(self.other.shape)
        other[0] = calm
        for i, likely in enumerate(gusts, start=1):
            null[i] = log_mean_exp(likely, axis=2)
            other[i] = null[i][:, :, None]
        of_null, self.null = _forward(self.null, null, entry, stay)
        of_other, self.other = _forward(self.other, other, entry[:, None], stay[:, None])
        result: Array = of_other - of_null[:, :, None]
        return result


def _forward(prior: Array, log_likelihood: Array, entry: Array, stay: Array) -> tuple[Array, Array]:
    """Log of the predictive likelihood, and what is foreseen after it."""
    peak = log_likelihood.max(axis=0)
    joint = prior * np.exp(log_likelihood - peak)
    total = joint.sum(axis=0)
    seen = joint / total
    after = np.empty_like(seen)
    after[0] = seen[0] * (1 - entry * (len(seen) - 1)) + (1 - seen[0]) * (1 - stay)
    after[1:] = seen[1:] * stay + seen[0] * entry
    # what is foreseen goes into later blocks: a last bit of a library's exponential must not
    return np.log(total) + peak, np.maximum(grained(after), entry * (1 - stay) * 1e-6)


def habits(gust: NDArray[np.bool_]) -> tuple[float, float]:
    """
    How often gusts come and how long they stay, from the minutes of a history in which some rate had one (True).

    Returns:
        Chances `entry` and `stay`, each with a prior of two observations of its default.
    """
    minutes, entries = int(gust.sum()), int((gust & ~np.append([False], gust[:-1])).sum())
    entry = (entries + 2 * ENTRY * 60) / (len(gust) - minutes + 2 * 60)
    return float(min(entry, 0.2)), float((minutes - entries + 2 * STAY) / (minutes + 2))
