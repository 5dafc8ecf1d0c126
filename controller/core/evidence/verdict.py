"""
What the engine says: roll back, go on, or hold, with the numbers of every metric.

Its one rule: a verdict explains itself. Observed value, limit, interval, evidence for and against, sample sizes and what is still missing
stand beside the word.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from controller.core.evidence.config import Need


class Ruling(StrEnum):
    ROLL_BACK = "roll_back"
    PROCEED = "proceed"
    HOLD = "hold"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    One metric in this phase.

    Args:
        gate: Name of the gate.
        need: What it asks for in this phase.
        met: Whether it has got it, and the interval does not lie beyond the limit.
        beyond: The whole interval lies beyond the limit.
        multiple: How many times the margin this phase proves.
        acceptable: At a margin half a step wider the proof would stand: what a time box may accept.
        observed: Candidate's value in this phase (rate, quantile, or ratio to the baseline); NaN without data.
        baseline: Baseline's value in the gate's own unit; NaN without data.
        limit: The gate's limit in the unit of `observed`.
        interval: Anytime-valid 95 % interval in the unit of `observed`; None without data.
        requests: Candidate's trials in this phase.
        requests_baseline: Baseline's.
        log_e_breach: Log of (this gate's part of the evidence against "within the margin" over what a rollback needs); 0 would decide
            alone.
        log_e_proof: Log e-value against "at or beyond the margin" at this phase's multiple.
        log_e_needed: What `log_e_proof` must reach; 0 for a leaning gate, -inf if nothing is asked.
        missing: Candidate's requests until then at the rate seen so far; 0 when proven, None if the data do not lean that way.
    """

    gate: str
    need: Need
    met: bool
    beyond: bool
    multiple: float
    acceptable: bool
    observed: float
    baseline: float
    limit: float
    interval: tuple[float, float] | None
    requests: float
    requests_baseline: float
    log_e_breach: float
    log_e_proof: float
    log_e_needed: float
    missing: float | None

    @property
    def text(self) -> str:
        """One sentence."""
        seen = "no data" if math.isnan(self.observed) else f"{self.observed:.4g} (limit {self.limit:.4g})"
        if self.met:
            return f"{self.gate}: {seen} on {self.requests:.0f} requests, earned"
        wait = (
            "the data do not lean towards the limit being kept"
            if self.missing is None
            else f"about {self.missing:.0f} more requests needed"
        )
        return f"{self.gate}: {seen} on {self.requests:.0f} requests, e-value {_e(self.log_e_proof)} of {_e(self.log_e_needed)}; {wait}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    Args:
        ruling: The word.
        reason: One sentence.
        phase: Index of the phase judged.
        gate: The metric that decided a rollback; "" otherwise.
        rung: The severity at which it did; "" otherwise.
        log_e: Log of the combined evidence.
        findings: Every gate.
    """

    ruling: Ruling
    reason: str
    phase: int
    findings: tuple[Finding, ...]
    gate: str = ""
    rung: str = ""
    log_e: float = 0.0


def _e(log_e: float) -> str:
    return f"{math.exp(log_e):.3g}" if log_e < 20 else f"e^{log_e:.0f}"
