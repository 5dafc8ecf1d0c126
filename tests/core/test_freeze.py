"""Calendars, checked against a wall calendar: 2026-03-28 is a Saturday, and Berlin's clocks go forward on Sunday the 29th at 02:00."""

from datetime import UTC, datetime, timedelta

import pytest

from controller.core.freeze import Window, check, frozen_until, windows
from controller.core.plan import FreezeRule, FreezeSpan, PlanError

WEEKENDS = FreezeRule(name="weekends", rrule="FREQ=WEEKLY;BYDAY=SA,SU", timezone="Europe/Berlin")
YEAR_END = FreezeSpan(
    name="year-end",
    starts=datetime(2026, 12, 18),  # noqa: DTZ001  # wall-clock times of the zone
    ends=datetime(2027, 1, 4, 8),  # noqa: DTZ001
    timezone="Europe/Berlin",
)


def test_a_weekend_begins_and_ends_at_local_midnight_also_when_the_clocks_change() -> None:
    assert frozen_until((WEEKENDS,), datetime(2026, 3, 27, 22, 59, tzinfo=UTC)) is None
    begun = frozen_until((WEEKENDS,), datetime(2026, 3, 27, 23, 0, tzinfo=UTC))  # Saturday 00:00 in winter time
    assert begun == ("weekends", datetime(2026, 3, 29, 22, 0, tzinfo=UTC))  # Monday 00:00 in summer time
    assert frozen_until((WEEKENDS,), datetime(2026, 3, 29, 22, 0, tzinfo=UTC)) is None


def test_a_span_holds_from_its_first_instant_to_before_its_last() -> None:
    assert frozen_until((YEAR_END,), datetime(2026, 12, 17, 22, 59, 59, tzinfo=UTC)) is None
    assert frozen_until((YEAR_END,), datetime(2026, 12, 17, 23, 0, tzinfo=UTC)) == (
        "year-end",
        datetime(2027, 1, 4, 7, 0, tzinfo=UTC),
    )
    assert frozen_until((YEAR_END,), datetime(2027, 1, 4, 7, 0, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("freeze", "says"),
    [
        (FreezeRule(name="x", rrule="FREQ=WEEKLY", timezone="Europe/Atlantis"), "Europe/Atlantis"),
        (FreezeRule(name="x", rrule="FREQ=SOMETIMES;BYDAY=MO", timezone="UTC"), "FREQ=SOMETIMES"),
        (FreezeRule(name="x", rrule="FREQ=WEEKLY;INTERVAL=2;BYDAY=SA", timezone="UTC"), "INTERVAL count from a first day"),
        (FreezeRule(name="x", rrule="FREQ=DAILY;COUNT=5", timezone="UTC"), "COUNT"),
        (FreezeRule(name="x", rrule="FREQ=DAILY", timezone="UTC"), "say which days"),
        (FreezeRule(name="x", rrule="FREQ=WEEKLY;BYMONTH=12", timezone="UTC"), "BYDAY"),
        (FreezeRule(name="x", rrule="FREQ=YEARLY;BYMONTH=12", timezone="UTC"), "BYMONTHDAY"),
        (FreezeRule(name="x", rrule="FREQ=MINUTELY;BYDAY=MO", timezone="UTC"), "whole days"),
        (FreezeRule(name="x", rrule="DTSTART:20260101T000000Z\nRRULE:FREQ=DAILY;BYDAY=MO", timezone="UTC"), "only a recurrence"),
        (FreezeSpan(name="x", starts=datetime(2026, 2, 1), ends=datetime(2026, 1, 1), timezone="UTC"), "before it starts"),  # noqa: DTZ001
    ],
)
def test_a_calendar_that_cannot_be_read_is_refused_by_its_value(freeze: FreezeRule | FreezeSpan, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        check(freeze)


def test_calendars_that_follow_each_other_are_one_freeze_to_its_end() -> None:
    # 2026-12-18 is a Friday: year-end begins before the weekend does; the weekend of 2 January ends before year-end.
    assert frozen_until((WEEKENDS, YEAR_END), datetime(2026, 12, 19, 12, tzinfo=UTC)) == (
        "year-end",
        datetime(2027, 1, 4, 7, 0, tzinfo=UTC),
    )
    until_saturday = FreezeSpan(name="audit", starts=datetime(2026, 3, 25), ends=datetime(2026, 3, 28), timezone="Europe/Berlin")  # noqa: DTZ001
    assert frozen_until((WEEKENDS, until_saturday), datetime(2026, 3, 26, tzinfo=UTC)) == (
        "audit, weekends",
        datetime(2026, 3, 29, 22, 0, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("zone", "rule", "starts", "ends"),
    [
        # Back from summer time: the Sunday has 25 hours.
        ("Europe/Berlin", "FREQ=WEEKLY;BYDAY=SU", datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 23, tzinfo=UTC)),
        ("America/New_York", "FREQ=WEEKLY;BYDAY=SU", datetime(2026, 11, 1, 4, tzinfo=UTC), datetime(2026, 11, 2, 5, tzinfo=UTC)),
        # Half an hour of summer time.
        (
            "Australia/Lord_Howe",
            "FREQ=WEEKLY;BYDAY=SU",
            datetime(2026, 4, 4, 13, tzinfo=UTC),
            datetime(2026, 4, 5, 13, 30, tzinfo=UTC),
        ),
        # The clocks go forward at midnight, so the day begins at 01:00.
        ("Africa/Cairo", "FREQ=WEEKLY;BYDAY=FR", datetime(2026, 4, 23, 22, tzinfo=UTC), datetime(2026, 4, 24, 21, tzinfo=UTC)),
        # They go back at midnight: the hour before it comes twice and both belong to the day before.
        ("Africa/Cairo", "FREQ=WEEKLY;BYDAY=TH", datetime(2026, 10, 28, 21, tzinfo=UTC), datetime(2026, 10, 29, 22, tzinfo=UTC)),
    ],
)
def test_a_day_is_as_long_as_the_zone_makes_it(zone: str, rule: str, starts: datetime, ends: datetime) -> None:
    freeze = FreezeRule(name="day", rrule=rule, timezone=zone)
    instant = timedelta(microseconds=1)
    assert frozen_until((freeze,), starts - instant) is None
    assert frozen_until((freeze,), starts) == ("day", ends)
    assert frozen_until((freeze,), ends - instant) == ("day", ends)
    assert frozen_until((freeze,), ends) is None
    assert windows((freeze,), starts - timedelta(days=1), ends + timedelta(days=1)) == (
        Window(name="day", starts=starts, ends=ends),
    )


def test_what_lies_ahead_is_listed_in_order_and_whole() -> None:
    found = windows((WEEKENDS, YEAR_END), datetime(2026, 12, 14, tzinfo=UTC), datetime(2026, 12, 21, tzinfo=UTC))
    assert [w.name for w in found] == ["year-end", "weekends"]
    assert found[0].ends == datetime(2027, 1, 4, 7, tzinfo=UTC)


def test_every_day_forever_is_said_to_end_in_a_year_and_not_computed_forever() -> None:
    always = FreezeRule(name="always", rrule="FREQ=DAILY;BYDAY=MO,TU,WE,TH,FR,SA,SU", timezone="UTC")
    now = datetime(2026, 3, 27, tzinfo=UTC)
    frozen = frozen_until((always,), now)
    assert frozen is not None and timedelta(days=366) <= frozen[1] - now < timedelta(days=740)
