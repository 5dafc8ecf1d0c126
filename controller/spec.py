"""
``rollout.yaml``: what a person writes, and how it becomes a plan.

It is also the form that Prefect draws and the body that the API takes. Its one rule: what it accepts can run; everything that
contradicts itself is refused here, with its place in the file. Parts whose feature comes later (`budget`)
are validated and kept; `kept_for_later` names those a file sets.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from controller.core import plan as core
from controller.core.daily import TimeOfDay
from controller.core.freeze import check as check_freeze
from controller.core.selector import SelectorError
from controller.core.selector import parse as parse_selector
from flagspec import WEIGHT_MAX, Variant
from flagspec.latency import nearest_edges
from specfile import (
    Duration,
    Inconsistent,
    Increase,
    Loc,
    Money,
    PositiveDuration,
    Ratio,
    format_duration,
    parse,
    parse_duration,
    parse_ratio,
)

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Reaches PromQL, flag keys and file names: lower case, digits, dot, dash, underscore."""
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]
LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
Mode = Literal["enforce", "warn", "dry_run"]
Breach = Literal["rollback", "pause"]
Needed = Literal["proof", "leaning"]
Selector = Annotated[str, Field(min_length=1, max_length=2000)]

V = TypeVar("V")
LONGEST = timedelta(days=366)


def _bounded(value: timedelta) -> timedelta:
    if value > LONGEST:
        raise ValueError(f"{format_duration(value)} is longer than a rollout can last (at most {format_duration(LONGEST)})")
    return value


Span = Annotated[PositiveDuration, AfterValidator(_bounded)]
"""A length of time within a rollout's life, longer than nothing."""
LongSpan = Annotated[Duration, AfterValidator(_bounded)]
"""As Span, zero included."""


def _at(position: int, default: Any = ..., **more: Any) -> Any:
    """A field that keeps its place in Prefect's form, which on Postgres forgets the order of nested fields."""
    return Field(default, json_schema_extra={"position": position}, **more)


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Metadata(_Spec):
    """Who this rollout is."""

    name: Name = _at(0, description="Name of the rollout")
    owner: str = _at(1, "", description="Team that answers for it")
    labels: dict[str, str] = _at(2, {}, description="Free labels, such as a ticket")


class Side(_Spec):
    """A model with the request parameters this side adds."""

    model: ModelName = _at(0, description="Name of the model, as the router knows it")
    params: dict[str, Any] = _at(1, {}, description="Request parameters this side adds")

    def variant(self) -> Variant:
        return Variant(model=self.model, params=self.params)


class Metrics(_Spec):
    """
    Where the numbers come from.

    Args:
        arms: Labels that tell the series of ``baseline``, ``candidate`` and ``shadow`` apart, where the profile's own do not.
        requests: Selector of what counts every request, with $arm among the matchers; the custom profile has none of its own.
    """

    profile: Literal["router", "otel-genai", "litellm", "envoy-ai-gateway", "custom"] = _at(0, "router")
    arms: dict[Literal["baseline", "candidate", "shadow"], dict[LabelName, str]] = _at(1, {})
    requests: Selector | None = _at(2, None, description="Selector of what counts every request, such as my_requests_total{$arm}")

    @model_validator(mode="after")
    def _fits(self) -> "Metrics":
        if self.requests is not None:
            try:
                parse_selector(self.requests)
            except SelectorError as exc:
                raise Inconsistent([(("requests",), str(exc))]) from exc
        return self


def _on_breach(value: Breach | None) -> core.OnBreach | None:
    return None if value is None else core.OnBreach(value)


def _plain(table: Mapping[Any, V]) -> dict[str, V]:
    """The same with keys that are any text: a Literal's keys are checked already."""
    return dict(table)


def _selectors(indicator: str, promql: Mapping[str, str], *allowed: tuple[str, ...]) -> Iterator[tuple[Loc, str]]:
    """Problems of a gate's own PromQL: only custom indicators have it, each needs one of these sets, and statistics need both arms."""
    if indicator != "custom":
        if promql:
            yield ("promql",), f"{indicator} is read as the metric profile says; promql belongs to indicator: custom"
        return
    if tuple(sorted(promql)) not in {tuple(sorted(a)) for a in allowed}:
        wanted = " or ".join(" and ".join(a) for a in allowed)
        yield ("promql",), f"custom needs promql with {wanted}, got {', '.join(sorted(promql)) or 'none'}"
    for name, text in promql.items():
        # The value of an event is any query; what is counted for both arms must be counters.
        if allowed != (("value",),):
            try:
                parse_selector(text)
            except SelectorError as exc:
                yield ("promql", name), str(exc)


