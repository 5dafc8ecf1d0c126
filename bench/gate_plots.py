"""
The plots of docs/explanation/gates.md, from the engine of the live gates on drawn traffic: `python -m bench.gate_plots --out docs/images`.

One gate, errors of at most 1%; 20 requests a second, 5% of them the candidate's; a look every 15 s. Its one rule: the same seed gives the same
files, byte for byte, on one machine; what is drawn is what was computed, and the figures in the captions are printed.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

if TYPE_CHECKING:
    from controller.core.evidence.engine import Engine

Array = NDArray[np.float64]

LIMIT = 0.01
BASELINE_RATE = 0.003
RPS, SHARE, LOOK_S = 20.0, 0.05, 15.0
CANDIDATE_MEAN, BASELINE_MEAN = RPS * SHARE * LOOK_S, RPS * (1 - SHARE) * LOOK_S
"""Requests of each arm from one look to the next."""

HISTORY = 360
"""Minutes of the baseline that are known beforehand."""

PER_WINDOW = 20
"""Looks in five minutes, the window of the point estimates."""

FAILURES = 3
"""Failed measurements that Argo's analysis tolerates when `failureLimit: 3` is written, as in its documentation."""

ONE_SIDE = 0.025
"""What a usual 95% interval leaves out on each side."""

BLUE, ORANGE, RED, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
"""Told apart by people who do not see red and green (Okabe and Ito)."""

STYLE: Any = {
    "svg.hashsalt": "penstock",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "font.size": 10,
    "legend.frameon": False,
    "path.simplify_threshold": 0.5,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gate_plots", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the SVG files")
    parser.add_argument("--only", metavar="NAME", help="draw this one: gates-evidence, gates-peeking or gates-intervals")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicates", type=int, default=200, help="rollouts behind each curve of the second plot")
    parser.add_argument("--looks", type=int, default=1440, help="of each of them; 1440 are six hours")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[], Figure]] = {
        "gates-evidence": lambda: evidence_over_time(options.seed),
        "gates-peeking": lambda: peeking(options.seed, options.replicates, options.looks),
        "gates-intervals": lambda: intervals(options.seed),
    }
    if options.only is not None and options.only not in drawings:
        parser.error(f"--only {options.only}: no such plot; there are {', '.join(drawings)}")
    for name, draw in drawings.items():
        if options.only not in (None, name):
            continue
        with rc_context(STYLE):
            save(draw(), options.out / f"{name}.svg")
    return 0


