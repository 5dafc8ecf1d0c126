"""
A rollout in words and numbers: what `list`, `get`, `why` and `history` print, and what `-o json` carries.

Its one rule: everything here is computed from the audit log's rows alone.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from controller.codec import event_to_json
from controller.core.decision import Hold
from controller.core.freeze import frozen_until, windows
from controller.core.gates import GateResult, pct
from controller.core.notice import account_of, next_look, standing
from controller.core.plan import Plan
from controller.core.question import OVERRIDE_LASTS, override_in_force, question_of, step_digest
from controller.core.rollout import (
    Abandoned,
    Aborted,
    Applied,
    Approved,
    AwaitingApproval,
    Baking,
    Decided,
    Entry,
    Opened,
    Overridden,
    Paused,
    Promoted,
    Rejected,
    RolledBack,
    Rollout,
)


def state_name(rollout: Rollout) -> str:
    """pending, baking, awaiting_approval, paused, moving, promoted, rolled_back or aborted."""
    name = type(rollout.state).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def summary(rollout: Rollout) -> dict[str, Any]:
    plan = rollout.plan
    return {
        "rollout_id": rollout.id,
        "state": state_name(rollout),
        "standing": standing(rollout),
        "environment": plan.environment,
        "flag": plan.flag,
        "baseline": plan.baseline.model,
        "candidate": plan.candidate.model,
        "weight": rollout.weights.live / 100_000,
        "exposed_requests": None if rollout.exposure is None else round(rollout.exposure),
        "opened_at": stamp(rollout.opened_at),
        "opened_by": rollout.requester,
    }


def detail(rollout: Rollout, entries: Sequence[Entry], now: datetime | None = None) -> dict[str, Any]:
    """
    Where it stands, what was last decided and what comes next.

    Args:
        rollout: Replayed from `entries`.
        entries: Its rows.
        now: The database's clock; default the time of the last row.
    """
    last = last_decision(entries)
    now = now or entries[-1].at
    return {
        **summary(rollout),
        "phases": phases(rollout, entries),
        "last_decision": None if last is None else decision_row(last),
        "next": upcoming(rollout, now),
        "next_look": stamp(next_look(rollout, last, now)),
        "gates": [] if last is None else gate_rows(last),
        "question": question_row(rollout, now),
        "override": override_row(rollout, now),
        "frozen": frozen_row(rollout, now),
        "freezes": [] if rollout.ended else freeze_rows(rollout.plan, now, now + FREEZES_AHEAD),
        "step": step_digest(rollout),
        "plan_digest": rollout.plan_digest,
        "audit_rows": len(entries),
    }


def question_row(rollout: Rollout, now: datetime) -> dict[str, Any] | None:
    """What people are asked, and who has answered; None where nobody is."""
    if (question := question_of(rollout, now)) is None:
        return None
    return {
        "digest": question.digest,
        "entering": rollout.plan.phases[question.entering].name,
        "asked_at": stamp(question.asked_at),
        "unproven": list(question.unproven),
        "approvals": [
            {
                "from": list(a.approval.groups),
                "count": a.approval.count,
                "not_requester": a.approval.not_requester,
                "given": [{"actor": v.actor, "at": stamp(v.at), "expires_at": stamp(v.at + a.approval.expires)} for v in a.votes],
                "lacking": a.lacking,
            }
            for a in question.asked
        ],
    }


def override_row(rollout: Rollout, now: datetime) -> dict[str, Any] | None:
    """The break-glass in force; None for none."""
    if (override := override_in_force(rollout, now)) is None:
        return None
    event = override.event
    return {
        "actor": override.actor,
        "at": stamp(override.at),
        "until": stamp(override.at + OVERRIDE_LASTS),
        "checks": [c.value for c in event.checks],
        "reason": event.reason,
        "ticket": event.ticket,
    }


FREEZES_AHEAD = timedelta(days=14)
"""How far people are shown which freezes come."""


def frozen_row(rollout: Rollout, now: datetime) -> dict[str, Any] | None:
    """The freeze in force, and until when nothing is raised; None for none."""
    frozen = None if rollout.ended else frozen_until(rollout.plan.freezes, now)
    return None if frozen is None else {"name": frozen[0], "until": stamp(frozen[1])}


def freeze_rows(plan: Plan, begin: datetime, end: datetime) -> list[dict[str, Any]]:
    """The plan's freezes that are in force at some time between two moments."""
    return [{"name": w.name, "starts_at": stamp(w.starts), "ends_at": stamp(w.ends)} for w in windows(plan.freezes, begin, end)]