class Slo(_Spec):
    """
    An absolute limit. Latency and time to first token take a quantile and a duration; ratios take a percentage.

    Args:
        max: ``1.0s`` or ``1%``; everything but availability and fallback_success.
        min: ``99.9%``; availability and fallback_success.
        evidence: What the gate needs before traffic is raised: ``proof``, or ``leaning`` for events too rare to prove (the default of
            availability and fallback_success).
        promql: For ``custom``: selectors of counters with $arm among the matchers; bad and total, good and total, or buckets.
    """

    name: Name = _at(0)
    indicator: Literal["latency", "ttft", "error_ratio", "timeout_ratio", "availability", "fallback_success", "custom"] = _at(1)
    where: dict[LabelName, str] = _at(2, {}, description="Label filters, such as streaming: 'true'")
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = _at(3, None, description="0.95 for p95; latency and ttft only")
    max: str | None = _at(4, None, description="1.0s or 1%")
    min: str | None = _at(5, None, description="99.9%; availability and fallback_success")
    mode: Mode = _at(6, "enforce")
    on_breach: Breach | None = _at(7, None, description="Instead of gates.on_breach")
    evidence: Needed | None = _at(8, None, description="proof, or leaning for events too rare to prove")
    promql: dict[Literal["bad", "good", "total", "buckets"], Selector] = _at(9, {})

    @model_validator(mode="after")
    def _fits(self) -> "Slo":
        if problems := list(self._problems()):
            raise Inconsistent(problems)
        return self

    def _problems(self) -> Iterator[tuple[Loc, str]]:
        timed = self._timed
        yield from _selectors(self.indicator, _plain(self.promql), ("bad", "total"), ("good", "total"), ("buckets",))
        if timed and self.quantile is None:
            yield (), f"{self.indicator} needs a quantile (write quantile: 0.95)"
        if not timed and self.quantile is not None:
            yield ("quantile",), f"{self.indicator} has no quantile; it is a share of requests"
        floor = self.indicator in ("availability", "fallback_success") or "good" in self.promql
        needed, other = ("min", "max") if floor else ("max", "min")
        if getattr(self, other) is not None:
            yield (other,), f"{self.indicator} has a {needed}, not a {other}"
        text = getattr(self, needed)
        if text is None:
            yield (
                (),
                f"{self.indicator} needs a {needed} (write {needed}: {'3.0s' if timed else '99.9%' if needed == 'min' else '1%'})",
            )
            return
        try:
            seconds = parse_duration(text).total_seconds() if timed else parse_ratio(text)
        except ValueError as exc:
            yield (needed,), str(exc)
            return
        if timed and seconds <= 0:
            yield (needed,), f"{text!r} can never be met: it must be longer than nothing"
        if not timed and (seconds <= 0 if needed == "max" else seconds >= 1):
            yield (
                (needed,),
                f"{text!r} allows no failure at all, which no number of requests can prove; write {'0.01%' if needed == 'max' else '99.99%'} or so",
            )
        if not timed and needed == "max" and seconds >= 1:
            yield (needed,), f"{text!r} allows everything to fail; the gate could never say no"
        if not timed and needed == "min" and seconds <= 0:
            yield (needed,), f"{text!r} allows everything to fail; the gate could never say no"

    @property
    def _timed(self) -> bool:
        """Whether it limits a duration."""
        return self.indicator in ("latency", "ttft") or "buckets" in self.promql

    def gate(self) -> core.Gate:
        mode, on_breach, promql = core.GateMode(self.mode), _on_breach(self.on_breach), _plain(self.promql)
        rare = self.indicator in ("availability", "fallback_success")
        need = core.Need(self.evidence or ("leaning" if rare else "proof"))
        if self._timed:
            assert self.max is not None and self.quantile is not None
            return core.QuantileLimit(
                name=self.name,
                indicator=self.indicator,  # type: ignore[arg-type]  # `_timed` says which
                quantile=self.quantile,
                limit_s=parse_duration(self.max).total_seconds(),
                where=self.where,
                mode=mode,
                on_breach=on_breach,
                need=need,
                promql=promql,
            )
        # 1 - 0.999 is 0.0010000000000000009 in binary; the limit that people wrote is 0.001.
        limit = round(1 - parse_ratio(self.min), 12) if self.min is not None else parse_ratio(self.max or "")
        return core.RateLimit(
            name=self.name,
            indicator=self.indicator,  # type: ignore[arg-type]  # as above
            limit=limit,
            where=self.where,
            mode=mode,
            on_breach=on_breach,
            need=need,
            promql=promql,
        )


