"""
Raw counters in, increments out: the bookkeeping between what a metric source shows and what is counted as having happened.

It stands between an adapter, which reads counters at beats, and `Traffic`. Each question has a `State`: the last value of every counter
that was consumed. An increment is the value now less that one, so a late sample, a missed scrape or a gap of any length is counted in
the next beat that shows it. Its one rule: what happened is counted once. What cannot be counted is named, and nothing of it is consumed:
the next reading finds all of it again.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from controller.core.traffic import Kind

SLACK = 1e-9
"""Counters that travelled as text may fall by rounding; relative to the counter's size."""

DIP = 1e-6
"""Increments of buckets may fall with rising edge by rounding; relative to the total."""

WHOLE = 1.0
"""Two counters of the same requests, read at one time, may lie apart by the request that is being counted."""

BASELINE, CANDIDATE = "baseline", "candidate"
ARMS = (BASELINE, CANDIDATE)

PARTS: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    Kind.RATE: (("bad", "total"), ("good", "total"), ("total",)),
    Kind.MEAN: (("amount", "count"),),
    Kind.HISTOGRAM: (("buckets",),),
}
"""What the series of a question can be: one of these sets. ``total`` alone is a count without bad ones."""

MEMBER_MAX = 12
"""Hexadecimal digits of a group's digest: 48 bits, of a few thousand groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """
    One raw counter over time.

    Args:
        part: ``bad``, ``good``, ``total``, ``amount``, ``count`` or ``buckets``.
        arm: ``baseline`` or ``candidate``.
        labels: All of them; with ``le`` in ``buckets``.
        points: Values by time in milliseconds; as they were read, NaN and all.
        query: What was asked, to name it in problems. Series of two queries are two series, whatever their labels.
        unit_s: Seconds in one unit of ``le``.
    """

    part: str
    arm: str
    labels: Mapping[str, str]
    points: Mapping[int, float]
    query: str = ""
    unit_s: float = 1.0


@dataclass(slots=True, kw_only=True)
class State:
    """
    What is remembered of a question. JSON: see `dump` and `load`.

    Args:
        last: Last consumed value by group (digest) and bucket edge ("" for what is no histogram).
        edges: Finite bucket edges in seconds, fixed once; () until a series was seen.
        carry: Bad (or good) requests by arm that were seen before the request that they belong to.
        seen: Parts of which there ever was a series.
    """

    last: dict[str, dict[str, float]] = field(default_factory=dict)
    edges: tuple[float, ...] = ()
    carry: dict[str, float] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def dump(self) -> dict[str, Any]:
        last = {g: {m: int(v) if v.is_integer() else v for m, v in values.items()} for g, values in self.last.items()}
        return {"last": last, "edges": list(self.edges), "carry": dict(self.carry), "seen": sorted(self.seen)}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "State":
        """
        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is not what `dump` gave.
        """
        return cls(
            last={g: {m: float(v) for m, v in values.items()} for g, values in data["last"].items()},
            edges=tuple(float(e) for e in data["edges"]),
            carry={arm: float(v) for arm, v in data["carry"].items()},
            seen=set(data["seen"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Increments of both arms at one beat: bad and total, amount and count, or one for each edge and the total."""

    candidate: tuple[float, ...]
    baseline: tuple[float, ...]


class _Problem(Exception):
    """Something that must not be counted, in words."""


class _Unfit(_Problem):
    """A series that is not what the question needs: it will be no other at the next beat."""


@dataclass(slots=True)
class _Group:
    """The series of one counter: all buckets of one histogram, or one series alone."""

    part: str
    arm: str
    labels: Mapping[str, str]
    query: str
    members: list[tuple[str, Mapping[int, float]]] = field(default_factory=list)

    def at(self, t: int) -> dict[str, float]:
        """
        Values by bucket edge; empty where it was not seen.

        Raises:
            _Problem: a value is no count, or two series are one.
        """
        found: dict[str, float] = {}
        for member, points in self.members:
            value = points.get(t)
            if value is None:
                continue
            if not (math.isfinite(value) and value >= 0):
                edge = f" le={member}" if member else ""
                raise _Problem(
                    f"{self.query}: the value {value:g} of {_shown(self.labels)}{edge} is not a finite number from 0 up"
                )
            if member in found:
                what = (
                    f"bucket edge le={member} of {_shown(self.labels)} is" if member else f"the series {_shown(self.labels)} is"
                )
                raise _Unfit(f"{self.query}: {what} there twice")
            found[member] = value
        if found and self.part == "buckets" and "inf" not in found:
            raise _Unfit(f"{self.query}: the buckets of {_shown(self.labels)} lack le=+Inf")
        return found


