"""
What is judged and how strictly: gates, rungs and budgets as plain values, checked when they are made.

It stands before everything else in the package. Its one rule: a contradiction (a limit outside its range, a column that is not there,
budgets that add up to more than was promised) is a ValueError here and can never become a number later.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Need(StrEnum):
    """What a gate asks of its metric before traffic may be raised."""

    PROOF = "proof"
    """The e-value against "at or beyond the margin" has reached 1 / alpha of the phase."""
    LEANING = "leaning"
    """The data do not speak for a breach: for events so rare that a proof would take hours."""
    NOTHING = "nothing"
    """Only watched for a breach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """
    Cumulative ``le`` buckets in the scrape vector: `edges` finite upper bounds (rising, > 0), then +Inf, in consecutive columns.

    Args:
        name: Prefix that gates refer to.
        edges: Finite upper bounds in the metric's unit (seconds for latency).
        first: Index of the first bucket's column.
    """

    name: str
    edges: tuple[float, ...]
    first: int

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.edges), (*self.edges, math.inf), strict=True))
        if not self.edges or not rising:
            raise ValueError(f"histogram {self.name!r}: edges must be positive and rise")

    @property
    def total(self) -> int:
        """Column of the +Inf bucket, which counts every observation."""
        return self.first + len(self.edges)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """Bad events among all events, at most `limit` (0..1): errors, timeouts, unavailability, failed fallbacks."""

    name: str
    bad: str
    total: str
    limit: float
    need: Need = Need.PROOF
    weight: float = 1.0
    kind: Literal["rate_limit"] = "rate_limit"

    def __post_init__(self) -> None:
        _between(self.name, self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileLimit:
    """The candidate's `q` quantile is at most `limit` (unit of the histogram)."""

    name: str
    histogram: str
    q: float
    limit: float
    need: Need = Need.PROOF
    weight: float = 0.5
    kind: Literal["quantile_limit"] = "quantile_limit"

    def __post_init__(self) -> None:
        _between(self.name, self.q)
        _positive(self.name, "limit", self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileMargin:
    """The candidate's `q` quantile is at most (1 + `margin`) times the baseline's."""

    name: str
    histogram: str
    q: float
    margin: float
    need: Need = Need.PROOF
    weight: float = 1.0
    kind: Literal["quantile_margin"] = "quantile_margin"

    def __post_init__(self) -> None:
        _between(self.name, self.q)
        _positive(self.name, "margin", self.margin)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanMargin:
    """The candidate's mean `amount` per `count` is at most (1 + `margin`) times the baseline's: cost per request."""

    name: str
    amount: str
    count: str
    margin: float
    need: Need = Need.PROOF
    weight: float = 1.0
    kind: Literal["mean_margin"] = "mean_margin"

    def __post_init__(self) -> None:
        _positive(self.name, "margin", self.margin)


Gate = RateLimit | QuantileLimit | QuantileMargin | MeanMargin


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """
    One severity at which a breach is watched for.

    Args:
        name: Shown in verdicts.
        multiple: Margins times this, limits as odds times this. 1 is the SLO itself.
        worse: How many times the ratio to the baseline that a limit allows (limit / calm baseline rate) a rate must be beyond as well.
        worse_max: That ratio is never taken for more than this. A baseline that hardly ever fails would otherwise excuse an outage.
        alpha: Share of the false-rollback budget.
        cap_nats: Most log-evidence that one block may add, so that one burst cannot decide.
        cap_rates: The same for rates that are judged by the block.
        block: Length of a block, in quarters of the engine's `block_s`.
        every: Blocks between fresh starts that are mixed in.
        at_once: Part of a phase's starts that begin with it; small where a quiet minute leaves nothing of an earlier start.
        ratios: Effect sizes beyond the margin that the mixture bets on (odds or rate ratios > 1).
        sudden: Rates are judged scrape by scrape and must fail more often than in the strongest gusts of history; the other rungs judge
            them by the minute and leave gusts aside (`gusts`). Quantiles are not softened by private noise, which does not reach so far.
        rates: Weight of rates over other gates, times their own.
    """

    name: str
    multiple: float
    worse: float
    alpha: float
    cap_nats: float
    cap_rates: float
    block: int
    every: int
    at_once: float
    ratios: tuple[float, ...]
    sudden: bool = False
    rates: float = 1.0
    worse_max: float = math.inf


RUNGS = (
    Rung(
        name="slow",
        multiple=1.0,
        worse=1.0,
        alpha=0.025,
        cap_nats=2.0,
        cap_rates=1.5,
        block=4,
        every=5,
        at_once=0.6,
        ratios=(1.2, 1.5, 2.2, 5.0),
    ),
    Rung(
        name="medium",
        multiple=2.5,
        worse=1.5,
        alpha=0.005,
        cap_nats=5.0,
        cap_rates=5.0,
        block=4,
        every=1,
        at_once=0.5,
        ratios=(1.3, 2.0, 4.0, 12.0),
    ),
    Rung(
        name="fast",
        multiple=5.0,
        worse=1.6,
        alpha=0.020,
        cap_nats=10.0,
        cap_rates=10.0,
        block=1,
        every=1,
        at_once=0.1,
        ratios=(1.5, 3.0, 8.0, 20.0),
        sudden=True,
        rates=3.0,
        worse_max=12.0,
    ),
)
"""Together 5 % for a whole rollout. The SLO itself; two and a half times its margin; and a catastrophe, decided in two scrapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRule:
    """
    What a phase asks before the next.

    Args:
        name: Of the phase.
        shadow: Mirrored traffic: exposes nobody, and its evidence carries into the next phase.
        alpha: False-promotion budget of this step.
        multiple: Margins are proven times this: early phases see little traffic and risk little.
        alone: No baseline runs beside the candidate (100 %): limits are judged by themselves.
        wider: Multiple at which the evidence must stand for a step to be accepted without proof, after a time box.
    """

    name: str
    shadow: bool
    alpha: float
    multiple: float
    alone: bool = False
    wider: float | None = None


def graduated(names: tuple[str, ...], shadows: tuple[bool, ...]) -> tuple[PhaseRule, ...]:
    """
    Margins that tighten towards the last phase, which proves the SLO itself at 5 %.

    Args:
        names: Of the phases, in order.
        shadows: Which of them are mirrored.
    """
    ladder = ((0.05, 1.0), (0.10, 1.25), (0.10, 1.5), (0.20, 2.0))
    rules = []
    for i, (name, shadow) in enumerate(zip(names, shadows, strict=True)):
        alpha, multiple = ladder[min(len(names) - 1 - i, len(ladder) - 1)]
        rules.append(PhaseRule(name=name, shadow=shadow, alpha=alpha, multiple=multiple))
    return tuple(rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """
    Everything that is fixed before the first scrape.

    Args:
        columns: Names of the scrape vector's entries, the same for both arms.
        histograms: Where buckets lie in it.
        gates: At least one.
        phases: In order.
        scrape_s: Seconds between scrapes.
        block_s: Seconds of a block: what the longest usual burst lasts. Evidence of one block is capped, and proofs grow by blocks.
        rungs: Severities of a breach; their alphas sum to at most `alpha_rollback`.
        alpha_rollback: Promise for the whole rollout.
        evidence_required: Every gate needs a proof, rare events too (strict).
        interval_alpha: Of the intervals shown beside verdicts.
    """

    columns: tuple[str, ...]
    histograms: tuple[Histogram, ...]
    gates: tuple[Gate, ...]
    phases: tuple[PhaseRule, ...]
    scrape_s: float = 15.0
    block_s: float = 60.0
    rungs: tuple[Rung, ...] = RUNGS
    alpha_rollback: float = 0.05
    evidence_required: bool = False
    interval_alpha: float = 0.05
    _index: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._index.update({c: i for i, c in enumerate(self.columns)})
        if len(self._index) != len(self.columns):
            raise ValueError("two columns have the same name")
        if not self.gates or not self.phases or not self.rungs:
            raise ValueError("an engine needs gates, phases and rungs")
        if len({g.name for g in self.gates}) != len(self.gates):
            raise ValueError("two gates have the same name")
        if not 0 < self.scrape_s < math.inf or not 0 < self.block_s < math.inf:
            raise ValueError(f"scrape_s {self.scrape_s} and block_s {self.block_s} must be positive")
        for g in self.gates:
            _positive(g.name, "weight", g.weight)
        for what, value in (
            *((f"alpha of rung {r.name!r}", r.alpha) for r in self.rungs),
            *((f"alpha of phase {p.name!r}", p.alpha) for p in self.phases),
            ("alpha_rollback", self.alpha_rollback),
            ("interval_alpha", self.interval_alpha),
        ):
            if not 0 < value < 1:
                raise ValueError(f"{what}: {value} is not between 0 and 1")
        for p in self.phases:
            _positive(p.name, "multiple", p.multiple)
        if sum(r.alpha for r in self.rungs) > self.alpha_rollback * (1 + 1e-9):
            raise ValueError(f"the rungs spend more than alpha_rollback = {self.alpha_rollback}")
        if len({len(r.ratios) for r in self.rungs}) != 1:
            raise ValueError("all rungs need the same number of ratios")
        for h in self.histograms:
            if not 0 <= h.first <= h.total < len(self.columns):
                raise ValueError(f"histogram {h.name!r} lies outside the columns")
        for g in self.gates:
            if isinstance(g, RateLimit):
                self.column(g.bad), self.column(g.total)
            elif isinstance(g, MeanMargin):
                self.column(g.amount), self.column(g.count)
            else:
                self.histogram(g.histogram)

    @property
    def block_scrapes(self) -> float:
        """Scrapes in a block."""
        return self.block_s / self.scrape_s

    def column(self, name: str) -> int:
        """Index of a column. Raises ValueError if there is none of that name."""
        if name not in self._index:
            raise ValueError(f"no column {name!r}")
        return self._index[name]

    def histogram(self, name: str) -> Histogram:
        """Raises ValueError if there is none of that name."""
        for h in self.histograms:
            if h.name == name:
                return h
        raise ValueError(f"no histogram {name!r}")

    def need(self, gate: Gate) -> Need:
        """What a gate asks, with `evidence_required` taken into account."""
        return Need.PROOF if self.evidence_required and gate.need is Need.LEANING else gate.need


def _positive(name: str, what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"gate {name!r}: {what} must be positive, got {value}")


def _between(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"gate {name!r}: {value} is not between 0 and 1")
