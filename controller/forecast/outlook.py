"""
A plan on today's traffic: what each phase can prove and catch, where it cannot work, and what would help.

It stands between `power`, which knows single gates, and the command line. Nothing is simulated: times are computed from the
engine's formulas. Its one rule: where something does not work, the remedy stands beside it as a number that can be written into
the file.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

import numpy as np

from controller.core.evidence.config import Gate as Term
from controller.core.evidence.config import Need, QuantileLimit, QuantileMargin, RateLimit
from controller.core.evidence.terms import Action, configs_of
from controller.core.plan import AtLeast, GateMode, Mode, Phase, Plan
from controller.core.traffic import Kind, columns_of
from controller.forecast.baseline import Baseline, Durations, Rate
from controller.forecast.generate import Weather, World
from controller.forecast.power import LONGEST_S, Catch, Flow, Power, Proof, key_of
from flagspec import WEIGHT_MAX

HISTORY = timedelta(hours=6)
HISTORY_SEED = 7
"""The past of a baseline that was given in numbers is invented once, the same for everybody."""

SURE = 0.9
"""Probability of what is promised: proven within, caught within."""

SNAP = 0.03
"""A threshold this near to a bucket edge (relative) is counted at it."""


class Verdict(StrEnum):
    WORKS = "works"
    """A good candidate is proven within each phase's bake, nine times out of ten."""
    WAITS = "waits"
    """Some phase lasts longer than its bake, and how long is known."""
    STUCK = "stuck"
    """Some phase is never left: its gates cannot be proven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """
    The smallest regression that one gate catches while the phase lasts, nine times out of ten.

    Args:
        size: In the gate's unit: share of bad events, seconds, or increase over the baseline (0.3 is 30 % more).
        after: Typical time until then.
        exposed: Users' requests that the candidate has answered by then; 0 where traffic is mirrored.
    """

    size: float
    after: timedelta
    exposed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutlook:
    """
    One enforced gate in one phase.

    Args:
        need: What it asks for.
        unit: ``share``, ``seconds`` or ``increase``.
        limit: In that unit.
        proven: Median and 90 % of the time until a candidate like the baseline is proven; None if never. Zero where no proof is
            asked.
        requests: Time until `min_requests` of its own requests were seen.
        caught: See there; None if nothing that is tried is caught in time.
    """

    gate: str
    need: Need
    unit: str
    limit: float
    proven: tuple[timedelta, timedelta] | None
    requests: timedelta | None
    caught: Caught | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseOutlook:
    """
    One phase.

    Args:
        candidate_rps, baseline_rps: Requests a second.
        requests: Of the candidate within the bake.
        proven: Median and 90 % of the time until every gate may pass; None if never.
        last: The gate that is the last to pass; "" where none is asked for a proof or a number of requests.
        waits_for: ``proof`` or ``min_requests``: what that gate waits for.
        lasts: Median and 90 % of how long the phase lasts, to the gate check that leaves it; None if it never ends.
        gates: In the plan's order.
        in_time: A good candidate passes within the bake, nine times out of ten.
        remedies: What would let it; () where it does, or where nothing here helps.
    """

    name: str
    mode: Mode
    share: float
    bake: timedelta
    candidate_rps: float
    baseline_rps: float
    requests: float
    proven: tuple[timedelta, timedelta] | None
    last: str
    waits_for: str
    lasts: tuple[timedelta, timedelta] | None
    approval: str
    gates: tuple[GateOutlook, ...]
    in_time: bool
    remedies: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in plan or traffic that a person should know. `stops`: no candidate can get through with it."""

    about: str
    text: str
    stops: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`finish` is the median and the 90 % sum of all phases; None if some phase never ends."""

    verdict: Verdict
    phases: tuple[PhaseOutlook, ...]
    problems: tuple[Problem, ...]
    finish: tuple[timedelta, timedelta] | None


def outlook(plan: Plan, baseline: Baseline) -> Outlook:
    """
    Args:
        plan: The rollout's plan.
        baseline: What the baseline does today.

    Raises:
        ValueError: A limit is out of range for the engine.
    """
    able = _Able(plan, baseline)
    phases: tuple[PhaseOutlook, ...] = ()
    for index in range(len(plan.phases)):
        phases = (*phases, able.phase(index, phases))
    problems = (*able.problems(), *_events(plan, baseline, phases))
    finish = _sum([p.lasts for p in phases])
    verdict = Verdict.WORKS
    if not all(p.in_time for p in phases):
        verdict = Verdict.WAITS
    if finish is None or any(p.stops for p in problems):
        verdict = Verdict.STUCK
    return Outlook(verdict=verdict, phases=phases, problems=problems, finish=finish)


class _Able:
    """The gates that act, each with its power on today's traffic."""

    def __init__(self, plan: Plan, baseline: Baseline) -> None:
        self.plan = plan
        self.baseline = baseline
        counted = [q for q in baseline.questions if q.key in baseline.parts]
        configs = configs_of(plan, counted, {q.key: baseline.edges[q.key] for q in counted if q.kind is Kind.HISTOGRAM})
        rows, step = _history(plan, baseline)
        row = {c: i for i, c in enumerate(columns_of(baseline.questions, baseline.edges))}
        self.powers = [
            Power(config, baseline, rows[:, [row[c] for c in config.columns]], step.total_seconds())
            for name, config in configs.items()
            if not name.startswith(Action.TELL)
        ]
        self.of = {g.name: (power, g) for power in self.powers for g in power.gates}
        self.order = [g.name for g in plan.gates if g.name in self.of]
        self.carried: dict[int, tuple[Flow, float]] = {}
        """What the mirrored phase before a phase brings along: its flow and how long it lasted (seconds)."""

    def flow(self, phase: int, share: float | None = None) -> Flow:
        p, rps = self.plan.phases[phase], self.baseline.rps
        w = p.weight / WEIGHT_MAX if share is None else share
        return Flow(candidate=rps * w, baseline=rps if p.mode is Mode.SHADOW else rps * (1 - w))

    def phase(self, index: int, before: Sequence[PhaseOutlook]) -> PhaseOutlook:
        phase, flow = self.plan.phases[index], self.flow(index)
        bake_s = phase.bake.total_seconds()
        if before and before[-1].mode is Mode.SHADOW:
            length = before[-1].lasts or (before[-1].bake,)
            self.carried[index] = (self.flow(index - 1), length[0].total_seconds())
        clock = self.clock(index, flow)
        proven = clock.both()
        last = clock.last()
        lasts = None if proven is None else (self._left(max(proven[0], phase.bake)), self._left(max(proven[1], phase.bake)))
        in_time = proven is not None and proven[1] <= max(phase.bake, self.plan.policy.every)
        return PhaseOutlook(
            name=phase.name,
            mode=phase.mode,
            share=phase.weight / WEIGHT_MAX,
            bake=phase.bake,
            candidate_rps=flow.candidate,
            baseline_rps=flow.baseline,
            requests=flow.candidate * bake_s,
            proven=proven,
            last=last[0],
            waits_for=last[1],
            lasts=lasts,
            approval="" if phase.approval is None else f"{phase.approval.count} from {' or '.join(phase.approval.groups)}",
            gates=self.gates(index, flow, clock, phase.bake if lasts is None else lasts[0]),
            in_time=in_time,
            remedies=() if in_time else self.remedies(index, clock),
        )

    def judged(self, phase: int) -> list[str]:
        """The acting statistical gates of a phase."""
        of_phase = {g.name for g in self.plan.gates_of(phase)}
        return [n for n in self.order if n in of_phase]

    def gates(self, index: int, flow: Flow, clock: "Clock", within: timedelta) -> tuple[GateOutlook, ...]:
        phase = self.plan.phases[index]
        caught: dict[str, Catch] = {}
        for power in self.powers if within else []:
            caught |= power.catches(index, flow, within.total_seconds(), SURE)
        found = []
        for name in self.judged(index):
            power, term = self.of[name]
            unit, limit, shift = unit_of(term)
            catch, proof = caught.get(name), clock.proofs_alone(name)
            exposed = flow.candidate if phase.mode is Mode.LIVE else 0.0
            found.append(
                GateOutlook(
                    gate=name,
                    need=power.need(term, index),
                    unit=unit,
                    limit=limit,
                    proven=proof.both(),
                    requests=timedelta(seconds=clock.least[name]) if clock.least[name] < LONGEST_S else None,
                    caught=None
                    if catch is None
                    else Caught(size=catch.size - shift, after=timedelta(seconds=catch.after_s), exposed=catch.after_s * exposed),
                )
            )
        return tuple(found)

    def clock(self, phase: int, flow: Flow, *, carried: tuple[Flow, float] | None = None) -> "Clock":
        """When the gates of a phase have earned their passes. `carried`: other mirrored evidence than the plan's own."""
        carried = carried or self.carried.get(phase)
        proofs: dict[str, Proof] = {}
        for power in self.powers:
            proofs |= power.proofs(phase, flow)
            if carried is not None:
                multiple = power.multiple(phase)
                mirrored = power.proofs(max(phase - 1, 0), carried[0], multiple)
                proofs |= {
                    n: replace(proofs[n], offset=proofs[n].offset + p.slope * carried[1], head=max(p.slope * carried[1], 0.0))
                    for n, p in mirrored.items()
                }
        least, asked = {}, {}
        for name in self.judged(phase):
            power, term = self.of[name]
            least[name] = self.plan.policy.min_requests / max(power.part(term).portion * flow.candidate, 1e-12)
            if power.need(term, phase) is Need.PROOF:
                asked[name] = proofs[name]
        return Clock(proofs=asked, least=least)

    def _left(self, after: timedelta) -> timedelta:
        """A phase is left at a gate check."""
        every = self.plan.policy.every
        return math.ceil(after / every - 1e-9) * every

    # --- remedies --------------------------------------------------------------------------------------------------------------

    def remedies(self, index: int, clock: "Clock") -> tuple[str, ...]:
        """What lets a candidate like the baseline pass within the bake; the last one only says how long it takes."""
        phase, found = self.plan.phases[index], []
        if (share := self._larger_share(index)) is not None:
            found.append(share)
        if (shadow := self._shadow(index)) is not None:
            found.append(shadow)
        slowest, least = clock.slowest(), self.plan.policy.min_requests
        # rounded down, so that the bake has a little room
        seen = math.floor(0.95 * least * phase.bake.total_seconds() / max(clock.least[slowest], 1e-9) / 10) * 10
        fewer = replace(clock, least={n: t * seen / least for n, t in clock.least.items()})
        if LEAST <= seen < least and fewer.sure_by(phase.bake):
            found.append(f"min_requests: {seen}")
        proven = clock.both()
        if proven is not None:
            if proven[1] > HOPELESS * phase.bake and phase.mode is Mode.LIVE and index + 1 < len(self.plan.phases) and phase.bake:
                found.append("leave it out")
            found.append(f"wait for it (bake: {nice(proven[1])})")
        return tuple(found)

    def _larger_share(self, index: int) -> str | None:
        """The smallest share with which the bake is long enough, instead of the next phase's if need be."""
        phase, now = self.plan.phases[index], self.plan.phases[index].weight / WEIGHT_MAX
        later = [p.weight / WEIGHT_MAX for p in self.plan.phases[index + 1 :] if p.mode is Mode.LIVE]
        if phase.mode is Mode.SHADOW:
            top = 1.001
        elif not later:
            return None
        else:
            top = later[1] if len(later) > 2 else later[0]
        shares = [s for s in SHARES if now < s < top]
        # more traffic never takes longer: the first that is enough, by halves
        found = bisect_left(shares, True, key=lambda s: self.clock(index, self.flow(index, s)).sure_by(phase.bake))
        if found == len(shares):
            return None
        instead = phase.mode is Mode.LIVE and shares[found] >= later[0]
        return f"traffic: {shares[found] * 100:g}%" + (f" instead of {self.plan.phases[index + 1].name}'s" if instead else "")

    def _shadow(self, index: int) -> str | None:
        """Mirrored evidence counts in the first phase after it, and exposes nobody."""
        phase = self.plan.phases[index]
        first_live = phase.mode is Mode.LIVE and all(p.mode is Mode.SHADOW for p in self.plan.phases[:index])
        if not first_live:
            return None
        rps, flow = self.baseline.rps, self.flow(index)
        mirrored = Flow(candidate=rps, baseline=rps)
        for length in LENGTHS:
            if self.clock(index, flow, carried=(mirrored, length.total_seconds())).sure_by(phase.bake):
                before = "a shadow phase before it" if index == 0 else self.plan.phases[index - 1].name
                return f"{before} with traffic: 100%, bake: {nice(length)}"
        return None

    # --- what is wrong ---------------------------------------------------------------------------------------------------------

    def problems(self) -> tuple[Problem, ...]:
        found: list[Problem] = []
        for gate in self.plan.gates:
            if gate.mode is not GateMode.ENFORCE or gate.name not in self.of:
                continue
            _, term = self.of[gate.name]
            found += _broken_today(term, self.baseline)
            found += _coarse(term, self.baseline)
        unread = {
            q.key: self.baseline.problems.get(q.key, "no data")
            for q in self.baseline.questions
            if q.key not in self.baseline.parts
        }
        found += [Problem(about=key, text=f"cannot be read: {why}", stops=True) for key, why in unread.items()]
        found += _narrower(self.plan, self.of, self.baseline)
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """
    When the gates of a phase pass, a candidate like the baseline given.

    Args:
        proofs: By gate; gates that ask for none are left out.
        least: Seconds until a gate has seen `min_requests`, by gate.
    """

    proofs: Mapping[str, Proof]
    least: Mapping[str, float]

    def chance(self, t: float) -> float:
        """Probability that all of them pass at a time (seconds)."""
        if any(t < least for least in self.least.values()):
            return 0.0
        return math.prod(proof.stands(t) for proof in self.proofs.values())

    def at(self, probability: float) -> float | None:
        """Seconds until that probability is reached; None if nobody would wait so long."""
        if self.chance(LONGEST_S) < probability:
            return None
        low, high = 0.0, LONGEST_S
        for _ in range(34):
            middle = (low + high) / 2
            low, high = (low, middle) if self.chance(middle) >= probability else (middle, high)
        return high

    def both(self) -> tuple[timedelta, timedelta] | None:
        median, sure = self.at(0.5), self.at(SURE)
        if sure is None or median is None:
            return None
        return timedelta(seconds=median), timedelta(seconds=sure)

    def sure_by(self, length: timedelta) -> bool:
        return self.chance(length.total_seconds()) >= SURE

    def only(self, name: str) -> "Clock":
        return Clock(proofs={n: p for n, p in self.proofs.items() if n == name}, least={name: self.least[name]})

    def proofs_alone(self, name: str) -> "Clock":
        """The proof of one gate, however few requests it takes."""
        return replace(self.only(name), least={name: 0.0})

    def last(self) -> tuple[str, str]:
        """The gate that passes last, and whether it waits for its proof or for requests; nothing where no gate is judged."""
        if not self.least:
            return "", ""
        times = {n: self.only(n).at(SURE) or math.inf for n in self.least}
        name = max(times, key=lambda n: times[n])
        proof = self.proofs_alone(name).at(SURE)
        return name, "proof" if proof is None or proof > self.least[name] else "min_requests"

    def slowest(self) -> str:
        return max(self.least, key=lambda n: self.least[n])


