"""
Spans: one of kind SERVER for a request, one of kind CLIENT for each attempt, and a root of its own for a mirrored copy, linked to
the request that it was copied from.

    Tracer.begin(endpoint, headers) -> RequestTrace    `app`
    RequestTrace.attempt(...) -> AttemptTrace          `booking`, which also ends it

`collector` says where they go. Its one rule: names, numbers and identifiers only. Text of a prompt or an answer enters a span where both
router.yaml and the environment ask for it, and then redacted.
"""

import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import orjson
from opentelemetry import propagate
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as Maker
from opentelemetry.util.types import AttributeValue

from flagspec import RouteFlag
from router import conventions as names
from router.attempt import Target
from router.caps import Endpoint
from router.outcome import Failed, Outcome
from router.request import Request
from router.selection import Plan
from router.sse import SseSplitter, data_of
from router.usage import Tokens

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Exemplar = dict[str, str]

CONTENT_MAX = 32 * 1024
"""Characters of a prompt or an answer in a span: collectors refuse batches of megabytes."""

_FINISH = re.compile(rb'"finish_reason":\s*"([a-z_]{1,40})"')


class Tracer:
    """
    Args:
        maker: Of OpenTelemetry's SDK.
        targets: The models that there are; no other name comes into a span.
        redacted: What texts pass through that others have written.
        capture: Prompts and answers come into spans as well.
    """

    def __init__(
        self,
        maker: Maker,
        convention: names.Names,
        targets: Mapping[str, Target],
        known: Iterable[str],
        environment: str,
        redacted: Callable[[Any], Any],
        *,
        capture: bool = False,
        propagated: bool = True,
    ) -> None:
        self.maker, self.names, self.environment, self.redacted = maker, convention, environment, redacted
        self.capture, self.propagated = capture, propagated
        self.known = frozenset(known)
        self._textmap = propagate.get_global_textmap()
        self._fields = [(name.lower().encode("latin-1"), name) for name in self._textmap.fields]
        self.served = {model: self._served(target) for model, target in targets.items()}

    def begin(self, endpoint: Endpoint, path: str, headers: Mapping[bytes, bytes]) -> "RequestTrace":
        carrier = {name: headers[key].decode("latin-1") for key, name in self._fields if key in headers}
        # In the application's own process there may be a span of the application's.
        context = self._textmap.extract(carrier, get_current())
        operation = names.OPERATIONS[endpoint]
        attributes: dict[str, AttributeValue] = {names.OPERATION: operation, names.METHOD: "POST", names.PATH: path}
        span = self.maker.start_span(operation, context, SpanKind.SERVER, attributes)
        return RequestTrace(self, span, set_span_in_context(span, context), operation)

    def inject(self, context: Context) -> Mapping[str, str]:
        made: dict[str, str] = {}
        if self.propagated:
            self._textmap.inject(made, context)
        return made

    def _served(self, target: Target) -> Mapping[str, AttributeValue]:
        system = names.system_of(target.provider, target.base_url)
        parts = urlsplit(target.base_url)
        return {
            self.names.provider: self.names.systems.get(system, system),
            names.REQUEST_MODEL: target.upstream_name,
            names.SERVER_ADDRESS: parts.hostname or "",
            names.SERVER_PORT: parts.port or (443 if parts.scheme == "https" else 80),
        }


