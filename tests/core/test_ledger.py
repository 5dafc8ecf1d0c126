"""
Raw counters become increments: each thing that happened is counted once, whatever was missed, restarted or came late.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from controller.core.ledger import Book, Row, Series, State, edge_s, groups_of, rising, within
from controller.core.traffic import Kind

CANDIDATE, BASELINE = "candidate", "baseline"
RATE, MEAN, BUCKETS = ("bad", "total"), ("amount", "count"), ("buckets",)


def one(part: str, points: Mapping[int, float], arm: str = CANDIDATE, query: str = "q", **labels: str) -> Series:
    return Series(part=part, arm=arm, labels=labels or {"instance": "a"}, points=points, query=query)


def buckets(points: Mapping[int, Sequence[float]], edges: Sequence[str] = ("0.5", "1", "+Inf"), **labels: str) -> list[Series]:
    """A histogram of the candidate: one value for each edge at each time."""
    return [
        Series(
            part="buckets",
            arm=CANDIDATE,
            labels={"instance": "a", **labels, "le": le},
            points={t: values[i] for t, values in points.items()},
            query="q_bucket",
        )
        for i, le in enumerate(edges)
    ]


def counted(series: Sequence[Series], *beats: int, state: State | None = None) -> tuple[list[Row | None], Book]:
    book = Book(Kind.RATE, RATE, state or State(), series)
    return [book.beat(t) for t in beats], book


def seen(rows: Sequence[Row | None]) -> list[tuple[float, ...] | None]:
    return [None if row is None else row.candidate for row in rows]


# --- what is counted ------------------------------------------------------------------------------------------------------------


def test_what_the_counters_showed_at_the_base_has_happened_before() -> None:
    series = [one("bad", {10: 3, 20: 4}), one("total", {10: 100, 20: 110})]
    book = Book(Kind.RATE, RATE, State(), series)
    assert book.base(5, [one("bad", {5: 2}), one("total", {5: 90})])
    assert seen([book.beat(10), book.beat(20)]) == [(1, 10), (1, 10)]


def test_a_counter_that_is_born_within_the_phase_counts_from_nought() -> None:
    rows, _ = counted([one("total", {20: 7})], 10, 20)
    assert seen(rows) == [(0, 0), (0, 7)]


def test_both_arms_are_counted_by_themselves_and_over_all_series() -> None:
    series = [
        one("total", {10: 5}, instance="a"),
        one("total", {10: 6}, instance="b"),
        one("total", {10: 70}, arm=BASELINE),
        one("bad", {10: 1}, arm=BASELINE),
    ]
    rows, _ = counted(series, 10)
    assert rows == [Row(candidate=(0, 11), baseline=(1, 70))]


def test_a_counter_that_falls_has_restarted_and_counts_from_nought() -> None:
    rows, book = counted([one("total", {10: 100, 20: 4, 30: 9})], 10, 20, 30)
    assert seen(rows) == [(0, 100), (0, 4), (0, 5)]
    assert book.fell == groups_of([one("total", {})])


def test_a_counter_that_is_behind_did_not_restart_and_counts_again_when_it_has_caught_up() -> None:
    series = [one("total", {10: 100, 20: 96, 30: 103})]
    book = Book(Kind.RATE, RATE, State(), series, behind=groups_of(series))
    assert seen([book.beat(t) for t in (10, 20, 30)]) == [(0, 100), (0, 0), (0, 3)]


def test_one_bucket_that_falls_shows_that_all_of_its_histogram_restarted() -> None:
    # le=1 and all would read as 12 and 13 more, although the process has served 32 and 33 since.
    book = Book(Kind.HISTOGRAM, BUCKETS, State(), buckets({10: (5, 20, 20), 20: (2, 32, 33)}))
    assert seen([book.beat(10), book.beat(20)]) == [(5, 20, 20), (2, 32, 33)]


def test_a_missed_beat_is_counted_in_the_next_one_that_shows_it() -> None:
    rows, _ = counted([one("total", {10: 5, 40: 17})], 10, 20, 30, 40)
    assert seen(rows) == [(0, 5), (0, 0), (0, 0), (0, 12)]


def test_a_series_that_was_gone_goes_on_from_where_it_was_last_seen() -> None:
    rows, first = counted([one("total", {10: 500})], 10)
    rows, _ = counted([one("total", {90: 510})], 90, state=first.state)
    assert seen(rows) == [(0, 10)]


def test_the_mean_of_an_amount_is_counted_from_its_sum_and_its_number() -> None:
    book = Book(Kind.MEAN, MEAN, State(), [one("amount", {10: 0.25, 20: 1.0}), one("count", {10: 2, 20: 5})])
    assert seen([book.beat(10), book.beat(20)]) == [(0.25, 2), (0.75, 3)]


def test_good_events_leave_the_bad_ones() -> None:
    series = [one("good", {10: 97}), one("total", {10: 100})]
    book = Book(Kind.RATE, ("good", "total"), State(), series)
    assert seen([book.beat(10)]) == [(3, 100)]


def test_where_good_events_are_counted_and_there_are_none_all_are_bad() -> None:
    book = Book(Kind.RATE, ("good", "total"), State(), [one("total", {10: 8})])
    assert seen([book.beat(10)]) == [(8, 8)]


def test_a_bad_event_that_is_seen_before_its_request_is_counted_with_it() -> None:
    rows, _ = counted([one("bad", {10: 1, 20: 1}), one("total", {10: 0, 20: 1})], 10, 20)
    assert seen(rows) == [(0, 0), (1, 1)]


def test_edges_are_seconds_whatever_the_unit_of_the_exporter() -> None:
    assert [edge_s(le, 1e-3) for le in ("250", "1200", "+Inf")] == [0.25, 1.2, math.inf]


def test_a_histogram_counts_the_edges_that_all_of_its_series_have() -> None:
    series = buckets({10: (1, 2, 3)}) + buckets({10: (4, 5, 6)}, ("0.5", "2.0", "+Inf"), instance="b")
    book = Book(Kind.HISTOGRAM, BUCKETS, State(), series)
    assert seen([book.beat(10)]) == [(5, 9)]
    assert book.state.edges == (0.5,)


def test_more_edges_than_the_comparison_was_begun_with_do_not_matter() -> None:
    first = Book(Kind.HISTOGRAM, BUCKETS, State(), buckets({10: (1, 2, 3)}))
    first.beat(10)
    later = Book(Kind.HISTOGRAM, BUCKETS, first.state, buckets({20: (2, 3, 4, 5)}, ("0.5", "0.7", "1.0", "+Inf")))
    assert seen([later.beat(20)]) == [(1, 2, 2)]


def test_dips_of_rounding_between_buckets_are_levelled() -> None:
    assert rising([1.0, 3.0, 3.0 - 1e-9, 4.0], "candidate") == (1.0, 3.0, 3.0, 4.0)


# --- what is not ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-1.0, "-1"), (1.7e308, "1.7e+308"), (1e16, "1e+16")]
)
def test_a_value_that_is_no_count_is_named_and_nothing_is_consumed(value: float, shown: str) -> None:
    rows, book = counted([one("bad", {10: 1, 20: value}), one("total", {10: 5, 20: 9, 30: 12}, query="my_total{a}")], 10, 20, 30)
    assert seen(rows) == [(1, 5), None, None]
    assert f"the value {shown} of {{instance='a'}} is not a finite number from 0 up" in book.problem
    # The next reading finds everything since.
    rows, later = counted([one("bad", {40: 2}), one("total", {40: 20}, query="my_total{a}")], 40, state=book.state)
    assert seen(rows) == [(1, 15)]
    assert later.problem == ""


def test_growth_beyond_all_counting_is_named_and_consumes_nothing() -> None:
    rows, book = counted([one("bad", {10: 1, 20: 2}), one("total", {10: 5, 20: 5e12}, query="my_total{a}")], 10, 20)
    assert seen(rows) == [(1, 5), None]
    assert "my_total{a}: {instance='a'} grew by 5e+12 since the last look" in book.problem
    rows, _ = counted([one("bad", {30: 2}), one("total", {30: 20}, query="my_total{a}")], 30, state=book.state)
    assert seen(rows) == [(1, 15)]


def test_two_series_where_one_is_expected_are_named() -> None:
    rows, book = counted([one("total", {10: 5}), one("total", {10: 6})], 10)
    assert seen(rows) == [None]
    assert book.problem == "q: the series {instance='a'} is there twice"


def test_two_spellings_of_one_edge_are_two_series_where_one_is_expected() -> None:
    book = Book(Kind.HISTOGRAM, BUCKETS, State(), buckets({10: (1, 1, 2)}, ("1", "1.0", "+Inf")))
    assert book.beat(10) is None
    assert "le='1.0'" in book.problem and "twice" in book.problem


@pytest.mark.parametrize(
    ("edges", "problem"),
    [
        (("0.5", "1"), "lack le=+Inf"),
        (("0.5", "quick", "+Inf"), "bucket edge le='quick' of {instance='a'} is no number"),
        (("+Inf",), "no finite bucket edge in common"),
    ],
)
def test_buckets_that_are_no_histogram_fix_no_edges(edges: tuple[str, ...], problem: str) -> None:
    book = Book(Kind.HISTOGRAM, BUCKETS, State(), buckets({10: (1, 2, 3)}, edges))
    assert book.beat(10) is None
    assert problem in book.problem
    assert book.state == State()


def test_edges_that_changed_are_named_and_nothing_more_is_consumed() -> None:
    first = Book(Kind.HISTOGRAM, BUCKETS, State(), buckets({10: (1, 2, 3)}))
    first.beat(10)
    later = Book(Kind.HISTOGRAM, BUCKETS, first.state, buckets({20: (2, 3, 4)}, ("0.5", "2", "+Inf")))
    assert later.beat(20) is None
    assert later.problem == "q_bucket: {instance='a'} has no bucket le=1.0 (s), which the comparison was begun with"
    assert later.state == first.state


def test_buckets_that_fall_with_rising_edge_are_a_contradiction() -> None:
    book = Book(Kind.HISTOGRAM, BUCKETS, State(), buckets({10: (5, 3, 9)}))
    assert book.beat(10) is None
    assert "bucket 1 counts 3, one below it 5" in book.problem


def test_more_bad_events_than_requests_are_a_contradiction_that_the_next_beat_may_resolve() -> None:
    rows, book = counted([one("bad", {10: 30, 20: 30}), one("total", {10: 10, 20: 40})], 10, 20)
    assert seen(rows) == [None, (30, 40)]
    assert book.problem == ""
    rows, book = counted([one("bad", {10: 30}), one("total", {10: 10})], 10)
    assert book.problem == "30 bad of the candidate of 10 requests: the counters contradict each other"


def test_a_part_that_is_always_ahead_is_noticed_in_whatever_small_steps() -> None:
    points = range(1, 60)
    rows, book = counted([one("bad", {t: t * 11.0 for t in points}), one("total", {t: t * 10.0 for t in points})], *points)
    # A tenth of one beat's requests may be ahead, and no more than that over all beats.
    assert rows[0] is not None and rows[-1] is None
    assert "contradict each other" in book.problem


def test_a_part_may_be_ahead_by_one_request_for_each_series_that_writes_it() -> None:
    assert within(4.0, 2.0, "bad", writers=2) == (2.0, 2.0)
    with pytest.raises(ValueError, match="4 bad of 2 requests"):
        within(4.0, 2.0, "bad", writers=1)


def test_a_base_that_is_no_count_is_no_base() -> None:
    book = Book(Kind.RATE, RATE, State(), [one("total", {10: 5})])
    assert not book.base(5, [one("total", {5: math.nan})])
    assert book.beat(10) is None
    assert "nan" in book.problem


def test_what_was_read_is_left_as_it_was() -> None:
    before = State()
    Book(Kind.RATE, RATE, before, [one("total", {10: 5})]).beat(10)
    assert before == State()


# --- what is remembered ---------------------------------------------------------------------------------------------------------


def test_a_state_is_the_same_after_json() -> None:
    book = Book(Kind.MEAN, MEAN, State(), [one("amount", {10: 0.1 + 0.2}), one("count", {10: 2.0**53 + 2})])
    book.beat(10)
    assert State.load(json.loads(json.dumps(book.state.dump()))) == book.state


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"last": {"g": 1}, "edges": [], "carry": {}, "seen": [], "shown": {}},
        {"last": {"g": {"": "many"}}, "edges": [], "carry": {}, "seen": [], "shown": {}},
        {"last": {"g": {"": -1}}, "edges": [], "carry": {}, "seen": [], "shown": {}},
        {"last": {"g": {"": math.nan}}, "edges": [], "carry": {}, "seen": [], "shown": {}},
        {"last": {}, "edges": ["wide"], "carry": {}, "seen": [], "shown": {}},
    ],
)
def test_a_state_that_was_not_written_by_us_is_refused(data: Mapping[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        State.load(data)


# --- whatever happens -----------------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """A process that serves, restarts, and is scraped or not: what it shows by time, and what can be known of what it did."""

    name: str
    lives: list[list[tuple[int, int]]] = field(default_factory=lambda: [[(0, 0)]])
    shown: dict[int, tuple[int, int]] = field(default_factory=dict)

    def serve(self, bad: int, good: int) -> None:
        b, n = self.lives[-1][-1]
        self.lives[-1].append((b + bad, n + bad + good))

    def restart(self) -> None:
        self.lives.append([(0, 0)])

    def scrape(self, t: int) -> None:
        self.shown[t] = self.lives[-1][-1]

    def series(self, times: Sequence[int]) -> list[Series]:
        at = [t for t in times if t in self.shown]
        return [one(p, {t: float(self.shown[t][i]) for t in at}, instance=self.name) for i, p in enumerate(RATE) if at]


TICK = st.tuples(
    st.integers(0, 2),  # bad
    st.integers(0, 6),  # good
    st.integers(0, 11),  # restarts at 0
    st.booleans(),  # scraped
)


def told(stories: list[list[tuple[int, int, int, bool]]]) -> tuple[list[Process], tuple[int, int]]:
    """Processes after their stories, and all that any scrape showed of each life, bad and all."""
    processes, total = [], (0, 0)
    for number, story in enumerate(stories):
        process, last, life_last = Process(f"p{number}"), (0, 0), (0, 0)
        for t, (bad, good, restarts, scraped) in enumerate(story, start=1):
            if restarts == 0:
                total = (total[0] + life_last[0], total[1] + life_last[1])
                process.restart()
                life_last = (0, 0)
            process.serve(bad, good)
            if scraped:
                process.scrape(t)
                now = process.shown[t]
                if life_last == (0, 0) and last != (0, 0):
                    # A restart that shows at least as much as before is one that nobody can see.
                    assume(now[1] < last[1] and (now[0] < last[0] or last[0] == 0))
                last = life_last = now
        total = (total[0] + life_last[0], total[1] + life_last[1])
        processes.append(process)
    return processes, total


STORIES = st.lists(st.lists(TICK, min_size=1, max_size=25), min_size=1, max_size=3)


@given(STORIES)
def test_increments_sum_to_what_happened_whatever_was_missed_or_restarted(
    stories: list[list[tuple[int, int, int, bool]]],
) -> None:
    processes, total = told(stories)
    times = range(1, 27)
    book = Book(Kind.RATE, RATE, State(), [s for p in processes for s in p.series(times)])
    rows = [book.beat(t) for t in times]
    assert book.problem == ""
    assert (sum(r.candidate[0] for r in rows if r), sum(r.candidate[1] for r in rows if r)) == total


@given(STORIES, st.lists(st.integers(1, 26), max_size=6), st.randoms(use_true_random=False))
def test_however_the_beats_are_divided_into_readings_the_rows_are_the_same(
    stories: list[list[tuple[int, int, int, bool]]], cuts: list[int], random: Random
) -> None:
    processes, _ = told(stories)
    times = list(range(1, 27))
    whole = Book(Kind.RATE, RATE, State(), [s for p in processes for s in p.series(times)])
    expected = [whole.beat(t) for t in times]
    state, rows = State(), []
    edges = [0, *sorted(set(cuts)), 26]
    for start, end in pairwise(edges):
        part = times[start:end]
        series = [s for p in processes for s in p.series(part)]
        random.shuffle(series)  # the source is free in its order
        book = Book(Kind.RATE, RATE, State.load(json.loads(json.dumps(state.dump()))), series)
        rows += [book.beat(t) for t in part]
        state = book.state
    assert rows == expected
    assert state == whole.state


# --- many beats at once ---------------------------------------------------------------------------------------------------------

EDGES = ("0.5", "1", "+Inf")
STEPS = st.lists(
    st.tuples(*[st.sampled_from([*[0, 1, 2, 7] * 8, 0.25, 1e-9, -1, -1, -1, -40, math.nan, 3e12])] * 3), min_size=1, max_size=6
)  # growth of each bucket; what falls, is no number or grows beyond counting is rare enough for most stories to be plain
GONE = st.sets(st.integers(1, 6), max_size=2)


def histogram(arm: str, instance: str, steps: Sequence[Sequence[float]], gone: set[int]) -> list[Series]:
    now, points = [5.0, 6.0, 9.0], dict[int, list[float]]()
    for t, step in enumerate(steps, start=1):
        grown = [sum(step[: i + 1]) for i in range(3)]
        now = [n + g for n, g in zip(now, grown, strict=True)]
        if t not in gone:
            points[t] = list(now)
    return [
        Series(
            part="buckets",
            arm=arm,
            labels={"instance": instance, "le": le},
            points={t: v[i] for t, v in points.items()},
            query="q",
        )
        for i, le in enumerate(EDGES)
    ]


@given(STEPS, STEPS, STEPS, GONE, st.integers(0, 3))
def test_many_beats_at_once_are_what_one_after_the_other_is(
    first: list[tuple[float, ...]], second: list[tuple[float, ...]], third: list[tuple[float, ...]], gone: set[int], base: int
) -> None:
    series = [
        *histogram(CANDIDATE, "a", first, gone if base == 1 else set()),
        *histogram(CANDIDATE, "b", second, gone if base == 2 else set()),
        *histogram(BASELINE, "a", third, set()),
    ]
    times = list(range(1, min(len(first), len(second), len(third)) + 1))
    at_once, each = (Book(Kind.HISTOGRAM, BUCKETS, State(), series) for _ in range(2))
    for book in (at_once, each):
        assert book.base(0, [s._replace(points={0: 5.0 + 2 * i}) for i, s in enumerate(series[:3])])
    assert repr(at_once.beats(times)) == repr([each.beat(t) for t in times])
    assert json.dumps(at_once.state.dump()) == json.dumps(each.state.dump())
    assert (at_once.problem, at_once.fell) == (each.problem, each.fell)


def test_plain_histograms_are_counted_at_once() -> None:
    series = [*buckets({1: (1, 2, 3), 2: (2, 4, 6)}), *buckets({1: (0, 0, 1), 2: (1, 1, 2)}, pod="b")]
    book = Book(Kind.HISTOGRAM, BUCKETS, State(), series)
    rows = book._plain_beats([1, 2])
    assert rows is not None and seen(rows) == [(1, 2, 4), (2, 3, 4)]


@given(st.sampled_from([RATE, ("good", "total"), MEAN]), st.tuples(*[STEPS] * 4), GONE, st.booleans())
def test_many_beats_of_rates_and_means_are_what_one_after_the_other_is(
    parts: tuple[str, str], stories: tuple[list[tuple[float, ...]], ...], gone: set[int], odd: bool
) -> None:
    arms = [(CANDIDATE, "a"), (CANDIDATE, "b"), (BASELINE, "a"), (BASELINE, "b")]
    series = [
        one(part, dict(h[index].points), arm=arm, instance=instance)
        for (arm, instance), steps in zip(arms, stories, strict=True)
        for h in [histogram(arm, instance, steps, gone if odd else set())]
        for index, part in ((0, parts[0]), (2, parts[1]))
    ]
    kind, times = Kind.MEAN if parts == MEAN else Kind.RATE, list(range(1, 1 + min(map(len, stories))))
    at_once, each = (Book(kind, parts, State(), series) for _ in range(2))
    for book in (at_once, each):
        assert book.base(0, [s._replace(points={0: 4.0}) for s in series])
    assert repr(at_once.beats(times)) == repr([each.beat(t) for t in times])
    assert json.dumps(at_once.state.dump()) == json.dumps(each.state.dump())
    assert (at_once.problem, at_once.fell) == (each.problem, each.fell)


def test_plain_rates_and_means_are_counted_at_once() -> None:
    errors = [one("bad", {1: 0.0, 2: 1.0}), one("total", {1: 3.0, 2: 9.0})]
    rows = Book(Kind.RATE, RATE, State(), errors)._plain_beats([1, 2])
    assert rows is not None and seen(rows) == [(0, 3), (1, 6)]
    costs = [one("amount", {1: 0.1, 2: 0.3}), one("amount", {1: 0.2, 2: 0.2}, pod="b"), one("count", {1: 1.0, 2: 2.0})]
    rows = Book(Kind.MEAN, MEAN, State(), costs)._plain_beats([1, 2])
    assert rows is not None and seen(rows) == [(math.fsum([0.1, 0.2]), 1), (0.3 - 0.1, 1)]
