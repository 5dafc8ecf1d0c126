"""
CPU per request of the router, beside a bare ASGI + aiohttp pass-through measured in the same run.

    python -m bench.router_cpu [--requests 2000] [--concurrency 16] [-o json]
    python -m bench.router_cpu --traced         and a router that makes spans, in the same run
    python -m bench.router_cpu --litellm BIN    and LiteLLM's proxy (`pip install 'litellm[proxy]'` in an environment of its own; BIN is its `litellm`)
    python -m bench.router_cpu --sse            the SSE splitter beside httpx-sse's decoder

The upstream answers at once from memory, so that nothing but the proxies' own work is measured. CPU is user + system time of the
proxy's process, taken before and after; the wall clock hardly enters into it.

Events of one stream may share a segment; with --event-every-ms 2 they come one by one, as a slow model sends them, and every
event wakes each proxy: the bare pass-through then costs a multiple too.

Its one rule: compare ratios of one run, never milliseconds of two machines.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from services.ports import free_port
from services.process import ChildProcess, http_ready

CONTENT_EVENTS = 33
"""With the role, finish_reason, usage and [DONE] around them: 37 events from the upstream, 36 to a client without usage."""

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4.1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 120}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 200, "completion_tokens": 120, "total_tokens": 320},
}

REQUEST = {
    "model": "chat",
    "messages": [{"role": "system", "content": "You are brief. " * 20}, {"role": "user", "content": "Tell me more. " * 30}],
    "temperature": 0.2,
}


def stream_events() -> list[bytes]:
    def event(choices: list[Any], **more: Any) -> bytes:
        data = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4.1", "choices": choices, **more}
        return b"data: " + json.dumps(data).encode() + b"\n\n"

    def delta(fields: dict[str, str], finish: str | None = None) -> bytes:
        return event([{"index": 0, "delta": fields, "finish_reason": finish}])

    words = [delta({"content": f" word{i}"}) for i in range(CONTENT_EVENTS)]
    head, tail = delta({"role": "assistant", "content": ""}), delta({}, "stop")
    return [head, *words, tail, event([], usage=ANSWER["usage"]), b"data: [DONE]\n\n"]


async def upstream_app(scope: Any, receive: Any, send: Any) -> None:
    """An upstream that answers from memory; a stream's events are written one by one, with a pause if asked for."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if b'"stream":true' not in body.replace(b" ", b""):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": _ANSWER})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for event in _EVENTS:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(_event_every_s)
    await send({"type": "http.response.body", "body": b""})


_ANSWER = json.dumps(ANSWER).encode()
_EVENTS = stream_events()
_event_every_s = float(os.environ.get("EVENT_EVERY_S", "0"))
_session: aiohttp.ClientSession | None = None


async def bare_app(scope: Any, receive: Any, send: Any) -> None:
    """The least that a proxy can do: the body in, the body out."""
    global _session
    if scope["type"] != "http":
        return
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    async with _session.post(os.environ["UPSTREAM"] + "/chat/completions", data=body) as response:
        content_type = response.headers["content-type"].encode()
        await send({"type": "http.response.start", "status": response.status, "headers": [(b"content-type", content_type)]})
        async for chunk in response.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def router_yaml(upstream: str, folder: Path) -> Path:
    """Everything that a request passes through in production: split, breaker, limits, caps, prices, fallbacks, metrics."""
    side = {"model": "gpt-4.1", "params": {}}
    flag = {
        "environment": "production", "key": "chat-model", "version": 1, "revision": 1, "killed": False, "weight": 50_000,
        "shadow_weight": 0, "salt": "s", "unit": "user", "control": side, "candidate": {"model": "gpt-5", "params": {}},
        "decision_id": "d",
    }  # fmt: skip
    snapshot = {"schema": "penstock.flags/v1", "environment": "production", "revision": 1, "flags": [flag]}
    (folder / "flags.json").write_text(json.dumps(snapshot))
    price = {"input_per_mtok": "2 USD", "output_per_mtok": "8 USD"}
    timeout = {"request": "30s", "stream": "90s", "first_token": "10s"}
    brake = {"failure_ratio": "50%", "window": "2m", "min_requests": 10, "open_for": "30s"}
    limits = {"requests_per_s": 100_000, "concurrency": 1000, "tokens_per_min": 10**9}
    table = {"price": price, "timeout": timeout, "breaker": brake, "limits": limits, "context_tokens": 400_000}
    config = {
        "apiVersion": "penstock/v1",
        "kind": "Router",
        "flags": {"source": "file:flags.json"},
        "providers": [{"name": "p", "base_url": upstream}],
        "models": [{"name": n, "provider": "p", "max_output_tokens": 32_000, **table} for n in ("gpt-4.1", "gpt-5", "o3")],
        "routes": [
            {
                "name": "chat",
                "match": {"model": ["chat"]},
                "flag": "chat-model",
                "default": "gpt-4.1",
                "fallbacks": ["gpt-4.1", "o3"],
            }
        ],
        "deadline": {"request": "60s", "stream": "120s"},
        "caps": {"input_tokens": 200_000, "output_tokens": 16_000, "cost_per_request": "0.50 USD"},
    }
    path = folder / "router.yaml"
    path.write_text(json.dumps(config))
    return path


