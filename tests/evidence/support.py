"""Two arms of invented traffic as cumulative counters, drawn from a seed; the shapes are the judge protocol's."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

EDGES = tuple(round(1.1 ** (k / 2), 6) for k in range(-60, 60))
SLO = {
    "error_rate": 0.01,
    "timeout_rate": 0.005,
    "fallback_fail_rate": 0.01,
    "unavailable_rate": 0.001,
    "p50_rel": 1.10,
    "p95_rel": 1.15,
    "cost_rel": 1.10,
    "p50_abs": 1.0,
    "p95_abs": 3.0,
    "ttft_p95_abs": 1.2,
}
COUNTS = ("requests", "errors", "timeouts", "unavailable", "fallback_attempts", "fallback_failures", "cost_usd", "latency_sum")
PHASES = (("shadow", 0.10, True), ("canary", 0.05, False), ("p25", 0.25, False), ("p50", 0.50, False))


def columns(edges: tuple[float, ...] = EDGES) -> list[str]:
    n = len(edges) + 1
    return [*COUNTS, *(f"latency_le_{i}" for i in range(n)), *(f"ttft_le_{i}" for i in range(n))]


def init(**changes: Any) -> dict[str, Any]:
    message = {
        "type": "init",
        "columns": columns(),
        "bounds": list(EDGES),
        "slo": SLO,
        "scrape_s": 15,
        "phases": [list(p) for p in PHASES],
    }
    return message | changes


@dataclass
class Arm:
    """One arm's counters; `scrape` adds requests to them."""

    rng: np.random.Generator
    total: np.ndarray = field(default_factory=lambda: np.zeros(len(columns())))

    def scrape(self, requests: float, *, errors: float = 0.003, slower: float = 1.0, dearer: float = 1.0) -> list[float]:
        n = int(self.rng.poisson(requests))
        self.total = self.total + self._increment(n, errors, slower, dearer)
        return [float(v) for v in self.total]

    def restart(self) -> None:
        self.total = np.zeros_like(self.total)

    def _increment(self, n: int, errors: float, slower: float, dearer: float) -> np.ndarray:
        rng = self.rng
        latency = 0.7 * slower * np.exp(0.55 * rng.standard_normal(n))
        first = 0.35 * slower * np.exp(0.5 * rng.standard_normal(n))
        attempts = rng.binomial(n, 0.015)
        counts = [
            n,
            rng.binomial(n, errors),
            rng.binomial(n, 0.001),
            rng.binomial(n, 0.0003),
            attempts,
            rng.binomial(attempts, 0.004),
            rng.gamma(n / 1.2, 0.004 * dearer * 1.2) if n else 0.0,
            latency.sum(),
        ]
        return np.concatenate([counts, _cumulative(latency), _cumulative(first)])


def _cumulative(values: np.ndarray) -> np.ndarray:
    below = [float((values <= edge).sum()) for edge in EDGES]
    return np.array([*below, float(len(values))])


class Pair:
    """A candidate and a baseline with one clock."""

    def __init__(self, seed: int) -> None:
        self.cand, self.base = Arm(np.random.default_rng([seed, 1])), Arm(np.random.default_rng([seed, 2]))
        self.t = 0.0

    def next(self, requests: float, share: float, **candidate: float) -> tuple[float, list[float], list[float]]:
        """Counters of both arms after another 15 s. `both_errors` is an incident that hits both arms."""
        self.t += 15.0
        both = candidate.pop("both_errors", 0.0)
        own = {**candidate, "errors": candidate.get("errors", 0.003) + both}
        return self.t, self.cand.scrape(requests * share, **own), self.base.scrape(requests * (1 - share), errors=0.003 + both)


def scalar(value: float) -> np.ndarray:
    """A number as the array without dimensions that the formulas take."""
    return np.array(value, dtype=np.float64)


def surely(successes: int, trials: int) -> float:
    """The least rate that so many successes allow (lower end of the 99.9 % Wilson interval): above alpha only if alpha is exceeded."""
    z, p = 3.09, successes / trials
    centre, spread = p + z * z / (2 * trials), z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return (centre - spread) / (1 + z * z / trials)
