"""
Shadow pairs: what the user's model and the mirrored candidate answered to the same request, for whoever judges quality.

    Recording              the bytes of one answer, up to a limit, taken down as they pass
    PairDesk.offer(...)    reads two recordings, redacts, and hands one pair to every sink

Its one rule: numbers always, texts only where the configuration asks for them, and never a text that the redactor has not seen. What a
pair says is ``shadow-pair.v1.schema.json`` beside this file.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson

from flagspec import WEIGHT_MAX, RouteFlag
from router import config
from router.caps import Endpoint
from router.dialect import object_of
from router.logs import get_logger
from router.metrics import RouterMetrics
from router.redact import Redactor
from router.request import Request
from router.sse import SseOverflow, SseSplitter, data_of

if TYPE_CHECKING:
    from router.booking import Booked

log = get_logger()

SCHEMA = "penstock/shadow-pair/v1"

RAW_PER_TEXT = 16
"""Bytes of an answer as sent that are kept for each byte of text: an event of a stream is its text and names around it."""

READING_MAX = 64
"""Pairs that wait to be read and redacted; each holds both answers as sent. Recognisers of one's own may take their time."""

MARGIN = 256
"""Characters before a cut that go as well: half a key or half an address is not recognised as one."""

_ENVELOPE = frozenset(
    {"model", "user", "stream", "stream_options", "metadata", "penstock", "safety_identifier", "prompt_cache_key"}
)
"""What does not change the question: left out of its digest, so that the same question has the same one."""


class PairSink(Protocol):
    """Where pairs go. A sink of one's own has these two methods, and is named in router.yaml (`shadow.pairs.python`)."""

    def offer(self, pair: Mapping[str, Any]) -> bool:
        """Takes a pair, at once: it never waits. False where there is no room for it."""

    async def close(self) -> None:
        """The router stops: what was taken and not yet delivered is delivered, or given up, within seconds."""