@contextmanager
def process(role: str, **env: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; its address and process id."""
    command = [sys.executable, "-m", "bench.router_cpu", "--role", role]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if "listening on" in line:
                yield line.split()[-1], child.pid
                return
        raise SystemExit(f"the {role} did not start")
    finally:
        child.terminate()
        child.wait()


@contextmanager
def litellm(binary: str, upstream: str, folder: Path) -> Iterator[tuple[str, int]]:
    """LiteLLM's proxy, one worker, before the same upstream; its address and process id. Its own defaults, and nothing switched on."""
    config = folder / "litellm.json"
    deployment = {"model": "openai/gpt-4.1", "api_base": upstream, "api_key": "k"}
    config.write_text(json.dumps({"model_list": [{"model_name": "chat", "litellm_params": deployment}]}))
    port = free_port()
    command = [binary, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environ = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    # Like the router here it asks for no key.
    environ["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
    child = ChildProcess(command, log_path=folder / "litellm.log", name="litellm", env=environ)
    try:
        child.wait_ready(http_ready(f"http://127.0.0.1:{port}/health/liveliness"), timeout_s=120)
        yield f"http://127.0.0.1:{port}", child.pid
    finally:
        child.stop()


def serve(role: str) -> int:
    if role == "collector":
        return asyncio.run(collect())
    if role == "router":
        from router.server import run

        return run(Path(os.environ["ROUTER_YAML"]), listen="127.0.0.1:0")
    app = upstream_app if role == "upstream" else bare_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            port = self.servers[0].sockets[0].getsockname()[1]
            sys.stderr.write(f"listening on http://127.0.0.1:{port}\n")
            sys.stderr.flush()

    Server(uvicorn.Config(app, port=0, http="httptools", lifespan="off", access_log=False, log_level="error")).run()
    return 0


async def collect() -> int:
    from bench.otlp import serve_otlp

    async with serve_otlp() as receiver:
        sys.stderr.write(f"listening on {receiver.url}\n")
        sys.stderr.flush()
        while True:
            await asyncio.sleep(1)
            receiver.spans.clear()
            receiver.raw.clear()


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process so far: the scheduler's own nanoseconds, since clock ticks miss short wake-ups."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def load(url: str, requests: int, concurrency: int, stream: bool) -> None:
    """So many requests, so many at a time; every answer is read to its end and must be whole."""
    todo = iter(range(requests))

    async def worker(session: aiohttp.ClientSession) -> None:
        for i in todo:
            body = json.dumps({**REQUEST, "user": f"user-{i % 500}", **({"stream": True} if stream else {})}).encode()
            headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
            async with session.post(url, data=body, headers=headers) as response:
                got = await response.read()
                assert response.status == 200, got[:200]
                assert got.rstrip().endswith(b"[DONE]") if stream else b"choices" in got, got[-200:]

    async with client() as session:
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))


def measure(url: str, pid: int, requests: int, concurrency: int, stream: bool) -> tuple[float, float]:
    """CPU in ms a request, and requests a second."""
    target = f"{url}/v1/chat/completions"
    asyncio.run(load(target, max(50, requests // 10), concurrency, stream))
    cpu, wall = cpu_s(pid), time.perf_counter()
    asyncio.run(load(target, requests, concurrency, stream))
    return (cpu_s(pid) - cpu) * 1000 / requests, requests / (time.perf_counter() - wall)


def sse() -> dict[str, float]:
    """Microseconds an event, of this router's splitter and of httpx-sse's decoder, on the same bytes in the same chunks."""
    from httpx_sse._decoders import SSEDecoder

    from router.sse import SseSplitter, data_of

    rounds = 2000
    started = time.process_time()
    for _ in range(rounds):
        splitter = SseSplitter()
        for chunk in _EVENTS:
            for raw in splitter.feed(chunk):
                data_of(raw)
    ours = time.process_time() - started
    started = time.process_time()
    for _ in range(rounds):
        decoder = SSEDecoder()
        for chunk in _EVENTS:
            for line in chunk.decode().splitlines():
                decoder.decode(line)
    theirs = time.process_time() - started
    per = 1e6 / (rounds * len(_EVENTS))
    return {"router_us": round(ours * per, 2), "httpx_sse_us": round(theirs * per, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU per request of the router beside a bare pass-through.")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--event-every-ms", type=float, default=0.0, help="pause between the events of a stream")
    parser.add_argument("-o", choices=["table", "json"], default="table", dest="output")
    parser.add_argument("--sse", action="store_true", help="only the SSE splitter beside httpx-sse")
    parser.add_argument("--traced", action="store_true", help="also a router that sends every span to a collector")
    parser.add_argument("--litellm", metavar="BIN", help="also LiteLLM's proxy, by its executable")
    parser.add_argument("--role", choices=["upstream", "bare", "router", "collector"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        return serve(args.role)
    if args.sse:
        sys.stdout.write(json.dumps(sse()) + "\n")
        return 0
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        process("upstream", EVENT_EVERY_S=str(args.event_every_ms / 1000)) as (upstream, _),
    ):
        base = f"{upstream}/v1"
        config = router_yaml(base, Path(folder))
        with ExitStack() as stack:
            bare = stack.enter_context(process("bare", UPSTREAM=base))
            router = stack.enter_context(process("router", ROUTER_YAML=str(config)))
            peer = stack.enter_context(litellm(args.litellm, base, Path(folder))) if args.litellm else None
            traced = None
            if args.traced:
                collector, _ = stack.enter_context(process("collector"))
                env = {"ROUTER_YAML": str(config), "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
                traced = stack.enter_context(process("router", **env))
            for stream in (False, True):
                for concurrency in args.concurrency:
                    # At their pace streams take long, and few of them use enough CPU to be measured.
                    requests = min(args.requests, 100 * max(3, concurrency)) if stream and args.event_every_ms else args.requests
                    bare_ms, _ = measure(*bare, requests, concurrency, stream)
                    router_ms, rate = measure(*router, requests, concurrency, stream)
                    traced_ms = None if traced is None else round(measure(*traced, requests, concurrency, stream)[0], 3)
                    # It is slow enough for fewer requests to tell.
                    peer_ms = None if peer is None else round(measure(*peer, max(100, requests // 10), concurrency, stream)[0], 2)
                    rows.append(
                        {
                            "kind": "stream_36" if stream else "json",
                            "concurrency": concurrency,
                            "bare_ms": round(bare_ms, 3),
                            "router_ms": round(router_ms, 3),
                            "ratio": round(router_ms / bare_ms, 2),
                            "router_requests_per_s": round(rate),
                            **({} if traced_ms is None else {"traced_ms": traced_ms}),
                            **({} if peer_ms is None else {"litellm_ms": peer_ms}),
                        }
                    )
    if args.output == "json":
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        lines = [f"{'kind':<10} {'conc.':>5} {'bare ms':>8} {'router ms':>9} {'ratio':>6} {'req/s':>6}"]
        form = "{kind:<10} {concurrency:>5} {bare_ms:>8} {router_ms:>9} {ratio:>6} {router_requests_per_s:>6}"
        if args.traced:
            lines[0] += f" {'traced ms':>9}"
            form += " {traced_ms:>9}"
        if args.litellm:
            lines[0] += f" {'litellm ms':>10}"
            form += " {litellm_ms:>10}"
        lines += [form.format(**row) for row in rows]
        sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