class Comparison(_Spec):
    """The candidate against the baseline that runs beside it."""

    name: Name = _at(0)
    indicator: Literal["latency", "ttft", "cost_per_request", "custom"] = _at(1)
    where: dict[LabelName, str] = _at(2, {})
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = _at(3, None, description="0.95 for p95; latency and ttft only")
    max_increase: Increase = _at(4, description="10% allows the candidate a tenth more than the baseline")
    mode: Mode = _at(5, "enforce")
    on_breach: Breach | None = _at(6, None, description="Instead of gates.on_breach")
    evidence: Needed | None = _at(7, None, description="proof, or leaning for what is too rare to prove")
    promql: dict[Literal["buckets", "value", "weight"], Selector] = _at(8, {})

    @model_validator(mode="after")
    def _fits(self) -> "Comparison":
        if problems := list(_selectors(self.indicator, _plain(self.promql), ("buckets",), ("value", "weight"))):
            raise Inconsistent(problems)
        if self._mean and self.quantile is not None:
            raise Inconsistent([(("quantile",), f"{self.indicator} is compared by its mean and has no quantile")])
        if not self._mean and self.quantile is None:
            raise Inconsistent([((), f"{self.indicator} needs a quantile (write quantile: 0.95)")])
        if self.max_increase <= 0:
            text = "no number of requests can prove that the candidate is not even a little worse; write max_increase: 1% or more"
            raise Inconsistent([(("max_increase",), text)])
        return self

    @property
    def _mean(self) -> bool:
        return self.indicator == "cost_per_request" or "value" in self.promql

    def gate(self) -> core.Gate:
        mode, on_breach, promql = core.GateMode(self.mode), _on_breach(self.on_breach), _plain(self.promql)
        need = core.Need(self.evidence or "proof")
        if self._mean:
            return core.MeanIncrease(
                name=self.name,
                indicator=self.indicator,  # type: ignore[arg-type]  # `_mean` says which
                max_increase=self.max_increase,
                where=self.where,
                mode=mode,
                on_breach=on_breach,
                need=need,
                promql=promql,
            )
        assert self.quantile is not None
        return core.QuantileIncrease(
            name=self.name,
            indicator=self.indicator,  # type: ignore[arg-type]  # as above
            quantile=self.quantile,
            max_increase=self.max_increase,
            where=self.where,
            mode=mode,
            on_breach=on_breach,
            need=need,
            promql=promql,
        )


