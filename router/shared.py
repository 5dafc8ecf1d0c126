"""
Numbers that several workers of one router count together: what is used of limits and budgets, and what breakers have seen.

    Alone     of a process without others: plain lists, no locks
    Shared    in a file that all workers map; each change is made under a lock that the kernel gives back when its holder dies

They stand under `limits`, `breaker` and `budget`, which are the same for both. Its one rule: whoever asks for the same cells in the same order
gets the same ones, so workers with one configuration agree without a word.
"""

import fcntl
import mmap
import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

CELL = 8
"""Bytes of a number."""

SIZE = 256 * 1024 * 1024
"""Of the file. What is never written takes no memory; a breaker of two minutes takes 120 kB."""

if TYPE_CHECKING:
    Cells = list[float] | memoryview[float]  # numbers that begin at 0


class Store(Protocol):
    """
    Attributes:
        lock: Held by whoever changes cells, and by whoever reads several that must fit each other. Not to be entered twice.
        worker: Which of the workers this is, from 0.
        workers: How many there are.
    """

    lock: AbstractContextManager[object]
    worker: int
    workers: int

    def cells(self, count: int) -> "Cells":
        """The next so many."""

    def counts(self, count: int) -> "memoryview[int] | None":
        """The next so many whole numbers below 2^32; None where nobody else counts."""


class Alone:
    """`Store` of the only process."""

    def __init__(self) -> None:
        self.lock: AbstractContextManager[object] = nullcontext()
        self.worker, self.workers = 0, 1

    def cells(self, count: int) -> "Cells":
        return [0.0] * count

    def counts(self, count: int) -> "memoryview[int] | None":
        return None


class Shared:
    """
    `Store` of one worker among several.

    Args:
        path: The file; made by `make`.
        worker, workers: As in `Store`.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, worker: int, workers: int) -> None:
        self.worker, self.workers = worker, workers
        self._file = os.open(path, os.O_RDWR)
        self._memory = memoryview(mmap.mmap(self._file, SIZE))
        self._next = 0
        self.lock: AbstractContextManager[object] = _Lock(self._file)

    @staticmethod
    def make(path: str) -> None:
        """Raises OSError."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(file, SIZE)
        finally:
            os.close(file)

    def cells(self, count: int) -> "Cells":
        return self._take(count * CELL).cast("d")

    def counts(self, count: int) -> "memoryview[int] | None":
        return self._take(-(-count * 4 // CELL) * CELL)[: count * 4].cast("I")

    def _take(self, size: int) -> memoryview:
        begin, self._next = self._next, self._next + size
        if self._next > SIZE:
            raise ValueError(f"the breakers' windows and limits of this configuration need more than {SIZE // 2**20} MiB")
        return self._memory[begin : self._next]


class _Lock:
    """Between processes, and not between threads of one: all who change anything here run in the event loop's."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
