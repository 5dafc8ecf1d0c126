"""
What the controller counts about its own looks: the names of ``docs/reference/controller-metrics.md``, word for word.

It stands beside `controller.sweep` and `controller.guard`, which report here; a process that looks may export it (`REGISTRY`). Its one rule:
counting decides nothing and never fails, and no label has more values than this file names.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from controller.core.decide import unchecked
from controller.core.gates import GateResult, Verdict
from controller.core.rollout import Rollout

Caller = Literal["gate-check", "guard"]
CALLERS: tuple[Caller, ...] = ("gate-check", "guard")
OUTCOMES = ("decided", "nothing_due", "quiet", "lost_race", "unrecorded", "ended", "failed")
STATES = {
    "Pending": "pending",
    "Baking": "baking",
    "AwaitingApproval": "awaiting_approval",
    "Paused": "paused",
    "Moving": "moving",
}
ROUNDS = ("ok", "blind", "failed")
DELIVERIES = ("sent", "failed", "refused")

disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
REGISTRY = CollectorRegistry()

_ticks = Counter(
    "penstock_ticks", "Looks at one rollout, by who looked and what came of it.", ("caller", "outcome"), registry=REGISTRY
)
_tick_seconds = Histogram(
    "penstock_tick_duration_seconds",
    "Duration of a look at one rollout.",
    ("caller",),
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    registry=REGISTRY,
)
_verdicts = Counter("penstock_gate_verdicts", "Verdicts of gates in looks.", ("caller", "verdict"), registry=REGISTRY)
_rounds = Counter("penstock_guard_rounds", "Rounds of the guard over all rollouts.", ("outcome",), registry=REGISTRY)
_last_round = Gauge(
    "penstock_guard_last_round_timestamp_seconds", "End of the guard's last round, by its own clock.", registry=REGISTRY
)
_blind = Gauge(
    "penstock_guard_blind",
    "1 while the guard cannot read the audit log and lowers through the flag store alone.",
    registry=REGISTRY,
)
_rollouts = Gauge("penstock_rollouts", "Active rollouts as the guard last saw them.", ("state",), registry=REGISTRY)
_drift = Gauge("penstock_flag_drift", "Active rollouts whose flag carries what no decision explains.", registry=REGISTRY)
_missed = Gauge(
    "penstock_gate_checks_missed", "Gate checks that active rollouts miss at the moment, all together.", registry=REGISTRY
)
_age = Gauge(
    "penstock_gate_check_age_seconds", "Time since the last gate check of the rollout that waits longest.", registry=REGISTRY
)
_notices = Counter("penstock_notices", "Notices that were tried to deliver, by what came of it.", ("outcome",), registry=REGISTRY)

# At 0 from the start, so that "nothing happened" and "no data" look different.
for _caller in CALLERS:
    _tick_seconds.labels(_caller)
    for _outcome in OUTCOMES:
        _ticks.labels(_caller, _outcome)
    for _verdict in Verdict:
        _verdicts.labels(_caller, _verdict.value)
for _outcome in ROUNDS:
    _rounds.labels(_outcome)
for _outcome in DELIVERIES:
    _notices.labels(_outcome)
for _state in STATES.values():
    _rollouts.labels(_state)


def looked(caller: Caller, outcome: str, results: Sequence[GateResult], seconds: float) -> None:
    """
    Args:
        caller: Who looked.
        outcome: One of OUTCOMES.
        results: The verdicts of the look.
        seconds: How long it took.
    """
    _ticks.labels(caller, outcome).inc()
    _tick_seconds.labels(caller).observe(seconds)
    for result in results:
        _verdicts.labels(caller, result.verdict.value).inc()


def round_ended(outcome: Literal["ok", "blind", "failed"], at_s: float) -> None:
    """
    Args:
        outcome: Of a round of the guard; ``blind`` without the log.
        at_s: When, seconds since the epoch.
    """
    _rounds.labels(outcome).inc()
    if outcome != "failed":
        _last.monotonic_s = time.monotonic()
        _last_round.set(at_s)
        _blind.set(outcome == "blind")


@dataclass(slots=True)
class _Last:
    monotonic_s: float | None = None


_last = _Last()


def last_round_age_s() -> float | None:
    """Seconds since the guard of this process last came round; None for never."""
    return None if _last.monotonic_s is None else time.monotonic() - _last.monotonic_s


def seen(rollouts: Iterable[Rollout], drifted: int, now: datetime) -> None:
    """
    Args:
        rollouts: The active ones.
        drifted: How many of their flags carry what no decision explains.
        now: The database's clock.
    """
    counts = dict.fromkeys(STATES.values(), 0)
    missed, oldest_s = 0, 0.0
    for rollout in rollouts:
        counts[STATES[type(rollout.state).__name__]] += 1
        age_s = unchecked(rollout, now).total_seconds()
        oldest_s = max(oldest_s, age_s)
        # One period is the ordinary distance of two checks; what is beyond it was missed.
        missed += max(int(age_s // rollout.plan.policy.every.total_seconds()) - 1, 0)
    for state, count in counts.items():
        _rollouts.labels(state).set(count)
    _drift.set(drifted)
    _missed.set(missed)
    _age.set(oldest_s)


def delivered(*, sent: int, failed: int, refused: int) -> None:
    """Letters of one round."""
    for outcome, count in (("sent", sent), ("failed", failed), ("refused", refused)):
        _notices.labels(outcome).inc(count)
