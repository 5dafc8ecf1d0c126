"""
What the demo shows: four candidates for one baseline, each with the ending that it must have.

Values only; it makes the same files that a user writes: rollout specs, `router.yaml`, the simulator's scenario. Its one rule: the demo
differs from production in times and in nothing else; every gate, limit and phase goes through the same code.

How the numbers were chosen, so that no seed ends otherwise:

* The baseline answers in 0.57 s (median) and 0.8 s (p95); good candidates are 13% faster and about 20% cheaper. The absolute limit of
  2 s leaves room for a machine that is busy with other things, which slows both arms alike; half as much again is found by the comparisons with
  the baseline, which do not mind: 20 to 30 requests of the candidate are enough.
* At 5% a rate of 30 requests a second gives the candidate 1.5 a second: 30 of them, which a pass needs, in about 20 s. Two free cores carry it.
* Nobody fails by chance: errors come only when the script says so, and then for four requests in ten.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BASELINE = "gpt-4.1"
ENVIRONMENT = "demo"
GROUP = "release-managers"
APPROVER = "dana"
REQUESTER = "sam"

_BASE_TTFT_S = 0.55
_TTFT_SIGMA = 0.18
_TOKENS_PER_S = 6000.0
_FASTER = 0.87


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """
    What goes wrong with the candidate, and when.

    Args:
        weight: It begins when the flag carries this live weight (thousandths of a percent).
        change: Part of a behaviour, for the simulator's control endpoint.
        text: In words.
    """

    weight: int
    change: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """
    One candidate and its fate.

    Args:
        name: As in `--scenario`.
        candidate: The model.
        story: One line for people.
        expected: Outcomes that count as success.
        rate: Requests a second, unless a trace brings its own.
        price: US dollars a million input and output tokens.
        trouble: None if it behaves.
        approve_half: Going to 50% needs an approval, which the demo gives.
        silent: Its series never reach Prometheus.
        gate_every: Between gate checks. Longer where the guard is to be seen at work: it needs some 5 s from the trouble.
        patience_s: Still not ended after so long, it counts as held; None: only the time limit of the demo counts.
    """

    name: str
    candidate: str
    story: str
    expected: tuple[str, ...]
    rate: float
    price: tuple[float, float]
    trouble: Trouble | None = None
    approve_half: bool = False
    silent: bool = False
    gate_every: str = "5s"
    patience_s: float | None = None

    @property
    def flag(self) -> str:
        return f"chat-{self.name}"


SCENARIOS = (
    Scenario(
        name="good",
        candidate="gpt-5",
        story="a good candidate goes to 100%",
        expected=("promoted",),
        rate=30.0,
        price=(1.25, 10.0),
        approve_half=True,
    ),
    Scenario(
        name="slow",
        candidate="gpt-5-mini",
        story="gets 70% slower at 5%",
        expected=("rolled_back",),
        rate=30.0,
        price=(0.25, 2.0),
        trouble=Trouble(weight=5_000, change={"latency_mult": 1.7}, text="latency +70%"),
    ),
    Scenario(
        name="errors",
        candidate="o4-mini",
        story="begins to fail at 25%",
        expected=("rolled_back",),
        rate=30.0,
        price=(1.1, 4.4),
        gate_every="15s",
        trouble=Trouble(weight=25_000, change={"errors": {"server_error": 0.4}}, text="40% of its requests fail"),
    ),
    Scenario(
        name="silent",
        candidate="gpt-5-nano",
        story="emits no metrics",
        expected=("held", "rolled_back"),
        rate=15.0,
        price=(0.05, 0.4),
        silent=True,
        patience_s=75.0,
    ),
)
ALL = "all"


def choose(name: str) -> tuple[Scenario, ...]:
    """The scenarios of a name. Raises ValueError with the known names."""
    chosen = SCENARIOS if name == ALL else tuple(s for s in SCENARIOS if s.name == name)
    if not chosen:
        raise ValueError(f"scenario {name!r}: unknown; known: {', '.join(s.name for s in SCENARIOS)}, {ALL}")
    return chosen


def rollout_spec(scenario: Scenario, *, channel: str = "#llm-rollouts") -> dict[str, Any]:
    """The body of a rollout.yaml, with compressed times."""
    half: dict[str, Any] = {"name": "half", "traffic": "50%", "bake": "8s"}
    if scenario.approve_half:
        half["approval"] = {"from": [GROUP], "count": 1, "expires": "1h", "not_requester": True}
    return {
        "apiVersion": "penstock/v1",
        "kind": "Rollout",
        "metadata": {"name": scenario.flag, "owner": "demo", "labels": {"scenario": scenario.name}},
        "environment": ENVIRONMENT,
        "flag": scenario.flag,
        "unit": "user",
        "baseline": {"model": BASELINE},
        "candidate": {"model": scenario.candidate},
        "metrics": {"profile": "router"},
        "slos": [
            {"name": "latency-p95", "indicator": "latency", "where": {"streaming": "false"}, "quantile": 0.95, "max": "2s"},
            {"name": "error-rate", "indicator": "error_ratio", "max": "1%"},
            {"name": "timeout-rate", "indicator": "timeout_ratio", "max": "0.5%", "evidence": "leaning"},
            {"name": "availability", "indicator": "availability", "min": "99.9%"},
        ],
        "comparisons": [
            {"name": "p50-vs-baseline", "indicator": "latency", "quantile": 0.5, "max_increase": "10%"},
            {"name": "p95-vs-baseline", "indicator": "latency", "quantile": 0.95, "max_increase": "15%"},
            {"name": "cost-vs-baseline", "indicator": "cost_per_request", "max_increase": "10%"},
        ],
        "gates": {"every": scenario.gate_every, "guard_every": "2s", "block": "4s", "confidence": 0.95, "min_requests": 30},
        "phases": [
            {"name": "shadow", "mode": "shadow", "traffic": "40%", "bake": "8s"},
            {"name": "canary-5", "traffic": "5%", "bake": "8s"},
            {"name": "quarter", "traffic": "25%", "bake": "8s"},
            half,
            {"name": "full", "traffic": "100%", "bake": "8s"},
        ],
        "notify": {"slack": {"channel": channel}},
    }


def router_config(scenarios: tuple[Scenario, ...], *, listen: str, flags: str, provider: str) -> dict[str, Any]:
    """
    The body of a router.yaml: a route and a flag for each scenario.

    Args:
        listen: `host:port`.
        flags: Base address of the controller's flags.
        provider: Base address of the simulator, with `/v1`.
    """
    prices = {BASELINE: (2.0, 8.0)} | {s.candidate: s.price for s in scenarios}
    return {
        "apiVersion": "penstock/v1",
        "kind": "Router",
        "listen": listen,
        "environment": ENVIRONMENT,
        "flags": {"source": flags, "stale_after": "60s"},
        "providers": [{"name": "simulator", "base_url": provider}],
        "models": [
            {
                "name": model,
                "provider": "simulator",
                "timeout": {"request": "30s", "stream": "90s"},
                "price": {"input_per_mtok": f"{price[0]:g} USD", "output_per_mtok": f"{price[1]:g} USD"},
            }
            for model, price in prices.items()
        ],
        "routes": [
            {
                "name": s.flag,
                "match": {"model": [s.flag]},
                "flag": s.flag,
                "default": BASELINE,
                "fallbacks": [BASELINE],
                "unit": "user",
            }
            for s in scenarios
        ],
        "shadow": {"concurrency": 256},
    }


def provider_config(scenarios: tuple[Scenario, ...], *, seed: int) -> dict[str, Any]:
    """The body of the simulator's scenario file; everybody behaves until the demo says otherwise."""

    def behaviour(faster: float) -> dict[str, Any]:
        return {"ttft": {"median_s": _BASE_TTFT_S * faster, "sigma": _TTFT_SIGMA}, "tokens_per_s": _TOKENS_PER_S}

    models = {BASELINE: behaviour(1.0)} | {s.candidate: behaviour(_FASTER) for s in scenarios}
    return {"apiVersion": "penstock/v1", "kind": "ProviderScenario", "seed": seed, "models": models}


def dropped_series(scenarios: tuple[Scenario, ...]) -> tuple[dict[str, object], ...]:
    """What Prometheus drops so that a candidate is silent: the router counts it, and nobody hears of it."""
    return tuple(
        {"source_labels": ["flag", "arm"], "separator": ";", "regex": f"{s.flag};(candidate|shadow)", "action": "drop"}
        for s in scenarios
        if s.silent
    )
