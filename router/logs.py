"""
One JSON line for each event on stderr: a fixed event name, identifiers, numbers.

Its one rule: never a prompt, a completion, a key or a header's value.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from router.exchange import CURRENT

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def get_logger() -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.get_logger("router")
    return logger


OURS = frozenset(
    {"event", "level", "timestamp", "source", "collector", "route", "flag", "arm", "model", "outcome", "decision_id", "env"}
)
"""Fields whose values are names of the configuration: nothing that somebody else has written."""


def configure(level: str = "info", redacted: Callable[[Any], Any] | None = None) -> None:
    """
    For the process that serves; as a library the router logs by whatever structlog configuration its host has.

    Args:
        redacted: What the values of all fields but `OURS` pass through.
    """

    def redact(_logger: Any, _method: str, fields: EventDict) -> EventDict:
        if redacted is None:
            return fields
        return {name: value if name in OURS else redacted(value) for name, value in fields.items()}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            redact,
            _traced,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _traced(_logger: Any, _method: str, fields: EventDict) -> EventDict:
    """A line that is written for a request leads to its trace."""
    exchange = CURRENT.get()
    if exchange is not None and exchange.trace is not None and exchange.trace.ids is not None:
        fields.update(exchange.trace.ids)
    return fields


def _dumps(value: Any, **_kwargs: Any) -> str:
    return orjson.dumps(value, default=str).decode()
