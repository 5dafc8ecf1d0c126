"""
What a fault is, and the list of them.

A fault is a function with a name: it gets a world and a source of randomness, breaks something, lets the controllers go on, and returns what
came of it. Its one rule: all its choices come from that randomness, so that a seed and a number tell the whole trial again.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.chaos.world import World


RECOVER_S_MAX = 60.0
"""Beside five other trials on two cores; what is measured alone has a limit of its own."""


class Skipped(Exception):
    """This machine cannot have this fault; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """
    Args:
        invariant: Its name, as in `bench.chaos.invariants`.
        text: What was found.
    """

    invariant: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """
    What came of one trial.

    Args:
        violations: What did not hold.
        recover_s: Seconds from the restart of whoever died until flag, log and people agree again; None where nothing had to.
        skipped: Why it could not be had; "" if it could.
        passed: Crash points that its controllers reached, where they were counted or died.
    """

    violations: tuple[Violation, ...] = ()
    recover_s: float | None = None
    skipped: str = ""
    passed: frozenset[str] = frozenset()


Run = Callable[["World", Random], Trial]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    Args:
        name: Unique; ``--only`` takes it or its group.
        group: ``crash``, ``many``, ``postgres``, ``migration``, ``prometheus``, ``flags``, ``slack``, ``prefect`` or ``clock``.
        quick, full: Trials of each kind of run; 0 leaves it out.
        run: One trial.
        own_postgres: Each trial has a server of its own, because it is what breaks.
        alone: Nothing runs beside it (it takes the machine, or its times are what is measured).
        recover_s_max: Longest recovery that is no violation of ``recovers``.
    """

    name: str
    group: str
    quick: int
    full: int
    run: Run = field(repr=False)
    own_postgres: bool = False
    alone: bool = False
    recover_s_max: float = RECOVER_S_MAX


_FAULTS: dict[str, Fault] = {}


def known_faults() -> Mapping[str, Fault]:
    """By name: of every module of this package that is called ``faults_...``."""
    package = import_module("bench.chaos")
    for module in pkgutil.iter_modules(package.__path__, "bench.chaos."):
        if ".faults_" in module.name:
            import_module(module.name)
    return _FAULTS


def fault(
    name: str,
    *,
    group: str,
    quick: int,
    full: int,
    own_postgres: bool = False,
    alone: bool = False,
    recover_s_max: float = RECOVER_S_MAX,
) -> Callable[[Run], Run]:
    """Put a function on the list; as `Fault`."""

    def register(run: Run) -> Run:
        if name in _FAULTS:
            raise ValueError(f"two faults are called {name!r}")
        _FAULTS[name] = Fault(
            name=name,
            group=group,
            quick=quick,
            full=full,
            run=run,
            own_postgres=own_postgres,
            alone=alone,
            recover_s_max=recover_s_max,
        )
        return run

    return register
