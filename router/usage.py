"""
Tokens and what they cost.

Providers report usage; where one does not (a cut stream, a client that left, a server that does not know ``include_usage``),
tokens are estimated at four bytes of UTF-8 each: the request's body for the input, the generated text for the output. That is
OpenAI's own rule of thumb for English; it is low in characters for other scripts, which is why it counts bytes.

Its one rule: tokens are always booked. A missing number would make a failing model look cheap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.config import Price

BYTES_PER_TOKEN = 4
"""OpenAI help center, "What are tokens and how to count them": about 4 characters of English."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """
    What one attempt used.

    Args:
        cached: The part of `input` that the provider had in its cache.
        estimated: True when the provider did not say.
    """

    input: int
    output: int
    cached: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Prices of one token, in USD."""

    input: float
    output: float
    cached: float

    @classmethod
    def of(cls, price: Price) -> "Rates":
        cached = price.cached_input_per_mtok or price.input_per_mtok
        return cls(
            input=float(price.input_per_mtok.amount / 1_000_000),
            output=float(price.output_per_mtok.amount / 1_000_000),
            cached=float(cached.amount / 1_000_000),
        )

    def cost(self, tokens: Tokens) -> float:
        """In USD."""
        cached = min(tokens.cached, tokens.input)
        return (tokens.input - cached) * self.input + cached * self.cached + tokens.output * self.output


def reported(usage: Any) -> Tokens | None:
    """The ``usage`` object of a chat completion; None if it is absent or makes no sense."""
    return counted(usage, "prompt_tokens", "completion_tokens", "prompt_tokens_details")


def counted(usage: Any, input: str, output: str | None = None, details: str | None = None) -> Tokens | None:
    """
    A ``usage`` object whose fields are called so.

    Args:
        output: None where nothing is generated.
        details: Of the input: the field in which ``cached_tokens`` stands.
    """
    if not isinstance(usage, Mapping):
        return None
    given, made = _count(usage.get(input)), 0 if output is None else _count(usage.get(output))
    if given is None or made is None:
        return None
    inner = usage.get(details) if details is not None else None
    cached = _count(inner.get("cached_tokens")) if isinstance(inner, Mapping) else None
    return Tokens(input=given, output=made, cached=cached or 0)


def estimated(request_bytes: int, answer_bytes: int) -> Tokens:
    """
    Args:
        request_bytes: Size of the request body.
        answer_bytes: Size of the generated text, UTF-8.
    """
    return Tokens(input=-(-request_bytes // BYTES_PER_TOKEN), output=-(-answer_bytes // BYTES_PER_TOKEN), estimated=True)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
