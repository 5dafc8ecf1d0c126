"""
Cases at hand between two looks of one process, so that a guard need not read them from the log every few seconds.

It stands beside `controller.gather`, which fills it. Its one rule: losing it costs time and nothing else.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.core.traffic import Reading

if TYPE_CHECKING:  # the engine brings numpy, which commands that judge nothing do without
    from controller.core.evidence.case import Case

SHELVED = 64
"""Cases kept at hand: one for each rollout that is looked at."""


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
            while len(self._cases) > SHELVED:
                self._cases.popitem(last=False)
