"""
What the endpoints of OpenAI's API have in common, seen from the router: how an answer is judged and how a stream is read.

`chat`, `responses` and `embeddings` each are one Dialect. Its one rule: a dialect reads, it never waits or sends; bytes that need no
change go on as they came.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from router.caps import Endpoint
from router.errors import ApiError
from router.outcome import Failed
from router.usage import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A whole JSON answer. `text_bytes` is the size of what was generated, for estimates."""

    body: bytes
    tokens: Tokens | None
    text_bytes: int


class Reader:
    """
    Reads one stream, event by event.

    Attributes:
        started: The first token of an answer has come.
        done: The provider has said that this was all.
        failure: What is wrong with it, as far as it was read.
        tokens: What the provider reported, if it did.
        text_bytes: Size of the generated text so far, for estimates.
        tail: What ends a whole stream; it goes to the client last, when nothing is wrong.
    """

    __slots__ = ("done", "failure", "started", "tail", "text_bytes", "tokens")

    def __init__(self) -> None:
        self.started = self.done = False
        self.failure: Failed | None = None
        self.tokens: Tokens | None = None
        self.text_bytes = 0
        self.tail = b""

    @abstractmethod
    def event(self, raw: bytes) -> bytes:
        """What of a raw event goes to the client, without its blank line; b"" for nothing."""

    @abstractmethod
    def unfinished(self) -> Failed | None:
        """What is missing where the stream ended."""


class Dialect(Protocol):
    """One endpoint. `path` follows the provider's base URL."""

    endpoint: Endpoint
    path: str

    def judge(self, body: bytes, model: str) -> Completed | Failed:
        """A 200 with a JSON body. `model` is filled in where the provider names none."""

    def reader(self, model: str, asked: Mapping[str, Any]) -> Reader:
        """`asked` is the client's own body."""

    def streaming(self, fields: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a streaming request as it goes upstream."""

    def broken_off(self, error: ApiError) -> bytes:
        """The event that tells the client that a stream is not whole."""


def object_of(data: bytes) -> dict[str, Any] | None:
    try:
        made = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return made if isinstance(made, dict) else None


def malformed(detail: str) -> Failed:
    """A 200 that is no answer."""
    return Failed(outcome="error", detail=detail, status=200)


def code_of(error: Any) -> str:
    """The provider's error code and the parameter at fault; its message may quote the prompt and stays out."""
    if not isinstance(error, dict):
        return ""
    parts = (error.get("code") or error.get("type"), error.get("param"))
    said = [part for part in map(str, parts) if _IDENTIFIER.fullmatch(part) and part != "None"]
    return f" ({', '.join(said)})" if said else ""


_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\[\]-]{1,60}")
"""What a code or the path of a field looks like; a sentence in its place may quote anything."""


def size_of(value: Any) -> int:
    """Bytes of generated text."""
    return len(value.encode("utf-8", "replace")) if isinstance(value, str) else len(orjson.dumps(value))
