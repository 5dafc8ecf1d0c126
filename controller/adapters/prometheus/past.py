"""
The baseline's past: what it did before the rollout, read once.

It stands between the very first reading of traffic and Prometheus, which adds up over series here: hours of raw values would be
too many. Its one rule: it is only what is expected of the baseline, and counts for nothing; so it may be shorter, and `increase`
may extrapolate, but a failure to read it is one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate

from controller.adapters.prometheus import promql
from controller.adapters.prometheus.answer import Track, Untrusted
from controller.adapters.prometheus.client import Answer, Ask
from controller.adapters.prometheus.inquiry import Inquiry
from controller.adapters.prometheus.times import time_of
from controller.core.ledger import GROWTH_MAX, edge_key, edge_name, is_count
from controller.core.traffic import Kind

CHUNK_MS = 3_600_000
"""Length of the past that one query asks for."""


class PastUnread(Exception):
    """The past could not be read; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The baseline's increments, oldest first, one each `each`."""

    rows: tuple[tuple[float, ...], ...]
    each: timedelta


def read_past(
    inquiries: Sequence[Inquiry],
    since_ms: int,
    length_ms: int,
    each_ms: int,
    ask: Callable[[Mapping[str, Ask]], Mapping[str, Answer]],
) -> History:
    """
    What the baseline did before the first phase.

    Args:
        inquiries: The questions; those that were not booked have zeros.
        since_ms: When the first phase began.
        length_ms: How much of the past.
        each_ms: Length of an increment.
        ask: Asks what it is given, by key.

    Raises:
        PastUnread: an answer failed or cannot be trusted.
    """
    end = since_ms // each_ms * each_ms
    count = length_ms // each_ms
    per = max(1, CHUNK_MS // each_ms)
    chunks = [[end - (count - 1 - k) * each_ms for k in range(start, min(start + per, count))] for start in range(0, count, per)]
    booked = [i for i in inquiries if i.book is not None]
    answers = ask({f"{at[-1]} {i.question.key}": _ask(i, at, each_ms) for i in booked for at in chunks})
    table: dict[int, dict[str, tuple[float, ...]]] = {}
    for inquiry in booked:
        for at in chunks:
            answer = answers[f"{at[-1]} {inquiry.question.key}"]
            if not inquiry.heard(answer, brief=True):
                raise PastUnread(f"the baseline's history could not be read: {inquiry.problem}")
            try:
                found = _rows(inquiry, answer.tracks, set(at))
            except Untrusted as exc:
                raise PastUnread(f"the baseline's history contradicts itself: {exc} ({inquiry.name})") from exc
            for t, row in found.items():
                table.setdefault(t, {})[inquiry.question.key] = row
    rows = tuple(tuple(v for i in inquiries for v in table[t].get(i.question.key) or i.zeros()) for t in sorted(table))
    return History(rows=rows, each=timedelta(milliseconds=each_ms))


def _ask(inquiry: Inquiry, at: Sequence[int], each_ms: int) -> Ask:
    query = promql.history(inquiry.past, each_ms, at[-1] - at[0] + max(1, each_ms // 2))
    return Ask(query=query, at=time_of(at[-1]), matrix=True, large=True)


def _rows(inquiry: Inquiry, tracks: Sequence[Track], known: set[int]) -> dict[int, tuple[float, ...]]:
    """
    Increments of the baseline by time; times at which it had no series, or other buckets, are left out.

    Raises:
        Untrusted: a value is no count, of no time that was asked for, or there twice.
    """
    sums: dict[int, dict[tuple[str, str], float]] = {}
    for series in promql.counters(inquiry.past, tracks, inquiry.unit_s):
        name = (series.part, edge_name(series.labels.get("le", ""), series.unit_s) if series.part == "buckets" else "")
        for t, value in series.points.items():
            if t not in known:
                raise Untrusted(f"a value of {time_of(t).isoformat()}, which was not asked for")
            if not is_count(value, series.part) or (series.part != "amount" and value > GROWTH_MAX):
                raise Untrusted(
                    f"the value {value:g} at {time_of(t).isoformat()} is not a finite number from 0 up, or beyond all counting"
                )
            at = sums.setdefault(t, {})
            at[name] = at.get(name, 0.0) + value
    rows = {t: _row(inquiry.question.kind, inquiry.state.edges, found) for t, found in sums.items()}
    return {t: row for t, row in rows.items() if row}


def _row(kind: Kind, edges: tuple[float, ...], found: Mapping[tuple[str, str], float]) -> tuple[float, ...]:
    """
    One row of the past; () where it lacks what the question is about.

    `increase` extrapolates each counter by itself, so that a part may exceed its whole by a little: it is cut.
    """
    match kind:
        case Kind.HISTOGRAM:
            names = [("buckets", n) for n in (*map(edge_key, edges), edge_key(math.inf))]
            if not edges or any(n not in found for n in names):
                return ()
            return tuple(accumulate((found[n] for n in names), max))
        case Kind.MEAN:
            return (found.get(("amount", ""), 0.0), found["count", ""]) if ("count", "") in found else ()
    if ("total", "") not in found:
        return ()
    total = found["total", ""]
    if ("good", "") in found:
        return max(0.0, total - found["good", ""]), total
    return min(found.get(("bad", ""), 0.0), total), total
