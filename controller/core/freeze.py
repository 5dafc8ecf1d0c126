"""
Calendars in which nothing is raised. Recurrence is RFC 5545 by dateutil; time zones are the standard library's.

Its one rule: freezing never stops a rollback.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.rrule import rrulestr

from controller.core.plan import Freeze, FreezeRule, FreezeSpan, PlanError

LOOK_AHEAD = timedelta(days=366)
"""A freeze that goes on for longer is said to end then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One time in which a calendar is in force: UTC, `starts` included and `ends` excluded."""

    name: str
    starts: datetime
    ends: datetime


def frozen_until(freezes: tuple[Freeze, ...], now: datetime) -> tuple[str, datetime] | None:
    """
    Args:
        freezes: The plan's calendars.
        now: Aware time.

    Returns:
        Names of the calendars that follow each other without a gap from now on, and when the last of them ends (UTC); None where none is in
        force.
    """
    names: list[str] = []
    ends = now
    while (found := _in_force(freezes, ends)) is not None and ends - now < LOOK_AHEAD:
        if found.name not in names:
            names.append(found.name)
        ends = found.ends
    return (", ".join(names), ends) if names else None


def windows(freezes: tuple[Freeze, ...], begin: datetime, end: datetime) -> tuple[Window, ...]:
    """
    When the calendars are in force, for people who look ahead.

    Args:
        freezes: The plan's calendars.
        begin, end: Aware times.

    Returns:
        What begins before `end` and ends after `begin`, by beginning; whole, also where it reaches beyond them.
    """
    found = [w for freeze in freezes for w in _windows(freeze, begin, end) if w.starts < end and w.ends > begin]
    return tuple(sorted(found, key=lambda w: (w.starts, w.ends, w.name)))


def _in_force(freezes: tuple[Freeze, ...], now: datetime) -> Window | None:
    """The one that ends last of those that are in force."""
    found = [w for w in windows(freezes, now, now + timedelta(microseconds=1)) if w.starts <= now]
    return max(found, key=lambda w: w.ends, default=None)


def _windows(freeze: Freeze, begin: datetime, end: datetime) -> list[Window]:
    zone = ZoneInfo(freeze.timezone)
    match freeze:
        case FreezeSpan():
            starts, ends = freeze.starts.replace(tzinfo=zone), freeze.ends.replace(tzinfo=zone)
            return [Window(name=freeze.name, starts=starts.astimezone(UTC), ends=ends.astimezone(UTC))]
        case FreezeRule():
            first, last = begin.astimezone(zone).date(), end.astimezone(zone).date()
            days = _days(freeze.rrule, first - LOOK_AHEAD, last + LOOK_AHEAD)
            return [
                Window(name=freeze.name, starts=_midnight(a, zone), ends=_midnight(b + timedelta(days=1), zone))
                for a, b in _runs(days)
            ]


def _days(rule: str, first: date, last: date) -> list[date]:
    # Nothing of a rule depends on its first day, see `_unclear`: it only has to lie before.
    rules = rrulestr(rule, dtstart=datetime.combine(first, time()))
    return [at.date() for at in rules.between(datetime.combine(first, time()), datetime.combine(last, time()), inc=True)]


def _runs(days: list[date]) -> list[tuple[date, date]]:
    """First and last of days that follow each other."""
    runs: list[tuple[date, date]] = []
    for day in days:
        if runs and day - runs[-1][1] <= timedelta(days=1):
            runs[-1] = (runs[-1][0], day)
        else:
            runs.append((day, day))
    return runs


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _unclear(rule: str) -> str:
    """Why a rule does not say by itself, without a first day to count from, which days it means; "" when it does."""
    parts = dict(part.partition("=")[::2] for part in rule.upper().removeprefix("RRULE:").split(";"))
    if any(mark in rule.upper() for mark in ("DTSTART", "RDATE", "EXDATE", "EXRULE", "UNTIL", "\n")):
        return "write only a recurrence; for a single span use from and to"
    if parts.get("FREQ") in ("HOURLY", "MINUTELY", "SECONDLY"):
        return "a freeze lasts whole days: FREQ is DAILY, WEEKLY, MONTHLY or YEARLY"
    if "COUNT" in parts or parts.get("INTERVAL", "1") != "1":
        return "COUNT and INTERVAL count from a first day, which a freeze does not have"
    if not any(part.startswith("BY") for part in parts):
        return "say which days: BYDAY, BYMONTHDAY or BYMONTH"
    if parts.get("FREQ") in ("MONTHLY", "YEARLY") and not {"BYDAY", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO", "BYEASTER"} & set(
        parts
    ):
        return "say which days of the month or year: BYDAY, BYMONTHDAY or BYYEARDAY"
    if parts.get("FREQ") == "WEEKLY" and "BYDAY" not in parts:
        return "say which days of the week: BYDAY"
    return ""


def check(freeze: Freeze) -> None:
    """Raises PlanError when the calendar cannot be read: unknown zone, bad rule, span that ends before it starts."""
    try:
        ZoneInfo(freeze.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise PlanError(f"freeze {freeze.name!r}: timezone {freeze.timezone!r} is unknown") from exc
    match freeze:
        case FreezeSpan():
            if freeze.ends <= freeze.starts:
                raise PlanError(f"freeze {freeze.name!r}: ends {freeze.ends.isoformat()}, before it starts")
        case FreezeRule():
            if problem := _unclear(freeze.rrule):
                raise PlanError(f"freeze {freeze.name!r}: rrule {freeze.rrule!r}: {problem}")
            try:
                rrulestr(freeze.rrule, dtstart=datetime(2026, 1, 1))  # noqa: DTZ001  # rules are read in wall-clock time
            except (ValueError, TypeError, KeyError) as exc:
                raise PlanError(f"freeze {freeze.name!r}: rrule {freeze.rrule!r} cannot be read: {exc}") from exc
