"""
A time of day in a place, such as ``09:00 Europe/Berlin``, and when it last was.

Its one rule: it comes once a day, also on the two days a year on which the clock is moved. A time that the clock skips comes when it would have
been; one that it shows twice comes the first time.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_WRITTEN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?: (\S+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeOfDay:
    """`at` by the clocks of `zone` (IANA name)."""

    at: time
    zone: str = "UTC"

    @classmethod
    def read(cls, text: str) -> "TimeOfDay":
        """
        Args:
            text: ``09:00`` or ``09:00 Europe/Berlin``.

        Raises:
            ValueError: it is neither, or no such zone is known.
        """
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a time of day and a time zone, such as '09:00 Europe/Berlin'")
        hour, minute, zone = found.groups(default="UTC")
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{zone!r} is not a time zone (IANA name, such as Europe/Berlin)") from None
        return cls(at=time(int(hour), int(minute)), zone=zone)

    def last(self, now: datetime) -> datetime:
        """When it last was, at `now` at the latest (UTC)."""
        zone = ZoneInfo(self.zone)
        today = now.astimezone(zone).date()
        each = (datetime.combine(today - timedelta(days=back), self.at, zone).astimezone(UTC) for back in (0, 1))
        return next(at for at in each if at <= now)
