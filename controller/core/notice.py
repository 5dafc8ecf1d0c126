"""
What people are told, and when: one notice at most for each audit row.

Its one rule: act, then speak. A change of traffic is told by the row that confirms it, never by the row that intends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from controller.core.decision import Decision, Hold, Pause, Why, lowers
from controller.core.gates import GateResult, Verdict, span
from controller.core.question import question_of, step_digest
from controller.core.rollout import (
    Abandoned,
    Aborted,
    Applied,
    Approved,
    AwaitingApproval,
    Decided,
    Entry,
    Moving,
    Opened,
    Overridden,
    Paused,
    Pending,
    Promoted,
    Rejected,
    RolledBack,
    Rollout,
    State,
    phase_of,
    replay,
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
        question: Digest of the question that people are asked (`core.question`); "" where it waits for nobody.
        asks: Groups that are asked now, by this notice: a new question, or a reminder of it.
        on_call: Whoever is on call is to look: the controller lowered, paused or is blind by itself.
        next_look: When the next gate check is due; None where only a person can change something.
        ask: The command that tells more; "" for ``penstock why`` of the rollout.
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
    question: str = ""
    asks: tuple[str, ...] = ()
    on_call: bool = False
    next_look: datetime | None = None
    ask: str = ""


_ORDER = {Verdict.BREACH: 0, Verdict.ERROR: 1, Verdict.INSUFFICIENT: 2, Verdict.PASS: 3}


def notice_of(before: Rollout, after: Rollout, entry: Entry) -> Notice:
    """
    The notice that belongs to one row.

    Args:
        before: The rollout before the row.
        after: The rollout after it.
        entry: The row.
    """
    level, text = _what(before, entry, after)
    results = entry.event.observed.results if isinstance(entry.event, Decided) else ()
    if fresh := [r for r in results if r.gate in after.warned - before.warned]:
        level = _at_least(Level.NEWS, level)
        text = f"warning: {'; '.join(f'{r.gate}: {r.reason}' for r in fresh)}; {text}"
    level, text = _with_guards(before, after, entry, level, text)
    plan, asks = after.plan, _asks(before, entry, after)
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
        question=step_digest(after) if isinstance(after.state, AwaitingApproval) else "",
        asks=asks,
        on_call=level is Level.ALARM and not asks and _by_itself(before, entry),
        next_look=next_look(after, entry, entry.at),
    )


def next_look(rollout: Rollout, last: Entry | None, now: datetime) -> datetime | None:
    """
    When the next gate check is due.

    Args:
        rollout: Which.
        last: Its last decision, as far as there is one.
        now: It is not due before.

    Returns:
        None where only a person can change something.
    """
    if rollout.ended or isinstance(rollout.state, Paused):
        return None
    decision = last.event.decision if last is not None and isinstance(last.event, Decided) else None
    said = decision.next_look if isinstance(decision, Hold) else None
    due = (rollout.last_gate_check or rollout.opened_at) + rollout.plan.policy.every
    return max(min(due, said) if said is not None else due, now)


def lines_of(results: tuple[GateResult, ...]) -> tuple[Line, ...]:
    """The gates in words, worst first."""
    return tuple(Line(gate=r.gate, verdict=r.verdict, text=r.reason) for r in sorted(results, key=lambda r: _ORDER[r.verdict]))


_DONE = {
    "advance": "advanced",
    "promote": "promoted",
    "hold": "held",
    "pause": "paused",
    "resume": "resumed",
    "roll_back": "rolled back to 0%",
    "abort": "aborted, at 0%",
}


def account(before: Rollout, decision: Decision, at: datetime, exposure: float | None, actor: str) -> str:
    """
    A decision in one sentence: why, what was done, after how long, and how many requests the candidate had answered by then.

    The same words stand in `why`, in Slack and in Prefect.

    Args:
        before: The rollout before the decision, or while its change was on its way.
        decision: What was decided.
        at: When.
        exposure: Requests that the candidate answered; None when not measured.
        actor: Who decided.
    """
    if decision.why is Why.STARTED:
        return decision.text
    inner = settled_of(before.state)
    where = ""
    if inner is not None and not isinstance(inner, Pending) and inner.phase is not None:
        where = f" after {span((at - inner.since).total_seconds())} in {before.plan.phases[inner.phase].name}"
    people = "" if actor in ("gate-check", "guard") else f" by {actor}"
    exposed = f", {exposure:,.0f} requests exposed" if exposure is not None and lowers(decision) else ""
    return f"{decision.text}; {_DONE[decision.kind]}{people}{where}{exposed}"


def account_of(entry: Entry, entries: Sequence[Entry]) -> str:
    """
    Args:
        entry: A row with a decision.
        entries: The rollout's rows, that one among them.

    Returns:
        `account` of it.
    """
    event = entry.event
    assert isinstance(event, Decided), "only decisions have an account"
    before = replay(e for e in entries if e.seq < entry.seq)
    return account(before, event.decision, entry.at, event.observed.exposure, entry.actor)


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
        case Paused(why=Why.LEASE_LAPSED):
            return f"paused in {where}, routers at 0%: the lease lapsed"
        case Paused():
            return f"paused in {where}"
        case Moving(decision=decision):
            return f"{where}, {decision.kind.replace('_', ' ')} on its way"
        case AwaitingApproval(entering=entering):
            return f"{where}, waiting for approval of {plan.phases[entering].name}"
        case _:
            return where


def _what(before: Rollout, entry: Entry, after: Rollout) -> tuple[Level, str]:
    actor = entry.actor
    match entry.event:
        case Opened():
            return Level.NEWS, f"opened by {actor}"
        case Approved(entering=entering):
            return Level.NEWS, f"{actor} approved entering {after.plan.phases[entering].name}"
        case Rejected(entering=entering, reason=reason):
            return Level.ALARM, f"{actor} rejected entering {after.plan.phases[entering].name}: {reason}; paused"
        case Overridden(checks=checks, ticket=ticket, reason=reason):
            return Level.ALARM, f"break-glass: {actor} overrides {', '.join(checks)} for the next step ({ticket}: {reason})"
        case Abandoned(text=text):
            return Level.NEWS, f"a raise did not reach the flag and was withdrawn: {text}"
        case Decided(decision=Hold() as hold):
            return _hold(before, entry, hold, account(before, hold, entry.at, after.exposure, actor), after)
        case Decided(decision=Pause() as pause):
            return Level.ALARM, account(before, pause, entry.at, after.exposure, actor)
        case Decided(decision=decision):
            return Level.INFO, f"{decision.kind.replace('_', ' ')} decided: {decision.text}"
        case Applied():
            return _applied(before, actor, after)


def _hold(before: Rollout, entry: Entry, hold: Hold, text: str, after: Rollout) -> tuple[Level, str]:
    if hold.why is Why.AWAITING_APPROVAL:
        if before.state != after.state:
            return Level.ALARM, hold.text
        if past := _reminded(before, entry, after):
            return Level.ALARM, f"{past}: {hold.text}"
    if hold.why is Why.DEAD_MAN:
        return Level.ALARM, text
    policy, troubled = after.plan.policy, after.troubled
    if repeats(troubled, policy.escalate_after):
        return Level.ALARM, text if troubled == 1 else f"{text}, {'twice' if troubled == 2 else f'{troubled} times'} in a row"
    return Level.NEWS if troubled == policy.tell_after else Level.INFO, text


REMINDERS = (0.5, 0.9, 1.0)
"""Parts of the time that a question has after which people are reminded of it; at its end they are told that it holds."""


def _reminded(before: Rollout, entry: Entry, after: Rollout) -> str:
    """``second reminder, asked 43 h ago``; "" where no reminder has come due since the look before."""
    question, looked = question_of(after, entry.at), before.last_gate_check
    if question is None or looked is None:
        return ""
    life = min((a.approval.expires for a in question.asked if a.lacking), default=None)
    if life is None:
        return ""
    due = [i for i, part in enumerate(REMINDERS) if looked < question.asked_at + life * part <= entry.at]
    if not due:
        return ""
    ago = span((entry.at - question.asked_at).total_seconds())
    if due[-1] == len(REMINDERS) - 1:
        return f"nobody has answered in time, asked {ago} ago; it holds until somebody does"
    return f"{('reminder', 'last reminder')[due[-1]]}, asked {ago} ago"


def _asks(before: Rollout, entry: Entry, after: Rollout) -> tuple[str, ...]:
    """Groups that are lacking, where this row asks them."""
    match entry.event:
        case Decided(decision=Hold(why=Why.AWAITING_APPROVAL)) if before.state != after.state or _reminded(before, entry, after):
            question = question_of(after, entry.at)
            asked = () if question is None else question.asked
            return tuple(dict.fromkeys(group for a in asked if a.lacking for group in a.approval.groups))
        case _:
            return ()


def _by_itself(before: Rollout, entry: Entry) -> bool:
    """Whether the controller acted or found something, and no person."""
    match entry.event:
        case Decided(source=source):
            return source != "person"
        case Applied():
            moving = before.state
            return isinstance(moving, Moving) and moving.decision.why not in (Why.BY_PERSON, Why.REJECTED)
        case _:
            return False


def repeats(count: int, first: int) -> bool:
    """Whether a trouble that has been met `count` times in a row is told now: at `first`, and after twice, four times, ... as many."""
    times, rest = divmod(count, first)
    return times > 0 and rest == 0 and times & (times - 1) == 0


def _with_guards(before: Rollout, after: Rollout, entry: Entry, level: Level, text: str) -> tuple[Level, str]:
    """The same with what a gate check found of those who should look beside it."""
    event = entry.event
    if not isinstance(event, Decided) or event.source != "gate_check":
        return level, text
    if before.unwatched:
        away = entry.at - (before.last_gate_check or before.opened_at)
        level, text = _at_least(Level.NEWS, level), f"gate checks are back after {span(away.total_seconds())}; {text}"
    if (since := event.observed.guard_silent_since) is not None and repeats(after.unguarded, 1):
        silent = f"no guard has looked for {span((entry.at - since).total_seconds())}: a breach is only seen by gate checks"
        level, text = Level.ALARM, f"{silent}; {text}"
    elif before.unguarded and not after.unguarded:
        level, text = _at_least(Level.NEWS, level), f"the guard looks again; {text}"
    return level, text


def _at_least(least: Level, level: Level) -> Level:
    return least if level is Level.INFO else level


def _applied(before: Rollout, actor: str, after: Rollout) -> tuple[Level, str]:
    moving = before.state
    assert isinstance(moving, Moving), moving
    text = account(before, moving.decision, moving.since, after.exposure, actor)
    return Level.ALARM if lowers(moving.decision) else Level.NEWS, text


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
