"""
What a candidate may be like: the built-in scenarios by name, and those that a user writes as ``latency=1.3,errors=2%,after=2h``.

Its one rule: whether a scenario's candidate keeps the plan's limits is worked out from the plan and the baseline (`beyond`), not
from the scenario's name: what is too slow for one plan is fine for another.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from controller.core.plan import GateMode, MeanIncrease, Need, Plan, QuantileIncrease, QuantileLimit, RateLimit
from controller.core.traffic import question_of
from controller.forecast.baseline import Array, Baseline, Durations, Rate, Shape
from controller.forecast.generate import NO_EFFECT, Bursts, Effect, Weather, normal_cdf
from specfile import parse_duration, parse_ratio


class UnknownScenario(ValueError):
    """No scenario of that name, or a custom one that cannot be read; says what could be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Onset:
    """
    When the candidate begins to differ.

    Args:
        share: Of live traffic that it must have first, 0..1; 0 does not wait, and counts mirrored phases.
        after_s: How long after that, or after the beginning.
        ramp_s: How long it takes until all of the effect is there.
    """

    share: float = 0.0
    after_s: float = 0.0
    ramp_s: float = 0.0

    def strength(self, starts: Array, begun_s: float | None) -> Array:
        """
        Args:
            starts: Seconds since the rollout began.
            begun_s: When `share` was reached; None if it has not been.
        """
        if begun_s is None:
            return np.zeros(len(starts))
        age = starts - begun_s - self.after_s
        if self.ramp_s > 0:
            ramp: Array = np.clip(age / self.ramp_s, 0, 1)
            return ramp
        return (age >= -1e-6).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A candidate in its weather. `text` is the line that describes it."""

    name: str
    text: str
    effect: Effect = NO_EFFECT
    weather: Weather = field(default_factory=Weather)
    onset: Onset = field(default_factory=Onset)


GUSTS = Weather(
    cluster_shape=0.7,
    shared_bursts=Bursts(every_s=1500, mean_s=150, factor=8),
    private_bursts=Bursts(every_s=2400, mean_s=75, factor=8),
    private_sd=0.05,
    shared_sd=0.12,
)

_BUILT_IN = (
    Scenario(name="good", text="the same as the baseline"),
    Scenario(name="better", text="15% faster and 30% cheaper", effect=Effect(latency=0.85, cost=0.7)),
    Scenario(name="tolerable", text="5% slower and 4% dearer", effect=Effect(latency=1.05, cost=1.04)),
    Scenario(
        name="bursty",
        text="the same as the baseline, while failures of both come in bursts of eight times as many",
        weather=GUSTS,
    ),
    Scenario(
        name="incident-in-both",
        text="the same as the baseline; after 20 minutes 12% of both arms' requests fail for 8 minutes",
        weather=Weather(incident=(1200.0, 1680.0)),
    ),
    Scenario(name="slower", text="30% slower", effect=Effect(latency=1.3)),
    Scenario(name="slow-tail", text="5% of the requests take four times as long", effect=Effect(tail_share=0.05, tail=4.0)),
    Scenario(
        name="creeping",
        text="gets slower once it is live, by 60% within two hours",
        effect=Effect(latency=1.6),
        onset=Onset(share=1e-5, ramp_s=7200),
    ),
    Scenario(name="errors", text="2% of the requests fail", effect=Effect(bad={"error_ratio": 0.02})),
    Scenario(name="timeouts", text="1% of the requests time out", effect=Effect(bad={"timeout_ratio": 0.01})),
    Scenario(
        name="outage",
        text="30% fail and 10% time out, from five minutes after it is live",
        effect=Effect(bad={"error_ratio": 0.3, "timeout_ratio": 0.1, "availability": 0.1}),
        onset=Onset(share=1e-5, after_s=300),
    ),
    Scenario(
        name="late-fault",
        text="5% fail from two hours after the beginning",
        effect=Effect(bad={"error_ratio": 0.05}),
        onset=Onset(after_s=7200),
    ),
    Scenario(
        name="under-load",
        text="45% slower and 1.5% fail once it has half of the traffic",
        effect=Effect(latency=1.45, bad={"error_ratio": 0.015}),
        onset=Onset(share=0.5),
    ),
    Scenario(name="dearer", text="costs 25% more a request", effect=Effect(cost=1.25)),
    Scenario(name="silent", text="reports nothing once it is live", effect=Effect(silent=True), onset=Onset(share=1e-5)),
)

MARGIN = "at-the-margin"


def built_in(plan: Plan) -> dict[str, Scenario]:
    """All scenarios with a name. The one at the margin depends on the plan."""
    found = {s.name: s for s in _BUILT_IN}
    return found | {MARGIN: _at_the_margin(plan)}


def _at_the_margin(plan: Plan) -> Scenario:
    """The candidate that is exactly as slow as the tightest margin allows; without margins, fails exactly as often as a limit
    allows."""
    enforced = [g for g in plan.gates if g.mode is GateMode.ENFORCE]
    margins = [g for g in enforced if isinstance(g, QuantileIncrease) and g.indicator != "custom"]
    if margins:
        tightest = min(margins, key=lambda g: g.max_increase)
        effect, what = (
            Effect(latency=1 + tightest.max_increase),
            f"{tightest.max_increase * 100:g}% slower: exactly what {tightest.name} allows",
        )
        return Scenario(name=MARGIN, text=what, effect=effect)
    rates = [g for g in enforced if isinstance(g, RateLimit) and g.need is Need.PROOF]
    if rates:
        gate = rates[0]
        what = f"{gate.limit * 100:g}% bad: exactly what {gate.name} allows"
        return Scenario(name=MARGIN, text=what, effect=Effect(bad={gate.indicator: gate.limit}))
    costs = [g for g in enforced if isinstance(g, MeanIncrease)]
    factor = 1 + costs[0].max_increase if costs else 1.0
    text = (
        f"costs {(factor - 1) * 100:g}% more: exactly what {costs[0].name} allows"
        if costs
        else "the same as the baseline: no gate has a margin"
    )
    return Scenario(name=MARGIN, text=text, effect=Effect(cost=factor))


RATES = {
    "errors": "error_ratio",
    "timeouts": "timeout_ratio",
    "unavailable": "availability",
    "fallback-failures": "fallback_success",
    "custom": "custom",
}
KEYS = (
    "latency, ttft, cost (factors), tail=5%x4, errors, timeouts, unavailable, fallback-failures, custom (shares), silent, "
    "after, ramp (times), from-share, name"
)


def named(plan: Plan, text: str) -> Scenario:
    """
    Args:
        plan: Decides what is at the margin.
        text: The name of a built-in scenario, or ``key=value`` pairs with commas between them.

    Raises:
        UnknownScenario: It is neither.
    """
    known = built_in(plan)
    if text in known:
        return known[text]
    if "=" not in text and text != "silent":
        raise UnknownScenario(
            f"no scenario {text!r}; there are {', '.join(known)}, or write one as latency=1.3,errors=2%,after=2h"
        )
    return _custom(text)


def _custom(text: str) -> Scenario:
    found = Scenario(name=text, text=text)
    effect, onset, bad = found.effect, found.onset, {}
    for pair in text.split(","):
        key, _, value = (p.strip() for p in pair.partition("="))
        try:
            match key:
                case "latency":
                    effect = replace(effect, latency=_factor(value))
                case "ttft":
                    effect = replace(effect, ttft=_factor(value))
                case "cost":
                    effect = replace(effect, cost=_factor(value))
                case "tail":
                    share, _, times = value.partition("x")
                    effect = replace(effect, tail_share=_share(share), tail=_factor(times))
                case "silent":
                    effect = replace(effect, silent=True)
                case "after":
                    onset = replace(onset, after_s=parse_duration(value).total_seconds())
                case "ramp":
                    onset = replace(onset, ramp_s=parse_duration(value).total_seconds())
                case "from-share":
                    onset = replace(onset, share=_share(value))
                case "name":
                    found = replace(found, name=value)
                case _ if key in RATES:
                    bad[RATES[key]] = _share(value)
                case _:
                    raise UnknownScenario(f"scenario {text!r}: unknown {key!r}; there are {KEYS}")
        except UnknownScenario:
            raise
        except ValueError as exc:
            raise UnknownScenario(f"scenario {text!r}: {key}: {exc}") from exc
    return replace(found, effect=replace(effect, bad=bad), onset=onset)


def _factor(text: str) -> float:
    value = float(text)
    if not 0 < value < 1000:
        raise ValueError(f"{text!r} is not a factor (1.3 is 30% more)")
    return value


def _share(text: str) -> float:
    value = parse_ratio(text) if text.strip().endswith("%") else float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a share (2% or 0.02)")
    return value


# --- what is true of a candidate ------------------------------------------------------------------------------------------------

EXACT = 1e-4
"""A candidate that is exactly at its limit keeps it."""


def beyond(plan: Plan, baseline: Baseline, effect: Effect) -> tuple[str, ...]:
    """The enforced gates whose limits a candidate with this effect does not keep, in truth and in the long run; all, if it is
    silent."""
    found = []
    for gate in plan.gates:
        if gate.mode is not GateMode.ENFORCE or (question := question_of(gate)) is None:
            continue
        part = baseline.parts.get(question.key)
        if effect.silent:
            found.append(gate.name)
        elif isinstance(gate, RateLimit) and isinstance(part, Rate):
            if effect.bad.get(question.indicator, part.bad) > gate.limit * (1 + EXACT):
                found.append(gate.name)
        elif isinstance(gate, QuantileLimit) and isinstance(part, Durations):
            if slower_share(part.shape, effect, question.indicator, gate.limit_s) > (1 - gate.quantile) * (1 + EXACT):
                found.append(gate.name)
        elif isinstance(gate, QuantileIncrease) and isinstance(part, Durations):
            at_margin = part.shape.quantile(gate.quantile) * (1 + gate.max_increase)
            if slower_share(part.shape, effect, question.indicator, at_margin) > (1 - gate.quantile) * (1 + EXACT):
                found.append(gate.name)
        elif isinstance(gate, MeanIncrease) and effect.cost > (1 + gate.max_increase) * (1 + EXACT):
            found.append(gate.name)
    return tuple(found)


def slower_share(shape: Shape, effect: Effect, indicator: str, threshold_s: float) -> float:
    """Share of the candidate's requests that take longer than a threshold."""
    log_s = math.log(threshold_s) - math.log(effect.stretch(indicator))
    at = np.array([log_s, log_s - math.log(effect.tail)])
    plain, tail = (1 - normal_cdf(shape.z_at(at))).tolist()
    return float(plain + effect.tail_share * (tail - plain))


def listed(plan: Plan) -> Mapping[str, str]:
    """Name and line of each built-in scenario."""
    return {s.name: s.text for s in built_in(plan).values()}
