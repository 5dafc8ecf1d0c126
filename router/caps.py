"""
What one request may use of one model: tokens in, tokens out, money.

    weigh(body, size, endpoint) -> Weight           once for a request: what it brings and what it asks for
    fit(weight, card, caps, budget_usd) -> Fit | Failed    for each model it may go to

Its one rule: what is promised is enforced by the provider. An estimate only chooses; the limit on the output that goes upstream
with the request is what makes a cost impossible. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Any, Literal, get_args

import orjson

from router import config
from router.outcome import Failed
from router.presets import PRESETS
from router.reasoning import Style
from router.usage import BYTES_PER_TOKEN, Rates

Endpoint = Literal["chat", "responses", "embeddings"]

OUTPUT_FIELDS: Mapping[Endpoint, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
    "embeddings": (),
}
"""How a request says what the answer may be long; the first is what the router writes where the client wrote none."""

IMAGE_TOKENS = 1_445
"""Of an image, at most (OpenAI, "Images and vision": 85 and 170 for each of up to 8 tiles of 512 pixels)."""

_LARGE = 64 * 1024
"""Bytes from which on a body is looked into: up to here, images in base64 hardly mislead the estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One line of the model table, as requests are held against it. None: not known, and not checked."""

    model: str
    endpoints: frozenset[Endpoint]
    context_tokens: int | None
    max_output_tokens: int | None
    output_field: str | None
    tools: bool
    streaming: bool
    reasoning: Style | None
    quality: float | None
    rates: Rates | None

    @classmethod
    def of(cls, model: config.Model, provider: config.Provider | None = None) -> "Card":
        preset = None if provider is None or provider.preset is None else PRESETS[provider.preset]
        return cls(
            model=model.name,
            endpoints=frozenset(get_args(Endpoint) if provider is None else provider.endpoints),
            context_tokens=model.context_tokens,
            max_output_tokens=model.max_output_tokens,
            output_field=model.output_field,
            tools=model.tools,
            streaming=model.streaming,
            reasoning=model.reasoning or (None if preset is None else preset.reasoning),
            quality=model.quality,
            rates=None if model.price is None else Rates.of(model.price),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """
    What a request brings and asks for.

    Args:
        input: Tokens, estimated.
        output: The longest answer that the client wants, in tokens; None if it does not say.
        fields: Under which names it says so.
        choices: How many answers it wants.
        stream, tools: What it needs the model to be able to do.
    """

    endpoint: Endpoint
    input: int
    output: int | None
    fields: tuple[str, ...]
    choices: int
    stream: bool = False
    tools: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """
    How a request goes to a model.

    Args:
        fields: To be set in the body (None: to be taken out), beside what the client sent.
        lowered: What the client's own limit was lowered for, if it was.
    """

    fields: Mapping[str, int | None]
    lowered: Literal["output", "cost"] | None = None


_AS_IT_IS = Fit(fields={})


def weigh(body: Mapping[str, Any], size: int, endpoint: Endpoint) -> Weight:
    """
    Args:
        body: Its limits are whole numbers, already checked.
        size: Of the body as sent, in bytes.
    """
    fields = tuple(name for name in OUTPUT_FIELDS[endpoint] if body.get(name) is not None)
    return Weight(
        endpoint=endpoint,
        input=input_tokens(body, size),
        output=min((body[name] for name in fields), default=None),
        fields=fields,
        choices=(endpoint == "chat" and body.get("n")) or 1,
        stream=endpoint != "embeddings" and bool(body.get("stream")),
        tools=bool(body.get("tools") or body.get("functions")),
    )


def input_tokens(body: Mapping[str, Any], size: int) -> int:
    """Estimated at four bytes a token, names and braces included; in a large body an image counts as an image."""
    if size > _LARGE:
        size = sum(_bytes_of(value) for value in body.values())
    return -(-size // BYTES_PER_TOKEN)


def fit(weight: Weight, card: Card, caps: config.Caps | None, budget_usd: float | None) -> Fit | Failed:
    """
    Args:
        caps: Of all requests.
        budget_usd: What this request may cost at most.

    Returns:
        Failed: it does not go to this model, whoever else may take it.
    """
    if weight.endpoint not in card.endpoints:
        return Failed(outcome="error", detail=f"its provider has no {weight.endpoint}", unasked="unable")
    if (weight.tools and not card.tools) or (weight.stream and not card.streaming):
        detail = f"it cannot {'call tools' if weight.tools and not card.tools else 'stream'}"
        return Failed(outcome="error", detail=detail, unasked="unable")
    most = weight.output
    lowered: Literal["output", "cost"] | None = None
    for limit in (None if caps is None else caps.output_tokens, card.max_output_tokens if most is not None else None):
        if limit is not None and (most is None or limit < most):
            most, lowered = limit, "output" if weight.output is not None else None
    if card.context_tokens is not None and weight.input + (most or 0) > card.context_tokens:
        answer = f" and {most} of answer" if most else ""
        detail = f"about {weight.input} tokens{answer} do not fit into its {card.context_tokens}"
        return Failed(outcome="error", detail=detail, unasked="unfit")
    if budget_usd is not None:
        affordable = affordable_tokens(weight, card, budget_usd)
        if affordable is None:
            # A price that nobody knows keeps no promise.
            return Failed(outcome="client_error", detail="it has no price to hold a cost limit against", unasked="cost")
        if affordable < 1:
            detail = f"about {weight.input} tokens of input leave nothing of {budget_usd:g} USD for an answer"
            return Failed(outcome="client_error", detail=detail, unasked="cost")
        ceiling = most if most is not None else card.max_output_tokens
        if ceiling is None or affordable < ceiling:
            most, lowered = affordable, "cost" if weight.output is not None else lowered
    fields = _fields(weight, card, most)
    return Fit(fields=fields, lowered=lowered) if fields else _AS_IT_IS


def affordable_tokens(weight: Weight, card: Card, budget_usd: float) -> int | None:
    """The longest answer, in tokens, that cannot cost more than the budget; None without a price."""
    if card.rates is None:
        return None
    left = budget_usd - weight.input * card.rates.input
    if weight.endpoint == "embeddings" or not card.rates.output:
        return 2**53 if left >= 0 else 0
    # Rounding must not take the last token away from a budget that is exactly enough.
    return floor(left / (card.rates.output * weight.choices) + 1e-9)


def _fields(weight: Weight, card: Card, most: int | None) -> dict[str, int | None]:
    known = OUTPUT_FIELDS[weight.endpoint]
    if most is None or not known:
        return {}
    name = card.output_field if card.output_field in known else (weight.fields or known)[0]
    if most == weight.output and weight.fields == (name,):
        return {}
    if card.max_output_tokens is not None and weight.output is None and most >= card.max_output_tokens:
        return {}
    return {name: most, **{other: None for other in weight.fields if other != name}}


def _bytes_of(value: Any) -> int:
    match value:
        case str():
            return len(value.encode("utf-8", "replace"))
        case list():
            return sum(map(_bytes_of, value))
        case dict():
            if value.get("type") in ("image_url", "input_image"):
                return IMAGE_TOKENS * BYTES_PER_TOKEN
            return sum(len(name) + _bytes_of(inner) for name, inner in value.items())
        case _:
            return len(orjson.dumps(value))
