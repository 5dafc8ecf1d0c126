"""Each formula has expectation at most 1 under its null: by enumeration where outcomes can be enumerated."""

import math
from itertools import product

import numpy as np
import pytest

from controller.core.evidence import means
from controller.core.evidence.quantiles import Shape, split, two_sample_log_lr
from controller.core.evidence.rates import limit_log_lr, ratio_log_lr, unlikely_at
from tests.evidence.support import scalar

A = scalar


def binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


@pytest.mark.parametrize("ratio", [1.2, 2.2, 5.0, 20.0])
@pytest.mark.parametrize("p", [0.001, 0.01, 0.05])
def test_a_rate_at_or_below_its_limit_earns_nothing_on_average(p: float, ratio: float) -> None:
    n = 40
    mean = sum(binomial(k, n, p) * math.exp(float(limit_log_lr(A(k), A(n), A(0.05), A(ratio)))) for k in range(n + 1))
    assert mean <= 1 + 1e-12
    if p == 0.05:
        assert mean == pytest.approx(1.0)


@pytest.mark.parametrize("ratio", [0.1, 0.625, 0.9])
@pytest.mark.parametrize("p", [0.05, 0.2])
def test_a_rate_at_or_beyond_its_limit_proves_nothing_on_average(p: float, ratio: float) -> None:
    n = 40
    mean = sum(binomial(k, n, p) * math.exp(float(limit_log_lr(A(k), A(n), A(0.05), A(ratio)))) for k in range(n + 1))
    assert mean <= 1 + 1e-12


@pytest.mark.parametrize("burst", [1.0, 8.0, 300.0])
def test_a_burst_that_multiplies_both_arms_is_no_evidence_against_the_candidate(burst: float) -> None:
    nc, nb, kappa, rate = 50.0, 200.0, 3.0, 0.001 * burst
    expected = np.array([nc * kappa * rate, nb * rate])
    counts = np.random.default_rng(1).poisson(expected, size=(400_000, 2)).astype(float)
    e = np.exp(ratio_log_lr(counts[:, 0], A(nc), counts[:, 1], A(nb), A(kappa), A(1.5)))
    # E[(r1/r0)^X (..)^Y] of a Poisson pair is exp(0) = 1 at the margin whatever the burst
    assert e.mean() == pytest.approx(1.0, abs=5 * e.std() / math.sqrt(len(e)))


@pytest.mark.parametrize(("nc", "nb"), [(1, 1), (3, 9), (8, 4)])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("guess", "ratio"), [(0.5, 1.2), (0.05, 5.0), (0.3, 0.4), (0.9, 20.0)])
def test_two_equal_proportions_earn_nothing_however_wrong_the_guess(
    nc: int, nb: int, p: float, guess: float, ratio: float
) -> None:
    mean = sum(
        binomial(i, nc, p) * binomial(j, nb, p) * math.exp(float(two_sample_log_lr(A(i), A(nc), A(j), A(nb), A(guess), A(ratio))))
        for i, j in product(range(nc + 1), range(nb + 1))
    )
    assert mean <= 1 + 1e-12


@pytest.mark.parametrize("gap", [0.05, 0.3])
def test_a_candidate_better_than_the_baseline_earns_no_rollback(gap: float) -> None:
    nc, nb, p = 5, 15, 0.5
    mean = sum(
        binomial(i, nc, p - gap) * binomial(j, nb, p) * math.exp(float(two_sample_log_lr(A(i), A(nc), A(j), A(nb), A(p), A(1.5))))
        for i, j in product(range(nc + 1), range(nb + 1))
    )
    assert mean <= 1


@pytest.mark.parametrize("w", [0.1, 0.5, 0.9])
def test_interpolated_counts_keep_the_bound(w: float) -> None:
    """A request in the split bucket counts w: mean 0.05 with fractional outcomes earns no more than with whole ones."""
    p_full, p_split = 0.05 - 0.02 * w, 0.02
    for ratio in (1.2, 5.0, 0.4):
        outcomes = ((0.0, 1 - p_full - p_split), (w, p_split), (1.0, p_full))
        mean = sum(q * math.exp(float(limit_log_lr(A(y), A(1.0), A(0.05), A(ratio)))) for y, q in outcomes)
        assert mean <= 1 + 1e-12


def test_no_requests_in_an_arm_are_no_evidence() -> None:
    assert float(two_sample_log_lr(A(0), A(0), A(3), A(9), A(0.3), A(2.0))) == 0.0
    assert float(ratio_log_lr(A(4), A(9), A(0), A(0), A(3.0), A(2.0))) == 0.0


def test_surprise_bounds_the_poisson_tail() -> None:
    mean, x = 4.0, 12
    tail = 1 - sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(x))
    assert tail <= math.exp(-float(unlikely_at(A(x), A(mean))))
    assert float(unlikely_at(A(3), A(mean))) == 0.0


def test_a_mean_at_its_margin_earns_nothing_on_average() -> None:
    rng = np.random.default_rng(2)
    kappa, n, size = 1.1, 60.0, 400_000
    variance = means.margin_variance(A(1.21), A(kappa), A(n), A(3 * n))
    own = rng.gamma(n / 1.21, 1.21 / n, size) * kappa
    other = rng.gamma(3 * n / 1.21, 1.21 / (3 * n), size)
    for effect in means.EFFECTS:
        e = np.exp(means.mean_log_lr(own - kappa * other, variance, A(effect)))
        assert e.mean() <= 1 + 4 * e.std() / math.sqrt(size) + 0.02


def test_a_log_normal_baseline_is_interpolated_exactly_even_by_coarse_buckets() -> None:
    from statistics import NormalDist

    edges = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
    law = NormalDist(math.log(0.7), 0.55)
    counts = np.array([*(1e6 * law.cdf(math.log(e)) for e in edges), 1e6])
    shape = Shape(edges, counts)
    assert shape.quantile(0.95) == pytest.approx(math.exp(law.inv_cdf(0.95)), rel=2e-3)
    threshold, stretch = 1.98, 1.15
    low, high, w = split(edges, threshold, shape, stretch) or (0, 0, 0.0)
    slowed = np.array([1e6 * law.cdf(math.log(e / stretch)) for e in edges])
    assert (1 - w) * slowed[low] + w * slowed[high] == pytest.approx(1e6 * law.cdf(math.log(threshold / stretch)), rel=1e-3)


def test_a_threshold_beyond_the_last_edge_cannot_be_counted() -> None:
    assert split((0.5, 1.0), 1.2, None, 1.0) is None
    assert split((0.5, 1.0), 1.0, None, 1.0) == (1, 1, 1.0)
