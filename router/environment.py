"""
Flags from the environment, for a router without a controller: which models may be used, and how many users get the new one.

| variable | says | default |
|---|---|---|
| ENABLE_GPT5 | models called gpt-5... may be used (true), or are not there at all (false) | as in router.yaml |
| ENABLE_OPUS41 | the same of claude-opus-4-1..., opus-4.1... | as in router.yaml |
| ROLLOUT_PERCENTAGE | share of the units that get the model enabled above in place of a route's default | 0 |
| FALLBACK_ENABLED | whether anybody else is asked when the assigned model fails | true |

It is read once, at the start, and becomes what a controller would have sent: a snapshot of flags. Its one rule: a flag source wins.
Where router.yaml names one, none of these variables is obeyed, and the start-up log says so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from flagspec import WEIGHT_MAX, RouteFlag, Snapshot, Variant
from router.config import Route, RouterConfig

FAMILIES: Mapping[str, re.Pattern[str]] = {
    "ENABLE_GPT5": re.compile(r"(.*/)?gpt-5\b.*", re.I),
    "ENABLE_OPUS41": re.compile(r"(.*/)?(claude-)?opus-4[.-]1\b.*", re.I),
}
"""Variable to the names of its models; the first that is true and fits is what a route rolls out."""

VARIABLES = (*FAMILIES, "ROLLOUT_PERCENTAGE", "FALLBACK_ENABLED")

_TRUTHS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Governed:
    """
    A configuration as the environment has it.

    Args:
        snapshot: The flags that the variables amount to; None if they amount to none.
        said: For the start-up log: what is in force, and what is not obeyed.
    """

    config: RouterConfig
    snapshot: Snapshot | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


def governed(config: RouterConfig, environ: Mapping[str, str]) -> Governed:
    """
    Raises:
        ValueError: a variable has a value that it cannot have, or disables a model that a route needs.
    """
    given = {name: environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
    if config.flags is not None:
        return Governed(config=config, said={"source": config.flags.source, "not_obeyed": sorted(given)})
    if not given:
        return Governed(config=config)
    enabled = {name: _truth(name, given[name]) for name in FAMILIES if name in given}
    weight = _weight(given.get("ROLLOUT_PERCENTAGE", "0"))
    fallback = _truth("FALLBACK_ENABLED", given.get("FALLBACK_ENABLED", "true"))
    config = _without(config, [FAMILIES[name] for name, on in enabled.items() if not on], fallback)
    rolled_out = [FAMILIES[name] for name, on in enabled.items() if on]
    flags, routes = [], []
    for route in config.routes:
        candidate = _candidate(config, route, rolled_out)
        if candidate is not None:
            route = route.model_copy(update={"flag": route.flag or _key(route.name)})
            flags.append(_flag(config.environment, route, candidate, weight))
        routes.append(route)
    return Governed(
        config=config.model_copy(update={"routes": routes}),
        snapshot=Snapshot(environment=config.environment, revision=1, flags=tuple(flags)) if flags else None,
        said={
            "source": "environment",
            **{name.lower(): value for name, value in given.items()},
            "candidates": {flag.key: flag.candidate.model for flag in flags},
        },
    )


def _without(config: RouterConfig, patterns: Sequence[re.Pattern[str]], fallback: bool) -> RouterConfig:
    """The configuration without the models that are disabled, wherever it names them."""
    gone = {m.name for m in config.models if any(p.fullmatch(m.name) for p in patterns)}
    for route in config.routes:
        if route.default in gone:
            raise ValueError(f"the environment disables {route.default!r}, the default of route {route.name!r}")
    routes = [
        route.model_copy(
            update={
                "fallbacks": [name for name in route.fallbacks if name not in gone],
                "last_resort": None if route.last_resort in gone else route.last_resort,
            }
        )
        for route in config.routes
    ]
    models = [m for m in config.models if m.name not in gone]
    if not models:
        raise ValueError("the environment disables every model")
    return config.model_copy(
        update={"models": models, "routes": routes, "fallback_enabled": fallback and config.fallback_enabled}
    )


def _candidate(config: RouterConfig, route: Route, patterns: Sequence[re.Pattern[str]]) -> str | None:
    for pattern in patterns:
        for model in config.models:
            if pattern.fullmatch(model.name) and model.name != route.default:
                return model.name
    return None


def _flag(environment: str, route: Route, candidate: str, weight: int) -> RouteFlag:
    key = route.flag
    assert key is not None
    return RouteFlag(
        environment=environment,
        key=key,
        version=1,
        revision=1,
        control=Variant(model=route.default),
        candidate=Variant(model=candidate),
        # The same in every process and after every start: who has the new model keeps it.
        salt=f"environment/{key}",
        unit=route.unit or "user",
        weight=weight,
        decision_id="environment",
    )


def _key(name: str) -> str:
    """A flag's key for a route that has none."""
    return re.sub(r"[^a-z0-9._-]", "-", f"route-{name.lower()}")[:63]


def _truth(name: str, text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError(f"{name}: {text!r} is neither true nor false")
    return _TRUTHS[text.lower()]


def _weight(text: str) -> int:
    try:
        percent = Decimal(text.removesuffix("%").strip())
        known = 0 <= percent <= 100
    except InvalidOperation:
        known = False
    if not known:
        raise ValueError(f"ROLLOUT_PERCENTAGE: {text!r} is not within 0..100")
    return int(percent * WEIGHT_MAX / 100)
