"""
How `plan`, `simulate` and `backtest` print what they found: a few short tables for people, one object for programs.

Its one rule: the first line is the answer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.table import Table
from rich.text import Text

from controller.cli.output import Format, console, print_json, print_object, print_rows
from controller.compare import differences
from controller.core.freeze import Window
from controller.core.gates import Verdict as Verdicts
from controller.core.gates import pct, seconds
from controller.core.plan import Gate, Mode, Plan, QuantileIncrease, QuantileLimit
from controller.core.rollout import Rollout
from controller.core.traffic import question_of
from controller.describe import gate_row, stamp
from controller.forecast.backtest import Backtest, PhaseRun
from controller.forecast.baseline import Amounts, Baseline, Durations, Rate
from controller.forecast.calendar import Step, ahead, calendar
from controller.forecast.outlook import SURE, GateOutlook, Outlook, PhaseOutlook, Verdict
from controller.forecast.replicates import Outcome, Result
from controller.forecast.simulate import Conditions, End
from specfile import format_duration

# --- plan -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    What else a plan is looked at with.

    Args:
        queries: PromQL by arm, by gate.
        shown: They are wanted on a terminal.
        before: The last rollout of the flag.
    """

    queries: Mapping[str, Mapping[str, str]]
    shown: bool
    before: Rollout | None


def show_outlook(plan: Plan, baseline: Baseline, found: Outlook, begin: datetime, asked: Asked, output: Format) -> None:
    dates = Dates.of(plan, found, begin)
    today = {gate.name: value for gate in plan.gates if (value := _today(gate, baseline)) is not None}
    changes = () if asked.before is None else differences(asked.before.plan, plan)
    if output != "table":
        queries = [
            {"gate": name, "today": today.get(name, (None, ""))[0], "queries": dict(q)} for name, q in asked.queries.items()
        ]
        changed = {
            "last_rollout": None if asked.before is None else asked.before.id,
            "changes": [{"what": d.path, "was": d.before, "is": d.after} for d in changes],
        }
        print_object(_outlook_json(plan, baseline, found, dates) | {"queries": queries} | changed, output)
        return
    _line(_answer(plan, found), style="bold")
    _line(f"{_whose(plan)}, {_traffic(baseline)}")
    _line("")
    _print(_phases_table(found))
    _line("")
    _line(f"Started now, all going well (UTC{', freezes counted' if plan.freezes else ''}, people answering at once):")
    _print(_calendar_table(dates))
    _list("Frozen on the way:", [f"{w.name}: {_day(w.starts)} to {_day(w.ends)}" for w in dates.frozen])
    if (cost := _cost(plan, baseline, found)) is not None:
        _line("")
        _line(_cost_line(plan, cost))
    _line("")
    _line(
        f"Smallest regression that each gate catches while the phase lasts, about {SURE * 10:.0f} times out of 10 "
        "(users' requests it has answered by then):"
    )
    _print(_catches_table(found, today))
    stops = [p for p in found.problems if p.stops]
    _list("Cannot work:", [f"{p.about}: {p.text}" for p in stops])
    _list("What would help:", [line for phase in found.phases if (line := _remedy(phase))])
    _list("Worth knowing:", [f"{p.about}: {p.text}" for p in found.problems if not p.stops] + _assumptions(plan, baseline))
    if asked.before is not None:
        said = [f"{d.path}: {d.before or 'nothing'} -> {d.after or 'nothing'}" for d in changes]
        _list(f"Changed from {asked.before.id}:", said or ["nothing"])
    if asked.shown:
        _list("Queries:", [f"{name} ({arm}): {text}" for name, queries in asked.queries.items() for arm, text in queries.items()])


def _today(gate: Gate, baseline: Baseline) -> tuple[float, str] | None:
    """What the baseline's number of a gate is, and its unit; None where nobody knows."""
    question = question_of(gate)
    match None if question is None else baseline.parts.get(question.key):
        case Rate(bad=bad):
            return bad, "share"
        case Durations(shape=shape) if isinstance(gate, QuantileLimit | QuantileIncrease):
            return shape.quantile(gate.quantile), "seconds"
        case Amounts(mean=mean) if baseline.source == "measured":
            return mean, "amount"
        case _:
            return None


