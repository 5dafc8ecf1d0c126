"""
A request through its attempts: plan, try, fall back, mirror, book.

    Engine.chat(ChatRequest) -> Reply     what HTTP, and later a client object in the application's own process, call

Its one rule: a fallback may only happen before the client has seen anything. After the first content token the only honest
endings are a whole answer or an error.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from flagspec import RouteFlag
from router.admission import Admission
from router.attempt import Stream, Target, complete
from router.booking import Attempt, Ledger, Refusal, RequestKey
from router.config import RouterConfig
from router.connections import Connections
from router.errors import ApiError, model_not_found
from router.flags import FlagTable, track
from router.logs import get_logger
from router.metrics import RouterMetrics
from router.outcome import Failed
from router.selection import NoDrill, Plan, Selector, Step, payload, unit_of

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """
    One request, already checked for its types.

    Args:
        body: As the client sent it; never changed.
        size: Of the body as sent, in bytes.
        stream: Whether the client asked for events.
        request_id: Goes upstream as ``x-request-id``.
        unit_header: The header ``x-penstock-unit``.
        authorization: The header of that name.
        drill: A synthetic request: the candidate fails without being asked.
    """

    body: Mapping[str, Any]
    size: int
    stream: bool
    request_id: str
    unit_header: str | None = None
    authorization: str | None = None
    drill: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """
    What the client gets: `body`, or `events` when it asked for a stream and one began, or `error`.

    Args:
        model: Who answered; "" if nobody did.
        arm: Whose result this request is.
        fallback: True when another than the assigned model answered.
        events: Must be closed (``aclosing``), read to the end or not.
        drill: It answers a drill that took place.
    """

    status: int
    model: str
    arm: str
    fallback: bool
    body: bytes = b""
    events: AsyncGenerator[bytes, None] | None = None
    error: ApiError | None = None
    drill: bool = False


class Engine:
    """
    Args:
        targets: Where each model of the configuration is served.
        connections: To the providers; the caller opens and closes them.
        now: Aware time, for leases.
        clock: Seconds that never run backwards, for breakers.
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
    ) -> None:
        self.selector = Selector(config)
        self.ledger = Ledger(config, metrics)
        self._admission = Admission(config, metrics, clock)
        self._config = config
        self._targets = targets
        self._connections = connections
        self._flags = flags
        self._metrics = metrics
        self._now = now
        self._copies: set[asyncio.Task[None]] = set()

    async def chat(self, request: ChatRequest) -> Reply:
        model = request.body["model"]
        if request.drill:
            return await self._drill(model, request)
        plan = self._plan(model, request)
        if plan is None:
            return _unplanned(model_not_found(model))
        if plan.mirror is None:
            return await self._attempts(plan, request)
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._mirror(plan, plan.mirror, request, answered)
        try:
            reply = await self._attempts(plan, request)
            answered.set_result(reply.status == 200)
            return reply
        finally:
            if not answered.done():
                answered.set_result(False)

    async def close(self) -> None:
        """Lets copies under way finish for as long as the configuration says, then drops them."""
        if self._copies:
            _, late = await asyncio.wait(self._copies, timeout=self._config.shadow.drain.total_seconds())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def flags_changed(self, changed: list[RouteFlag]) -> None:
        """Creates the series of flags that were not seen before, and says which of their models do not exist here."""
        track(self._flags, self._metrics)
        for flag in changed:
            for route in self._config.routes:
                if route.flag == flag.key:
                    self._metrics.prime_flag(route.name, flag, route.others)
                    for side in (flag.control, flag.candidate):
                        if side.model not in self._targets:
                            log.error("flag_model_unknown", flag=flag.key, route=route.name, model=side.model)

    async def _drill(self, model: str, request: ChatRequest) -> Reply:
        """The same attempts as for a user whose candidate has failed; see `_try` for the one that is left out."""
        route = self.selector.route_for(model)
        plan = self.selector.drill(model, self._flags.get(route.flag) if route is not None and route.flag else None, self._now())
        match plan:
            case None:
                return _unplanned(model_not_found(model))
            case NoDrill(code=code, text=text):
                return _unplanned(ApiError(status=409, message=f"No drill now: {text}.", code=code, retryable=False))
            case Plan():
                return replace(await self._attempts(plan, request), drill=True)

    def _plan(self, model: str, request: ChatRequest) -> Plan | None:
        route = self.selector.route_for(model)
        flag = self._flags.get(route.flag) if route is not None and route.flag else None
        unit = None
        if route is not None and flag is not None:
            kind = route.unit or flag.unit
            user = request.body.get("user")
            unit = unit_of(kind, user, request.unit_header, request.authorization, request.request_id)
        plan = self.selector.plan(model, flag, unit, self._now())
        if plan is not None and plan.reason == "no_unit":
            self._metrics.unit_missing(plan.flag)
        return plan

    async def _attempts(self, plan: Plan, request: ChatRequest) -> Reply:
        first = plan.steps[0].model
        key = RequestKey(route=plan.route, flag=plan.flag, arm=plan.arm, model=first, streaming=request.stream, drill=plan.drill)
        failures: list[tuple[str, Failed]] = []
        with Refusal() as refusal:
            for i, step in enumerate(plan.steps):
                if step.forced and any(model == step.model and not failed.unasked for model, failed in failures):
                    continue
                attempt = self.ledger.begin(key, step.model, request.size, assigned=i == 0)
                reply = await self._try(request, step, attempt, key)
                if isinstance(reply, Reply):
                    refusal.blame(candidate=True)
                    return reply
                if reply.outcome == "client_error":
                    if i > 0 or not plan.refusal_checked:
                        attempt.failed(reply)
                        return _refused(attempt, reply, key)
                    refusal.hold(attempt, reply)
                failures.append((step.model, reply))
                if reply.unasked:
                    continue
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
        error = _nobody(failures)
        return Reply(status=error.status, model="", arm=plan.arm, fallback=len(failures) > 1, error=error)

    async def _try(self, request: ChatRequest, step: Step, attempt: Attempt, key: RequestKey) -> Reply | Failed:
        """
        One attempt.

        Returns:
            Booked, but for two cases: a stream, which its events book at their end, and a refusal (``client_error``), which the
            caller books, since whose fault it is shows only in what others say to the same request.
        """
        if key.drill and attempt.assigned:
            return attempt.never_sent(_DRILLED)
        target = self._targets.get(step.model)
        if target is None:
            return attempt.never_sent(_unknown(step))
        if key.arm != "shadow":
            # A copy neither asks a breaker nor feeds it: whatever becomes of it, no user notices.
            permit = self._admission.enter(step.model, forced=step.forced)
            if isinstance(permit, Failed):
                return attempt.never_sent(permit)
            attempt.permit = permit
        attempt.own_key = not target.forward_authorization
        call = self._stream if request.stream else self._json
        return await call(request, step, target, attempt, key)

    async def _json(self, request: ChatRequest, step: Step, target: Target, attempt: Attempt, key: RequestKey) -> Reply | Failed:
        body = orjson.dumps(payload(request.body, step, target.upstream_name))
        try:
            result = await complete(self._connections, target, body, _headers(target, request))
        except asyncio.CancelledError:
            attempt.cancelled()
            raise
        if isinstance(result, Failed):
            return _booked(attempt, _judged(result, target, request))
        attempt.completed(result.tokens, result.text_bytes)
        return Reply(status=200, model=step.model, arm=key.arm, fallback=not attempt.assigned, body=result.body)

    async def _stream(
        self, request: ChatRequest, step: Step, target: Target, attempt: Attempt, key: RequestKey
    ) -> Reply | Failed:
        stream = self._open(request, step, target)
        try:
            failed = await stream.open()
        except BaseException:
            attempt.cancelled()
            stream.close()
            raise
        if failed is not None:
            return _booked(attempt, _judged(failed, target, request))
        attempt.first_token()
        events = self._events(stream, attempt, key, request)
        return Reply(status=200, model=step.model, arm=key.arm, fallback=not attempt.assigned, events=events)

    async def _events(
        self, stream: Stream, attempt: Attempt, key: RequestKey, request: ChatRequest
    ) -> AsyncGenerator[bytes, None]:
        """The stream to the client; however it ends, it is booked once and its connection is dealt with."""
        ended = False
        try:
            yield stream.head
            async for chunk in stream:
                if stream.finished:
                    # Booked before the client can know: who has read the last byte finds the request in the metrics.
                    ended = True
                    attempt.completed(stream.tokens, stream.text_bytes)
                yield chunk
            if stream.failure is not None:
                ended = True
                attempt.failed(stream.failure, stream.tokens, stream.text_bytes)
                self.ledger.unavailable(key)
                log.warning(
                    "stream_broken",
                    request_id=request.request_id,
                    route=key.route,
                    arm=key.arm,
                    model=attempt.model,
                    outcome=stream.failure.outcome,
                    detail=stream.failure.detail,
                )
                yield _broken_off(attempt.model, stream.failure).event()
        finally:
            if not ended:
                attempt.cancelled(stream.tokens, stream.text_bytes)
            stream.close()

    def _open(self, request: ChatRequest, step: Step, target: Target) -> Stream:
        fields = payload(request.body, step, target.upstream_name)
        asked = request.body.get("stream_options")
        options = asked if isinstance(asked, dict) else {}
        wanted = bool(options.get("include_usage"))
        fields["stream"] = True
        fields["stream_options"] = {**options, "include_usage": True}
        return Stream(self._connections, target, orjson.dumps(fields), _headers(target, request), wanted)

    def _mirror(self, plan: Plan, step: Step, request: ChatRequest, answered: "asyncio.Future[bool]") -> None:
        if len(self._copies) >= self._config.shadow.concurrency:
            self._metrics.shadow(plan.route, plan.flag, step.model, "skipped_concurrency")
            return
        task = asyncio.get_running_loop().create_task(self._copy(plan, step, request, answered), name="shadow")
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _copy(self, plan: Plan, step: Step, request: ChatRequest, answered: "asyncio.Future[bool]") -> None:
        """A mirrored request: the same calls, read to the end for time, tokens and price, and shown to nobody."""
        key = RequestKey(route=plan.route, flag=plan.flag, arm="shadow", model=step.model, streaming=request.stream)
        attempt = self.ledger.begin(key, step.model, request.size, assigned=True)
        ok = False
        try:
            with Refusal() as refusal:
                reply = await self._try(request, step, attempt, key)
                if isinstance(reply, Failed) and reply.outcome == "client_error":
                    refusal.hold(attempt, reply)
                    await asyncio.wait([answered], timeout=self._patience_s(step, request))
                    refusal.blame(candidate=answered.done() and answered.result())
            if isinstance(reply, Reply) and reply.events is not None:
                async with aclosing(reply.events) as events:
                    async for _ in events:
                        pass
            ok = attempt.outcome == "ok"
        except Exception as exc:
            log.error("shadow_bug", request_id=request.request_id, model=step.model, error=type(exc).__name__)
        finally:
            self._metrics.shadow(plan.route, plan.flag, step.model, "mirrored" if ok else "failed")

    def _patience_s(self, step: Step, request: ChatRequest) -> float:
        """How long a refused copy waits for the user's own answer: as long as it might have taken to answer itself."""
        target = self._targets[step.model]
        return target.stream_s if request.stream else target.request_s


