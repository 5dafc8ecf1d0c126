"""
A decision computed again from its audit row alone: the same verdicts and the same decision must come out.

Its one rule: nothing but the rows up to and including this one is used, so whoever has the log can check what we claim. The evidence is not
believed either: the case before the look takes the row's traffic once more, and what comes out is judged.
"""

from dataclasses import dataclass
from datetime import datetime

from controller.core.converge import InStep, converge, leased
from controller.core.decide import decide
from controller.core.decision import Decision, Why
from controller.core.evidence.case import Case
from controller.core.gates import GateResult, Weighed, judge_all
from controller.core.rollout import Decided, Entry, Pending, Rollout
from controller.core.traffic import Reading

FROM_THE_FLAG = frozenset({Why.KILLED, Why.DRIFT, Why.UNRECORDED_LOWERING, Why.LEASE_LAPSED})
"""Reasons that lie in what the flag store said. Rows from before releases kept that (`Observed.found`) cannot be computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """
    What comes out.

    Args:
        results: The verdicts.
        decision: None where the row does not hold what it was made from.
        evidence: The case after the look, as text; "" where none was gathered.
    """

    results: tuple[GateResult, ...]
    decision: Decision | None
    evidence: str = ""


def recompute(before: Rollout, entry: Entry, readings: tuple[Reading, ...] = ()) -> Recomputed | None:
    """
    Args:
        before: The rollout before the row.
        entry: A row with its texts, as `AuditLog.entry` gives it.
        readings: Of the row's gathered evidence (`controller.codec.readings_from_text`).

    Returns:
        None for a row that is no decision of the gate check or the guard.

    Raises:
        ValueError: the row's evidence cannot be read.
    """
    event = entry.event
    if not isinstance(event, Decided) or event.source == "person":
        return None
    observed = event.observed
    if observed.at is None:
        return Recomputed(results=(), decision=None)
    weighed, evidence = _weighed(before, event, readings)
    results = judge_all(before.plan, before.phase or 0, dict(observed.measurements), weighed, observed.at - _since(before))
    if event.decision.why in FROM_THE_FLAG and observed.found is None:
        return Recomputed(results=results, decision=None, evidence=evidence)
    found = observed.found
    convergence = InStep() if found is None else leased(converge(before, found.flag), found.flag, found.at)
    decision = decide(before, convergence, results, observed.at, may_raise=event.source == "gate_check")
    return Recomputed(results=results, decision=decision, evidence=evidence)


def _weighed(before: Rollout, event: Decided, readings: tuple[Reading, ...]) -> tuple[dict[str, Weighed], str]:
    gathered = event.observed.gathered
    if gathered is None:
        return {}, ""
    case = Case.of(before.plan, gathered.before)
    for reading in readings:
        case.take(reading)
    # The ledger is the metric source's own and no evidence: it is taken over as it was written.
    case.ledger = Case.of(before.plan, gathered.after).ledger
    return case.weighed(), case.text()


def _since(before: Rollout) -> datetime:
    settled = before.settled
    assert settled is not None, "a decision comes before the end"
    return before.opened_at if isinstance(settled, Pending) or settled.phase is None else settled.since
