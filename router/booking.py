"""
The books of each attempt: time, outcome, tokens and price, entered exactly once.

Its one rule: the arm's series count the assigned model's own attempt and nothing else; fallbacks are counted as fallbacks, and
every attempt alike in the series of its model.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from router.admission import Permit
from router.breaker import Verdict, verdict_of
from router.budget import Allowance, Budget
from router.caps import Endpoint
from router.choose import Recent
from router.config import RouterConfig
from router.exchange import CURRENT
from router.logs import get_logger
from router.metrics import ArmSeries, FallbackReason, RouterMetrics
from router.outcome import Failed, Outcome
from router.selection import Arm
from router.shared import Store
from router.usage import Rates, Tokens, estimated

if TYPE_CHECKING:
    from router.tracing import AttemptTrace

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """
    Whose result a request is: the labels that its metrics share.

    Args:
        model: The assigned one.
        drill: A synthetic request: its fallbacks count as fallbacks, and nothing of it counts for or against the arm.
        retry: A client's own second try: the first one has counted, and this one does neither for nor against anybody.
    """

    route: str
    flag: str
    arm: Arm
    model: str
    streaming: bool
    drill: bool = False
    retry: bool = False
    endpoint: Endpoint = "chat"

    @property
    def trial(self) -> bool:
        """Whether it is one observation of its arm."""
        return not self.drill and not self.retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """
    What one attempt came to.

    Args:
        took_s, first_s: Until its end, and until its first token where there was one, in seconds.
        cost_usd: None where the model has no price or nobody knows the tokens.
    """

    outcome: Outcome
    took_s: float
    first_s: float | None
    tokens: Tokens | None
    cost_usd: float | None


class Ledger:
    """Prices and providers of all models, what they were like lately, and where to book."""

    def __init__(
        self,
        config: RouterConfig,
        metrics: RouterMetrics,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        store: Store | None = None,
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self.recent = {m.name: Recent() for m in config.models}
        self.log_requests = config.log_requests
        self.rates = {m.name: Rates.of(m.price) for m in config.models if m.price is not None}
        self.now = now
        self.budget = Budget(config.budgets, config.environment, self.rates, store)
        if self.budget.limit_usd is not None:
            metrics.budget(self.budget.limit_usd, lambda: self.budget.spent_usd(now()))
        self.copies = Allowance(config.shadow.budget, store)
        for (window, unit), limit in self.copies.limits.items():
            metrics.shadow_budget(window, unit, limit, lambda w=window, u=unit: self.copies.used(w, u, now()))  # type: ignore[misc]
        self.providers = {m.name: m.provider for m in config.models}
        for model in config.models:
            metrics.model(model.name, model.provider)
        for route in config.routes:
            metrics.prime_default(route.name, route.flag or "", route.default, route.others)

    def begin(self, key: RequestKey, model: str, request_bytes: int, *, assigned: bool) -> "Attempt":
        return Attempt(self, key, model, request_bytes, assigned)

    def unavailable(self, key: RequestKey) -> None:
        """A user's request that nobody answered; a mirrored copy and a drill have no user, and of a retry the first try has counted."""
        if key.arm != "shadow" and key.trial:
            self.metrics.arm(key.route, key.flag, key.arm, key.model, key.streaming).unavailable.inc()