class RequestTrace:
    """
    The span of one request; a context manager, which ends it whatever happens.

    Attributes:
        exemplar: Its ids, for a histogram's exemplar; None if the trace is not sampled.
        ids: The same for log lines.
    """

    __slots__ = (
        "_attributes",
        "_began",
        "_context",
        "_failed",
        "_links",
        "_operation",
        "_request",
        "_span",
        "_status",
        "exemplar",
        "ids",
        "tracer",
    )  # fmt: skip

    def __init__(self, tracer: Tracer, span: Span | None, context: Context, operation: str, links: tuple[Link, ...] = ()) -> None:
        self.tracer, self._span, self._context, self._operation, self._links = tracer, span, context, operation, links
        self._began = time.perf_counter()
        self._request: Request | None = None
        self._attributes: dict[str, AttributeValue] = {}
        self._status: int | None = None
        self._failed: str | None = None
        self.ids: Exemplar | None = None if span is None else _ids(span)
        self.exemplar = self.ids if span is not None and span.get_span_context().trace_flags.sampled else None

    def __enter__(self) -> "RequestTrace":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _traceback: object) -> None:
        span = self._span
        if span is None:
            return
        if span.is_recording():
            if self._status is not None:
                self._attributes[names.STATUS] = self._status
            if exc is not None or self._status is None:
                # A client that leaves is no error of anybody's here.
                self._failed = type(exc).__name__ if isinstance(exc, Exception) else "cancelled"
            elif self._status >= 400:
                self._failed = self._failed or str(self._status)
            if self._failed is not None:
                self._attributes[names.ERROR_TYPE] = self._failed
                if self._failed != "cancelled" and (self._status is None or not 400 <= self._status < 500):
                    span.set_status(Status(StatusCode.ERROR))
            span.set_attributes(self._attributes)
        span.end()

    def watching(self, send: Send) -> Send:
        """Notes the status on its way to the client."""

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
            await send(message)

        return watched

    def asked(self, request: Request) -> None:
        self._request = request
        span = self._span
        if span is not None and span.is_recording():
            model = request.body["model"]
            if model in self.tracer.known:
                span.update_name(f"{self._operation} {model}")
                self._attributes[names.REQUEST_MODEL] = model
            self._attributes[names.REQUEST_ID] = self.tracer.redacted(request.request_id)
            if request.drill:
                self._attributes[names.DRILL] = True

    def planned(self, plan: Plan, flag: RouteFlag | None, revision: int | None) -> None:
        self._attributes |= {names.ROUTE: plan.route, names.ARM: plan.arm, names.REASON: plan.reason}
        if self._span is None or flag is None or plan.flag != flag.key:
            return
        self._attributes |= {names.FLAG_KEY: flag.key, names.DECISION: flag.decision_id}
        if revision is not None:
            self._attributes[names.REVISION] = revision
        said: dict[str, AttributeValue] = {
            names.FLAG_KEY: flag.key,
            names.FLAG_PROVIDER: "penstock",
            names.FLAG_VARIANT: plan.arm,
            names.FLAG_REASON: names.FLAG_REASONS.get(plan.reason, "unknown"),
            names.FLAG_VERSION: str(flag.version),
            names.FLAG_SET: self.tracer.environment,
        }
        self._span.add_event(names.FLAG_EVENT, said)

    def note(self, event: str, **attributes: AttributeValue) -> None:
        if self._span is not None:
            self._span.add_event(event, attributes)

    def breaker_opened(self, model: str) -> None:
        """This request's failure was one too many."""
        self.note(names.BREAKER_OPENED, **{names.MODEL_NAME: model})

    def skipped(self, model: str, failed: Failed) -> None:
        """An attempt that no provider saw."""
        event = names.BREAKER_OPEN if failed.unasked == "breaker" else names.SKIPPED
        self.note(event, **{names.MODEL_NAME: model, names.REASON: failed.unasked or failed.outcome})

    def attempt(self, model: str, route: str, arm: str, *, assigned: bool) -> "AttemptTrace":
        if not assigned:
            self.note(names.FALLBACK, **{names.MODEL_NAME: model})
        return AttemptTrace(self, model, route, arm, assigned=assigned)

    def copy(self) -> "RequestTrace":
        """A mirrored copy's: no span of its own, and its attempt is the root of a trace that is linked to this one."""
        links = () if self._span is None else (Link(self._span.get_span_context()),)
        copied = RequestTrace(self.tracer, None, Context(), self._operation, links)
        copied._request = self._request
        return copied

    def first_token(self) -> None:
        self._attributes[names.TTFT_MS] = _ms(time.perf_counter() - self._began)
        self.note(names.FIRST_TOKEN)

    def served(self, attributes: Mapping[str, AttributeValue], failed: str | None) -> None:
        """The last attempt says what became of the request."""
        self._attributes |= attributes
        self._failed = failed


