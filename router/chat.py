"""
``/v1/chat/completions``: choices and deltas.

Its one rule: an answer without ``finish_reason`` is half an answer, and a stream without ``[DONE]`` is half a stream.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from router.caps import Endpoint
from router.dialect import Completed, Reader, code_of, malformed, object_of, size_of
from router.errors import ApiError
from router.outcome import Failed
from router.sse import data_of
from router.usage import reported

DONE_EVENT = b"data: [DONE]\n\n"


class Chat:
    endpoint: Endpoint = "chat"
    path = "/chat/completions"

    def judge(self, body: bytes, model: str) -> Completed | Failed:
        answer = object_of(body)
        if answer is None:
            return malformed("an answer that is not a JSON object")
        if answer.get("error"):
            return malformed(f"200 with an error in it{code_of(answer['error'])}")
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices:
            return malformed("an answer without choices")
        text_bytes = 0
        for choice in choices:
            message = choice.get("message") if isinstance(choice, dict) else None
            if not isinstance(message, dict):
                return malformed("a choice without a message")
            if not choice.get("finish_reason"):
                return malformed("a choice without finish_reason")
            content = message.get("content")
            text_bytes += size_of(content) if isinstance(content, str) else 0
        if not answer.get("model"):
            body = orjson.dumps({**answer, "model": model})
        return Completed(body=body, tokens=reported(answer.get("usage")), text_bytes=text_bytes)

    def reader(self, model: str, asked: Mapping[str, Any]) -> Reader:
        return ChatReader(model, usage_wanted=bool((asked.get("stream_options") or {}).get("include_usage")))

    def streaming(self, fields: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        options = asked.get("stream_options") or {}
        return {**fields, "stream": True, "stream_options": {**options, "include_usage": True}}

    def broken_off(self, error: ApiError) -> bytes:
        return b"data: " + error.body() + b"\n\n"


class ChatReader(Reader):
    """
    Args:
        usage_wanted: The client has asked for the usage as well; else its chunk is kept back.
    """

    __slots__ = ("_model", "_open_choices", "_usage_wanted")

    def __init__(self, model: str, usage_wanted: bool) -> None:
        super().__init__()
        self._model, self._usage_wanted = model, usage_wanted
        self._open_choices: dict[Any, bool] = {}
        self.tail = DONE_EVENT

    def event(self, raw: bytes) -> bytes:
        data = data_of(raw)
        if data is None:
            return b""
        if data == b"[DONE]":
            self.done = True
            return b""
        event = object_of(data)
        if event is None:
            self.failure = malformed("an event that is not a JSON object")
            return b""
        if event.get("error"):
            self.failure = malformed(f"an error event{code_of(event['error'])}")
            return b""
        choices = event.get("choices")
        if (usage := event.get("usage")) is not None:
            self.tokens = reported(usage) or self.tokens
            if not choices and not self._usage_wanted:
                return b""
        for choice in choices if isinstance(choices, list) else ():
            self._choice(choice)
        if not event.get("model"):
            return b"data: " + orjson.dumps({**event, "model": self._model})
        return raw

    def unfinished(self) -> Failed | None:
        if not self._open_choices or any(self._open_choices.values()):
            return malformed("the stream ended without finish_reason")
        return None if self.done else malformed("the stream ended without [DONE]")

    def _choice(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            return
        index = choice.get("index", 0)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for key, value in delta.items():
                if value and key != "role":
                    # Whatever is not the role is an answer: content, refusal, reasoning, tool calls, audio.
                    self.started = True
                    self.text_bytes += size_of(value)
        if choice.get("finish_reason"):
            self.started = True
            self._open_choices[index] = False
        else:
            self._open_choices.setdefault(index, True)
