"""
Makes a small arrival trace in the Azure CSV format, so that the demo needs nobody's data.

    python -m bench.sample_trace trace.csv --rows 600 --rate 6 --seed 1

Arrivals are a Poisson process whose rate swings slowly around its mean, sizes are log-normal. Its one rule: same arguments, same file.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from math import pi, sin
from pathlib import Path
from random import Random

from bench.arrivals import COLUMNS, Arrival, draw_sizes
from bench.cli import say

_SWING = 0.5  # the rate swings between half and one and a half times its mean
_SWING_PERIOD_S = 60.0
_START = datetime(2024, 1, 1, 9, 0, 0)  # noqa: DTZ001 - times of the Azure format carry no zone


def make_trace(*, rows: int = 600, rate: float = 6.0, seed: int = 1) -> tuple[Arrival, ...]:
    """A trace of `rows` arrivals at `rate` requests a second on average; the first is at 0."""
    return tuple(_arrivals(rows, rate, Random(f"sample:{seed}")))


def write_trace(path: Path, trace: Sequence[Arrival]) -> None:
    """Write a trace as CSV. Raises OSError."""
    lines = [",".join(COLUMNS)]
    for row in trace:
        at = _START + timedelta(seconds=row.at_s)
        # Seven decimals, as the original has them.
        lines.append(f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond:06d}0,{row.prompt_tokens},{row.output_tokens}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _arrivals(rows: int, rate: float, rng: Random) -> Iterator[Arrival]:
    at_s = 0.0
    for _ in range(rows):
        yield Arrival(at_s, *draw_sizes(rng))
        now = rate * (1 + _SWING * sin(2 * pi * at_s / _SWING_PERIOD_S))
        at_s += rng.expovariate(now)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status (2: wrong usage, 1: the file cannot be written)."""
    parser = argparse.ArgumentParser(prog="python -m bench.sample_trace", description="Make a sample arrival trace.")
    parser.add_argument("path", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=6.0, help="mean requests a second (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.rows < 1 or not args.rate > 0:
        parser.error("--rows is at least 1 and --rate above 0")
    try:
        write_trace(args.path, make_trace(rows=args.rows, rate=args.rate, seed=args.seed))
    except OSError as exc:
        say(f"bench.sample_trace: {args.path}: {exc.strerror}")
        return 1
    say(f"{args.path}: {args.rows} arrivals")
    return 0


if __name__ == "__main__":
    sys.exit(main())