def _answer(plan: Plan, found: Outlook) -> str:
    late = [p for p in found.phases if not p.in_time]
    match found.verdict:
        case Verdict.WORKS:
            what = "This plan works"
        case Verdict.WAITS:
            than = "lasts longer than its bake" if len(late) == 1 else "last longer than their bake"
            what = f"This plan waits: {_and([p.name for p in late])} {than}"
        case Verdict.STUCK:
            never = [p.name for p in found.phases if p.lasts is None]
            what = "This plan cannot work" + (f": {_and(never)} {'is' if len(never) == 1 else 'are'} never left" if never else "")
    if found.finish is None:
        return f"{what}."
    median, sure = (span(t) for t in found.finish)
    people = " plus the time that people take to approve" if any(p.approval for p in found.phases) else ""
    most = "" if median == sure else f" (9 of 10 within {sure})"
    return f"{what}. A candidate like the baseline is promoted after {median}{most}{people}."


def _phases_table(found: Outlook) -> Table:
    table = _table("phase", "traffic", "candidate", "bake", "requests in it", "good candidate passes", "last to pass", "lasts")
    for p in found.phases:
        passes, lasts = _both(p.proven), _both(p.lasts)
        why = {"min_requests": f"{p.last} (min_requests)", "proof": p.last}.get(p.waits_for, "")
        row = [
            p.name,
            pct(p.share) + (" mirrored" if p.mode is Mode.SHADOW else ""),
            f"{p.candidate_rps:.3g}/s",
            format_duration(p.bake),
            f"{p.requests:,.0f}",
            passes,
            why,
            lasts,
        ]
        table.add_row(*row, style="" if p.in_time else "yellow")
    return table


def _catches_table(found: Outlook, today: Mapping[str, tuple[float, str]]) -> Table:
    names = list(dict.fromkeys(g.gate for p in found.phases for g in p.gates))
    table = _table("gate", "limit", "baseline today", *(p.name for p in found.phases))
    for name in names:
        own = [next((g for g in p.gates if g.gate == name), None) for p in found.phases]
        limit = next(_amount(g.unit, g.limit, limit=True) for g in own if g is not None)
        value, unit = today.get(name, (None, ""))
        now = "-" if value is None else f"{value:.3g}" if unit == "amount" else _amount(unit, value)
        table.add_row(name, limit, now, *(_caught(g) for g in own))
    return table


def _caught(gate: GateOutlook | None) -> str:
    if gate is None:
        return "-"
    if gate.caught is None:
        return "nothing"
    users = f" ({short(gate.caught.exposed)})" if gate.caught.exposed else ""
    return _amount(gate.unit, gate.caught.size) + users


def _amount(unit: str, value: float, *, limit: bool = False) -> str:
    match unit:
        case "share":
            return f"{value * 100:.2g}%" if not limit else pct(value)
        case "seconds":
            return seconds(value)
        case _:
            return f"+{value * 100:.3g}%" if limit else f"+{value * 100:.0f}%" if value < 1 else f"x{1 + value:.2g}"


def _remedy(phase: PhaseOutlook) -> str:
    if not phase.remedies:
        return ""
    return f"{phase.name}: " + "; or ".join(phase.remedies)


def _assumptions(plan: Plan, baseline: Baseline) -> list[str]:
    known = list(baseline.assumed)
    if plan.freezes:
        known.append("freezes are counted in the calendar and in nothing else")
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Dates:
    """A plan on the calendar: as phases last in the median, and as nine out of ten last at most; and the freezes until then."""

    median: tuple[Step, ...]
    late: tuple[Step, ...]
    frozen: tuple[Window, ...]

    @classmethod
    def of(cls, plan: Plan, found: Outlook, begin: datetime) -> "Dates":
        median, late = (calendar(plan, [p.lasts and p.lasts[i] for p in found.phases], begin) for i in (0, 1))
        return cls(median=median, late=late, frozen=ahead(plan, begin, late))


def _calendar_table(dates: Dates) -> Table:
    table = _table("phase", "begins", "9 of 10 by", "waits for a freeze", "asks before")
    for step, late in zip(dates.median, dates.late, strict=True):
        frozen = f"{span(step.waited)} ({step.frozen})" if step.waited else ""
        table.add_row(step.phase or "promoted", _day(step.at), _day(late.at), frozen, step.approval)
    return table


def _day(at: datetime | None) -> str:
    return "never" if at is None else f"{at.astimezone(UTC):%a %Y-%m-%d %H:%M}"


