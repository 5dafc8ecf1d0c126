"""
How often evidence under its own null ever crosses 1/alpha, looked at after every step: at most alpha.

Thousands of replicates run side by side as rows of one `Wealth`, with restarts, caps and phases as in a rollout. A test fails only
if the lower end of the 99.9 % interval of the share of crossings lies above alpha: that is, if the promise is broken and not by chance.
"""

from collections.abc import Callable

import numpy as np
import pytest

from controller.core.evidence import means, proof
from controller.core.evidence.confidence import proportion_interval, quantile_band, ratio_halfwidth
from controller.core.evidence.config import RUNGS, EngineConfig, graduated
from controller.core.evidence.engine import Engine
from controller.core.evidence.eprocess import ZETA, Wealth, log_mean_exp
from controller.core.evidence.quantiles import two_sample_log_lr
from controller.core.evidence.rates import limit_log_lr, ratio_log_lr
from tests.evidence.support import scalar, surely

ROWS, STEPS, ALPHA = 3000, 320, 0.1
Draw = Callable[[np.random.Generator, int], np.ndarray]


class Rows:
    """One e-process per replicate, side by side."""

    def __init__(self, cap: float, block: int, every: int, at_once: float = 0.6) -> None:
        self.wealth = Wealth(cap=np.array([[cap]]), block=[block], every=[every], at_once=[at_once], shape=(ROWS, 4))

    def begin(self, weight: float) -> None:
        self.wealth.begin(weight)

    def add(self, log_lr: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.wealth.add(log_lr[None])[0]
        return found


def crossings(draw: Draw, *, cap: float = 1.5, block: int = 4, every: int = 5, phases: int = 4) -> float:
    """Share of rows whose evidence ever reaches 1/ALPHA."""
    wealth = Rows(cap, block, every)
    rng = np.random.default_rng(7)
    crossed = np.zeros(ROWS, dtype=bool)
    for step in range(STEPS):
        if step % (STEPS // phases) == 0:
            wealth.begin(1 / phases)
        crossed |= wealth.add(draw(rng, step)) >= np.log(1 / ALPHA)
    return surely(int(crossed.sum()), ROWS)


RATIOS = np.array(RUNGS[0].ratios)


@pytest.mark.parametrize(("n", "limit"), [(75, 0.01), (3, 0.05), (400, 0.002)])
@pytest.mark.parametrize(("cap", "block", "every"), [(1.5, 4, 5), (9.0, 1, 1), (1e9, 10**6, 1)])
def test_a_rate_at_its_limit(n: int, limit: float, cap: float, block: int, every: int) -> None:
    def draw(rng: np.random.Generator, _: int) -> np.ndarray:
        x = rng.binomial(n, limit, (ROWS, 1)).astype(float)
        return limit_log_lr(x, scalar(n), scalar(limit), RATIOS)

    assert crossings(draw, cap=cap, block=block, every=every) <= ALPHA


def test_a_rate_ratio_at_its_margin_under_bursts_that_both_arms_share() -> None:
    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        burst = 20.0 if step % 50 < 10 else 1.0
        xb = rng.poisson(300 * 0.003 * burst, (ROWS, 1)).astype(float)
        xc = rng.poisson(75 * 0.01 * burst, (ROWS, 1)).astype(float)
        return ratio_log_lr(xc, scalar(75), xb, scalar(300), scalar(0.01 / 0.003), RATIOS)

    assert crossings(draw) <= ALPHA


def test_two_equal_proportions_that_drift_together() -> None:
    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        p = 0.5 + 0.3 * np.sin(step / 40)
        xb = rng.binomial(60, p, (ROWS, 1)).astype(float)
        xc = rng.binomial(20, p, (ROWS, 1)).astype(float)
        return two_sample_log_lr(xc, scalar(20), xb, scalar(60), scalar(0.5), RATIOS)

    assert crossings(draw) <= ALPHA


def test_the_smaller_of_two_e_values_when_only_one_null_holds() -> None:
    """Above the limit, but no worse than the baseline: an incident. The pair must not cross although one of them does."""
    pair = [Rows(1.5, 4, 5) for _ in range(2)]
    rng = np.random.default_rng(3)
    crossed = np.zeros((2, ROWS), dtype=bool)
    for wealth in pair:
        wealth.begin(1.0)
    for _ in range(STEPS):
        xc, xb = rng.poisson(75 * 0.05, (ROWS, 1)).astype(float), rng.poisson(300 * 0.05, (ROWS, 1)).astype(float)
        limit = pair[0].add(limit_log_lr(xc, scalar(75), scalar(0.01), RATIOS))
        ratio = pair[1].add(ratio_log_lr(xc, scalar(75), xb, scalar(300), scalar(1.0), RATIOS))
        crossed[0] |= limit >= np.log(1 / ALPHA)
        crossed[1] |= np.minimum(limit, ratio) >= np.log(1 / ALPHA)
    assert crossed[0].mean() > 0.9
    assert surely(int(crossed[1].sum()), ROWS) <= ALPHA


@pytest.mark.parametrize("cv2", [1.2, 6.0])
def test_a_mean_at_its_margin_with_heavy_tails(cv2: float) -> None:
    n, kappa = float(means.block_requests(scalar(cv2))), 1.1
    variance = means.margin_variance(scalar(cv2), scalar(kappa), scalar(n), scalar(3 * n))

    def draw(rng: np.random.Generator, _: int) -> np.ndarray:
        own = kappa * rng.gamma(n / cv2, cv2 / n, (ROWS, 1))
        other = rng.gamma(3 * n / cv2, cv2 / (3 * n), (ROWS, 1))
        return means.mean_log_lr(own - kappa * other, variance, np.array(means.EFFECTS))

    assert crossings(draw) <= ALPHA


def proofs(draw: Draw, alternatives: int) -> float:
    """Share of rows whose proof of "within the margin" ever reaches 1/ALPHA; no restarts, no cap."""
    rng = np.random.default_rng(5)
    total, crossed = np.zeros((ROWS, alternatives)), np.zeros(ROWS, dtype=bool)
    for step in range(STEPS):
        total += draw(rng, step)
        crossed |= log_mean_exp(total, axis=1) >= np.log(1 / ALPHA)
    return surely(int(crossed.sum()), ROWS)


@pytest.mark.parametrize(("n", "limit"), [(60, 0.01), (600, 0.01), (9, 0.05)])
def test_a_rate_at_its_limit_is_not_proven_to_keep_it(n: int, limit: float) -> None:
    def draw(rng: np.random.Generator, _: int) -> np.ndarray:
        return limit_log_lr(rng.binomial(n, limit, (ROWS, 1)).astype(float), scalar(n), scalar(limit), proof.RATE_RATIOS)

    assert proofs(draw, 4) <= ALPHA


def test_nor_by_comparison_with_a_baseline_under_shared_bursts() -> None:
    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        burst = 20.0 if step % 50 < 10 else 1.0
        xc = rng.poisson(75 * 0.01 * burst, (ROWS, 1)).astype(float)
        xb = rng.poisson(300 * 0.003 * burst, (ROWS, 1)).astype(float)
        return ratio_log_lr(xc, scalar(75), xb, scalar(300), scalar(0.01 / 0.003), proof.RATE_RATIOS)

    assert proofs(draw, 4) <= ALPHA


@pytest.mark.parametrize("q", [0.5, 0.05])
def test_a_quantile_at_its_margin_is_not_proven_to_keep_it(q: float) -> None:
    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        share = q * (1 + 0.5 * np.sin(step / 40))
        xc = rng.binomial(60, share, (ROWS, 1)).astype(float)
        xb = rng.binomial(240, share, (ROWS, 1)).astype(float)
        return two_sample_log_lr(xc, scalar(60), xb, scalar(240), scalar(q), proof.SHARE_RATIOS)

    assert proofs(draw, 3) <= ALPHA


@pytest.mark.parametrize("cv2", [1.2, 6.0])
def test_a_mean_at_its_margin_is_not_proven_to_keep_it(cv2: float) -> None:
    n, kappa = float(means.block_requests(scalar(cv2))), 1.1
    variance = means.margin_variance(scalar(cv2), scalar(kappa), scalar(n), scalar(3 * n))

    def draw(rng: np.random.Generator, _: int) -> np.ndarray:
        own = kappa * rng.gamma(n / cv2, cv2 / n, (ROWS, 1))
        other = rng.gamma(3 * n / cv2, cv2 / (3 * n), (ROWS, 1))
        lr = means.mean_log_lr(kappa * other - own, variance, np.array(proof.EFFECTS))
        return np.minimum(lr, proof.MEAN_CAP)

    assert proofs(draw, 3) <= ALPHA


def test_a_test_that_is_wrong_is_seen_to_be() -> None:
    """The yardstick itself: a rate 40 % above its limit must cross far more often than alpha."""

    def draw(rng: np.random.Generator, _: int) -> np.ndarray:
        return limit_log_lr(rng.binomial(75, 0.014, (ROWS, 1)).astype(float), scalar(75), scalar(0.01), RATIOS)

    assert crossings(draw) > 2 * ALPHA


def test_starts_never_spend_more_than_their_weight() -> None:
    assert sum(k**-1.25 for k in range(1, 10_000_000)) + 4 * 1e7**-0.25 <= ZETA


def test_the_phases_of_a_rollout_never_spend_more_than_the_whole() -> None:
    from tests.evidence.test_engine import CONFIG

    for shadows in ((True, False, False, False), (False, False), (True,), (False,)):
        names = tuple(f"p{i}" for i in range(len(shadows)))
        config = EngineConfig(
            columns=CONFIG.columns, histograms=CONFIG.histograms, gates=CONFIG.gates, phases=graduated(names, shadows)
        )
        engine = Engine(config)
        nothing = np.zeros((len(config.rungs), engine.watch.rows, 4))
        for phase in (*range(len(shadows)), 0, len(shadows) - 1):
            engine.enter(phase)
            for _ in range(300):
                engine.watch.wealth.add(nothing)
            assert np.exp(engine.watch.wealth.base).max() <= 1 + 1e-9


@pytest.mark.parametrize("p", [0.002, 0.05, 0.5])
def test_the_confidence_sequence_covers_at_all_times(p: float) -> None:
    rng = np.random.default_rng(11)
    replicates, looks = 300, 25
    missed = 0
    for _ in range(replicates):
        x = n = 0
        for _ in range(looks):
            x, n = x + int(rng.binomial(40, p)), n + 40
            low, high = proportion_interval(x, n, ALPHA, 0.01)
            if not low <= p <= high:
                missed += 1
                break
    assert surely(missed, replicates) <= ALPHA


def test_the_confidence_sequence_narrows() -> None:
    few, many = proportion_interval(1, 100, 0.05), proportion_interval(100, 10_000, 0.05)
    assert many[1] - many[0] < (few[1] - few[0]) / 4
    assert many[0] < 0.01 < many[1]
    assert proportion_interval(0, 0, 0.05) == (0.0, 1.0)
    assert proportion_interval(0, 50, 0.05)[0] == 0.0
    with pytest.raises(ValueError, match="events"):
        proportion_interval(5, 4, 0.05)


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_the_band_of_a_quantile_holds_the_truth_at_all_times(q: float) -> None:
    rng = np.random.default_rng(13)
    bands = [quantile_band(q, 40 * (i + 1), ALPHA) for i in range(25)]
    below = rng.binomial(40, q, (ROWS, 25)).cumsum(axis=1) / (40 * np.arange(1, 26))
    outside = [(below[:, i] < low - 1e-9) | (below[:, i] > high + 1e-9) for i, (low, high) in enumerate(bands)]
    assert surely(int(np.any(outside, axis=0).sum()), ROWS) <= ALPHA
    assert bands[-1][1] - bands[-1][0] < (bands[0][1] - bands[0][0]) / 2


def test_the_interval_of_a_mean_holds_the_truth_at_all_times() -> None:
    rng = np.random.default_rng(17)
    steps = np.arange(1, 41)
    means_so_far = rng.gamma(60 / 1.2, 1.2 / 60, (ROWS, 40)).cumsum(axis=1) / steps
    halves = np.array([ratio_halfwidth(1.2 / (60 * k), ALPHA) for k in steps])
    outside = (np.abs(means_so_far - 1) > halves).any(axis=1)
    assert surely(int(outside.sum()), ROWS) <= ALPHA
