"""
The plan of a rollout: what a person wrote in `rollout.yaml`, checked and in plain values.

It is stored whole in the first row of the rollout's audit log, so that a replay needs no file. Its one rule: a plan that could
never end well cannot be constructed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from flagspec import WEIGHT_MAX, Variant


class PlanError(ValueError):
    """
    A plan that contradicts itself; the message names the part and the value.

    Args:
        message: What is wrong and, where it is known, what to write instead.
        where: The part of rollout.yaml that it is about, as keys and indexes.
    """

    def __init__(self, message: str, where: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.where = where


class Mode(StrEnum):
    SHADOW = "shadow"
    LIVE = "live"


class GateMode(StrEnum):
    """What a breach of a gate does: act, tell people (once, when it begins), or only be recorded and shown."""

    ENFORCE = "enforce"
    WARN = "warn"
    DRY_RUN = "dry_run"


class Need(StrEnum):
    """What a statistical gate asks for before traffic may be raised."""

    PROOF = "proof"
    """The data prove that the margin is kept."""
    LEANING = "leaning"
    """The data do not speak against it: for events so rare that a proof would take days."""


class OnBreach(StrEnum):
    ROLLBACK = "rollback"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """
    Who must say yes before a phase begins.

    Args:
        groups: An approver must belong to one of these.
        count: Distinct people needed (>= 1).
        expires: How long an approval counts after it was given.
        not_requester: The person who started the rollout does not count.
    """

    groups: tuple[str, ...]
    count: int = 1
    expires: timedelta = timedelta(hours=48)
    not_requester: bool = True

    def __post_init__(self) -> None:
        if not self.groups:
            raise PlanError("approval.from: names no group, so nobody could approve", ("from",))
        if self.count < 1:
            raise PlanError(f"approval.count: {self.count} is not at least 1", ("count",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """
    One step of the plan.

    Args:
        name: Unique within the plan.
        mode: SHADOW mirrors requests and exposes nobody; LIVE lets the candidate answer.
        weight: Share of units, 0..100000 thousandths of a percent (mirrored share in SHADOW).
        bake: How long the phase must have lasted before it can be left upwards.
        approval: Needed to *enter* the phase; None for no approval.
        max_bake: Time box: after so long without a proof, `Policy.on_unproven` says what is done; None waits on.
    """

    name: str
    mode: Mode
    weight: int
    bake: timedelta
    approval: Approval | None = None
    max_bake: timedelta | None = None

    @property
    def live_weight(self) -> int:
        return self.weight if self.mode is Mode.LIVE else 0

    @property
    def shadow_weight(self) -> int:
        return self.weight if self.mode is Mode.SHADOW else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """
    The share of bad requests is at most `limit` (0..1).

    Args:
        indicator: ``custom`` counts what `promql` selects, as ``bad`` and ``total`` or ``good`` and ``total``.
        limit: Of the bad ones, 0..1 (1 - 0.999 for an availability of 99.9 %).
        where: Label filters.
        mode: What a breach does.
        on_breach: Instead of the plan's; None for the plan's.
        need: What it asks for before traffic is raised.
        promql: Selectors of counters, for ``custom``.
    """

    name: str
    indicator: Literal["error_ratio", "timeout_ratio", "availability", "fallback_success", "custom"]
    limit: float
    where: Mapping[str, str] = field(default_factory=dict)
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach | None = None
    need: Need = Need.PROOF
    promql: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["rate_limit"] = "rate_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileLimit:
    """The quantile (0..1) of an indicator in seconds is at most `limit_s`: at most 1 - quantile of the requests are slower."""

    name: str
    indicator: Literal["latency", "ttft", "custom"]
    quantile: float
    limit_s: float
    where: Mapping[str, str] = field(default_factory=dict)
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach | None = None
    need: Need = Need.PROOF
    promql: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["quantile_limit"] = "quantile_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileIncrease:
    """The candidate's quantile exceeds that of the baseline beside it by at most `max_increase` (0.1 is 10 %)."""

    name: str
    indicator: Literal["latency", "ttft", "custom"]
    quantile: float
    max_increase: float
    where: Mapping[str, str] = field(default_factory=dict)
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach | None = None
    need: Need = Need.PROOF
    promql: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["quantile_increase"] = "quantile_increase"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanIncrease:
    """The candidate's mean exceeds that of the baseline beside it by at most `max_increase` (0.1 is 10 %); ``custom``: sum of `value` per `weight`."""

    name: str
    indicator: Literal["cost_per_request", "custom"]
    max_increase: float
    where: Mapping[str, str] = field(default_factory=dict)
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach | None = None
    need: Need = Need.PROOF
    promql: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["mean_increase"] = "mean_increase"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtLeast:
    """
    Something must have happened at least `times` times in the rollout before the phase `by_phase` is left.

    Args:
        exercise: Where nothing else is lacking, gate checks bring it about by a drill.
    """

    name: str
    indicator: Literal["fallbacks", "custom"]
    times: int
    by_phase: str
    where: Mapping[str, str] = field(default_factory=dict)
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach | None = None
    promql: Mapping[str, str] = field(default_factory=dict)
    exercise: bool = False
    kind: Literal["at_least"] = "at_least"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtMost:
    """
    Something may be the case at most `times` times at the moment of the look (firing alerts; ``custom``: any query with one number).

    A comparison of one number with another, at every look: it has no error probability, and says so.
    """

    name: str
    indicator: Literal["firing_alerts", "custom"]
    times: float
    where: Mapping[str, str] = field(default_factory=dict)
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach | None = None
    promql: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["at_most"] = "at_most"


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """
    The candidate reports requests of late, and is not silent while traffic that should reach it flows. Part of every plan; nobody has to
    write it. It keeps proofs of an hour ago from speaking for a candidate that nobody hears of any more.
    """

    name: str = "candidate-reports"
    where: Mapping[str, str] = field(default_factory=dict)
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach | None = None
    kind: Literal["silence"] = "silence"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRatio:
    """
    The split that is measured is the split that was asked for: part of every plan.

    Requests are not units (a busy user brings many), so the candidate's share may differ from the weight by a factor of 1 + `tolerance`;
    beyond it the arms are not comparable, and nothing is raised. It never rolls back: it says nothing about the candidate.
    """

    name: str = "traffic-split"
    tolerance: float = 0.25
    where: Mapping[str, str] = field(default_factory=dict)
    mode: GateMode = GateMode.ENFORCE
    on_breach: OnBreach | None = None
    kind: Literal["sample_ratio"] = "sample_ratio"


