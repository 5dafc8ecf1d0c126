"""Calendars, checked against a wall calendar: 2026-03-28 is a Saturday, and Berlin's clocks go forward on Sunday the 29th at 02:00."""

from datetime import UTC, datetime

import pytest

from controller.core.freeze import check, frozen_until
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
