"""
What the traffic driver counts while it runs, and the report it makes of it.

Its one rule: latencies are counted from the moment an arrival was due, not from when it was sent, so that a driver that falls behind
cannot hide a slow system (coordinated omission).
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

OUTCOMES = (
    "ok",
    "rate_limited",
    "client_error",
    "server_error",
    "timeout",
    "connection",
    "cut",
    "malformed",
    "cancelled",
)
"""
429; any other 4xx; 5xx; no answer in time; refused or reset; an answer that stopped in the middle; status 200 and not an answer;
stopped by us at the end of the run.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """
    One finished request.

    Args:
        outcome: One of OUTCOMES.
        status: HTTP status; 0 if none came.
        stream: It asked for a stream.
        arm: `x-penstock-arm` of the answer, or "".
        model: `x-penstock-model` of the answer, else the model that the answer names, or "".
        duration_s: From when it was due to the end of the answer.
        ttft_s: From when it was due to the first content of a stream; None if none came.
        prompt_tokens: As the answer's usage says.
        completion_tokens: As the answer's usage says.
    """

    outcome: str
    status: int = 0
    stream: bool = False
    arm: str = ""
    model: str = ""
    duration_s: float = 0.0
    ttft_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class _Group:
    requests: int = 0
    ok: int = 0
    durations_s: list[float] = field(default_factory=list)


class Tally:
    """Live counters of one run; read them at any time."""

    def __init__(self) -> None:
        self.offered = 0
        self.sent = 0
        self.dropped = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.statuses: Counter[int] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.elapsed_s = 0.0
        self._durations_s: dict[bool, list[float]] = {False: [], True: []}
        self._ttfts_s: list[float] = []
        self._lags_s: list[float] = []
        self._groups: defaultdict[tuple[str, str], _Group] = defaultdict(_Group)

    @property
    def finished(self) -> int:
        return self.outcomes.total()

    def by_arm(self) -> dict[str, int]:
        """Finished requests by the arm that the router named ("" if none was)."""
        arms: Counter[str] = Counter()
        for (arm, _), group in self._groups.items():
            arms[arm] += group.requests
        return dict(arms)

    def start_one(self, *, lag_s: float) -> None:
        self.sent += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        self._lags_s.append(lag_s)

    def finish_one(self, result: Result) -> None:
        self.in_flight -= 1
        self.outcomes[result.outcome] += 1
        self.statuses[result.status] += 1
        self.prompt_tokens += result.prompt_tokens
        self.completion_tokens += result.completion_tokens
        group = self._groups[result.arm, result.model]
        group.requests += 1
        if result.outcome == "ok":
            group.ok += 1
            group.durations_s.append(result.duration_s)
            self._durations_s[result.stream].append(result.duration_s)
        if result.ttft_s is not None:
            self._ttfts_s.append(result.ttft_s)

    def to_json(self) -> dict[str, Any]:
        """The report: counts, rates in requests a second, times in seconds."""
        return {
            "elapsed_s": round(self.elapsed_s, 3),
            "offered": self.offered,
            "sent": self.sent,
            "dropped_at_cap": self.dropped,
            "finished": self.finished,
            "offered_per_s": _rate(self.offered, self.elapsed_s),
            "sent_per_s": _rate(self.sent, self.elapsed_s),
            "in_flight_max": self.in_flight_max,
            "outcomes": dict(self.outcomes),
            "statuses": {str(k): v for k, v in sorted(self.statuses.items())},
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "duration_s": {"json": quantiles(self._durations_s[False]), "stream": quantiles(self._durations_s[True])},
            "ttft_s": quantiles(self._ttfts_s),
            "schedule_lag_s": quantiles(self._lags_s),
            "served": [
                {"arm": arm, "model": model, "requests": g.requests, "ok": g.ok, "duration_s": quantiles(g.durations_s)}
                for (arm, model), g in sorted(self._groups.items())
            ],
        }


def quantiles(values: list[float]) -> dict[str, float] | None:
    """p50, p90, p95, p99 and max by nearest rank (no interpolation: each is a time that occurred); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    # Rank ceil(q * n), in whole numbers: 0.95 * 20 is 19.000000000000004 in floating point.
    picked = {f"p{q}": ordered[-(-q * len(ordered) // 100) - 1] for q in (50, 90, 95, 99)}
    return {name: round(value, 6) for name, value in {**picked, "max": ordered[-1]}.items()}


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0
