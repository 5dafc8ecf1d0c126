"""
Raw counters in, increments out: the bookkeeping between what a metric source shows and what is counted as having happened.

It stands between an adapter, which reads counters at beats, and `Traffic`. Each question has a `State`: the last value of every
counter that was consumed. An increment is the value now less that one, so a late sample, a missed scrape or a gap of any length
is counted in the next beat that shows it. Its one rule: what happened is counted once. What cannot be counted is named, and
nothing of it is consumed: the next reading finds all of it again.
"""

import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import repeat
from json.encoder import encode_basestring as _quoted
from operator import ge
from typing import TYPE_CHECKING, Any, NamedTuple

from controller.core.traffic import Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

SLACK = 1e-9
"""Counters that travelled as text may fall by rounding; relative to the counter's size."""

DIP = 1e-6
"""Increments of buckets may fall with rising edge by rounding; relative to the total."""

LEAD = 1.0
"""Two counters of the same requests, read at one time, may lie apart by the request that is being counted: one for each
series."""

LEAD_SHARE = 0.1
"""The same for busy exporters, which write one counter a few milliseconds after the other; relative to the total of a beat. What
is ahead is carried, so that more than this is noticed in whatever beats it comes."""

BASELINE, CANDIDATE = "baseline", "candidate"
ARMS = (CANDIDATE, BASELINE)

PARTS: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    Kind.RATE: (("bad", "total"), ("good", "total"), ("total",)),
    Kind.MEAN: (("amount", "count"),),
    Kind.HISTOGRAM: (("buckets",),),
}
"""What the series of a question can be: one of these sets. ``total`` alone is a count without bad ones."""

COUNT_MAX = 2.0**53
"""Beyond it a counter in floating point does not see a single request any more: no honest one is there."""

AMOUNT_MAX = 1e30
"""Of sums (of dollars, of nanoseconds), which need not see a single one."""

GROWTH_MAX = 1e12
"""Requests of one counter between two looks; a hundred thousand a second for a hundred days. More is a fault of the counter."""


def is_count(value: float, part: str = "") -> bool:
    """Whether a counter can show this: finite, not negative, and no larger than an honest one can become."""
    return 0 <= value <= (AMOUNT_MAX if part == "amount" else COUNT_MAX)  # written so that NaN is none


WHOLES = ("total", "count", "buckets")
"""The part that every request is in; what the others count may not have happened yet."""

MEMBER_MAX = 12
"""Hexadecimal digits of a group's digest: 48 bits, of a few thousand groups."""


class Series(NamedTuple):
    """
    One raw counter over time. A look makes hundreds of them a rollout, and a tuple is made in a third of the time.

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


class Levels(Mapping[str, float]):
    """
    Values by bucket edge, in little room: a guard remembers one for every bucket of every rollout.

    Args:
        values: They, finite.
    """

    __slots__ = ("_places", "_values")

    def __init__(self, values: Mapping[str, float]) -> None:
        self._places = _places(tuple(values))
        self._values = array("d", values.values())

    def __getitem__(self, name: str) -> float:
        return self._values[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own goes by way of an exception
        place = self._places.get(name)
        return default if place is None else self._values[place]


@lru_cache(maxsize=1_024)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    """One for all counters with the same edges; nobody changes it."""
    return {name: place for place, name in enumerate(names)}


@dataclass(slots=True, kw_only=True)
class State:
    """
    What is remembered of a question. JSON: see `dump` and `load`.

    Args:
        last: Last consumed value by group (digest) and bucket edge ("" for what is no histogram).
        edges: Finite bucket edges in seconds, fixed once; () until a series was seen.
        carry: Bad (or good) requests by arm that were seen before the request that they belong to.
        seen: Parts of which there ever was a series, or are known to be there with other labels.
        shown: When each arm last had a series of the part that every request is in, in milliseconds.
    """

    last: dict[str, Levels] = field(default_factory=dict)
    edges: tuple[float, ...] = ()
    carry: dict[str, float] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    shown: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "State":
        """One that can be changed by itself, but for the values of a group, which are only ever replaced."""
        return State(
            last=dict(self.last),
            edges=self.edges,
            carry=dict(self.carry),
            seen=set(self.seen),
            shown=dict(self.shown),
        )

    def dump(self) -> dict[str, Any]:
        return {
            "last": {g: {m: _plain(v) for m, v in values.items()} for g, values in sorted(self.last.items())},
            "edges": list(self.edges),
            "carry": dict(sorted(self.carry.items())),
            "seen": sorted(self.seen),
            "shown": dict(sorted(self.shown.items())),
        }

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "State":
        """
        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is not what `dump` gave.
        """
        return cls(
            last={g: Levels({m: _count(v) for m, v in values.items()}) for g, values in data["last"].items()},
            edges=tuple(float(e) for e in data["edges"]),
            carry={arm: _count(v) for arm, v in data["carry"].items()},
            seen=set(data["seen"]),
            shown={arm: int(t) for arm, t in data["shown"].items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Increments of both arms at one beat: bad and total, amount and count, or one for each edge and the total."""

    candidate: tuple[float, ...]
    baseline: tuple[float, ...]


