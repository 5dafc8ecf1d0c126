"""
What traffic there is: of which flags and models, by the names of which profile.

It stands before a plan exists, for `penstock init`. Its one rule: it says what was counted and guesses nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.adapters.prometheus.client import PrometheusClient
from controller.adapters.prometheus.profile import Profile, duration, load_profile
from controller.core.traffic import REQUESTS
from controller.ports import Unavailable

PROFILES = ("router", "otel-genai", "litellm", "envoy-ai-gateway")
"""Those that name their metrics themselves, in the order in which they are preferred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """
    One model's traffic.

    Args:
        profile: By whose names it is counted.
        model: As the series call it.
        rps: Requests a second.
        environment, flag: Of the router's series; "" elsewhere.
    """

    profile: str
    model: str
    rps: float
    environment: str = ""
    flag: str = ""


def discover(client: PrometheusClient, at: datetime, window: timedelta, profiles: Sequence[str] = PROFILES) -> tuple[Found, ...]:
    """
    Args:
        client: Whom to ask.
        at: Until when.
        window: Since so long before.
        profiles: Which names are looked for.

    Returns:
        The busiest first; those of an earlier profile before those of a later one. What the router mirrored is left out.

    Raises:
        Unavailable: Prometheus does not answer.
    """
    asked = {name: _query(load_profile(name), window) for name in profiles}
    answers = client.ask(list(dict.fromkeys(asked.values())), at)
    found = []
    for name, query in asked.items():
        if answers[query].failure:
            raise Unavailable(answers[query].failure)
        label = _labels(load_profile(name))[-1]
        found += [
            Found(
                profile=name,
                model=s.labels[label],
                rps=s.value / window.total_seconds(),
                environment=s.labels.get("environment", ""),
                flag=s.labels.get("flag", ""),
            )
            for s in answers[query].series
            if s.labels.get(label) and s.value > 0
        ]
    return tuple(sorted(found, key=lambda f: (profiles.index(f.profile), -f.rps)))


def _labels(profile: Profile) -> tuple[str, ...]:
    """What tells flags and models apart; the model last."""
    if profile.name == "router":
        return "environment", "flag", "model"
    return (re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="\$model"', profile.arm.template)[0],)


def _query(profile: Profile, window: timedelta) -> str:
    span, by = duration(int(window.total_seconds() * 1000)), ", ".join(_labels(profile))
    users = 'arm!="shadow"' if profile.name == "router" else ""
    terms = profile.indicator(REQUESTS).parts["total"]
    return f"sum by ({by}) ({' or '.join(f'increase({t.selector(users)}[{span}])' for t in terms)})"
