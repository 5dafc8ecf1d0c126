"""
One attempt, from the gate before its model to its place in the books.

    Caller.call(...) -> Reply | Failed      what `engine` does for users, and `mirror` for copies

Its one rule: an attempt is booked once, wherever it ends: here, or at the end of the stream that it began.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from router.admission import Admission, Visitor
from router.attempt import Stream, Target, complete
from router.booking import Attempt, Ledger, RequestKey
from router.caps import Card, Endpoint, Fit
from router.chat import Chat
from router.connections import Connections
from router.dialect import Dialect
from router.embeddings import Embeddings
from router.errors import broken_off
from router.exchange import CURRENT, waiting
from router.logs import get_logger
from router.outcome import Failed
from router.reasoning import reasoned
from router.request import Reply, Request
from router.responses import Responses
from router.selection import Step, payload

log = get_logger()


DIALECTS: Mapping[Endpoint, Dialect] = {"chat": Chat(), "responses": Responses(), "embeddings": Embeddings()}


_LEFT = Failed(outcome="cancelled", detail="the client left while it waited in line", unasked="limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """
    The time of one attempt, in seconds.

    Args:
        whole_s: Of a JSON answer, or a stream with its last event.
        first_s: Of the wait for a stream's first token.
        full: It is all of the model's own timeout.
    """

    whole_s: float
    first_s: float
    full: bool = True

    @classmethod
    def of(cls, target: Target, *, stream: bool, left_s: float | None = None, share_s: float | None = None) -> "Slice":
        """
        Args:
            left_s: Until the request's deadline; None for no deadline.
            share_s: What others after this attempt leave it. After the first token there are no others.
        """
        own_s = target.stream_s if stream else target.request_s
        own_first_s = min(own_s, target.first_token_s or own_s)
        if left_s is None or share_s is None:
            return cls(whole_s=own_s, first_s=own_first_s)
        if not stream:
            return cls(whole_s=min(own_s, share_s), first_s=own_s, full=own_s <= share_s)
        return cls(whole_s=min(own_s, left_s), first_s=min(own_first_s, share_s), full=own_first_s <= share_s and own_s <= left_s)


class Caller:
    """
    Args:
        targets, cards: Where each model of the configuration is served, and what it can do.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        cards: Mapping[str, Card],
        connections: Connections,
        admission: Admission,
        ledger: Ledger,
    ) -> None:
        self.targets = targets
        self._cards = cards
        self._connections = connections
        self._admission = admission
        self._ledger = ledger

    async def call(
        self, request: Request, step: Step, fit: Fit, attempt: Attempt, key: RequestKey, time: Slice
    ) -> Reply | Failed:
        """
        One attempt.

        Returns:
            Booked, but for two cases: a stream, which its events book at their end, and a refusal (``client_error``), which the
            caller books, since whose fault it is shows only in what others say to the same request.
        """
        target = self.targets[step.model]
        if attempt.permit is None:
            patience_s = time.first_s if request.stream else time.whole_s
            visitor = Visitor(client=request.client, tokens=request.weight.input, patience_s=patience_s, forced=step.forced)
            try:
                with waiting():
                    permit = await self._admission.enter(step.model, visitor)
            except asyncio.CancelledError:
                attempt.never_sent(_LEFT)
                raise
            if isinstance(permit, Failed):
                return attempt.never_sent(permit)
            attempt.permit = permit
        attempt.own_key, attempt.whole_time = not target.forward_authorization, time.full
        attempt.sent()
        call = self._stream if request.stream else self._json
        try:
            return await call(request, step, fit, target, attempt, key, time)
        except BaseException:
            # Whatever this was: its place before the model is free again.
            attempt.permit.close("unclear")
            raise

    async def _json(
        self, request: Request, step: Step, fit: Fit, target: Target, attempt: Attempt, key: RequestKey, time: Slice
    ) -> Reply | Failed:
        body = orjson.dumps(self._fields(request, step, fit, target))
        try:
            dialect = DIALECTS[request.weight.endpoint]
            headers = _headers(target, request, attempt)
            result = await complete(self._connections, dialect, target, body, headers, time.whole_s)
        except asyncio.CancelledError:
            attempt.cancelled()
            raise
        if isinstance(result, Failed):
            return _booked(attempt, _judged(result, target, request))
        if attempt.trace is not None:
            attempt.trace.answer(result.body)
        attempt.completed(result.tokens, result.text_bytes)
        return Reply(status=200, model=step.model, arm=key.arm, fallback=not attempt.assigned, body=result.body, attempt=attempt)

    async def _stream(
        self, request: Request, step: Step, fit: Fit, target: Target, attempt: Attempt, key: RequestKey, time: Slice
    ) -> Reply | Failed:
        stream = self._open(request, step, fit, target, attempt, time)
        try:
            failed = await stream.open()
        except BaseException:
            attempt.cancelled()
            stream.close()
            raise
        if failed is not None:
            return _booked(attempt, _judged(failed, target, request))
        attempt.first_token(stream.head)
        events = self._events(stream, attempt, key, request)
        # Begun here: a generator that nobody has begun does nothing when it is closed, and the client may leave at any moment.
        await anext(events)
        return Reply(status=200, model=step.model, arm=key.arm, fallback=not attempt.assigned, events=events, attempt=attempt)

    async def _events(self, stream: Stream, attempt: Attempt, key: RequestKey, request: Request) -> AsyncGenerator[bytes, None]:
        """The stream to the client; however it ends, it is booked once and its connection is dealt with."""
        ended = False
        try:
            yield b""
            yield stream.head
            async for chunk in stream:
                if attempt.trace is not None:
                    attempt.trace.chunk(chunk)
                if stream.finished:
                    # Booked before the client can know: who has read the last byte finds the request in the metrics.
                    ended = True
                    attempt.completed(stream.tokens, stream.text_bytes)
                yield chunk
            if stream.failure is not None:
                ended = True
                attempt.failed(stream.failure, stream.tokens, stream.text_bytes)
                self._ledger.unavailable(key)
                log.warning(
                    "stream_broken",
                    request_id=request.request_id,
                    route=key.route,
                    arm=key.arm,
                    model=attempt.model,
                    outcome=stream.failure.outcome,
                    detail=stream.failure.detail,
                )
                yield DIALECTS[request.weight.endpoint].broken_off(broken_off(attempt.model, stream.failure))
        finally:
            if not ended:
                attempt.cancelled(stream.tokens, stream.text_bytes)
            stream.close()

    def _fields(self, request: Request, step: Step, fit: Fit, target: Target) -> dict[str, Any]:
        made = payload(request.body, step, target.upstream_name, fit.fields)
        for name in target.drop & made.keys():
            del made[name]
        style, endpoint = self._cards[step.model].reasoning, request.weight.endpoint
        return reasoned(made, request.options.effort, style, responses=endpoint == "responses")

    def _open(self, request: Request, step: Step, fit: Fit, target: Target, attempt: Attempt, time: Slice) -> Stream:
        dialect = DIALECTS[request.weight.endpoint]
        return Stream(
            self._connections,
            dialect,
            dialect.reader(target.model, request.body),
            target,
            orjson.dumps(dialect.streaming(self._fields(request, step, fit, target), request.body)),
            _headers(target, request, attempt),
            limit_s=time.whole_s,
            first_s=time.first_s,
        )


def _judged(failed: Failed, target: Target, request: Request) -> Failed:
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


def _headers(target: Target, request: Request, attempt: Attempt) -> dict[str, str]:
    headers = {"x-request-id": request.request_id}
    if attempt.trace is not None:
        headers.update(attempt.trace.headers())
    elif (exchange := CURRENT.get()) is not None and exchange.carried:
        headers.update(exchange.carried)
    if target.forward_authorization and request.authorization:
        headers["Authorization"] = request.authorization
    return headers
