"""
What the guard last knew, for the time in which the audit log cannot be read.

It stands between the guard's loop and `tick.without_log`. Its one rule: it only lowers. What it remembers was read from the log in this
process; whatever the log says once it can be read again replaces it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import structlog

from controller.core.rollout import Rollout
from controller.ports import FlagUnavailable, Ports
from controller.shelf import CaseShelf
from controller.sweep import Swept
from controller.tick import without_log

log = structlog.get_logger("penstock.guard")


@dataclass(slots=True)
class Known:
    """The active rollouts as this process last saw them; used by one thread."""

    rollouts: dict[str, Rollout] = field(default_factory=dict)
    drifted: set[str] = field(default_factory=set)
    shelf: CaseShelf = field(default_factory=CaseShelf)

    def learn(self, swept: Swept) -> None:
        """Remember what a look found."""
        tick = swept.tick
        if tick is None:
            return
        self.drifted.discard(swept.rollout_id)
        if tick.rollout.ended:
            self.rollouts.pop(swept.rollout_id, None)
            return
        self.rollouts[swept.rollout_id] = tick.rollout
        if tick.drifted:
            self.drifted.add(swept.rollout_id)

    def forget_others(self, active: Collection[str]) -> None:
        """Whatever the log does not call active has ended."""
        for rollout_id in self.rollouts.keys() - set(active):
            del self.rollouts[rollout_id]
            self.drifted.discard(rollout_id)

    def looks(self, ids: Sequence[str], ports: Ports) -> Iterator[Swept]:
        """Looks without the log at those that are known; ends at once when the flag store is away too."""
        for rollout_id in ids:
            rollout = self.rollouts.get(rollout_id)
            if rollout is None:
                continue
            try:
                yield Swept(rollout_id=rollout_id, tick=without_log(rollout, ports, self.shelf))
            except FlagUnavailable as exc:
                yield Swept(rollout_id=rollout_id, error=f"{type(exc).__name__}: {exc}")
                return
            except Exception as exc:  # a bug that one rollout meets must not cost the others their look
                log.exception("look_broke", rollout_id=rollout_id)
                yield Swept(rollout_id=rollout_id, error=f"{type(exc).__name__}: {exc}")
