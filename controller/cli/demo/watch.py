"""
One rollout of the demo under observation: what its audit log says, and the two things that the demo itself does about it.

It reads the log as `penstock get -w` does, spoils the candidate when its share reaches the scripted point, and gives the approval that the
plan asks for. Its one rule: it never moves traffic; only the gate check and the guard do.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller import commands
from controller.cli.demo.scenarios import APPROVER, GROUP, Scenario
from controller.core.decision import Advance, Decision
from controller.core.gates import GateResult, Verdict
from controller.core.rollout import Applied, AwaitingApproval, Decided, Entry, Promoted, Rollout, replay
from controller.ports import PortError, Ports, UnknownRollout

Say = Callable[[str], None]
Spoil = Callable[[Scenario], None]

_WORST = {Verdict.BREACH: 0, Verdict.ERROR: 1, Verdict.INSUFFICIENT: 2, Verdict.PASS: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """The time spent at one phase's weight; `until` is None while it lasts."""

    name: str
    since: datetime
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A decision with its place in the log."""

    seq: int
    at: datetime
    decided: Decided

    @property
    def decision(self) -> Decision:
        return self.decided.decision


class Watch:
    """
    Args:
        scenario: What should happen.
        rollout_id: Of its rollout, which may not be open yet.
        ports: To read, and to approve.
        spoil: Makes the candidate as bad as the scenario says.
        say: Takes one line of progress.
    """

    def __init__(self, scenario: Scenario, rollout_id: str, ports: Ports, *, spoil: Spoil, say: Say) -> None:
        self.scenario = scenario
        self.rollout_id = rollout_id
        self.entries: Sequence[Entry] = ()
        self.rollout: Rollout | None = None
        self.outcome: str | None = None
        self._ended_at: float | None = None
        self.spoiled_at: float | None = None
        self._ports = ports
        self._spoil = spoil
        self._say = say
        self._begun = time.monotonic()

    def look(self) -> None:
        """Read the log, act on it, say what is new. A port that is away for a moment is asked again at the next look."""
        try:
            entries = self._ports.audit.entries(self.rollout_id)
            if len(entries) > len(self.entries):
                before, self.entries = len(self.entries), entries
                self.rollout = replay(entries)
                self._tell(entries[before:])
            self._act()
        except (UnknownRollout, commands.CommandRefused):
            pass  # not open yet, or it moved on in this moment
        except PortError as exc:
            self._say(f"{self.scenario.name}: {exc}")
        self._settle()

    def give_up(self) -> None:
        """The demo's time is over."""
        if self.outcome is None:
            self.outcome = "held"
            self._ended_at = time.monotonic()
            self._say(f"{self.scenario.name}: held")

    @property
    def ended_for_s(self) -> float:
        """Since its outcome was known; 0 before."""
        return 0.0 if self._ended_at is None else time.monotonic() - self._ended_at

    @property
    def said(self) -> tuple[Said, ...]:
        return tuple(Said(seq=e.seq, at=e.at, decided=e.event) for e in self.entries if isinstance(e.event, Decided))

    @property
    def stays(self) -> tuple[Stay, ...]:
        """The phases it has been in; each confirmed change of the flag ends one."""
        plan = None if self.rollout is None else self.rollout.plan
        decisions = {s.decided.decision_id: s.decision for s in self.said}
        found: list[Stay] = []
        for entry in self.entries:
            if not isinstance(entry.event, Applied) or plan is None:
                continue
            if found and found[-1].until is None:
                found[-1] = Stay(name=found[-1].name, since=found[-1].since, until=entry.at)
            decision = decisions.get(entry.event.decision_id)
            if isinstance(decision, Advance):
                found.append(Stay(name=plan.phases[decision.phase].name, since=entry.at))
        return tuple(found)

    @property
    def worst(self) -> GateResult | None:
        """The verdict that most stands in the way, as last recorded."""
        for said in reversed(self.said):
            if said.decided.observed.results:
                return min(said.decided.observed.results, key=lambda r: _WORST[r.verdict])
        return None

    def _act(self) -> None:
        rollout, trouble = self.rollout, self.scenario.trouble
        if rollout is None:
            return
        if trouble is not None and self.spoiled_at is None and not rollout.ended and rollout.weights.live == trouble.weight:
            self._spoil(self.scenario)
            self.spoiled_at = time.monotonic()
            self._say(f"{self.scenario.name}: the demo now spoils {self.scenario.candidate}: {trouble.text}")
        if isinstance(rollout.state, AwaitingApproval) and not rollout.state.votes:
            commands.approve(self.rollout_id, self._ports, actor=APPROVER, groups=(GROUP,))
            self._say(f"{self.scenario.name}: {APPROVER} of {GROUP} approves {rollout.plan.phases[rollout.state.entering].name}")

    def _settle(self) -> None:
        if self.outcome is not None:
            return
        if self.rollout is not None and self.rollout.ended:
            self._ended_at = time.monotonic()
            self.outcome = "promoted" if isinstance(self.rollout.state, Promoted) else "rolled_back"
        elif self.scenario.patience_s is not None and time.monotonic() - self._begun > self.scenario.patience_s:
            self.give_up()

    def _tell(self, new: Sequence[Entry]) -> None:
        """Decisions that change something, and holds whose reason is a new one."""
        last: str | None = None
        fresh = {e.seq for e in new}
        for said in self.said:
            kind = f"{said.decision.kind}:{said.decision.why}"
            if said.seq in fresh and (kind != last or said.decision.kind != "hold"):
                what = f"{said.decision.kind.replace('_', ' ')} ({said.decision.why.replace('_', ' ')})"
                self._say(f"{self.scenario.name}: {what}: {brief(said.decision.text)}")
            last = kind


def brief(text: str) -> str:
    """The first of the clauses that a decision's text is made of, and how many more there are."""
    first, *more = text.split("; ")
    # A reason may itself be of two clauses: "0% of 90 requests failed, limit 1%; not proven yet: about 6 more requests".
    others = [clause for clause in more if re.match(r"[\w.-]+: ", clause)]
    return f"{first} (and {len(others)} more)" if others else text
