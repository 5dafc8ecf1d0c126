"""A time of day comes once a day, also when the clock is moved."""

from datetime import UTC, datetime, time, timedelta
from itertools import pairwise

import pytest

from controller.core.daily import TimeOfDay


def utc(*at: int) -> datetime:
    return datetime(*at, tzinfo=UTC)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("09:00 Europe/Berlin", TimeOfDay(at=time(9), zone="Europe/Berlin")),
        ("23:59", TimeOfDay(at=time(23, 59))),
        ("00:00 UTC", TimeOfDay(at=time(0))),
    ],
)
def test_reads_a_time_and_a_zone(text: str, expected: TimeOfDay) -> None:
    assert TimeOfDay.read(text) == expected


@pytest.mark.parametrize(
    "text", ["", "9:00", "24:00", "09:60", "09:00 Mars/Olympus", "09:00 ../etc/passwd", "09:00 Europe/Berlin x", "noon"]
)
def test_anything_else_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        TimeOfDay.read(text)


@pytest.mark.parametrize(
    ("now", "last"),
    [
        (utc(2026, 11, 26, 8, 0), utc(2026, 11, 26, 8, 0)),
        (utc(2026, 11, 26, 7, 59), utc(2026, 11, 25, 8, 0)),
        (utc(2026, 7, 1, 7, 0), utc(2026, 7, 1, 7, 0)),
    ],
)
def test_when_it_last_was(now: datetime, last: datetime) -> None:
    assert TimeOfDay.read("09:00 Europe/Berlin").last(now) == last


@pytest.mark.parametrize("clock", ["02:30 Europe/Berlin", "00:00 Europe/Berlin", "02:30 America/New_York", "12:00 Pacific/Apia"])
def test_it_comes_once_a_day_whatever_the_clock_does(clock: str) -> None:
    clock_at, begin = TimeOfDay.read(clock), utc(2026, 1, 1)
    seen = {clock_at.last(begin + timedelta(minutes=15 * i)) for i in range(365 * 96)}
    days = [at for at in sorted(seen) if at >= begin]
    assert len(days) in (364, 365)
    assert {b - a for a, b in pairwise(days)} <= {timedelta(hours=h) for h in (23, 24, 25)}