class _Problem(Exception):
    """Something that must not be counted, in words."""


class _Unfit(_Problem):
    """A series that is not what the question needs."""


@dataclass(slots=True)
class _Group:
    """The series of one counter: all buckets of one histogram, or one series alone. `table` has values by time and bucket
    edge."""

    part: str
    arm: str
    labels: Mapping[str, str]
    query: str
    members: set[str] = field(default_factory=set)
    table: dict[int, dict[str, float]] = field(default_factory=dict)
    doubled: dict[int, str] = field(default_factory=dict)

    def add(self, member: str, points: Mapping[int, float]) -> None:
        known = member in self.members
        self.members.add(member)
        for t, value in points.items():
            row = self.table.setdefault(t, {})
            if known and member in row:
                self.doubled[t] = member
            row[member] = value

    def at(self, t: int) -> dict[str, float]:
        """
        Values by bucket edge; empty where it was not seen.

        Raises:
            _Problem: a value is no count, or two series are one.
        """
        found = self.table.get(t, {})
        for member, value in () if self._plausible(found.values()) else found.items():
            if not is_count(value, self.part):
                raise _Problem(
                    f"{self.query}: the value {value:g} of {self._named(member)} is not a finite number from 0 up, or beyond all counting"
                )
        if t in self.doubled:
            raise _Unfit(f"{self.query}: the series {self._named(self.doubled[t])} is there twice")
        if found and self.part == "buckets" and "inf" not in found:
            raise _Unfit(f"{self.query}: the buckets of {_shown(self.labels)} lack le=+Inf")
        return found

    def grown(self, times: Sequence[int], names: Sequence[str], last: Mapping[str, float]) -> "Vector | None":
        """Increments by beat and bucket edge; None if not all are there, or any falls or is no count."""
        import numpy as np  # what judges nothing does without it

        rows = [self.table.get(t, {}) for t in times]
        if self.doubled or self.members != set(names) or any(len(row) != len(names) for row in rows):
            return None
        # As one bucket of all rows was added after the other, all rows have the same order.
        order = {m: i for i, m in enumerate(rows[0])}
        table = [[last.get(m, 0.0) for m in order], *(list(row.values()) for row in rows)]
        values: Vector = np.array(table, dtype=np.float64)
        values = values[:, [order[n] for n in names]]
        if not (is_count(float(values.min()), self.part) and is_count(float(values.max()), self.part)):  # NaN is both
            return None
        found: Vector = values[1:] - values[:-1]
        slow = self.part == "amount" or float(found.max()) <= GROWTH_MAX
        return found if slow and float(found.min()) >= 0 else None

    def _plausible(self, values: Collection[float]) -> bool:
        """Whether all are counts, by all at once: a sum is finite only if each is."""
        return not values or (
            math.isfinite(sum(values)) and is_count(min(values), self.part) and is_count(max(values), self.part)
        )

    def _named(self, member: str) -> str:
        return _shown({**self.labels, "le": member} if member else self.labels)


