"""
What both arms did since the last look: increments on a fixed beat, the raw material of all evidence.

A plan's gates ask `Question`s; a metric source answers them all with one `Traffic`: for each beat and arm a row of increments, one
number for each of `columns_of`. Its one rule: these are counts of things that happened once. A restarted counter, a missed scrape or a late
sample has been dealt with before it gets here, and what could not be dealt with is named in `problems`, never guessed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any

from controller.core.measurement import Evidence
from controller.core.plan import Gate, MeanIncrease, Plan, QuantileIncrease, QuantileLimit, RateLimit

REQUESTS = "requests"
"""Indicator of the question that every plan asks: how many requests each arm had (`total`, without bad ones)."""


class Kind(StrEnum):
    """Which columns a question has."""

    RATE = "rate"
    """``bad`` and ``total``: events, and all of which they are a part."""
    MEAN = "mean"
    """``amount`` and ``count``: a sum, and how many things it was summed over."""
    HISTOGRAM = "histogram"
    """One cumulative count for each bucket edge, then the total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """
    Something to count for both arms.

    Args:
        key: Unique within a plan; the same for gates that ask the same.
        kind: Which columns it has.
        indicator: As in the plan: ``latency``, ``error_ratio``, ``requests``, ``custom``, ...
        where: Label filters.
        promql: For ``custom`` only: the selectors by column, as the plan has them.
    """

    key: str
    kind: Kind
    indicator: str
    where: Mapping[str, str] = field(default_factory=dict)
    promql: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """
    The increments of both arms from the beat before to this one.

    Args:
        at: Aware UTC, a whole multiple of the step since the epoch.
        candidate, baseline: In the order of `columns_of`; finite and not negative.
    """

    at: datetime
    candidate: tuple[float, ...]
    baseline: tuple[float, ...]

    def __post_init__(self) -> None:
        for row in (self.candidate, self.baseline):
            # A sum is finite only if all of it is; a row holds hundreds of numbers, and a simulation makes tens of thousands of rows.
            if not (math.isfinite(sum(row)) and min(row, default=0.0) >= 0):
                raise ValueError(f"increments must be finite and not negative, got {min(row)} .. {max(row)} at {self.at}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """
    Args:
        since: The beat that the first of `beats` is counted from.
        step: Distance of two beats; a longer one between two of them means that looks or scrapes were missed.
        edges: Finite bucket edges (seconds) of each histogram question, by key; fixed for the whole rollout.
        beats: Oldest first.
        history: Before the first phase, once: increments of the baseline alone, oldest first, one each `history_step`.
        history_step: See there.
        problems: Questions that could not be answered (their columns are 0), by key, and why.
        absent: Arms without any series, by key of the question.
    """

    since: datetime
    step: timedelta
    edges: Mapping[str, tuple[float, ...]]
    beats: tuple[Beat, ...] = ()
    history: tuple[tuple[float, ...], ...] = ()
    history_step: timedelta = timedelta(minutes=1)
    problems: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Traffic and the phase that it belongs to, which began at `since`."""

    phase: int
    since: datetime
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRead:
    """
    What came of asking for traffic.

    Args:
        traffic: None when nothing could be read; `failure` says why.
        failure: "" when there is traffic.
        ledger: What the source must be given back at the next reading: the last value of each counter that was consumed. JSON; its own affair.
        evidence: The queries and answers, by key of the question.
    """

    traffic: Traffic | None
    failure: str = ""
    ledger: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, tuple[Evidence, ...]] = field(default_factory=dict)


def question_of(gate: Gate) -> Question | None:
    """What a gate needs counted; None for gates that are no statistics."""
    match gate:
        case RateLimit():
            return _question(Kind.RATE, gate.indicator, gate.where, gate.promql)
        case MeanIncrease():
            return _question(Kind.MEAN, gate.indicator, gate.where, gate.promql)
        case QuantileLimit() | QuantileIncrease():
            return _question(Kind.HISTOGRAM, gate.indicator, gate.where, gate.promql)
        case _:
            return None


def questions_of(plan: Plan) -> tuple[Question, ...]:
    """Everything that a plan's gates need counted, each once, the requests of both arms first."""
    found = {q.key: q for g in plan.gates if (q := question_of(g)) is not None}
    requests = _question(Kind.RATE, REQUESTS, {}, {})
    return (requests, *found.values())


def columns_of(questions: Sequence[Question], edges: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    """
    Names of the entries of a Beat's rows.

    Args:
        questions: In order.
        edges: Of the histogram questions, by key. One that is not there yet has no columns.
    """
    return tuple(column for q in questions for column in columns_of_one(q, edges.get(q.key, ())))


def columns_of_one(question: Question, edges: tuple[float, ...]) -> tuple[str, ...]:
    match question.kind:
        case Kind.RATE:
            return f"{question.key}:bad", f"{question.key}:total"
        case Kind.MEAN:
            return f"{question.key}:amount", f"{question.key}:count"
        case Kind.HISTOGRAM:
            return _buckets(question.key, len(edges) + 1) if edges else ()


@lru_cache(maxsize=1_024)
def _buckets(key: str, count: int) -> tuple[str, ...]:
    """The same texts for all rollouts: some three hundred for each would be at hand a thousand times."""
    return tuple(f"{key}:{i}" for i in range(count))


def _question(kind: Kind, indicator: str, where: Mapping[str, str], promql: Mapping[str, str]) -> Question:
    filters = ",".join(f"{k}={where[k]}" for k in sorted(where))
    text = "; ".join(f"{k}: {promql[k]}" for k in sorted(promql))
    key = indicator + (f"{{{filters}}}" if filters else "") + (f"[{text}]" if text else "")
    return Question(key=key, kind=kind, indicator=indicator, where=dict(where), promql=dict(promql))
