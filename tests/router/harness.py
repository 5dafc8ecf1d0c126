"""
Real HTTP for the router's tests: a scripted upstream, a flag server, and the router itself, each on a port the kernel chose.

Its one rule: the parts under test are never patched; what goes wrong goes wrong on the wire.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvicorn
from aiohttp import web

from flagspec import RouteFlag, Snapshot, Variant, flag_to_json
from router.app import RouterApp
from router.config import RouterConfig
from router.server import create_app, patient

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]

USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}


@dataclass(frozen=True)
class Call:
    """What the upstream received."""

    model: str
    body: dict[str, Any]
    headers: Mapping[str, str]


def completion(model: str, text: str = "Hello") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": USAGE}


def chunk(model: str, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    data = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def usage_chunk(model: str) -> bytes:
    data = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [], "usage": USAGE}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A model that works."""
    model = body["model"]
    if not body.get("stream"):
        return web.json_response(completion(model))
    parts = [chunk(model, {"role": "assistant", "content": ""}), *(chunk(model, {"content": w}) for w in ("Hel", "lo"))]
    parts += [chunk(model, {}, "stop")]
    if (body.get("stream_options") or {}).get("include_usage"):
        parts.append(usage_chunk(model))
    return await events(*parts, DONE)(request, body)


def events(*parts: bytes) -> Handler:
    """A stream of exactly these bytes, then a clean end."""

    async def handler(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        await response.write_eof()
        return response

    return handler


def cut(*parts: bytes) -> Handler:
    """A stream of these bytes, then a connection that breaks."""

    async def handler(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        assert request.transport is not None
        request.transport.close()
        return response

    return handler


def status(code: int, body: str = '{"error":{"message":"no","type":"x","code":"y","param":null}}', **headers: str) -> Handler:
    async def handler(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, text=body, content_type="application/json", headers=extra)

    return handler


async def disconnect(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


@dataclass
class Upstream:
    """An OpenAI-compatible provider; `script` says how each model behaves, by default it answers."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    script: dict[str, Handler] = field(default_factory=dict)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def models(self) -> list[str]:
        return [c.model for c in self.calls]

    async def hang(self, _request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        """Says nothing until the caller gives up, and notes that it did."""
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        raise AssertionError("unreachable")

    def hang_after(self, *parts: bytes) -> Handler:
        async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for part in parts:
                await response.write(part)
            return await self.hang(request, body)

        return handler

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.calls.append(Call(body["model"], body, request.headers.copy()))
        return await self.script.get(body["model"], answer)(request, body)


@asynccontextmanager
async def serve_web(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = web.Application(client_max_size=2**28)
    app.router.add_post("/v1/chat/completions", upstream.handle)
    async with serve_web(app) as base:
        upstream.url = f"{base}/v1"
        yield upstream


def flag(weight: int = 0, *, revision: int = 1, **changes: Any) -> RouteFlag:
    fields: dict[str, Any] = {
        "environment": "production", "key": "chat-model", "salt": "s", "version": revision, "revision": revision,
        "weight": weight,
        "control": Variant(model="old"), "candidate": Variant(model="new", params={"reasoning_effort": "low"}),
    }  # fmt: skip
    return RouteFlag(**{**fields, **changes})


@dataclass
class FlagServer:
    """The control plane's side of `flagspec.wire`. `mode` breaks it: ok, down, silent_stream (nothing passes), garbage."""

    url: str = ""
    flags: dict[str, RouteFlag] = field(default_factory=dict)
    revision: int = 0
    mode: str = "ok"
    requests: list[str] = field(default_factory=list)
    override: Any = None
    streams: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, *flags: RouteFlag) -> None:
        for one in flags:
            self.flags[one.key] = one
            self.revision = max(self.revision, one.revision)
        self.wake()

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def snapshot(self) -> Snapshot:
        return Snapshot(environment="production", revision=self.revision, flags=tuple(self.flags.values()))

    async def get_snapshot(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        if self.mode == "down":
            return web.Response(status=503)
        if self.override is not None:
            return web.json_response(self.override)
        if "after" in request.query:
            until = asyncio.get_running_loop().time() + float(request.query["wait"])
            while self.revision <= int(request.query["after"]):
                try:
                    async with asyncio.timeout_at(until):
                        await self._changed.wait()
                except TimeoutError:
                    return web.Response(status=304)
        current = self.snapshot()
        if request.headers.get("If-None-Match") == current.etag:
            return web.Response(status=304)
        return web.json_response(current.to_json(), headers={"ETag": current.etag})

    async def get_events(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        if self.mode == "down":
            return web.Response(status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.streams += 1
        if self.mode == "silent_stream":
            await asyncio.Event().wait()
        sent = self.revision
        await response.write(_event("snapshot", self.override or self.snapshot().to_json(), sent))
        while self.mode == "ok":
            changed = self._changed
            for one in sorted(self.flags.values(), key=lambda f: f.revision):
                if one.revision > sent:
                    await response.write(_event("flag", flag_to_json(one), one.revision))
                    sent = one.revision
            await changed.wait()
        return response


def _event(name: str, data: Any, revision: int) -> bytes:
    return f"event: {name}\nid: {revision}\ndata: {json.dumps(data)}\n\n".encode()


@asynccontextmanager
async def serve_flags() -> AsyncIterator[FlagServer]:
    server = FlagServer()
    app = web.Application()
    app.router.add_get("/flags/v1/snapshot", server.get_snapshot)
    app.router.add_get("/flags/v1/events", server.get_events)
    async with serve_web(app) as base:
        server.url = f"{base}/flags/v1"
        yield server


@dataclass
class Router:
    """A router that serves; `metric` reads one sample as a client would see it."""

    url: str
    app: RouterApp
    http: aiohttp.ClientSession

    async def post(self, body: Any, **headers: str) -> aiohttp.ClientResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(f"{self.url}/v1/chat/completions", json=body, headers=named)

    async def ask(self, model: str = "chat", *, user: str | None = "u-1", stream: bool = False, **fields: Any) -> Any:
        """One request; the answer with its body in `.text_`."""
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}
        body |= {"user": user} if user is not None else {}
        body |= {"stream": True} if stream else {}
        async with await self.post(body) as response:
            return Answer(response.status, response.headers, await response.text())

    def metric(self, name: str, **labels: str) -> float | None:
        value = self.app.metrics.registry.get_sample_value(name, {"environment": "production", **labels})
        return value if value is not None else self.app.metrics.registry.get_sample_value(name, labels)

    def arm(self, name: str, labels: Mapping[str, str] | None = None, *, streaming: bool = False, **more: str) -> float | None:
        common = {"flag": "chat-model", "route": "chat", "arm": "baseline", "model": "old"}
        return self.metric(name, **{**common, "streaming": str(streaming).lower(), **(labels or {}), **more})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # in whatever case they are asked for
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        lines = [line.removeprefix("data: ") for line in self.text.split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    @property
    def content(self) -> str:
        choices = [c for e in self.events if isinstance(e, dict) for c in e.get("choices", [])]
        return "".join(c["delta"].get("content") or "" for c in choices)


def config(upstream: str, **changes: Any) -> RouterConfig:
    """Three models behind one provider, one route with a flag and two fallbacks."""
    price = {"input_per_mtok": "2 USD", "output_per_mtok": "8 USD"}
    timeout = {"request": "5s", "stream": "5s"}
    data: dict[str, Any] = {
        "apiVersion": "penstock/v1",
        "kind": "Router",
        "providers": [{"name": "p", "base_url": upstream}],
        "models": [{"name": n, "provider": "p", "price": price, "timeout": timeout} for n in ("old", "new", "spare")],
        "routes": [
            {"name": "chat", "match": {"model": ["chat"]}, "flag": "chat-model", "default": "old", "fallbacks": ["old", "spare"]}
        ],
    }
    return RouterConfig.model_validate({**data, **changes})


@asynccontextmanager
async def serve_router(
    spec: RouterConfig, *, environ: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Router]:
    app = create_app(spec, environ=environ or {}, clock=clock)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=0,
            http=patient(spec.body_timeout.total_seconds()),
            ws="none",
            lifespan="on",
            log_level="error",
            timeout_graceful_shutdown=1,
        )
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server._serve())
    while not server.started:
        assert not serving.done(), "the router did not start"
        await asyncio.sleep(0.005)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        async with aiohttp.ClientSession() as http:
            yield Router(f"http://{host}:{port}", app, http)
    finally:
        server.should_exit = True
        await serving


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until it holds; pytest's own timeout is the limit of patience."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def put(router: Router, *flags: RouteFlag) -> None:
    """Brings flags into force without a flag server."""
    revision = max(f.revision for f in flags)
    router.app.flags.take_snapshot(Snapshot(environment="production", revision=revision, flags=flags))
