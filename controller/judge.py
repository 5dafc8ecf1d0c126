"""
The engine over pipes: JSON lines in, one decision per tick out, so that anything that can print counters can ask Penstock.

``init`` opens a rollout (columns, bucket bounds, limits, phases), ``phase`` announces a phase, ``tick`` brings the scrapes since the last tick and is
answered with ``{"decision": "promote" | "hold" | "rollback", ...}``. One process judges one rollout after another, and several at once
if messages carry a ``rollout`` name. No statistics of its own: `config_of` translates, `controller.core.evidence` judges.
"""

import json
from collections.abc import Mapping, Sequence
from typing import IO, Any

import orjson

from controller.core.evidence.config import (
    EngineConfig,
    Gate,
    Histogram,
    MeanMargin,
    Need,
    QuantileLimit,
    QuantileMargin,
    RateLimit,
    graduated,
)
from controller.core.evidence.engine import Engine
from controller.core.evidence.increments import Problem, Vector, as_row
from controller.core.evidence.watch import Breach

REQUESTS = "requests"

RATES = {
    "error_rate": ("errors", REQUESTS, Need.PROOF, 2.0),
    "timeout_rate": ("timeouts", REQUESTS, Need.PROOF, 2.0),
    "unavailable_rate": ("unavailable", REQUESTS, Need.LEANING, 1.0),
    "fallback_fail_rate": ("fallback_failures", "fallback_attempts", Need.LEANING, 1.0),
}
"""Limit -> columns of bad and all events, what a gate asks of it (the last two are too rare to prove in an hour), and its part of the budget."""

QUANTILES = {
    "p50_abs": ("latency", 0.50),
    "p95_abs": ("latency", 0.95),
    "ttft_p50_abs": ("ttft", 0.50),
    "ttft_p95_abs": ("ttft", 0.95),
}
RELATIVE = {
    "p50_rel": ("latency", 0.50),
    "p95_rel": ("latency", 0.95),
    "ttft_p50_rel": ("ttft", 0.50),
    "ttft_p95_rel": ("ttft", 0.95),
}
MEANS = {"cost_rel": ("cost_usd", REQUESTS)}


def main(stdin: IO[str], stdout: IO[str], *, evidence_required: bool = False) -> int:
    """
    Args:
        stdin: JSON lines.
        stdout: One JSON line per ``tick``, flushed at once; ``{"error": ...}`` for a line that cannot be understood.
        evidence_required: Every gate needs a proof, rare events too.

    Returns:
        Exit status: 0, or 2 if a line was refused.
    """
    desks: dict[str, Desk] = {}
    status = 0
    for line in stdin:
        if not line.strip():
            continue
        try:
            answer = _handle(desks, _read(line), evidence_required)
        except (LookupError, TypeError, ValueError) as exc:
            answer, status = {"error": f"{type(exc).__name__}: {exc}", "decision": "hold"}, 2
        if answer is not None:
            stdout.write(json.dumps(answer) + "\n")
            stdout.flush()
    return status


def _read(line: str) -> dict[str, Any]:
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError:
        message = json.loads(line)  # slower, but it reads NaN and Infinity, which are then named as what they are
    if not isinstance(message, dict):
        raise TypeError("a message is an object")
    return message


def _handle(desks: dict[str, "Desk"], message: Mapping[str, Any], evidence_required: bool) -> dict[str, Any] | None:
    name = str(message.get("rollout", ""))
    match message.get("type"):
        case "init":
            desks.pop(name, None)  # nothing goes on under the name of an init that was refused
            desks[name] = Desk(config_of(message, evidence_required=evidence_required))
            return None
        case "phase":
            return None  # every scrape names its phase
        case "tick":
            if name not in desks:
                raise ValueError("tick before init")
            return desks[name].tick(message)
        case other:
            raise ValueError(f"unknown message type {other!r}")