class Happening(_Spec):
    """
    Something that must have happened (`at_least`, before a phase is left) or may not be the case (`at_most`).

    Args:
        promql: For ``custom``: ``value``, any query that answers with one number.
        exercise: For ``fallbacks``: where nothing else is lacking, the gate check lets the candidate fail once on purpose.
    """

    name: Name = _at(0)
    indicator: Literal["fallbacks", "firing_alerts", "custom"] = _at(1)
    where: dict[LabelName, str] = _at(2, {})
    at_least: Annotated[int, Field(ge=1)] | None = _at(3, None)
    at_most: Annotated[float, Field(ge=0)] | None = _at(4, None)
    by_phase: Name | None = _at(5, None, description="The phase that is not left before; at_least only")
    mode: Mode = _at(6, "enforce")
    on_breach: Breach | None = _at(7, None, description="Instead of gates.on_breach")
    promql: dict[Literal["value"], Selector] = _at(8, {})
    exercise: bool = _at(9, False, description="fallbacks only: bring it about by a drill where nothing else is lacking")

    @model_validator(mode="after")
    def _fits(self) -> "Happening":
        if problems := list(_selectors(self.indicator, _plain(self.promql), ("value",))):
            raise Inconsistent(problems)
        if (self.at_least is None) == (self.at_most is None):
            raise Inconsistent([((), "an event has either at_least or at_most")])
        if self.indicator == "fallbacks" and (self.at_least is None or self.at_most is not None):
            raise Inconsistent([((), "fallbacks are asked for with at_least")])
        if self.indicator == "firing_alerts" and (self.at_most is None or self.at_least is not None):
            raise Inconsistent([((), "firing_alerts are limited with at_most")])
        if self.at_least is not None and self.by_phase is None:
            raise Inconsistent([((), "at_least needs by_phase: the phase that is not left before")])
        if self.at_most is not None and self.by_phase is not None:
            raise Inconsistent([(("by_phase",), "at_most holds at every look and has no by_phase")])
        if self.exercise and self.indicator != "fallbacks":
            raise Inconsistent([(("exercise",), f"{self.indicator} cannot be exercised; fallbacks can")])
        if self.exercise and (self.where.get("reason", "drill"), self.where.get("outcome", "ok")) != ("drill", "ok"):
            raise Inconsistent([(("exercise",), "a drill never counts where reason is not drill or outcome is not ok")])
        return self

    def gate(self) -> core.Gate:
        mode, on_breach, promql = core.GateMode(self.mode), _on_breach(self.on_breach), _plain(self.promql)
        if self.at_least is not None:
            return core.AtLeast(
                name=self.name,
                indicator=self.indicator,  # type: ignore[arg-type]  # alerts were refused
                times=self.at_least,
                by_phase=self.by_phase or "",
                where=self.where,
                mode=mode,
                on_breach=on_breach,
                promql=promql,
                exercise=self.exercise,
            )
        return core.AtMost(
            name=self.name,
            indicator=self.indicator,  # type: ignore[arg-type]  # fallbacks were refused
            times=self.at_most or 0,
            where=self.where,
            mode=mode,
            on_breach=on_breach,
            promql=promql,
        )


class DeadMan(_Spec):
    """
    What is due when those who should look do not.

    Args:
        after: Without a gate check for so long, the guard acts; instead of `missed`.
        missed: The same in gate checks: so many of them in a row.
        action: What the guard does: raise an alarm (hold), or roll back. Of a lapsed lease: pause (hold), or roll back.
        lease: The flag's weights hold for so long after the guard's last look; then routers go back to the baseline by themselves.
    """

    after: Span | None = _at(0, None, description="Without a gate check for so long, the guard acts")
    action: Literal["hold", "rollback"] = _at(1, "hold", description="hold: an alarm; a lapsed lease pauses")
    missed: Annotated[int, Field(ge=2)] | None = _at(2, None, description="So many gate checks in a row; instead of after")
    lease: Span | None = _at(3, None, description="Without a look of the guard for so long, routers go back to the baseline")

    @model_validator(mode="after")
    def _fits(self) -> "DeadMan":
        if self.after is not None and self.missed is not None:
            raise Inconsistent([(("missed",), "a dead man waits either for a time (after) or for missed checks (missed)")])
        return self

    def waits(self, every: timedelta) -> timedelta:
        """How long, with gate checks at this distance."""
        if self.after is not None:
            return self.after
        return max(MISSED * every, WAITS_LEAST) if self.missed is None else self.missed * every


MISSED, WAITS_LEAST = 4, timedelta(minutes=5)
"""Gate checks that are missed before the dead man is due, and how long that is at least, where the plan does not say."""


