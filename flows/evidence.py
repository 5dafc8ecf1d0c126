"""
A decision as a page that a person can judge: what was decided, on what numbers, where the rollout stands and how it got there.

It turns values into Markdown and knows nothing of Prefect. Its one rule: it shows what the audit rows hold and computes no verdict of
its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.core.decision import Decision, Hold
from controller.core.gates import GateResult, Verdict, shown
from controller.core.measurement import Measurement
from controller.core.notice import account_of, standing
from controller.core.plan import Phase, Plan
from controller.core.rollout import Applied, Decided, Entry, Paused, Promoted, Rollout, replay, step
from specfile import format_duration

BAR_CELLS = 20
_MARK = {Verdict.PASS: "pass", Verdict.BREACH: "**BREACH**", Verdict.INSUFFICIENT: "insufficient", Verdict.ERROR: "**error**"}
"""In words: a server in a container often has no font with pictures."""
_ORDER = {Verdict.BREACH: 0, Verdict.ERROR: 1, Verdict.INSUFFICIENT: 2, Verdict.PASS: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """The time a rollout spent in one phase; `until` is None while it lasts."""

    phase: int
    since: datetime
    until: datetime | None


def page(rollout: Rollout, entries: Sequence[Entry], row: Entry) -> str:
    """
    Args:
        rollout: As it stands after the decision.
        entries: All its audit rows.
        row: The decision.

    Returns:
        Markdown with tables and one mermaid diagram.
    """
    plan, decided, at = rollout.plan, decision_of(row), row.at
    observed = decided.observed
    exposure = "not measured" if rollout.exposure is None else f"{rollout.exposure:.0f} requests answered by the candidate"
    parts = [
        f"# {plan.name}: {plan.baseline.model} → {plan.candidate.model}",
        f"**{headline(decided.decision, plan)}** · {_cell(account_of(row, entries))}",
        f"Now: {standing(rollout)} · {exposure} · {next_look(rollout, decided.decision)}",
        progress(rollout),
        "## Evidence",
        table(observed.results),
        "## Phases",
        _phase_table(plan, stays(entries)),
        timeline(plan, stays(entries), at),
        "## Queries",
        queries(observed.measurements),
        f"<sub>rollout {rollout.id} · decision {decided.decision_id} · {at:%Y-%m-%d %H:%M:%S} UTC · plan {rollout.plan_digest[:12]}</sub>",
    ]
    return "\n\n".join(parts) + "\n"


def headline(decision: Decision, plan: Plan) -> str:
    """What was decided, in two or three words."""
    match decision.kind:
        case "advance":
            return f"Advance to {_phase(plan.phases[decision.phase])}"
        case "hold":
            return f"Hold ({decision.why.replace('_', ' ')})"
        case _:
            return f"{decision.kind.replace('_', ' ').capitalize()} ({decision.why.replace('_', ' ')})"


def next_look(rollout: Rollout, decision: Decision) -> str:
    if rollout.ended:
        return "this rollout has ended"
    if isinstance(decision, Hold) and decision.next_look is not None:
        return f"next change possible at {decision.next_look:%Y-%m-%d %H:%M:%S} UTC"
    return f"looked at every {format_duration(rollout.plan.policy.every)}"


def progress(rollout: Rollout) -> str:
    """``canary-5 5% ███████░░░░░░░░░░░░░ 3 of 6 phases``."""
    phases, index = rollout.plan.phases, rollout.phase
    if isinstance(rollout.state, Promoted):
        done, where = len(phases), "promoted"
    elif rollout.ended:
        done, where = 0, "ended at 0%"
    else:
        done, where = (0, "not started") if index is None else (index + 1, _phase(phases[index]))
    cells = round(BAR_CELLS * done / len(phases))
    return f"`{'█' * cells}{'░' * (BAR_CELLS - cells)}` {where}, {done} of {len(phases)} phases"


def table(results: Sequence[GateResult]) -> str:
    """The verdicts, worst first."""
    if not results:
        return "No gate was judged: the candidate has seen no traffic yet."
    rows = ["| gate | verdict | observed | limit | interval | n | why |", "|---|---|--:|--:|--:|--:|---|"]
    for r in sorted(results, key=lambda r: _ORDER[r.verdict]):
        interval = "" if r.interval is None else f"{shown(r.interval[0], r.unit)} … {shown(r.interval[1], r.unit)}"
        n = f"{r.n:.0f}" + (f" / {r.n_baseline:.0f}" if r.n_baseline else "")
        mode = "" if r.mode == "enforce" else f" ({r.mode.replace('_', ' ')})"
        cells = (
            f"{_cell(r.gate)}{mode}", _MARK[r.verdict], shown(r.observed, r.unit), shown(r.limit, r.unit),
            interval, n, _cell(r.reason),
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def queries(measurements: Sequence[tuple[str, Measurement]]) -> str:
    """The exact PromQL behind each gate, with its evaluation time and the digest of the answer."""
    blocks: list[str] = []
    for name, measurement in measurements:
        if not measurement.evidence:
            continue
        lines: list[str] = []
        for e in measurement.evidence:
            note = f"  ({e.note})" if e.note else ""
            lines += [f"# at {e.at:%Y-%m-%dT%H:%M:%S.%fZ}, answer sha256 {e.digest[:16]}{note}", e.query]
        fence = "````" if any("```" in line for line in lines) else "```"
        blocks.append(f"**{_cell(name)}**\n{fence}promql\n" + "\n".join(lines) + f"\n{fence}")
    return "\n\n".join(blocks) or "No query was asked."


def stays(entries: Sequence[Entry]) -> tuple[Stay, ...]:
    """The phases that the rollout has been in, in order, by the rows that confirmed each change."""
    found: list[Stay] = []
    rollout: Rollout | None = None
    for entry in entries:
        rollout = replay([entry]) if rollout is None else step(rollout, entry)
        if not isinstance(entry.event, Applied):
            continue
        index = None if isinstance(rollout.state, Paused) else rollout.phase
        if found and found[-1].until is None:
            found[-1] = Stay(phase=found[-1].phase, since=found[-1].since, until=entry.at)
        if index is not None:
            found.append(Stay(phase=index, since=entry.at, until=None))
    return tuple(found)


def timeline(plan: Plan, stays: Sequence[Stay], at: datetime) -> str:
    """A mermaid Gantt chart of the phases so far, in UTC."""
    if not stays:
        return "The flag has not been moved yet."
    axis = "%H:%M:%S" if (at - stays[0].since).total_seconds() < 3600 else "%d %b %H:%M"
    lines = [
        "```mermaid",
        '%%{init: {"theme": "dark"}}%%',  # Prefect shows code blocks on a dark ground
        "gantt",
        f"    title {_mermaid(plan.name)} (UTC)",
        "    dateFormat YYYY-MM-DDTHH:mm:ss",
        f"    axisFormat {axis}",
    ]
    for stay in stays:
        end = max(stay.until or at, stay.since + timedelta(seconds=1))
        kind = "active" if stay.until is None else "done"
        name = _mermaid(_phase(plan.phases[stay.phase]))
        lines.append(f"    {name} :{kind}, {stay.since:%Y-%m-%dT%H:%M:%S}, {end:%Y-%m-%dT%H:%M:%S}")
    return "\n".join([*lines, "```"])


def artifact_key(rollout_id: str) -> str:
    """``gate-<rollout>``, in the letters that Prefect allows in a key."""
    return "gate-" + re.sub(r"[^a-z0-9]+", "-", rollout_id.lower()).strip("-")


def news(entries: Sequence[Entry]) -> Entry | None:
    """The last decision's row if it differs from the one before in kind, reason or phase; None if it repeats it."""
    decisions = [e for e in entries if isinstance(e.event, Decided)]
    if not decisions:
        return None
    last = decision_of(decisions[-1]).decision
    if isinstance(last, Hold) and len(decisions) > 1:
        before = decision_of(decisions[-2]).decision
        if isinstance(before, Hold) and before.why is last.why:
            return None
    return decisions[-1]


