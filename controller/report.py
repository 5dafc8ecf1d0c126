"""
One rollout told whole, for a change ticket or a post-mortem: what was asked, what happened when and why, on what numbers, and who said yes.

It stands on `describe`, and everything but what was spent comes from the audit log's rows. Its one rule: nothing is left out that moved traffic;
looks that held are counted, and the last of a run of them is quoted.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from controller import describe
from controller.compare import differences
from controller.core.decision import Hold
from controller.core.gates import pct, span
from controller.core.notice import account_of
from controller.core.plan import Plan
from controller.core.rollout import Approved, Decided, Entry, Overridden, Rejected, Rollout


def report(
    rollout: Rollout,
    entries: Sequence[Entry],
    now: datetime,
    *,
    before: Rollout | None = None,
    spent: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """
    Args:
        rollout: Replayed from `entries`.
        entries: Its rows.
        now: The database's clock.
        before: The flag's rollout before it.
        spent: US dollars by arm; None where nobody says.

    Returns:
        JSON values; times as ISO 8601 in UTC.
    """
    ended = rollout.ended_at
    last = describe.last_decision(entries, moved=True)
    return {
        **describe.summary(rollout),
        "name": rollout.plan.name,
        "owner": rollout.plan.owner,
        "labels": dict(rollout.plan.labels),
        "ended_at": describe.stamp(ended),
        "lasted_s": ((ended or now) - rollout.opened_at).total_seconds(),
        "reported_at": describe.stamp(now),
        "sentence": "nothing has been decided yet" if last is None else account_of(last, entries),
        "next": describe.upcoming(rollout, now),
        "spent_usd": None if spent is None else dict(spent),
        "phases": describe.phases(rollout, entries),
        "gates": [] if last is None else describe.gate_rows(last),
        "queries": [] if last is None else describe.queries(last),
        "people": [
            describe.history_row(e, rollout.plan) for e in entries if isinstance(e.event, Approved | Rejected | Overridden)
        ],
        "timeline": list(_timeline(entries, rollout.plan)),
        "changes": None
        if before is None
        else {
            "from": before.id,
            "values": [{"what": d.path, "was": d.before, "is": d.after} for d in differences(before.plan, rollout.plan)],
        },
        "plan_digest": rollout.plan_digest,
        "audit_rows": len(entries),
    }


def _timeline(entries: Sequence[Entry], plan: Plan) -> Iterator[dict[str, Any]]:
    held: list[Entry] = []
    for entry in (*entries, None):
        if entry is not None and isinstance(entry.event, Decided) and isinstance(entry.event.decision, Hold):
            held.append(entry)
            continue
        if held:
            looks = f"{len(held)} looks" if len(held) > 1 else "a look"
            told = describe.history_row(held[-1], plan)
            yield {**told, "at": describe.stamp(held[0].at), "until": told["at"], "kind": f"held at {looks}"}
            held = []
        if entry is not None:
            row = describe.history_row(entry, plan)
            text = account_of(entry, entries) if isinstance(entry.event, Decided) else row["text"]
            yield {**row, "until": None, "text": text}


def as_json(found: Mapping[str, Any]) -> str:
    """Of what `report` returns, on one line."""
    return json.dumps(found, ensure_ascii=False) + "\n"


def as_markdown(found: Mapping[str, Any]) -> str:
    """Of what `report` returns; what stands in it is escaped."""
    return _template("report.md", found, html=False)


def as_html(found: Mapping[str, Any]) -> str:
    """One page that needs nothing else; it prints well."""
    return _template("report.html", found, html=True)


def _template(name: str, found: Mapping[str, Any], *, html: bool) -> str:
    env = Environment(autoescape=html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"cell": _cell, "clock": _clock, "share": pct, "lasting": _lasting, "number": _number}
    text = resources.files("controller").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")
    return env.from_string(text).render(r=found)


def _cell(text: object) -> str:
    """Within a table of Markdown."""
    made = "" if text is None else str(text)
    for mark in "\\`*_<>[]|":
        made = made.replace(mark, f"\\{mark}")
    return " ".join(made.split())


def _clock(text: str | None) -> str:
    return "" if text is None else f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S}"


def _lasting(seconds: float | None) -> str:
    return "" if seconds is None else span(seconds)


def _number(count: float) -> str:
    return f"{count:,.0f}"