class Gates(_Spec):
    """
    How the gates are run.

    Args:
        confidence: 0.95 allows one rollout in twenty to end in a false rollback, and as many in a false promotion.
        block: How long the usual burst lasts. What one block says is capped, and proofs grow by blocks.
        evidence: ``required`` asks every statistical gate for a proof, rare events too.
        on_unproven: After a phase's max_bake without a proof, with every estimate within its limit: go on holding, ask people, or accept
            the step as not proven.
        ask: Who is asked.
        dead_man: What is due when gate checks or the guard do not look; null for nothing.
        tell_after: Gate checks in a row without usable evidence until people are told.
        escalate_after: The same until it is an alarm, repeated after twice, four times, ... as many.
    """

    every: Span = _at(0, "15m", validate_default=True, description="Time between gate checks, which may raise")
    guard_every: Span = _at(1, "15s", validate_default=True, description="Time between looks of the guard, which only lowers")
    confidence: float = _at(2, 0.95)
    min_requests: int = _at(3, 500, description="Requests of the candidate that a passing verdict needs")
    on_breach: Literal["rollback", "pause"] = _at(4, "rollback")
    on_no_data: Literal["hold"] = _at(5, "hold", description="No data is never a pass")
    on_drift: Literal["pause", "rollback"] = _at(6, "pause", description="When the flag carries what nobody decided")
    dead_man: DeadMan | None = _at(7, DeadMan())
    block: Span = _at(8, "60s", validate_default=True, description="How long the usual burst lasts")
    evidence: Literal["default", "required"] = _at(9, "default", description="required: rare events need a proof too")
    on_unproven: Literal["hold", "ask", "accept"] = _at(10, "hold", description="After max_bake without a proof")
    ask: list[Name] = _at(11, [], description="Groups that may accept a step that is not proven")
    tell_after: Annotated[int, Field(ge=1)] = _at(12, 1, description="Checks in a row without evidence until people are told")
    escalate_after: Annotated[int, Field(ge=1)] = _at(13, 2, description="The same until it is an alarm")

    def policy(self) -> core.Policy:
        return core.Policy(
            every=self.every,
            guard_every=self.guard_every,
            confidence=self.confidence,
            min_requests=self.min_requests,
            # A beat of the guard that is longer than a burst is a block of its own.
            block=max(self.block, self.guard_every),
            evidence_required=self.evidence == "required",
            on_unproven=core.OnUnproven(self.on_unproven),
            ask=core.Approval(groups=tuple(self.ask)) if self.ask else None,
            on_breach=core.OnBreach(self.on_breach),
            on_drift=core.OnDrift(self.on_drift),
            tell_after=self.tell_after,
            # Who wants to be told later is not woken earlier.
            escalate_after=max(self.escalate_after, self.tell_after)
            if "escalate_after" not in self.model_fields_set
            else self.escalate_after,
            dead_man_after=None if self.dead_man is None else self.dead_man.waits(self.every),
            dead_man_action=core.DeadManAction.HOLD if self.dead_man is None else core.DeadManAction(self.dead_man.action),
            lease=None if self.dead_man is None else self.dead_man.lease,
        )


class ApprovalSpec(_Spec):
    """Who must say yes before the phase begins."""

    from_: list[Name] = Field(alias="from", json_schema_extra={"position": 0})
    count: int = _at(1, 1)
    expires: Span = _at(2, "48h", validate_default=True)
    not_requester: bool = _at(3, True)

    def approval(self) -> core.Approval:
        return core.Approval(groups=tuple(self.from_), count=self.count, expires=self.expires, not_requester=self.not_requester)


class PhaseSpec(_Spec):
    """One step."""

    name: Name = _at(0)
    mode: Literal["shadow", "live"] = _at(1, "live", description="shadow mirrors requests and exposes nobody")
    traffic: Ratio = _at(2, description="Share of the units, 5%")
    bake: LongSpan = _at(3, description="How long the phase lasts at least")
    approval: ApprovalSpec | None = _at(4, None)
    max_bake: Span | None = _at(5, None, description="After so long without a proof, gates.on_unproven is done")

    @model_validator(mode="after")
    def _fits(self) -> "PhaseSpec":
        exact = self.traffic * WEIGHT_MAX
        if abs(exact - round(exact)) > 1e-6 or round(exact) == 0:
            raise Inconsistent(
                [(("traffic",), f"{self.traffic * 100:g}% is not a whole number of thousandths of a percent above 0")]
            )
        return self

    def phase(self) -> core.Phase:
        return core.Phase(
            name=self.name,
            mode=core.Mode(self.mode),
            weight=round(self.traffic * WEIGHT_MAX),
            bake=self.bake,
            approval=None if self.approval is None else self.approval.approval(),
            max_bake=self.max_bake,
        )


