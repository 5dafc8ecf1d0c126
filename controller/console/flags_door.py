"""
The flag door: what `flagspec.wire` describes, over HTTP, below `/flags/v1`.

    GET  /snapshot?environment=E                  the flags, with a strong ETag
    GET  /snapshot?environment=E&after=R&wait=S   the same once the environment is past revision R (long poll)
    GET  /events?environment=E                    the flags, then each change, as server-sent events
    POST /{environment}/{key}/kill                {"actor", "reason"}; with a people file a bearer token instead of "actor"
    POST /{environment}/{key}/unkill              {"actor", "reason", "version"}

A stream sends a whole `snapshot` again instead of single `flag` events when those would not tell everything (a reader was slow and a flag
was written twice meanwhile, or a flag is gone). Its one rule: a reader is never told anything that is not in the store; when the store
is down, a question is answered 503 and a stream stays silent but for its heartbeat.
"""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from controller.console.api.problems import Refused, refused
from controller.console.flags_hub import State
from controller.core.people import NotAllowed
from controller.ports import FlagConflict, FlagUnavailable, UnknownFlag
from flagspec import RouteFlag, Snapshot, flag_to_json

PREFIX = "/flags/v1"

HEARTBEAT_S = 5.0
"""Between two comments on a silent stream: proxies drop silent connections after 30 to 60 s, routers take one for dead sooner."""

SEND_TIMEOUT_S = 30.0
"""A reader that takes nothing for so long is cut off; it comes back with its Last-Event-ID."""

WAIT_MAX_S = 60.0
"""Of a long poll: beyond it proxies cut the connection."""

BODY_MAX_BYTES = 16_384

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Of environments and flags: names that may reach PromQL and an ETag as they are."""


class FlagFeed(Protocol):
    """What the door serves; `flags_hub.FlagHub` is one."""

    async def current(self, environment: str) -> State:
        """Raises FlagUnavailable."""

    async def next(self, seen: Snapshot) -> State:
        """Waits until the environment is at another revision than `seen`."""

    async def overtaken(self, environment: str, seen: int, *, believed: bool) -> State:
        """A reader says to have seen this revision, which is not here. Raises FlagUnavailable."""

    async def set_killed(
        self, environment: str, key: str, killed: bool, *, actor: str, reason: str, expected_version: int | None = None
    ) -> RouteFlag:
        """Raises UnknownFlag, FlagConflict, FlagUnavailable."""


class _Refused(Exception):
    """A request that cannot be answered as it is."""

    def __init__(self, status: int, parameter: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.parameter = parameter


Admit = Callable[[Request, bool], str]
"""Who kills (True) or un-kills (False), by the request's token; raises what `api.problems.refused` knows."""


def routes(feed: FlagFeed, admit: Admit | None = None) -> list[BaseRoute]:
    """
    The door's routes, for a Starlette or FastAPI application.

    Args:
        feed: Where flags come from; it is started by the first request if the application has not done it.
        admit: Who may kill; None takes the body's word for who it is, and a reader's for what it has seen: that can lower flags, too.
    """

    async def snapshot(request: Request) -> Response:
        return await _snapshot(feed, request, believes=admit is None)

    async def events(request: Request) -> Response:
        return await _events(feed, request, believes=admit is None)

    async def kill(request: Request) -> Response:
        return await _set_killed(feed, request, admit, killed=True)

    async def unkill(request: Request) -> Response:
        return await _set_killed(feed, request, admit, killed=False)

    return [
        Route(f"{PREFIX}/snapshot", _answered(snapshot), methods=["GET"]),
        Route(f"{PREFIX}/events", _answered(events), methods=["GET"]),
        Route(f"{PREFIX}/{{environment}}/{{key}}/kill", _answered(kill), methods=["POST"]),
        Route(f"{PREFIX}/{{environment}}/{{key}}/unkill", _answered(unkill), methods=["POST"]),
    ]


# --- reading --------------------------------------------------------------------------------------------------------------------


async def _current(feed: FlagFeed, environment: str, seen: int, *, believes: bool) -> State:
    """Also for a reader that has seen more than the feed: then the store went back in time, or this door is late."""
    state = await feed.current(environment)
    return state if seen <= state.revision else await feed.overtaken(environment, seen, believed=believes)


async def _snapshot(feed: FlagFeed, request: Request, *, believes: bool) -> Response:
    environment = _name(request.query_params.get("environment"), "environment")
    after, wait_s = _long_poll(request)
    seen = max(after or 0, _seen(request.headers.get("if-none-match"), environment))
    state = await _current(feed, environment, seen, believes=believes)
    if after is not None and state.revision <= after:
        state = await _past(feed, state, after, wait_s)
        if state.revision <= after:
            return Response(status_code=304, headers=_cache_headers(state))
    if _matches(request.headers.get("if-none-match"), state.snapshot.etag):
        return Response(status_code=304, headers=_cache_headers(state))
    return Response(state.json, media_type="application/json", headers=_cache_headers(state))


async def _past(feed: FlagFeed, state: State, revision: int, wait_s: float) -> State:
    """The first state beyond a revision, or the newest one when the time is up."""
    try:
        async with asyncio.timeout(wait_s):
            while state.revision <= revision:
                state = await feed.next(state.snapshot)
    except TimeoutError:
        # Asked again, because "no change" must not be said of a store that cannot be read.
        return await feed.current(state.snapshot.environment)
    return state


