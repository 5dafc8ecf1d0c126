"""Kept connections that the provider closed meanwhile: no model's fault, and nobody notices."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tests.router.harness import DONE, Router, chunk, completion, config, serve_router

How = Literal["closes", "resets", "closes_after_a_status_line", "answers"]


@dataclass
class Provider:
    """
    Answers the first request of each connection and keeps it open; `again` says what a further request on it meets, `first` what
    a first one does.
    """

    url: str = ""
    again: How = "closes"
    first: How = "answers"
    seen: list[tuple[int, int]] = field(default_factory=list)
    """(connection, request on it), both from 1."""
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection, count = self.connections, 0
        while (body := await _request(reader)) is not None:
            count += 1
            self.seen.append((connection, count))
            match self.first if count == 1 else self.again:
                case "answers":
                    writer.write(_answer(stream=b'"stream":true' in body))
                    await writer.drain()
                    continue
                case "resets":
                    writer.transport.abort()
                case "closes_after_a_status_line":
                    writer.write(b"HTTP/1.1 200 OK\r\n")
            break
        writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(int(length.partition(b":")[2]))


def _answer(*, stream: bool) -> bytes:
    body = json.dumps(completion("old")).encode()
    kind = b"application/json"
    if stream:
        body = chunk("old", {"content": "Hello"}) + chunk("old", {}, "stop") + DONE
        kind = b"text/event-stream"
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    made.url = f"http://{host}:{port}/v1"
    async with server:
        yield made


@asynccontextmanager
async def only_old(provider: Provider) -> AsyncIterator[Router]:
    """A router with one model and nothing to fall back to."""
    routes = [{"name": "chat", "match": {"model": ["chat"]}, "flag": "chat-model", "default": "old"}]
    async with serve_router(config(provider.url, routes=routes)) as router:
        yield router


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_a_request_that_meets_a_closed_kept_connection_is_sent_once_more_over_a_new_one(
    provider: Provider, how: How, stream: bool
) -> None:
    provider.again = how
    async with only_old(provider) as router:
        answers = [await router.ask(stream=stream) for _ in range(2)]
        assert [a.status for a in answers] == [200, 200]
        assert answers[1].headers["x-penstock-fallback"] == "false"
        assert provider.seen == [(1, 1), (1, 2), (2, 1)]
        assert router.arm("penstock_requests_total", streaming=stream, outcome="ok") == 2
        assert router.arm("penstock_requests_total", streaming=stream, outcome="error") == 0
        assert router.metric("mcp_request_duration_seconds_count", model="old", provider="p", tool="chat") == 2, "one attempt"


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_a_new_connection_that_is_closed_is_the_providers_failure(provider: Provider, how: How) -> None:
    provider.first = how
    async with only_old(provider) as router:
        assert (await router.ask()).status == 502
        assert provider.seen == [(1, 1)]
        assert router.arm("penstock_requests_total", outcome="error") == 1


async def test_a_provider_that_closes_the_new_connection_as_well_has_failed_and_is_not_asked_a_third_time(
    provider: Provider,
) -> None:
    async with only_old(provider) as router:
        await router.ask()
        provider.first = "closes"
        assert (await router.ask()).status == 502
        assert provider.seen == [(1, 1), (1, 2), (2, 1)]


async def test_a_request_whose_answer_had_begun_is_not_sent_again(provider: Provider) -> None:
    provider.again = "closes_after_a_status_line"
    async with only_old(provider) as router:
        await router.ask()
        assert (await router.ask()).status == 502
        assert provider.seen == [(1, 1), (1, 2)]


async def test_kept_connections_are_used_again(provider: Provider) -> None:
    provider.again = "answers"
    async with only_old(provider) as router:
        for _ in range(3):
            await router.ask()
        assert provider.seen == [(1, 1), (1, 2), (1, 3)]