class Budget(_Spec):
    """What the candidate may cost."""

    per_day: Money | None = _at(0, None)
    total: Money | None = _at(1, None)
    warn_at: Ratio = _at(2, "80%", validate_default=True)
    on_exceed: Literal["downgrade", "hold", "rollback"] = _at(3, "hold")


class FreezeSpec(_Spec):
    """When nothing is raised: a recurrence rule (whole days), or a span."""

    name: Name = _at(0)
    rrule: str | None = _at(1, None, description="RFC 5545, such as FREQ=WEEKLY;BYDAY=SA,SU")
    from_: datetime | None = Field(None, alias="from", json_schema_extra={"position": 2})
    to: datetime | None = _at(3, None)
    timezone: str = _at(4, "UTC")

    @model_validator(mode="after")
    def _fits(self) -> "FreezeSpec":
        if (self.rrule is None) == (self.from_ is None) or (self.from_ is None) != (self.to is None):
            raise Inconsistent([((), "a freeze has either an rrule, or both from and to")])
        if any(t is not None and t.tzinfo is not None for t in (self.from_, self.to)):
            raise Inconsistent([(("from",), "from and to are wall-clock times; the zone stands in timezone")])
        try:
            check_freeze(self.freeze())
        except core.PlanError as exc:
            raise Inconsistent([((), str(exc))]) from exc
        return self

    def freeze(self) -> core.Freeze:
        if self.rrule is not None:
            return core.FreezeRule(name=self.name, rrule=self.rrule, timezone=self.timezone)
        assert self.from_ is not None and self.to is not None
        return core.FreezeSpan(name=self.name, starts=self.from_, ends=self.to, timezone=self.timezone)


def _time_of_day(given: str) -> str:
    TimeOfDay.read(given)
    return given


DailyAt = Annotated[str, AfterValidator(_time_of_day)]


class Slack(_Spec):
    channel: Annotated[str, Field(pattern=r"^[#@]?[A-Za-z0-9._-]{1,80}$")] = _at(0, "#llm-rollouts")
    digest: DailyAt | None = _at(1, None, description="When a digest is posted each day: 09:00 Europe/Berlin")


class Notify(_Spec):
    slack: Slack | None = _at(0, None)


