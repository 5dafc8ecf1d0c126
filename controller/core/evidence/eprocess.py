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

import numpy as np
from numpy.typing import NDArray

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
    peak = np.maximum(a.max(axis=axis), LOWEST)
    total = np.exp(a - np.expand_dims(peak, axis)).sum(axis=axis) / a.shape[axis]
    result: Array = np.log(np.maximum(total, TINY)) + peak
    return result


class Wealth:
    """Rows of e-processes that advance together, one scrape at a time."""

    def __init__(self, *, cap: Array, block: NDArray[np.int64], every: NDArray[np.int64], at_once: Array, columns: int) -> None:
        """
        Args:
            cap: Nats that a block may add, per row.
            block: Scrapes per block, per row.
            every: Blocks between fresh starts, per row.
            at_once: Part of a phase's weight that starts with the phase itself, per row; the rest is for later starts.
            columns: Effect sizes per row.
        """
        self.cap = cap[:, None]
        self.block = block
        self.every = every
        self.at_once = at_once
        rows = len(cap)
        self.base = np.full((rows, columns), -np.inf)
        self.run = np.zeros((rows, columns))
        self.age = np.zeros(rows, dtype=np.int64)
        self.blocks = np.zeros(rows, dtype=np.int64)
        self.phase_weight = 0.0

    def now(self) -> Array:
        """Log-wealth per row and column."""
        return self.base + np.minimum(self.run, self.cap)

    def begin(self, weight: float) -> None:
        """A phase begins: spend `weight` of the unit weight on starts in it. The weights of all phases sum to at most 1."""
        self.base = self.now()
        if weight > 0:
            self.base = np.logaddexp(self.base, np.log(self.at_once * weight)[:, None])
        self.run = np.zeros_like(self.run)
        self.age[:] = 0
        self.blocks[:] = 0
        self.phase_weight = weight

    def add(self, log_lr: Array) -> Array:
        """
        One scrape's evidence.

        Args:
            log_lr: Shape (rows, columns), 0 where there is none.

        Returns:
            Log of the e-value per row.
        """
        self.run += np.rint(log_lr * GRAIN) / GRAIN
        now = self.now()
        log_e = log_mean_exp(now, axis=1)
        self.age += 1
        closing = self.age >= self.block
        if closing.any():
            self.blocks[closing] += 1
            starting = closing & (self.blocks % self.every == 0)
            if self.phase_weight > 0 and starting.any():
                scale = np.log((1 - self.at_once[starting]) * self.phase_weight / ZETA)
                fresh = scale - START_DECAY * np.log(self.blocks[starting] / self.every[starting])
                now[starting] = np.logaddexp(now[starting], fresh[:, None])
            self.base[closing] = np.rint(now[closing] * GRAIN) / GRAIN
            self.run[closing] = 0.0
            self.age[closing] = 0
        return log_e
