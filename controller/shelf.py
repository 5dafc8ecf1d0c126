"""
What one process keeps at hand between two looks, so that a guard need not read it from the log every few seconds: cases, and where rollouts stand.

It stands beside `controller.gather` and `controller.standing`, which fill it. Its one rule: losing it costs time and nothing else.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.core.rollout import Rollout
from controller.core.traffic import Reading

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
class Shelved:
    """
    A case as far as looks came that wrote no row.

    Args:
        recorded: What the log had recorded when it was shelved.
        before: The case that it goes on from: the recorded one, or "" where that could not be read.
        case: It.
        readings: Everything it took since the recorded one.
    """

    recorded: str
    before: str
    case: "Case"
    readings: tuple[Reading, ...]


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
