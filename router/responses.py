"""
``/v1/responses``: items and typed events.

Its one rule: a stream is whole when its response is ``completed`` or ``incomplete``, and that event is the last one that the client sees;
``failed``, ``error`` and silence are failures.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from router.caps import Endpoint
from router.dialect import Completed, Reader, code_of, malformed, object_of, size_of
from router.errors import ApiError
from router.outcome import Failed
from router.sse import data_of
from router.usage import Tokens, counted

_ENDED = frozenset({"completed", "incomplete"})


class Responses:
    endpoint: Endpoint = "responses"
    path = "/responses"

    def judge(self, body: bytes, model: str) -> Completed | Failed:
        answer = object_of(body)
        if answer is None:
            return malformed("an answer that is not a JSON object")
        if answer.get("error"):
            return malformed(f"200 with an error in it{code_of(answer['error'])}")
        output = answer.get("output")
        if not isinstance(output, list):
            return malformed("an answer without output")
        if answer.get("status") not in _ENDED:
            return malformed(f"a response that is {str(answer.get('status'))[:20]!r} and not completed")
        if not answer.get("model"):
            body = orjson.dumps({**answer, "model": model})
        return Completed(body=body, tokens=_tokens(answer), text_bytes=_text_bytes(output))

    def reader(self, model: str, asked: Mapping[str, Any]) -> Reader:
        return ResponsesReader()

    def streaming(self, fields: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        return {**fields, "stream": True}

    def broken_off(self, error: ApiError) -> bytes:
        fields = error.fields()
        # The API's own error event has its fields at the top; OpenAI's libraries raise only where they find an `error`.
        event = {**fields, "type": "error", "sequence_number": 0, "error": fields}
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"


class ResponsesReader(Reader):
    __slots__ = ()

    def event(self, raw: bytes) -> bytes:
        data = data_of(raw)
        if data is None or data == b"[DONE]":
            return b""
        event = object_of(data)
        if event is None:
            self.failure = malformed("an event that is not a JSON object")
            return b""
        kind = event.get("type")
        if kind == "error" or event.get("error"):
            self.failure = malformed(f"an error event{code_of(event.get('error') or event)}")
            return b""
        if not isinstance(kind, str):
            self.failure = malformed("an event without a type")
            return b""
        if kind.endswith(".delta"):
            self.started = True
            self.text_bytes += size_of(event.get("delta"))
            return raw
        if kind == "response.failed":
            response = event.get("response")
            self.failure = malformed(f"a failed response{code_of(response.get('error') if isinstance(response, dict) else None)}")
            return b""
        if kind.removeprefix("response.") in _ENDED:
            self.done = self.started = True
            self.tokens = _tokens(event.get("response"))
            self.tail = raw + b"\n\n"
            return b""
        return raw

    def unfinished(self) -> Failed | None:
        return None if self.done else malformed("the stream ended without response.completed")


def _tokens(response: Any) -> Tokens | None:
    usage = response.get("usage") if isinstance(response, dict) else None
    return counted(usage, "input_tokens", "output_tokens", "input_tokens_details")


def _text_bytes(output: list[Any]) -> int:
    parts = [part for item in output if isinstance(item, dict) for part in (item.get("content") or [item])]
    texts = [part.get("text") or part.get("arguments") for part in parts if isinstance(part, dict)]
    return sum(size_of(text) for text in texts if isinstance(text, str))
