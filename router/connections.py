"""
Connections to the providers: kept open between calls, and replaced by a new one when a kept one turns out to be closed.

    open_connections() -> Connections        for as long as the router runs
    Connections.post() -> ClientResponse     one call

A server closes a kept connection when it likes; a request that is on its way at that moment is lost, and nothing is wrong with the
model. aiohttp sends idempotent methods again by itself, and a POST never. A chat completion changes nothing at the provider, so that
it may be sent again.

Its one rule: a request is sent a second time only over a new connection, only once, and only if the kept one was found closed at
once and without an answer. Whatever else goes wrong is the provider's doing and is booked as such.
"""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
from yarl import URL

CONNECT_S = 5.0
"""Longer than any working connection takes to open, short enough to leave time for a fallback."""

KEPT_S = 30.0
"""How long an idle connection is kept: below the minute or more after which most providers and load balancers close theirs."""

STALE_S = 1.0
"""A connection that was closed says so within one round trip. A later end is that of a request somebody was working on."""

_CLOSED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError)


class _Use:
    """What is known of the connection of one call."""

    __slots__ = ("reused",)

    def __init__(self) -> None:
        self.reused = False


class Connections:
    """
    Args:
        kept: Keeps its connections, and notes in a `_Use` when it uses one again.
        fresh: Opens a connection for each call.
    """

    def __init__(self, kept: aiohttp.ClientSession, fresh: aiohttp.ClientSession) -> None:
        self._kept = kept
        self._fresh = fresh

    async def post(self, url: URL, body: bytes, headers: Mapping[str, str], total_s: float) -> aiohttp.ClientResponse:
        """
        Args:
            total_s: Limit of the whole call, reading the answer included, and a second sending as well.

        Raises:
            TimeoutError, aiohttp.ClientError, OSError: no answer came.
        """
        use, started = _Use(), time.monotonic()
        try:
            return await self._kept.post(
                url, data=body, headers=headers, timeout=_limit(total_s), allow_redirects=False, trace_request_ctx=use
            )
        except _CLOSED as exc:
            took_s = time.monotonic() - started
            if not use.reused or took_s > min(STALE_S, total_s) or _had_begun(exc):
                raise
        return await self._fresh.post(url, data=body, headers=headers, timeout=_limit(total_s - took_s), allow_redirects=False)


@asynccontextmanager
async def open_connections() -> AsyncIterator[Connections]:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    kept = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=KEPT_S)
    fresh = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, force_close=True)
    async with _session(kept, trace) as first, _session(fresh) as second:
        yield Connections(first, second)


def _session(connector: aiohttp.TCPConnector, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    skip = ("User-Agent", "Accept", "Accept-Encoding")
    return aiohttp.ClientSession(
        connector=connector,
        trust_env=False,
        skip_auto_headers=skip,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=list(traces),
    )


def _limit(total_s: float) -> aiohttp.ClientTimeout:
    # ceil_threshold: aiohttp rounds longer timeouts up to whole seconds unless told otherwise.
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S, ceil_threshold=1e9)


def _had_begun(exc: Exception) -> bool:
    """Whether the first bytes of an answer came: aiohttp then puts what it could read of its head in place of the message."""
    return isinstance(exc, aiohttp.ServerDisconnectedError) and not isinstance(exc.message, str)


async def _note_reuse(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    if isinstance(use := context.trace_request_ctx, _Use):
        use.reused = True