_DRILLED = Failed(outcome="error", detail="failed on purpose, as a drill asked; it was not called")


def _unplanned(error: ApiError) -> Reply:
    return Reply(status=error.status, model="", arm="", fallback=False, error=error)


def _judged(failed: Failed, target: Target, request: ChatRequest) -> Failed:
    """
    A drill's own key that a provider refuses says nothing of the fallback: users come with keys of theirs. It is the drill's own fault, and
    counts neither way.
    """
    if request.drill and target.forward_authorization and failed.status in (401, 403):
        detail = f"{failed.detail}; {target.provider} wants a key of the sender's in the header authorization"
        return replace(failed, outcome="client_error", detail=detail)
    return failed


def _booked(attempt: Attempt, failed: Failed) -> Failed:
    if failed.outcome != "client_error":
        attempt.failed(failed)
    return failed


def _refused(attempt: Attempt, refused: Failed, key: RequestKey) -> Reply:
    """What the provider says about the client's own fault, in its own words where they are in OpenAI's shape."""
    status = refused.status or 400
    error = None
    if refused.body is None:
        error = ApiError(status=status, message=f"The provider refused the request ({refused.detail}).")
    fallback = not attempt.assigned
    return Reply(status=status, model=attempt.model, arm=key.arm, fallback=fallback, body=refused.body or b"", error=error)