def decision_of(entry: Entry) -> Decided:
    assert isinstance(entry.event, Decided), "only rows with a decision are shown"
    return entry.event


def _phase_table(plan: Plan, stays: Sequence[Stay]) -> str:
    rows = ["| phase | traffic | bake | entered (UTC) | stayed |", "|---|--:|--:|---|--:|"]
    for index, phase in enumerate(plan.phases):
        mine = [s for s in stays if s.phase == index]
        entered = f"{mine[-1].since:%Y-%m-%d %H:%M:%S}" if mine else ("needs approval" if phase.approval else "")
        last = mine[-1] if mine else None
        stayed = "" if last is None else "here now" if last.until is None else str(last.until - last.since).split(".")[0]
        mirrored = " mirrored" if phase.shadow_weight else ""
        rows.append(
            f"| {phase.name} | {phase.weight / 1000:g}%{mirrored} | {format_duration(phase.bake)} | {entered} | {stayed} |"
        )
    return "\n".join(rows)


def _phase(phase: Phase) -> str:
    return f"{phase.name} {phase.weight / 1000:g}%"


def _cell(text: str) -> str:
    """One line, with what Markdown or HTML would act on made plain."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(re.sub(r"([*_`\[\]])", r"\\\1", plain).split())


def _mermaid(text: str) -> str:
    return re.sub(r"[:;#,]", " ", text)