class Book:
    """
    The counting of one question from its base on; `state` is always what has been consumed.

    Args:
        kind: Of the question.
        state: What is remembered; changed in place.
        series: All that were read, of base and beats.

    After `base` and the beats: `problem` says what could not be counted ("" for nothing).
    """

    def __init__(self, kind: Kind, state: State, series: Sequence[Series]) -> None:
        self.state = state
        self.problem = ""
        self._kind = kind
        self._groups: dict[str, _Group] = {}
        self._stopped = False
        try:
            self._collect(series)
            if kind is Kind.HISTOGRAM and not state.edges:
                state.edges = self._common()
        except _Problem as exc:
            self._stop(exc)

    def base(self, t: int, series: Sequence[Series]) -> bool:
        """
        Fix where counting begins: what the counters show here has happened before.

        Args:
            t: Milliseconds.
            series: Their last values at or before `t`, as points at `t`.

        Returns:
            Whether it could be fixed; if not, the question has no base and `problem` says why.
        """
        if self._stopped:
            return False
        try:
            fixed = {key: found for key, group in _grouped(series).items() if (found := group.at(t))}
        except _Problem as exc:
            self._stop(exc)
            return False
        # Values only: which edges there must be is asked at the beats.
        self.state.last |= fixed
        self.state.carry = {}
        return True

    def beat(self, t: int) -> Row:
        """Consume what happened up to `t` (milliseconds, rising). Zeros, and nothing consumed, where there is a problem."""
        zero = Row(candidate=self._zeros(), baseline=self._zeros())
        if self._stopped:
            return zero
        try:
            now = {key: found for key, group in self._groups.items() if (found := group.at(t))}
            for key, found in now.items():
                self._fits(self._groups[key], found)
        except _Problem as exc:
            self._stop(exc)
            return zero
        carry: dict[str, float] = {}
        try:
            sums = self._sums(now)
            row = Row(candidate=self._row(sums, CANDIDATE, carry), baseline=self._row(sums, BASELINE, carry))
        except _Problem as exc:
            # Perhaps half of a scrape was there: nothing is consumed, and the next beat has the whole.
            self.problem = self.problem or str(exc)
            return zero
        for key, found in now.items():
            last = self.state.last.get(key, {})
            fresh = _fell(last, found)
            self.state.last[key] = {m: v if fresh else max(v, last.get(m, 0.0)) for m, v in found.items()}
        self.state.carry = {arm: v for arm, v in carry.items() if v}
        return row

    def present(self, part: str, arm: str) -> bool:
        """Whether any series of an arm was read."""
        return any(g.part == part and g.arm == arm for g in self._groups.values())

    # --- one beat ---------------------------------------------------------------------------------------------------------------

    def _sums(self, now: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str, str], float]:
        """Increments by part, arm and bucket edge, over all series."""
        parts: dict[tuple[str, str, str], list[float]] = {}
        for key, found in now.items():
            group, last = self._groups[key], self.state.last.get(key, {})
            fresh = _fell(last, found)
            for member, value in found.items():
                gone = 0.0 if fresh else last.get(member, 0.0)
                parts.setdefault((group.part, group.arm, member), []).append(max(0.0, value - gone))
        # fsum does not depend on the order, in which the source is free.
        return {where: math.fsum(values) for where, values in parts.items()}

    def _row(self, sums: Mapping[tuple[str, str, str], float], arm: str, carry: dict[str, float]) -> tuple[float, ...]:
        match self._kind:
            case Kind.MEAN:
                return sums.get(("amount", arm, ""), 0.0), sums.get(("count", arm, ""), 0.0)
            case Kind.HISTOGRAM:
                names = [*(_edge(e) for e in self.state.edges), "inf"] if self.state.edges else []
                return rising([sums.get(("buckets", arm, n), 0.0) for n in names], arm)
        total = sums.get(("total", arm, ""), 0.0)
        part = "good" if "good" in self.state.seen else "bad"
        counted = sums.get((part, arm, ""), 0.0) + self.state.carry.get(arm, 0.0)
        share, carry[arm] = within(counted, total, f"{part} of the {arm}")
        return (total - share if part == "good" else share), total

    def _fits(self, group: _Group, found: Mapping[str, float]) -> None:
        if group.part != "buckets":
            return
        if missing := [e for e in self.state.edges if _edge(e) not in found]:
            raise _Unfit(
                f"{group.query}: {_shown(group.labels)} has no bucket le={missing[0]:g} (s), which the comparison was begun with"
            )

    def _zeros(self) -> tuple[float, ...]:
        if self._kind is Kind.HISTOGRAM:
            return (0.0,) * (len(self.state.edges) + 1) if self.state.edges else ()
        return 0.0, 0.0

    # --- series -----------------------------------------------------------------------------------------------------------------

    def _collect(self, series: Sequence[Series]) -> None:
        self._groups = _grouped(series)
        self.state.seen |= {g.part for g in self._groups.values()}

    def _common(self) -> tuple[float, ...]:
        """The finite edges of every series seen; () without any series."""
        if not self._groups:
            return ()
        sets = [{m for m, _ in g.members} for g in self._groups.values()]
        common = sorted(float(m) for m in set.intersection(*sets) if m != "inf")
        if not common:
            some = next(iter(self._groups.values()))
            raise _Unfit(f"{some.query}: the histograms have no finite bucket edge in common")
        return tuple(common)

    def _stop(self, exc: _Problem) -> None:
        """No further beat of this reading: what went wrong would be consumed as if it were right."""
        self.problem = self.problem or str(exc)
        self._stopped = True


