"""
Reading traffic: raw counters at beats, booked as increments of both arms.

It stands between `PrometheusSource.traffic` and the ledger: it decides which beats are read, asks, and books each question by
itself. Its one rule: a question that cannot be counted consumes nothing and holds nobody up. The others go on, and what it missed
comes in the first beat that can be counted again.

For each question there is one query at an ordinary look, whatever the number of gates that ask it; one more where a phase begins
(the values that counting begins with), six or so at the very first look (the baseline's past), and one or two where something
looks odd. The beats of several rollouts may have been asked for together (`wishes`, `joint`); what is read here for one question
does not depend on what else was asked.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.adapters.prometheus import promql
from controller.adapters.prometheus.client import Answer, Ask, PrometheusClient
from controller.adapters.prometheus.inquiry import Inquiry, check_exists
from controller.adapters.prometheus.joint import Form, JointClient, Wish
from controller.adapters.prometheus.memory import Kept, Memory
from controller.adapters.prometheus.past import History, PastUnread, read_past
from controller.adapters.prometheus.profile import NotAskable, Profile
from controller.adapters.prometheus.times import Times, ms, ms_of, time_of, times_of
from controller.core.ledger import CANDIDATE, Book, groups_of
from controller.core.measurement import Evidence
from controller.core.traffic import Beat, Question, Traffic, TrafficRead
from controller.ports import Scope

SCRAPES_MIN = 4
"""`increase` over fewer scrapes than this makes much of where the window happens to begin."""

LOOKBACK_MS = 300_000
"""How old a value may be that Prometheus shows (its default)."""

READING_TIMES = 2.0
"""Deadlines of the client that one reading may take, all its rounds of questions together."""

HISTORY_TIMES = 3.0
"""The very first look asks more than any other, and has so many more for it."""


HISTORY_PATIENCE_MS = 120_000
"""For so long a first phase waits for the baseline's past; after that it is judged without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What is known of the source's own times, in milliseconds."""

    scrape_ms: int
    stale_ms: int


class Counting:
    """One reading. It has so much time, whatever it asks."""

    def __init__(self, client: PrometheusClient | JointClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._ends = time.monotonic() + READING_TIMES * client.timeout_s

    def read(self, profile: Profile, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        """As `controller.ports.MetricSource.traffic`."""
        try:
            memory = Memory.load(ledger)
        except ValueError as exc:
            text = f"what was counted so far cannot be read, so nothing can be added to it: {exc}"
            return TrafficRead(traffic=None, failure=text, ledger=ledger)
        first, new = not ledger, not ledger or memory.since != ms(scope.since)
        base = max(ms(scope.since), memory.at) if new else memory.base
        inquiries = [self._inquiry(profile, q, scope, memory, past=first) for q in questions]
        if not new and not times_of(scope, memory, base, new, 1).beats:
            return _nothing_new(inquiries, scope, memory)
        self._ask_bases(inquiries, base, base if new else memory.at)
        times = times_of(scope, memory, base, new, max((_size(i) for i in inquiries), default=1))
        self._ask_beats(inquiries, times)
        if all(i.problem for i in inquiries) and (new or any(i.unanswered for i in inquiries)):
            return _failed(inquiries, next((i.problem for i in inquiries if i.unanswered), inquiries[0].problem), ledger)
        self._agree_on_base(inquiries, times)
        for inquiry in inquiries:
            self._book(inquiry, times)
        self._recheck(inquiries, times)
        history = History(rows=(), each=scope.history_step)
        if first:
            try:
                history = self._history(inquiries, scope)
            except PastUnread as exc:
                # Worth another look or two; but a candidate must not go unwatched because the past cannot be read.
                if ms(scope.at) - ms(scope.since) < HISTORY_PATIENCE_MS:
                    return _failed(inquiries, str(exc), ledger)
        return _read(inquiries, scope, times, history, self._clock)

    def wishes(self, profile: Profile, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> list[Wish]:
        """What an ordinary reading asks: nothing of one where a phase begins, whose questions depend on what the first ones bring."""
        try:
            memory = Memory.load(ledger)
        except ValueError:
            return []
        if not ledger or memory.since != ms(scope.since):
            return []
        inquiries = [self._inquiry(profile, q, scope, memory, past=False) for q in questions]
        due = [i for i in inquiries if not i.problem and i.kept.base == memory.base and i.kept.asked == i.asked]
        if len(due) < sum(not i.problem for i in inquiries):
            return []  # a base is asked for first, and how long that answer is may change the beats
        times = times_of(scope, memory, memory.base, False, max((_size(i) for i in inquiries), default=1))
        if not times.beats:
            return []
        window_ms = _window_ms(times.beats, times)
        return [
            Wish(
                ask=_beats(i, times, times.beats),
                counted=i.counted,
                form=Form.VALUES,
                window_ms=window_ms,
                step_ms=times.every,
                first_ms=times.beats[0],
                size=_size(i),
            )
            for i in due
        ]

    # --- what is asked ----------------------------------------------------------------------------------------------------------

    def _inquiry(self, profile: Profile, question: Question, scope: Scope, memory: Memory, *, past: bool) -> Inquiry:
        inquiry = Inquiry(question=question, kept=memory.books.get(question.key) or Kept())
        try:
            inquiry.indicator = profile.of(question, scope)
            inquiry.counted = profile.counted(inquiry.indicator, scope, question.where)
            if past:
                inquiry.past = profile.counted(inquiry.indicator, scope, question.where, past=True)
        except NotAskable as exc:
            inquiry.fail(str(exc))
        return inquiry

    def _history(self, inquiries: Sequence[Inquiry], scope: Scope) -> History:
        """Raises PastUnread."""
        each = max(ms_of(scope.history_step), SCRAPES_MIN * self._clock.scrape_ms)

        more_s = HISTORY_TIMES * self._client.timeout_s
        self._ends += more_s
        return read_past(inquiries, ms(scope.since), ms_of(scope.history), each, lambda asks: self._answers(asks, more_s))

    def _ask_bases(self, inquiries: Sequence[Inquiry], base_ms: int, at_ms: int) -> None:
        """
        The last values before the phase, of every question that has not begun to count in it.

        Args:
            inquiries: All.
            base_ms: When the phase began.
            at_ms: The last beat that was read: where a question goes on that is asked otherwise than before.
        """
        due = []
        for inquiry in inquiries:
            if not inquiry.problem and inquiry.kept.base != base_ms:
                inquiry.base_ms = base_ms
            elif not inquiry.problem and inquiry.kept.asked != inquiry.asked:
                inquiry.base_ms = at_ms
            else:
                continue
            due.append(inquiry)
        answers = self._answers(
            {i.question.key: Ask(query=promql.last(i.counted), at=time_of(i.base_ms), large=True) for i in due}
        )
        for inquiry in due:
            if inquiry.heard(answer := answers[inquiry.question.key]):
                inquiry.base = inquiry.series(promql.at(answer.series, inquiry.base_ms))

    def _ask_beats(self, inquiries: Sequence[Inquiry], times: Times) -> None:
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
                inquiry.fail(f"a value of {time_of(odd).isoformat()}, which was not asked for ({inquiry.name})")
                continue
            inquiry.beats = inquiry.series(answer.tracks) or []

    def _agree_on_base(self, inquiries: Sequence[Inquiry], times: Times) -> None:
        """
        Where Prometheus had not begun to scrape when the phase began, counting begins with the first values that it has.

        Else everything that the exporters counted before would seem to have happened in this phase.
        """
        based = [i for i in inquiries if i.base is not None]
        if not based or any(i.base for i in based) or not any(i.beats for i in based):
            return
        scraped = self._answers({"up": Ask(query="count(up)", at=time_of(times.base))})["up"]
        if scraped.failure or scraped.series:
            return
        for inquiry in based:
            if seen := [t for s in inquiry.beats for t in s.points]:
                first = min(seen)
                inquiry.base = [s._replace(points={inquiry.base_ms: s.points[first]}) for s in inquiry.beats if first in s.points]

    def _answers(self, asks: Mapping[str, Ask], timeout_s: float | None = None) -> dict[str, Answer]:
        left_s = min(timeout_s or self._client.timeout_s, max(0.001, self._ends - time.monotonic()))
        try:
            answers = self._client.ask_all(list(asks.values()), timeout_s=left_s)
            return {key: answers[ask] for key, ask in asks.items()}
        except Exception as exc:  # no thread to be had, no memory: still an answer that failed and not the end of the look
            text = f"the questions could not be asked: {type(exc).__name__}: {exc}"
            return {
                key: Answer(failure=text, evidence=Evidence(query=ask.query, at=ask.at, answer="", digest="", note=text))
                for key, ask in asks.items()
            }

    # --- booking ----------------------------------------------------------------------------------------------------------------

    def _book(self, inquiry: Inquiry, times: Times, behind: frozenset[str] = frozenset()) -> None:
        inquiry.rows = [None] * len(times.beats)
        if inquiry.problem:
            return
        assert inquiry.indicator is not None
        series = inquiry.beats or inquiry.base or []
        book = Book(inquiry.question.kind, inquiry.indicator.parts, inquiry.kept.state, series, behind)
        if inquiry.base is None or book.base(inquiry.base_ms, inquiry.base):
            inquiry.based = True
            inquiry.rows = book.beats(times.beats)
        inquiry.book = book

    def _recheck(self, inquiries: Sequence[Inquiry], times: Times) -> None:
        """What looks odd is asked about: counters that fell, and metrics that nobody seems to have."""
        asks: dict[str, Ask] = {}
        at = time_of(times.beats[-1] if times.beats else times.base)
        for inquiry in inquiries:
            if inquiry.book is None:
                continue
            if inquiry.book.fell:
                since = inquiry.kept.at if inquiry.base is None else inquiry.base_ms - promql.BASE_WINDOW_MS
                window_ms = ms(at) - since + LOOKBACK_MS
                asks[f"resets {inquiry.question.key}"] = Ask(query=promql.resets(inquiry.counted, window_ms), at=at, large=True)
            for c in (c for terms in inquiry.doubtful() for c in terms):
                asks[f"exists {c.selector}"] = Ask(query=promql.exists(c), at=at)
        answers = self._answers(asks)
        for inquiry in inquiries:
            if (found := answers.get(f"resets {inquiry.question.key}")) is not None:
                self._book_again(inquiry, found, times)
            if inquiry.book is not None:
                for terms in inquiry.doubtful():
                    check_exists(inquiry, [(c, answers[f"exists {c.selector}"]) for c in terms])

    def _book_again(self, inquiry: Inquiry, found: Answer, times: Times) -> None:
        """Counters that fell without a restart were read from a replica that is behind."""
        assert inquiry.book is not None
        series = inquiry.series(promql.at(found.series, times.base)) if inquiry.heard(found) else None
        if series is None:
            inquiry.unbook()
            return
        restarted = groups_of(s for s in series if s.points[times.base] > 0)
        if behind := frozenset(inquiry.book.fell - restarted):
            self._book(inquiry, times, behind)


def _size(inquiry: Inquiry) -> int:
    """About how many series a question has."""
    return max(sum(map(len, inquiry.kept.state.last.values())), len(inquiry.base or ()), 1)


def _window_ms(beats: Sequence[int], times: Times) -> int:
    # Half a step more than from first to last, as whether a window holds its own beginning depends on the release.
    return beats[-1] - beats[0] + max(1, times.every // 2)


def _beats(inquiry: Inquiry, times: Times, beats: Sequence[int]) -> Ask:
    return Ask(
        query=promql.values(inquiry.counted, _window_ms(beats, times), times.every),
        at=time_of(beats[-1]),
        matrix=True,
        large=True,
    )


# --- what is told ---------------------------------------------------------------------------------------------------------------


def _failed(inquiries: Sequence[Inquiry], why: str, ledger: Mapping[str, Any]) -> TrafficRead:
    return TrafficRead(traffic=None, failure=why, ledger=ledger, evidence=_evidence(inquiries))


def _nothing_new(inquiries: Sequence[Inquiry], scope: Scope, memory: Memory) -> TrafficRead:
    traffic = Traffic(
        since=time_of(memory.at),
        step=scope.step,
        edges=_edges(inquiries),
        problems=memory.problems,
        absent=memory.absent,
    )
    return TrafficRead(traffic=traffic, ledger=memory.dump(), evidence=_evidence(inquiries))


def _read(inquiries: Sequence[Inquiry], scope: Scope, times: Times, history: History, clock: Clock) -> TrafficRead:
    after = Memory(at=times.beats[-1] if times.beats else times.start, since=ms(scope.since), base=times.base)
    for inquiry in inquiries:
        key = inquiry.question.key
        after.books[key] = _kept(inquiry, times)
        if problem := inquiry.problem or (inquiry.book.problem if inquiry.book else "") or _stale(inquiry, times, clock):
            after.problems[key] = problem
        if inquiry.book is not None and (absent := inquiry.absent()):
            after.absent[key] = absent
    beats = tuple(
        Beat(
            at=time_of(t),
            candidate=tuple(_shared(v) for i in inquiries for v in i.row(n).candidate),
            baseline=tuple(_shared(v) for i in inquiries for v in i.row(n).baseline),
        )
        for n, t in enumerate(times.beats)
    )
    traffic = Traffic(
        since=time_of(times.start),
        step=scope.step,
        edges=_edges(inquiries),
        beats=beats,
        history=history.rows,
        history_step=history.each,
        problems=after.problems,
        absent=after.absent,
    )
    return TrafficRead(traffic=traffic, ledger=after.dump(), evidence=_evidence(inquiries))


_WHOLE = tuple(float(n) for n in range(4_096))


def _shared(value: float) -> float:
    """The same number; small counts, which most are, as one object each. A guard keeps the beats of a quarter of an hour of every rollout."""
    return _WHOLE[int(value)] if value < len(_WHOLE) and value.is_integer() else value


def _kept(inquiry: Inquiry, times: Times) -> Kept:
    if inquiry.book is None or not inquiry.based:
        return inquiry.kept
    counted = [t for t, row in zip(times.beats, inquiry.rows, strict=True) if row is not None]
    before = inquiry.base_ms if inquiry.base is not None else inquiry.kept.at
    return Kept(state=inquiry.book.state, base=times.base, at=counted[-1] if counted else before, asked=inquiry.asked)


def _stale(inquiry: Inquiry, times: Times, clock: Clock) -> str:
    """A candidate that was there and is no more: that nothing of it is counted must not look as if nothing happened."""
    shown = inquiry.state.shown.get(CANDIDATE)
    if inquiry.book is None or shown is None or not times.beats or times.beats[-1] - shown <= clock.stale_ms + times.every:
        return ""
    return f"no sample of the candidate since {time_of(shown):%H:%M:%S} UTC: is it still scraped, and do the clocks agree? ({inquiry.name})"


def _edges(inquiries: Sequence[Inquiry]) -> dict[str, tuple[float, ...]]:
    return {i.question.key: i.state.edges for i in inquiries if i.state.edges}


def _evidence(inquiries: Sequence[Inquiry]) -> dict[str, tuple[Evidence, ...]]:
    return {i.question.key: tuple(i.evidence) for i in inquiries}