class Book:
    """
    The counting of one question from its base on.

    Args:
        kind: Of the question.
        parts: Which it is counted from, one of `PARTS`.
        state: What is remembered; left as it is.
        series: Those that were read at the beats; where there are no beats, at the base.
        behind: Groups (as in `fell`) that did not restart, whatever it looks like: their values come from a replica of the source
            that is a few samples behind. They count nothing until they have caught up.

    After `base` and the beats, `state` is what is to be remembered: all that was consumed, and nothing of what was not. `problem`
    says what kept the last beat from being counted ("" for nothing), `fell` which groups looked as if they had restarted.
    """

    def __init__(
        self,
        kind: Kind,
        parts: Iterable[str],
        state: State,
        series: Sequence[Series],
        behind: frozenset[str] = frozenset(),
    ) -> None:
        self.state = state.copy()
        self.problem = ""
        self.fell: set[str] = set()
        self._kind = kind
        self._part = "good" if "good" in parts else "bad"
        self._behind = behind
        self._before = state
        self._counted = False
        self._stopped = False
        self._groups: dict[str, _Group] = {}
        try:
            self._groups = _grouped(series)
            self.state.seen |= {g.part for g in self._groups.values()}
            if kind is Kind.HISTOGRAM and not state.edges:
                self.state.edges = self._common()
        except _Problem as exc:
            self._stop(exc)
        self._names = [edge_key(e) for e in (*self.state.edges, math.inf)] if self.state.edges else []

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
        self.state.last |= {key: Levels(found) for key, found in fixed.items()}
        self.state.carry, self.state.shown = {}, {}
        return True

    def beat(self, t: int) -> Row | None:
        """Consume what happened up to `t` (milliseconds, rising). None, and nothing consumed, where there is a problem."""
        if self._stopped:
            return None
        try:
            now = {key: found for key, group in self._groups.items() if (found := group.at(t))}
            for key, found in now.items():
                self._fits(self._groups[key], found)
        except _Problem as exc:
            self._stop(exc)
            return None
        fallen = {key for key, found in now.items() if _fell(self.state.last.get(key, {}), found)}
        self.fell |= fallen
        fresh, carry = fallen - self._behind, dict[str, float]()
        try:
            sums = self._sums(now, fresh)
            row = Row(candidate=self._row(sums, CANDIDATE, carry), baseline=self._row(sums, BASELINE, carry))
        except _Problem as exc:
            # Perhaps half of a scrape was there: nothing is consumed, and the next beat has the whole.
            self.problem = str(exc)
            return None
        for key, found in now.items():
            last: Mapping[str, float] = {} if key in fresh else self.state.last.get(key, {})
            highest = map(max, found.values(), map(last.get, found, repeat(0.0)))
            self.state.last[key] = Levels(dict(zip(found, highest, strict=True)))
        self.state.carry = {arm: v for arm, v in carry.items() if v}
        self.state.shown |= {g.arm: t for key in now if (g := self._groups[key]).part in WHOLES}
        self.problem, self._counted = "", True
        return row

    def beats(self, times: Sequence[int]) -> list[Row | None]:
        """As `beat` for each of them, with the same numbers; where nothing is odd, all at once."""
        rows = None if self._stopped or not times or any(self.state.carry.values()) else self._plain_beats(times)
        return [self.beat(t) for t in times] if rows is None else list(rows)

    # --- many beats -------------------------------------------------------------------------------------------------------------

    def _plain_beats(self, times: Sequence[int]) -> list[Row] | None:
        """
        Rows where every series shows a value at every beat, and none falls.

        Returns:
            None, and nothing consumed, where it is otherwise: that is for `beat` to say.
        """
        sums = self._plain_buckets(times) if self._kind is Kind.HISTOGRAM else self._plain_singles(times)
        if sums is None:
            return None
        rows = [self._plain_rows(sums, arm, len(times)) for arm in ARMS]
        if rows[0] is None or rows[1] is None:
            return None
        for key, group in self._groups.items():
            self.state.last[key] = Levels(group.table[times[-1]])
            if group.part in WHOLES:
                self.state.shown[group.arm] = times[-1]
        self.state.carry, self.problem, self._counted = {}, "", True
        return [Row(candidate=c, baseline=b) for c, b in zip(*rows, strict=True)]

    def _plain_buckets(self, times: Sequence[int]) -> dict[tuple[str, str], list[list[float]] | None] | None:
        """Increments by part and arm: of each beat one a bucket edge. None as `_plain_beats`; None for one of them as `_added`."""
        grown: dict[tuple[str, str], list[Vector]] = {}
        for key, group in self._groups.items():
            if (one := group.grown(times, self._names, self.state.last.get(key, {}))) is None:
                return None
            grown.setdefault((group.part, group.arm), []).append(one)
        return {where: _added(several) for where, several in grown.items()}

    def _plain_singles(self, times: Sequence[int]) -> dict[tuple[str, str], list[list[float]] | None] | None:
        """The same for counters that are no histograms. There are many of them, each with a number or two: too few for arrays of their own."""
        grown: dict[tuple[str, str], list[list[float]]] = {}
        for key, group in self._groups.items():
            if group.doubled or group.members != _ALONE or any(t not in group.table for t in times):
                return None
            remembered = self.state.last.get(key)
            before = 0.0 if remembered is None else remembered.get("", 0.0)
            increments = []
            for t in times:
                value = group.table[t][""]
                if not (before <= value and is_count(value, group.part)):  # NaN neither
                    return None
                increments.append(value - before)
                before = value
            if group.part != "amount" and max(increments) > GROWTH_MAX:
                return None
            grown.setdefault((group.part, group.arm), []).append(increments)
        return {where: [[math.fsum(values)] for values in zip(*several, strict=True)] for where, several in grown.items()}

    def _plain_rows(
        self, sums: Mapping[tuple[str, str], list[list[float]] | None], arm: str, beats: int
    ) -> list[tuple[float, ...]] | None:
        """`_row` for each beat; None where something is to be levelled or carried."""

        def of(part: str) -> list[list[float]] | None:
            return sums.get((part, arm), [[0.0] * max(len(self._names), 1)] * beats)

        first, second = {
            Kind.HISTOGRAM: ("buckets", "buckets"),
            Kind.MEAN: ("amount", "count"),
            Kind.RATE: (self._part, "total"),
        }[self._kind]
        one, other = of(first), of(second)
        if one is None or other is None:
            return None
        if self._kind is Kind.HISTOGRAM:
            return None if any(row != sorted(row) for row in one) else [tuple(row) for row in one]
        pairs = [(a[0], b[0]) for a, b in zip(one, other, strict=True)]
        if self._kind is Kind.RATE and any(part > total for part, total in pairs):
            return None
        return [(total - part, total) for part, total in pairs] if first == "good" else list(pairs)

    # --- one beat ---------------------------------------------------------------------------------------------------------------

    def _sums(self, now: Mapping[str, Mapping[str, float]], fresh: set[str]) -> dict[tuple[str, str, str], float]:
        """Increments by part, arm and bucket edge, over all series."""
        parts: dict[tuple[str, str, str], list[float]] = {}
        for key, found in now.items():
            group = self._groups[key]
            before: Mapping[str, float] = {} if key in fresh else self.state.last.get(key, {})
            for member in self._names or found:
                gone, value = before.get(member, 0.0), found[member]
                if value > gone:
                    if group.part != "amount" and value - gone > GROWTH_MAX:
                        raise _Problem(
                            f"{group.query}: {_shown(group.labels)} grew by {value - gone:g} since the last look: no exporter counts so fast"
                        )
                    parts.setdefault((group.part, group.arm, member), []).append(value - gone)
        # fsum does not depend on the order, in which the source is free.
        return {where: math.fsum(values) for where, values in parts.items()}

    def _row(self, sums: Mapping[tuple[str, str, str], float], arm: str, carry: dict[str, float]) -> tuple[float, ...]:
        match self._kind:
            case Kind.MEAN:
                return sums.get(("amount", arm, ""), 0.0), sums.get(("count", arm, ""), 0.0)
            case Kind.HISTOGRAM:
                return rising([sums.get(("buckets", arm, n), 0.0) for n in self._names], arm)
        total = sums.get(("total", arm, ""), 0.0)
        part = self._part
        counted = sums.get((part, arm, ""), 0.0) + self.state.carry.get(arm, 0.0)
        writers = sum(g.part == part and g.arm == arm for g in self._groups.values())
        share, carry[arm] = within(counted, total, f"{part} of the {arm}", writers)
        return (total - share if part == "good" else share), total

    def _fits(self, group: _Group, found: Mapping[str, float]) -> None:
        if group.part == "buckets" and (missing := [e for e in self._names if e not in found]):
            raise _Unfit(
                f"{group.query}: {_shown(group.labels)} has no bucket le={missing[0]} (s), which the comparison was begun with"
            )

    # --- series -----------------------------------------------------------------------------------------------------------------

    def _common(self) -> tuple[float, ...]:
        """The finite edges of every series seen; () without any series."""
        if not self._groups:
            return ()
        common = sorted(float(m) for m in set.intersection(*(g.members for g in self._groups.values())) if m != "inf")
        if not common:
            some = next(iter(self._groups.values()))
            raise _Unfit(f"{some.query}: the histograms have no finite bucket edge in common")
        return tuple(common)

    def _stop(self, exc: _Problem) -> None:
        """No further beat of this reading, and nothing learned from series of which none was counted."""
        self.problem = str(exc)
        self._stopped = True
        if not self._counted:
            self.state.edges, self.state.seen = self._before.edges, set(self._before.seen)