async def _events(feed: FlagFeed, request: Request, *, believes: bool) -> Response:
    environment = _name(request.query_params.get("environment"), "environment")
    last_event_id = request.headers.get("last-event-id", "")
    state = await _current(feed, environment, _revision(last_event_id) or 0, believes=believes)
    return _EventStream(
        _stream(feed, state, last_event_id),
        ping=HEARTBEAT_S,
        ping_message_factory=lambda: ServerSentEvent(comment="alive"),
        sep="\n",
        send_timeout=SEND_TIMEOUT_S,
        headers={"Cache-Control": "no-store"},
    )


async def _stream(feed: FlagFeed, state: State, last_event_id: str) -> AsyncIterator[ServerSentEvent]:
    if last_event_id == str(state.revision):
        yield ServerSentEvent(comment=f"still at revision {state.revision}")
    else:
        yield _event("snapshot", state.json, state.revision)
    while True:
        newer = await feed.next(state.snapshot)
        changed = newer.newer_than(state.snapshot)
        if changed is None:
            yield _event("snapshot", newer.json, newer.revision)
        else:
            for flag in changed:
                yield _event("flag", newer.flags[flag.key], flag.revision)
        state = newer


class _EventStream(EventSourceResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            return  # the reader is gone or stuck; its connection is closed and that is all there is to do


def _event(name: str, data: bytes, revision: int) -> ServerSentEvent:
    return ServerSentEvent(data=data.decode(), event=name, id=str(revision))


# --- the kill switch ------------------------------------------------------------------------------------------------------------


async def _set_killed(feed: FlagFeed, request: Request, admit: Admit | None, *, killed: bool) -> Response:
    environment = _name(request.path_params["environment"], "environment")
    key = _name(request.path_params["key"], "key")
    known = None if admit is None else admit(request, killed)
    body = await _body(request)
    actor = _words(body, "actor") if known is None else known
    reason = _words(body, "reason")
    version = None if killed else _version(body)
    try:
        flag = await feed.set_killed(environment, key, killed, actor=actor, reason=reason, expected_version=version)
    except UnknownFlag as exc:
        raise _Refused(404, "key", str(exc)) from exc
    except FlagConflict as exc:
        raise _Refused(409, "version", str(exc)) from exc
    return _json(200, flag_to_json(flag))


async def _body(request: Request) -> dict[str, Any]:
    # A form of another web site can be sent by a browser without asking; JSON cannot.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Refused(415, "content-type", "the body must be application/json")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_MAX_BYTES:
            raise _Refused(413, "body", f"the body is larger than {BODY_MAX_BYTES} bytes")
    try:
        body = orjson.loads(bytes(raw))
    except orjson.JSONDecodeError as exc:
        raise _Refused(400, "body", f"the body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise _Refused(400, "body", "the body must be an object")
    return body


def _words(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > 1000 or "\0" in value:
        raise _Refused(400, name, f"{name}: 1 to 1000 characters are needed, got {str(value)[:40]!r}")
    return value.strip()


def _version(body: dict[str, Any]) -> int:
    value = body.get("version")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise _Refused(400, "version", f"version: un-killing needs the version of the killed flag, got {str(value)[:40]!r}")
    return value


# --- parameters and answers -----------------------------------------------------------------------------------------------------


def _answered(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except _Refused as exc:
            return _json(exc.status, {"error": {"parameter": exc.parameter, "message": str(exc)}})
        except (Refused, NotAllowed) as exc:
            found = refused(exc)
            return _json(found.problem.status, {"error": {"parameter": "authorization", "message": str(exc)}}, found.headers)
        except FlagUnavailable as exc:
            return _json(503, {"error": {"parameter": None, "message": str(exc)}}, {"Retry-After": "1"})

    return answered


def _json(status: int, data: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(data), status, media_type="application/json", headers={"Cache-Control": "no-store", **(headers or {})}
    )


def _name(value: str | None, parameter: str) -> str:
    if value is None:
        raise _Refused(400, parameter, f"{parameter}: missing")
    if not NAME.fullmatch(value):
        raise _Refused(400, parameter, f"{parameter}: {value[:80]!r} is not a name ({NAME.pattern})")
    return value


def _long_poll(request: Request) -> tuple[int | None, float]:
    after, wait = request.query_params.get("after"), request.query_params.get("wait")
    if after is None:
        if wait is not None:
            raise _Refused(400, "after", "after: missing; wait needs the revision to wait for")
        return None, 0.0
    revision = _revision(after)
    if revision is None:
        raise _Refused(400, "after", f"after: {after[:40]!r} is not a revision")
    try:
        wait_s = 0.0 if wait is None else float(wait)
    except ValueError:
        wait_s = math.nan
    if not 0 <= wait_s <= WAIT_MAX_S:
        raise _Refused(400, "wait", f"wait: {(wait or '')[:40]!r} is not a number of seconds within 0..{WAIT_MAX_S:g}")
    return revision, wait_s


def _revision(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _seen(if_none_match: str | None, environment: str) -> int:
    """The highest revision of this environment among the tags; 0 if there is none."""
    named = [tag.strip('"').removeprefix(f"{environment}:") for tag in _tags(if_none_match) if tag.startswith(f'"{environment}:')]
    return max((_revision(text) or 0 for text in named), default=0)


def _cache_headers(state: State) -> dict[str, str]:
    # no-cache: keep it, but ask every time whether it is still true.
    return {"ETag": state.snapshot.etag, "Cache-Control": "no-cache"}


def _matches(if_none_match: str | None, etag: str) -> bool:
    offered = _tags(if_none_match)
    return "*" in offered or etag in offered


def _tags(if_none_match: str | None) -> list[str]:
    return [] if if_none_match is None else [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
