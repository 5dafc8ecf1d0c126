"""
What was seen: one measurement for each gate, with the raw evidence it rests on.

A measurement is Sampled, NoData or QueryFailed, and nothing in between: an answer that is stale, partial or not a finite number is
turned into one of the last two before it gets here, never into a zero. Its one rule: whatever a verdict rests on is in the
evidence, so that the verdict can be computed again from the audit row alone.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Arm = str
"""``baseline``, ``candidate`` or ``shadow``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    One question to the metric source and its answer, verbatim.

    Args:
        query: The exact PromQL.
        at: Evaluation time that was asked for.
        answer: Raw body of the answer, "" if there was none.
        digest: SHA-256 of the answer, hexadecimal.
        note: Error or warnings, in words; "" if there were none.
    """

    query: str
    at: datetime
    answer: str
    digest: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Bad requests among all of one arm in the window; `increase` makes both fractional."""

    bad: float
    total: float
    kind: Literal["counts"] = "counts"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bad) and math.isfinite(self.total) and 0 <= self.bad <= self.total * (1 + 1e-9)):
            raise ValueError(f"counts need 0 <= bad <= total, got {self.bad} of {self.total}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """
    Requests of one arm by duration.

    Args:
        edges_s: Upper edges of the finite buckets, rising.
        cumulative: Requests at or below each edge, one per edge.
        total: All requests, those above the last edge included.
    """

    edges_s: tuple[float, ...]
    cumulative: tuple[float, ...]
    total: float
    kind: Literal["histogram"] = "histogram"

    def __post_init__(self) -> None:
        if len(self.edges_s) != len(self.cumulative) or not self.edges_s:
            raise ValueError(f"a histogram needs as many counts as edges, got {len(self.cumulative)} and {len(self.edges_s)}")
        if any(b <= a for a, b in zip(self.edges_s, self.edges_s[1:], strict=False)):
            raise ValueError("bucket edges must rise")
        if any(b < a for a, b in zip(self.cumulative, self.cumulative[1:], strict=False)) or self.cumulative[-1] > self.total * (
            1 + 1e-9
        ):
            raise ValueError("cumulative counts must not fall, and the total is the last of them")
        if not math.isfinite(self.total) or self.total < 0 or not all(math.isfinite(c) and c >= 0 for c in self.cumulative):
            raise ValueError("bucket counts must be finite and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, sum and sum of squares of a quantity per request (US dollars for cost) of one arm."""

    n: float
    total: float
    squares: float
    kind: Literal["moments"] = "moments"

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) and v >= 0 for v in (self.n, self.total, self.squares)):
            raise ValueError(f"moments must be finite and not negative, got {self.n}, {self.total}, {self.squares}")


Value = Counts | Histogram | Moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """
    Numbers were seen.

    Args:
        candidate: The arm under evaluation.
        baseline: The arm beside it; None where the gate does not compare or the arm has no traffic.
        evidence: What they were read from.
    """

    candidate: Value
    baseline: Value | None = None
    evidence: tuple[Evidence, ...] = ()
    kind: Literal["sampled"] = "sampled"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoData:
    """The source answered, but had nothing about the candidate."""

    reason: str
    evidence: tuple[Evidence, ...] = ()
    kind: Literal["no_data"] = "no_data"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryFailed:
    """The source did not answer, or not in a way that can be trusted."""

    reason: str
    evidence: tuple[Evidence, ...] = ()
    kind: Literal["query_failed"] = "query_failed"


Measurement = Sampled | NoData | QueryFailed
