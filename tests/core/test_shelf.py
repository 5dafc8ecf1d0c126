"""What a process keeps between looks: readings come back as they were taken, however they were read, and take little room."""

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from controller.codec import readings_to_text
from controller.core.ledger import Levels, State
from controller.core.traffic import Beat, Reading, Traffic
from controller.shelf import Taken

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STEP = timedelta(seconds=15)
EDGES = {"latency": (0.1, 0.25, 1.0)}


def beat(n: int, width: int = 4) -> Beat:
    """One with whole numbers, an integer, and fractions that have no short form."""
    row = (0.1 + 0.2 * n, 3, float(n), 1e-17) + (7.0,) * (width - 4)
    return Beat(at=T0 + n * STEP, candidate=row, baseline=tuple(reversed(row)))


def reading(first: int, last: int, **more: object) -> Reading:
    """The beats after `first`, up to `last`."""
    beats = tuple(beat(n) for n in range(first + 1, last + 1))
    traffic = Traffic(since=T0 + first * STEP, step=STEP, edges=EDGES, beats=beats)
    return Reading(phase=0, since=T0, traffic=replace(traffic, **more))  # type: ignore[arg-type]


def taken(*readings: Reading) -> Taken:
    found = Taken()
    for one in readings:
        found = found.plus(one)
    return found


def test_what_was_taken_comes_back_number_for_number() -> None:
    history = ((1.0, 2.5), (0.1, 3))
    first = reading(0, 3, history=history, problems={"latency": "no answer"}, absent={"latency": ("candidate",)})
    back = taken(first).readings()
    assert back == (first,)
    assert readings_to_text(back) == readings_to_text((first,))
    assert [type(v) for v in back[0].traffic.beats[0].candidate] == [float, int, float, float]
    assert not Taken() and taken(first)


def test_how_often_was_looked_makes_no_difference() -> None:
    whole = reading(0, 6)
    for parts in ((reading(0, 6),), (reading(0, 2), reading(2, 6)), tuple(reading(n, n + 1) for n in range(6))):
        assert taken(*parts).readings() == (whole,)
    # Looks that found no new beat say what is the matter now.
    now = {"latency": "no answer"}
    assert taken(whole, reading(6, 6, problems=now)).readings() == (replace(whole, traffic=replace(whole.traffic, problems=now)),)


def test_what_does_not_follow_stays_a_piece_of_its_own() -> None:
    first = reading(0, 2)
    for other in (
        reading(3, 4),  # a gap
        replace(reading(2, 4), phase=1),
        replace(reading(2, 4), since=T0 + STEP),
        reading(2, 4, edges={}),
        reading(2, 4, step=2 * STEP),
        reading(2, 4, history=((1.0,),)),
    ):
        assert taken(first, other).readings() == (first, other)


def test_a_quarter_of_an_hour_of_beats_takes_little_room() -> None:
    beats = [beat(n, width=300) for n in range(1, 61)]
    traffic = Traffic(since=T0, step=STEP, edges={}, beats=tuple(beats))
    packed = taken(Reading(phase=0, since=T0, traffic=traffic))
    room = sum(sys.getsizeof(data) for _, data in packed._pieces[0].beats)
    plain = sum(sys.getsizeof(b.candidate) + sys.getsizeof(b.baseline) for b in beats)
    assert room < plain / 8


def test_levels_are_what_they_were_made_of() -> None:
    values = {"0.1": 1.0, "0.25": 1e15 + 0.3, "inf": 2.0**53}
    levels = Levels(values)
    assert dict(levels) == values == levels
    assert (levels.get("0.25"), levels.get("5"), levels.get("5", 0.0)) == (values["0.25"], None, 0.0)
    state = State(last={"a": levels, "b": Levels({"": 3.0})}, edges=(0.1, 0.25))
    assert State.load(state.dump()) == state
    assert sys.getsizeof(levels) + sys.getsizeof(levels._values) < sys.getsizeof(values)
