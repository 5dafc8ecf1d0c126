"""
A decision computed again from its audit row alone: the same verdicts and the same decision must come out.

Its one rule: nothing but the rows up to and including this one is used, so whoever has the log can check what we claim.
"""

from dataclasses import dataclass

from controller.core.converge import InStep
from controller.core.decide import decide
from controller.core.decision import Decision, Why
from controller.core.gates import GateResult, judge
from controller.core.rollout import Decided, Entry, Pending, Rollout

FROM_THE_FLAG = frozenset({Why.KILLED, Why.DRIFT, Why.UNRECORDED_LOWERING})
"""Reasons that lie in what the flag store said, which a row does not keep whole: their decisions are not computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What comes out; `decision` is None where the row does not hold what it was made from."""

    results: tuple[GateResult, ...]
    decision: Decision | None


def recompute(before: Rollout, entry: Entry) -> Recomputed | None:
    """
    Args:
        before: The rollout before the row.
        entry: A row.

    Returns:
        None for a row that is no decision of the gate check or the guard.
    """
    event = entry.event
    if not isinstance(event, Decided) or event.source == "person":
        return None
    settled = before.settled
    assert settled is not None, "a decision comes before the end"
    plan, measured = before.plan, event.observed.measurements
    times = [e.at for _, m in measured for e in m.evidence]
    since = before.opened_at if isinstance(settled, Pending) or settled.phase is None else settled.since
    at = times[0] if times else entry.at
    gates = {g.name: g for g in plan.gates}
    results = tuple(
        judge(gates[name], m, plan.policy, plan.phases[before.phase or 0], len(plan.gates), at - since) for name, m in measured
    )
    if event.decision.why in FROM_THE_FLAG or (measured and not times):
        return Recomputed(results=results, decision=None)
    decision = decide(before, InStep(), results, at, may_raise=event.source == "gate_check")
    return Recomputed(results=results, decision=decision)
