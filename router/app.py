"""
HTTP: bytes to a Request, a Reply to bytes; nothing is decided here.

Bare ASGI: there are seven fixed paths to tell apart and one body to read. Around the same handler, called in process, Starlette added
24 us of CPU to a JSON request and 0.2 ms to a stream of 36 events: some 4 % and 15 % of what they cost here.

Its one rule: every answer is in OpenAI's shape and carries ``x-request-id``; no traceback ever reaches a client.
"""

import asyncio
import os
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import orjson

from router.caps import Endpoint, weigh
from router.config import RouterConfig
from router.drills import DRILL_HEADER, FALLBACK, DrillDoor
from router.engine import Engine
from router.errors import ApiError, missing, model_not_found, wrong_type
from router.exchange import CURRENT, Exchange, carried
from router.flags import FlagTable
from router.logs import get_logger
from router.metrics import RouterMetrics
from router.options import read_options
from router.request import Reply, Request

log = get_logger()

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat", "/v1/responses": "responses", "/v1/embeddings": "embeddings",
}  # fmt: skip

DEPTH_MAX = 250

RETRY_HEADER = b"x-stainless-retry-count"
"""How often OpenAI's libraries have sent this request before, by themselves."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_JSON = (b"content-type", b"application/json")
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class _ClientGone(Exception):
    """The client closed its connection before it had sent its request."""


class RouterApp:
    """
    The ASGI application.

    Args:
        lifespan: Opened at start-up and closed at shutdown; yields the engine.
        ready: Whether requests should come here yet.
        drills: Says which requests are drills.
        whole: Makes the metrics of all workers, where there are several; asked for by whoever comes in by the common address.
    """

    def __init__(
        self,
        config: RouterConfig,
        metrics: RouterMetrics,
        flags: FlagTable,
        lifespan: Callable[[], AbstractAsyncContextManager[Engine]],
        ready: Callable[[], bool],
        drills: DrillDoor,
        whole: Callable[[str], tuple[int, bytes, bytes]] | None = None,
    ) -> None:
        self.engine: Engine | None = None
        self._config = config
        self.metrics = metrics
        self.flags = flags
        self._lifespan = lifespan
        self._ready = ready
        self._drills = drills
        self._whole = whole
        self._started_at = int(time.time())
        self._body_timeout_s = config.body_timeout.total_seconds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1003})
        headers = _headers(scope)
        request_id = headers.get(b"x-request-id", b"")
        if not _SANE_ID.fullmatch(request_id):
            request_id = b"req_" + os.urandom(16).hex().encode()
        try:
            await self._route(scope, receive, send, headers, request_id)
        except _ClientGone:
            return
        except Exception as exc:
            # A bug of ours. If the answer has begun, the server refuses a second one; then it shall close the connection.
            # Where it happened and not what it says: the text of an exception may quote what it stumbled over.
            place = traceback.extract_tb(exc.__traceback__)[-1]
            at = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
            log.error("router_bug", request_id=request_id.decode(), error=type(exc).__name__, at=at)
            try:
                error = ApiError(status=500, message="The router failed on this request.", type="server_error")
                await _fail(send, request_id, error)
            except RuntimeError:
                raise exc from None

    async def _route(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], request_id: bytes) -> None:
        method, path = scope["method"], scope["path"]
        if (endpoint := ENDPOINTS.get(path)) is not None:
            if method != "POST":
                return await _fail(send, request_id, _not_allowed(method, path), [(b"allow", b"POST")])
            return await self._traced(endpoint, path, receive, send, headers, request_id)
        pages = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._exposition, "/v1/models": self._models}
        page = pages.get(path) or (self._model if path.startswith("/v1/models/") else None)
        if page is None:
            error = ApiError(status=404, message=f"Unknown path: {method} {path[:128]}", code="unknown_url")
            return await _fail(send, request_id, error)
        if method not in ("GET", "HEAD"):
            return await _fail(send, request_id, _not_allowed(method, path), [(b"allow", b"GET, HEAD")])
        if path == "/metrics":
            accept = headers.get(b"accept", b"").decode("latin-1")
            # Writing the metrics of four flags takes 90 ms: beside the requests under way, not in front of them.
            # By a worker's own address (a Unix socket, which has no port) its own.
            by_port = (scope.get("server") or ("", None))[1] is not None
            made = self._whole if self._whole is not None and by_port else page
            status, content_type, body = await asyncio.to_thread(made, accept)
        else:
            status, content_type, body = page(path)
        await _answer(send, request_id, status, [(b"content-type", content_type)], b"" if method == "HEAD" else body)

    async def _traced(
        self, endpoint: Endpoint, path: str, receive: Receive, send: Send, headers: dict[bytes, bytes], request_id: bytes
    ) -> None:
        """`_ask`, inside a span where spans are made."""
        assert self.engine is not None, "the lifespan comes first"
        if (tracer := self.engine.tracer) is None:
            exchange = Exchange(carried=carried(headers))
            CURRENT.set(exchange)
            return await self._ask(endpoint, receive, send, headers, request_id, exchange)
        with tracer.begin(endpoint, path, headers) as trace:
            CURRENT.set(exchange := Exchange(trace))
            await self._ask(endpoint, receive, trace.watching(send), headers, request_id, exchange)

    async def _ask(
        self,
        endpoint: Endpoint,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        request_id: bytes,
        exchange: Exchange,
    ) -> None:
        assert self.engine is not None, "the lifespan comes first"
        try:
            body = await self._body(receive, headers)
        except TimeoutError:
            error = ApiError(status=408, message=f"The request did not arrive within {self._body_timeout_s:g}s.")
            return await _fail(send, request_id, error, [(b"connection", b"close")])
        exchange.received()
        if (encoding := headers.get(b"content-encoding", b"identity").strip().lower()) not in (b"identity", b""):
            message = f"The router does not read bodies in {encoding.decode('latin-1')[:32]!r}; send them uncompressed."
            return await _fail(send, request_id, ApiError(status=415, message=message, code="unsupported_content_encoding"))
        drill = self._drills.asked(headers)
        if isinstance(drill, ApiError):
            return await _fail(send, request_id, drill)
        request = _parse(endpoint, body, headers, request_id, drill=drill) if body is not None else self._too_large()
        if isinstance(request, ApiError):
            return await _fail(send, request_id, request)
        if exchange.trace is not None:
            exchange.trace.asked(request)
        caller = asyncio.current_task()
        assert caller is not None
        watch = _Watch(receive, caller)
        try:
            await _reply(send, request_id, await self.engine.answer(request))
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            caller.uncancel()
        finally:
            watch.stop()

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes | None:
        """The body; None when it is larger than allowed."""
        limit = self._config.max_body_bytes
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > limit:
            return None
        parts, size, more = [], 0, True
        async with asyncio.timeout(self._body_timeout_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    return None
                more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(status=413, message=f"The request is larger than {self._config.max_body_bytes} bytes.", code="too_large")

    def _healthz(self, _path: str) -> tuple[int, bytes, bytes]:
        return 200, b"application/json", b'{"status":"ok"}'

    def _readyz(self, _path: str) -> tuple[int, bytes, bytes]:
        if self._ready():
            return 200, b"application/json", b'{"status":"ready"}'
        return 503, b"application/json", b'{"status":"waiting for the first flag snapshot"}'

    def _exposition(self, accept: str) -> tuple[int, bytes, bytes]:
        return 200, *self.metrics.exposition(accept)

    def _models(self, _path: str) -> tuple[int, bytes, bytes]:
        assert self.engine is not None, "the lifespan comes first"
        data = [self._shown(self.engine, name) for name in self.engine.selector.names()]
        return 200, b"application/json", orjson.dumps({"object": "list", "data": data})

    def _model(self, path: str) -> tuple[int, bytes, bytes]:
        assert self.engine is not None, "the lifespan comes first"
        name = path.removeprefix("/v1/models/")
        if name not in self.engine.selector.names():
            return 404, b"application/json", model_not_found(name).body()
        return 200, b"application/json", orjson.dumps(self._shown(self.engine, name))

    def _shown(self, engine: Engine, name: str) -> dict[str, Any]:
        """As OpenAI shows a model; of a name that a flag decides about also which one, for those who send drills."""
        shown = {"id": name, "object": "model", "created": self._started_at, "owned_by": "penstock"}
        route = engine.selector.route_for(name)
        if route is None or route.flag is None:
            return shown
        return shown | {"penstock": {"environment": self._config.environment, "route": route.name, "flag": route.flag}}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Requests are answered as long as it lasts: what a server's lifespan is, for whoever has no server."""
        async with self._lifespan() as self.engine:
            yield

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as exc:
            failed = "startup" if self.engine is None else "shutdown"
            return await send({"type": f"lifespan.{failed}.failed", "message": f"{type(exc).__name__}: {exc}"})
        await send({"type": "lifespan.shutdown.complete"})


