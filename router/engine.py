"""
A request through its attempts: plan, try, fall back, mirror, book.

    Engine.answer(Request) -> Reply     what HTTP, and later a client object in the application's own process, call

Its one rule: a fallback may only happen before the client has seen anything. After the first content token the only honest
endings are a whole answer or an error.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flagspec import RouteFlag
from router.admission import Admission
from router.attempt import Target
from router.booking import Attempt, Ledger, Refusal, RequestKey
from router.caller import Caller, Slice
from router.caps import Card, Fit, fit
from router.choose import rank
from router.config import Pairs, RouterConfig
from router.connections import Connections
from router.errors import ApiError, input_too_long, model_not_found, nobody_answered
from router.exchange import CURRENT
from router.flags import FlagTable, track
from router.limits import share_s
from router.logs import get_logger
from router.metrics import RouterMetrics
from router.mirror import Mirror
from router.options import KEY, NO_OPTIONS, Goal
from router.outcome import Failed
from router.pairs import PairDesk, PairSink
from router.redact import Redactor
from router.request import Reply, Request
from router.selection import AUTO, NoDrill, Plan, Selector, Step, auto_plan, in_order, preferring, unit_of
from router.shared import Store

if TYPE_CHECKING:
    from router.tracing import Tracer

log = get_logger()

SHORTEST_S = 0.05
"""Less time than this is not worth a call: the connection alone may take as long."""


class Engine:
    """
    Args:
        targets: Where each model of the configuration is served.
        connections: To the providers; the caller opens and closes them.
        now: Aware time, for leases.
        clock: Seconds that never run backwards, for breakers, limits and deadlines.
        sinks: Of shadow pairs, each with its name.
        digest_key: Of the digests in them.
        tracer: Makes spans; None for none.
        store: Of what is counted together with other workers; None for a process without others.
    """

    def __init__(
        self,
        config: RouterConfig,
        targets: Mapping[str, Target],
        connections: Connections,
        flags: FlagTable,
        metrics: RouterMetrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        sinks: Sequence[tuple[str, PairSink]] = (),
        digest_key: bytes | None = None,
        tracer: "Tracer | None" = None,
        store: Store | None = None,
    ) -> None:
        self.tracer = tracer
        self.selector = Selector(config)
        self.ledger = Ledger(config, metrics, clock, now, store)
        self._admission = admission = Admission(config, metrics, clock, store)
        self._config = config
        providers = {p.name: p for p in config.providers}
        self._cards = {m.name: Card.of(m, providers[m.provider]) for m in config.models}
        self._caller = Caller(targets, self._cards, connections, admission, self.ledger)
        self._redactor = Redactor(config.redact)
        desk = None
        if sinks:
            spec = config.shadow.pairs or Pairs()
            desk = PairDesk(spec, config.environment, self._redactor, sinks, metrics, digest_key)
        self._mirror = Mirror(config.shadow, self._caller, admission, self.ledger, metrics, flags, desk)
        self._flags = flags
        self._metrics = metrics
        self._now = now
        self._clock = clock
        cost = config.caps.cost_per_request if config.caps is not None else None
        self._budget_usd = None if cost is None else float(cost.amount)

    async def answer(self, request: Request) -> Reply:
        reply = self._presented(await self._answer(request))
        if (exchange := CURRENT.get()) is not None and exchange.route is not None and not request.drill:
            exemplar = None if exchange.trace is None else exchange.trace.exemplar
            self._metrics.overhead(exchange.route, request.stream).observe(exchange.own_s(), exemplar)
        return reply

    def _presented(self, reply: Reply) -> Reply:
        """What a client may read of it."""
        if reply.error is not None:
            return replace(reply, error=replace(reply.error, message=self._redactor.text(reply.error.message)))
        if reply.status != 200:
            return replace(reply, body=self._redactor.json(reply.body))
        return reply

    async def _answer(self, request: Request) -> Reply:
        caps = self._config.caps
        if caps is not None and caps.input_tokens is not None and request.weight.input > caps.input_tokens:
            self._metrics.capped("input", "refused")
            return _unplanned(input_too_long(request.weight.input, caps.input_tokens))
        model = request.body["model"]
        if request.drill:
            return await self._drill(model, request)
        if request.options is not NO_OPTIONS and (unknown := self._unknown(request)) is not None:
            return _unplanned(unknown)
        plan = self._plan(model, request)
        if plan is None:
            return _unplanned(model_not_found(model))
        if self.ledger.budget.exceeded(self._now()):
            within = self.ledger.budget.allowed(plan, self._now())
            if isinstance(within, ApiError):
                return _unplanned(within)
            # Vectors of another model are of no use, however cheap.
            plan = plan if request.weight.endpoint == "embeddings" else within
        if request.retry:
            self._metrics.retried(plan.route, plan.flag, plan.arm)
        if plan.mirror is None or request.retry:
            return await self._attempts(plan, request)
        with self._mirror.send(plan, plan.mirror, self._fit(plan.mirror, request), request) as original:
            return await original.replied(await self._attempts(plan, request))

    async def close(self) -> None:
        """Lets copies under way finish for as long as the configuration says, then drops them."""
        await self._mirror.close()

    def flags_changed(self, changed: list[RouteFlag]) -> None:
        """Creates the series of flags that were not seen before, and says which of their models do not exist here."""
        track(self._flags, self._metrics)
        for flag in changed:
            for route in self._config.routes:
                if route.flag == flag.key:
                    self._metrics.prime_flag(route.name, flag, route.others)
                    for side in (flag.control, flag.candidate):
                        if side.model not in self._caller.targets:
                            log.error("flag_model_unknown", flag=flag.key, route=route.name, model=side.model)

    async def _drill(self, model: str, request: Request) -> Reply:
        """The same attempts as for a user whose candidate has failed; see `_try` for the one that is left out."""
        if not self._config.fallback_enabled:
            message = "No drill now: fallbacks are off (fallback_enabled)."
            return _unplanned(ApiError(status=409, message=message, code="drill_no_fallback", retryable=False))
        route = self.selector.route_for(model)
        plan = self.selector.drill(model, self._flags.get(route.flag) if route is not None and route.flag else None, self._now())
        match plan:
            case None:
                return _unplanned(model_not_found(model))
            case NoDrill(code=code, text=text):
                return _unplanned(ApiError(status=409, message=f"No drill now: {text}.", code=code, retryable=False))
            case Plan():
                return replace(await self._attempts(plan, request), drill=True)

    def _plan(self, model: str, request: Request) -> Plan | None:
        route, options = self.selector.route_for(model), request.options
        flag = self._flags.get(route.flag) if route is not None and route.flag else None
        unit = None
        if route is not None and flag is not None:
            kind = route.unit or flag.unit
            user = request.body.get("user")
            unit = unit_of(kind, user, request.unit_header, request.authorization, request.request_id)
        plan = self.selector.plan(model, flag, unit, self._now(), options.fallback_models)
        if plan is not None and plan.reason == "no_unit":
            self._metrics.unit_missing(plan.flag)
        goal = options.optimize_for
        if plan is None and model == AUTO:
            plan, goal = auto_plan(list(self._cards), list(self._flags.flags.values())), goal or "quality"
        if plan is None:
            return None
        if goal is not None:
            plan = in_order(plan, self._ranked(plan, request, goal), flag)
        if options.preferred_model is not None:
            plan = preferring(plan, options.preferred_model, flag, self._now())
        if not self._config.fallback_enabled or request.weight.endpoint == "embeddings":
            return replace(plan, steps=plan.steps[:1], refusal_checked=False)
        return plan

    def _ranked(self, plan: Plan, request: Request, goal: Goal) -> list[str]:
        cards = [self._cards[step.model] for step in plan.steps if step.model in self._cards]
        now = self._clock()
        readings = {card.model: self.ledger.recent[card.model].read(now) for card in cards}
        return rank(cards, request.weight, readings, {card.model: self._admission.closed(card.model) for card in cards}, goal)

    def _unknown(self, request: Request) -> ApiError | None:
        for option, names in request.options.models.items():
            if unknown := self.selector.unknown(names):
                return replace(model_not_found(unknown[0]), status=400, param=f"{KEY}.{option}")
        return None

    async def _attempts(self, plan: Plan, request: Request) -> Reply:
        first = plan.steps[0].model
        key = RequestKey(
            route=plan.route,
            flag=plan.flag,
            arm=plan.arm,
            model=first,
            streaming=request.stream,
            drill=plan.drill,
            retry=request.retry,
            endpoint=request.weight.endpoint,
        )
        fitted = self._fit(plan.steps[0], request)
        if isinstance(fitted, Failed):
            fits = [self._fit(step, request) for step in plan.steps]
            if all(isinstance(each, Failed) and each.unasked for each in fits):
                return self._unfit(key, plan, fits, request)
        if (exchange := CURRENT.get()) is not None:
            exchange.planned(plan, self._flags.get(plan.flag) if plan.flag else None, self._flags.revision)
        until = self._clock() + self._deadline_s(plan, request)
        failures: list[tuple[str, Failed]] = []
        spent_usd = 0.0
        with Refusal() as refusal:
            for i, step in enumerate(plan.steps):
                if step.forced and any(model == step.model and not failed.unasked for model, failed in failures):
                    continue
                if i > 0:
                    fitted = self._fit(step, request, spent_usd)
                attempt = self.ledger.begin(key, step.model, request.size, assigned=i == 0)
                left_s = until - self._clock()
                reply = await self._try(request, step, fitted, attempt, key, left_s, len(plan.steps) - 1 - i)
                if isinstance(reply, Reply):
                    refusal.blame(candidate=True)
                    return reply
                if reply.outcome == "client_error" and not reply.unasked:
                    if i > 0 or not plan.refusal_checked:
                        attempt.failed(reply)
                        return _refused(attempt, reply, key)
                    refusal.hold(attempt, reply)
                failures.append((step.model, reply))
                if reply.unasked:
                    continue
                spent_usd += self._spent_usd(step, request, reply)
                log.warning(
                    "attempt_failed",
                    request_id=request.request_id,
                    route=plan.route,
                    arm=plan.arm,
                    model=step.model,
                    outcome=reply.outcome,
                    detail=reply.detail,
                    drill=plan.drill,
                )
        self.ledger.unavailable(key)
        error = nobody_answered(failures)
        return Reply(status=error.status, model="", arm=plan.arm, fallback=len(failures) > 1, error=error)

    async def _try(
        self, request: Request, step: Step, fitted: Fit | Failed, attempt: Attempt, key: RequestKey, left_s: float, after: int
    ) -> Reply | Failed:
        """`Caller.call`, unless there is a reason not to call; that is booked as well."""
        if key.drill and attempt.assigned:
            return attempt.never_sent(_DRILLED)
        if isinstance(fitted, Failed):
            return attempt.never_sent(fitted)
        if left_s < SHORTEST_S:
            return attempt.never_sent(_NO_TIME)
        if fitted.lowered is not None:
            self._metrics.capped(fitted.lowered, "lowered")
        target = self._caller.targets[step.model]
        time = Slice.of(target, stream=request.stream, left_s=left_s, share_s=share_s(left_s, after))
        return await self._caller.call(request, step, fitted, attempt, key, time)

    def _spent_usd(self, step: Step, request: Request, failed: Failed) -> float:
        """What a failed attempt has cost, at least: who read the question bills it, whatever became of the answer."""
        card = self._cards.get(step.model)
        billed = failed.outcome == "timeout" or failed.status == 200
        return request.weight.input * card.rates.input if billed and card is not None and card.rates is not None else 0.0

    def _fit(self, step: Step, request: Request, spent_usd: float = 0.0) -> Fit | Failed:
        card = self._cards.get(step.model)
        if card is None:
            return Failed(outcome="error", detail=f"model {step.model!r} is not in this router's configuration")
        budgets = [usd for usd in (self._budget_usd, request.options.max_cost_usd) if usd is not None]
        budget_usd = min(budgets) - spent_usd if budgets else None
        return fit(request.weight, card, self._config.caps, budget_usd)

    def _unfit(self, key: RequestKey, plan: Plan, fits: list[Fit | Failed], request: Request) -> Reply:
        """Nobody can take it, and the request itself is why: no model's fault, and no call was made."""
        failures = [(step.model, each) for step, each in zip(plan.steps, fits, strict=True) if isinstance(each, Failed)]
        if any(failed.unasked == "cost" for _, failed in failures):
            self._metrics.capped("cost", "refused")
        attempt = self.ledger.begin(key, plan.steps[0].model, request.size, assigned=True)
        attempt.never_sent(replace(failures[0][1], outcome="client_error"))
        error = nobody_answered(failures)
        return Reply(status=error.status, model="", arm=plan.arm, fallback=False, error=error)

    def _deadline_s(self, plan: Plan, request: Request) -> float:
        spec = self._config.deadline.stream if request.stream else self._config.deadline.request
        if spec is not None:
            own_s = spec.total_seconds()
        else:
            targets = [self._caller.targets[step.model] for step in plan.steps if step.model in self._caller.targets]
            # Half of it is kept for those after the first (`share_s`): so the first has all of its own.
            own_s = 2 * max((t.stream_s if request.stream else t.request_s for t in targets), default=0.0)
        return min(own_s, request.options.deadline_s or own_s)


_DRILLED = Failed(outcome="error", detail="failed on purpose, as a drill asked; it was not called")
_NO_TIME = Failed(outcome="timeout", detail="no time was left for it", unasked="deadline")


def _unplanned(error: ApiError) -> Reply:
    return Reply(status=error.status, model="", arm="", fallback=False, error=error)


def _refused(attempt: Attempt, refused: Failed, key: RequestKey) -> Reply:
    """What the provider says about the client's own fault, in its own words where they are in OpenAI's shape."""
    status = refused.status or 400
    error = None
    if refused.body is None:
        error = ApiError(status=status, message=f"The provider refused the request ({refused.detail}).")
    fallback = not attempt.assigned
    return Reply(
        status=status, model=attempt.model, arm=key.arm, fallback=fallback, body=refused.body or b"", error=error, attempt=attempt
    )
