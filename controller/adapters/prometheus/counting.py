"""
Reading traffic: raw counters at beats, booked as increments of both arms.

It stands between `PrometheusSource.traffic` and the ledger: it decides which beats are read, asks, and books each question by itself. Its one rule:
a question that cannot be counted consumes nothing and holds nobody up. The others go on, and what it missed comes in the first beat that can
be counted again.

For each question there is one query at an ordinary look, whatever the number of gates that ask it; one more where a phase begins (the
values that counting begins with), six or so at the very first look (the baseline's past), and one or two where something looks odd. A query
names its counters and tags them, so the questions of several rollouts that have a step in common could be one query, with the rollout in
the tag; what is read here for one question does not depend on what else was asked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any

from controller.adapters.prometheus import promql
from controller.adapters.prometheus.answer import Track, Untrusted
from controller.adapters.prometheus.client import KEPT_OF_LONG, Answer, Ask, PrometheusClient
from controller.adapters.prometheus.profile import Counted, Indicator, NotAskable, Profile
from controller.core.ledger import ARMS, CANDIDATE, WHOLES, Book, Row, Series, State, edge_key, edge_name, groups_of, zeros
from controller.core.measurement import Evidence
from controller.core.traffic import Beat, Kind, Question, Traffic, TrafficRead
from controller.ports import Scope

VERSION = 1

SCRAPES_MIN = 4
"""`increase` over fewer scrapes than this makes much of where the window happens to begin."""

BEATS_MAX = 2_000
"""Beats of one reading; after a longer gap they lie further apart."""

POINTS_MAX = 250_000
"""Values that one answer may have, about 25 bytes each."""

CHUNK_MS = 3_600_000
"""Length of the past that one query asks for."""

LOOKBACK_MS = 300_000
"""How old a value may be that Prometheus shows (its default)."""

HISTORY_TIMES = 3.0
"""The very first look asks more than any other, and has so many times the time for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What is known of the source's own times, in milliseconds."""

    scrape_ms: int
    stale_ms: int