class _Watch:
    """Cancels the request's task when the client closes its connection: nobody pays for an answer that nobody reads."""

    def __init__(self, receive: Receive, caller: "asyncio.Task[Any]") -> None:
        self.gone = False
        self._caller = caller
        self._task = asyncio.get_running_loop().create_task(self._until_gone(receive))

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._caller.cancel()

    def stop(self) -> None:
        self._task.cancel()


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """ASGI sends names in lower case; of a header that came twice the first counts."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        found.setdefault(name, value)
    return found


def _parse(endpoint: Endpoint, body: bytes, headers: dict[bytes, bytes], request_id: bytes, *, drill: bool) -> Request | ApiError:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        return ApiError(status=400, message=f"The request is not JSON: {exc.msg} (line {exc.lineno}, column {exc.colno}).")
    if not isinstance(data, dict):
        return ApiError(status=400, message="The request must be a JSON object.")
    if body.count(b"[") + body.count(b"{") > DEPTH_MAX and _too_deep(data):
        return ApiError(status=400, message=f"The request is nested deeper than {DEPTH_MAX} levels.")
    for name, kind, expected in _FIELDS[endpoint]:
        value = data.get(name)
        if value is None:
            if name in _REQUIRED[endpoint]:
                return missing(name)
        elif not (_is_count(value) if kind is int else isinstance(value, kind)):
            return wrong_type(name, expected)
    if not data["model"]:
        return missing("model")
    if endpoint == "responses" and data.get("background"):
        # Its answer would have to be fetched from whoever was asked, which only that request has known.
        return ApiError(
            status=400, message="This router does not run responses in the background.", param="background", code="unsupported"
        )
    options = read_options(data, headers)
    if isinstance(options, ApiError):
        return options
    return Request(
        body=data,
        size=len(body),
        weight=weigh(data, len(body), endpoint),
        stream=endpoint != "embeddings" and bool(data.get("stream")),
        request_id=request_id.decode(),
        unit_header=_text(headers.get(b"x-penstock-unit")),
        authorization=_text(headers.get(b"authorization")),
        options=options,
        drill=drill,
        retry=headers.get(RETRY_HEADER, b"0").strip() not in (b"0", b""),
    )


_Field = tuple[str, type | tuple[type, ...], str]
_COUNT = "a whole number of at least 1"
_ALWAYS: tuple[_Field, ...] = (("model", str, "a string"), ("user", str, "a string"))
_INPUT: _Field = ("input", (str, list), "a string or an array")
_STREAM: _Field = ("stream", bool, "a boolean")

_FIELDS: dict[Endpoint, tuple[_Field, ...]] = {
    "chat": (
        *_ALWAYS, ("messages", list, "an array of objects"), _STREAM, ("stream_options", dict, "an object"),
        ("max_tokens", int, _COUNT), ("max_completion_tokens", int, _COUNT), ("n", int, _COUNT),
    ),
    "responses": (*_ALWAYS, _INPUT, _STREAM, ("max_output_tokens", int, _COUNT), ("background", bool, "a boolean")),
    "embeddings": (*_ALWAYS, _INPUT),
}  # fmt: skip
"""What the router itself reads; all other fields are the provider's business and pass untouched."""