SHARES = (
    *(k / 1000 for k in range(1, 10)),
    *(k / 100 for k in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 75, 100)),
)

ROOM_RATE, ROOM_TIME = 3.0, 1.2
"""A limit so many times what the baseline does today is proven in good time."""

HOPELESS = 5
"""A phase that takes so many times its bake is in the way."""

LEAST = 100
"""Fewer requests than that are nobody's idea of enough."""

LENGTHS = tuple(timedelta(minutes=m) for m in (15, 30, 60, 120, 180, 240, 360, 480, 720, 1440, 2880, 4320, 10080))


def nice(length: timedelta) -> str:
    """A length rounded up to what people write into a plan: ``45m``, ``1h45m``, ``20h``, ``3d``."""
    minutes = length.total_seconds() / 60
    if minutes <= 60:
        return f"{max(math.ceil(minutes / 5 - 1e-9), 1) * 5}m" if minutes <= 55 else "1h"
    if minutes <= 8 * 60:
        hours, rest = divmod(math.ceil(minutes / 15 - 1e-9) * 15, 60)
        return f"{hours}h" + (f"{rest}m" if rest else "")
    hours = math.ceil(minutes / 60 - 1e-9)
    return f"{hours}h" if hours <= 72 else f"{math.ceil(hours / 24)}d"