@dataclass(slots=True, kw_only=True)
class _Memory:
    """
    The ledger of all questions.

    Args:
        at: The last beat that was read.
        since: When the phase began that it belongs to.
        base: Where counting began in that phase: `since`, or `at` if that was later.
        books: What is remembered of each question, by key.
        problems, absent: Of the last reading, for looks that find no new beat.
    """

    at: int = 0
    since: int = 0
    base: int = 0
    books: dict[str, "_Kept"] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        return {
            "v": VERSION,
            "at": self.at,
            "since": self.since,
            "base": self.base,
            "questions": {key: kept.dump() for key, kept in self.books.items()},
            "problems": dict(self.problems),
            "absent": {key: list(arms) for key, arms in self.absent.items()},
        }

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "_Memory":
        """
        Raises:
            ValueError: it is not what `dump` gave.
        """
        if not data:
            return cls()
        if data.get("v") != VERSION:
            raise ValueError(f"it is of version {data.get('v')!r}, this release reads {VERSION}")
        try:
            return cls(
                at=int(data["at"]),
                since=int(data["since"]),
                base=int(data["base"]),
                books={key: _Kept.load(kept) for key, kept in data["questions"].items()},
                problems={key: str(text) for key, text in data["problems"].items()},
                absent={key: tuple(arms) for key, arms in data["absent"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ValueError(f"{type(exc).__name__}: {exc}") from exc


@dataclass(slots=True, kw_only=True)
class _Kept:
    """
    Args:
        state: The question's own.
        base: Where its counting began; -1 before it did.
        at: The last beat that was consumed.
    """

    state: State = field(default_factory=State)
    base: int = -1
    at: int = -1

    def dump(self) -> dict[str, Any]:
        return {"base": self.base, "at": self.at, **self.state.dump()}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> "_Kept":
        return cls(state=State.load(data), base=int(data["base"]), at=int(data["at"]))


@dataclass(slots=True, kw_only=True)
class _Inquiry:
    """One question on its way through a reading; `problem` ends it."""

    question: Question
    kept: _Kept
    indicator: Indicator | None = None
    counted: tuple[Counted, ...] = ()
    past: tuple[Counted, ...] = ()
    problem: str = ""
    unanswered: bool = False
    evidence: list[Evidence] = field(default_factory=list)
    base: list[Series] | None = None
    beats: list[Series] = field(default_factory=list)
    rows: list[Row | None] = field(default_factory=list)
    book: Book | None = None
    based: bool = False

    @property
    def unit_s(self) -> float:
        return 1.0 if self.indicator is None else self.indicator.unit_s

    def fail(self, text: str) -> None:
        self.problem = self.problem or text

    def heard(self, answer: Answer, *, brief: bool = False) -> bool:
        """Note an answer; whether it can be used."""
        kept = answer.evidence
        if brief and len(kept.answer) > KEPT_OF_LONG:
            kept = replace(kept, answer=kept.answer[:KEPT_OF_LONG])
        self.evidence.append(kept)
        if answer.failure:
            self.fail(f"{answer.failure} ({self.name})")
            self.unanswered = True
        return not answer.failure

    @property
    def name(self) -> str:
        """What was asked for, in a few words: the metrics."""
        return ", ".join(dict.fromkeys(c.selector for c in self.counted))[:400] or self.question.key

    def series(self, tracks: Sequence[Track]) -> list[Series] | None:
        try:
            return promql.counters(self.counted, tracks, self.unit_s)
        except Untrusted as exc:
            self.fail(f"an answer that contradicts itself: {exc} ({self.name})")
            return None

    @property
    def state(self) -> State:
        return self.kept.state if self.book is None else self.book.state

    def zeros(self) -> tuple[float, ...]:
        """One arm's part of a row in which nothing is counted."""
        return zeros(self.question.kind, self.state.edges)

    def row(self, beat: int) -> Row:
        return self.rows[beat] or Row(candidate=self.zeros(), baseline=self.zeros())

    def unbook(self) -> None:
        """What was booked in this reading does not count."""
        self.book, self.rows, self.based = None, [None] * len(self.rows), False

    def shows(self, part: str, arm: str) -> bool:
        """Whether an arm has any series of a part in this reading."""
        return any(s.part == part and s.arm == arm for s in (*(self.base or ()), *self.beats))

    def absent(self) -> tuple[str, ...]:
        """Arms without any series of the part that every request is in."""
        return tuple(arm for arm in ARMS if not any(self.shows(c.part, arm) for c in self.counted if c.part in WHOLES))

    def doubtful(self) -> list[list[Counted]]:
        """Parts of which neither arm ever had a series, each with its metrics: there may be no such metrics."""
        assert self.indicator is not None
        found = []
        for part in self.indicator.parts:
            if part in self.kept.state.seen or any(self.shows(part, arm) for arm in ARMS):
                continue
            if part not in self.indicator.late:
                found.append(list({c.term.metric: c for c in self.counted if c.part == part}.values()))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    """When a reading reads, in milliseconds: `beats` are what it wants to know of, `every` apart, after `start`."""

    start: int
    base: int
    step: int
    every: int
    beats: tuple[int, ...]


class Counting:
    """One source's way of reading traffic; without memory of its own."""

    def __init__(self, client: PrometheusClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    def read(self, profile: Profile, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        """As `controller.ports.MetricSource.traffic`."""
        try:
            memory = _Memory.load(ledger)
        except ValueError as exc:
            text = f"what was counted so far cannot be read, so nothing can be added to it: {exc}"
            return TrafficRead(traffic=None, failure=text, ledger=ledger)
        first, new = not ledger, not ledger or memory.since != _ms(scope.since)
        base = max(_ms(scope.since), memory.at) if new else memory.base
        inquiries = [self._inquiry(profile, q, scope, memory, past=first) for q in questions]
        if not new and not _times(scope, memory, base, new, 1).beats:
            return _nothing_new(inquiries, scope, memory)
        self._ask_bases(inquiries, base)
        times = _times(scope, memory, base, new, max((_size(i) for i in inquiries), default=1))
        self._ask_beats(inquiries, times)
        if all(i.problem for i in inquiries) and (new or any(i.unanswered for i in inquiries)):
            return _failed(inquiries, next((i.problem for i in inquiries if i.unanswered), inquiries[0].problem), ledger)
        self._agree_on_base(inquiries, times)
        for inquiry in inquiries:
            self._book(inquiry, times)
        self._recheck(inquiries, times)
        history = ([], timedelta(0)) if not first else self._past(inquiries, scope)
        if isinstance(history, str):
            return _failed(inquiries, history, ledger)
        return _read(inquiries, scope, times, memory, history, self._clock)

    # --- what is asked ----------------------------------------------------------------------------------------------------------

    def _inquiry(self, profile: Profile, question: Question, scope: Scope, memory: _Memory, *, past: bool) -> _Inquiry:
        inquiry = _Inquiry(question=question, kept=memory.books.get(question.key) or _Kept())
        try:
            inquiry.indicator = profile.of(question, scope)
            inquiry.counted = profile.counted(inquiry.indicator, scope, question.where)
            if past:
                inquiry.past = profile.counted(inquiry.indicator, scope, question.where, past=True)
        except NotAskable as exc:
            inquiry.fail(str(exc))
        return inquiry

    def _ask_bases(self, inquiries: Sequence[_Inquiry], base_ms: int) -> None:
        """The last values before the phase, of every question that has not begun to count in it."""
        due = [i for i in inquiries if not i.problem and i.kept.base != base_ms]
        answers = self._answers({i.question.key: Ask(query=promql.last(i.counted), at=_time(base_ms)) for i in due})
        for inquiry in due:
            if inquiry.heard(answer := answers[inquiry.question.key]):
                inquiry.base = inquiry.series(promql.at(answer.series, base_ms))

    def _ask_beats(self, inquiries: Sequence[_Inquiry], times: _Times) -> None:
        if not times.beats:
            return
        due = [i for i in inquiries if not i.problem]
        answers = self._answers({i.question.key: _beats(i, times, times.beats) for i in due})
        # Where even so an answer is too long, the last beat alone says what happened, in one piece.
        short = {i.question.key: _beats(i, times, times.beats[-1:]) for i in due if answers[i.question.key].too_long}
        answers |= self._answers(short) if len(times.beats) > 1 else {}
        known = set(times.beats)
        for inquiry in due:
            answer = answers[inquiry.question.key]
            if not inquiry.heard(answer):
                continue
            if odd := next((t for track in answer.tracks for t in track.points if t not in known), None):
                inquiry.fail(f"a value of {_time(odd).isoformat()}, which was not asked for ({inquiry.name})")
                continue
            inquiry.beats = inquiry.series(answer.tracks) or []

    def _agree_on_base(self, inquiries: Sequence[_Inquiry], times: _Times) -> None:
        """
        Where Prometheus had not begun to scrape when the phase began, counting begins with the first values that it has.

        Else everything that the exporters counted before would seem to have happened in this phase.
        """
        based = [i for i in inquiries if i.base is not None]
        if not based or any(i.base for i in based) or not any(i.beats for i in based):
            return
        scraped = self._answers({"up": Ask(query="count(up)", at=_time(times.base))})["up"]
        if scraped.failure or scraped.series:
            return
        for inquiry in based:
            if seen := [t for s in inquiry.beats for t in s.points]:
                first = min(seen)
                inquiry.base = [replace(s, points={times.base: s.points[first]}) for s in inquiry.beats if first in s.points]

    def _answers(self, asks: Mapping[str, Ask], timeout_s: float | None = None) -> dict[str, Answer]:
        try:
            answers = self._client.ask_all(list(asks.values()), timeout_s=timeout_s)
            return {key: answers[ask] for key, ask in asks.items()}
        except Exception as exc:  # no thread to be had, no memory: still an answer that failed and not the end of the look
            text = f"the questions could not be asked: {type(exc).__name__}: {exc}"
            return {
                key: Answer(failure=text, evidence=Evidence(query=ask.query, at=ask.at, answer="", digest="", note=text))
                for key, ask in asks.items()
            }

    # --- booking ----------------------------------------------------------------------------------------------------------------

    def _book(self, inquiry: _Inquiry, times: _Times, behind: frozenset[str] = frozenset()) -> None:
        inquiry.rows = [None] * len(times.beats)
        if inquiry.problem:
            return
        assert inquiry.indicator is not None
        series = inquiry.beats or inquiry.base or []
        book = Book(inquiry.question.kind, inquiry.indicator.parts, inquiry.kept.state, series, behind)
        if inquiry.base is None or book.base(times.base, inquiry.base):
            inquiry.based = True
            inquiry.rows = [book.beat(t) for t in times.beats]
        inquiry.book = book

    def _recheck(self, inquiries: Sequence[_Inquiry], times: _Times) -> None:
        """What looks odd is asked about: counters that fell, and metrics that nobody seems to have."""
        asks: dict[str, Ask] = {}
        at = _time(times.beats[-1] if times.beats else times.base)
        for inquiry in inquiries:
            if inquiry.book is None:
                continue
            if inquiry.book.fell:
                since = inquiry.kept.at if inquiry.base is None else times.base - promql.BASE_WINDOW_MS
                window_ms = _ms(at) - since + LOOKBACK_MS
                asks[f"resets {inquiry.question.key}"] = Ask(query=promql.resets(inquiry.counted, window_ms), at=at)
            for c in (c for terms in inquiry.doubtful() for c in terms):
                asks[f"anywhere {c.selector}"] = Ask(query=promql.anywhere(c), at=at)
                asks[f"labelled {c.selector}"] = Ask(query=promql.labelled(c), at=at)
        answers = self._answers(asks)
        for inquiry in inquiries:
            if (found := answers.get(f"resets {inquiry.question.key}")) is not None:
                self._book_again(inquiry, found, times)
            if inquiry.book is not None:
                for terms in inquiry.doubtful():
                    _exists(inquiry, [(c, answers[f"anywhere {c.selector}"], answers[f"labelled {c.selector}"]) for c in terms])

    def _book_again(self, inquiry: _Inquiry, found: Answer, times: _Times) -> None:
        """Counters that fell without a restart were read from a replica that is behind."""
        assert inquiry.book is not None
        series = inquiry.series(promql.at(found.series, times.base)) if inquiry.heard(found) else None
        if series is None:
            inquiry.unbook()
            return
        restarted = groups_of(s for s in series if s.points[times.base] > 0)
        if behind := frozenset(inquiry.book.fell - restarted):
            self._book(inquiry, times, behind)

    # --- the past ---------------------------------------------------------------------------------------------------------------

    def _past(self, inquiries: Sequence[_Inquiry], scope: Scope) -> "tuple[list[tuple[float, ...]], timedelta] | str":
        """The baseline's increments before the first phase and the distance of two of them; or why they could not be read."""
        each = max(_ms_of(scope.history_step), SCRAPES_MIN * self._clock.scrape_ms)
        end = _ms(scope.since) // each * each
        count = _ms_of(scope.history) // each
        per = max(1, CHUNK_MS // each)
        chunks = [range(k, min(k + per, count)) for k in range(0, count, per)]
        times = {c.start: [end - (count - 1 - k) * each for k in c] for c in chunks}
        asks = {
            f"{start} {i.question.key}": Ask(
                query=promql.history(i.past, each, at[-1] - at[0] + each // 2), at=_time(at[-1]), matrix=True
            )
            for i in inquiries
            if i.book is not None
            for start, at in times.items()
        }
        answers = self._answers(asks, HISTORY_TIMES * self._client.timeout_s)
        table: dict[int, dict[str, tuple[float, ...]]] = {}
        for inquiry in inquiries:
            if inquiry.book is None:
                continue
            for start, at in times.items():
                answer = answers[f"{start} {inquiry.question.key}"]
                if not inquiry.heard(answer, brief=True):
                    return f"the baseline's history could not be read: {inquiry.problem}"
                try:
                    for t, row in _past_rows(inquiry, answer.tracks, set(at)).items():
                        table.setdefault(t, {})[inquiry.question.key] = row
                except Untrusted as exc:
                    return f"the baseline's history contradicts itself: {exc} ({inquiry.name})"
        rows = [tuple(v for i in inquiries for v in table[t].get(i.question.key) or i.zeros()) for t in sorted(table)]
        return rows, timedelta(milliseconds=each)


# --- times ----------------------------------------------------------------------------------------------------------------------


def _times(scope: Scope, memory: _Memory, base_ms: int, new: bool, size: int) -> _Times:
    """
    Which beats are read.

    Args:
        scope: The step, and the time up to which.
        memory: What was read.
        base_ms: Where counting begins in this phase.
        new: The phase begins with this reading.
        size: Series of the largest question.
    """
    step = max(1, _ms_of(scope.step))
    start = max(base_ms // step * step, memory.at) if new else memory.at
    steps = max(0, _ms(scope.at) // step - start // step)
    stride = max(1, math.ceil(steps / max(1, min(BEATS_MAX, POINTS_MAX // max(size, 1)))))
    # Prometheus counts a subquery's steps from the epoch, too.
    every = stride * step
    beats = tuple(range((start // every + 1) * every, start + steps * step + 1, every))
    return _Times(start=start, base=base_ms, step=step, every=every, beats=beats)


def _size(inquiry: _Inquiry) -> int:
    """About how many series a question has."""
    return max(sum(map(len, inquiry.kept.state.last.values())), len(inquiry.base or ()), 1)


def _beats(inquiry: _Inquiry, times: _Times, beats: Sequence[int]) -> Ask:
    # Half a step more than from first to last, as whether a window holds its own beginning depends on the release.
    window_ms = beats[-1] - beats[0] + max(1, times.every // 2)
    return Ask(query=promql.values(inquiry.counted, window_ms, times.every), at=_time(beats[-1]), matrix=True)


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _ms_of(span: timedelta) -> int:
    return round(span / timedelta(milliseconds=1))


# --- what came ------------------------------------------------------------------------------------------------------------------


def _exists(inquiry: _Inquiry, found: Sequence[tuple[Counted, Answer, Answer]]) -> None:
    """
    Whether metrics without a series of either arm have any at all; if not, nothing is counted.

    Args:
        inquiry: The question.
        found: Each metric that could have some, how many series it has, and how many with the labels that tell the arms apart.
    """
    wrong = []
    for counted, anywhere, labelled in found:
        if not (inquiry.heard(anywhere) and inquiry.heard(labelled)):
            inquiry.unbook()
            return
        metric, labels = counted.term.metric, ", ".join(sorted(counted.arm_labels))
        if labelled.series:
            if inquiry.book is not None:
                inquiry.book.state.seen.add(counted.part)
            return
        if anywhere.series:
            wrong.append(f"no series of {metric} has the labels {labels}, which tell the arms apart ({labelled.evidence.query})")
        else:
            wrong.append(f"there is no series of {metric} in Prometheus: is it scraped and named so? ({anywhere.evidence.query})")
    inquiry.fail("; ".join(wrong))
    inquiry.unbook()


def _past_rows(inquiry: _Inquiry, tracks: Sequence[Track], known: set[int]) -> dict[int, tuple[float, ...]]:
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
                raise Untrusted(f"a value of {_time(t).isoformat()}, which was not asked for")
            if not (math.isfinite(value) and value >= 0):
                raise Untrusted(f"the value {value:g} at {_time(t).isoformat()} is not a finite number from 0 up")
            at = sums.setdefault(t, {})
            at[name] = at.get(name, 0.0) + value
    rows = {t: _past_row(inquiry.question.kind, inquiry.state.edges, found) for t, found in sums.items()}
    return {t: row for t, row in rows.items() if row}


def _past_row(kind: Kind, edges: tuple[float, ...], found: Mapping[tuple[str, str], float]) -> tuple[float, ...]:
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


# --- what is told ---------------------------------------------------------------------------------------------------------------


def _failed(inquiries: Sequence[_Inquiry], why: str, ledger: Mapping[str, Any]) -> TrafficRead:
    return TrafficRead(traffic=None, failure=why, ledger=ledger, evidence=_evidence(inquiries))


def _nothing_new(inquiries: Sequence[_Inquiry], scope: Scope, memory: _Memory) -> TrafficRead:
    traffic = Traffic(
        since=_time(memory.at),
        step=scope.step,
        edges=_edges(inquiries),
        problems=memory.problems,
        absent=memory.absent,
    )
    return TrafficRead(traffic=traffic, ledger=memory.dump(), evidence=_evidence(inquiries))


def _read(
    inquiries: Sequence[_Inquiry],
    scope: Scope,
    times: _Times,
    memory: _Memory,
    history: tuple[Sequence[tuple[float, ...]], timedelta],
    clock: Clock,
) -> TrafficRead:
    after = _Memory(at=times.beats[-1] if times.beats else times.start, since=_ms(scope.since), base=times.base)
    for inquiry in inquiries:
        key = inquiry.question.key
        after.books[key] = _kept(inquiry, times)
        if problem := inquiry.problem or (inquiry.book.problem if inquiry.book else "") or _stale(inquiry, times, clock):
            after.problems[key] = problem
        if inquiry.book is not None and (absent := inquiry.absent()):
            after.absent[key] = absent
    beats = tuple(
        Beat(
            at=_time(t),
            candidate=tuple(v for i in inquiries for v in i.row(n).candidate),
            baseline=tuple(v for i in inquiries for v in i.row(n).baseline),
        )
        for n, t in enumerate(times.beats)
    )
    rows, each = history
    traffic = Traffic(
        since=_time(times.start),
        step=scope.step,
        edges=_edges(inquiries),
        beats=beats,
        history=tuple(rows),
        history_step=each or scope.history_step,
        problems=after.problems,
        absent=after.absent,
    )
    return TrafficRead(traffic=traffic, ledger=after.dump(), evidence=_evidence(inquiries))


def _kept(inquiry: _Inquiry, times: _Times) -> _Kept:
    if inquiry.book is None or not inquiry.based:
        return inquiry.kept
    counted = [t for t, row in zip(times.beats, inquiry.rows, strict=True) if row is not None]
    before = times.base if inquiry.base is not None else inquiry.kept.at
    return _Kept(state=inquiry.book.state, base=times.base, at=counted[-1] if counted else before)


def _stale(inquiry: _Inquiry, times: _Times, clock: Clock) -> str:
    """A candidate that was there and is no more: that nothing of it is counted must not look as if nothing happened."""
    shown = inquiry.state.shown.get(CANDIDATE)
    if inquiry.book is None or shown is None or not times.beats or times.beats[-1] - shown <= clock.stale_ms + times.every:
        return ""
    return f"no sample of the candidate since {_time(shown):%H:%M:%S} UTC: is it still scraped, and do the clocks agree? ({inquiry.name})"


def _edges(inquiries: Sequence[_Inquiry]) -> dict[str, tuple[float, ...]]:
    return {i.question.key: i.state.edges for i in inquiries if i.state.edges}


def _evidence(inquiries: Sequence[_Inquiry]) -> dict[str, tuple[Evidence, ...]]:
    return {i.question.key: tuple(i.evidence) for i in inquiries}
