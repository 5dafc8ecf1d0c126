"""
What the router counts: the names and labels of ``docs/reference/router-metrics.md``, word for word.

Its one rule: a series exists, at 0, before the first request that could raise it, so that "no errors" and "no data" look
different. Children are kept after the first look-up: `labels()` builds and locks on every call, and would cost more than the
counting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from flagspec import WEIGHT_MAX, RouteFlag
from flagspec.latency import LATENCY_EDGES_S
from router.breaker import State
from router.outcome import OUTCOMES, Outcome
from router.selection import Arm

ShadowOutcome = Literal["mirrored", "failed", "skipped_concurrency", "skipped_limit", "skipped_unfit", "skipped_budget"]
PairOutcome = Literal["delivered", "dropped", "failed"]
Capped = Literal["input", "output", "cost"]
CapAction = Literal["lowered", "refused"]
CAPPED: tuple[tuple[Capped, CapAction], ...] = (
    ("input", "refused"), ("output", "lowered"), ("cost", "lowered"), ("cost", "refused"),
)  # fmt: skip
SpanFate = Literal["exported", "failed", "dropped"]

OVERHEAD_EDGES_S = (
    0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
"""Edges at what the router promises of itself (1 ms for JSON, 2 ms for a stream) and on both sides of it."""

FallbackReason = Literal["failure", "drill"]

Others = Callable[[str], Sequence[str]]
"""Assigned model to those who may answer instead (`router.config.Route.others`)."""

_COMMON = ("environment", "flag", "route", "arm", "model", "streaming")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSeries:
    """The series of one (route, flag, arm, model, streaming), looked up once."""

    requests: dict[Outcome, Counter]
    unavailable: Counter
    duration: Histogram
    ttft: Histogram
    cost: Counter
    cost_squared: Counter
    cost_requests: Counter


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSeries:
    """The ``mcp_*`` series of one model."""

    duration: Histogram
    input: Counter
    output: Counter
    errors: dict[Outcome, Counter]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSeries:
    opened: Counter
    skipped: Counter


class RouterMetrics:
    """All metrics of one router, in a registry of their own."""

    def __init__(self, environment: str) -> None:
        # A `_created` line beside each series would double what Prometheus stores; nothing reads them. The switch is global
        # in the library, and a router is a process of its own.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.environment = environment
        self.registry = CollectorRegistry()
        self._overheads: dict[tuple[str, bool], Histogram] = {}
        self._arms: dict[tuple[str, str, Arm, str, bool], ArmSeries] = {}
        self._models: dict[tuple[str, str], ModelSeries] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str, edges: Sequence[float] = LATENCY_EDGES_S) -> Histogram:
            return Histogram(name, text, labels, registry=self.registry, buckets=edges)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        self._requests = counter("penstock_requests", "Finished requests, by outcome of the assigned model.", *_COMMON, "outcome")
        self._unavailable = counter("penstock_unavailable", "User requests without a usable answer from anyone.", *_COMMON)
        self._duration = histogram("penstock_request_duration_seconds", "Duration of the assigned model's attempt.", *_COMMON)
        self._ttft = histogram("penstock_ttft_seconds", "Time to the first content token of a stream.", *_COMMON)
        self._cost = counter("penstock_cost_usd", "Price of the tokens of the assigned model's attempt.", *_COMMON)
        self._cost_squared = counter("penstock_cost_usd_squared", "Sum over requests of the squared price.", *_COMMON)
        self._cost_requests = counter("penstock_cost_requests", "Requests in the two cost counters.", *_COMMON)
        self._fallbacks = counter(
            "penstock_fallbacks", "Fallbacks after the assigned model failed.", *_COMMON, "to_model", "outcome", "reason"
        )
        shadow = [label for label in _COMMON if label != "streaming"]
        self._shadow = counter("penstock_shadow", "Mirrored copies, by outcome.", *shadow, "outcome")
        self._pairs = counter(
            "penstock_shadow_pairs", "Shadow pairs, by sink and what became of them.", "environment", "sink", "outcome"
        )
        for sink, pair_outcome in product(("file", "http", "python"), get_args(PairOutcome)):
            self._pairs.labels(environment, sink, pair_outcome)
        self._shadow_limit = gauge("penstock_shadow_budget", "What copies may use in a window.", "environment", "window", "unit")
        self._shadow_used = gauge(
            "penstock_shadow_budget_used", "What copies have used in the window under way.", "environment", "window", "unit"
        )
        revision = gauge("penstock_flag_revision_applied", "Revision of the flag snapshot in force.", "environment")
        self.flag_revision = revision.labels(environment)
        self._weight = gauge("penstock_flag_weight_applied", "Weight in force, 0..100000.", "environment", "flag")
        stale = gauge("penstock_flag_stale", "1 when the flag source is silent for longer than stale_after.", "environment")
        self.flag_stale = stale.labels(environment)
        self._unit_missing = counter("penstock_unit_missing", "Requests without a unit.", "environment", "flag")
        self._breaker_state = gauge(
            "penstock_breaker_state", "1 for the state that the breaker is in.", "environment", "model", "state"
        )
        self._breaker_opened = counter("penstock_breaker_opened", "Times the breaker has opened.", "environment", "model")
        self._breaker_skipped = counter(
            "penstock_breaker_skipped", "Attempts not made because the breaker was open.", "environment", "model"
        )
        self._budget = gauge("penstock_budget_usd", "What may be spent in a day.", "environment")
        self._spent = gauge("penstock_budget_spent_usd", "What has been spent of it since midnight UTC.", "environment")
        self._retries = counter(
            "penstock_client_retries",
            "Requests that a client's library sent again by itself.",
            "environment",
            "flag",
            "route",
            "arm",
        )
        self._limited = counter(
            "penstock_limited", "Attempts not made because a limit of the model was used up.", "environment", "model"
        )
        self._waiting = gauge("penstock_waiting", "Requests in line for a model.", "environment", "model")
        self._capped = counter("penstock_capped", "Requests that a cap has changed or refused.", "environment", "what", "action")
        for what, action in CAPPED:
            self._capped.labels(environment, what, action)
        self._overhead = histogram(
            "penstock_router_overhead_seconds", "What the router itself took, up to an answer or a stream's first token.",
            "environment", "route", "streaming", edges=OVERHEAD_EDGES_S,
        )  # fmt: skip
        spans = counter("penstock_spans", "Spans that were sampled, by what became of them.", "environment", "outcome")
        self.spans: dict[SpanFate, Counter] = {fate: spans.labels(environment, fate) for fate in get_args(SpanFate)}
        for streaming in (False, True):
            self.overhead("", streaming)
        self._mcp_duration = histogram(
            "mcp_request_duration_seconds", "Duration of upstream attempts.", "model", "provider", "tool"
        )
        self._mcp_tokens = counter("mcp_tokens", "Tokens of upstream attempts.", "model", "direction")
        self._mcp_errors = counter("mcp_model_errors", "Upstream attempts that failed.", "model", "error_type")

    def arm(self, route: str, flag: str, arm: Arm, model: str, streaming: bool) -> ArmSeries:
        key = (route, flag, arm, model, streaming)
        if (known := self._arms.get(key)) is not None:
            return known
        labels = (self.environment, flag, route, arm, model, "true" if streaming else "false")
        made = ArmSeries(
            requests={outcome: self._requests.labels(*labels, outcome) for outcome in OUTCOMES},
            unavailable=self._unavailable.labels(*labels),
            duration=self._duration.labels(*labels),
            ttft=self._ttft.labels(*labels),
            cost=self._cost.labels(*labels),
            cost_squared=self._cost_squared.labels(*labels),
            cost_requests=self._cost_requests.labels(*labels),
        )
        self._arms[key] = made
        return made

    def model(self, model: str, provider: str, tool: str = "chat") -> ModelSeries:
        if (known := self._models.get((model, tool))) is not None:
            return known
        made = ModelSeries(
            duration=self._mcp_duration.labels(model, provider, tool),
            input=self._mcp_tokens.labels(model, "input"),
            output=self._mcp_tokens.labels(model, "output"),
            errors={outcome: self._mcp_errors.labels(model, outcome) for outcome in OUTCOMES if outcome != "ok"},
        )
        self._models[model, tool] = made
        return made

    def overhead(self, route: str, streaming: bool) -> Histogram:
        """`route` is one of the configuration, or "" for a model that was asked for directly."""
        if (known := self._overheads.get((route, streaming))) is None:
            known = self._overhead.labels(self.environment, route, "true" if streaming else "false")
            self._overheads[route, streaming] = known
        return known

    def fallback(
        self, route: str, flag: str, arm: Arm, model: str, streaming: bool, to_model: str, ok: bool, reason: FallbackReason
    ) -> None:
        self._fallback(route, flag, arm, model, streaming, to_model, ok, reason).inc()

    def shadow(self, route: str, flag: str, model: str, outcome: ShadowOutcome) -> None:
        self._shadow.labels(self.environment, flag, route, "shadow", model, outcome).inc()

    def pairs(self, sink: str, outcome: PairOutcome, count: int = 1) -> None:
        self._pairs.labels(self.environment, sink, outcome).inc(count)

    def shadow_budget(self, window: str, unit: str, limit: float, used: Callable[[], float]) -> None:
        self._shadow_limit.labels(self.environment, window, unit).set(limit)
        self._shadow_used.labels(self.environment, window, unit).set_function(used)

    def unit_missing(self, flag: str) -> None:
        self._unit_missing.labels(self.environment, flag).inc()

    def breaker(self, model: str, state: Callable[[], State]) -> BreakerSeries:
        """The state is read when the page is written: an open breaker becomes half open without an event."""
        for one in get_args(State):
            self._breaker_state.labels(self.environment, model, one).set_function(partial(_is, state, one))
        labels = (self.environment, model)
        return BreakerSeries(opened=self._breaker_opened.labels(*labels), skipped=self._breaker_skipped.labels(*labels))

    def limited(self, model: str, waiting: Callable[[], int]) -> Counter:
        self._waiting.labels(self.environment, model).set_function(lambda: float(waiting()))
        return self._limited.labels(self.environment, model)

    def budget(self, limit_usd: float, spent_usd: Callable[[], float]) -> None:
        self._budget.labels(self.environment).set(limit_usd)
        self._spent.labels(self.environment).set_function(spent_usd)

    def retried(self, route: str, flag: str, arm: Arm) -> None:
        self._retries.labels(self.environment, flag, route, arm).inc()

    def capped(self, what: Capped, action: CapAction) -> None:
        self._capped.labels(self.environment, what, action).inc()

    def weight(self, flag: str, read: Callable[[], int]) -> None:
        """The weight is read when the metrics are: a lease that lapses shows without an event."""
        self._weight.labels(self.environment, flag).set_function(lambda: float(read()))

    def prime_default(self, route: str, flag: str, model: str, others: Others) -> None:
        """The series of a route before its flag was seen, and of one without a flag."""
        self._prime_arm(route, flag, "baseline", model, others(model))
        for streaming in (False, True):
            self.overhead(route, streaming)
        if flag:
            self._unit_missing.labels(self.environment, flag)

    def prime_flag(self, route: str, flag: RouteFlag, others: Others) -> None:
        """The series of a flag's two arms and its shadow, before any request."""
        control, candidate = flag.control.model, flag.candidate.model
        self._prime_arm(route, flag.key, "baseline", control, others(control))
        # The control may be the candidate's own model with other params, and is tried then all the same.
        after = [control, *others(candidate)]
        self._prime_arm(route, flag.key, "candidate", candidate, after, drills=True)
        for streaming in (False, True):
            self.arm(route, flag.key, "shadow", candidate, streaming)
        for outcome in get_args(ShadowOutcome):
            self._shadow.labels(self.environment, flag.key, route, "shadow", candidate, outcome)
        self._unit_missing.labels(self.environment, flag.key)

    def exposition(self, accept: str = "") -> tuple[bytes, bytes]:
        """
        Args:
            accept: The header of that name; exemplars are in OpenMetrics only, for those who ask for it.

        Returns:
            Content type and page.
        """
        encode, content_type = choose_encoder(accept)
        return content_type.encode(), encode(self.registry)

    def _prime_arm(self, route: str, flag: str, arm: Arm, model: str, fallbacks: Sequence[str], *, drills: bool = False) -> None:
        self._retries.labels(self.environment, flag, route, arm)
        reasons: tuple[FallbackReason, ...] = ("failure", "drill") if drills else ("failure",)
        for streaming in (False, True):
            self.arm(route, flag, arm, model, streaming)
            for to_model, ok, reason in product(fallbacks, (True, False), reasons):
                self._fallback(route, flag, arm, model, streaming, to_model, ok, reason)

    def _fallback(
        self, route: str, flag: str, arm: Arm, model: str, streaming: bool, to_model: str, ok: bool, reason: FallbackReason
    ) -> Counter:
        labels = (self.environment, flag, route, arm, model, "true" if streaming else "false")
        return self._fallbacks.labels(*labels, to_model, "ok" if ok else "failed", reason)


def _is(state: Callable[[], State], one: State) -> float:
    return float(state() == one)


def weight_in_force(flag: RouteFlag | None, lapsed: bool) -> int:
    """What a flag amounts to: 0 while it is killed, its lease has lapsed, or it is unknown; 0..WEIGHT_MAX otherwise."""
    if flag is None or flag.killed or lapsed:
        return 0
    return min(flag.weight, WEIGHT_MAX)
