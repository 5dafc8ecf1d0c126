"""
Calendars in which nothing is raised. Recurrence is RFC 5545 by dateutil; time zones are the standard library's.

Its one rule: freezing never stops a rollback.
"""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.rrule import rrulestr

from controller.core.plan import Freeze, FreezeRule, FreezeSpan, PlanError


def frozen_until(freezes: tuple[Freeze, ...], now: datetime) -> tuple[str, datetime] | None:
    """
    Args:
        freezes: The plan's calendars.
        now: Aware time.

    Returns:
        Name of a calendar that is in force and when it ends (UTC), or None.
    """
    for freeze in freezes:
        zone = ZoneInfo(freeze.timezone)
        match freeze:
            case FreezeSpan():
                starts, ends = freeze.starts.replace(tzinfo=zone), freeze.ends.replace(tzinfo=zone)
                if starts <= now < ends:
                    return freeze.name, ends.astimezone(UTC)
            case FreezeRule():
                today = now.astimezone(zone).date()
                if _occurs(freeze.rrule, today):
                    day = today + timedelta(days=1)
                    while _occurs(freeze.rrule, day) and day - today < timedelta(days=366):
                        day += timedelta(days=1)
                    return freeze.name, datetime.combine(day, time(), zone).astimezone(UTC)
    return None


def _occurs(rule: str, day: object) -> bool:
    start = datetime.combine(day, time())  # type: ignore[arg-type]  # a date
    rules = rrulestr(rule, dtstart=start - timedelta(days=400))
    return bool(rules.between(start, start + timedelta(days=1) - timedelta(seconds=1), inc=True))


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