def _cost(plan: Plan, baseline: Baseline, found: Outlook) -> dict[str, float] | None:
    """Dollars of the candidate, by phase, at the baseline's price of a request; None where no price is known or a phase never ends."""
    price = next((p.mean for p in baseline.parts.values() if isinstance(p, Amounts)), None)
    if price is None or baseline.source == "given" or found.finish is None:
        return None
    return {p.name: p.candidate_rps * p.lasts[0].total_seconds() * price for p in found.phases if p.lasts is not None}


def _cost_line(plan: Plan, cost: Mapping[str, float]) -> str:
    mirrored = sum(cost[p.name] for p in plan.phases if p.mode is Mode.SHADOW)
    extra = f", of which {mirrored:,.2f} USD for mirrored copies that come on top" if mirrored else ""
    return f"The candidate's answers cost {sum(cost.values()):,.2f} USD until then, at the baseline's price of a request{extra}."


def _outlook_json(plan: Plan, baseline: Baseline, found: Outlook, dates: Dates) -> dict[str, Any]:
    return {
        "rollout": plan.name,
        "verdict": found.verdict.value,
        "method": "computed from the gates' formulas (normal approximation), for a candidate like the baseline",
        "traffic": {"source": baseline.source, "rps": baseline.rps, "assumed": list(baseline.assumed)},
        "finish_s": _pair(found.finish),
        "calendar": [
            {
                "phase": step.phase or None,
                "begins_at": stamp(step.at),
                "by": stamp(late.at),
                "frozen": step.frozen or None,
                "waits_s": step.waited.total_seconds(),
                "asks": step.approval or None,
            }
            for step, late in zip(dates.median, dates.late, strict=True)
        ],
        "freezes": [{"name": w.name, "starts_at": stamp(w.starts), "ends_at": stamp(w.ends)} for w in dates.frozen],
        "cost_usd": _cost(plan, baseline, found),
        "phases": [
            {
                "name": p.name,
                "mode": p.mode.value,
                "share": p.share,
                "bake_s": p.bake.total_seconds(),
                "candidate_rps": p.candidate_rps,
                "baseline_rps": p.baseline_rps,
                "requests_in_bake": p.requests,
                "passes_s": _pair(p.proven),
                "last_gate": p.last,
                "waits_for": p.waits_for,
                "lasts_s": _pair(p.lasts),
                "approval": p.approval,
                "remedies": list(p.remedies),
                "gates": [
                    {
                        "gate": g.gate,
                        "need": g.need.value,
                        "unit": g.unit,
                        "limit": g.limit,
                        "proven_s": _pair(g.proven),
                        "min_requests_s": None if g.requests is None else g.requests.total_seconds(),
                        "caught": None
                        if g.caught is None
                        else {
                            "size": g.caught.size,
                            "probability": SURE,
                            "after_s": g.caught.after.total_seconds(),
                            "exposed_requests": g.caught.exposed,
                        },
                    }
                    for g in p.gates
                ],
            }
            for p in found.phases
        ],
        "problems": [{"about": p.about, "stops": p.stops, "text": p.text} for p in found.problems],
    }


# --- simulate -------------------------------------------------------------------------------------------------------------------


def show_scenarios(lines: Mapping[str, str], output: Format) -> None:
    rows = [{"scenario": name, "text": text} for name, text in lines.items()]
    if output == "json":
        print_json(rows)
        return
    if output != "table":
        print_rows(rows, ("scenario", "text"), output)
        return
    table = _table("scenario", "the candidate")
    for name, text in lines.items():
        table.add_row(name, text)
    _print(table)


def show_results(
    plan: Plan, baseline: Baseline, results: Sequence[Result], conditions: Conditions, seed: int, output: Format
) -> None:
    if output != "table":
        print_object(_results_json(plan, baseline, results, conditions, seed), output)
        return
    _line(_score(results), style="bold")
    _line(f"{_whose(plan)}, {_traffic(baseline)}; {results[0].replicates} rollouts of each scenario, seed {seed}")
    _line("")
    table = _table("scenario", "should", "outcome", "in phase", "after", "users' requests", "decided by")
    for result in results:
        for i, o in enumerate(result.outcomes):
            head = (result.scenario.name, "be stopped" if result.beyond else "get through") if i == 0 else ("", "")
            wrong = o.end in _wrong(result)
            row = (
                *head,
                f"{o.end.value} {o.count}/{result.replicates}",
                _counted(o.phases, o.count),
                _both(o.took),
                _exposed(result, o),
                _counted(o.gates, o.count),
            )
            table.add_row(*row, style="red" if wrong else "")
    _print(table)
    _line("")
    _line(
        "after: since the fault began for what was stopped, else since the beginning; median, and what 9 of 10 stay below.",
        style="dim",
    )
    notes = ["approvals are given at once" if conditions.approvals else "rollouts stop where people are asked"]
    if plan.freezes and not conditions.freezes:
        notes.append("freezes are left out")
    _line("; ".join(notes) + f"; waiting: {span(conditions.patience)} longer than the bake in one phase.", style="dim")