def rising(values: Sequence[float], what: str) -> tuple[float, ...]:
    """
    Cumulative bucket counts without the dips of rounding.

    Raises:
        ValueError: they fall by more.
    """
    levelled: list[float] = []
    for index, value in enumerate(values):
        highest = levelled[-1] if levelled else 0.0
        if value < highest - DIP * (1 + values[-1]):
            raise Contradiction(
                f"buckets of the {what} fall with rising edge: bucket {index} counts {value:g}, one below it {highest:g}"
            )
        levelled.append(max(highest, value))
    return tuple(levelled)


def within(part: float, total: float, what: str) -> tuple[float, float]:
    """
    A part of a total, and how much of it belongs to requests that the total does not show yet.

    Raises:
        ValueError: it exceeds the total by more than two counters of one moment can.
    """
    if part > total + max(WHOLE, SLACK * total):
        raise Contradiction(f"{part:g} {what} of {total:g} requests: the counters contradict each other")
    share = min(part, total)
    return share, part - share


class Contradiction(_Problem, ValueError):
    """Numbers that cannot belong together."""


def digest(part: str, arm: str, query: str, labels: Mapping[str, str]) -> str:
    """A short name of a group, the same in every process."""
    text = json.dumps([part, arm, query, sorted(labels.items())], ensure_ascii=False, separators=(",", ":"))
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:MEMBER_MAX]


def edge_s(le: str, unit_s: float) -> float:
    """
    A bucket edge in seconds.

    Raises:
        ValueError: it is no number.
    """
    value = float(le)
    if math.isnan(value):
        raise ValueError("NaN")
    # 250 ms is 0.25 s and not 0.25000000000000006 s, whatever the unit divides by.
    return value if unit_s == 1.0 or math.isinf(value) else float(f"{value * unit_s:.12g}")


def _grouped(series: Iterable[Series]) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for one in series:
        labels, member = dict(one.labels), ""
        if one.part == "buckets":
            text = labels.pop("le", "")
            try:
                member = _edge(edge_s(text, one.unit_s))
            except ValueError:
                raise _Unfit(f"{one.query}: bucket edge le={text[:40]!r} of {_shown(labels)} is no number") from None
        key = digest(one.part, one.arm, one.query, labels)
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(one.part, one.arm, labels, one.query)
        group.members.append((member, one.points))
    return groups


def _fell(last: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Whether a counter restarted: with one bucket, all of its histogram."""
    return any(now[m] - last[m] < -SLACK * (1 + last[m]) for m in now.keys() & last.keys())


def _edge(value: float) -> str:
    return "inf" if value == math.inf else repr(value)


def _shown(labels: Mapping[str, str]) -> str:
    text = "{" + ", ".join(f"{k}={v!r}" for k, v in sorted(labels.items())) + "}"
    return text if len(text) <= 300 else text[:300] + "..."
