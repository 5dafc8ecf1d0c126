"""What the command lines of this package share: data on stdout, everything else on stderr."""

import sys


def emit(text: str) -> None:
    """One line of data."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """One line for the person who runs it."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
