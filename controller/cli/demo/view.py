"""
What people see of the demo while it runs and at its end.

A table that is drawn again in place on a terminal; plain lines with the time elsewhere. Its one rule: it shows what the watches hold and
asks nobody anything.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from controller.cli.demo.watch import Watch, brief
from controller.cli.up import address_table
from controller.core.gates import GateResult, Verdict

OUTCOME_STYLE = {"promoted": "bold green", "rolled_back": "bold magenta", "held": "bold yellow"}
VERDICT_STYLE = {Verdict.PASS: "green", Verdict.BREACH: "red", Verdict.INSUFFICIENT: "yellow", Verdict.ERROR: "red"}

Requests = Callable[[Watch], tuple[int, int]]
"""Of a watch: user requests finished, and of those answered by the candidate."""


class View:
    """
    Args:
        json: Data goes to stdout as JSON lines; everything for people goes to stderr.
    """

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self.console = Console(stderr=json, highlight=False)
        self._begun = time.monotonic()
        self._live: Live | None = None

    def say(self, line: str) -> None:
        stamp = f"{time.monotonic() - self._begun:6.1f}s"
        self.console.print(f"[dim]{stamp}[/dim]  {escape(line)}", soft_wrap=True)

    def data(self, line: str) -> None:
        """One line of data on stdout, if data was asked for."""
        if self._json:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def begin(self) -> None:
        """From here on the table stands below the lines, if this is a terminal."""
        if self.console.is_terminal and not self._json:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def draw(self, watches: Sequence[Watch], requests: Requests) -> None:
        if self._live is not None:
            self._live.update(_board(watches, requests, time.monotonic() - self._begun))

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def summary(self, rows: Sequence[Mapping[str, Any]], watches: Sequence[Watch]) -> None:
        self.console.print(_summary(rows, {w.scenario.name: w for w in watches}))

    def addresses(self, found: Mapping[str, str]) -> None:
        self.console.print(address_table(found))


def _board(watches: Sequence[Watch], requests: Requests, elapsed_s: float) -> RenderableType:
    table = Table(title=f"penstock demo, {elapsed_s:.0f} s", title_justify="left", expand=True)
    for name in ("scenario", "phase", "traffic", "worst gate", "requests (exposed)", "last decision"):
        table.add_column(name, ratio=3 if name in ("last decision", "worst gate") else None, overflow="fold")
    for watch in watches:
        finished, exposed = requests(watch)
        table.add_row(
            f"[bold]{watch.scenario.name}[/bold]\n[dim]{escape(watch.scenario.candidate)}: {escape(watch.scenario.story)}[/dim]",
            _phases(watch),
            _weights(watch),
            _gate(watch.worst),
            f"{finished} ({exposed})",
            _decision(watch),
        )
    return Group(table)


def _phases(watch: Watch) -> Text:
    rollout = watch.rollout
    if rollout is None:
        return Text("starting", style="dim")
    names = [p.name for p in rollout.plan.phases]
    if watch.outcome is not None and rollout.ended:
        text = watch.outcome.replace("_", " ")
        return Text(text, style=OUTCOME_STYLE[watch.outcome])
    at = -1 if rollout.phase is None else rollout.phase
    bar = Text()
    for index in range(len(names)):
        bar.append("█" if index < at else "▓" if index == at else "░", style="cyan" if index <= at else "dim")
    bar.append(f" {names[at]}" if at >= 0 else " not started")
    if watch.outcome == "held":
        bar.append(" held", style=OUTCOME_STYLE["held"])
    return bar


def _weights(watch: Watch) -> str:
    if watch.rollout is None:
        return ""
    weights = watch.rollout.weights
    shadow = f" (mirrored {weights.shadow / 1000:g}%)" if weights.shadow else ""
    return f"{weights.live / 1000:g}%{shadow}"


def _gate(worst: GateResult | None) -> Text:
    if worst is None:
        return Text("", style="dim")
    return Text.assemble((f"{worst.verdict} ", VERDICT_STYLE[worst.verdict]), f"{worst.gate}: {worst.reason}")


def _decision(watch: Watch) -> Text:
    if not watch.said:
        return Text("")
    last = watch.said[-1].decision
    return Text.assemble((last.kind.replace("_", " "), "bold"), f": {brief(last.text)}")


def _summary(rows: Sequence[Mapping[str, Any]], watches: Mapping[str, Watch]) -> Table:
    table = Table(title="How it went", title_justify="left")
    columns = ("scenario", "outcome", "as expected", "phases", "exposed requests", "breach to flag", "flag to router")
    for name in columns:
        table.add_column(name, justify="right" if name in columns[4:] else "left")
    for row in rows:
        phases = ", ".join(f"{p['name']} {p['seconds']:.0f} s" if p["seconds"] is not None else p["name"] for p in row["phases"])
        outcome = row["outcome"]
        good = outcome in watches[row["scenario"]].scenario.expected
        table.add_row(
            row["scenario"],
            Text(outcome.replace("_", " "), style=OUTCOME_STYLE.get(outcome, "")),
            Text("yes", style="green") if good else Text(f"no, expected {row['expected']}", style="bold red"),
            phases,
            str(row["exposed_requests"]),
            _seconds(row["breach_to_flag_s"]),
            _seconds(row["flag_to_router_s"]),
        )
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"
