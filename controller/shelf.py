"""
What one process keeps at hand between two looks, so that a guard need not read it from the log every few seconds: cases, and where rollouts stand.

It stands beside `controller.gather` and `controller.standing`, which fill it. Its one rule: losing it costs time and nothing else.
"""

import pickle
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from controller.core.rollout import Rollout
from controller.core.traffic import Beat, Reading

if TYPE_CHECKING:  # the engine brings numpy, which commands that judge nothing do without
    from controller.core.evidence.case import Case

SHELVED = 2_048
"""Cases and rollouts kept at hand: one of each for each rollout that is looked at. A process with more rollouts reads the oldest again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """
    The last row of a rollout that somebody has read.

    Args:
        seq: Its number; 0 for none.
        token: What the log said of it, to be given back; "" for none.
    """

    seq: int = 0
    token: str = ""


class StandingShelf:
    """Where rollouts stood, and up to which row; safe to share between threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Rollout, Mark]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, ids: Iterable[str]) -> dict[str, tuple[Rollout, Mark]]:
        with self._lock:
            return {i: self._known[i] for i in ids if i in self._known}

    def put(self, found: Mapping[str, tuple[Rollout, Mark]]) -> None:
        with self._lock:
            for rollout_id, known in found.items():
                self._known[rollout_id] = known
                self._known.move_to_end(rollout_id)
            while len(self._known) > SHELVED:
                self._known.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """
    A reading with its numbers packed.

    Args:
        head: It, without beats and history.
        history: Packed; b"" for none.
        beats: When, and both arms' rows packed.
        ends: When the last beat was, or what the reading began with.
    """

    head: Reading
    history: bytes
    beats: tuple[tuple[datetime, bytes], ...]
    ends: datetime

    @classmethod
    def of(cls, reading: Reading) -> "_Piece":
        t = reading.traffic
        head = replace(reading, traffic=replace(t, beats=(), history=()))
        ends = t.beats[-1].at if t.beats else t.since
        return cls(head=head, history=_pack(t.history) if t.history else b"", beats=_packed(t.beats), ends=ends)

    def whole(self) -> Reading:
        beats = []
        for at, packed in self.beats:
            candidate, baseline = _unpack(packed)
            beats.append(Beat(at=at, candidate=candidate, baseline=baseline))
        history = _unpack(self.history) if self.history else ()
        return replace(self.head, traffic=replace(self.head.traffic, beats=tuple(beats), history=history))


@dataclass(frozen=True, slots=True)
class Taken:
    """Readings since the recorded case. A guard holds those of a quarter of an hour of every rollout, so their numbers are packed."""

    _pieces: tuple[_Piece, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def plus(self, new: Reading) -> "Taken":
        """
        These and one more; in one piece with the last where nothing is lost by it.

        A guard reads a few beats at a time, and what a row tells should not depend on how often it looked.
        """
        if not self._pieces:
            return Taken((_Piece.of(new),))
        last, t = self._pieces[-1], new.traffic
        old = last.head.traffic
        same = (last.head.phase, last.head.since, dict(old.edges), old.step) == (new.phase, new.since, dict(t.edges), t.step)
        if not same or t.history or last.ends != t.since:
            return Taken((*self._pieces, _Piece.of(new)))
        head = replace(last.head, traffic=replace(old, problems=t.problems, absent=t.absent))
        ends = t.beats[-1].at if t.beats else last.ends
        whole = replace(last, head=head, beats=(*last.beats, *_packed(t.beats)), ends=ends)
        return Taken((*self._pieces[:-1], whole))

    def readings(self) -> tuple[Reading, ...]:
        """As they were taken, number for number."""
        return tuple(piece.whole() for piece in self._pieces)


def _packed(beats: Iterable[Beat]) -> tuple[tuple[datetime, bytes], ...]:
    return tuple((beat.at, _pack((beat.candidate, beat.baseline))) for beat in beats)


def _pack(rows: tuple[tuple[float, ...], ...]) -> bytes:
    """It never leaves the process."""
    return zlib.compress(pickle.dumps(rows, pickle.HIGHEST_PROTOCOL), 1)


def _unpack(packed: bytes) -> Any:
    return pickle.loads(zlib.decompress(packed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelved:
    """
    A case as far as looks came that wrote no row.

    Args:
        recorded: What the log had recorded when it was shelved.
        before: The case that it goes on from: the recorded one, or "" where that could not be read.
        case: It.
        taken: Everything it took since the recorded one.
    """

    recorded: str
    before: str
    case: "Case"
    taken: Taken = Taken()


class CaseShelf:
    """Cases between two looks of one process; safe to share between threads. A case is with one look at a time."""

    def __init__(self) -> None:
        self._cases: OrderedDict[str, Shelved] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, rollout_id: str, recorded: str) -> Shelved | None:
        """The case that goes on from what is recorded, if it is here; it is not here any more until it is put back."""
        with self._lock:
            found = self._cases.pop(rollout_id, None)
        return found if found is not None and found.recorded == recorded else None

    def holds(self, rollout_id: str, recorded: str) -> bool:
        """Whether `take` would find it."""
        with self._lock:
            found = self._cases.get(rollout_id)
        return found is not None and found.recorded == recorded

    def put(self, rollout_id: str, shelved: Shelved) -> None:
        with self._lock:
            self._cases[rollout_id] = shelved
            self._cases.move_to_end(rollout_id)
            while len(self._cases) > SHELVED:
                self._cases.popitem(last=False)
