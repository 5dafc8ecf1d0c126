"""
Gusts: an arm that fails six times as often for a minute now and then is within its limit, and one that does so for good is not.

As in `test_false_alarms`, replicates run side by side; a test fails only if a promise is broken and not by chance.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from controller.core.evidence.config import RUNGS
from controller.core.evidence.eprocess import Wealth
from controller.core.evidence.gusts import ENTRY, GUSTS, STAY, Weather, habits
from controller.core.evidence.rates import limit_log_lr, ratio_log_lr
from tests.evidence.support import scalar, surely

ROWS, MINUTES, ALPHA = 1500, 360, 0.1
RATIOS = np.array(RUNGS[0].ratios)
HABIT = (np.full(ROWS, 1 / 40), np.full(ROWS, 0.4))
"""What history shows of the gusts below: one in 40 minutes, which lasts 1.7."""


@dataclass
class Sky:
    """Hidden weather of one arm per replicate; `next` gives the factor of this minute's failures."""

    rng: np.random.Generator
    often: float
    stays: float
    factor: float

    def __post_init__(self) -> None:
        self.wild = np.zeros(ROWS, dtype=bool)

    def next(self) -> np.ndarray:
        self.wild = self.rng.random(ROWS) < np.where(self.wild, self.stays, self.often)
        return np.where(self.wild, self.factor, 1.0)[:, None]


def against_the_limit(rate: float, requests: int, sky: Sky, *, cap: float = 1.5) -> np.ndarray:
    """Minute by which each replicate's evidence against "at most 1 % in calm weather" reaches 1/ALPHA; MINUTES if never."""
    weather, wealth = (
        Weather(1, (1, ROWS, 4)),
        Wealth(cap=np.array([[cap]]), block=[1], every=[5], at_once=[0.6], shape=(ROWS, 4)),
    )
    wealth.begin(1.0)
    crossed = np.full(ROWS, MINUTES)
    for minute in range(MINUTES):
        x = sky.rng.binomial(requests, np.minimum(rate * sky.next(), 1.0)).astype(float)
        lr = limit_log_lr(x, scalar(requests), scalar(0.01), np.array([*RATIOS, *GUSTS]))
        reached = wealth.add(weather.step(lr[None, :, :4], [lr[None, :, 4:]], *HABIT))[0] >= np.log(1 / ALPHA)
        crossed = np.where(reached & (crossed == MINUTES), minute, crossed)
    return crossed


@pytest.mark.parametrize("factor", [1.0, 3.0, 6.0, 17.0])
@pytest.mark.parametrize("requests", [60, 600])
def test_a_rate_at_its_limit_with_gusts_of_its_own_is_no_breach(factor: float, requests: int) -> None:
    crossed = against_the_limit(0.01, requests, Sky(np.random.default_rng(1), 1 / 40, 0.4, factor))
    assert surely(int((crossed < MINUTES).sum()), ROWS) <= ALPHA


@pytest.mark.parametrize("rate", [0.003, 0.008])
def test_a_rate_below_its_limit_is_no_breach_either(rate: float) -> None:
    crossed = against_the_limit(rate, 300, Sky(np.random.default_rng(2), 1 / 40, 0.4, 6.0))
    assert surely(int((crossed < MINUTES).sum()), ROWS) <= ALPHA


def test_without_that_care_the_same_gusts_break_the_promise() -> None:
    """The yardstick: the plain likelihood ratio crosses far more often than alpha."""
    sky = Sky(np.random.default_rng(1), 1 / 40, 0.4, 6.0)
    wealth = Wealth(cap=np.array([[1.5]]), block=[1], every=[5], at_once=[0.6], shape=(ROWS, 4))
    wealth.begin(1.0)
    crossed = np.zeros(ROWS, dtype=bool)
    for _ in range(MINUTES):
        x = sky.rng.binomial(60, 0.01 * sky.next()).astype(float)
        crossed |= wealth.add(limit_log_lr(x, scalar(60), scalar(0.01), RATIOS)[None])[0] >= np.log(1 / ALPHA)
    assert crossed.mean() > 2 * ALPHA


def test_a_lasting_fault_is_found_in_spite_of_gusts() -> None:
    crossed = against_the_limit(0.02, 300, Sky(np.random.default_rng(3), 1 / 40, 0.4, 6.0))
    assert np.median(crossed) < 15
    assert (crossed < MINUTES).mean() > 0.99


@pytest.mark.parametrize("factor", [1.0, 6.0, 17.0])
def test_gusts_of_either_arm_are_no_evidence_in_a_comparison(factor: float) -> None:
    rng = np.random.default_rng(4)
    own, other, both = (Sky(rng, 1 / 40, 0.4, f) for f in (factor, factor, 8.0))
    weather, wealth = (
        Weather(2, (1, ROWS, 4)),
        Wealth(cap=np.array([[1.5]]), block=[1], every=[5], at_once=[0.6], shape=(ROWS, 4)),
    )
    wealth.begin(1.0)
    crossed = np.zeros(ROWS, dtype=bool)
    for _ in range(MINUTES):
        shared = both.next()
        xc, xb = rng.poisson(300 * 0.01 * own.next() * shared), rng.poisson(900 * 0.003 * other.next() * shared)
        bets = np.array([*RATIOS, *GUSTS, *(1 / np.array(GUSTS))])
        lr = ratio_log_lr(xc.astype(float), scalar(300), xb.astype(float), scalar(900), scalar(0.01 / 0.003), bets)[None]
        k = 4 + len(GUSTS)
        crossed |= wealth.add(weather.step(lr[:, :, :4], [lr[:, :, 4:k], lr[:, :, k:]], *HABIT))[0] >= np.log(1 / ALPHA)
    assert surely(int(crossed.sum()), ROWS) <= ALPHA


def test_habits_are_read_off_history() -> None:
    gust = np.zeros(602, dtype=bool)
    gust[[10, 11, 12, 300, 301]] = True
    # 2 entries (and 2 of the prior) in 597 calm minutes (and 120); 3 of 5 (and 1 of 2) stayed
    assert habits(gust) == pytest.approx((4 / 717, 4 / 7))
    assert habits(np.zeros(0, dtype=bool)) == pytest.approx((ENTRY, STAY))
    assert habits(np.ones(50, dtype=bool))[0] <= 0.2


def test_a_flood_of_failures_is_a_number_too() -> None:
    weather = Weather(1, (1, 1, 4))
    for x in (0.0, 1e6, 0.0, 1e6):
        lr = limit_log_lr(scalar(x), scalar(1e6), scalar(0.01), np.array([*RATIOS, *GUSTS]))[None, None]
        found = weather.step(lr[:, :, :4], [lr[:, :, 4:]], np.array([ENTRY]), np.array([STAY]))
        assert np.isfinite(found).all()
