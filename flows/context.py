"""
The controller that a flow works with.

Flows and their tasks ask here and nowhere else. Its one rule: whoever opened it closes it; who asks again inside gets the same one,
so that the tasks of a run share its connections.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from controller.settings import load
from controller.wiring import Controller, open_controller

_open: ContextVar[Controller | None] = ContextVar("penstock_controller", default=None)


@contextmanager
def controller() -> Iterator[Controller]:
    """
    The controller in use, or a new one as the environment says.

    Raises:
        SettingsError, Unavailable: as `open_controller`.
    """
    if (current := _open.get()) is not None:
        yield current
        return
    with open_controller(load()) as opened, using(opened):
        yield opened


@contextmanager
def using(given: Controller) -> Iterator[Controller]:
    """Everything inside uses this controller: a long-lived process's own, or a test's."""
    token = _open.set(given)
    try:
        yield given
    finally:
        _open.reset(token)
