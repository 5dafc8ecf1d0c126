"""One rollout as a screen: the phase bar, where it stands, its gates, and what comes next."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

_STYLE = {"pass": "green", "breach": "bold red", "insufficient": "yellow", "error": "magenta"}


def screen(detail: dict[str, Any]) -> Group:
    """
    Args:
        detail: As `describe.detail` gives it.
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
    parts.append(Text(f"next: {detail['next']}"))
    return Group(*parts)


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
