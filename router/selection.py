"""
Who answers a request: the route by the model's name, the arm by the flag, then the fallbacks in order.

Pure: values in, a `Plan` out; no clock, no I/O. Its one rule: the plan is complete before the first attempt, so that what happens
on failure is decided by configuration and not by the moment.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Literal

from flagspec import WEIGHT_MAX, RouteFlag, Variant, assign
from router.config import Route, RouterConfig
from router.options import KEY

Arm = Literal["baseline", "candidate", "shadow"]

AUTO = "auto"
"""Whoever asks for this name gets the best of all models, unless a route or a model is called so."""

_ENVELOPE = frozenset({"model", "messages", "stream", "stream_options"})
"""What a variant's params never set: they would change what the client is told or how it is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    One attempt: a model, and parameters that hold where the client did not set its own.

    Args:
        forced: The last resort: asked even if its circuit breaker is open, unless it has failed this very request before.
    """

    model: str
    params: Mapping[str, Any] = field(default_factory=dict)
    forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What will be tried for one request.

    Args:
        route: The route's name; "" for a model that was asked for directly.
        flag: The flag's key; "" if no flag decides.
        arm: Whose result this request is.
        steps: The assigned model, then its fallbacks, none twice; then the last resort, which may be one of them.
        mirror: Gets a copy whose answer nobody sees.
        drill: A synthetic request: the first step is not made but taken as failed.
        refusal_checked: The first step is the candidate and the second the control, which has the say on whose fault it is when
            the candidate refuses the request.
        reason: Why this arm: `flagspec.Assignment.reason`, or ``no_flag``, ``flag_unseen``, ``direct``, ``drill``, ``auto``,
            ``preferred``, ``optimized``, ``budget``.
    """

    route: str
    flag: str
    arm: Arm
    steps: tuple[Step, ...]
    mirror: Step | None
    reason: str
    refusal_checked: bool = False
    drill: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDrill:
    """Why a drill cannot take place now. `code` is for programs, `text` for people."""

    code: str
    text: str