def unit_of(term: Term) -> tuple[str, float, float]:
    """The unit that people read a gate in, its limit in it, and what the engine's scale has more."""
    match term:
        case RateLimit():
            return "share", term.limit, 0.0
        case QuantileLimit():
            return "seconds", term.limit, 0.0
        case _:
            return "increase", term.margin, 1.0


def _history(plan: Plan, baseline: Baseline) -> tuple["np.ndarray[tuple[int, ...], np.dtype[np.float64]]", timedelta]:
    if baseline.history:
        return np.array(baseline.history, dtype=np.float64), baseline.history_step
    step = plan.policy.block
    world = World(baseline, Weather(), (HISTORY_SEED,))
    return world.history(max(math.floor(HISTORY / step), 1), step.total_seconds()), step


def _sum(lengths: Sequence[tuple[timedelta, timedelta] | None]) -> tuple[timedelta, timedelta] | None:
    known = [x for x in lengths if x is not None]
    if len(known) < len(lengths):
        return None
    return sum((x[0] for x in known), timedelta()), sum((x[1] for x in known), timedelta())


def _broken_today(term: Term, baseline: Baseline) -> list[Problem]:
    """Limits that the baseline itself does not keep."""
    part = baseline.parts[key_of(term)]
    if isinstance(term, RateLimit) and isinstance(part, Rate) and part.bad >= term.limit:
        text = (
            f"the baseline itself has {part.bad * 100:.3g}% today, the limit is {term.limit * 100:.3g}%: "
            "no candidate like it can pass; "
            f"mend the baseline first, or write a limit with room ({ROOM_RATE * part.bad * 100:.2g}%)"
        )
        return [Problem(about=term.name, text=text, stops=True)]
    if isinstance(term, QuantileLimit) and isinstance(part, Durations) and (now := part.shape.quantile(term.q)) >= term.limit:
        text = (
            f"the baseline's p{term.q * 100:g} is {now:.3g} s today, the limit is {term.limit:.3g} s: "
            "no candidate like it can pass; "
            f"mend the baseline first, or write a limit with room ({ROOM_TIME * now:.2g} s)"
        )
        return [Problem(about=term.name, text=text, stops=True)]
    return []