_ALONE = {""}
"""Members of a group that is no histogram."""


def _added(several: Sequence["Vector"]) -> list[list[float]] | None:
    """Sums over series, exact as `math.fsum` makes them; None where they had better be made by it."""
    if len(several) == 1:
        found: list[list[float]] = several[0].tolist()
        return found
    total = sum(several[1:], several[0])
    if all((one % 1 == 0).all() for one in several) and total.max() < COUNT_MAX:
        found = total.tolist()  # whole numbers: exact in whatever order
        return found
    return None


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


def within(part: float, total: float, what: str, writers: int = 1) -> tuple[float, float]:
    """
    A part of a total, and how much of it belongs to requests that the total does not show yet.

    Args:
        writers: Series that the part was summed over.

    Raises:
        ValueError: it exceeds the total by more than counters of one moment can.
    """
    if part > total + max(LEAD * max(writers, 1), LEAD_SHARE * total):
        raise Contradiction(f"{part:g} {what} of {total:g} requests: the counters contradict each other")
    share = min(part, total)
    return share, part - share


class Contradiction(_Problem, ValueError):
    """Numbers that cannot belong together."""


def digest(part: str, arm: str, query: str, labels: Mapping[str, str]) -> str:
    """A short name of a group, the same in every process: of the JSON ``[part, arm, query, [[label, value], ...]]``."""
    # Put together by hand: every look asks for a hundred of these, and an encoder for each would take twice the time.
    pairs = ",".join([f"[{_quoted(name)},{_quoted(value)}]" for name, value in sorted(labels.items())])
    text = f"[{_quoted(part)},{_quoted(arm)},{_quoted(query)},[{pairs}]]"
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:MEMBER_MAX]


