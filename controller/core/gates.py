"""
What was seen, judged: one verdict for each gate, and the sentence that says it.

Verdicts are pass, breach, insufficient and error. Statistical gates (rates, quantiles, means) come with a `Finding` of the evidence engine,
which bounds how often a whole rollout errs however often one looks; the others (events, alerts, silence) are read off one measurement.
Its one rule: a pass must be earned and so must a breach. No data, NaN or a failed query is neither.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Literal, assert_never

from controller.core.evidence.config import Need
from controller.core.evidence.verdict import Finding
from controller.core.measurement import Counted, Counts, Measurement, NoData, QueryFailed, Sampled
from controller.core.plan import (
    AtLeast,
    AtMost,
    Gate,
    GateMode,
    MeanIncrease,
    OnBreach,
    Phase,
    Plan,
    Policy,
    QuantileIncrease,
    QuantileLimit,
    RateLimit,
    SampleRatio,
    Silence,
)

SILENT_EXPECTED = 20.0
"""Expected requests of the candidate, none of which was seen, before silence is a breach: exp(-20) by chance under a Poisson law."""

SILENT_AFTER = timedelta(seconds=90)
"""A request counts when it ends: a candidate that streams may have ended none so early. The longest default timeout of a router; half
the bake where that is shorter."""

Unit = Literal["share", "seconds", "increase", "count"]

Guarantee = Literal["anytime", "asymptotic", "none"]


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
        on_breach: What a breach of an enforced gate does.
        observed: What was seen, in `unit`; None without data.
        limit: The limit in the same unit.
        interval: Of `observed`, at the plan's confidence at every look together; None where the gate has none.
        unit: ``share`` 0..1; ``seconds``; ``increase`` over the baseline (0.1 is 10 % more); ``count``.
        n: Requests of the candidate behind it, in this phase.
        n_baseline: Requests of the baseline behind it.
        log_e_breach: Log of this gate's evidence for a breach over what one needs; 0 would decide alone. None where the gate has none.
        log_e_proof: Log e-value against "at or beyond the margin".
        log_e_needed: What `log_e_proof` must reach for a pass.
        missing: Requests of the candidate until then at the rate seen so far; None where the data do not lean that way.
        acceptable: No proof, but the estimate lies within the limit and the proof would stand at a margin half a step wider.
        guarantee: Whether error probabilities hold at every look (``anytime``), do so in the limit of many requests (``asymptotic``), or
            are not promised (``none``: a plain comparison).
        reason: One sentence.
    """

    gate: str
    verdict: Verdict
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach = OnBreach.ROLLBACK
    observed: float | None = None
    limit: float | None = None
    interval: tuple[float, float] | None = None
    unit: Unit = "count"
    n: float = 0.0
    n_baseline: float = 0.0
    log_e_breach: float | None = None
    log_e_proof: float | None = None
    log_e_needed: float | None = None
    missing: float | None = None
    acceptable: bool = False
    guarantee: Guarantee = "none"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """
    What the engine says of a statistical gate.

    Args:
        finding: Its numbers.
        breached: The combined evidence has reached its threshold, and this gate contributed most.
        hindrance: Why no gate may pass now; "" if nothing stands in the way.
        problem: Why what the gate counts could not be read completely; "" if it could.
        absent: The arms that have no series at all.
        requests: Of the candidate in this phase, whatever the gate counts.
    """

    finding: Finding
    breached: bool
    requests: float
    hindrance: str = ""
    problem: str = ""
    absent: tuple[str, ...] = ()


def judge(
    gate: Gate, measurement: Measurement, policy: Policy, phase: Phase, age: timedelta, weighed: Weighed | None = None
) -> GateResult:
    """
    Args:
        gate: The rule.
        measurement: What was seen for it.
        policy: The least number of requests, and what a breach does.
        phase: The phase being judged: its weight says what Silence may expect.
        age: How long the phase has lasted.
        weighed: For statistical gates: what the evidence says; None before there is any.

    Returns:
        The verdict with its numbers; never raises on odd data, that is an `error` verdict.
    """
    about = _About(gate=gate, policy=policy, phase=phase, age=age)
    if weighed is not None and weighed.breached:
        return _statistical(about, weighed)  # what was proven stays proven, whether or not more could be read just now
    match measurement:
        case QueryFailed():
            return about.result(Verdict.ERROR, measurement.reason)
        case NoData():
            return about.result(Verdict.INSUFFICIENT, f"no data: {measurement.reason}")
        case Counted():
            return about.result(Verdict.INSUFFICIENT, "no evidence yet") if weighed is None else _statistical(about, weighed)
        case Sampled():
            try:
                return _sampled(about, measurement)
            except (ValueError, ArithmeticError, TypeError) as exc:
                return about.result(Verdict.ERROR, f"cannot be judged: {exc}")
        case _:
            assert_never(measurement)


