"""Plans that are short enough to be played many times, and a baseline for them."""

from dataclasses import replace
from datetime import timedelta

from controller.core.plan import (
    Approval,
    Gate,
    MeanIncrease,
    Mode,
    Phase,
    Plan,
    Policy,
    QuantileIncrease,
    QuantileLimit,
    RateLimit,
    SampleRatio,
    Silence,
)
from controller.forecast.baseline import Baseline, Given, assumed
from flagspec import Variant

ERRORS = RateLimit(name="errors", indicator="error_ratio", limit=0.01)
P95 = QuantileIncrease(name="p95", indicator="latency", quantile=0.95, max_increase=0.15)
COST = MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.10)
P95_LIMIT = QuantileLimit(name="p95-limit", indicator="latency", quantile=0.95, limit_s=3.0)


def phase(name: str, percent: float, minutes: float, mode: Mode = Mode.LIVE, approval: Approval | None = None) -> Phase:
    return Phase(name=name, mode=mode, weight=round(percent * 1000), bake=timedelta(minutes=minutes), approval=approval)


SHADOW = phase("shadow", 20, 30, Mode.SHADOW)
CANARY = phase("canary", 10, 30)
FULL = phase("full", 100, 30)


def a_plan(*gates: Gate, phases: tuple[Phase, ...] = (SHADOW, CANARY, FULL), min_requests: int = 500) -> Plan:
    return Plan(
        name="chat",
        environment="production",
        flag="chat-model",
        baseline=Variant(model="old"),
        candidate=Variant(model="new"),
        phases=phases,
        gates=(*(gates or (ERRORS, P95)), Silence(), SampleRatio()),
        policy=Policy(min_requests=min_requests),
    )


def a_baseline(plan: Plan, rps: float = 20.0, **given: float) -> Baseline:
    return assumed(plan, replace(Given(rps=rps), **given))  # type: ignore[arg-type]  # all of them are floats