class Attempt:
    """
    One attempt under way. Exactly one of `completed`, `failed`, `cancelled` and `never_sent` ends it.

    Args:
        assigned: The model that the plan put first; False for a fallback.

    Attributes:
        permit: Leave to call the model, closed with the attempt.
        own_key: The call was made with the router's key and not with the client's.
        whole_time: The call had all of the model's own timeout.
        booked: What it came to, once it has ended and if it was sent.
        trace: Its span, from when it is sent; None where there are none.
    """

    __slots__ = (
        "_first_s", "_key", "_ledger", "_request_bytes", "_started", "_took_s", "assigned", "booked", "model", "outcome", "own_key",
        "permit", "trace", "whole_time",
    )  # fmt: skip

    def __init__(self, ledger: Ledger, key: RequestKey, model: str, request_bytes: int, assigned: bool) -> None:
        self._ledger, self._key, self._request_bytes = ledger, key, request_bytes
        self._started = time.perf_counter()
        self._took_s: float | None = None
        self._first_s: float | None = None
        self.booked: Booked | None = None
        self.model = model
        self.assigned = assigned
        self.outcome: Outcome | None = None
        self.permit: Permit | None = None
        self.own_key = self.whole_time = True
        self.trace: AttemptTrace | None = None

    def sent(self) -> None:
        """Its turn has come: what it waited in line is not the model's time."""
        self._started = time.perf_counter()
        if (exchange := CURRENT.get()) is not None and exchange.trace is not None:
            self.trace = exchange.trace.attempt(self.model, self._key.route, self._key.arm, assigned=self.assigned)

    def first_token(self, head: bytes = b"") -> None:
        """`head` is what came so far, for the span."""
        if self.permit is not None:
            self.permit.promising()
        took_s = self._first_s = time.perf_counter() - self._started
        self._ledger.recent[self.model].first_token(took_s, self._ledger.clock())
        if self.assigned and self._key.trial:
            self._series.ttft.observe(took_s, self._exemplar)
        if self.trace is not None:
            self.trace.first_token(took_s, head)

    def completed(self, tokens: Tokens | None, text_bytes: int) -> None:
        tokens = tokens or estimated(self._request_bytes, text_bytes)
        self._release("good", tokens)
        self._end("ok", tokens)

    def failed(self, failed: Failed, tokens: Tokens | None = None, text_bytes: int = 0) -> None:
        if tokens is None and text_bytes:
            tokens = estimated(self._request_bytes, text_bytes)
        self._release(verdict_of(failed, own_key=self.own_key, whole_time=self.whole_time), tokens)
        self._end(failed.outcome, tokens, failed)

    def over(self) -> None:
        """Stops the clock of an attempt whose outcome is not known yet: it was refused, and somebody else is asked why."""
        self._took_s = time.perf_counter() - self._started
        self._release("unclear")

    def cancelled(self, tokens: Tokens | None = None, text_bytes: int = 0) -> None:
        # The provider was at work on the input, and bills it, whether or not anybody waits for the end.
        tokens = tokens or estimated(self._request_bytes, text_bytes)
        self._release("unclear", tokens)
        self._end("cancelled", tokens)

    def never_sent(self, failed: Failed) -> Failed:
        """An attempt that no provider saw: the arm's outcome, but nobody's upstream attempt, and no fallback's either."""
        if self.assigned:
            self._settle(failed.outcome)
        if (exchange := CURRENT.get()) is not None and exchange.trace is not None:
            exchange.trace.skipped(self.model, failed)
        return failed

    @property
    def _series(self) -> ArmSeries:
        key = self._key
        return self._ledger.metrics.arm(key.route, key.flag, key.arm, key.model, key.streaming)

    def _release(self, verdict: Verdict, tokens: Tokens | None = None) -> None:
        if self.permit is not None:
            self.permit.close(verdict, None if tokens is None else tokens.input + tokens.output)

    @property
    def _exemplar(self) -> dict[str, str] | None:
        return None if self.trace is None else self.trace.exemplar

    def _end(self, outcome: Outcome, tokens: Tokens | None, failed: Failed | None = None) -> None:
        took_s = time.perf_counter() - self._started if self._took_s is None else self._took_s
        ledger = self._ledger
        totals = ledger.metrics.model(self.model, ledger.providers[self.model], self._key.endpoint)
        totals.duration.observe(took_s, self._exemplar)
        ledger.recent[self.model].ended(outcome, took_s, tokens.output if tokens else None, ledger.clock())
        if outcome != "ok":
            totals.errors[outcome].inc()
        if tokens is not None:
            totals.input.inc(tokens.input)
            totals.output.inc(tokens.output)
        rates = ledger.rates.get(self.model)
        cost = rates.cost(tokens) if rates is not None and tokens is not None else None
        if self._key.arm == "shadow" and ledger.copies.of_its_own:
            ledger.copies.use(cost or 0.0, tokens.input + tokens.output if tokens is not None else 0, ledger.now())
        elif cost is not None and ledger.budget.limit_usd is not None:
            ledger.budget.spend(cost, ledger.now())
        self.booked = Booked(outcome=outcome, took_s=took_s, first_s=self._first_s, tokens=tokens, cost_usd=cost)
        if self.assigned and self._key.trial:
            series = self._series
            if outcome in ("ok", "timeout"):
                series.duration.observe(took_s, self._exemplar)
            if cost is not None:
                series.cost.inc(cost)
                series.cost_squared.inc(cost * cost)
                series.cost_requests.inc()
        self._settle(outcome)
        if self.trace is not None:
            self.trace.end(outcome, tokens, took_s, failed, cost)
        if ledger.log_requests:
            key = self._key
            log.info(
                "attempt",
                route=key.route,
                flag=key.flag,
                arm=key.arm,
                model=self.model,
                streaming=key.streaming,
                outcome=outcome,
                took_ms=round(took_s * 1000, 1),
                tokens_in=tokens.input if tokens else None,
                tokens_out=tokens.output if tokens else None,
                fallback=not self.assigned,
                drill=key.drill,
            )

    def _settle(self, outcome: Outcome) -> None:
        assert self.outcome is None, f"an attempt ends once, not as {self.outcome} and as {outcome}"
        self.outcome = outcome
        key = self._key
        if self.assigned:
            if key.trial:
                self._series.requests[outcome].inc()
        elif outcome not in ("cancelled", "client_error") and not key.retry:
            # A fallback that refuses the request as well says something of the request, and nothing of the fallback.
            metrics = self._ledger.metrics
            why: FallbackReason = "drill" if key.drill else "failure"
            metrics.fallback(key.route, key.flag, key.arm, key.model, key.streaming, self.model, outcome == "ok", why)


class Refusal:
    """
    The candidate's refusal, until it is known whose fault it is: the request's, or the candidate's own.

    A context manager: whatever ends it while nobody has said (the control failed as well, the client left, the router stops), the
    refusal is booked as ``client_error``, which counts neither for the candidate nor against it.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: tuple[Attempt, Failed] | None = None

    def __enter__(self) -> "Refusal":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.blame(candidate=False)

    def hold(self, attempt: Attempt, refused: Failed) -> None:
        attempt.over()
        self._held = (attempt, refused)

    def blame(self, *, candidate: bool) -> None:
        """Books the refusal, if there is one and it was not booked before."""
        if self._held is not None:
            attempt, refused = self._held
            self._held = None
            attempt.failed(replace(refused, outcome="error") if candidate else refused)
