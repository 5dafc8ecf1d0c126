"""
A plan on the calendar: when each phase begins if all goes well, and which freezes stand in the way.

It stands behind `outlook`, which says how long phases last. Its one rule: people's time is not counted, freezes are; a phase begins at the
first moment at which its predecessor may be left and nothing is frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.core.freeze import Window, frozen_until, windows
from controller.core.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    One phase, or (`phase` is "") the promotion after the last.

    Args:
        at: When it begins; None where a phase before it is never left.
        frozen: Names of the calendars that it waits for; "" for none.
        waited: How long it waits for them.
        approval: Who is asked before it begins; "" for nobody.
    """

    phase: str
    at: datetime | None
    frozen: str
    waited: timedelta
    approval: str


def calendar(plan: Plan, lasts: Sequence[timedelta | None], begin: datetime) -> tuple[Step, ...]:
    """
    Args:
        plan: The plan.
        lasts: How long each phase lasts, to the gate check that may leave it; None for one that is never left.
        begin: When the rollout is started; aware.

    Returns:
        Its phases in order, then the promotion, which no freeze holds: it raises nothing.
    """
    steps: list[Step] = []
    ready: datetime | None = begin
    for phase, length in zip(plan.phases, lasts, strict=True):
        frozen = None if ready is None else frozen_until(plan.freezes, ready)
        at = ready if frozen is None else frozen[1]
        asked = "" if phase.approval is None else f"{phase.approval.count} of {' or '.join(phase.approval.groups)}"
        steps.append(
            Step(
                phase=phase.name,
                at=at,
                frozen="" if frozen is None else frozen[0],
                waited=timedelta(0) if at is None or ready is None else at - ready,
                approval=asked,
            )
        )
        ready = None if at is None or length is None else at + length
    return (*steps, Step(phase="", at=ready, frozen="", waited=timedelta(0), approval=""))


def ahead(plan: Plan, begin: datetime, steps: Sequence[Step]) -> tuple[Window, ...]:
    """The freezes from the beginning to the promotion (where that is never reached: two weeks)."""
    end = steps[-1].at or begin + timedelta(days=14)
    return windows(plan.freezes, begin, end)
