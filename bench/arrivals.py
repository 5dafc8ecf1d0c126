"""
When requests arrive and how large they are: a trace file, or a seeded Poisson process.

The trace format is that of the Azure LLM inference trace 2023 (Azure Public Dataset): a CSV with the columns TIMESTAMP, ContextTokens
and GeneratedTokens, sorted by time. Its one rule: a trace is read whole and checked before the first request goes out.
"""

import csv
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from math import exp
from pathlib import Path
from random import Random

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A trace that cannot be replayed; the message is `file:line: what`."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """
    One request to be sent.

    Args:
        at_s: Seconds after the start of the run.
        prompt_tokens: Size of the prompt.
        output_tokens: Size of the answer to ask for.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int


def read_trace(path: Path) -> tuple[Arrival, ...]:
    """
    Read a trace; times count from its first row.

    Raises:
        TraceError: unreadable, a missing column, a wrong time or number, times that run backwards, or no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _rows(path, file.read().splitlines())
    except OSError as exc:
        raise TraceError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise TraceError(f"{path}: not a text file: {exc.reason} at byte {exc.start}") from exc


def trace_arrivals(trace: Sequence[Arrival], *, speed: float) -> Iterator[Arrival]:
    """
    The trace for ever, `speed` times as fast as recorded. Each round starts one mean gap after the last arrival of the one before.
    """
    last_s = trace[-1].at_s
    round_s = last_s + (last_s / (len(trace) - 1) if len(trace) > 1 and last_s > 0 else 1.0)
    start_s = 0.0
    while True:
        for row in trace:
            yield Arrival((start_s + row.at_s) / speed, row.prompt_tokens, row.output_tokens)
        start_s += round_s


def trace_rate(trace: Sequence[Arrival]) -> float:
    """Requests a second of the trace as recorded."""
    return len(trace) / trace[-1].at_s if trace[-1].at_s > 0 else 1.0


def poisson_arrivals(rate: float, *, seed: int) -> Iterator[Arrival]:
    """Arrivals with exponential gaps for ever; sizes are log-normal with the medians of the Azure conversation trace."""
    rng = Random(f"arrivals:{seed}")
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield Arrival(at_s, *draw_sizes(rng))


def draw_sizes(rng: Random) -> tuple[int, int]:
    """Prompt and answer tokens of one request: medians 1020 and 129, as in the Azure conversation trace."""
    prompt = round(1020 * exp(rng.gauss(0, 0.9)))
    output = round(129 * exp(rng.gauss(0, 0.8)))
    return min(max(prompt, 3), 14_000), min(max(output, 1), 1_000)


class Users:
    """
    Draws the user of each request.

    Args:
        count: How many there are.
        zipf: Exponent of their activity: user k is drawn in proportion to k ** -zipf; 0 draws all alike.
        seed: Of the draws.
    """

    def __init__(self, count: int, *, zipf: float = 1.0, seed: int = 0) -> None:
        self._rng = Random(f"users:{seed}")
        self._edges = list(accumulate((k + 1) ** -zipf for k in range(count)))

    def draw(self) -> str:
        return f"user-{bisect(self._edges, self._rng.random() * self._edges[-1]):06d}"


def _rows(path: Path, lines: list[str]) -> tuple[Arrival, ...]:
    if not lines:
        raise TraceError(f"{path}:1: empty file; the first line names the columns {','.join(COLUMNS)}")
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader)]
    if missing := [name for name in COLUMNS if name not in header]:
        raise TraceError(f"{path}:1: no column {missing[0]}; found {','.join(header)}")
    where = [header.index(name) for name in COLUMNS]
    arrivals: list[Arrival] = []
    first: datetime | None = None
    for cells in reader:
        if not any(cells):
            continue
        line = reader.line_num
        if len(cells) <= max(where):
            raise TraceError(f"{path}:{line}: {len(cells)} columns, expected {len(header)}")
        at = _time(path, line, cells[where[0]])
        first = first or at
        try:
            at_s = (at - first).total_seconds()
        except TypeError as exc:
            raise TraceError(f"{path}:{line}: TIMESTAMP: some times have a zone and some have none: {cells[where[0]]!r}") from exc
        if arrivals and at_s < arrivals[-1].at_s:
            raise TraceError(f"{path}:{line}: TIMESTAMP: {cells[where[0]]!r} lies before the row above; sort the trace by time")
        arrivals.append(Arrival(at_s, *(_tokens(path, line, COLUMNS[i], cells[where[i]]) for i in (1, 2))))
    if not arrivals:
        raise TraceError(f"{path}:2: no rows after the header")
    return tuple(arrivals)


def _time(path: Path, line: int, text: str) -> datetime:
    # The trace has seven decimals, one more than datetime can hold.
    head, dot, tail = text.strip().partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    try:
        return datetime.fromisoformat(f"{head}{dot}{tail[: min(digits, 6)]}{tail[digits:]}")
    except ValueError as exc:
        raise TraceError(f"{path}:{line}: TIMESTAMP: {text!r} is not a time such as 2023-11-16 18:15:46.6805900") from exc


def _tokens(path: Path, line: int, column: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise TraceError(f"{path}:{line}: {column}: {text!r} is not a whole number of tokens")
    return int(text)