class Selector:
    """The routes of a configuration, indexed."""

    def __init__(self, config: RouterConfig) -> None:
        self._routes = {name: route for route in config.routes for name in route.match.model}
        self._models = {m.name for m in config.models}

    def route_for(self, model: str) -> Route | None:
        return self._routes.get(model)

    def names(self) -> list[str]:
        """Every name that a client may ask for, routes first."""
        return list(dict.fromkeys([*self._routes, *sorted(self._models), AUTO]))

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those that are no models of this configuration."""
        return [name for name in names if name not in self._models]

    def plan(
        self, model: str, flag: RouteFlag | None, unit: str | None, now: datetime, fallbacks: Sequence[str] | None = None
    ) -> Plan | None:
        """
        Args:
            model: What the client asked for; not `AUTO`, unless a route or a model is called so.
            flag: The flag of the model's route as last seen; None if the route has none or it was never seen.
            unit: What is bucketed; see `unit_of`.
            now: Aware time, for the flag's lease.
            fallbacks: In place of the route's own.

        Returns:
            The plan; None if nothing of that name exists.
        """
        route = self._routes.get(model)
        if route is None:
            if model not in self._models:
                return None
            return apart("", _steps([model, *(fallbacks or ())]), "direct")
        if flag is None:
            reason = "flag_unseen" if route.flag else "no_flag"
            steps = _chain(route, Step(model=route.default), fallbacks=fallbacks)
            return Plan(route=route.name, flag=route.flag or "", arm="baseline", steps=steps, mirror=None, reason=reason)
        said = assign(flag, unit, now)
        first, control = _step(said.variant), _step(flag.control)
        arm: Arm = "candidate" if said.arm == "candidate" else "baseline"
        return Plan(
            route=route.name,
            flag=flag.key,
            arm=arm,
            steps=_chain(route, first, control, fallbacks),
            mirror=None if said.mirror is None else _step(said.mirror),
            reason=said.reason,
            refusal_checked=arm == "candidate" and first != control,
        )

    def drill(self, model: str, flag: RouteFlag | None, now: datetime) -> Plan | NoDrill | None:
        """
        A request that the candidate is to fail, and what answers it then: the candidate's own chain, whatever the weight.

        Args:
            model, flag, now: As for `plan`.

        Returns:
            NoDrill where no user's request could come to the candidate either; None if nothing of that name exists.
        """
        route = self._routes.get(model)
        if route is None or route.flag is None:
            if route is None and model not in self._models:
                return None
            return NoDrill(code="drill_no_flag", text=f"no flag decides about {model!r}, so no candidate can fail")
        if flag is None:
            return NoDrill(code="drill_flag_unseen", text=f"this router has not seen the flag {route.flag!r} yet")
        if flag.killed:
            return NoDrill(code="drill_flag_killed", text=f"the flag {flag.key!r} is killed")
        if flag.lease is not None and now >= flag.lease:
            return NoDrill(code="drill_lease_lapsed", text=f"the lease of the flag {flag.key!r} has lapsed")
        if not flag.weight and not flag.shadow_weight:
            return NoDrill(
                code="drill_no_traffic", text=f"the flag {flag.key!r} sends the candidate no traffic, mirrored or live"
            )
        steps = _chain(route, _step(flag.candidate), _step(flag.control))
        if all(step.forced and step.model == flag.candidate.model for step in steps[1:]):
            return NoDrill(code="drill_no_fallback", text=f"the route {route.name!r} has nothing to fall back to")
        return Plan(route=route.name, flag=flag.key, arm="candidate", steps=steps, mirror=None, reason="drill", drill=True)


def auto_plan(models: Sequence[str], flags: Iterable[RouteFlag]) -> Plan:
    """
    All models of the table, for whoever asks for `AUTO` where no route is called so. Models under evaluation are left out: who may see
    them is for their flag to say.
    """
    barred = {f.candidate.model for f in flags if f.killed or f.weight < WEIGHT_MAX} - {f.control.model for f in flags}
    return apart("", _steps([name for name in models if name not in barred] or models), "auto")


def preferring(plan: Plan, model: str, flag: RouteFlag | None, now: datetime) -> Plan:
    """
    The plan with another model first. Such a request takes no part in the flag's comparison. A candidate whose flag is killed or lapsed
    is nobody's to prefer: the plan stays as it is.
    """
    off = flag is not None and (flag.killed or (flag.lease is not None and now >= flag.lease))
    if flag is not None and off and model == flag.candidate.model != flag.control.model:
        return plan
    others = [step for step in plan.steps if step.model != model or step.forced]
    return apart(plan.route, (Step(model=model), *others), "preferred")


def in_order(plan: Plan, models: Sequence[str], flag: RouteFlag | None) -> Plan:
    """
    The plan's own models in another order; the last resort stays last. Such a request takes no part in the flag's comparison, and only
    who was assigned to the candidate gets it.
    """
    barred = flag.candidate.model if flag is not None and plan.arm != "candidate" else None
    if flag is not None and barred == flag.control.model:
        barred = None
    place = {name: i for i, name in enumerate(models)}
    steps = {step.model: step for step in reversed(plan.steps) if not step.forced and step.model != barred}
    ordered = sorted(steps.values(), key=lambda step: place.get(step.model, len(place)))
    return apart(plan.route, (*ordered, *(step for step in plan.steps if step.forced)), "optimized")


def unit_of(kind: str, user: str | None, header: str | None, authorization: str | None, request_id: str) -> str | None:
    """
    What identifies the request for the split.

    Args:
        kind: ``user``: body.user, then the header ``x-penstock-unit``, then a hash of the API key. ``tenant``: the header,
            then the hash. ``session``, and any other: the header. ``request``: the request's own id: nothing is sticky.

    Returns:
        None if the request carries none of them.
    """
    if kind == "request":
        return request_id
    if kind == "user" and user:
        return user
    if header or kind not in ("user", "tenant"):
        return header or None
    return sha256(authorization.encode()).hexdigest()[:32] if authorization else None


def payload(
    body: Mapping[str, Any], step: Step, upstream_name: str, fields: Mapping[str, int | None] = MappingProxyType({})
) -> dict[str, Any]:
    """
    The request as it goes to this step's model: the client's fields untouched, the step's params where the client set none.

    Args:
        fields: What a cap sets in any case; None takes a field out.
    """
    params = {k: v for k, v in step.params.items() if k not in _ENVELOPE} if step.params else {}
    made = {**params, **body, "model": upstream_name}
    made.pop(KEY, None)
    for name, value in fields.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = value
    return made


def _step(variant: Variant) -> Step:
    return Step(model=variant.model, params=variant.params)


def apart(route: str, steps: tuple[Step, ...], reason: str) -> Plan:
    """A request that no flag has assigned: nothing of it is booked for an arm of one."""
    return Plan(route=route, flag="", arm="baseline", steps=steps, mirror=None, reason=reason)


def _steps(models: Iterable[str]) -> tuple[Step, ...]:
    return tuple(Step(model=name) for name in dict.fromkeys(models))


def _chain(route: Route, assigned: Step, control: Step | None = None, fallbacks: Sequence[str] | None = None) -> tuple[Step, ...]:
    """
    The assigned step, the control if it is another one (be it only by its params), fallbacks that were not tried yet, and the
    last resort, which may be one of them whose breaker was open.
    """
    steps = [assigned]
    if control is not None and control != assigned:
        steps.append(control)
    tried = {s.model for s in steps}
    others = route.fallbacks if fallbacks is None else fallbacks
    steps += [step for step in _steps(others) if step.model not in tried]
    if route.last_resort is not None:
        steps.append(Step(model=route.last_resort, forced=True))
    return tuple(steps)
