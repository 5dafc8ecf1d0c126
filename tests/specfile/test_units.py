"""Durations, percentages and money: what is read, what is refused, and that JSON brings the same value back."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from specfile import (
    FROM_FILE,
    Duration,
    Increase,
    Money,
    PositiveDuration,
    Ratio,
    format_duration,
    format_ratio,
    parse_duration,
    parse_ratio,
)


class Sheet(BaseModel):
    duration: Duration = timedelta(minutes=15)
    ratio: Ratio = 0.01
    increase: Increase = 1.5
    money: Money = Money(Decimal(250), "USD")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Duration, "250ms", timedelta(milliseconds=250)),
        (Duration, "1.0s", timedelta(seconds=1)),
        (Duration, "15m", timedelta(minutes=15)),
        (Duration, "1h30m", timedelta(minutes=90)),
        (Duration, "2d", timedelta(days=2)),
        (Duration, "PT15M", timedelta(minutes=15)),
        (Duration, "P1DT0.5S", timedelta(days=1, milliseconds=500)),
        (Duration, "0s", timedelta(0)),
        (Ratio, "1%", 0.01),
        (Ratio, "0.5%", 0.005),
        (Ratio, "99.9%", 0.999),
        (Ratio, "100%", 1.0),
        (Ratio, "0%", 0.0),
        (Increase, "150%", 1.5),
        (Money, "250 USD", Money(Decimal(250), "USD")),
        (Money, "0.50 USD", Money(Decimal("0.50"), "USD")),
    ],
)
def test_reads(kind: Any, text: str, value: Any) -> None:
    assert TypeAdapter(kind).validate_python(text, context=FROM_FILE) == value


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Duration, "30 parsecs", "'30 parsecs' is not a duration (write 30s, 15m, 2h)"),
        (Duration, "", "'' is not a duration"),
        (Duration, 30, "30 is not a duration"),
        (Duration, "-5s", "'-5s' is not a duration"),
        (Duration, "nan", "'nan' is not a duration"),
        (Duration, "P", "'P' is not a duration"),
        (Duration, "PT", "'PT' is not a duration"),
        (Duration, "9999999999d", "'9999999999d' is longer than time is counted"),
        (Duration, timedelta(-1), "is negative"),
        (Duration, True, "True is not a duration"),
        (PositiveDuration, "0s", "0s is too short"),
        (Ratio, "101%", "'101%' is over 100%"),
        (Ratio, "-1%", "'-1%' is negative"),
        (Ratio, 0.5, "0.5 is not a percentage (write 1%, 0.5%, 25%)"),
        (Ratio, 1, "1 is not a percentage"),
        (Ratio, True, "True is not a percentage"),
        (Ratio, "nan%", "'nan%' is not a percentage"),
        (Ratio, "inf%", "'inf%' is not a percentage"),
        (Ratio, "1e3%", "'1e3%' is not a percentage"),
        (Ratio, "٣%", "'٣%' is not a percentage"),
        (Increase, "-10%", "'-10%' is negative"),
        (Increase, "9" * 400 + "%", "is too large"),
        (Money, "250", "'250' is not an amount of money"),
        (Money, 250, "250 has no currency"),
        (Money, "-1 USD", "'-1 USD' is negative"),
        (Money, "NaN USD", "'NaN USD' is not an amount of money"),
        (Money, "1 dollars", "'1 dollars' is not an amount of money"),
    ],
)
def test_refuses_with_the_value_and_what_to_write(kind: Any, wrong: Any, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(wrong, context=FROM_FILE)
    assert message in str(refused.value)


def test_code_may_pass_the_ratio_itself_but_no_number_outside_it() -> None:
    assert Sheet(ratio=0.25).ratio == 0.25
    for wrong in (1.5, -0.1, float("nan"), float("inf"), 1):
        with pytest.raises(ValidationError):
            Sheet(ratio=wrong)


def test_money_is_never_nan_infinite_or_negative() -> None:
    for wrong in ("NaN", "Infinity", "-1"):
        with pytest.raises(ValueError, match="not an amount"):
            Money(Decimal(wrong), "USD")


def test_json_says_it_as_people_write_it() -> None:
    assert Sheet().model_dump_json() == '{"duration":"15m","ratio":"1%","increase":"150%","money":"250 USD"}'


def test_the_schema_is_a_string_with_a_pattern_for_a_form_to_draw() -> None:
    for part in Sheet.model_json_schema()["properties"].values():
        assert (part["type"], "pattern" in part) == ("string", True)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10_000)))
def test_durations_come_back_from_their_text(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value


@given(st.floats(min_value=0, max_value=1))
def test_ratios_come_back_from_their_text(value: float) -> None:
    assert parse_ratio(format_ratio(value)) == value
