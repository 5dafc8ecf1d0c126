"""
Where log lines go: to standard output, as far as it takes them.

It stands beside every part that logs. Its one rule: a log stops nobody, neither by failing (a full disk, a reader that is gone) nor by what
it writes: structlog's own tracebacks show the values of all variables, which takes minutes where a rollout's evidence is among them, and
may hold what no log should.
"""

import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog


class Unfailing(structlog.PrintLogger):
    """Prints; a line that cannot be printed is lost."""

    def msg(self, message: str) -> None:
        # ValueError: the stream is closed.
        with suppress(OSError, ValueError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def configure(stream: TextIO | None = None) -> None:
    """
    Once for each process; who has configured the log otherwise keeps it so.

    Args:
        stream: Where to; None for standard output as it is when a line is written.
    """
    if structlog.is_configured():
        return

    def make(*_: Any) -> Unfailing:
        return Unfailing(stream)

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.dev.set_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=(stream or sys.stdout).isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=make,
    )
