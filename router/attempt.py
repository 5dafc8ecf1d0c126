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
from router.outcome import CLIENT_FAULTS, Failed
from router.sse import BUFFER_MAX, SseOverflow, SseSplitter, data_of
from router.usage import Tokens, reported

ANSWER_MAX = 64 * 1024 * 1024
"""Bytes of a JSON answer after which the sender is not a model."""

DONE_EVENT = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    Where one model is served.

    Args:
        url: Of its chat completions.
        headers: Sent with each call, the provider's key among them.
        forward_authorization: The client's own Authorization goes along (providers without ``api_key_env``).
        request_s, stream_s, first_token_s: Timeouts of an attempt, in seconds.
    """

    model: str
    upstream_name: str
    provider: str
    url: URL
    headers: Mapping[str, str]
    forward_authorization: bool
    request_s: float
    stream_s: float
    first_token_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A whole JSON answer. `text_bytes` is the size of what was generated, for estimates."""

    body: bytes
    tokens: Tokens | None
    text_bytes: int


async def complete(
    connections: Connections, target: Target, body: bytes, headers: Mapping[str, str], limit_s: float
) -> Completed | Failed:
    """
    Args:
        body: The request, as JSON.
        headers: Of this call, beside the target's own.
        limit_s: Of the whole call.
    """
    try:
        async with await _post(connections, target, body, headers, limit_s) as response:
            if response.status != 200:
                return await _refused(response)
            return _judge(await _read(response, ANSWER_MAX), target.model)
    except Exception as exc:
        return _broken(exc, f"no answer within {limit_s:.3g}s")