def edge_name(le: str, unit_s: float) -> str:
    """`edge_key` of a label's text; the text itself, which is no edge of ours, if it is no number."""
    try:
        return edge_key(edge_s(le, unit_s))
    except ValueError:
        return f"le={le}"


def zeros(kind: Kind, edges: tuple[float, ...]) -> tuple[float, ...]:
    """One arm's part of a row in which nothing is counted; () for a histogram whose edges are not known."""
    if kind is Kind.HISTOGRAM:
        return (0.0,) * (len(edges) + 1) if edges else ()
    return 0.0, 0.0


def groups_of(series: Iterable[Series]) -> frozenset[str]:
    """The groups of some series, as `Book.fell` names them."""
    found = set()
    for one in series:
        labels = {k: v for k, v in one.labels.items() if k != "le" or one.part != "buckets"}
        found.add(digest(one.part, one.arm, one.query, labels))
    return frozenset(found)


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
    group: _Group | None = None
    for one in series:
        labels, member = dict(one.labels), ""
        if one.part == "buckets":
            text = labels.pop("le", "")
            try:
                member = _edge_of(text, one.unit_s)
            except ValueError:
                raise _Unfit(f"{one.query}: bucket edge le={text[:40]!r} of {_shown(labels)} is no number") from None
        # The buckets of a histogram come one after the other; a digest costs more than all else here.
        if group is None or (group.part, group.arm, group.query) != (one.part, one.arm, one.query) or group.labels != labels:
            key = digest(one.part, one.arm, one.query, labels)
            group = groups.get(key)
            if group is None:
                group = groups[key] = _Group(one.part, one.arm, labels, one.query)
        group.add(member, one.points)
    # In an order of its own, so that the problem that is named first does not depend on the order of the answer.
    return dict(sorted(groups.items()))


@lru_cache(maxsize=4_096)
def _edge_of(le: str, unit_s: float) -> str:
    """Raises ValueError."""
    return edge_key(edge_s(le, unit_s))


def _fell(last: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Whether a counter restarted: with one bucket, all of its histogram."""
    if all(map(ge, now.values(), map(last.get, now, now.values()))):
        return False
    for member, value in now.items():
        before = last.get(member)
        if before is not None and value - before < -SLACK * (1 + before):
            return True
    return False


def _plain(value: float) -> float:
    """Whole numbers without a fraction: shorter as JSON, and read back as the same float."""
    return int(value) if value.is_integer() and value < 2**53 else value


def _count(value: Any) -> float:
    """
    Raises:
        ValueError, TypeError: it is none.
    """
    found = float(value)
    if not (math.isfinite(found) and found >= 0):
        raise ValueError(f"{found} is not a finite number from 0 up")
    return found


def edge_key(value: float) -> str:
    """A bucket edge as `State.last` names it."""
    return "inf" if value == math.inf else repr(value)


def _shown(labels: Mapping[str, str]) -> str:
    text = "{" + ", ".join(f"{k}={v!r}" for k, v in sorted(labels.items())) + "}"
    return text if len(text) <= 300 else text[:300] + "..."