def _coarse(term: Term, baseline: Baseline) -> list[Problem]:
    """Buckets that cannot tell a margin, or a limit, from what lies beside it."""
    if not isinstance(term, QuantileLimit | QuantileMargin):
        return []
    edges, part = baseline.edges[term.histogram], baseline.parts[term.histogram]
    assert isinstance(part, Durations)
    if isinstance(term, QuantileLimit):
        where, at = f"limit {term.limit:g} s", term.limit
    else:
        x = part.shape.quantile(term.q)
        at = x * (1 + term.margin)
        where = f"p{term.q * 100:g} {x:.3g} s and {at:.3g} s, {term.margin * 100:g}% more"
    if at > edges[-1]:
        text = f"{where}: beyond the last bucket edge {edges[-1]:g} s, so it cannot be counted; add a bucket edge at {at:.3g} s"
        return [Problem(about=term.name, text=text, stops=True)]
    near = min(edges, key=lambda e: abs(math.log(e / at)))
    below, above = max((e for e in edges if e < at), default=0.0), min(e for e in edges if e >= at)
    if isinstance(term, QuantileMargin) and not any(x * (1 - SNAP) <= e <= at * (1 + SNAP) for e in edges):
        text = (
            f"{where}, lie in one bucket ({below:g} s to {above:g} s): too coarse for the margin; add a bucket edge at {at:.3g} s"
        )
        return [Problem(about=term.name, text=text, stops=False)]
    if abs(math.log(near / at)) > SNAP and above / max(below, 1e-9) > 1 + 2 * max(getattr(term, "margin", 0.1), 0.1):
        text = (
            f"{where}: lies between the bucket edges {below:g} s and {above:g} s and is interpolated; "
            f"a bucket edge at {at:.3g} s makes it exact"
        )
        return [Problem(about=term.name, text=text, stops=False)]
    return []