# --- evidence over time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """
    One rollout's evidence after each look: natural logarithms of what there is over what is needed.

    Args:
        breach, proof: Of either kind; after the end they stay where they were.
        looks: Until it was rolled back, or all.
        ended: Whether it was.
    """

    breach: Array
    proof: Array
    looks: int
    ended: bool


def evidence_over_time(seed: int, *, looks: int = 480, lines: int = 7) -> Figure:
    """Candidates with 0.3%, 1% and 3% of errors: the evidence of each against what a rollback and a pass need."""
    candidates = ((0.003, GREEN, "0.3%: good"), (LIMIT, ORANGE, "1%: exactly at the limit"), (0.03, RED, "3%: bad"))
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    minutes = np.arange(1, looks + 1) * LOOK_S / 60
    for rate, colour, label in candidates:
        runs = [course(seed, i, rate, looks) for i in range(lines)]
        for axes, pick in ((left, "breach"), (right, "proof")):
            curves = [getattr(run, pick) for run in runs]
            for curve, run in zip(curves, runs, strict=True):
                _line(axes, minutes, curve, run.looks, color=colour, alpha=0.35, linewidth=0.7)
            half_left = sorted(run.looks for run in runs)[lines // 2]
            _line(axes, minutes, np.median(curves, axis=0), half_left, color=colour, linewidth=2.2, label=label)
        ends = [minutes[run.looks - 1] for run in runs if run.ended]
        left.plot(ends, np.ones(len(ends)), "o", color=colour, markersize=4)
        say(f"evidence, {label}: rolled back {_crossed(runs, 'breach', minutes)}; proven {_crossed(runs, 'proof', minutes)}")
    for axes, title, what in (
        (left, "Evidence that the limit is broken", "enough: roll back"),
        (right, "Evidence that the limit is kept", "enough: pass"),
    ):
        axes.axhline(1, color="black", linewidth=1)
        axes.annotate(what, (minutes[-1], 1.3), ha="right", va="bottom", fontsize=9)
        axes.set(title=title, yscale="log", ylim=(1e-4, 1e2), xlim=(0, minutes[-1]), xlabel="minutes since the phase began")
        axes.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100], ["1/10,000", "1/1,000", "1/100", "1/10", "1", "10", "100"])
        axes.set_xticks(range(0, int(minutes[-1]) + 1, 15))
        axes.minorticks_off()
    left.set_ylabel("evidence (e-value),\nas a multiple of what is needed")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, title="true error rate of the candidate; the limit is 1%")
    return figure


def _line(axes: Axes, minutes: Array, log_e: Array, looks: int, **style: Any) -> None:
    """The first `looks` of a curve, minute by minute."""
    at = np.unique([*range(3, looks, 4), looks - 1])
    axes.plot(minutes[at], _shown(log_e[at]), **style)


def course(seed: int, replicate: int, rate: float, looks: int) -> Course:
    """One rollout; a breach ends it."""
    engine = engine_of(seed, replicate)
    breach, proof = np.zeros(looks), np.zeros(looks)
    for k, (cand, base) in enumerate(beats(seed, replicate, rate, looks)):
        ended = feed(engine, cand, base)
        finding = engine.findings()[0]
        breach[k:] = finding.log_e_breach
        proof[k:] = finding.log_e_proof - finding.log_e_needed
        if ended:
            break
    return Course(breach=breach, proof=proof, looks=k + 1, ended=ended)


def _crossed(runs: Sequence[Course], pick: str, minutes: Array) -> str:
    first = [float(minutes[np.argmax(curve >= 0)]) for run in runs if ((curve := getattr(run, pick)) >= 0).any()]
    return f"{len(first)} of {len(runs)}" + (f", median {np.median(first):g} min" if first else "")


def _shown(log_e: Array) -> Array:
    """E-values within what the axis shows."""
    return np.exp(np.clip(log_e, math.log(5e-5), math.log(500)))


# --- peeking ----------------------------------------------------------------------------------------------------------------------


def peeking(seed: int, replicates: int, looks: int) -> Figure:
    """How many acceptable candidates three rules have rolled back after so many looks."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    x = np.arange(1, looks + 1)
    rules: tuple[tuple[str, str, Callable[[int, int, float, int], int | None]], ...] = (
        ("observed in 5 min above the limit, 4 times (as Argo)", RED, by_point_estimates),
        ("usual 95% interval above the limit", ORANGE, by_usual_interval),
        ("Penstock", BLUE, by_engine),
    )
    for axes, rate, title in (
        (panels[0], LIMIT, "Exactly at the limit of 1%"),
        (panels[1], LIMIT / 2, "Well within it: 0.5%"),
    ):
        for label, colour, rule in rules:
            ends = [rule(seed, i, rate, looks) for i in range(replicates)]
            share = np.array([sum(e is not None and e <= k for e in ends) for k in x]) / replicates
            axes.step(x, 100 * share, where="post", color=colour, linewidth=2, label=label)
            say(f"peeking, true rate {rate:.1%}, {label}: {share[-1]:.1%} of {replicates} after {looks} looks")
        axes.axhline(5, color="black", linewidth=1, linestyle="--")
        axes.annotate("promised: at most 5%", (1.1, 7.5), fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0})
        axes.set(title=title, xscale="log", xlim=(1, looks), ylim=(-1, 100), xlabel=f"looks so far, one every {LOOK_S:g} s")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    panels[0].set_ylabel("rolled back so far, % of rollouts")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def by_engine(seed: int, replicate: int, rate: float, looks: int) -> int | None:
    """The look at which the live gates' engine rolls back."""
    engine = engine_of(seed, replicate)
    for k, (cand, base) in enumerate(beats(seed, replicate, rate, looks), start=1):
        if feed(engine, cand, base):
            return k
    return None


