"""
What people are told, and when: one notice at most for each audit row.

Its one rule: act, then speak. A change of traffic is told by the row that confirms it, never by the row that intends it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from controller.core.decision import Abort, Advance, Hold, Pause, Promote, Resume, RollBack, Why
from controller.core.gates import GateResult, Verdict
from controller.core.rollout import (
    Abandoned,
    Aborted,
    Applied,
    Approved,
    AwaitingApproval,
    Decided,
    Entry,
    Event,
    Moving,
    Opened,
    Paused,
    Promoted,
    RolledBack,
    Rollout,
    State,
    phase_of,
    settled_of,
)


class Level(StrEnum):
    """How loud: INFO refreshes the rollout's message, NEWS adds to its thread, ALARM asks somebody to look."""

    INFO = "info"
    NEWS = "news"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One gate in a notice."""

    gate: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """
    Args:
        rollout_id, seq: The row it tells of; together its identity.
        level: How loud.
        title: One line: the rollout's name, candidate and where it stands.
        text: What happened and why, one sentence.
        standing: Where the rollout stands now (``canary-5 at 5%``).
        phases: Names of the plan's phases with their traffic, and which one it is in (-1 before the first).
        phase: Index of the current phase.
        lines: The gates, worst first.
        exposure: Requests the candidate answered so far; None when not measured.
        channel: Slack channel of the plan; "" for the default.
        environment: Where.
        ended: ``promoted``, ``rolled_back``, ``aborted`` or "".
    """

    rollout_id: str
    seq: int
    level: Level
    title: str
    text: str
    standing: str
    phases: tuple[str, ...]
    phase: int
    lines: tuple[Line, ...] = ()
    exposure: float | None = None
    channel: str = ""
    environment: str = ""
    ended: Literal["promoted", "rolled_back", "aborted", ""] = ""


_ORDER = {Verdict.BREACH: 0, Verdict.ERROR: 1, Verdict.INSUFFICIENT: 2, Verdict.PASS: 3}


def notice_of(before: Rollout, after: Rollout, entry: Entry) -> Notice:
    """
    The notice that belongs to one row.

    Args:
        before: The rollout before the row.
        after: The rollout after it.
        entry: The row.
    """
    level, text = _what(before, entry.event, entry.actor, after)
    results = entry.event.observed.results if isinstance(entry.event, Decided) else ()
    plan = after.plan
    return Notice(
        rollout_id=after.id,
        seq=entry.seq,
        level=level,
        title=f"{plan.name}: {plan.baseline.model} to {plan.candidate.model}",
        text=text,
        standing=standing(after),
        phases=tuple(f"{p.name} {p.weight / 1000:g}%" for p in plan.phases),
        phase=_phase(after),
        lines=lines_of(results),
        exposure=after.exposure,
        channel=plan.slack_channel,
        environment=plan.environment,
        ended=_ended(after.state),
    )


def lines_of(results: tuple[GateResult, ...]) -> tuple[Line, ...]:
    """The gates in words, worst first."""
    return tuple(Line(gate=r.gate, verdict=r.verdict, text=r.reason) for r in sorted(results, key=lambda r: _ORDER[r.verdict]))


def standing(rollout: Rollout) -> str:
    """Where a rollout stands, in a few words."""
    plan, state = rollout.plan, rollout.state
    if isinstance(state, Promoted):
        return "promoted, 100%"
    if isinstance(state, RolledBack):
        return "rolled back, 0%"
    if isinstance(state, Aborted):
        return "aborted, 0%"
    inner = settled_of(state)
    index = None if inner is None else phase_of(inner)
    where = "not started" if index is None else f"{plan.phases[index].name} at {plan.phases[index].weight / 1000:g}%"
    if index is not None and plan.phases[index].shadow_weight:
        where += " mirrored"
    match state:
        case Paused():
            return f"paused in {where}"
        case Moving(decision=decision):
            return f"{where}, {decision.kind.replace('_', ' ')} on its way"
        case AwaitingApproval(entering=entering):
            return f"{where}, waiting for approval of {plan.phases[entering].name}"
        case _:
            return where


def _what(before: Rollout, event: Event, actor: str, after: Rollout) -> tuple[Level, str]:
    match event:
        case Opened():
            return Level.NEWS, f"opened by {actor}"
        case Approved(entering=entering):
            return Level.NEWS, f"{actor} approved entering {after.plan.phases[entering].name}"
        case Abandoned(text=text):
            return Level.NEWS, f"a raise did not reach the flag and was withdrawn: {text}"
        case Decided(decision=Hold() as hold):
            return _hold(before, hold, after)
        case Decided(decision=Pause(text=text)):
            return Level.ALARM, f"paused by {actor}: {text}"
        case Decided(decision=decision):
            return Level.INFO, f"{decision.kind.replace('_', ' ')} decided: {decision.text}"
        case Applied():
            return _applied(before.state, actor, after)


def _hold(before: Rollout, hold: Hold, after: Rollout) -> tuple[Level, str]:
    if hold.why is Why.AWAITING_APPROVAL and not isinstance(before.state, AwaitingApproval):
        return Level.ALARM, hold.text
    # Told after the first check without usable evidence, and once more, louder, after the second.
    if after.troubled == 1:
        return Level.NEWS, f"held: {hold.text}"
    if after.troubled == 2:
        return Level.ALARM, f"held twice in a row: {hold.text}"
    return Level.INFO, f"held: {hold.text}"


def _applied(moving: State, actor: str, after: Rollout) -> tuple[Level, str]:
    assert isinstance(moving, Moving), moving
    match moving.decision:
        case Advance(text=text):
            return Level.NEWS, f"advanced: {text}"
        case Promote(text=text):
            return Level.NEWS, f"promoted: {text}"
        case Resume(text=text):
            return Level.NEWS, f"resumed: {text}"
        case RollBack(text=text):
            return Level.ALARM, f"rolled back to 0%: {text}"
        case Abort(text=text):
            return Level.ALARM, f"aborted by {actor}, at 0%: {text}"
        case Hold() | Pause():
            raise AssertionError(f"{moving.decision.kind} does not move the flag")


def _phase(rollout: Rollout) -> int:
    if isinstance(rollout.state, Promoted):
        return len(rollout.plan.phases)
    index = rollout.phase
    return -1 if index is None else index


def _ended(state: State) -> Literal["promoted", "rolled_back", "aborted", ""]:
    name = type(state).__name__
    if name == "Promoted":
        return "promoted"
    if name == "RolledBack":
        return "rolled_back"
    return "aborted" if name == "Aborted" else ""
