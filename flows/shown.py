"""
The line between what decides and what only shows.

Its one rule: trouble on the showing side is logged and goes no further; the decision it was about has been committed already.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger


@contextmanager
def only_logged(what: str) -> Iterator[None]:
    """
    Args:
        what: The sentence that the log begins with.
    """
    try:
        yield
    except Exception as exc:  # an answer that is none, a closed client, a bug of ours: showing is showing
        get_run_logger().warning("%s: %s: %s", what, type(exc).__name__, exc)