class Desk:
    """One rollout: keeps the baseline-only scrapes until its first phase begins, then feeds the engine."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine = Engine(config)
        self._history: list[Vector] = []
        self._last: tuple[float, Sequence[float]] | None = None

    def tick(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """
        Args:
            message: With ``scrapes`` (t, phase, cand, base) and ``is_gate``.

        Returns:
            The decision and its reason; ``problem`` names a scrape that could not be used.
        """
        problem = ""
        for scrape in message["scrapes"]:
            found = self.scrape(float(scrape["t"]), int(scrape["phase"]), scrape["cand"], scrape["base"])
            if isinstance(found, Breach):
                break
            if found is not None:
                problem = found.text
        return self.answer(is_gate=bool(message.get("is_gate")), problem=problem)

    def scrape(self, t: float, phase: int, cand: Sequence[float], base: Sequence[float]) -> Breach | Problem | None:
        """One scrape; phase -1 is history of the baseline."""
        if phase < 0:
            row = as_row(base, len(self.engine.config.columns))
            if isinstance(row, Problem):
                return row
            self._history.append(row)
            self._last = (t, cand)
            return None
        if self._history and self._last is not None:
            self.engine.learn(self._last[0], self._last[1], self._history)
            self._history = []
        if phase != self.engine.phase:
            self.engine.enter(phase)
        return self.engine.observe(t, cand, base)

    def answer(self, *, is_gate: bool, problem: str = "") -> dict[str, Any]:
        """What to do now."""
        extra = {"problem": problem} if problem else {}
        if self.engine.breach is not None:
            return {"decision": "rollback", "reason": self.engine.verdict().reason, **extra}
        if not is_gate:
            return {"decision": "hold", **extra}
        proceed, reason = self.engine.may_proceed
        return {"decision": "promote" if proceed and not problem else "hold", "reason": reason, **extra}


def config_of(init: Mapping[str, Any], *, evidence_required: bool = False) -> EngineConfig:
    """
    Args:
        init: The protocol's ``init`` message: ``columns``, ``bounds``, ``slo``, ``phases`` as [name, share, shadow], ``scrape_s``.

    Raises:
        ValueError: A limit names a column that is not there, or is out of range.
    """
    columns = tuple(str(c) for c in init["columns"])
    bounds = tuple(float(b) for b in init["bounds"])
    slo = init["slo"]
    for name in ("latency", "ttft"):
        buckets = sum(c.startswith(f"{name}_le_") for c in columns)
        if buckets not in (0, len(bounds) + 1):
            raise ValueError(f"{buckets} buckets of {name!r} for {len(bounds)} finite bounds and +Inf")
    histograms = tuple(
        Histogram(name=name, edges=bounds, first=columns.index(f"{name}_le_0"))
        for name in ("latency", "ttft")
        if f"{name}_le_0" in columns
    )
    gates: list[Gate] = []
    for key, limit in slo.items():
        if key in RATES:
            bad, total, need, weight = RATES[key]
            gates.append(RateLimit(name=key, bad=bad, total=total, limit=float(limit), need=need, weight=weight))
        elif key in QUANTILES:
            name, q = QUANTILES[key]
            gates.append(QuantileLimit(name=key, histogram=name, q=q, limit=float(limit)))
        elif key in RELATIVE:
            name, q = RELATIVE[key]
            gates.append(QuantileMargin(name=key, histogram=name, q=q, margin=float(limit) - 1, weight=2.0))
        elif key in MEANS:
            amount, count = MEANS[key]
            gates.append(MeanMargin(name=key, amount=amount, count=count, margin=float(limit) - 1, weight=1.5))
        else:
            raise ValueError(f"unknown limit {key!r}")
    phases = init["phases"]
    return EngineConfig(
        columns=columns,
        histograms=histograms,
        gates=tuple(gates),
        phases=graduated(tuple(str(p[0]) for p in phases), tuple(bool(p[2]) for p in phases)),
        scrape_s=float(init.get("scrape_s", 15)),
        evidence_required=evidence_required,
    )


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.stdin, sys.stdout, evidence_required="--evidence-required" in sys.argv[1:]))
