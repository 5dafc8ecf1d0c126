"""
A picture of many rollouts: how each scenario ended, and when.

It stands after `replicates`. Its one rule: this is the only module that imports matplotlib, and it draws into a file and nowhere
else.
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from controller.core.plan import Plan
from controller.forecast.replicates import Result
from controller.forecast.simulate import End

COLOURS = {
    End.PROMOTED: "#0072b2",
    End.ROLLED_BACK: "#d55e00",
    End.PAUSED: "#cc79a7",
    End.WAITING: "#999999",
    End.APPROVAL: "#f0e442",
}
"""Okabe and Ito's palette: told apart by colour-blind eyes too."""

TICKS_S = {
    60: "1 min",
    300: "5 min",
    900: "15 min",
    3600: "1 h",
    4 * 3600: "4 h",
    12 * 3600: "12 h",
    86_400: "1 d",
    4 * 86_400: "4 d",
    14 * 86_400: "14 d",
}


def draw(plan: Plan, results: Sequence[Result], path: Path) -> None:
    """
    Args:
        plan: Whose rollouts.
        results: One row of the picture each.
        path: Ends in ``.png`` or ``.svg``.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(11, 1.3 + 0.36 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    shares, times = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2))
    names = [r.scenario.name for r in results]
    seen: list[End] = [e for e in End if any(o.end is e for r in results for o in r.outcomes)]
    for row, result in enumerate(results):
        left = 0.0
        for end in seen:
            part = sum(o.count for o in result.outcomes if o.end is end) / result.replicates
            shares.barh(row, part, left=left, color=COLOURS[end], height=0.7)
            left += part
        for i, story in enumerate(result.stories):
            # one above the other, so that equal times stay visible
            y = row + 0.6 * ((i + 0.5) / len(result.stories) - 0.5)
            begin = timedelta() if story.fault is None or story.end is End.PROMOTED else story.fault
            times.plot(max((story.took - begin).total_seconds(), 15.0), y, ".", color=COLOURS[story.end], markersize=5)
    shares.set_yticks(range(len(names)), names)
    shares.invert_yaxis()
    shares.set_xlim(0, 1)
    shares.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    shares.set_xlabel("share of the rollouts")
    times.set_xscale("log")
    low, high = times.get_xlim()
    ticks = {t: label for t, label in TICKS_S.items() if low <= t <= high}
    times.set_xticks(list(ticks), list(ticks.values()))
    times.xaxis.set_minor_locator(NullLocator())
    times.set_xlabel("time to the end, from the fault where one was stopped")
    times.grid(axis="x", color="#dddddd", linewidth=0.6)
    times.set_axisbelow(True)
    handles = [Line2D([], [], marker="s", linestyle="", color=COLOURS[e], label=e.value) for e in seen]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
    figure.suptitle(f"{plan.name}: {results[0].replicates} rollouts of each scenario", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=130)
