"""
The line between what decides and what only shows.

Its one rule: trouble on the showing side is logged and goes no further; the decision it was about has been committed already.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect import get_run_logger
from prefect.exceptions import PrefectException

from controller.core.rollout import LogError
from controller.ports import PortError


@contextmanager
def only_logged(what: str) -> Iterator[None]:
    """
    Args:
        what: The sentence that the log begins with.
    """
    try:
        yield
    except (PrefectException, httpx.HTTPError, PortError, LogError) as exc:
        get_run_logger().warning("%s: %s: %s", what, type(exc).__name__, exc)
