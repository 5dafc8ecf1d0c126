"""
What the baseline does today: how much traffic it has, how often it fails, how long it takes, what it costs.

It stands before everything else in the package: `assumed` makes it from a few numbers, `measured` from the history that a metric
source brings. Its one rule: what was assumed is named as an assumption, and what was not seen is never filled in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from controller.core.plan import AtLeast, Plan, RateLimit
from controller.core.traffic import REQUESTS, Kind, Question, Traffic, columns_of_one, question_of, questions_of
from controller.ports import MetricSource, Scope
from flagspec.latency import LATENCY_EDGES_S

Array = NDArray[np.float64]

_NORMAL = NormalDist()
Z95 = _NORMAL.inv_cdf(0.95)

TAIL = 5e-4
"""Shares nearer to 0 or 1 than this say more about single requests than about the shape of durations."""

FALLBACKS = 0.015
"""Fallbacks per request where nothing tells."""


class NothingMeasured(ValueError):
    """The metric source has no traffic of the baseline to go by; says what was asked and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """
    A distribution of durations: straight lines in the normal quantile over the logarithm (two points are a log-normal law).

    Args:
        log_s: Logarithms of seconds, rising; at least two.
        z: Normal quantiles of the shares at or below them, rising.
    """

    log_s: tuple[float, ...]
    z: tuple[float, ...]

    @classmethod
    def lognormal(cls, median_s: float, p95_s: float) -> "Shape":
        return cls(log_s=(math.log(median_s), math.log(p95_s)), z=(0.0, Z95))

    @classmethod
    def of_buckets(cls, edges: tuple[float, ...], cumulative: Array) -> "Shape | None":
        """None where fewer than two edges lie inside the distribution: nothing can be said about its shape."""
        share = cumulative[:-1] / cumulative[-1]
        log_s: list[float] = []
        z: list[float] = []
        for edge, p in zip(edges, share.tolist(), strict=True):
            if TAIL < p < 1 - TAIL and (not z or _NORMAL.inv_cdf(p) > z[-1] + 1e-9):
                log_s.append(math.log(edge))
                z.append(_NORMAL.inv_cdf(p))
        return cls(log_s=tuple(log_s), z=tuple(z)) if len(z) > 1 else None

    def z_at(self, log_s: Array) -> Array:
        """Normal quantile of the share at or below, by straight lines that go on beyond the ends."""
        xs, zs = np.array(self.log_s), np.array(self.z)
        i = np.clip(np.searchsorted(xs, log_s), 1, len(xs) - 1)
        slope = (zs[i] - zs[i - 1]) / (xs[i] - xs[i - 1])
        found: Array = zs[i - 1] + slope * (log_s - xs[i - 1])
        return found

    def below(self, seconds: float) -> float:
        """Share of requests at or below."""
        return _NORMAL.cdf(float(self.z_at(np.array([math.log(seconds)]))[0]))

    def quantile(self, q: float) -> float:
        """Seconds."""
        z, xs, zs = _NORMAL.inv_cdf(q), self.log_s, self.z
        i = min(max(int(np.searchsorted(np.array(zs), z)), 1), len(zs) - 1)
        return math.exp(xs[i - 1] + (z - zs[i - 1]) * (xs[i] - xs[i - 1]) / (zs[i] - zs[i - 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Bad events among those that count: `portion` of all requests (0..1) count, and `bad` (0..1) of them are bad."""

    portion: float
    bad: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Durations of `portion` of all requests."""

    portion: float
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """An amount per request, of `portion` of all requests: mean and coefficient of variation."""

    portion: float
    mean: float
    cv: float


Part = Rate | Durations | Amounts

NO_PRICE = 0.01
"""Cost of a request of which nobody knows the price: only its spread counts then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """
    Args:
        rps: Requests a second of the whole service, over a day.
        questions: What the plan counts, as `questions_of` has them.
        parts: What the baseline does, by key of the question. A question whose series nobody has seen is not there.
        edges: Finite bucket edges in seconds, by key of the histogram questions.
        fallbacks: Fallbacks per request.
        source: ``given`` or ``measured``.
        assumed: What was not given and not measured, in words.
        history: Increments of the baseline as a metric source brings them; () where they are to be invented.
        history_step: Length of one of them.
        problems: What could not be read, by key of the question.
    """

    rps: float
    questions: tuple[Question, ...]
    parts: Mapping[str, Part]
    edges: Mapping[str, tuple[float, ...]]
    fallbacks: float
    source: str
    assumed: tuple[str, ...] = ()
    history: tuple[tuple[float, ...], ...] = ()
    history_step: timedelta = timedelta(minutes=1)
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """
    A baseline in a few numbers. Ratios are 0..1; the defaults are of the size that chat services show.

    Args:
        rps: Requests a second.
        errors, timeouts, unavailable: Share of requests.
        p50_s, p95_s, ttft_p50_s, ttft_p95_s: Quantiles of durations and of the time to the first token.
        streaming: Share of requests that stream.
        fallbacks: Fallbacks per request.
        fallback_failures: Share of fallbacks that fail.
        cost_cv: Coefficient of variation of the cost of a request.
    """

    rps: float
    errors: float = 0.003
    timeouts: float = 0.001
    unavailable: float = 0.0003
    p50_s: float = 0.7
    p95_s: float = 2.0
    ttft_p50_s: float = 0.35
    ttft_p95_s: float = 0.9
    streaming: float = 0.6
    fallbacks: float = FALLBACKS
    fallback_failures: float = 0.004
    cost_cv: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rps < math.inf:
            raise ValueError(f"rps: {self.rps:g} is not a number of requests a second above 0")
        for name in ("errors", "timeouts", "unavailable", "streaming", "fallbacks", "fallback_failures"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: {value:g} is not a share within 0..1 (1 excluded)")
        for low, high in (("p50_s", "p95_s"), ("ttft_p50_s", "ttft_p95_s")):
            if not 0 < getattr(self, low) < getattr(self, high) < math.inf:
                raise ValueError(f"{low[:-2]} must be above 0 s and below {high[:-2]}")
        if not 0 < self.cost_cv < 100:
            raise ValueError(f"cost_cv: {self.cost_cv:g} is not within 0..100 (both excluded)")


CUSTOM_PART = 1 / 3
"""A custom rate of which nothing is known is taken to be a third of its limit."""


def assumed(plan: Plan, given: Given, edges: tuple[float, ...] = LATENCY_EDGES_S) -> Baseline:
    """
    Args:
        plan: Whose questions are answered.
        given: The numbers.
        edges: Bucket edges of all histograms, seconds.
    """
    limits = {q.key: g.limit for g in plan.gates if isinstance(g, RateLimit) and (q := question_of(g)) is not None}
    questions = questions_of(plan)
    notes: list[str] = []
    parts = {q.key: _part(q, given, limits, notes) for q in questions}
    if plan.profile != "router" and any(q.kind is Kind.HISTOGRAM for q in questions):
        notes.append("bucket edges are taken to be the router's")
    return Baseline(
        rps=given.rps,
        questions=questions,
        parts=parts,
        edges={q.key: edges for q in questions if q.kind is Kind.HISTOGRAM},
        fallbacks=given.fallbacks,
        source="given",
        assumed=tuple(dict.fromkeys(notes)),
    )


def _part(question: Question, given: Given, limits: Mapping[str, float], notes: list[str]) -> Part:
    portion = 1.0
    for label, value in question.where.items():
        if label == "streaming" and value in ("true", "false"):
            portion *= given.streaming if value == "true" else 1 - given.streaming
        else:
            notes.append(f"{label}={value} is taken to hold for all requests")
    if question.indicator == "ttft" and "streaming" not in question.where:
        portion *= given.streaming
    match question.kind:
        case Kind.RATE:
            if question.indicator == "fallback_success":
                return Rate(portion=portion * given.fallbacks, bad=given.fallback_failures)
            rates = {
                "error_ratio": given.errors,
                "timeout_ratio": given.timeouts,
                "availability": given.unavailable,
                REQUESTS: 0.0,
            }
            if question.indicator not in rates:
                notes.append(f"{question.key[:60]}: taken to be bad for a third of its limit")
            return Rate(portion=portion, bad=rates.get(question.indicator, CUSTOM_PART * limits.get(question.key, 0.0)))
        case Kind.HISTOGRAM:
            first = question.indicator == "ttft"
            median, p95 = (given.ttft_p50_s, given.ttft_p95_s) if first else (given.p50_s, given.p95_s)
            if question.indicator == "custom":
                notes.append(f"{question.key[:60]}: taken to be distributed like the latency")
            return Durations(portion=portion, shape=Shape.lognormal(median, p95))
        case Kind.MEAN:
            return Amounts(portion=portion, mean=NO_PRICE, cv=given.cost_cv)


def measured(plan: Plan, traffic: Traffic) -> Baseline:
    """
    Args:
        plan: Whose questions were asked.
        traffic: A first reading: its history is the baseline's recent past.

    Raises:
        NothingMeasured: There is no history, or no request in it.
    """
    questions = questions_of(plan)
    table = np.array(traffic.history, dtype=np.float64).reshape(len(traffic.history), -1)
    if not len(table) or table[:, 1].sum() <= 0:
        why = next(iter(traffic.problems.values()), "")
        raise NothingMeasured(
            "no requests of the baseline in the recent past"
            + (f" ({why})" if why else "")
            + "; give the traffic with --rps instead"
        )
    whole = table.sum(axis=0)
    requests = float(whole[1])
    parts: dict[str, Part] = {}
    problems, start = dict(traffic.problems), 0
    for q in questions:
        width = len(columns_of_one(q, traffic.edges.get(q.key, ())))
        own, each, start = whole[start : start + width], table[:, start : start + width], start + width
        if q.key in problems:
            continue
        if width == 0 or own[-1] <= 0:
            problems[q.key] = "no series of the baseline, or nothing counted in them"
        elif (part := _seen(q, own, each, requests, traffic.edges.get(q.key, ()))) is None:
            problems[q.key] = "all durations lie within one bucket"
        else:
            parts[q.key] = part
    counts_fallbacks = any(isinstance(g, AtLeast) and g.indicator == "fallbacks" for g in plan.gates)
    told = [parts[q.key].portion for q in questions if q.indicator == "fallback_success" and q.key in parts]
    return Baseline(
        rps=requests / (len(table) * traffic.history_step.total_seconds()),
        questions=questions,
        parts=parts,
        edges={k: tuple(v) for k, v in traffic.edges.items()},
        fallbacks=told[0] if told else FALLBACKS,
        source="measured",
        assumed=() if told or not counts_fallbacks else (f"fallbacks are taken to be {FALLBACKS * 100:g}% of the requests",),
        history=traffic.history,
        history_step=traffic.history_step,
        problems=problems,
    )


def read(plan: Plan, metrics: MetricSource, now: datetime) -> Baseline:
    """
    Today's baseline, as the first look of a rollout would read its history.

    Args:
        plan: Whose questions are asked.
        metrics: To ask.
        now: Aware time.

    Raises:
        NothingMeasured: The source does not answer, or has no requests of the baseline.
    """
    scope = Scope(
        environment=plan.environment,
        flag=plan.flag,
        arm="candidate",
        since=now,
        recent=plan.policy.every,
        opened_at=now,
        at=now,
        step=plan.policy.guard_every,
        profile=plan.profile,
        models={"baseline": plan.baseline.model, "candidate": plan.candidate.model},
        arms=plan.arms,
        history_step=plan.policy.block,
    )
    found = metrics.traffic(questions_of(plan), scope, {})
    if found.traffic is None:
        raise NothingMeasured(f"today's traffic cannot be read: {found.failure}; give it with --rps instead")
    return measured(plan, found.traffic)


def _seen(question: Question, own: Array, each: Array, requests: float, edges: tuple[float, ...]) -> Part | None:
    portion = float(own[-1]) / requests
    match question.kind:
        case Kind.RATE:
            return Rate(portion=portion, bad=float(own[0] / own[1]))
        case Kind.HISTOGRAM:
            shape = Shape.of_buckets(edges, own)
            return None if shape is None else Durations(portion=portion, shape=shape)
        case Kind.MEAN:
            mean = float(own[0] / own[1])
            amount, count = each[each[:, 1] > 0].T
            # As the engine's reference has it: for sums a of n requests, sum a^2 / n - (sum a)^2 / sum n = (K - 1) s^2.
            spread = float((amount * amount / count).sum() - amount.sum() ** 2 / count.sum()) / max(len(count) - 1, 1)
            return Amounts(portion=portion, mean=mean, cv=math.sqrt(max(spread, 0.0)) / mean if mean > 0 else 1.0)
