"""
``python -m flows.serve``: register the deployments and run what is scheduled, each run in a process of its own.

Its one rule: stopping it pauses no schedule. A redeploy must not leave gate checks switched off.
"""

import argparse
from collections.abc import Sequence
from datetime import timedelta

from prefect import serve

from flows.deploy import runner_deployments
from specfile import parse_duration


def every(text: str) -> timedelta:
    """A duration for argparse."""
    try:
        span = parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    if span < timedelta(seconds=1):
        raise argparse.ArgumentTypeError(f"{text!r} is shorter than a second")
    return span


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.serve", description="Register the deployments and run what is scheduled."
    )
    parser.add_argument(
        "--gate-every", type=every, metavar="15m", help="check gates so often; default is each quarter of an hour"
    )
    options = parser.parse_args(argv)
    serve(*runner_deployments(options.gate_every), pause_on_shutdown=False)


if __name__ == "__main__":
    main()
