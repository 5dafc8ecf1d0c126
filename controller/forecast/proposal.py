"""
A first plan from what the baseline does today: limits with headroom, phases that fit the traffic.

It stands between `baseline`, which measures, and `penstock init`, which writes the file. Its one rule: it limits only what was measured, and each
limit is one that the baseline keeps today.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from controller.core.plan import MeanIncrease, Plan, QuantileIncrease, QuantileLimit, RateLimit
from controller.core.traffic import question_of
from controller.forecast.baseline import Baseline, Durations, Rate
from controller.forecast.outlook import Outlook
from flagspec.latency import LATENCY_EDGES_S
from specfile import format_duration, format_ratio

HEADROOM_S = 1.25
"""A latency limit is at least so many times what the baseline does."""

HEADROOM_RATE = 2.0

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Round limits for shares of requests."""

LEAST_RATE = {"error_ratio": 0.01, "timeout_ratio": 0.005, "availability": 0.001}
"""Nobody can be asked to be better than that at a canary's traffic."""

QUANTILES = (("latency-p95", "latency"), ("ttft-p95", "ttft"))
SHARES = (("error-rate", "error_ratio"), ("timeout-rate", "timeout_ratio"), ("availability", "availability"))
INCREASES = (("p95-vs-baseline", "latency"), ("cost-vs-baseline", "cost_per_request"))


def skeleton(
    *,
    name: str,
    environment: str,
    flag: str,
    baseline: str,
    candidate: str,
    profile: str,
    owner: str,
    indicators: Sequence[str],
) -> dict[str, Any]:
    """
    A rollout.yaml with a gate for each indicator and limits that mean nothing yet.

    Args:
        indicators: What the profile counts.
    """
    slos = [{"name": n, "indicator": i, "quantile": 0.95, "max": "3s"} for n, i in QUANTILES if i in indicators]
    for n, i in SHARES:
        if i in indicators:
            slos.append({"name": n, "indicator": i, **({"min": "99%"} if i == "availability" else {"max": "1%"})})
    comparisons = [
        {
            "name": n,
            "indicator": i,
            **({"quantile": 0.95} if i == "latency" else {}),
            "max_increase": "15%" if i == "latency" else "10%",
        }
        for n, i in INCREASES
        if i in indicators
    ]
    approval = {"from": ["release-managers"], "not_requester": True}
    shadow = [{"name": "shadow", "mode": "shadow", "traffic": "10%", "bake": "1h"}] if profile == "router" else []
    return {
        "apiVersion": "penstock/v1",
        "kind": "Rollout",
        "metadata": {"name": name, "owner": owner},
        "environment": environment,
        "flag": flag,
        "baseline": {"model": baseline},
        "candidate": {"model": candidate},
        "metrics": {"profile": profile},
        "slos": slos,
        "comparisons": comparisons,
        "gates": {"every": "15m", "guard_every": "15s", "min_requests": 500},
        "phases": [
            *shadow,
            {"name": "canary", "traffic": "5%", "bake": "2h"},
            {"name": "quarter", "traffic": "25%", "bake": "6h", "approval": approval},
            {"name": "half", "traffic": "50%", "bake": "12h"},
            {"name": "full", "traffic": "100%", "bake": "24h", "approval": approval},
        ],
    }


def fitted(data: Mapping[str, Any], plan: Plan, baseline: Baseline) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Args:
        data: A `skeleton`.
        plan: The same as a plan.
        baseline: What was measured of it.

    Returns:
        With limits that the baseline keeps, without gates of which nothing was measured; and for each gate what was measured, in words.
    """
    limits: dict[str, dict[str, str]] = {}
    seen: dict[str, str] = {}
    for gate in plan.gates:
        question = question_of(gate)
        part = None if question is None else baseline.parts.get(question.key)
        match gate, part:
            case QuantileLimit(), Durations(shape=shape):
                today = shape.quantile(gate.quantile)
                edges = LATENCY_EDGES_S if plan.profile == "router" else baseline.edges.get(question.key, ()) if question else ()
                limits[gate.name] = {"max": f"{_above(today * HEADROOM_S, edges):g}s"}
                seen[gate.name] = f"{today:.3g} s today"
            case RateLimit(), Rate(bad=bad):
                most = next((r for r in RATES if r >= max(bad * HEADROOM_RATE, LEAST_RATE.get(gate.indicator, 0.01))), RATES[-1])
                limits[gate.name] = (
                    {"min": format_ratio(1 - most)} if gate.indicator == "availability" else {"max": format_ratio(most)}
                )
                seen[gate.name] = f"{bad * 100:.2g}% today"
            case QuantileIncrease() | MeanIncrease(), found if found is not None:
                limits[gate.name] = {}
    made = dict(data)
    for key in ("slos", "comparisons"):
        made[key] = [{**gate, **limits[gate["name"]]} for gate in data[key] if gate["name"] in limits]
        if not made[key]:
            del made[key]
    return made, seen


def baked(data: Mapping[str, Any], found: Outlook) -> dict[str, Any]:
    """The same with phases that bake as long as a good candidate takes to be proven, nine times out of ten; whole hours."""
    lasts = {p.name: p.lasts[1] for p in found.phases if p.lasts is not None and not p.in_time}
    phases = [
        {**p, "bake": format_duration(timedelta(hours=math.ceil(lasts[p["name"]] / timedelta(hours=1))))}
        if p["name"] in lasts
        else p
        for p in data["phases"]
    ]
    return {**data, "phases": phases}


def _above(seconds: float, edges: Sequence[float]) -> float:
    index = bisect_left(edges, seconds)
    return edges[index] if index < len(edges) else float(f"{seconds:.2g}")
