"""
A plan in the engine's terms: which questions become which gates, what each phase must prove, and how the error budget is shared out.

It stands between `controller.core.plan`, which people write, and `config`, which the engine checks. Gates that act differently (roll back,
pause, only tell) have an engine each, with a budget of its own. Its one rule: what the plan promises about errors is decided here
and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from controller.core import plan as core
from controller.core.evidence.config import (
    RUNGS,
    EngineConfig,
    Gate,
    Histogram,
    MeanMargin,
    Need,
    PhaseRule,
    QuantileLimit,
    QuantileMargin,
    RateLimit,
    Rung,
    graduated,
)
from controller.core.traffic import Kind, Question, columns_of, question_of
from flagspec import WEIGHT_MAX

StatisticalGate = core.RateLimit | core.QuantileLimit | core.QuantileIncrease | core.MeanIncrease

PROMISED = 0.05
"""The error budget that the rungs and the ladder of phases are written for; another `confidence` scales them."""

ALPHA_MAX = 0.5

WIDER = 1.25
"""Half a step of the ladder of margins (1, 1.25, 1.5, 2)."""

WEIGHTS = {"error_ratio": 2.0, "timeout_ratio": 2.0, "availability": 1.0, "fallback_success": 1.0}
"""Parts of the budget that rates get; as measured best on generated traffic."""
QUANTILE_LIMIT_WEIGHT, QUANTILE_MARGIN_WEIGHT, MEAN_WEIGHT, CUSTOM_WEIGHT = 0.5, 2.0, 1.5, 1.0


class Action(StrEnum):
    """What a breach does; gates of one action share an engine."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    TELL = "tell"


def statistical(gate: core.Gate) -> bool:
    """Whether the engine judges this gate."""
    return isinstance(gate, core.RateLimit | core.QuantileLimit | core.QuantileIncrease | core.MeanIncrease)


def action_of(gate: core.Gate, policy: core.Policy) -> Action:
    if gate.mode is not core.GateMode.ENFORCE:
        return Action.TELL
    return Action((gate.on_breach or policy.on_breach).value)


def engine_of(gate: core.Gate, policy: core.Policy) -> str:
    """
    Name of the engine that judges a gate. Gates of one action share an engine and its budget, for the first breach acts. Gates that only tell have
    one each: a breach of one must not silence the others.
    """
    action = action_of(gate, policy)
    return f"{action.value} {gate.name}" if action is Action.TELL else action.value


def configs_of(plan: core.Plan, questions: Sequence[Question], edges: Mapping[str, tuple[float, ...]]) -> dict[str, EngineConfig]:
    """
    Args:
        plan: The rollout's plan.
        questions: Those of `questions_of` the plan that these engines count; gates that ask others are left out.
        edges: Bucket edges by key of the question. A histogram gate without edges is left out.

    Returns:
        An engine's configuration by name (`engine_of`). Its error budget is the part of the whole budget of that name that its gates have
        of the weight of all gates of that name.

    Raises:
        ValueError: A limit is out of range for the engine.
    """
    columns = columns_of(questions, edges)
    at = {c: i for i, c in enumerate(columns)}
    histograms = tuple(
        Histogram(name=q.key, edges=edges[q.key], first=at[f"{q.key}:0"])
        for q in questions
        if q.kind is Kind.HISTOGRAM and edges.get(q.key)
    )
    counted = {q.key for q in questions if q.kind is not Kind.HISTOGRAM} | {h.name for h in histograms}
    found: dict[str, list[Gate]] = {}
    whole: dict[str, float] = {}
    for gate in plan.gates:
        if (question := question_of(gate)) is None:
            continue
        term, name = _gate(gate, question.key), engine_of(gate, plan.policy)
        whole[name] = whole.get(name, 0.0) + term.weight
        if question.key in counted:
            found.setdefault(name, []).append(term)
    return {
        name: EngineConfig(
            columns=columns,
            histograms=histograms,
            gates=tuple(gates),
            phases=rules_of(plan),
            scrape_s=plan.policy.guard_every.total_seconds(),
            block_s=plan.policy.block.total_seconds(),
            rungs=(rungs := _rungs(plan.policy, sum(g.weight for g in gates) / whole[name])),
            alpha_rollback=sum(r.alpha for r in rungs),
            evidence_required=plan.policy.evidence_required,
            interval_alpha=1 - plan.policy.confidence,
        )
        for name, gates in found.items()
    }


def _rungs(policy: core.Policy, part: float) -> tuple[Rung, ...]:
    budget = part * (1 - policy.confidence) / PROMISED
    return tuple(replace(r, alpha=min(r.alpha * budget, ALPHA_MAX)) for r in RUNGS)


def rules_of(plan: core.Plan) -> tuple[PhaseRule, ...]:
    """
    What each phase must prove: margins tighten towards the last phase beside a baseline, which proves the plan's own margins; at 100 %
    no baseline is left, and limits are judged by themselves.
    """
    budget = (1 - plan.policy.confidence) / PROMISED
    beside = [p for p in plan.phases if p.live_weight < WEIGHT_MAX]
    ladder = graduated(tuple(p.name for p in beside), tuple(p.mode is core.Mode.SHADOW for p in beside))
    rules = {
        p.name: replace(
            rule, alpha=min(rule.alpha * budget, ALPHA_MAX), wider=None if p.max_bake is None else rule.multiple * WIDER
        )
        for p, rule in zip(beside, ladder, strict=True)
    }
    last = PhaseRule(name="", shadow=False, alpha=min(PROMISED * budget, ALPHA_MAX), multiple=1.0, alone=True)
    return tuple(rules.get(p.name) or replace(last, name=p.name) for p in plan.phases)


def _gate(gate: core.Gate, key: str) -> Gate:
    match gate:
        case core.RateLimit():
            return RateLimit(
                name=gate.name,
                bad=f"{key}:bad",
                total=f"{key}:total",
                limit=gate.limit,
                need=Need(gate.need.value),
                weight=WEIGHTS.get(gate.indicator, CUSTOM_WEIGHT),
            )
        case core.QuantileLimit():
            return QuantileLimit(
                name=gate.name,
                histogram=key,
                q=gate.quantile,
                limit=gate.limit_s,
                need=Need(gate.need.value),
                weight=QUANTILE_LIMIT_WEIGHT,
            )
        case core.QuantileIncrease():
            return QuantileMargin(
                name=gate.name,
                histogram=key,
                q=gate.quantile,
                margin=gate.max_increase,
                need=Need(gate.need.value),
                weight=QUANTILE_MARGIN_WEIGHT,
            )
        case core.MeanIncrease():
            return MeanMargin(
                name=gate.name,
                amount=f"{key}:amount",
                count=f"{key}:count",
                margin=gate.max_increase,
                need=Need(gate.need.value),
                weight=MEAN_WEIGHT,
            )
        case _:
            raise TypeError(f"{gate.kind} is no statistical gate")
