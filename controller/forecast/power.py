"""
What the evidence of each gate can do in a given time: how soon it proves a good candidate, how soon it catches a bad one.

It stands between the engine, which judges traffic, and `outlook`, which speaks of plans. The engine itself is fed with what would
be counted on average, in a phase's traffic: its evidence then grows along a straight line, whose slope says how long anything
takes. Many copies of a gate, each with a regression of another size, are judged by one engine at once. Its one rule: no formula
of the evidence is repeated here. Only how much chance spreads the line is ours, and tests hold that against rollouts that were
drawn.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import assert_never

import numpy as np

from controller.core.evidence.config import EngineConfig, Histogram, MeanMargin, Need, QuantileLimit, QuantileMargin, RateLimit
from controller.core.evidence.config import Gate as Term
from controller.core.evidence.engine import Engine
from controller.core.evidence.increments import Step
from controller.forecast.baseline import Amounts, Array, Baseline, Durations, Part, Rate
from controller.forecast.generate import normal_cdf

_NORMAL = NormalDist()

LONGEST_S = 90 * 86_400.0
"""Nobody waits longer for a proof."""

PROOF_BLOCKS, CATCH_BLOCKS = 40, 60
"""Blocks of average traffic that are fed; the line is read off the second half."""

EXCESS = np.geomspace(0.02, 40.0, 20)
"""Sizes of regressions that are tried: what they exceed the limit (or the margin) by, relative to it."""

BLOCK_REQUESTS = 3.0
"""Requests of the candidate that a block holds at least; at so little traffic caps and noise of a block do not matter."""

CATCH_SPREAD, PROOF_SPREAD = 5.0, 1.0
"""Variance of the evidence, relative to its mean. A bet on the truth has 2 in the limit of small effects. Noise, bursts and rows
that must agree spread catches further; proofs are mixtures of bets, not all of them on the truth, and spread less. Chosen so that
drawn rollouts agree (docs/how-to/plan-a-rollout.md has how well they do)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Requests a second of both arms in a phase; the baseline's is 0 where none runs."""

    candidate: float
    baseline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """
    The evidence that a candidate like the baseline is within a margin: `offset` + `slope` times seconds, on average; `needed`
        lets it pass.

    Args:
        head: Part of the offset that was gathered before (mirrored), and varies as the rest does.
    """

    offset: float
    slope: float
    needed: float
    head: float = 0.0

    def stands(self, t: float) -> float:
        """Probability that it suffices at a time (seconds)."""
        grown = max(self.slope * t, 0.0) + self.head
        lacking = self.needed - self.offset - self.slope * t
        return _NORMAL.cdf(-lacking / math.sqrt(PROOF_SPREAD * grown + 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Catch:
    """
    The smallest regression of a gate's metric that is caught.

    Args:
        size: Share of bad events, seconds, or factor to the baseline's.
        after_s: Typical time until then: when evidence that grows as on average gets there.
    """

    size: float
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A gate with a regression of one size; None is a candidate like the baseline."""

    gate: int
    size: float | None


class Power:
    """The gates of one engine on today's baseline."""

    def __init__(self, config: EngineConfig, baseline: Baseline, history: Array, step_s: float) -> None:
        """
        Args:
            config: Of the engine.
            baseline: What it would judge.
            history: Increments of the baseline, shape (increments, columns of the engine).
            step_s: Length of one, seconds.
        """
        self.gates: Sequence[Term] = config.gates
        self._config = config
        self._baseline = baseline
        self._history = history
        self._step_s = step_s
        self._proofs: dict[tuple[int, Flow, float | None], dict[str, Proof]] = {}
        self._learned: dict[tuple[bool, float], tuple[Engine, list[_Copy]]] = {}

    def part(self, gate: Term) -> Part:
        return self._baseline.parts[key_of(gate)]

    def need(self, gate: Term, phase: int) -> Need:
        """What it asks for in a phase: alone at 100 % the data need only not speak against it."""
        need = self._config.need(gate)
        alone = self._config.phases[phase].alone
        return Need.LEANING if alone and need is Need.PROOF and not self._config.evidence_required else need

    def multiple(self, phase: int) -> float:
        """Of the margins that a phase proves."""
        return self._config.phases[phase].multiple

    def proofs(self, phase: int, flow: Flow, multiple: float | None = None) -> dict[str, Proof]:
        """
        Args:
            phase: Index.
            flow: Of the phase.
            multiple: Of the margins; None for the phase's own.

        Returns:
            Of every gate, by name.
        """
        key = (phase, flow, multiple)
        if key not in self._proofs:
            self._proofs[key] = self._proven(phase, flow, multiple)
        return self._proofs[key]

    def _proven(self, phase: int, flow: Flow, multiple: float | None) -> dict[str, Proof]:
        rule = self._config.phases[phase]
        engine, copies, block_s = self._fed(phase, flow, bad=False)
        wanted = rule.multiple if multiple is None else multiple
        seen = []
        for _ in range(2):
            engine.run(PROOF_BLOCKS // 2)
            seen.append(np.asarray(engine.engine.proof.log_e(wanted)[0]))
        half = PROOF_BLOCKS // 2 * block_s
        # alone, comparisons have no evidence at all: minus infinity, which rises by nothing
        slope = np.subtract(seen[1], seen[0], out=np.zeros_like(seen[0]), where=np.isfinite(seen[0])) / half
        offset = seen[1] - slope * 2 * half
        at = {g.name: i for i, g in enumerate(engine.engine.watch.gates)}
        return {
            self.gates[c.gate].name: Proof(
                offset=float(offset[at[_name(i)]]), slope=float(slope[at[_name(i)]]), needed=math.log(1 / rule.alpha)
            )
            for i, c in enumerate(copies)
        }

    def catches(self, phase: int, flow: Flow, within_s: float, probability: float) -> dict[str, Catch]:
        """
        The smallest regressions that begin with the phase and are caught within a time with a probability.

        Args:
            phase: Index.
            flow: Of the phase.
            within_s: Seconds.
            probability: 0..1.

        Returns:
            By gate; gates that catch nothing that was tried are left out.
        """
        engine, copies, block_s = self._fed(phase, flow, bad=True)
        seen = []
        for _ in range(2):
            engine.run(CATCH_BLOCKS // 2)
            seen.append(engine.engine.watch.log_e.copy())
        half = CATCH_BLOCKS // 2 * block_s
        # alone, comparisons have no evidence at all: minus infinity, which rises by nothing
        slope = np.subtract(seen[1], seen[0], out=np.zeros_like(seen[0]), where=np.isfinite(seen[0])) / half
        offset = np.minimum(seen[1] - slope * 2 * half, 0.0)
        at = {g.name: i for i, g in enumerate(engine.engine.watch.gates)}
        real = Engine(self._config).watch
        needed = real.threshold[:, None] - np.broadcast_to(real.log_weight, (len(self._config.rungs), len(real.gates)))
        of = {g.name: i for i, g in enumerate(real.gates)}
        found: dict[str, Catch] = {}
        for i, gate in enumerate(self.gates):
            own = [(at[_name(j)], c.size) for j, c in enumerate(copies) if c.gate == i and c.size is not None]
            lacking = np.array([needed[:, of[gate.name]] - offset[:, k] for k, _ in own])  # axes: size, rung
            rising = np.array([slope[:, k] for k, _ in own])
            if (catch := _smallest(np.array([s for _, s in own]), lacking, rising, within_s, probability)) is not None:
                found[gate.name] = catch
        return found

    # --- the engine on average traffic -----------------------------------------------------------------------------------------

    def _fed(self, phase: int, flow: Flow, *, bad: bool) -> tuple["_Feed", list[_Copy], float]:
        """An engine that has entered the phase, and what it will be fed: one block of average traffic after another."""
        block_s = self._config.block_s * max(1, math.ceil(BLOCK_REQUESTS / max(flow.candidate * self._config.block_s, 1e-3)))
        learned, copies = self._engine(bad=bad, block_s=block_s)
        engine = copy.deepcopy(learned, {id(learned.config): learned.config})
        engine.enter(phase)
        rates = {g.name: i for i, g in enumerate(g for g in engine.watch.gates if isinstance(g, RateLimit))}
        calm, mean = engine.reference.calm_rate, engine.reference.mean_rate
        rows: list[tuple[Array, Array]] = []
        for i, c in enumerate(copies):
            gate = self.gates[c.gate]
            part = self.part(gate)
            n, m = (x * part.portion * block_s for x in (flow.candidate, flow.baseline))
            between = 1.0
            if isinstance(gate, RateLimit):
                # Rates are long-run means with their bursts, which caps keep from counting: what decides is the rate between
                # them. The engine's calm rate errs low, so half of its distance to the mean is taken.
                between = (1 + float(calm[rates[_name(i)]] / mean[rates[_name(i)]])) / 2
            rows.append(
                (_row(gate, part, n, c.size, between, self._edges(gate)), _row(gate, part, m, None, between, self._edges(gate)))
            )
        cand, base = (np.concatenate([r[arm] for r in rows]) for arm in (0, 1))
        return _Feed(engine=engine, step=Step(cand=cand, base=base, scrapes=1.0)), copies, block_s

    def _engine(self, *, bad: bool, block_s: float) -> tuple[Engine, list[_Copy]]:
        """An engine that has learned the history and judges copies of the gates; kept, because learning takes longest."""
        if (bad, block_s) not in self._learned:
            copies = [
                _Copy(gate=i, size=s) for i, g in enumerate(self.gates) for s in (_sizes(g, self.part(g)) if bad else [None])
            ]
            columns: list[str] = []
            histograms: list[Histogram] = []
            terms: list[Term] = []
            taken: list[int] = []
            for i, c in enumerate(copies):
                _append(_name(i), self.gates[c.gate], self._config, columns, histograms, terms, taken)
            config = replace(
                self._config,
                columns=tuple(columns),
                histograms=tuple(histograms),
                gates=tuple(terms),
                scrape_s=block_s,
                block_s=block_s,
                _index={},
            )
            engine = Engine(config)
            engine.learn_increments(self._history[:, taken].tolist(), self._step_s / block_s)
            self._learned[bad, block_s] = engine, copies
        return self._learned[bad, block_s]

    def _edges(self, gate: Term) -> tuple[float, ...]:
        return self._config.histogram(gate.histogram).edges if isinstance(gate, QuantileLimit | QuantileMargin) else ()


@dataclass(slots=True)
class _Feed:
    engine: Engine
    step: Step

    def run(self, blocks: int) -> None:
        with np.errstate(over="ignore"):  # the evidence of all copies together may exceed any number; nobody asks for it
            for _ in range(blocks):
                self.engine.feed(self.step)
                self.engine.breach = None  # one copy's breach must not end the judging of the others


def key_of(gate: Term) -> str:
    """Of the question that a gate asks: the beginning of its columns' names."""
    match gate:
        case RateLimit():
            return gate.total.removesuffix(":total")
        case MeanMargin():
            return gate.count.removesuffix(":count")
        case QuantileLimit() | QuantileMargin():
            return gate.histogram
        case _:
            assert_never(gate)


def _name(index: int) -> str:
    return f"copy-{index}"


def _append(
    name: str,
    gate: Term,
    config: EngineConfig,
    columns: list[str],
    histograms: list[Histogram],
    terms: list[Term],
    taken: list[int],
) -> None:
    """One copy of a gate with columns of its own; `taken` says which columns of the history are theirs."""
    first = len(columns)
    match gate:
        case RateLimit():
            columns += [f"{name}:bad", f"{name}:total"]
            taken += [config.column(gate.bad), config.column(gate.total)]
            terms.append(replace(gate, name=name, bad=columns[first], total=columns[first + 1]))
        case MeanMargin():
            columns += [f"{name}:amount", f"{name}:count"]
            taken += [config.column(gate.amount), config.column(gate.count)]
            terms.append(replace(gate, name=name, amount=columns[first], count=columns[first + 1]))
        case QuantileLimit() | QuantileMargin():
            own = config.histogram(gate.histogram)
            columns += [f"{name}:{i}" for i in range(len(own.edges) + 1)]
            taken += range(own.first, own.total + 1)
            histograms.append(Histogram(name=name, edges=own.edges, first=first))
            terms.append(replace(gate, name=name, histogram=name))


def _sizes(gate: Term, part: Part) -> list[float]:
    match gate:
        case RateLimit():
            return sorted({min(gate.limit * (1 + e), 0.98) for e in EXCESS.tolist()})
        case QuantileLimit():
            assert isinstance(part, Durations)
            sizes: list[float] = (max(gate.limit, part.shape.quantile(gate.q)) * (1 + EXCESS)).tolist()
            return sizes
        case QuantileMargin() | MeanMargin():
            factors: list[float] = (1 + gate.margin * (1 + EXCESS)).tolist()
            return factors


def _row(gate: Term, part: Part, n: float, size: float | None, between: float, edges: tuple[float, ...]) -> Array:
    """What is counted on average of `n` requests; None for a candidate like the baseline."""
    match part:
        case Rate(bad=bad):
            return np.array([n * between * (bad if size is None else size), n])
        case Amounts(mean=mean):
            return np.array([n * mean * (1.0 if size is None else size), n])
        case Durations(shape=shape):
            factor = 1.0
            if size is not None:
                factor = size / shape.quantile(gate.q) if isinstance(gate, QuantileLimit) else size
            below = normal_cdf(shape.z_at(np.log(np.array(edges)) - math.log(factor)))
            return np.append(n * below, n)
        case _:
            assert_never(part)


# --- chance --------------------------------------------------------------------------------------------------------------------


def crossed(grown: Array, lacking: Array) -> Array:
    """
    Probability that evidence which has grown by so much on average has crossed a threshold at some look.

    Args:
        grown: Nats.
        lacking: Nats that the threshold lies above the beginning.

    Source:
        First passage of a Brownian motion with drift: the inverse Gaussian law (Folks and Chhikara 1978), with a variance of
            `CATCH_SPREAD` times
        the mean.
    """
    m, a = np.maximum(grown, 1e-9), np.maximum(lacking, 0.0)
    sd = np.sqrt(CATCH_SPREAD * m)
    again = np.exp(np.minimum(2 * a / CATCH_SPREAD, 600.0)) * normal_cdf((-m - a) / sd)
    found: Array = np.minimum(normal_cdf((m - a) / sd) + again, 1.0)
    return found


def _smallest(sizes: Array, lacking: Array, rising: Array, within_s: float, probability: float) -> Catch | None:
    """Between the sizes that were tried, the one that is caught with just that probability."""

    def chance(t: float) -> Array:
        found: Array = np.where(rising > 0, crossed(rising * t, lacking), 0.0).max(axis=1)
        return found

    reached = chance(within_s) - probability
    if not (reached >= 0).any():
        return None
    i = int(np.argmax(reached >= 0))
    weights = np.zeros(len(sizes))
    weights[i] = 1.0
    if i:
        weights[i] = -reached[i - 1] / (reached[i] - reached[i - 1])
        weights[i - 1] = 1 - weights[i]
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(rising > 0, np.maximum(lacking, 0.0) / rising, np.inf).min(axis=1)
    after_s = float(weights @ np.minimum(times, within_s))
    return Catch(size=float(weights @ sizes), after_s=after_s)