def phases(rollout: Rollout, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The plan's phases with when each began and how long it lasted; None for what has not happened."""
    begun: dict[int, datetime] = {}
    ended: dict[int, datetime] = {}
    decided = {e.event.decision_id: e.event.decision for e in entries if isinstance(e.event, Decided)}
    current: int | None = None
    for entry in entries:
        if not isinstance(entry.event, Applied):
            continue
        decision = decided[entry.event.decision_id]
        if decision.kind == "resume":
            continue
        if current is not None:
            ended[current] = entry.at
        current = decision.phase if decision.kind == "advance" else None
        if current is not None:
            begun[current] = entry.at
    rows = []
    for i, phase in enumerate(rollout.plan.phases):
        seconds = (ended[i] - begun[i]).total_seconds() if i in ended else None
        rows.append(
            {
                "name": phase.name,
                "mode": phase.mode.value,
                "traffic": phase.weight / 100_000,
                "bake_s": phase.bake.total_seconds(),
                "started_at": stamp(begun.get(i)),
                "seconds": seconds,
                "current": rollout.phase == i and i in begun,
            }
        )
    return rows


def upcoming(rollout: Rollout, now: datetime) -> str:
    """What happens next, and when."""
    plan, state = rollout.plan, rollout.state
    every = int(plan.policy.every.total_seconds())
    match state:
        case Promoted() | RolledBack() | Aborted():
            return "nothing: the rollout has ended"
        case Paused():
            return "a person resumes, rolls back or aborts it; breaches still lower the flag"
        case AwaitingApproval():
            question = question_of(rollout, now)
            assert question is not None, "an awaiting rollout asks"
            found = [
                f"{a.lacking} of {a.approval.count} approvals from {' or '.join(a.approval.groups)}"
                for a in question.asked
                if a.lacking
            ]
            if found:
                return f"{' and '.join(found)} are missing"
            return f"the next gate check goes on: nobody is missing{_after_freeze(plan, now)}"
        case Baking(phase=phase, since=since):
            baked = since + plan.phases[phase].bake
            more = phase + 1 < len(plan.phases)
            then = plan.phases[phase + 1].name if more else "promotion"
            frozen = _after_freeze(plan, max(baked, now)) if more else ""
            return f"{then} at the first gate check after {baked:%H:%M:%S} UTC that passes (checks every {every} s){frozen}"
        case _:
            return f"the next gate check (every {every} s){_after_freeze(plan, now)}"


def _after_freeze(plan: Plan, at: datetime) -> str:
    frozen = frozen_until(plan.freezes, at)
    return "" if frozen is None else f", not before the freeze {frozen[0]} ends at {frozen[1]:%Y-%m-%d %H:%M} UTC"


def last_decision(entries: Sequence[Entry], *, moved: bool = False) -> Entry | None:
    """The last Decided row; with `moved` the last one that was more than a hold, if there is one."""
    rows = [e for e in entries if isinstance(e.event, Decided)]
    strong = [e for e in rows if isinstance(e.event, Decided) and not isinstance(e.event.decision, Hold)]
    if moved and strong:
        return strong[-1]
    return rows[-1] if rows else None


def decision_row(entry: Entry) -> dict[str, Any]:
    event = entry.event
    assert isinstance(event, Decided)
    return {
        "seq": entry.seq,
        "at": stamp(entry.at),
        "actor": entry.actor,
        "kind": event.decision.kind,
        "why": event.decision.why.value,
        "text": event.decision.text,
        "weight_before": event.weights_before.live / 100_000,
        "weight_after": event.weights_after.live / 100_000,
    }


def gate_rows(entry: Entry) -> list[dict[str, Any]]:
    """The gates of a decision, in the plan's order; none of another row."""
    return [gate_row(r) for r in entry.event.observed.results] if isinstance(entry.event, Decided) else []


def gate_row(result: GateResult) -> dict[str, Any]:
    return {
        "gate": result.gate,
        "verdict": result.verdict.value,
        "observed": result.observed,
        "limit": result.limit,
        "interval": result.interval,
        "unit": result.unit,
        "n": result.n,
        "n_baseline": result.n_baseline,
        "log_e_breach": result.log_e_breach,
        "log_e_proof": result.log_e_proof,
        "log_e_needed": result.log_e_needed,
        "missing": result.missing,
        "guarantee": result.guarantee,
        "mode": result.mode.value,
        "reason": result.reason,
    }


def explanation(rollout: Rollout, entries: Sequence[Entry], now: datetime | None = None) -> dict[str, Any]:
    """Why: the decision that last moved traffic, or the last hold; its sentence, its gates, its queries."""
    entry = last_decision(entries, moved=rollout.ended) or None
    if entry is None:
        return {"rollout_id": rollout.id, "sentence": "nothing has been decided yet", "gates": [], "queries": []}
    event = entry.event
    assert isinstance(event, Decided)
    return {
        "rollout_id": rollout.id,
        "standing": standing(rollout),
        "sentence": f"{account_of(entry, entries)} ({entry.actor}, {entry.at:%Y-%m-%d %H:%M:%S} UTC)",
        "decision": decision_row(entry),
        "exposed_requests": None if rollout.exposure is None else round(rollout.exposure),
        "gates": gate_rows(entry),
        "queries": queries(entry),
        "next": upcoming(rollout, now or entries[-1].at),
    }


def queries(entry: Entry) -> list[dict[str, Any]]:
    """Each distinct question of a row, with the gates that rest on it."""
    event = entry.event
    assert isinstance(event, Decided)
    found: dict[tuple[str, datetime], dict[str, Any]] = {}
    for gate, measurement in event.observed.measurements:
        for e in measurement.evidence:
            row = found.setdefault(
                (e.query, e.at), {"query": e.query, "at": stamp(e.at), "digest": e.digest, "note": e.note, "gates": []}
            )
            row["gates"].append(gate)
    return list(found.values())


def plan_of(entries: Sequence[Entry]) -> Plan:
    """What a rollout was asked to do, by its first row."""
    first = entries[0].event
    assert isinstance(first, Opened), "a log begins with its plan"
    return first.plan


def history_row(entry: Entry, plan: Plan) -> dict[str, Any]:
    """One row in words. `plan` is the rollout's: its phases have names there."""
    match entry.event:
        case Opened(plan=plan):
            kind, text = "opened", f"{plan.baseline.model} to {plan.candidate.model} on flag {plan.flag} in {plan.environment}"
        case Decided(decision=decision):
            kind, text = f"decided {decision.kind}", decision.text
        case Applied(decision_id=decision_id, weights=weights, flag_version=version):
            kind, text = "applied", f"{decision_id}: flag at {pct(weights.live / 100_000)}, version {version}"
            if weights.shadow:
                text += f", {pct(weights.shadow / 100_000)} mirrored"
        case Abandoned(text=reason):
            kind, text = "abandoned", reason
        case Approved(entering=entering, groups=groups):
            kind, text = "approved", f"entering {_entered(plan, entering)} as {', '.join(groups)}"
        case Rejected(entering=entering, reason=reason):
            kind, text = "rejected", f"entering {_entered(plan, entering)}: {reason}"
        case Overridden(entering=entering, checks=checks, ticket=ticket, reason=reason):
            kind, text = "overridden", f"{', '.join(checks)} of entering {_entered(plan, entering)} ({ticket}: {reason})"
    return {"seq": entry.seq, "at": stamp(entry.at), "actor": entry.actor, "kind": kind, "text": text}


def history_json(entry: Entry, plan: Plan) -> dict[str, Any]:
    """The row with its whole event, evidence included."""
    return {**history_row(entry, plan), "event": event_to_json(entry.event)}


def _entered(plan: Plan, entering: int) -> str:
    return plan.phases[entering].name if entering < len(plan.phases) else "the promotion"


def stamp(at: datetime | None) -> str | None:
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
