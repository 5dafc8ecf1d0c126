"""
A receiver of OpenTelemetry's traces, true to the protocol: for tests, and to look at what a router sends without a collector.

    python -m bench.otlp [--listen 127.0.0.1:4318] [--status 503]

OTLP over HTTP as the specification has it: POST /v1/traces, protobuf or JSON, plain, gzip or deflate, answered in the sender's own
encoding. Each span is one JSON line on stdout. Its one rule: what a real collector would refuse is refused here as well.
"""

import argparse
import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
PROTOBUF, JSON = "application/x-protobuf", "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """
    One span.

    Args:
        parent: Id of its parent; "" for a root.
        start_ns, end_ns: Since the epoch.
        links: (trace, span) of each.
        status: UNSET, OK or ERROR, and what was said about it.
        resource: Attributes of the sender.
    """

    name: str
    kind: str
    trace: str
    span: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]
    status: str
    said: str
    resource: dict[str, Any]

    def shown(self) -> dict[str, Any]:
        whole = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("start_ns", "end_ns")}
        return {**whole, "took_ms": (self.end_ns - self.start_ns) / 1e6}


@dataclass
class Receiver:
    """
    Attributes:
        status: What each request is answered with.
        hangs: Requests get no answer at all.
        headers: Of each request, as they came.
        raw: Bodies, decompressed.
    """

    url: str = ""
    status: int = 200
    hangs: bool = False
    spans: list[Received] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    async def traces(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.hangs:
            await asyncio.Event().wait()
        kind = request.content_type
        if kind not in (PROTOBUF, JSON):
            return web.Response(status=415, text=f"content type {kind!r}: {PROTOBUF} or {JSON}")
        if self.status != 200:
            return web.Response(status=self.status)
        try:
            body = _plain(await request.read(), request.headers.get("Content-Encoding", "identity"))
            asked = ExportTraceServiceRequest()
            if kind == PROTOBUF:
                asked.ParseFromString(body)
            else:
                Parse(body, asked)
        except (OSError, EOFError, zlib.error, DecodeError, ParseError, ValueError) as exc:
            return web.Response(status=400, text=f"{type(exc).__name__}: {exc}")
        self.raw.append(body)
        self.spans += _spans(asked)
        answer = ExportTraceServiceResponse()
        return web.Response(body=answer.SerializeToString() if kind == PROTOBUF else b"{}", content_type=kind)

    def of(self, kind: str) -> list[Received]:
        return [span for span in self.spans if span.kind == kind]


@asynccontextmanager
async def serve_otlp(host: str = "127.0.0.1", port: int = 0, receiver: Receiver | None = None) -> AsyncIterator[Receiver]:
    receiver = receiver or Receiver()
    app = web.Application(client_max_size=2**26)
    # aiohttp would decompress by itself; the protocol's own words about that are what is tested here.
    app.router.add_post("/v1/traces", receiver.traces)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    try:
        receiver.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield receiver
    finally:
        await runner.cleanup()


def _plain(body: bytes, encoding: str) -> bytes:
    match encoding.strip().lower():
        case "identity" | "":
            return body
        case "gzip":
            return gzip.decompress(body)
        case "deflate":
            return zlib.decompress(body)
        case other:
            raise ValueError(f"content encoding {other!r}")


def _spans(asked: ExportTraceServiceRequest) -> list[Received]:
    found = []
    for group in asked.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                found.append(
                    Received(
                        name=span.name,
                        kind=KINDS[span.kind],
                        trace=span.trace_id.hex(),
                        span=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                        attributes=_attributes(span.attributes),
                        events=[(event.name, _attributes(event.attributes)) for event in span.events],
                        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                        status=("UNSET", "OK", "ERROR")[span.status.code],
                        said=span.status.message,
                        resource=resource,
                    )
                )
    return found


def _attributes(given: Any) -> dict[str, Any]:
    each: list[KeyValue] = list(given)
    return {one.key: _value(one.value) for one in each}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)


async def _print(host: str, port: int, status: int) -> None:
    async with serve_otlp(host, port, Receiver(status=status)) as receiver:
        sys.stderr.write(f"receiving traces on {receiver.url}/v1/traces\n")
        while True:
            await asyncio.sleep(0.2)
            spans, receiver.spans = receiver.spans, []
            for span in spans:
                sys.stdout.write(json.dumps(span.shown()) + "\n")
            sys.stdout.flush()
            receiver.raw.clear()


def main() -> int:
    parser = argparse.ArgumentParser(description="Receive OpenTelemetry traces and print them, one JSON line a span.")
    parser.add_argument("--listen", default="127.0.0.1:4318", help="host:port; 4318 is the protocol's own")
    parser.add_argument("--status", type=int, default=200, help="answer every request with this status instead")
    args = parser.parse_args()
    host, _, port = args.listen.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--listen: {args.listen!r} is not host:port")
    try:
        asyncio.run(_print(host, int(port), args.status))
    except KeyboardInterrupt:
        return 0
    except OSError as exc:
        sys.stderr.write(f"cannot listen on {args.listen}: {exc.strerror or exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