def by_usual_interval(seed: int, replicate: int, rate: float, looks: int) -> int | None:
    """The first look at which the whole interval of everything seen so far lies above the limit."""
    bad, total = _running(seed, replicate, rate, looks)
    over = 1 - below(bad, total, LIMIT) < ONE_SIDE
    return int(np.argmax(over)) + 1 if over.any() else None


def by_point_estimates(seed: int, replicate: int, rate: float, looks: int) -> int | None:
    """
    The look at which more than `FAILURES` measurements have failed: one every five minutes, each of the last five minutes alone, failed
    when its share of errors is above the limit.
    """
    bad, total = (np.diff(a[PER_WINDOW - 1 :: PER_WINDOW], prepend=0) for a in _running(seed, replicate, rate, looks))
    failed = np.cumsum(bad > LIMIT * total) > FAILURES
    return (int(np.argmax(failed)) + 1) * PER_WINDOW if failed.any() else None


def _running(seed: int, replicate: int, rate: float, looks: int) -> tuple[Array, Array]:
    """Errors and requests of the candidate up to each look."""
    counts = np.array([cand for cand, _ in beats(seed, replicate, rate, looks)])
    return counts[:, 2].cumsum(), counts[:, 3].cumsum()


# --- intervals --------------------------------------------------------------------------------------------------------------------


def intervals(seed: int, *, runs: int = 400, looks: int = 1440) -> Figure:
    """The interval that holds at every look beside the usual one, on a candidate that the usual one misses for a while."""
    from controller.core.evidence.confidence import proportion_interval

    at = np.unique(np.geomspace(16, looks, 100).astype(int)) - 1
    usually, ever, shown = 0, 0, None
    for i in range(runs):
        bad, total = (a[at] for a in _running(seed, i, LIMIT, looks))
        wrong = (1 - below(bad, total, LIMIT) < ONE_SIDE) | (below(bad + 1, total, LIMIT) < ONE_SIDE)
        always = np.array([proportion_interval(x, n, 0.05, LIMIT) for x, n in zip(bad, total, strict=True)]).T
        usually, ever = usually + bool(wrong.any()), ever + bool(((always[0] > LIMIT) | (always[1] < LIMIT)).any())
        if shown is None and wrong.sum() >= 8:
            shown = total, bad, always, wrong
    assert shown is not None, "no run of these is missed by the usual interval"
    total, bad, always, wrong = shown
    say(f"intervals, ever beside the truth at {len(at)} looks: usual {usually}, every look {ever} of {runs}")
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(total, *(100 * always), color="#bcdcf0", linewidth=0, label="holds at every look")
    axes.fill_between(total, *(100 * clopper_pearson(bad, total)), color="#f5cf80", linewidth=0, label="usual, for one look")
    axes.plot(total, 100 * bad / total, color="black", linewidth=1.2, label="observed")
    axes.axhline(100 * LIMIT, color=RED, linewidth=1.4, linestyle="--", label="truth")
    axes.plot(total[wrong], np.full(wrong.sum(), 100 * LIMIT), "x", color=RED, markersize=6, label="missed by the usual one")
    axes.set(
        title=f"95% intervals. In {runs} such rollouts the usual one missed the truth at some look in {100 * usually / runs:.0f}%, "
        f"the other in {100 * ever / runs:.1f}%",
        xscale="log",
        xlim=(total[0], total[-1]),
        ylim=(0, 3),
        xlabel="requests of the candidate so far",
        ylabel="error rate, %",
    )
    axes.set_xticks([500, 1000, 2000, 5000, 10_000, 20_000], ["500", "1,000", "2,000", "5,000", "10,000", "20,000"])
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def clopper_pearson(bad: Array, total: Array) -> Array:
    """
    The usual 95 % interval of a share, exact for one look.

    Args:
        bad, total: Counts, total above 0.

    Returns:
        Lower and upper ends, shape (2, len(bad)).

    Source:
        Clopper and Pearson 1934: the shares at which neither so many nor so few would be a chance of less than 2.5 %.
    """
    ends = []
    for outer in (0.0, 1.0):
        outside, inside = np.full(len(total), outer), bad / total
        for _ in range(50):
            middle = (outside + inside) / 2
            chance = below(bad + 1, total, middle) if outer else 1 - below(bad, total, middle)
            outside, inside = np.where(chance < ONE_SIDE, middle, outside), np.where(chance < ONE_SIDE, inside, middle)
        ends.append(outside)
    return np.array(ends)