class AttemptTrace:
    """The span of one call to a provider, from its turn to its end."""

    __slots__ = (
        "_assigned",
        "_attributes",
        "_began_ns",
        "_context",
        "_finish",
        "_model",
        "_of",
        "_span",
        "_text",
        "exemplar",
        "recording",
    )

    def __init__(self, of: RequestTrace, model: str, route: str, arm: str, *, assigned: bool) -> None:
        tracer, request = of.tracer, of._request
        served = tracer.served[model]
        attributes: dict[str, AttributeValue] = {
            names.OPERATION: of._operation, **served, names.MODEL_NAME: model, names.ROUTE: route, names.ARM: arm,
            names.FALLBACK_USED: not assigned,
        }  # fmt: skip
        self._began_ns = time.time_ns()
        self._of, self._model, self._assigned = of, model, assigned
        span = self._span = tracer.maker.start_span(
            f"{of._operation} {served[names.REQUEST_MODEL]!s}",
            of._context,
            SpanKind.CLIENT,
            attributes,
            of._links,
            start_time=self._began_ns,
        )
        self._context = set_span_in_context(span, of._context)
        self.recording = span.is_recording()
        self.exemplar = _ids(span) if span.get_span_context().trace_flags.sampled else None
        self._attributes: dict[str, AttributeValue] = {}
        self._finish: dict[str, None] = {}
        self._text: list[bytes] = []
        if self.recording and request is not None:
            self._asked(request)

    def headers(self) -> Mapping[str, str]:
        """For the provider: traceparent, tracestate, baggage."""
        return self._of.tracer.inject(self._context)

    def first_token(self, took_s: float, head: bytes) -> None:
        self._of.first_token()
        self._attributes[names.TTFT_MS] = _ms(took_s)
        if (name := self._of.tracer.names.first_chunk_s) is not None:
            self._attributes[name] = round(took_s, 6)
        self._span.add_event(names.FIRST_TOKEN)
        if self.recording:
            first = next((data for raw in SseSplitter().feed(head) if (data := data_of(raw)) is not None), None)
            self._said(first)
            self.chunk(head)

    def answer(self, body: bytes) -> None:
        """A JSON answer."""
        if self.recording:
            said = self._said(body)
            choices = said.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                if isinstance(choice, dict) and isinstance(reason := choice.get("finish_reason"), str):
                    self._finish[reason[:40]] = None
            if self._of.tracer.capture:
                self._content(names.OUTPUT_MESSAGES, names.COMPLETION_EVENT, names.COMPLETION, _answered(said))

    def chunk(self, chunk: bytes) -> None:
        """A piece of a stream, as it goes to the client."""
        if self.recording:
            for reason in _FINISH.findall(chunk):
                self._finish[reason.decode()] = None
            if self._of.tracer.capture and sum(map(len, self._text)) < 8 * CONTENT_MAX:
                self._text.append(chunk)

    def end(self, outcome: Outcome, tokens: Tokens | None, took_s: float, failed: Failed | None, cost_usd: float | None) -> None:
        span, attributes = self._span, self._attributes
        if self._text:
            self._content(names.OUTPUT_MESSAGES, names.COMPLETION_EVENT, names.COMPLETION, _streamed(b"".join(self._text)))
        attributes[names.OUTCOME] = outcome
        own: dict[str, AttributeValue] = {names.MODEL_NAME: self._model, names.FALLBACK_USED: not self._assigned}
        if tokens is not None:
            own |= {names.TOKENS_IN: tokens.input, names.TOKENS_OUT: tokens.output, names.ESTIMATED: tokens.estimated}
            attributes |= {names.INPUT_TOKENS: tokens.input, names.OUTPUT_TOKENS: tokens.output}
        if cost_usd is not None:
            attributes[names.COST_USD] = cost_usd
        if self._finish:
            attributes[names.FINISH_REASONS] = list(self._finish)
        error = None
        if outcome != "ok":
            status = None if failed is None else failed.status
            error = str(status) if status is not None and status != 200 else outcome
            attributes[names.ERROR_TYPE] = error
            if outcome != "cancelled":
                said = None if failed is None else self._of.tracer.redacted(failed.detail)
                span.set_status(Status(StatusCode.ERROR, said))
        self._of.served(own, error)
        span.set_attributes({**attributes, **own})
        span.end(self._began_ns + int(took_s * 1e9))

    def _asked(self, request: Request) -> None:
        convention = self._of.tracer.names
        for field, name in names.REQUEST_FIELDS.items():
            if isinstance(value := request.body.get(field), int | float) and not isinstance(value, bool):
                self._attributes[name] = value
        if isinstance(seed := request.body.get("seed"), int):
            self._attributes[convention.seed] = seed
        if self._of.tracer.capture:
            given = request.body.get("messages") or request.body.get("input")
            self._content(names.INPUT_MESSAGES, names.PROMPT_EVENT, names.PROMPT, _messages(given))

    def _said(self, data: bytes | None) -> dict[str, Any]:
        try:
            said = orjson.loads(data or b"")
        except orjson.JSONDecodeError:
            return {}
        if not isinstance(said, dict):
            return {}
        inner = said["response"] if isinstance(said.get("response"), dict) else said
        for field, name in (("id", names.RESPONSE_ID), ("model", names.RESPONSE_MODEL)):
            if isinstance(value := inner.get(field), str):
                self._attributes[name] = self._of.tracer.redacted(value[:128])
        return said

    def _content(self, attribute: str, event: str, field: str, messages: list[dict[str, Any]]) -> None:
        tracer = self._of.tracer
        text = orjson.dumps(tracer.redacted(messages)).decode()[:CONTENT_MAX]
        if tracer.names.messages:
            self._span.set_attribute(attribute, text)
        else:
            self._span.add_event(event, {field: text})