_REQUIRED: dict[Endpoint, frozenset[str]] = {
    "chat": frozenset({"model", "messages"}), "responses": frozenset({"model"}), "embeddings": frozenset({"model", "input"}),
}  # fmt: skip


def _too_deep(data: dict[str, Any]) -> bool:
    """Whether it can be read but not written again: orjson reads 1,024 levels and writes 254."""
    try:
        orjson.dumps(data)
    except orjson.JSONEncodeError:
        return True
    return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _text(header: bytes | None) -> str | None:
    return header.decode("latin-1").strip() or None if header else None


def _not_allowed(method: str, path: str) -> ApiError:
    return ApiError(status=405, message=f"{method} is not allowed on {path}.", code="method_not_allowed")


async def _reply(send: Send, request_id: bytes, reply: Reply) -> None:
    served = [
        (b"x-penstock-model", reply.model.encode("latin-1", "replace")),
        (b"x-penstock-arm", reply.arm.encode()),
        (b"x-penstock-fallback", b"true" if reply.fallback else b"false"),
    ]
    if reply.drill:
        served.append((DRILL_HEADER, FALLBACK))
    if reply.error is not None:
        return await _fail(send, request_id, reply.error, served if reply.arm else ())
    if reply.events is None:
        return await _answer(send, request_id, reply.status, [_JSON, *served], reply.body)
    async with aclosing(reply.events) as events:
        await send(_start(request_id, reply.status, [*_EVENTS, *served]))
        async for chunk in events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _fail(send: Send, request_id: bytes, error: ApiError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    extra = [_JSON, *headers]
    if error.retry_after is not None:
        extra.append((b"retry-after", error.retry_after.encode("latin-1", "replace")))
    if not error.retryable:
        extra.append((b"x-should-retry", b"false"))
    await _answer(send, request_id, error.status, extra, error.body())


async def _answer(send: Send, request_id: bytes, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send(_start(request_id, status, [*headers, (b"content-length", str(len(body)).encode())]))
    await send({"type": "http.response.body", "body": body})


def _start(request_id: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [*headers, (b"x-request-id", request_id)]}
