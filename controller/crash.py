"""
Crash points: the named places where a controller may die, and where `./dev chaos` lets it.

Everything that reads, writes, sends or waits for an answer passes one before and after. Its one rule: unless PENSTOCK_CRASH_AT armed it
(`controller.settings` reads it, `controller.wiring` arms), a point costs one comparison and does nothing.
"""

import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Point(StrEnum):
    """Each is reached in one place of the code; `tests/bench/test_chaos.py` keeps every one of them alive."""

    # one look
    LOG_READ = "log_read"
    FLAG_READ = "flag_read"
    SETTLED = "settled"
    MEASURED = "measured"
    DECIDED = "decided"
    # one decision
    RECORDED = "recorded"
    RAISING = "raising"
    RAISED = "raised"
    LOWERING = "lowering"
    LOWERED = "lowered"
    CONFIRMED = "confirmed"
    FENCING = "fencing"
    FENCED = "fenced"
    WITHDRAWN = "withdrawn"
    # one row
    ROW_LOCKING = "row_locking"
    ROW_LOCKED = "row_locked"
    ROW_INSERTED = "row_inserted"
    ROW_COMMITTING = "row_committing"
    ROW_COMMITTED = "row_committed"
    # one flag write
    FLAG_OPENED = "flag_opened"
    FLAG_WRITTEN = "flag_written"
    FLAG_COMMITTED = "flag_committed"
    # one question
    QUERY_SENDING = "query_sending"
    QUERY_ANSWERED = "query_answered"
    # one letter
    LETTERS_LEASING = "letters_leasing"
    LETTERS_LEASED = "letters_leased"
    LETTER_DELIVERED = "letter_delivered"
    LETTER_CLOSING = "letter_closing"
    LETTER_CLOSED = "letter_closed"
    LETTER_PUT_OFF = "letter_put_off"
    SLACK_READ = "slack_read"
    SLACK_SENDING = "slack_sending"
    SLACK_SENT = "slack_sent"
    SLACK_KEPT = "slack_kept"


@dataclass(slots=True)
class _Armed:
    """Where to die: at the `nth` passing of `point` (None: nowhere, only count)."""

    point: Point | None
    nth: int = 1
    how: signal.Signals = signal.SIGKILL
    passed: Counter[Point] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


_armed: _Armed | None = None


def reached(point: Point) -> None:
    """Say that this place was reached."""
    if _armed is not None:
        _pass(_armed, point)


def arm(text: str) -> None:
    """
    Let this process die somewhere.

    Args:
        text: ``point[:nth[:signal]]`` such as ``row_committed:2`` or ``raising:1:stop``; ``count`` counts only; "" disarms.

    Raises:
        ValueError: it is none of them.
    """
    global _armed
    if text in ("", "count"):
        _armed = _Armed(point=None) if text else None
        return
    name, _, rest = text.partition(":")
    nth, _, how = rest.partition(":")
    if name not in set(Point):
        raise ValueError(f"no crash point {name!r}; there are {', '.join(Point)}")
    if (nth or "1") == "0" or not (nth or "1").isdecimal() or how not in ("", "kill", "stop"):
        raise ValueError(f"{text!r} is not point[:nth[:kill|stop]]")
    _armed = _Armed(point=Point(name), nth=int(nth or "1"), how=signal.SIGSTOP if how == "stop" else signal.SIGKILL)


def passed() -> dict[Point, int]:
    """How often each point was reached since this process was armed."""
    return {} if _armed is None else dict(_armed.passed)


def _pass(armed: _Armed, point: Point) -> None:
    with armed.lock:
        armed.passed[point] += 1
        now = point is armed.point and armed.passed[point] == armed.nth
    if now:
        os.kill(os.getpid(), armed.how)