def _messages(given: Any) -> list[dict[str, Any]]:
    """Messages or input of a request, in the conventions' form; what is no text is named and left out."""
    if isinstance(given, str):
        return [_message("user", given)]
    listed = given if isinstance(given, list) else []
    return [
        _message(str(one.get("role", "user")), one.get("content")) if isinstance(one, dict) else _message("user", one)
        for one in listed
    ]


def _message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    parts = content if isinstance(content, list) else [content]
    shown = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        kind = str(part.get("type", "object")) if isinstance(part, dict) else type(part).__name__
        shown.append({"type": "text", "content": text} if isinstance(text, str) else {"type": kind})
    return {"role": role, "parts": shown, **more}


def _answered(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = said.get("choices")
    if isinstance(choices, list):
        return [
            _message("assistant", (choice.get("message") or {}).get("content"), finish_reason=choice.get("finish_reason"))
            for choice in choices
            if isinstance(choice, dict)
        ]
    output = said.get("output")
    items = output if isinstance(output, list) else []
    return [_message("assistant", item.get("content")) for item in items if isinstance(item, dict) and item.get("content")]


def _streamed(stream: bytes) -> list[dict[str, Any]]:
    texts: list[str] = []
    for raw in SseSplitter().feed(stream):
        try:
            event = orjson.loads(data_of(raw) or b"")
        except orjson.JSONDecodeError:
            continue
        if not isinstance(event, dict):
            continue
        if isinstance(delta := event.get("delta"), str):
            texts.append(delta)
        for choice in event.get("choices") or ():
            if isinstance(text := (choice.get("delta") or {}).get("content"), str):
                texts.append(text)
    return [_message("assistant", "".join(texts))]


def _ids(span: Span) -> Exemplar:
    context = span.get_span_context()
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
