"""
Which events a gate check brings about by itself: those that the plan lets it exercise and that alone keep the rollout where it is.

It stands behind `decide`, after the row is written, and changes no decision: what is exercised now counts at the next look. Its one
rule: nothing fails on purpose while it could still happen by itself, or while the rollout could not go on with it anyway.
"""

from dataclasses import dataclass
from datetime import datetime

from controller.core.converge import Convergence
from controller.core.decide import decide
from controller.core.decision import Advance, Promote, Why
from controller.core.gates import GateResult, Verdict
from controller.core.plan import AtLeast, GateMode
from controller.core.rollout import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Exercise:
    """
    A drill that is due.

    Args:
        gate: The gate that lacks it.
        route: That its filters name; "" for any.
        streaming: Whether they ask for streams.
        times: How often it has still to happen (>= 1).
    """

    gate: str
    route: str
    streaming: bool
    times: int


def exercises(rollout: Rollout, convergence: Convergence, results: tuple[GateResult, ...], now: datetime) -> tuple[Exercise, ...]:
    """
    Args:
        rollout, convergence, results, now: What the gate check decided on.

    Returns:
        Nothing unless the rollout would be raised, or people asked, if these events had happened. Gates that the same drill serves
        are one, with the largest number.
    """
    gates = {g.name: g for g in rollout.plan.gates if isinstance(g, AtLeast) and g.exercise}
    # Without a number nobody could see the drill either: it would be repeated for ever.
    lacking = [
        r
        for r in results
        if r.gate in gates and r.mode is GateMode.ENFORCE and r.verdict is Verdict.INSUFFICIENT and r.observed is not None
    ]
    if not lacking:
        return ()
    without = decide(rollout, convergence, tuple(r for r in results if r not in lacking), now, may_raise=True)
    # People are asked once the evidence is whole: an approval that is missing must not wait for a drill that waits for it.
    if not isinstance(without, Advance | Promote) and without.why is not Why.AWAITING_APPROVAL:
        return ()
    due: dict[tuple[str, bool], Exercise] = {}
    for result in lacking:
        gate, seen = gates[result.gate], round(result.observed or 0.0)
        key = gate.where.get("route", ""), gate.where.get("streaming") == "true"
        exercise = Exercise(gate=gate.name, route=key[0], streaming=key[1], times=max(gate.times - seen, 1))
        due[key] = max(due.get(key, exercise), exercise, key=lambda e: e.times)
    return tuple(due.values())
