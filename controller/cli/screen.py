"""One rollout as a screen: the phase bar, where it stands, its gates, and what comes next."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

_STYLE = {"pass": "green", "breach": "bold red", "insufficient": "yellow", "error": "magenta"}


def screen(detail: dict[str, Any], recent: Sequence[dict[str, Any]] = (), now: datetime | None = None) -> Group:
    """
    Args:
        detail: As `describe.detail` gives it.
        recent: The last rows of its log, as `describe.history_row` gives them.
        now: With it, the next gate check is counted down to.
    """
    head = Text.assemble((detail["rollout_id"], "bold"), "  ", detail["standing"])
    sides = Text(f"{detail['baseline']} to {detail['candidate']}, flag {detail['flag']} in {detail['environment']}", style="dim")
    parts: list[Any] = [head, sides, bar(detail)]
    if detail["exposed_requests"] is not None:
        parts.append(Text(f"{detail['exposed_requests']} user requests answered by the candidate"))
    if (last := detail["last_decision"]) is not None:
        parts.append(Text(f"last: {last['kind'].replace('_', ' ')} by {last['actor']} at {last['at']}: {last['text']}"))
    if detail["gates"]:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("gate", "verdict", "requests", "what was seen"):
            table.add_column(column, justify="right" if column == "requests" else "left", overflow="fold")
        for gate in detail["gates"]:
            verdict = Text(gate["verdict"], style=_STYLE[gate["verdict"]])
            table.add_row(gate["gate"], verdict, f"{gate['n']:.0f}" if gate["n"] else "", gate["reason"])
        parts.append(table)
    if (frozen := detail["frozen"]) is not None:
        parts.append(Text(f"frozen by {frozen['name']} until {_minute(frozen['until'])}: nothing is raised", style="yellow"))
    elif detail["freezes"]:
        first = detail["freezes"][0]
        parts.append(
            Text(f"freeze {first['name']} from {_minute(first['starts_at'])} to {_minute(first['ends_at'])}", style="dim")
        )
    parts.append(Text(f"next: {detail['next']}"))
    if now is not None and (due := detail["next_look"]) is not None:
        left = max((datetime.fromisoformat(due) - now).total_seconds(), 0.0)
        parts.append(
            Text(
                f"next gate check in {int(left) // 60}:{int(left) % 60:02d}" if left >= 1 else "a gate check is due", style="dim"
            )
        )
    if recent:
        log = Table(box=None, pad_edge=False, show_header=False)
        log.add_column(style="dim", no_wrap=True)
        log.add_column(no_wrap=True)
        log.add_column(overflow="ellipsis", no_wrap=True)
        for row in reversed(recent):
            log.add_row(row["at"][11:19], row["kind"], row["text"])
        parts += [Text(""), log]
    return Group(*parts)


def _minute(stamp: str) -> str:
    return f"{datetime.fromisoformat(stamp):%a %Y-%m-%d %H:%M} UTC"


def bar(detail: dict[str, Any]) -> Text:
    """``shadow 10% > [canary 5%] > half 50%``: done, current and coming phases."""
    text = Text()
    for index, phase in enumerate(detail["phases"]):
        if index:
            text.append(" > ", style="dim")
        label = f"{phase['name']} {phase['traffic'] * 100:g}%"
        if phase["current"]:
            text.append(f"[{label}]", style="bold reverse")
        else:
            text.append(label, style="green" if phase["started_at"] else "dim")
    return text
