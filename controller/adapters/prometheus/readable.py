"""
The one query of an event; and the numbers of all other gates as queries that people can paste into Prometheus.

It stands beside `counting`, which counts exactly and reads raw counters for it. Its one rule: but for events these are to look at. A verdict never
rests on them, as `increase` and `histogram_quantile` estimate.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from controller.adapters.prometheus.existence import scope_at
from controller.adapters.prometheus.profile import EVENT, Counted, NotAskable, Profile, duration, where_text
from controller.core.ledger import BASELINE, CANDIDATE
from controller.core.plan import AtLeast, AtMost, Gate, Plan, QuantileIncrease, QuantileLimit
from controller.core.traffic import Kind, question_of
from controller.ports import Scope

ALERTS = 'count(ALERTS{alertstate="firing"%s}) or vector(0)'
"""Prometheus' own series. No firing alert is no series: 0, if Prometheus answers at all."""


def queries(plan: Plan, gate: Gate, profile: Profile, window: timedelta, at: datetime) -> dict[str, str]:
    """
    Args:
        plan, gate: What is judged.
        profile: Of the plan.
        window: How much traffic.
        at: When.

    Returns:
        PromQL by arm: `candidate`, `baseline`; seconds, shares or amounts per request. Empty for gates that count nothing.

    Raises:
        NotAskable: the profile has nothing for it.
    """
    scope, span = scope_at(plan, at), duration(int(window.total_seconds() * 1000))
    question = question_of(gate)
    match gate:
        case AtLeast(indicator="custom") | AtMost(indicator="custom"):
            return {CANDIDATE: own_query(gate, scope, profile, span)}
        case AtMost():
            return {CANDIDATE: alerts(gate)}
        case AtLeast():
            counted = profile.counted(profile.indicator(EVENT), scope, gate.where)
            return {CANDIDATE: _sum([c for c in counted if c.arm == CANDIDATE], "total", span)}
        case _ if question is None:
            return {}
    assert question is not None, gate
    counted = profile.counted(profile.of(question, scope), scope, question.where)
    quantile = gate.quantile if isinstance(gate, QuantileLimit | QuantileIncrease) else 0.5
    return {arm: _of([c for c in counted if c.arm == arm], question.kind, span, quantile) for arm in (CANDIDATE, BASELINE)}


def _of(counted: list[Counted], kind: Kind, span: str, quantile: float) -> str:
    match kind:
        case Kind.HISTOGRAM:
            return f"histogram_quantile({quantile:g}, {_sum(counted, 'buckets', span, by='le')})"
        case Kind.MEAN:
            return f"{_sum(counted, 'amount', span)} / {_sum(counted, 'count', span)}"
        case Kind.RATE:
            good = any(c.part == "good" for c in counted)
            share = f"{_sum(counted, 'good' if good else 'bad', span)} / {_sum(counted, 'total', span)}"
            return f"1 - {share}" if good else share


def _sum(counted: Iterable[Counted], part: str, span: str, *, by: str = "") -> str:
    own = [c.promql("increase", span) for c in counted if c.part == part]
    if not own:
        raise NotAskable(f"nothing counts the {part}")
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} ({' or '.join(own)})"


def alerts(gate: AtMost) -> str:
    """
    How many alerts of a filter fire.

    Raises:
        NotAskable: the filter is none.
    """
    where = where_text(gate.where, frozenset({"alertstate"}))
    return ALERTS % (f",{where}" if where else "")


def own_query(gate: AtLeast | AtMost, scope: Scope, profile: Profile, window: str) -> str:
    """
    A query that a person wrote: it stands alone, and whatever it says is one number or nothing.

    Args:
        gate: Whose.
        scope: Whose labels stand for $arm.
        profile: Says which those are.
        window: Stands for $window; "" leaves it.

    Raises:
        NotAskable: there is none, or it is on more than one line.
    """
    text = gate.promql.get("value", "")
    if not text or not text.isprintable():
        raise NotAskable("promql.value: write one query, on one line")
    if "$arm" in text:
        text = text.replace("$arm", profile.arms(scope)[CANDIDATE][0])
    return text.replace("$window", window) if window else text