class RolloutSpec(_Spec):
    """A rollout, as written in rollout.yaml."""

    api_version: Literal["penstock/v1"] = Field("penstock/v1", alias="apiVersion", json_schema_extra={"position": 0})
    kind: Literal["Rollout"] = _at(1, "Rollout")
    metadata: Metadata = _at(2)
    environment: Name = _at(3, "production")
    flag: Name = _at(4, description="The flag that this rollout moves")
    unit: Literal["user", "tenant", "session", "request"] = _at(5, "user", description="What is bucketed")
    baseline: Side = _at(6)
    candidate: Side = _at(7)
    metrics: Metrics = _at(8, Metrics())
    slos: list[Slo] = _at(9, [], description="Absolute limits")
    comparisons: list[Comparison] = _at(10, [], description="Limits against the baseline")
    events: list[Happening] = _at(11, [])
    gates: Gates = _at(12, Gates())
    phases: list[PhaseSpec] = _at(13)
    budget: Budget | None = _at(14, None)
    freeze: list[FreezeSpec] = _at(15, [])
    notify: Notify = _at(16, Notify())

    @model_validator(mode="after")
    def _fits(self) -> "RolloutSpec":
        problems: list[tuple[Loc, str]] = list(self._odd_limits())
        try:
            self.to_plan()
        except core.PlanError as exc:
            problems.append((exc.where, str(exc)))
        if problems:
            raise Inconsistent(problems)
        return self

    def to_plan(self) -> core.Plan:
        """Raises PlanError when parts contradict each other."""
        if self.metrics.profile == "custom" and not {"baseline", "candidate"} <= self.metrics.arms.keys():
            raise core.PlanError(
                "metrics.arms: the custom profile needs the labels of baseline and candidate, such as baseline: {model: gpt-4.1}",
                ("metrics",),
            )
        if self.metrics.profile == "custom" and not self.metrics.requests:
            raise core.PlanError(
                "metrics.requests: the custom profile needs a selector of what counts every request, such as my_requests_total{$arm}",
                ("metrics",),
            )
        for index, phase in enumerate(self.phases):
            if phase.approval is not None:
                try:
                    phase.approval.approval()
                except core.PlanError as exc:
                    raise core.PlanError(str(exc), ("phases", index, "approval", *exc.where)) from exc
        digest = None if self.notify.slack is None else self.notify.slack.digest
        return core.Plan(
            name=self.metadata.name,
            owner=self.metadata.owner,
            labels=self.metadata.labels,
            environment=self.environment,
            flag=self.flag,
            unit=self.unit,
            baseline=self.baseline.variant(),
            candidate=self.candidate.variant(),
            profile=self.metrics.profile,
            arms=_plain(self.metrics.arms),
            requests=self.metrics.requests or "",
            phases=tuple(p.phase() for p in self.phases),
            gates=(
                *(s.gate() for s in self.slos),
                *(c.gate() for c in self.comparisons),
                *(e.gate() for e in self.events),
                core.Silence(),
                core.SampleRatio(),
            ),
            policy=self.gates.policy(),
            freezes=tuple(f.freeze() for f in self.freeze),
            slack_channel="" if self.notify.slack is None else self.notify.slack.channel,
            kept={**self.kept_for_later(), **({"notify.slack.digest": digest} if digest else {})},
        )

    def kept_for_later(self) -> dict[str, Any]:
        """The parts that this release validates and keeps but does not act on, as they go into the audit log."""
        return {} if self.budget is None else {"budget": self.budget.model_dump(mode="json", exclude_none=True)}

    def written(self) -> dict[str, Any]:
        """As a file would say it, with every default written out that is not simply nothing; `parse` reads the same spec from it."""
        return _written(self, self.model_dump(mode="json", by_alias=True))

    def _odd_limits(self) -> Iterator[tuple[Loc, str]]:
        """Gates that could never pass: limits between two bucket edges, and a lower quantile's limit that a higher one forbids."""
        for i, slo in enumerate(self.slos):
            gate = slo.gate()
            ours = self.metrics.profile == "router" and slo.indicator != "custom"
            if ours and isinstance(gate, core.QuantileLimit) and (near := nearest_edges(gate.limit_s)) is not None:
                yield ("slos", i, "max"), f"{slo.max!r} is not a bucket edge of the router's histograms; the nearest are {near}"
        yield from self._crossed_quantiles()
        if self.gates.guard_every > self.gates.every:
            text = f"{format_duration(self.gates.guard_every)} is longer than gates.every; the guard looks more often than the gate check"
            yield ("gates", "guard_every"), text

    def _crossed_quantiles(self) -> Iterator[tuple[Loc, str]]:
        """A lower quantile may not have a longer limit than a higher one of the same requests: the longer one could never be reached."""
        limits = [(i, s, g) for i, s in enumerate(self.slos) if isinstance(g := s.gate(), core.QuantileLimit)]
        for i, slo, low in limits:
            for _, other, high in limits:
                same = (low.indicator, dict(low.where), dict(low.promql)) == (high.indicator, dict(high.where), dict(high.promql))
                if same and low.quantile < high.quantile and low.limit_s > high.limit_s:
                    text = (
                        f"p{low.quantile * 100:g} of {slo.name!r} may be up to {slo.max}, but {other.name!r} keeps p{high.quantile * 100:g} "
                        f"of the same requests below {other.max}: the limits contradict each other"
                    )
                    yield ("slos", i, "max"), text


def _written(spec: BaseModel, dumped: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in type(spec).model_fields.items():
        key, value = field.serialization_alias or field.alias or name, getattr(spec, name)
        if value == field.get_default(call_default_factory=True) and value in (None, {}, [], ()):
            continue
        found[key] = dumped[key]
        if isinstance(value, BaseModel):
            found[key] = _written(value, dumped[key])
        elif isinstance(value, list):
            found[key] = [_written(v, d) if isinstance(v, BaseModel) else d for v, d in zip(value, dumped[key], strict=True)]
    return found


def read(path: Path) -> RolloutSpec:
    """
    Read and check a rollout.yaml.

    Raises:
        specfile.SpecError: one line for each problem, with file, line and column.
    """
    return parse(RolloutSpec, path)
