"""
How often a good candidate is called a breach over a whole rollout of looks: the number that `LOOKS` promises.

A candidate exactly at its limit, looked at after every 15-second scrape for a day (5,760 looks on one growing sample): the share of days
with any breach must stay near the budget of one gate, (1 - confidence) / gates = 0.5 %. 400 days are simulated with fixed seeds; the
closed forms in numpy are used for speed and checked against the library's.
"""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta

from controller.core import intervals
from controller.core.gates import COMPARED_MIN_REQUESTS, breach_alpha
from controller.core.measurement import Counts
from controller.core.plan import Policy

Floats = NDArray[np.float64]
GATES, DAYS, LOOKS_A_DAY = 10, 400, 5760
ALPHA = breach_alpha(Policy(confidence=0.95), GATES)
Z = float(-ndtri(ALPHA / 2))
BUDGET = (1 - 0.95) / GATES
AT_MOST = 7
"""0.5 % of 400 days are 2; a rule that keeps its promise shows more than 7 in one of a thousand runs."""


def exact_low(bad: Floats, n: Floats) -> Floats:
    low: Floats = np.where(bad > 0, beta.ppf(ALPHA / 2, np.maximum(bad, 1e-9), n - bad + 1), 0.0)
    return low


def wilson(bad: Floats, n: Floats) -> tuple[Floats, Floats]:
    p = bad / n
    middle, half = p + Z * Z / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)


def newcombe_low(bad_c: Floats, n_c: Floats, bad_b: Floats, n_b: Floats) -> Floats:
    p_c, p_b = bad_c / n_c, bad_b / n_b
    low: Floats = p_c - p_b - np.sqrt((p_c - wilson(bad_c, n_c)[0]) ** 2 + (wilson(bad_b, n_b)[1] - p_b) ** 2)
    return low


def test_the_forms_used_here_are_the_librarys() -> None:
    one, two = Counts(bad=30, total=600), Counts(bad=60, total=9000)
    a, b, c, d = (np.array(float(v)) for v in (30, 600, 60, 9000))
    assert abs(float(exact_low(a, b)) - intervals.exact_low(one, ALPHA)) < 1e-9
    assert abs(float(newcombe_low(a, b, c, d)) - intervals.newcombe(one, two, ALPHA)[0]) < 1e-9


@pytest.mark.parametrize(("per_look", "limit"), [(15, 0.01), (1, 0.01), (15, 0.001), (15, 0.05)])
def test_a_candidate_at_its_limit_is_rarely_rolled_back_over_a_day_of_looks(per_look: int, limit: float) -> None:
    random = np.random.default_rng(20260502)
    n = per_look * np.arange(1.0, LOOKS_A_DAY + 1)
    alarms = 0
    for _ in range(DAYS):
        bad = np.cumsum(random.binomial(per_look, limit, LOOKS_A_DAY)).astype(float)
        # The bound rises with bad / n: the looks after a bad request are enough to find a crossing.
        new = np.flatnonzero(np.diff(bad, prepend=0.0) > 0)
        alarms += bool((exact_low(bad[new], n[new]) > limit).any())
    assert alarms <= AT_MOST, f"{alarms} of {DAYS} days had a false alarm, promised are {BUDGET:.1%}"


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_candidate_at_its_margin_is_rarely_rolled_back_over_a_day_of_looks(share: float) -> None:
    random = np.random.default_rng(20260503)
    n_c, n_b = 2 * np.arange(1.0, LOOKS_A_DAY + 1), 38 * np.arange(1.0, LOOKS_A_DAY + 1)
    alarms = 0
    for _ in range(DAYS):
        bad_c = np.cumsum(random.binomial(2, share, LOOKS_A_DAY)).astype(float)
        bad_b = np.cumsum(random.binomial(38, share, LOOKS_A_DAY)).astype(float)
        alarms += bool(((newcombe_low(bad_c, n_c, bad_b, n_b) > 0) & (n_c >= COMPARED_MIN_REQUESTS)).any())
    assert alarms <= AT_MOST, f"{alarms} of {DAYS} days had a false alarm, promised are {BUDGET:.1%}"
