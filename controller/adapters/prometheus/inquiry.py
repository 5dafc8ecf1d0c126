"""
One question on its way through a reading: what it asks, what came, what was booked, and what went wrong.

It stands between `counting`, which asks, and the ledger's `Book`. Its one rule: a problem ends it, and nothing of it is
remembered as counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from controller.adapters.prometheus import promql
from controller.adapters.prometheus.answer import Track, Untrusted
from controller.adapters.prometheus.client import KEPT_OF_LONG, Answer
from controller.adapters.prometheus.existence import by_metric, existence
from controller.adapters.prometheus.memory import Kept
from controller.adapters.prometheus.profile import Counted, Indicator
from controller.core.ledger import ARMS, WHOLES, Book, Row, Series, State, zeros
from controller.core.measurement import Evidence
from controller.core.traffic import Question

ASKED_MAX = 12
"""Hexadecimal digits of `Inquiry.asked`."""


@dataclass(slots=True, kw_only=True)
class Inquiry:
    """
    Args:
        question: What is counted.
        kept: What is remembered of it.
        counted, past: Its counters, and those of the baseline's past.
        problem: What ended it; "" while nothing did.
        unanswered: It ended because an answer failed.
        evidence: What was asked, and the answers.
        base_ms, base: When its counting begins in this reading, and what its counters showed then; None where it goes on from the
            last one.
        beats: What its counters showed at the beats.
        book, rows: The booking, and one row for each beat; None for a beat that was not counted.
        based: The base was fixed.
    """

    question: Question
    kept: Kept
    indicator: Indicator | None = None
    counted: tuple[Counted, ...] = ()
    past: tuple[Counted, ...] = ()
    problem: str = ""
    unanswered: bool = False
    evidence: list[Evidence] = field(default_factory=list)
    base_ms: int = -1
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
    def asked(self) -> str:
        """Short for all that is asked for: the same as long as the same counters are."""
        return sha256("\n".join(c.promql() for c in self.counted).encode()).hexdigest()[:ASKED_MAX]

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

    def doubtful(self) -> list[tuple[Counted, ...]]:
        """Parts of which neither arm ever had a series, each with its metrics: there may be no such metrics."""
        assert self.indicator is not None
        found = []
        for part in self.indicator.parts:
            if part in self.kept.state.seen or any(self.shows(part, arm) for arm in ARMS):
                continue
            if part not in self.indicator.late:
                found.append(by_metric(self.counted, part))
        return found


def check_exists(inquiry: Inquiry, found: Sequence[tuple[Counted, Answer]]) -> None:
    """
    Whether counters without a series of either arm could have some; if not, nothing is counted.

    Args:
        inquiry: The question.
        found: Counters of one part, of each metric one, and what `promql.exists` brought.
    """
    for _, answer in found:
        if not inquiry.heard(answer):
            inquiry.unbook()
            return
    what = existence([(counted, answer.series) for counted, answer in found])
    if what.lack:
        inquiry.fail(what.lack)
        inquiry.unbook()
    elif what.there and inquiry.book is not None:
        inquiry.book.state.seen.add(found[0][0].part)
