"""
What a scenario of the demo came to: one JSON object, its lines documented here.

* `phases`: from the row that confirmed a phase's weight to the row that confirmed the next change.
* `decisions`: every Decided row, holds included; `by` is the gate check, the guard or a person.
* `exposed_requests`: user requests that the candidate answered, counted by the traffic driver from the router's answers.
* `breach_to_flag_s`: from when the breach was proven by what had happened (the beat whose counters completed the evidence; for gates that
  are no statistics, the time of the query that found it) to the flag store's own time of the write that brought the candidate to 0.
* `flag_to_router_s`: from that time of the write until the router had it in force, see `propagation`. Without a rollback: of the
  last write.

Its one rule: nothing here is an opinion of the demo; every number comes from the audit log, the flag history or the users.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from controller.cli.demo.propagation import Propagation
from controller.cli.demo.watch import Said, Watch
from controller.core.decision import RollBack, Why
from controller.core.evidence.case import Case
from controller.core.gates import Verdict
from controller.core.plan import Plan
from controller.core.rollout import replay
from controller.ports import Ports


def report(watch: Watch, ports: Ports, propagation: Propagation, *, exposed: int) -> dict[str, Any]:
    """
    Args:
        watch: At the end of its rollout, or of the demo.
        ports: To read the log.
        propagation: Of the flag writes.
        exposed: User requests that the candidate answered.
    """
    write = propagation.last_of(watch.rollout_id)
    reached_s = None if write is None else propagation.seconds(write)
    return {
        "scenario": watch.scenario.name,
        "rollout_id": watch.rollout_id,
        "outcome": watch.outcome,
        "expected": " or ".join(watch.scenario.expected),
        "phases": [
            {
                "name": stay.name,
                "started_at": stay.since.isoformat(),
                "seconds": None if stay.until is None else round((stay.until - stay.since).total_seconds(), 3),
            }
            for stay in watch.stays
        ],
        "decisions": [
            {
                "seq": s.seq,
                "kind": s.decision.kind,
                "why": s.decision.why,
                "by": s.decided.source,
                "text": s.decision.text,
                "at": s.at.isoformat(),
            }
            for s in watch.said
        ],
        "exposed_requests": exposed,
        "breach_to_flag_s": breach_to_flag_s(watch, ports, propagation),
        "flag_to_router_s": None if reached_s is None else round(reached_s, 3),
    }


def as_expected(row: Mapping[str, Any]) -> bool:
    return row["outcome"] in row["expected"].split(" or ")


def breach_to_flag_s(watch: Watch, ports: Ports, propagation: Propagation) -> float | None:
    """None unless a breach brought the candidate back."""
    said = _rolled_back_by(watch)
    write = None if said is None else propagation.writes.get(said.decided.decision_id)
    if said is None or write is None:
        return None
    return round((write.at - _proven(replay(watch.entries).plan, said, ports)).total_seconds(), 3)


def _rolled_back_by(watch: Watch) -> Said | None:
    return next((s for s in reversed(watch.said) if isinstance(s.decision, RollBack) and s.decision.why is Why.BREACH), None)


def _proven(plan: Plan, said: Said, ports: Ports) -> datetime:
    """When what had happened was enough for the breach."""
    observed = said.decided.observed
    if observed.gathered is not None:
        struck = Case.of(plan, ports.audit.text(observed.gathered.after)).struck()
        if struck is not None:
            return struck.at
    breached = {r.gate for r in observed.results if r.verdict is Verdict.BREACH}
    return next((e.at for name, m in observed.measurements if name in breached for e in m.evidence), said.at)