Gate = RateLimit | QuantileLimit | QuantileIncrease | MeanIncrease | AtLeast | AtMost | Silence | SampleRatio


class OnDrift(StrEnum):
    PAUSE = "pause"
    ROLLBACK = "rollback"


class OnUnproven(StrEnum):
    """What is done when a phase's `max_bake` has passed without a proof, although every estimate lies within its limit."""

    HOLD = "hold"
    ASK = "ask"
    ACCEPT = "accept"


class DeadManAction(StrEnum):
    HOLD = "hold"
    ROLLBACK = "rollback"


LEASE_LOOKS = 4
"""Looks of the guard that a lease lasts at least: it is renewed when a third of it is over, and two looks may be missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """
    How the gates are run.

    Args:
        every: Time between gate checks (which may raise).
        guard_every: Time between looks of the guard (which only lowers).
        confidence: 1 minus the probability that a whole rollout ends in a false rollback, and the same for a false promotion; within 0.5..1.
        block: How long the usual burst lasts: what one block of this length may say is capped, and proofs grow by blocks.
        evidence_required: Every statistical gate needs a proof, rare events too.
        on_unproven: What is done at the end of a phase's `max_bake`.
        ask: Whose approval accepts a step that is not proven; None unless `on_unproven` is ASK.
        min_requests: Requests of the candidate that a passing verdict needs.
        on_breach: What a breach does.
        on_drift: What a flag value that no decision explains does.
        tell_after: Gate checks in a row without usable evidence until people are told (>= 1).
        escalate_after: The same until it is an alarm, which is repeated after twice, four times, ... as many checks.
        dead_man_after: Without a gate check for so long, the guard does `dead_man_action`; None for never.
        dead_man_action: HOLD raises an alarm; ROLLBACK rolls back. Of a lapsed lease: HOLD pauses.
        lease: How long the flag's weights hold without a guard that looks; None for no end.
    """

    every: timedelta = timedelta(minutes=15)
    guard_every: timedelta = timedelta(seconds=15)
    confidence: float = 0.95
    block: timedelta = timedelta(seconds=60)
    evidence_required: bool = False
    on_unproven: OnUnproven = OnUnproven.HOLD
    ask: Approval | None = None
    min_requests: int = 500
    on_breach: OnBreach = OnBreach.ROLLBACK
    on_drift: OnDrift = OnDrift.PAUSE
    dead_man_after: timedelta | None = None
    dead_man_action: DeadManAction = DeadManAction.HOLD
    tell_after: int = 1
    escalate_after: int = 2
    lease: timedelta | None = None

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise PlanError(f"gates.confidence: {self.confidence} is not within 0.5..1 (1 excluded)", ("gates", "confidence"))
        if self.min_requests < 1:
            raise PlanError(f"gates.min_requests: {self.min_requests} is not at least 1", ("gates", "min_requests"))
        if self.every <= timedelta(0) or self.guard_every <= timedelta(0):
            raise PlanError("gates.every and gates.guard_every must be longer than 0 s")
        if self.block < self.guard_every:
            raise PlanError("gates.block is shorter than gates.guard_every: a block holds at least one look", ("gates", "block"))
        if (self.on_unproven is OnUnproven.ASK) != (self.ask is not None):
            raise PlanError("gates.on_unproven: ask needs the groups that are asked (gates.ask)", ("gates", "on_unproven"))
        if self.tell_after < 1:
            raise PlanError(f"gates.tell_after: {self.tell_after} is not at least 1", ("gates", "tell_after"))
        if self.escalate_after < self.tell_after:
            text = f"gates.escalate_after: {self.escalate_after} comes before gates.tell_after ({self.tell_after})"
            raise PlanError(text, ("gates", "escalate_after"))
        if self.dead_man_after is not None and self.dead_man_after <= self.every:
            text = "gates.dead_man: it must wait for longer than gates.every, or it would act between two checks that are in time"
            raise PlanError(text, ("gates", "dead_man"))
        if self.lease is not None and self.lease < LEASE_LOOKS * self.guard_every:
            text = f"gates.dead_man.lease: shorter than {LEASE_LOOKS} looks of the guard (gates.guard_every): it would lapse by a missed look"
            raise PlanError(text, ("gates", "dead_man", "lease"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeRule:
    """Days on which nothing is raised: each occurrence of an RFC 5545 rule, a whole day in `timezone`."""

    name: str
    rrule: str
    timezone: str
    kind: Literal["rrule"] = "rrule"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeSpan:
    """A span of wall-clock time in `timezone`, `starts` included and `ends` excluded, in which nothing is raised."""

    name: str
    starts: datetime
    ends: datetime
    timezone: str
    kind: Literal["span"] = "span"


Freeze = FreezeRule | FreezeSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    Everything a rollout was asked to do.

    Args:
        name: The rollout's name, as in ``metadata.name``.
        owner: Team that answers for it.
        environment, flag, unit: The flag that it moves and what the flag buckets.
        baseline, candidate: The two sides.
        profile: Which metric names the source has.
        arms: Labels of each arm's series (``baseline``, ``candidate``, ``shadow``), instead of the profile's.
        requests: Selector of what counts every request, instead of the profile's; "" for the profile's.
        phases: In order; weights of live phases rise and end at 100 %.
        gates: The rules, Silence included.
        policy: How they are run.
        freezes: When nothing is raised.
        slack_channel: Where notices go; "" for the default.
        labels: Free text of the user's.
        kept: Parts of the file that no decision rests on, as written: ``budget``, ``notify.slack.digest``.
    """

    name: str
    environment: str
    flag: str
    baseline: Variant
    candidate: Variant
    phases: tuple[Phase, ...]
    gates: tuple[Gate, ...]
    policy: Policy
    owner: str = ""
    unit: str = "user"
    profile: str = "router"
    arms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    requests: str = ""
    freezes: tuple[Freeze, ...] = ()
    slack_channel: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.baseline.model == self.candidate.model and dict(self.baseline.params) == dict(self.candidate.params):
            raise PlanError(
                f"candidate: {self.candidate.model!r} is the same as the baseline, there is nothing to compare", ("candidate",)
            )
        _check_phases(self.phases)
        _check_unique("slos", [gate.name for gate in self.gates])
        names = {phase.name for phase in self.phases}
        for gate in self.gates:
            if isinstance(gate, AtLeast) and gate.by_phase not in names:
                raise PlanError(f"events: by_phase {gate.by_phase!r} of {gate.name!r} is not a phase of this plan", ("events",))
        for index, phase in enumerate(self.phases):
            if not any(_measures(gate) for gate in self.gates_of(index)):
                raise PlanError(
                    f"phases: no enforced gate measures the candidate in {phase.name!r}, so nothing could pass there; add an SLO"
                    + (" (comparisons need a baseline, and at 100% none runs)" if phase.live_weight == WEIGHT_MAX else ""),
                    ("phases", index),
                )

    def gates_of(self, phase: int) -> tuple[Gate, ...]:
        """The gates that are judged while a phase lasts: AtLeast from its phase on, comparisons as long as a baseline runs."""
        order = {p.name: i for i, p in enumerate(self.phases)}
        alone = self.phases[phase].live_weight == WEIGHT_MAX
        return tuple(
            g
            for g in self.gates
            if not (isinstance(g, AtLeast) and order[g.by_phase] > phase)
            and not (isinstance(g, QuantileIncrease | MeanIncrease) and alone)
            and not (isinstance(g, SampleRatio) and (alone or self.phases[phase].mode is Mode.SHADOW))
        )

    def approvals_of(self, entering: int, *, unproven: bool) -> tuple[Approval, ...]:
        """Whose approvals entering a phase needs: the phase's own, and, where its proof is lacking, those of the people the plan asks then."""
        asked = (self.phases[entering].approval, self.policy.ask if unproven else None)
        return tuple(a for a in asked if a is not None)

    def gates_before_start(self) -> tuple[Gate, ...]:
        """The gates that can be judged before the candidate has seen any traffic: what may be the case at most so often."""
        return tuple(g for g in self.gates if isinstance(g, AtMost))


