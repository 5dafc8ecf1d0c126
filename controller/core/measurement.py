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
class Sampled:
    """
    Numbers were seen.

    Args:
        candidate: The arm under evaluation.
        baseline: The arm beside it; None where the gate does not compare or the arm has no traffic.
        evidence: What they were read from.
    """

    candidate: Counts
    baseline: Counts | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What this gate counts was read; the numbers lie in the row's gathered evidence (`controller.core.rollout.Gathered`)."""

    evidence: tuple[Evidence, ...] = ()
    kind: Literal["counted"] = "counted"


Measurement = Sampled | NoData | QueryFailed | Counted