def _headers(target: Target, request: ChatRequest) -> dict[str, str]:
    headers = {"x-request-id": request.request_id}
    if target.forward_authorization and request.authorization:
        headers["Authorization"] = request.authorization
    return headers


def _unknown(step: Step) -> Failed:
    return Failed(outcome="error", detail=f"model {step.model!r} is not in this router's configuration")


def _nobody(failures: list[tuple[str, Failed]]) -> ApiError:
    """The answer when every attempt failed: the kind of the last failure, and who was tried."""
    # Who was asked says more about what is wrong than who was not.
    asked = [failed for _, failed in failures if not failed.unasked]
    last = asked[-1] if asked else min((failed for _, failed in failures), key=lambda f: int(f.retry_after or 0))
    tried = "; ".join(f"{model}: {failed.detail}" for model, failed in failures)
    message = f"No model answered ({tried})."
    match last.outcome:
        case _ if last.unasked == "breaker":
            return ApiError(status=503, message=message, type="server_error", code="breaker_open", retry_after=last.retry_after)
        case "timeout":
            return ApiError(status=504, message=message, type="timeout_error", code="timeout", retryable=False)
        case "rate_limited":
            return ApiError(
                status=429, message=message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=last.retry_after
            )
        case _:
            return ApiError(status=502, message=message, type="server_error", code="upstream_error", retryable=False)


def _broken_off(model: str, failed: Failed) -> ApiError:
    message = f"The answer of {model} broke off: {failed.detail}."
    return ApiError(status=502, message=message, type="server_error", code=f"stream_{failed.outcome}")
