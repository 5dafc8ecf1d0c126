"""
One upstream call: send a request to one model, and say what became of it.

    complete()     a JSON answer: Completed or Failed
    Stream.open()  a stream up to its first content token: None or Failed; then iterate it, and read `failure` at the end

Its one rule: only a whole answer is a success. A stream without finish_reason and [DONE], a 200 with an error in it, JSON that is
no completion: each is a failure, as much as a refused connection. Every outcome of the network becomes a value here; only the
caller's own cancellation passes through.

What counts as what (`router.outcome.Outcome`):

| the provider                                              | outcome      | next model tried |
|-----------------------------------------------------------|--------------|------------------|
| whole answer                                              | ok           |                  |
| 429                                                       | rate_limited | yes              |
| 408, or silence beyond the model's timeout                | timeout      | yes              |
| 400, 413, 422                                             | client_error | see below        |
| other statuses, connection, malformed, cut, error in 200  | error        | yes              |

A refusal ends the request, but for one: the candidate's is tried on the control, and is an `error` if that answers (`engine`).
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from yarl import URL

from router.connections import CONNECT_S, Connections
from router.dialect import Completed, Dialect, Reader, code_of, malformed, object_of
from router.exchange import waiting
from router.outcome import CLIENT_FAULTS, Failed
from router.sse import BUFFER_MAX, SseOverflow, SseSplitter
from router.usage import Tokens

ANSWER_MAX = 64 * 1024 * 1024
"""Bytes of a JSON answer after which the sender is not a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    Where one model is served.

    Args:
        base_url: Of its provider; each endpoint has its path below it.
        headers: Sent with each call, the provider's key among them.
        drop: Fields that its provider refuses.
        forward_authorization: The client's own Authorization goes along (providers without ``api_key_env``).
        request_s, stream_s, first_token_s: Timeouts of an attempt, in seconds.
    """

    model: str
    upstream_name: str
    provider: str
    base_url: str
    headers: Mapping[str, str]
    forward_authorization: bool
    request_s: float
    stream_s: float
    first_token_s: float | None
    drop: frozenset[str] = frozenset()

    def url(self, path: str) -> URL:
        if (known := _URLS.get((self.base_url, path))) is None:
            known = _URLS[self.base_url, path] = URL(self.base_url + path)
        return known


_URLS: dict[tuple[str, str], URL] = {}
"""Parsing an address takes longer than anything else here, and there are few of them."""


async def complete(
    connections: Connections, dialect: Dialect, target: Target, body: bytes, headers: Mapping[str, str], limit_s: float
) -> Completed | Failed:
    """
    Args:
        dialect: Of the endpoint.
        body: The request, as JSON.
        headers: Of this call, beside the target's own.
        limit_s: Of the whole call.
    """
    try:
        with waiting():
            async with await connections.post(target.url(dialect.path), body, {**target.headers, **headers}, limit_s) as response:
                if response.status != 200:
                    return await _refused(response)
                answer = await _read(response, ANSWER_MAX)
        return dialect.judge(answer, target.model)
    except Exception as exc:
        return _broken(exc, f"no answer within {limit_s:.3g}s")


class Stream:
    """
    A streaming attempt. `open` it, iterate it to the end (or stop), `close` it in any case.

    Args:
        reader: Reads its events.
        limit_s, first_s: Of the whole stream, and of the wait for its first content token.

    Attributes:
        head: After `open`: the bytes up to and including the first content token, ready for the client.
        failure: After the iteration: why the stream is not whole, or None.
        finished: True from the last event on: the answer is whole.
    """

    __slots__ = (
        "_body", "_chunks", "_connections", "_dialect", "_first_s", "_headers", "_limit_s", "_reader", "_response", "_splitter",
        "_target", "failure", "finished", "head",
    )  # fmt: skip

    def __init__(
        self,
        connections: Connections,
        dialect: Dialect,
        reader: Reader,
        target: Target,
        body: bytes,
        headers: Mapping[str, str],
        *,
        limit_s: float,
        first_s: float,
    ) -> None:
        self._connections, self._dialect, self._reader, self._target = connections, dialect, reader, target
        self._body, self._headers = body, headers
        self._limit_s, self._first_s = limit_s, first_s
        self._splitter = SseSplitter()
        self._response: aiohttp.ClientResponse | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self.head = b""
        self.failure: Failed | None = None
        self.finished = False

    @property
    def tokens(self) -> Tokens | None:
        """What the provider reported, if it did."""
        return self._reader.tokens

    @property
    def text_bytes(self) -> int:
        """Size of the generated text so far, for estimates."""
        return self._reader.text_bytes

    async def open(self) -> Failed | None:
        """Connects and reads up to the first content token. Nothing may go to the client before this returns None."""
        try:
            async with asyncio.timeout(self._first_s):
                failed = await self._until_first_token()
        except Exception as exc:
            failed = _broken(exc, f"no first token within {min(self._first_s, self._limit_s):.3g}s")
        if failed is not None:
            self.failure = failed
            self.close()
        return failed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The rest after `head`. Ends with what ends a stream if, and only if, the answer is whole; else see `failure`."""
        assert self._chunks is not None, "open() comes first"
        try:
            while not self._reader.done and self._reader.failure is None:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    break
                if out := self._feed(chunk):
                    yield out
        except Exception as exc:
            self.failure = _broken(exc, f"stream not finished within {self._limit_s:.3g}s")
        self.failure = self.failure or self._unfinished()
        if self.failure is None:
            self.finished = True
            yield self._reader.tail

    def close(self) -> None:
        """Gives the connection back if the answer was read to its end, else drops it, which cancels the work upstream."""
        if self._response is not None:
            if self.finished:
                self._response.release()
            else:
                self._response.close()

    async def _until_first_token(self) -> Failed | None:
        url, headers = self._target.url(self._dialect.path), {**self._target.headers, **self._headers}
        with waiting():
            response = self._response = await self._connections.post(url, self._body, headers, self._limit_s)
        if response.status != 200:
            return await _refused(response)
        if response.content_type != "text/event-stream":
            judged = self._dialect.judge(await _read(response, ANSWER_MAX), self._target.model)
            return malformed(judged.detail if isinstance(judged, Failed) else "a JSON answer to a streaming request")
        self._chunks = response.content.iter_any()
        reader, head, size = self._reader, [], 0
        while not reader.started and not reader.done:
            with waiting():
                chunk = await anext(self._chunks, None)
            if chunk is None:
                return self._unfinished() or malformed("an empty stream")
            head.append(self._feed(chunk))
            size += len(head[-1])
            if reader.failure is not None and not reader.started:
                return reader.failure
            if size > BUFFER_MAX:
                return malformed("no first token in megabytes of events")
        if not reader.started:
            return self._unfinished() or malformed("an empty stream")
        self.head = b"".join(head)
        return None

    def _feed(self, chunk: bytes) -> bytes:
        """The events of a chunk that go to the client."""
        reader, out = self._reader, []
        for raw in self._splitter.feed(chunk):
            if kept := reader.event(raw):
                out.append(kept)
            if reader.done or reader.failure is not None:
                break
        if not out:
            return b""
        out.append(b"")
        return b"\n\n".join(out)

    def _unfinished(self) -> Failed | None:
        reader = self._reader
        if not reader.done and reader.failure is None and (rest := self._splitter.rest):
            # Some servers close right after the last event without the blank line that ends it.
            reader.event(rest)
            reader.failure = None
        return reader.failure or reader.unfinished()


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            response.close()
            raise SseOverflow(f"an answer of more than {limit} bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _refused(response: aiohttp.ClientResponse) -> Failed:
    status = response.status
    detail = f"status {status}"
    if status in CLIENT_FAULTS:
        body = await _read(response, BUFFER_MAX)
        error = _error_of(body)
        shown = None if error is None else body
        return Failed(outcome="client_error", detail=detail + code_of(error), status=status, body=shown)
    response.close()
    if status == 429:
        return Failed(outcome="rate_limited", detail=detail, status=status, retry_after=response.headers.get("Retry-After"))
    return Failed(outcome="timeout" if status == 408 else "error", detail=detail, status=status)


def _error_of(body: bytes) -> dict[str, Any] | None:
    """The error in an answer of OpenAI's shape; None if the answer has another."""
    error = (object_of(body) or {}).get("error")
    return error if isinstance(error, dict) else None


def _broken(exc: Exception, timed_out: str) -> Failed:
    match exc:
        case aiohttp.ConnectionTimeoutError():
            return Failed(outcome="error", detail=f"cannot connect within {CONNECT_S:g}s")
        case TimeoutError():
            return Failed(outcome="timeout", detail=timed_out)
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError():
            return Failed(outcome="error", detail="the connection was cut")
        case aiohttp.ClientConnectorError():
            return Failed(outcome="error", detail=f"cannot connect: {exc.os_error.strerror or type(exc.os_error).__name__}")
        case orjson.JSONEncodeError():
            return malformed("an answer that is nested too deep")
        case aiohttp.ClientError() | OSError() | SseOverflow():
            return Failed(outcome="error", detail=f"{type(exc).__name__}: {exc}"[:200])
        case _:
            raise exc
