"""
What the faults came to: a line each for people, for programs, and for the page that publishes the figures.

Its one rule: it counts what was run and nothing else; a fault that this machine could not have says why.
"""

import math
import platform
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.chaos.fault import Fault, Trial

BEGINS, ENDS = "<!-- figures: ./dev chaos --full --write -->", "<!-- end of figures -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault's line of the report."""

    fault: Fault
    trials: Sequence[Trial] = field(repr=False)

    @property
    def ran(self) -> int:
        """Trials that could be had."""
        return sum(not t.skipped for t in self.trials)

    @property
    def skipped(self) -> str:
        return next((t.skipped for t in self.trials if t.skipped), "")

    @property
    def violations(self) -> Mapping[str, int]:
        """How many trials broke an invariant."""
        return dict(Counter(name for t in self.trials for name in sorted({v.invariant for v in t.violations})))

    @property
    def recover_s(self) -> Mapping[str, float] | None:
        """Median and longest of the recoveries; None where nothing had to recover."""
        took = [t.recover_s for t in self.trials if t.recover_s is not None and math.isfinite(t.recover_s)]
        return {"median": round(statistics.median(took), 2), "max": round(max(took), 2)} if took else None

    def to_json(self) -> dict[str, Any]:
        """``fault``, ``group``, ``trials``, ``violations``, ``recover_s`` and, where it was, ``skipped``."""
        row = {
            "fault": self.fault.name,
            "group": self.fault.group,
            "trials": self.ran,
            "violations": self.violations,
            "recover_s": self.recover_s,
        }
        return row | ({"skipped": self.skipped} if self.skipped else {})

    def cells(self) -> tuple[str, str, str, str]:
        """Fault, trials, violations and recovery, in words."""
        found = ", ".join(f"{name} {n}" for name, n in self.violations.items()) or "0"
        took = self.recover_s
        recovery = f"{took['median']:.1f} s, {took['max']:.1f} s" if took else "-"
        return self.fault.name, str(self.ran), found, f"skipped: {self.skipped}" if self.skipped else recovery


HEADER = ("fault", "trials", "violations", "recovery: median, longest")


def line(cells: Sequence[str]) -> str:
    """One row of the table on a terminal."""
    name, trials, found, recovery = cells
    return f"{name:58} {trials:>6}  {found:10}  {recovery}"


def publish(page: Path, rows: Sequence[Row], *, seed: int, took_s: float) -> None:
    """
    Put the figures of a run in their place on a page.

    Raises:
        ValueError: the page has no place for them.
    """
    text = page.read_text(encoding="utf-8")
    place = re.compile(f"{re.escape(BEGINS)}.*?{re.escape(ENDS)}", re.DOTALL)
    if not place.search(text):
        raise ValueError(f"{page}: no place for the figures; put in {BEGINS} and {ENDS}")
    figures = "\n".join((BEGINS, *_figures(rows, seed, took_s), ENDS))
    page.write_text(place.sub(lambda _: figures, text), encoding="utf-8")


def _figures(rows: Sequence[Row], seed: int, took_s: float) -> list[str]:
    ran, bad = sum(r.ran for r in rows), sum(bool(t.violations) for r in rows for t in r.trials)
    lines = [
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, seed {seed}: {len(rows)} faults, {ran:,} trials, {bad} with a violation, in "
        f"{took_s / 60:.0f} minutes on {platform.system()} ({platform.machine()}), Python {platform.python_version()}.",
    ]
    for group in dict.fromkeys(r.fault.group for r in rows):
        lines += ["", f"### {group.capitalize()}", "", _cells(HEADER), "|---|---|---|---|"]
        lines += [_cells(r.cells()) for r in rows if r.fault.group == group]
    return [*lines, ""]


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(c.replace('|', '/') for c in cells)} |"