class Recording:
    """The beginning of an answer; `cut` if it was longer than the limit (bytes)."""

    __slots__ = ("_left", "_parts", "cut")

    def __init__(self, limit: int) -> None:
        self._left, self._parts, self.cut = limit, list[bytes](), False

    def hear(self, chunk: bytes) -> None:
        if len(chunk) > self._left:
            self.cut = True
            chunk = chunk[: self._left]
        self._left -= len(chunk)
        if chunk:
            self._parts.append(chunk)

    @property
    def raw(self) -> bytes:
        return b"".join(self._parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """
    One of the two answers.

    Args:
        model: Who answered; "" if nobody did.
        status: What a client of this side got, or would have got; None for a copy without an answer.
        outcome: As in the metrics; None for a user's request that nobody answered.
        fallback: Another than the assigned model answered.
    """

    model: str
    status: int | None
    outcome: str | None
    fallback: bool
    booked: "Booked | None"
    recording: Recording


@dataclass(slots=True, kw_only=True)
class Reading:
    """What stands in an answer."""

    texts: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    vectors: list[list[float]] = field(default_factory=list)


class PairDesk:
    """
    Args:
        sinks: Each under the name that its series has.
        digest_key: Digests are keyed with it; without one, who guesses a short question can check the guess.
    """

    def __init__(
        self,
        spec: config.Pairs,
        environment: str,
        redactor: Redactor,
        sinks: Sequence[tuple[str, PairSink]],
        metrics: RouterMetrics,
        digest_key: bytes | None = None,
    ) -> None:
        self._spec, self._environment, self._redactor = spec, environment, redactor
        self._sinks, self._metrics, self._key = sinks, metrics, digest_key
        # One thread of its own: names of hosts are looked up in the loop's own, and users' calls wait for those.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pairs")
        self._reading = 0

    def recording(self) -> Recording:
        return Recording(RAW_PER_TEXT * self._spec.text_bytes)

    async def offer(
        self, request: Request, flag: RouteFlag | None, route: str, baseline: Side, shadow: Side, at: datetime
    ) -> None:
        """Beside the requests under way and not in front of them: patterns over long texts take milliseconds."""
        if self._reading >= READING_MAX:
            for name, _ in self._sinks:
                self._metrics.pairs(name, "dropped")
            return
        self._reading += 1
        try:
            read = partial(self._pair, request, flag, route, baseline, shadow, at)
            pair = await asyncio.get_running_loop().run_in_executor(self._reader, read)
        finally:
            self._reading -= 1
        for name, sink in self._sinks:
            try:
                taken = sink.offer(pair)
            except Exception as exc:
                log.error("pair_sink_bug", sink=name, error=type(exc).__name__)
                self._metrics.pairs(name, "failed")
                continue
            if not taken:
                self._metrics.pairs(name, "dropped")
            elif name == "python":
                self._metrics.pairs(name, "delivered")

    async def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(sink.close() for _, sink in self._sinks), return_exceptions=True)

    def _pair(
        self, request: Request, flag: RouteFlag | None, route: str, baseline: Side, shadow: Side, at: datetime
    ) -> dict[str, Any]:
        endpoint = request.weight.endpoint
        question = {name: value for name, value in request.body.items() if name not in _ENVELOPE}
        shown = self._spec.content and request.size <= RAW_PER_TEXT * self._spec.text_bytes
        return {
            "schema": SCHEMA,
            "id": f"pair_{os.urandom(12).hex()}",
            "at": at.isoformat(),
            "environment": self._environment,
            "route": route,
            "flag": None
            if flag is None
            else {
                "key": flag.key,
                "version": flag.version,
                "revision": flag.revision,
                "decision_id": flag.decision_id,
                "shadow_share": flag.shadow_weight / WEIGHT_MAX,
            },
            "request": {
                "id": self._redactor.text(request.request_id),
                "digest": self._digest(orjson.dumps(question, option=orjson.OPT_SORT_KEYS)),
                "endpoint": endpoint,
                "stream": request.stream,
                "bytes": request.size,
                "tools": request.weight.tools,
                "content": self._shown(question) if shown else None,
            },
            "baseline": self._side(endpoint, request.stream, baseline),
            "shadow": self._side(endpoint, request.stream, shadow),
        }

    def _side(self, endpoint: Endpoint, stream: bool, side: Side) -> dict[str, Any]:
        booked = side.booked
        tokens = None if booked is None else booked.tokens
        said = Reading()
        if side.status == 200:
            said = read_answer(endpoint, side.recording.raw, stream=stream)
        text = "\n".join(said.texts)
        return {
            "model": side.model or None,
            "status": side.status,
            "outcome": side.outcome,
            "fallback": side.fallback,
            "duration_ms": None if booked is None else round(booked.took_s * 1000, 3),
            "ttft_ms": None if booked is None or booked.first_s is None else round(booked.first_s * 1000, 3),
            "tokens": None
            if tokens is None
            else {"input": tokens.input, "output": tokens.output, "cached": tokens.cached, "estimated": tokens.estimated},
            "cost_usd": None if booked is None else booked.cost_usd,
            "finish_reasons": [reason if reason in _REASONS else "other" for reason in said.finish_reasons],
            "text_bytes": len(text.encode("utf-8", "replace")),
            "text_digest": self._digest(text.encode("utf-8", "replace")) if text else None,
            "tool_calls": len(said.tool_calls),
            "vectors": [len(vector) for vector in said.vectors],
            "cut": side.recording.cut,
            "content": self._content(said, side.recording.cut) if self._spec.content else None,
        }

    def _content(self, said: Reading, cut: bool) -> dict[str, Any]:
        return {
            "texts": [self._text(text, cut=cut) for text in said.texts],
            "tool_calls": [{name: self._text(value, cut=cut) for name, value in call.items()} for call in said.tool_calls],
            "vectors": said.vectors,
        }

    def _shown(self, value: Any) -> Any:
        match value:
            case str():
                return self._text(value)
            case list():
                return [self._shown(one) for one in value]
            case dict():
                return {self._text(name): self._shown(one) for name, one in value.items()}
            case _:
                return value

    def _text(self, text: str, *, cut: bool = False) -> str:
        limit = self._spec.text_bytes
        cut = cut or len(text) > limit
        shown = self._redactor.text(text[:limit])
        return shown[:-MARGIN] if cut else shown

    def _digest(self, data: bytes) -> str:
        if self._key is None:
            return f"sha256:{hashlib.sha256(data).hexdigest()}"
        return f"hmac-sha256:{hmac.digest(self._key, data, 'sha256').hex()}"


_REASONS = frozenset(
    {"stop", "length", "tool_calls", "function_call", "content_filter", "completed", "incomplete", "max_output_tokens"}
)
"""A provider's own word in their place could be any text."""


