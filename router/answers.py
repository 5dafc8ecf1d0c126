"""
Answers in the application's own process: JSON objects with their fields as attributes, as OpenAI's Python library shows them.

Its one rule: nothing is checked and nothing is lost: a field that only this provider knows is an attribute as well, and `model_dump` is
what came.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """
    Who answered.

    Args:
        model, arm, fallback: As in the headers ``x-penstock-*``.
        headers: All of the answer's, in lower case.
    """

    model: str
    arm: str
    fallback: bool
    request_id: str
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Served":
        return cls(
            model=headers.get("x-penstock-model", ""),
            arm=headers.get("x-penstock-arm", ""),
            fallback=headers.get("x-penstock-fallback") == "true",
            request_id=headers.get("x-request-id", ""),
            headers=headers,
        )


_OPTIONAL = frozenset(
    {
        "annotations", "audio", "content", "error", "finish_reason", "function_call", "incomplete_details", "logprobs", "name",
        "reasoning", "reasoning_content", "refusal", "role", "service_tier", "system_fingerprint", "tool_calls", "usage",
        "completion_tokens_details", "prompt_tokens_details", "input_tokens_details", "output_tokens_details", "cached_tokens",
        "reasoning_tokens", "audio_tokens",
    }
)  # fmt: skip
"""What OpenAI's types have as None where a provider sent nothing of that name; any other name is an AttributeError."""


class Answer:
    """
    A JSON object.

    Args:
        served: Who answered, on the outermost object; None on those within.
    """

    __slots__ = ("_data", "_served")

    def __init__(self, data: Mapping[str, Any], served: Served | None = None) -> None:
        self._data = data
        self._served = served

    def __getattr__(self, name: str) -> Any:
        # Names of the machinery (copying, pickling) are asked for before there is any data.
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return _shaped(self._data[name])
        except KeyError:
            if name in _OPTIONAL:
                return None
            raise AttributeError(f"the answer has no {name!r} (it has {', '.join(map(str, self._data))})") from None

    @property
    def penstock(self) -> Served | None:
        return self._served

    @property
    def _request_id(self) -> str | None:
        return None if self._served is None else self._served.request_id

    @property
    def output_text(self) -> str:
        """Of a response: all its texts."""
        parts = [part for item in self._data.get("output") or () for part in item.get("content") or ()]
        return "".join(part["text"] for part in parts if part.get("type") == "output_text")

    def model_dump(self, *, exclude_none: bool = False, **_as_pydantic: Any) -> dict[str, Any]:
        """The object as it came. Other arguments of pydantic's method are taken and say nothing here."""
        made: dict[str, Any] = orjson.loads(orjson.dumps(self._data))
        return _without_none(made) if exclude_none else made

    to_dict = model_dump

    def model_dump_json(self, *, indent: int | None = None, **_as_pydantic: Any) -> str:
        return orjson.dumps(self._data, option=orjson.OPT_INDENT_2 if indent else None).decode()

    to_json = model_dump_json

    def __iter__(self) -> Iterator[Any]:
        """Of a list (of models, say): its rows."""
        rows = self._data.get("data")
        if not isinstance(rows, list):
            raise TypeError("the answer is no list; model_dump() has its fields")
        return iter(_shaped(rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and self._data == other._data

    __hash__ = None  # type: ignore[assignment]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *map(str, self._data)]

    def __repr__(self) -> str:
        return f"Answer({dict(self._data)!r})"


def plain(value: Any) -> Any:
    """What orjson asks for a value it does not know: our answers and OpenAI's, given back as messages."""
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"{type(value).__name__} is no JSON")
    return dump(exclude_none=True)


def _shaped(value: Any) -> Any:
    if isinstance(value, dict):
        return Answer(value)
    return [_shaped(one) for one in value] if isinstance(value, list) else value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(one) for name, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value
