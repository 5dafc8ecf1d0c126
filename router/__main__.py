"""``python -m router``: the router as a process of its own, which `penstock router` becomes."""

import argparse
import sys
from pathlib import Path

WORKERS_MAX = 64


def main(argv: list[str] | None = None) -> int:
    """
    Returns:
        Exit code: what `router.server.run` returns; wrong arguments end the process with 2 before that.
    """
    parser = argparse.ArgumentParser(prog="penstock router", description="OpenAI-compatible model router that obeys flags.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the router.yaml")
    parser.add_argument("--listen", type=_address, metavar="HOST:PORT", help="in place of the file's")
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes that serve (default 1)")
    parser.add_argument("--place", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    # After the arguments: nearly all the start-up time is this import, and --help need not wait for it.
    from router.server import run
    from router.workers import Place

    place = None if args.place is None else Place.read(args.place)
    return run(args.config, listen=args.listen, workers=args.workers, place=place)


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= WORKERS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, 1 to {WORKERS_MAX}")
    return int(text)


def _address(text: str) -> str:
    from router.config import split_listen

    try:
        split_listen(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


if __name__ == "__main__":
    sys.exit(main())