class Stream:
    """
    A streaming attempt. `open` it, iterate it to the end (or stop), `close` it in any case.

    Args:
        limit_s, first_s: Of the whole stream, and of the wait for its first content token.
        usage_wanted: The client has asked for the usage as well.

    Attributes:
        head: After `open`: the bytes up to and including the first content token, ready for the client.
        failure: After the iteration: why the stream is not whole, or None.
        finished: True from the [DONE] event on: the answer is whole.
        tokens: What the provider reported, if it did.
        text_bytes: Size of the generated text so far, for estimates.
    """

    __slots__ = (
        "_body", "_chunks", "_connections", "_done", "_first_s", "_headers", "_limit_s", "_open_choices", "_response", "_splitter", "_started", "_target",
        "_usage_wanted", "failure", "finished", "head", "text_bytes", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        connections: Connections,
        target: Target,
        body: bytes,
        headers: Mapping[str, str],
        *,
        limit_s: float,
        first_s: float,
        usage_wanted: bool,
    ) -> None:
        self._limit_s, self._first_s = limit_s, first_s
        self._connections, self._target, self._body, self._headers = connections, target, body, headers
        self._usage_wanted = usage_wanted
        self._splitter = SseSplitter()
        self._response: aiohttp.ClientResponse | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._open_choices: dict[Any, bool] = {}
        self._started = False
        self._done = False
        self.head = b""
        self.failure: Failed | None = None
        self.finished = False
        self.tokens: Tokens | None = None
        self.text_bytes = 0

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
        """The rest after `head`. Ends with the [DONE] event if, and only if, the answer is whole; else see `failure`."""
        assert self._chunks is not None, "open() comes first"
        try:
            while not self._done and self.failure is None:
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
            yield DONE_EVENT

    def close(self) -> None:
        """Gives the connection back if the answer was read to its end, else drops it, which cancels the work upstream."""
        if self._response is not None:
            if self.finished:
                self._response.release()
            else:
                self._response.close()

    async def _until_first_token(self) -> Failed | None:
        response = await _post(self._connections, self._target, self._body, self._headers, self._limit_s)
        self._response = response
        if response.status != 200:
            return await _refused(response)
        if response.content_type != "text/event-stream":
            judged = _judge(await _read(response, ANSWER_MAX), self._target.model)
            detail = judged.detail if isinstance(judged, Failed) else "a JSON answer to a streaming request"
            return Failed(outcome="error", detail=detail, status=200)
        self._chunks = response.content.iter_any()
        head = []
        while not self._started and not self._done:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return self._unfinished() or Failed(outcome="error", detail="an empty stream", status=200)
            head.append(self._feed(chunk))
            if self.failure is not None and not self._started:
                return self.failure
            if sum(map(len, head)) > BUFFER_MAX:
                return Failed(outcome="error", detail="no first token in megabytes of events", status=200)
        if not self._started:
            return self._unfinished() or Failed(outcome="error", detail="an empty stream", status=200)
        self.head = b"".join(head)
        return None

    def _feed(self, chunk: bytes) -> bytes:
        """The events of a chunk that go to the client; notes usage, errors and the end on the way."""
        out = []
        for raw in self._splitter.feed(chunk):
            data = data_of(raw)
            if data is None:
                continue
            if data == b"[DONE]":
                self._done = True
                break
            kept = self._event(raw, data)
            if self.failure is not None:
                break
            if kept:
                out.append(kept)
        if not out:
            return b""
        out.append(b"")
        return b"\n\n".join(out)

    def _event(self, raw: bytes, data: bytes) -> bytes:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            event = None
        if not isinstance(event, dict):
            self.failure = Failed(outcome="error", detail="an event that is not a JSON object", status=200)
            return b""
        if event.get("error"):
            self.failure = Failed(outcome="error", detail=f"an error event{_code(event['error'])}", status=200)
            return b""
        choices = event.get("choices")
        if (usage := event.get("usage")) is not None:
            self.tokens = reported(usage) or self.tokens
            if not choices and not self._usage_wanted:
                return b""
        for choice in choices if isinstance(choices, list) else ():
            self._choice(choice)
        if not event.get("model"):
            return b"data: " + orjson.dumps({**event, "model": self._target.model})
        return raw

    def _choice(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            return
        index = choice.get("index", 0)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for key, value in delta.items():
                if value and key != "role":
                    # Whatever is not the role is an answer: content, refusal, reasoning, tool calls, audio.
                    self._started = True
                    self.text_bytes += (
                        len(value.encode("utf-8", "replace")) if isinstance(value, str) else len(orjson.dumps(value))
                    )
        if choice.get("finish_reason"):
            self._started = True
            self._open_choices[index] = False
        else:
            self._open_choices.setdefault(index, True)

    def _unfinished(self) -> Failed | None:
        # Some servers close right after [DONE] without the blank line that ends the event.
        if not self._done and data_of(self._splitter.rest) == b"[DONE]":
            self._done = True
        if not self._open_choices or any(self._open_choices.values()):
            return Failed(outcome="error", detail="the stream ended without finish_reason", status=200)
        if not self._done:
            return Failed(outcome="error", detail="the stream ended without [DONE]", status=200)
        return None


async def _post(
    connections: Connections, target: Target, body: bytes, headers: Mapping[str, str], total_s: float
) -> aiohttp.ClientResponse:
    return await connections.post(target.url, body, {**target.headers, **headers}, total_s)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            response.close()
            raise SseOverflow(f"an answer of more than {limit} bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _judge(body: bytes, model: str) -> Completed | Failed:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Failed(outcome="error", detail="an answer that is not JSON", status=200)
    if isinstance(answer, dict) and answer.get("error"):
        return Failed(outcome="error", detail=f"200 with an error in it{_code(answer['error'])}", status=200)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        return Failed(outcome="error", detail="an answer without choices", status=200)
    text_bytes = 0
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            return Failed(outcome="error", detail="a choice without a message", status=200)
        if not choice.get("finish_reason"):
            return Failed(outcome="error", detail="a choice without finish_reason", status=200)
        content = message.get("content")
        text_bytes += len(content.encode("utf-8", "replace")) if isinstance(content, str) else 0
    if not answer.get("model"):
        body = orjson.dumps({**answer, "model": model})
    return Completed(body=body, tokens=reported(answer.get("usage")), text_bytes=text_bytes)


async def _refused(response: aiohttp.ClientResponse) -> Failed:
    status = response.status
    detail = f"status {status}"
    if status in CLIENT_FAULTS:
        body = await _read(response, BUFFER_MAX)
        error = _error_of(body)
        shown = None if error is None else body
        return Failed(outcome="client_error", detail=detail + _code(error), status=status, body=shown)
    response.close()
    if status == 429:
        return Failed(outcome="rate_limited", detail=detail, status=status, retry_after=response.headers.get("Retry-After"))
    return Failed(outcome="timeout" if status == 408 else "error", detail=detail, status=status)


def _error_of(body: bytes) -> dict[str, Any] | None:
    """The error in an answer of OpenAI's shape; None if the answer has another."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    error = answer.get("error") if isinstance(answer, dict) else None
    return error if isinstance(error, dict) else None


def _code(error: Any) -> str:
    """The provider's error code and the parameter at fault; its message may quote the prompt and stays out."""
    if not isinstance(error, dict):
        return ""
    said = [str(part)[:60] for part in (error.get("code") or error.get("type"), error.get("param")) if part]
    return f" ({', '.join(said)})" if said else ""


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
        case aiohttp.ClientError() | OSError() | SseOverflow():
            return Failed(outcome="error", detail=f"{type(exc).__name__}: {exc}"[:200])
        case _:
            raise exc