def judge_all(
    plan: Plan, phase: int, seen: Mapping[str, Measurement], weighed: Mapping[str, Weighed], age: timedelta
) -> tuple[GateResult, ...]:
    """
    Args:
        plan: The rollout's plan.
        phase: Index of the phase being judged.
        seen: Measurements by gate; the gates that have none are not judged.
        weighed: What the evidence says, by gate.
        age: How long the phase has lasted.

    Returns:
        One verdict for each measured gate, in the plan's order.
    """
    return tuple(
        judge(g, seen[g.name], plan.policy, plan.phases[phase], age, weighed.get(g.name)) for g in plan.gates if g.name in seen
    )


def breaches(results: Sequence[GateResult]) -> tuple[GateResult, ...]:
    """The breaches that act; those of warn and dry_run gates are recorded and told, but do not move traffic."""
    return tuple(r for r in results if r.verdict is Verdict.BREACH and r.mode is GateMode.ENFORCE)


def unproven(results: Sequence[GateResult]) -> tuple[GateResult, ...]:
    """What keeps a phase from being left upwards: enforced gates without a pass."""
    return tuple(r for r in results if r.verdict is not Verdict.PASS and r.mode is GateMode.ENFORCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    gate: Gate
    policy: Policy
    phase: Phase
    age: timedelta

    def result(
        self,
        verdict: Verdict,
        reason: str,
        *,
        observed: float | None = None,
        limit: float | None = None,
        n: float = 0.0,
        n_baseline: float = 0.0,
        unit: Unit = "count",
    ) -> GateResult:
        return GateResult(
            gate=self.gate.name,
            mode=self.gate.mode,
            on_breach=self.gate.on_breach or self.policy.on_breach,
            verdict=verdict,
            observed=observed,
            limit=limit,
            unit=unit,
            n=n,
            n_baseline=n_baseline,
            reason=reason,
        )


# --- statistical gates ----------------------------------------------------------------------------------------------------------


def _statistical(about: _About, weighed: Weighed) -> GateResult:
    gate, f = about.gate, weighed.finding
    unit, shift = _unit(gate)
    observed = None if math.isnan(f.observed) else f.observed - shift
    interval = None if f.interval is None or math.isnan(f.interval[0]) else (f.interval[0] - shift, f.interval[1] - shift)
    limit = round(f.limit - shift, 12)
    within = observed is not None and observed <= limit
    text = _sentence(gate, observed, interval, limit, f)
    verdict, why = _ruling(about, weighed, within=within)
    if verdict is Verdict.ERROR or (observed is None and why):
        text = why
    elif why:
        text = f"{text}; {why}"
    return GateResult(
        gate=gate.name,
        mode=gate.mode,
        on_breach=gate.on_breach or about.policy.on_breach,
        verdict=verdict,
        observed=observed,
        limit=limit,
        interval=interval,
        unit=unit,
        n=f.requests,
        n_baseline=f.requests_baseline,
        log_e_breach=_finite(f.log_e_breach),
        log_e_proof=_finite(f.log_e_proof),
        log_e_needed=_finite(f.log_e_needed),
        missing=None if verdict is Verdict.PASS else f.missing,
        acceptable=verdict is Verdict.INSUFFICIENT and not weighed.hindrance and within and f.acceptable,
        guarantee="asymptotic" if isinstance(gate, MeanIncrease) else "anytime",
        reason=text,
    )


def _ruling(about: _About, weighed: Weighed, *, within: bool) -> tuple[Verdict, str]:
    """The verdict and what the sentence goes on with."""
    f, least = weighed.finding, about.policy.min_requests
    if weighed.breached:
        # The evidence is of the minutes since the fault began; the numbers are those of the whole phase.
        return Verdict.BREACH, "the latest requests prove a breach, whatever those before them were like" if within else ""
    if weighed.problem:
        return Verdict.ERROR, weighed.problem
    if f.requests <= 0:
        who = " and ".join(weighed.absent)
        return (
            Verdict.INSUFFICIENT,
            f"no data: no series of the {who}" if who else f"no data: no {_things(about.gate)} in this phase yet",
        )
    if weighed.hindrance:
        return Verdict.INSUFFICIENT, weighed.hindrance
    if weighed.requests < least:
        return Verdict.INSUFFICIENT, f"{weighed.requests:,.0f} of {least:,} requests"
    if f.met:
        proven = "proven" if f.multiple == 1 else f"proven at {f.multiple:g} times the margin, as this phase asks"
        return Verdict.PASS, proven if f.need is Need.PROOF else "no proof is asked for, and nothing speaks against it"
    if f.beyond:
        return Verdict.INSUFFICIENT, "over the limit, but not yet beyond what chance does in a whole rollout"
    if f.need is Need.LEANING:
        return Verdict.INSUFFICIENT, "the data speak against it, not yet beyond chance"
    if f.missing is None:
        return Verdict.INSUFFICIENT, "not proven" if within else "over the limit, but not beyond chance yet"
    rate = f.requests / max(about.age.total_seconds(), 1e-9)
    return Verdict.INSUFFICIENT, f"not proven yet: about {f.missing:,.0f} more requests (about {span(f.missing / rate)})"


def _unit(gate: Gate) -> tuple[Unit, float]:
    """The unit of a gate's numbers, and what the engine's scale has more: 1 for ratios to the baseline."""
    match gate:
        case RateLimit():
            return "share", 0.0
        case QuantileLimit():
            return "seconds", 0.0
        case _:
            return "increase", 1.0


BAD = {
    "error_ratio": "failed",
    "timeout_ratio": "timed out",
    "availability": "got no answer",
    "fallback_success": "failed",
    "custom": "were bad",
}


def _sentence(gate: Gate, observed: float | None, interval: tuple[float, float] | None, limit: float, f: Finding) -> str:
    if observed is None:
        return "a breach was proven before this phase began"
    n = f"{f.requests:,.0f}"
    match gate:
        case RateLimit():
            return f"{pct(observed)} of {n} {_things(gate)} {BAD[gate.indicator]}{_range(interval, pct)}, limit {pct(limit)}"
        case QuantileLimit():
            return f"{_quantile(gate)} is {seconds(observed)}{_range(interval, seconds)}, limit {seconds(limit)}, on {n} requests"
        case QuantileIncrease():
            what = _quantile(gate)
        case MeanIncrease():
            what = "cost per request" if gate.indicator == "cost_per_request" else "the mean"
        case _:
            raise TypeError(f"{gate.kind} is no statistical gate")
    side = "above" if observed >= 0 else "below"
    return f"{what} is {pct(abs(observed))} {side} the baseline{_range(interval, _change)}, limit {pct(limit)} above, on {n} requests"


def _things(gate: Gate) -> str:
    """What a gate counts."""
    match gate:
        case RateLimit(indicator="fallback_success"):
            return "fallbacks"
        case RateLimit(indicator="custom"):
            return "events"
        case _:
            return "requests"


def _quantile(gate: QuantileLimit | QuantileIncrease) -> str:
    name = f"p{gate.quantile * 100:g}"
    return (
        name
        if gate.indicator == "latency"
        else f"{name} of {'the time to the first token' if gate.indicator == 'ttft' else 'it'}"
    )


def _range(interval: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    return "" if interval is None else f" ({show(interval[0])} to {show(interval[1])})"


def _finite(value: float) -> float | None:
    """JSON has no word for infinity."""
    return value if math.isfinite(value) else None


# --- gates that are read off one measurement --------------------------------------------------------------------------------------


def _sampled(about: _About, seen: Sampled) -> GateResult:
    gate = about.gate
    match gate:
        case AtLeast():
            return _at_least(about, gate, seen.candidate.total)
        case AtMost():
            return _at_most(about, gate, seen.candidate.total)
        case Silence():
            return _silence(about, seen)
        case SampleRatio():
            return _sample_ratio(about, gate, seen)
        case RateLimit() | QuantileLimit() | QuantileIncrease() | MeanIncrease():
            raise TypeError(f"a {gate.kind} is judged from counted traffic, not from a sample")
        case _:
            assert_never(gate)


def _at_least(about: _About, gate: AtLeast, seen: float) -> GateResult:
    # increase() extrapolates, so that one event can read as 0.97.
    verdict = Verdict.PASS if round(seen) >= gate.times else Verdict.INSUFFICIENT
    how = (
        "the gate check exercises it once nothing else is lacking" if gate.exercise else "`penstock drill fallback` exercises it"
    )
    hint = f"; {how}" if verdict is not Verdict.PASS and gate.indicator == "fallbacks" else ""
    return about.result(verdict, f"seen {seen:.0f} times, needed {gate.times}{hint}", observed=seen, limit=float(gate.times))


def _at_most(about: _About, gate: AtMost, seen: float) -> GateResult:
    verdict = Verdict.PASS if seen <= gate.times else Verdict.BREACH
    return about.result(verdict, f"{seen:g} now, at most {gate.times:g}", observed=seen, limit=float(gate.times))


def _silence(about: _About, seen: Sampled) -> GateResult:
    candidate, baseline = seen.candidate.total, _total(seen.baseline)
    phase = about.phase
    if candidate > 0:
        return about.result(Verdict.PASS, f"{candidate:,.0f} requests seen", observed=candidate, n=candidate, n_baseline=baseline)
    share = phase.weight / 100_000
    # In a live phase the baseline sees the rest of the units; in a shadow phase it sees them all.
    expected = baseline * share / (1 - share) if phase.live_weight and share < 1 else baseline * share
    if expected >= SILENT_EXPECTED and about.age >= min(SILENT_AFTER, phase.bake / 2):
        text = f"silent: no requests seen where about {expected:,.0f} were expected"
        return about.result(Verdict.BREACH, text, observed=0.0, n_baseline=baseline)
    return about.result(Verdict.INSUFFICIENT, "no requests of the candidate yet", observed=0.0, n_baseline=baseline)


SPLIT_ALPHA = 1e-3
"""Chance of a false alarm of the split per requests-are-units look; it only holds, and people see it."""

CLUSTER = 20.0
"""Requests that one unit is allowed for: a share of units varies by so many times more than a share of requests."""


def _sample_ratio(about: _About, gate: SampleRatio, seen: Sampled) -> GateResult:
    """
    Hoeffding's bound for the candidate's share, with `CLUSTER` requests a unit.

    Source:
        Hoeffding 1963 for means of independent terms in [0, 1]: P(|mean - p| >= t) <= 2 exp(-2 n t^2). The relative form used here is Chernoff's for the
        binomial, exp(-n KL(observed, bound)), at the nearer end of the tolerated shares.
    """
    c, b = seen.candidate.total, _total(seen.baseline)
    n, asked = c + b, about.phase.weight / 100_000
    low, high = asked / (1 + gate.tolerance), min(asked * (1 + gate.tolerance), 1.0)
    observed = c / n if n > 0 else None
    if observed is None:
        return about.result(Verdict.INSUFFICIENT, "no requests yet", limit=asked, unit="share")
    text = f"the candidate got {pct(observed)} of {n:,.0f} requests, asked for {pct(asked)}"
    nearest = min(max(observed, low), high)
    surprise = n / CLUSTER * _kl(observed, nearest)
    verdict = Verdict.ERROR if surprise > math.log(1 / SPLIT_ALPHA) else Verdict.PASS
    if verdict is Verdict.ERROR:
        text += ": the split is not the one that was asked for, so the arms cannot be compared"
    return about.result(verdict, text, observed=observed, limit=asked, n=c, n_baseline=b, unit="share")


def _kl(p: float, q: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(q), nats."""
    if p == q:
        return 0.0
    if q <= 0 or q >= 1:
        return math.inf
    high = p * math.log(p / q) if p > 0 else 0.0
    low = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return high + low


def _total(counts: Counts | None) -> float:
    return 0.0 if counts is None else counts.total


# --- numbers in words -------------------------------------------------------------------------------------------------------------


def pct(ratio: float, *, sign: bool = False) -> str:
    """0.0123 as ``1.23%``; less than a thousandth of a percent is 0."""
    ratio = 0.0 if abs(ratio) < 1e-5 else ratio
    return f"{ratio * 100:+.3g}%" if sign else f"{ratio * 100:.3g}%"


def shown(value: float | None, unit: Unit) -> str:
    """A number of a result in its unit; "" for none."""
    if value is None:
        return ""
    value = round(value, 9)  # an interval from 0 is written as 0, not as 1e-17
    match unit:
        case "share":
            return pct(value)
        case "increase":
            return pct(value, sign=True)
        case "seconds":
            return seconds(value)
        case "count":
            return f"{value:,g}"


def _change(ratio: float) -> str:
    """0.0123 as ``+1.23%``; more than tenfold is not told to the digit."""
    return pct(ratio, sign=True) if ratio <= 10 else "over +1000%"


def seconds(value: float) -> str:
    """0.5 as ``0.5 s``."""
    return f"{value:.3g} s"


def span(length_s: float) -> str:
    """A length of time in the unit that people would use: ``47 s``, ``12 min``, ``3 h``, ``2 d``."""
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if length_s >= 2 * size:
            return f"{length_s / size:,.0f} {unit}"
    return f"{max(length_s, 0.0):.0f} s"