def _narrower(plan: Plan, of: dict[str, tuple[Power, Term]], baseline: Baseline) -> list[Problem]:
    """Margins that a limit on the same quantile makes narrower than they read."""
    terms = [t for _, t in of.values()]
    found = []
    for limit in (t for t in terms if isinstance(t, QuantileLimit)):
        for margin in (t for t in terms if isinstance(t, QuantileMargin) and t.q == limit.q):
            part, other = baseline.parts[limit.histogram], baseline.parts[margin.histogram]
            if limit.histogram.partition("{")[0] != margin.histogram.partition("{")[0]:
                continue
            assert isinstance(part, Durations) and isinstance(other, Durations)
            now = part.shape.quantile(limit.q)
            left = limit.limit / now - 1
            if 0 < left < margin.margin:
                text = (
                    f"the baseline's p{limit.q * 100:g} is {now:.3g} s, so the limit {limit.limit:.3g} s leaves "
                    f"{left * 100:.2g}% of the {margin.margin * 100:g}% that {margin.name} allows"
                )
                found.append(Problem(about=limit.name, text=text, stops=False))
    return found


def _events(plan: Plan, baseline: Baseline, phases: Sequence[PhaseOutlook]) -> list[Problem]:
    """Things that must have happened, and may not have by themselves."""
    found = []
    for gate in plan.gates:
        if not isinstance(gate, AtLeast) or gate.indicator != "fallbacks" or gate.mode is not GateMode.ENFORCE:
            continue
        seen = 0.0
        for phase in phases:
            seen += phase.requests * baseline.fallbacks
            if phase.name == gate.by_phase:
                break
        # a Poisson law with this mean stays below `times` with more than 10 %
        if seen < 1e4 and _poisson_below(gate.times, seen) > 1 - SURE:
            text = (
                f"about {seen:.2g} fallbacks are to be expected by the end of {gate.by_phase}, {gate.times} needed: "
                "it will hold; exercise one deliberately"
            )
            found.append(Problem(about=gate.name, text=text, stops=False))
    return found


def _poisson_below(times: int, mean: float) -> float:
    term, total = math.exp(-mean), 0.0
    for k in range(times):
        total += term
        term *= mean / (k + 1)
    return total


__all__ = ["Caught", "Clock", "GateOutlook", "Outlook", "Phase", "PhaseOutlook", "Problem", "Verdict", "nice", "outlook"]
