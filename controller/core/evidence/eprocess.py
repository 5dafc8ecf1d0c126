"""
Evidence that may be looked at at any time: a table of mixture e-processes with restarts and an evidence cap.

Each row bets on one (metric, margin); its columns bet on different effect sizes, and further starts are mixed in while it runs, because a
fault may begin in the middle. The wealth of a row is a weighted average over columns and starts of products of e-variables, with weights
that sum to at most 1: an e-process, so by Ville's inequality it reaches 1/alpha under its null with probability at most alpha.
Capping what one block may add is min(wealth, constant), which keeps a supermartingale one.

Source:
    Ville 1939; Howard, Ramdas, McAuliffe and Sekhon 2021, section 3 (mixtures); Shin, Ramdas and Rinaldo 2024 (e-detectors; the mixture over starts
    is theirs with weights that sum to 1, so that the false-alarm probability and not the run length is bounded).
"""

import math
from collections.abc import Sequence

import numpy as np

from controller.core.evidence.rates import Array

START_DECAY = 1.25
"""Weight of the k-th start after a phase began falls as k^-1.25: faults are likelier soon after exposure rose."""

ZETA = 4.5952
"""Sum of k^-1.25 over k >= 1, rounded up: the starts of a phase never spend more than its share."""

GRAIN = 2.0**32
"""Log-evidence is rounded to 2^-32 nats, so that the last bit of a math library's logarithm does not reach the audit log."""


LOWEST = -1e300
TINY = 1e-300
"""Stand for the logarithm of nothing, so that a row without any start stays finite."""


def log_mean_exp(a: Array, axis: int) -> Array:
    """log of the mean of exp(a) along an axis."""
    peak = np.maximum.reduce(a, axis=axis, keepdims=True)
    peak = np.maximum(peak, LOWEST)
    total = np.add.reduce(np.exp(a - peak), axis=axis)
    result: Array = np.log(np.maximum(total, TINY)) + (peak.squeeze(axis) - math.log(a.shape[axis]))
    return result


def grained(a: Array) -> Array:
    """Rounded to the grain of evidence."""
    result: Array = np.rint(a * GRAIN) / GRAIN
    return result


class Wealth:
    """
    E-processes that advance together, one scrape at a time. Axes: pace (what shares cap and block), row, effect size.
    """

    def __init__(
        self,
        *,
        cap: Array,
        block: Sequence[int],
        every: Sequence[int],
        at_once: Sequence[float],
        shape: tuple[int, int],
    ) -> None:
        """
        Args:
            cap: Nats that a block may add, per pace and row (or one column for all rows).
            block: Scrapes per block, per pace.
            every: Blocks between fresh starts, per pace.
            at_once: Part of a phase's weight that starts with the phase itself, per pace; the rest is for later starts.
            shape: Rows, and effect sizes per row.
        """
        self.cap: Array = cap[:, :, None]
        self.block = tuple(block)
        self.every = tuple(every)
        self.at_once = tuple(at_once)
        self.base: Array = np.full((len(cap), *shape), -np.inf)
        self.run: Array = np.zeros((len(cap), *shape))
        self.age = [0] * len(cap)
        self.blocks = [0] * len(cap)
        self.phase_weight = 0.0

    def now(self) -> Array:
        """Log-wealth of everything."""
        return self.base + np.minimum(self.run, self.cap)

    def begin(self, weight: float) -> None:
        """A phase begins: spend `weight` of the unit weight on starts in it. The weights of all phases sum to at most 1."""
        self.base = self.now()
        if weight > 0:
            self.base = np.logaddexp(self.base, np.log(np.array(self.at_once) * weight)[:, None, None])
        self.run = np.zeros_like(self.run)
        self.age = [0] * len(self.age)
        self.blocks = [0] * len(self.blocks)
        self.phase_weight = weight

    def add(self, log_lr: Array, rest: Array | None = None) -> Array:
        """
        One scrape's evidence.

        Args:
            log_lr: Of the first rows.
            rest: Of the rows after them; None if they have none in this scrape.

        Returns:
            Log of the e-value per pace and row.
        """
        rows = log_lr.shape[1]
        self.run[:, :rows] += grained(log_lr)
        if rest is not None:
            self.run[:, rows:] += grained(rest)
        now = self.now()
        log_e = log_mean_exp(now, axis=2)
        for i, block in enumerate(self.block):
            self.age[i] += 1
            if self.age[i] < block:
                continue
            self.blocks[i] += 1
            closed = now[i]
            if self.blocks[i] % self.every[i] == 0 and self.phase_weight > 0 and self.at_once[i] < 1:
                share = (1 - self.at_once[i]) * self.phase_weight / ZETA
                closed = np.logaddexp(closed, math.log(share) - START_DECAY * math.log(self.blocks[i] / self.every[i]))
            self.base[i] = grained(closed)
            self.run[i] = 0.0
            self.age[i] = 0
        return log_e