def _score(results: Sequence[Result]) -> str:
    good, bad = [r for r in results if not r.beyond], [r for r in results if r.beyond]
    said = []
    if good:
        said.append(
            f"{sum(r.wrong for r in good)} of {sum(r.replicates for r in good)} candidates within the limits were stopped"
        )
    if bad:
        said.append(f"{sum(r.wrong for r in bad)} of {sum(r.replicates for r in bad)} beyond them were promoted")
    return ", ".join(said) + "."


def _wrong(result: Result) -> tuple[End, ...]:
    return (End.PROMOTED,) if result.beyond else (End.ROLLED_BACK, End.PAUSED)


def _exposed(result: Result, outcome: Outcome) -> str:
    if not result.beyond:
        return ""
    low, high = outcome.exposed
    return short(low) if short(low) == short(high) else f"{short(low)} / {short(high)}"


def _counted(counter: Counter[str], of: int) -> str:
    if len(counter) == 1 and counter.total() == of:
        return next(iter(counter))
    return ", ".join(f"{name} {n}" for name, n in counter.most_common(3)) + (", ..." if len(counter) > 3 else "")


def _results_json(plan: Plan, baseline: Baseline, results: Sequence[Result], conditions: Conditions, seed: int) -> dict[str, Any]:
    return {
        "rollout": plan.name,
        "traffic": {"source": baseline.source, "rps": baseline.rps},
        "seed": seed,
        "approvals": "given at once" if conditions.approvals else "stop",
        "freezes": conditions.freezes,
        "patience_s": conditions.patience.total_seconds(),
        "scenarios": [
            {
                "scenario": r.scenario.name,
                "text": r.scenario.text,
                "beyond": list(r.beyond),
                "replicates": r.replicates,
                "wrong": r.wrong,
                "outcomes": [
                    {
                        "outcome": o.end.value,
                        "count": o.count,
                        "phases": dict(o.phases),
                        "after_s": _pair(o.took),
                        "exposed_requests": list(o.exposed),
                        "gates": dict(o.gates),
                        "text": o.text,
                    }
                    for o in r.outcomes
                ],
            }
            for r in results
        ],
    }


# --- backtest -------------------------------------------------------------------------------------------------------------------


def show_backtest(plan: Plan, found: Backtest, output: Format) -> None:
    if output != "table":
        print_object(_backtest_json(plan, found), output)
        return
    stopped = [p for p in found.phases if p.stopped is not None]
    _line(_ruling(found, stopped), style="bold")
    candidate, baseline = found.requests
    _line(
        f"{_whose(plan)}, recorded from {found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC: "
        f"{candidate:,.0f} requests of the candidate, {baseline:,.0f} of the baseline"
    )
    _line("")
    table = _table("gates of", "would have", "after", "because")
    for p in found.phases:
        table.add_row(*_phase_row(p, found.since))
    _print(table)
    _line("")
    names = [r.gate for p in found.phases for r in p.results]
    table = _table("gate", *(p.name for p in found.phases))
    for name in dict.fromkeys(names):
        table.add_row(name, *(_gate_cell(p, name, found.since) for p in found.phases))
    _print(table)
    _list("Could not be read:", [f"{key}: {why}" for key, why in found.problems.items()])
    _line("")
    _line(
        "Each phase's gates are judged as if it had lasted all the time; the split and the candidate's silence are left out.",
        style="dim",
    )


def _ruling(found: Backtest, stopped: Sequence[PhaseRun]) -> str:
    if stopped:
        first = min(stopped, key=lambda p: p.stopped.at)  # type: ignore[union-attr]  # only those that stopped
        assert first.stopped is not None
        all_of = "every phase" if len(stopped) == len(found.phases) else _and([p.name for p in stopped])
        done = "rolled back" if first.stopped.kind == "rollback" else "paused"
        after = span(first.stopped.at - found.since)
        return f"Would have {done} in {all_of}, first after {after}: {first.stopped.gate}: {first.stopped.text}"
    short_of = [p.name for p in found.phases if p.passed is None]
    if short_of:
        return f"Nothing would have been stopped; {_and(short_of)} would still hold."
    return "Nothing would have been stopped, and every phase's gates would have passed."