def below(x: Array, n: Array, p: Array | float) -> Array:
    """P(X < x) for X binomial of n and p, term by term; x is much smaller than n here."""
    p = np.broadcast_to(np.asarray(p, dtype=np.float64), np.shape(n))
    term = np.exp(n * np.log1p(-np.minimum(p, 1 - 1e-12)))
    total = np.zeros(np.shape(n))
    for k in range(int(np.max(x, initial=0))):
        total += np.where(k < x, term, 0.0)
        term = term * np.maximum(n - k, 0) / (k + 1) * p / np.maximum(1 - p, 1e-12)
    return np.minimum(total, 1.0)


# --- traffic and engine -----------------------------------------------------------------------------------------------------------


def beats(seed: int, replicate: int, rate: float, looks: int) -> Iterator[tuple[Array, Array]]:
    """
    Increments of candidate and baseline from look to look, in the engine's columns: independent requests, Poisson in number.

    Args:
        rate: The candidate's true error rate.
    """
    rng = np.random.default_rng([seed, replicate])
    n, m = rng.poisson(CANDIDATE_MEAN, looks), rng.poisson(BASELINE_MEAN, looks)
    x, y = rng.binomial(n, rate), rng.binomial(m, BASELINE_RATE)
    zero = np.zeros(looks)
    yield from zip(np.stack([zero, n, x, n], axis=1) * 1.0, np.stack([zero, m, y, m], axis=1) * 1.0, strict=True)


def engine_of(seed: int, replicate: int) -> "Engine":
    """The live gates' engine for a plan of a canary and 100%, in the canary, with the baseline's history."""
    # bench stands outside the controller and drives it only here and in `feed`, to show it.
    from datetime import timedelta

    from controller.core.evidence.engine import Engine
    from controller.core.evidence.terms import Action, configs_of
    from controller.core.plan import Mode, Phase, Plan, Policy, RateLimit
    from controller.core.traffic import questions_of
    from flagspec import Variant

    hour = timedelta(hours=1)
    plan = Plan(
        name="plots",
        environment="production",
        flag="chat",
        baseline=Variant(model="old"),
        candidate=Variant(model="new"),
        phases=(
            Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=hour),
            Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=hour),
        ),
        gates=(RateLimit(name="error-rate", indicator="error_ratio", limit=LIMIT),),
        policy=Policy(guard_every=timedelta(seconds=LOOK_S)),
    )
    engine = Engine(configs_of(plan, questions_of(plan), {})[Action.ROLLBACK])
    rng = np.random.default_rng([seed, replicate, 1])
    total = rng.poisson(RPS * 60, HISTORY)
    bad = rng.binomial(total, BASELINE_RATE)
    zero = np.zeros(HISTORY)
    engine.learn_increments(np.stack([zero, total, bad, total], axis=1).tolist(), 60 / LOOK_S)
    engine.enter(0)
    return engine


def feed(engine: "Engine", cand: Array, base: Array) -> bool:
    """One look. Returns whether there is a breach."""
    from controller.core.evidence.increments import Step

    return engine.feed(Step(cand=cand, base=base, scrapes=1.0)) is not None


# --- files ------------------------------------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    """As SVG without a date or a version, so that what did not change does not differ; points to a tenth."""
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    text = re.sub(r'(?<= d=")[^"]*', lambda d: re.sub(r"(\.\d)\d+", r"\1", d.group()), path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    say(f"{path}: {len(text) / 1000:.0f} kB")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
