"""
Quantities as people write them: ``15m``, ``99.9%``, ``250 USD``.

Each type parses strictly, serialises to the same text in JSON (so that a model goes through JSON unchanged), and describes
itself in JSON Schema as a string with a pattern (so that a form can draw it).

Its one rule: a number without its unit is never guessed at. In a file, ``traffic: 1`` could be 1 % or everything, and is refused;
Python code, which knows that ratios are 0..1, may pass the float itself.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler, PlainSerializer, ValidationInfo, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

FROM_FILE = {"specfile": True}
"""Validation context that the loader passes: plain numbers are then refused where a unit is needed."""

_UNITS = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000}
"""Microseconds in each unit, largest first."""

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+", re.ASCII)
_ISO_DURATION = re.compile(
    r"P(?:(?P<d>\d+(?:\.\d+)?)D)?(?:T(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?", re.ASCII
)
_PERCENT = re.compile(r"(-?\d+(?:\.\d+)?)\s*%", re.ASCII)
_MONEY = re.compile(r"(-?\d+(?:\.\d+)?)\s*([A-Z]{3})", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """
    A length of time: ``250ms``, ``1.0s``, ``15m``, ``1h30m``, ``2d``, or ISO 8601 (``PT15M``) as JSON tools write it.

    Raises:
        ValueError: it is anything else, negative included.
    """
    text = text.strip()
    micros = Decimal(0)
    if _DURATION.fullmatch(text):
        for amount, unit in _DURATION_PART.findall(text):
            micros += Decimal(amount) * _UNITS[unit]
    elif (iso := _ISO_DURATION.fullmatch(text)) and any(iso.groups()):
        for unit, amount in iso.groupdict().items():
            micros += Decimal(amount or 0) * _UNITS[unit]
    else:
        raise ValueError(f"{text!r} is not a duration (write 30s, 15m, 2h)")
    try:
        return timedelta(microseconds=int(micros))
    except OverflowError:
        raise ValueError(f"{text!r} is longer than time is counted (at most {timedelta.max.days}d)") from None


def format_duration(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads back as the same value, in one unit: ``90s``, ``15m``, ``250ms``."""
    micros = value // timedelta(microseconds=1)
    for unit, size in _UNITS.items():
        if micros and micros % size == 0:
            return f"{micros // size}{unit}"
    return f"{_plain(Decimal(micros) / _UNITS['s'])}s"


def parse_increase(text: str) -> float:
    """
    A percentage that may exceed 100 %, as a ratio: ``150%`` is 1.5.

    Raises:
        ValueError: it is not a percentage, or negative.
    """
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a percentage (write 1%, 0.5%, 25%)")
    percent = Decimal(match[1])
    if percent < 0:
        raise ValueError(f"{text!r} is negative (a percentage starts at 0%)")
    ratio = float(percent / 100)
    if ratio == float("inf"):
        raise ValueError(f"{text[:40]!r} is too large for a percentage")
    return ratio


def parse_ratio(text: str) -> float:
    """
    A percentage within 0..100 %, as a ratio: ``99.9%`` is 0.999.

    Raises:
        ValueError: it is not a percentage, negative, or over 100 %.
    """
    ratio = parse_increase(text)
    if ratio > 1:
        raise ValueError(f"{text!r} is over 100%")
    return ratio


def format_ratio(value: float) -> str:
    """``0.005`` as ``0.5%``; `parse_ratio` reads it back as the same float."""
    return f"{_plain(Decimal(repr(value)) * 100)}%"


@dataclass(frozen=True, slots=True, order=False)
class Money:
    """
    An amount in a currency, written ``250 USD``.

    Args:
        amount: Finite and not negative.
        currency: ISO 4217 letters.
    """

    amount: Decimal
    currency: str

    def __post_init__(self) -> None:
        if not self.amount.is_finite() or self.amount < 0:
            raise ValueError(f"{self.amount} {self.currency} is not an amount (a number that is not negative)")

    def __str__(self) -> str:
        return f"{_plain(self.amount)} {self.currency}"

    @classmethod
    def parse(cls, text: str) -> "Money":
        """Raises ValueError when the text is not a non-negative amount with its currency."""
        match = _MONEY.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not an amount of money (write 250 USD, 0.50 USD)")
        if match[1].startswith("-"):
            raise ValueError(f"{text!r} is negative (an amount starts at 0)")
        return cls(Decimal(match[1]), match[2])

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _money,
            serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json"),
            metadata={"pydantic_js_functions": [lambda _schema, _handler: dict(_MONEY_SCHEMA)]},
        )


def _money(value: Any) -> Money:
    if isinstance(value, Money):
        return value
    if isinstance(value, str):
        return Money.parse(value)
    raise ValueError(f"{value!r} has no currency (write 250 USD, 0.50 USD)")


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise ValueError(f"{value} is negative (a duration starts at 0s)")
        return value
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError(f"{value!r} is not a duration (write 30s, 15m, 2h)")


def _positive(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("0s is too short (it must be longer than nothing)")
    return value


def _percentage(parse: Callable[[str], float], limit: float) -> Callable[[Any, ValidationInfo], float]:
    def validate(value: Any, info: ValidationInfo) -> float:
        if isinstance(value, str):
            return parse(value)
        # A bool is an int, an int is 1 % to some and 100 % to others, and so is a float in a file.
        if isinstance(value, float) and info.context is not FROM_FILE:
            if not 0 <= value <= limit or value == float("inf"):
                raise ValueError(f"{value!r} is not a ratio within 0..{limit:g}")
            return value
        raise ValueError(f"{value!r} is not a percentage (write 1%, 0.5%, 25%)")

    return validate


def _plain(value: Decimal) -> str:
    """Without exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_DURATION_SCHEMA = {"type": "string", "pattern": r"^(\d+(\.\d+)?(ms|s|m|h|d))+$", "examples": ["30s", "15m", "2h"]}
_PERCENT_SCHEMA = {"type": "string", "pattern": r"^\d+(\.\d+)?\s*%$", "examples": ["1%", "0.5%", "25%"]}
_MONEY_SCHEMA = {"type": "string", "pattern": r"^\d+(\.\d+)?\s*[A-Z]{3}$", "examples": ["250 USD"]}

Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(_DURATION_SCHEMA),
]
"""A length of time, zero included."""

PositiveDuration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    AfterValidator(_positive),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(_DURATION_SCHEMA),
]
"""A length of time longer than zero: timeouts, windows, intervals."""

Ratio = Annotated[
    float,
    BeforeValidator(_percentage(parse_ratio, 1.0)),
    PlainSerializer(format_ratio, return_type=str, when_used="json"),
    WithJsonSchema(_PERCENT_SCHEMA),
]
"""A share, 0..1, written as a percentage."""

Increase = Annotated[
    float,
    BeforeValidator(_percentage(parse_increase, float("inf"))),
    PlainSerializer(format_ratio, return_type=str, when_used="json"),
    WithJsonSchema(_PERCENT_SCHEMA),
]
"""A change relative to something, 0 or more, written as a percentage that may exceed 100 %."""
