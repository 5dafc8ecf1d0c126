"""
What a measurement is worth: one verdict for each gate.

Verdicts are pass, breach, insufficient and error. Its one rule: a pass must be earned. It needs enough requests of the candidate and
an observed value within the limit; no data, NaN or a failed query can never become one. A breach must be earned as well: the
whole interval lies beyond the limit, at a confidence that is shared out over all gates and looks of a rollout (see `breach_alpha`).
Whatever lies between is insufficient, and holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple, TypeVar, assert_never

from controller.core import intervals
from controller.core.histogram import above, above_about, nearest_edge, quantile
from controller.core.measurement import Counts, Histogram, Measurement, Moments, NoData, QueryFailed, Sampled
from controller.core.plan import (
    AtLeast,
    AtMost,
    Gate,
    GateMode,
    MeanIncrease,
    Phase,
    Policy,
    QuantileIncrease,
    QuantileLimit,
    RateLimit,
    Silence,
)

LOOKS = 100
"""Looks that the confidence of a breach is shared out over (Bonferroni). A guard looks more often, but looks at one growing sample depend
on each other: how often 5,760 of them cross the bound is measured in tests/core/test_gates_false_alarms.py."""

SILENT_EXPECTED = 20.0
"""Expected requests of the candidate, none of which was seen, before silence is a breach: exp(-20) by chance under a Poisson law."""

COMPARED_MIN_REQUESTS = 30
"""Below so many requests on either side the approximate intervals of a comparison are not trusted for a breach. Of 400 simulated days at
the margin, 7 had a false alarm without it and 4 with it, where 2 were promised (tests/core/test_gates_false_alarms.py)."""

SILENT_AFTER = timedelta(seconds=90)
"""A request counts when it ends: a candidate that streams may have ended none so early. The longest default timeout of a router; half
the bake where that is shorter."""

_V = TypeVar("_V", Counts, Histogram, Moments)


class Verdict(StrEnum):
    PASS = "pass"
    BREACH = "breach"
    INSUFFICIENT = "insufficient"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """
    One gate's verdict and the numbers behind it.

    Args:
        gate: The gate's name.
        mode: Whether a breach acts, warns or is only recorded.
        observed: What was seen, in the gate's own terms: a share (0..1), a ratio minus one, or a count; None without data.
        limit: The limit on the same scale.
        interval: Two-sided interval of `observed` at the plan's confidence; None where the gate has none.
        n: Requests of the candidate behind it.
        n_baseline: Requests of the baseline behind it; 0 where the gate does not compare.
        reason: One clause in words.
    """

    gate: str
    verdict: Verdict
    mode: GateMode = GateMode.ENFORCE
    observed: float | None = None
    limit: float | None = None
    interval: tuple[float, float] | None = None
    n: float = 0.0
    n_baseline: float = 0.0
    reason: str


def judge(gate: Gate, measurement: Measurement, policy: Policy, phase: Phase, gates: int, age: timedelta) -> GateResult:
    """
    Args:
        gate: The rule.
        measurement: What was seen for it.
        policy: Confidence and the least number of requests.
        phase: The phase being judged: its weight says what Silence may expect.
        gates: How many gates share the confidence.
        age: How long the phase has lasted.

    Returns:
        The verdict with its numbers; never raises on odd data, that is an `error` verdict.
    """
    match measurement:
        case QueryFailed():
            return GateResult(gate=gate.name, mode=gate.mode, verdict=Verdict.ERROR, reason=measurement.reason)
        case NoData():
            return GateResult(
                gate=gate.name, mode=gate.mode, verdict=Verdict.INSUFFICIENT, reason=f"no data: {measurement.reason}"
            )
        case Sampled():
            look = _Look(policy=policy, alpha=breach_alpha(policy, gates), age=age)
            try:
                return _judge_sampled(gate, measurement, look, phase)
            except (ValueError, ArithmeticError, TypeError) as exc:
                return GateResult(gate=gate.name, mode=gate.mode, verdict=Verdict.ERROR, reason=f"cannot be judged: {exc}")
        case _:
            assert_never(measurement)


def breach_alpha(policy: Policy, gates: int) -> float:
    """Two-sided error probability of the interval that a breach is read from: 1 - confidence, shared over gates and looks."""
    return 2 * (1 - policy.confidence) / (max(gates, 1) * LOOKS)


def breaches(results: Sequence[GateResult]) -> tuple[GateResult, ...]:
    """The breaches that act; those of warn and dry_run gates are recorded and told, but do not move traffic."""
    return tuple(r for r in results if r.verdict is Verdict.BREACH and r.mode is GateMode.ENFORCE)


def unproven(results: Sequence[GateResult]) -> tuple[GateResult, ...]:
    """What keeps a phase from being left upwards: enforced gates without a pass."""
    return tuple(r for r in results if r.verdict is not Verdict.PASS and r.mode is GateMode.ENFORCE)


class _Look(NamedTuple):
    policy: Policy
    alpha: float
    age: timedelta

    @property
    def shown_alpha(self) -> float:
        return 1 - self.policy.confidence


def _judge_sampled(gate: Gate, seen: Sampled, look: _Look, phase: Phase) -> GateResult:
    match gate:
        case RateLimit():
            return _share_limit(gate, _as(Counts, seen.candidate), gate.limit, look, "bad requests")
        case QuantileLimit():
            counts = above(_as(Histogram, seen.candidate), gate.limit_s)
            # 1 - 0.95 is 0.050000000000000044 in binary; people wrote 5 %.
            return _share_limit(gate, counts, round(1 - gate.quantile, 12), look, f"requests slower than {gate.limit_s:g} s")
        case QuantileIncrease():
            return _quantile_increase(gate, seen, look)
        case MeanIncrease():
            return _mean_increase(gate, seen, look)
        case AtLeast():
            return _at_least(gate, _as(Counts, seen.candidate).total)
        case AtMost():
            return _at_most(gate, _as(Counts, seen.candidate).total)
        case Silence():
            return _silence(gate, seen, look, phase)
        case _:
            assert_never(gate)


def _as(kind: type[_V], value: object) -> _V:
    if not isinstance(value, kind):
        raise TypeError(f"the measurement is a {type(value).__name__}, the gate needs a {kind.__name__}")
    return value


def _share_limit(gate: RateLimit | QuantileLimit, counts: Counts, limit: float, look: _Look, what: str) -> GateResult:
    if counts.total <= 0:
        return _result(gate, Verdict.INSUFFICIENT, "no requests in the window", limit=limit)
    observed = counts.bad / counts.total
    interval = intervals.wilson(counts, look.shown_alpha)
    numbers = _Numbers(observed=observed, limit=limit, interval=interval, n=counts.total)
    # An interval holds its own estimate: within the limit there is no breach to look for.
    if observed > limit and intervals.exact_low(counts, look.alpha) > limit:
        return _result(gate, Verdict.BREACH, f"{pct(observed)} {what}, limit {pct(limit)}", numbers=numbers)
    return _earned(gate, numbers, look, f"{pct(observed)} {what}, limit {pct(limit)}")


def _quantile_increase(gate: QuantileIncrease, seen: Sampled, look: _Look) -> GateResult:
    candidate, baseline = _as(Histogram, seen.candidate), seen.baseline
    if baseline is None or _as(Histogram, baseline).total <= 0 or candidate.total <= 0:
        return _result(
            gate, Verdict.INSUFFICIENT, "no requests of the baseline or the candidate to compare", limit=gate.max_increase
        )
    base = _as(Histogram, baseline)
    edge = nearest_edge(base, gate.quantile)
    if edge is None:
        return _result(gate, Verdict.ERROR, f"the baseline's quantile {gate.quantile:g} lies above the last bucket edge")
    limit_s = base.edges_s[edge] * (1 + gate.max_increase)
    c, b = above_about(candidate, limit_s), Counts(bad=base.total - base.cumulative[edge], total=base.total)
    q_c, q_b = quantile(candidate, gate.quantile), quantile(base, gate.quantile)
    if q_c is None or q_b is None:
        return _result(gate, Verdict.ERROR, f"a quantile {gate.quantile:g} lies above the last bucket edge")
    observed = q_c / q_b - 1
    numbers = _Numbers(observed=observed, limit=gate.max_increase, interval=None, n=c.total, n_baseline=b.total)
    text = (
        f"{pct(observed, sign=True)} against the baseline ({q_c:.3g} s to {q_b:.3g} s), limit {pct(gate.max_increase, sign=True)}"
    )
    # Within the margin, at most as many candidate requests exceed x(1+margin) as baseline requests exceed x.
    enough = min(c.total, b.total) >= COMPARED_MIN_REQUESTS
    if enough and c.bad * b.total > b.bad * c.total and intervals.newcombe(c, b, look.alpha)[0] > 0:
        return _result(gate, Verdict.BREACH, text, numbers=numbers)
    return _earned(gate, numbers, look, text)


def _mean_increase(gate: MeanIncrease, seen: Sampled, look: _Look) -> GateResult:
    c = _as(Moments, seen.candidate)
    b = None if seen.baseline is None else _as(Moments, seen.baseline)
    if b is None or b.n <= 1 or c.n <= 1 or b.total <= 0 or c.total <= 0:
        return _result(
            gate, Verdict.INSUFFICIENT, "no priced requests of the baseline or the candidate to compare", limit=gate.max_increase
        )
    observed = (c.total / c.n) / (b.total / b.n) - 1
    low, high = intervals.mean_ratio(c, b, look.shown_alpha)
    numbers = _Numbers(observed=observed, limit=gate.max_increase, interval=(low - 1, high - 1), n=c.n, n_baseline=b.n)
    text = f"{pct(observed, sign=True)} against the baseline, limit {pct(gate.max_increase, sign=True)}"
    enough = min(c.n, b.n) >= COMPARED_MIN_REQUESTS
    if enough and observed > gate.max_increase and intervals.mean_ratio(c, b, look.alpha)[0] - 1 > gate.max_increase:
        return _result(gate, Verdict.BREACH, text, numbers=numbers)
    return _earned(gate, numbers, look, text)


def _at_least(gate: AtLeast, seen: float) -> GateResult:
    numbers = _Numbers(observed=seen, limit=float(gate.times), interval=None, n=0.0)
    # increase() extrapolates, so that one event can read as 0.97.
    if round(seen) >= gate.times:
        return _result(gate, Verdict.PASS, f"seen {seen:.0f} times, needed {gate.times}", numbers=numbers)
    return _result(gate, Verdict.INSUFFICIENT, f"seen {seen:.0f} times, needed {gate.times}", numbers=numbers)


def _at_most(gate: AtMost, seen: float) -> GateResult:
    numbers = _Numbers(observed=seen, limit=float(gate.times), interval=None, n=0.0)
    verdict = Verdict.PASS if seen <= gate.times else Verdict.BREACH
    return _result(gate, verdict, f"{seen:.0f} now, at most {gate.times}", numbers=numbers)


def _silence(gate: Silence, seen: Sampled, look: _Look, phase: Phase) -> GateResult:
    candidate = _as(Counts, seen.candidate).total
    baseline = 0.0 if seen.baseline is None else _as(Counts, seen.baseline).total
    if candidate > 0:
        numbers = _Numbers(observed=candidate, limit=None, interval=None, n=candidate, n_baseline=baseline)
        return _result(gate, Verdict.PASS, f"{candidate:.0f} requests seen", numbers=numbers)
    share = phase.weight / 100_000
    # In a live phase the baseline sees the rest of the units; in a shadow phase it sees them all.
    expected = baseline * share / (1 - share) if phase.live_weight and share < 1 else baseline * share
    numbers = _Numbers(observed=0.0, limit=None, interval=None, n=0.0, n_baseline=baseline)
    if expected >= SILENT_EXPECTED and look.age >= min(SILENT_AFTER, phase.bake / 2):
        return _result(
            gate, Verdict.BREACH, f"silent: no requests seen where about {expected:.0f} were expected", numbers=numbers
        )
    return _result(gate, Verdict.INSUFFICIENT, "no requests of the candidate yet", numbers=numbers)


class _Numbers(NamedTuple):
    """A named tuple and no dataclass: one is made for every gate of every look, at a third of the cost."""

    observed: float | None
    limit: float | None
    interval: tuple[float, float] | None
    n: float
    n_baseline: float = 0.0


def _earned(gate: Gate, numbers: _Numbers, look: _Look, text: str) -> GateResult:
    """Pass or insufficient, for a gate that is not breached."""
    least = look.policy.min_requests
    if numbers.n < least:
        return _result(gate, Verdict.INSUFFICIENT, f"{text}; {numbers.n:.0f} of {least} requests", numbers=numbers)
    assert numbers.observed is not None and numbers.limit is not None
    if numbers.observed > numbers.limit:
        return _result(gate, Verdict.INSUFFICIENT, f"{text}; over the limit, but not beyond chance yet", numbers=numbers)
    return _result(gate, Verdict.PASS, text, numbers=numbers)


def _result(
    gate: Gate, verdict: Verdict, reason: str, *, numbers: _Numbers | None = None, limit: float | None = None
) -> GateResult:
    if numbers is None:
        return GateResult(gate=gate.name, mode=gate.mode, verdict=verdict, limit=limit, reason=reason)
    return GateResult(
        gate=gate.name,
        mode=gate.mode,
        verdict=verdict,
        observed=numbers.observed,
        limit=numbers.limit,
        interval=numbers.interval,
        n=numbers.n,
        n_baseline=numbers.n_baseline,
        reason=reason,
    )


def pct(ratio: float, *, sign: bool = False) -> str:
    """0.0123 as ``1.23%``."""
    return f"{ratio * 100:+.3g}%" if sign else f"{ratio * 100:.3g}%"