def _phase_row(p: PhaseRun, since: datetime) -> tuple[str, str, str, str]:
    if p.stopped is not None:
        what = "rolled back" if p.stopped.kind == "rollback" else "paused"
        return p.name, what, span(p.stopped.at - since), f"{p.stopped.gate}: {p.stopped.text}"
    if p.passed is not None:
        return p.name, "passed", span(p.passed - since), ""
    short_of = next((r for r in p.results if r.verdict.value != "pass" and r.mode.value == "enforce"), None)
    return p.name, "held", "", "" if short_of is None else f"{short_of.gate}: {short_of.reason}"


def _gate_cell(p: PhaseRun, name: str, since: datetime) -> str:
    result = next((r for r in p.results if r.gate == name), None)
    if result is None:
        return "-"
    at = p.proven.get(name)
    if at is None:
        return result.verdict.value
    if result.verdict is Verdicts.PASS:
        return f"pass after {span(at - since)}"
    return f"{result.verdict.value} (had passed after {span(at - since)})"


def _backtest_json(plan: Plan, found: Backtest) -> dict[str, Any]:
    return {
        "rollout": plan.name,
        "from": stamp(found.since),
        "to": stamp(found.until),
        "requests": {"candidate": found.requests[0], "baseline": found.requests[1]},
        "problems": dict(found.problems),
        "phases": [
            {
                "name": p.name,
                "stopped": None
                if p.stopped is None
                else {"at": stamp(p.stopped.at), "kind": p.stopped.kind, "gate": p.stopped.gate, "text": p.stopped.text},
                "passed_at": stamp(p.passed),
                "gates": [{**gate_row(r), "proven_at": stamp(p.proven.get(r.gate))} for r in p.results],
            }
            for p in found.phases
        ],
    }


# --- words ----------------------------------------------------------------------------------------------------------------------


def _whose(plan: Plan) -> str:
    return f"{plan.name}: {plan.baseline.model} to {plan.candidate.model}"


def _traffic(baseline: Baseline) -> str:
    rates = {q.indicator: p.bad for q in baseline.questions if isinstance(p := baseline.parts.get(q.key), Rate)}
    shapes = {q.indicator: p.shape for q in reversed(baseline.questions) if isinstance(p := baseline.parts.get(q.key), Durations)}
    known = []
    for name, word in (("error_ratio", "errors"), ("timeout_ratio", "timeouts")):
        if name in rates:
            known.append(f"{pct(rates[name])} {word}")
    for name, word in (("latency", ""), ("ttft", " to the first token")):
        if name in shapes:
            known.append(f"p50 {seconds(shapes[name].quantile(0.5))} and p95 {seconds(shapes[name].quantile(0.95))}{word}")
    source = "given" if baseline.source == "given" else "measured in the last hours"
    return (
        f"{baseline.rps:.3g} requests/s ({source}: {', '.join(known)})" if known else f"{baseline.rps:.3g} requests/s ({source})"
    )


def span(length: timedelta) -> str:
    """Two units at most: ``45 s``, ``12 min``, ``1 h 45 min``, ``3 d 23 h``."""
    total = length.total_seconds()
    for size, name, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if total >= size:
            whole, rest = divmod(round(total / below), size // below)
            return f"{whole} {name}" + (f" {rest} {small}" if rest else "")
    return f"{total / 60:.0f} min" if total >= 120 else f"{total:.0f} s"


def short(count: float) -> str:
    """``312``, ``4.5k``, ``1.2M``."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"


def _both(times: tuple[timedelta, timedelta] | None) -> str:
    if times is None:
        return "never"
    low, high = (span(t) for t in times)
    return low if low == high else f"{low} / {high}"


def _pair(times: tuple[timedelta, timedelta] | None) -> list[float] | None:
    return None if times is None else [t.total_seconds() for t in times]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, overflow="fold")
    return table


def _print(table: Table) -> None:
    console.print(table, markup=False)


def _line(text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def _list(title: str, lines: Sequence[str]) -> None:
    if lines:
        _line("")
        _line(title, style="bold")
        for line in lines:
            _line(f"  {line}")