def read_answer(endpoint: Endpoint, raw: bytes, *, stream: bool) -> Reading:
    """What can be read of an answer as the provider has sent it; of half an answer perhaps nothing."""
    try:
        if stream:
            return _READERS[endpoint, "stream"](_events(raw))
        answer = object_of(raw)
        return Reading() if answer is None else _READERS[endpoint, "json"](answer)
    except (AttributeError, TypeError, KeyError, ValueError):
        # An answer that its dialect let pass and that is of another shape all the same.
        return Reading()


def _events(raw: bytes) -> list[dict[str, Any]]:
    try:
        found = [data_of(one) for one in SseSplitter().feed(raw)]
    except SseOverflow:
        return []
    return [event for data in found if data is not None and (event := object_of(data)) is not None]


def _chat(answer: dict[str, Any]) -> Reading:
    said = Reading()
    for choice in answer["choices"]:
        message = choice["message"]
        _message(said, message.get("content"), message.get("refusal"), message.get("tool_calls"), choice.get("finish_reason"))
    return said


def _chat_stream(events: list[dict[str, Any]]) -> Reading:
    texts: dict[int, list[str]] = {}
    refusals: dict[int, list[str]] = {}
    calls: dict[int, dict[int, dict[str, Any]]] = {}
    reasons: dict[int, str] = {}
    for event in events:
        for choice in event.get("choices") or ():
            index, delta = choice.get("index", 0), choice.get("delta") or {}
            texts.setdefault(index, []).append(delta.get("content") or "")
            refusals.setdefault(index, []).append(delta.get("refusal") or "")
            for call in delta.get("tool_calls") or ():
                known = calls.setdefault(index, {})
                # Google's calls come without an index, each whole and with an id of its own.
                place = call.get("index", len(known) if call.get("id") else max(0, len(known) - 1))
                made = known.setdefault(place, {"name": "", "arguments": ""})
                for part in ("name", "arguments"):
                    made[part] += (call.get("function") or {}).get(part) or ""
            if choice.get("finish_reason"):
                reasons[index] = choice["finish_reason"]
    said = Reading()
    for index in sorted(texts):
        made_calls = [{"function": call} for call in calls.get(index, {}).values()]
        _message(said, "".join(texts[index]), "".join(refusals[index]), made_calls, reasons.get(index))
    return said


def _message(said: Reading, content: Any, refusal: Any, calls: Any, reason: Any) -> None:
    said.texts += [text for text in (content, refusal) if isinstance(text, str) and text]
    for call in calls or ():
        function = call.get("function") or {}
        said.tool_calls.append({"name": str(function.get("name") or ""), "arguments": str(function.get("arguments") or "")})
    if reason:
        said.finish_reasons.append(str(reason))


def _responses(answer: dict[str, Any]) -> Reading:
    said = Reading()
    for item in answer["output"]:
        for part in item.get("content") or ():
            text = part.get("text") or part.get("refusal")
            said.texts += [text] if isinstance(text, str) else []
        if item.get("type") == "function_call":
            said.tool_calls.append({"name": str(item.get("name") or ""), "arguments": str(item.get("arguments") or "")})
    why = (answer.get("incomplete_details") or {}).get("reason")
    said.finish_reasons.append(str(why or answer.get("status")))
    return said


def _responses_stream(events: list[dict[str, Any]]) -> Reading:
    for event in reversed(events):
        if event.get("type") in ("response.completed", "response.incomplete"):
            return _responses(event["response"])
    texts = [event["delta"] for event in events if event.get("type") == "response.output_text.delta"]
    return Reading(texts=["".join(texts)] if texts else [])


def _embeddings(answer: dict[str, Any]) -> Reading:
    return Reading(vectors=[_vector(row["embedding"]) for row in answer["data"]])


def _vector(value: Any) -> list[float]:
    """Numbers, or what OpenAI's library asks for by itself: base64 of 32-bit floating-point numbers, little-endian."""
    if isinstance(value, list):
        return [float(one) for one in value]
    try:
        return array("f", base64.b64decode(value, validate=True)).tolist()
    except binascii.Error as exc:
        raise ValueError("neither numbers nor base64") from exc


_READERS: Mapping[tuple[Endpoint, Literal["json", "stream"]], Callable[[Any], Reading]] = {
    ("chat", "json"): _chat, ("chat", "stream"): _chat_stream, ("responses", "json"): _responses,
    ("responses", "stream"): _responses_stream, ("embeddings", "json"): _embeddings,
}  # fmt: skip