def _measures(gate: Gate) -> bool:
    """Whether a pass of this gate needs requests of the candidate."""
    return gate.mode is GateMode.ENFORCE and isinstance(gate, RateLimit | QuantileLimit | QuantileIncrease | MeanIncrease)


def _check_phases(phases: tuple[Phase, ...]) -> None:
    if not phases:
        raise PlanError("phases: a plan needs at least one phase", ("phases",))
    _check_unique("phases", [phase.name for phase in phases])
    highest, live = 0, False
    for index, phase in enumerate(phases):
        at = ("phases", index)
        if not 0 < phase.weight <= WEIGHT_MAX:
            raise PlanError(
                f"phases: traffic of {phase.name!r} is {phase.weight / 1000:g}%, not within 0%..100% (0 excluded)",
                (*at, "traffic"),
            )
        if phase.bake < timedelta(0):
            raise PlanError(f"phases: bake of {phase.name!r} is negative", (*at, "bake"))
        if phase.max_bake is not None and phase.max_bake < phase.bake:
            raise PlanError(f"phases: max_bake of {phase.name!r} is shorter than its bake", (*at, "max_bake"))
        if phase.mode is Mode.SHADOW:
            if live:
                raise PlanError(f"phases: shadow phase {phase.name!r} comes after a live one; shadow comes first", (*at, "mode"))
            continue
        live = True
        if phase.weight <= highest:
            raise PlanError(
                f"phases: traffic of {phase.name!r} is {phase.weight / 1000:g}%, which does not rise above the {highest / 1000:g}% before it",
                (*at, "traffic"),
            )
        highest = phase.weight
    if highest != WEIGHT_MAX:
        raise PlanError(
            f"phases: the last phase has {highest / 1000:g}% of the traffic; a rollout ends at 100%", (*at, "traffic")
        )


def _check_unique(what: str, names: list[str]) -> None:
    """`what` is the part of the file that holds the names."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PlanError(f"{what}: the name {name!r} is used twice", (what,))
        seen.add(name)
