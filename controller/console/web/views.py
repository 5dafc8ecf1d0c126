"""
What each page shows, as plain values: lists of rollouts, one rollout, its rows, its plan.

It stands between `describe`, which knows a rollout in words and numbers, and the templates. Its one rule: a page costs what is new since the
last one; logs only grow, so what was replayed is kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller import describe
from controller.codec import plan_to_json
from controller.core.decision import Hold
from controller.core.gates import GateResult, Verdict
from controller.core.people import Caller, Right
from controller.core.plan import GateMode, Mode
from controller.core.rollout import (
    Abandoned,
    Aborted,
    Applied,
    AwaitingApproval,
    Baking,
    Decided,
    Entry,
    LogError,
    Moving,
    Paused,
    Promoted,
    RolledBack,
    Rollout,
    replay,
    step,
)
from controller.ports import PortError, Ports, UnknownRollout

KEPT_MAX = 1_000
KNOWN_MAX = 100_000
ENDED_ON_A_PAGE = 25
WARM_MAX = 50
ROWS_ON_A_PAGE = 40
ACTIVE_MAX = 200
"""Rollouts that are shown as active; the rest is found by search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One rollout in a list."""

    rollout: Rollout
    state: str
    attention: str
    rank: int
    phases: tuple[tuple[str, str, float], ...]
    worst: GateResult | None
    next: str
    looked: datetime | None
    broken: str = ""


class Board:
    """Rollouts as they stand, replayed only as far as they have grown."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._kept: OrderedDict[str, tuple[Rollout, Entry]] = OrderedDict()
        self._lock = threading.Lock()
        self._warmed = False

    def rollout(self, rollout_id: str) -> tuple[Rollout, Sequence[Entry]]:
        """
        Raises:
            UnknownRollout, LogError, AuditUnavailable: as the log says.
        """
        entries = self._ports.audit.entries(rollout_id)
        with self._lock:
            kept = self._kept.get(rollout_id)
        # The very row, not only its number: a database that was restored from a backup has other rows.
        if kept is not None and kept[0].seq <= len(entries) and entries[kept[0].seq - 1] is kept[1]:
            rollout = kept[0]
            for entry in entries[rollout.seq :]:
                rollout = step(rollout, entry)
        else:
            rollout = replay(entries)
        with self._lock:
            self._kept[rollout_id] = (rollout, entries[-1])
            self._kept.move_to_end(rollout_id)
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return rollout, entries

    def warm(self) -> None:
        """Read, beside the first visit, what the next ones will ask for: a long log takes most of a second the first time."""
        with self._lock:
            if self._warmed:
                return
            self._warmed = True

        def read() -> None:
            with suppress(PortError, LogError):
                for rollout_id in list(self._ports.index.active())[::-1][:WARM_MAX]:
                    self.rollout(rollout_id)

        threading.Thread(target=read, name="console-warm", daemon=True).start()

    def active(self, search: str, now: datetime) -> tuple[Card, ...]:
        """Those that have not ended: who needs somebody first, then the newest."""
        ids = list(self._ports.index.active())[::-1][:ACTIVE_MAX]
        cards = [c for c in (self._card(i, now) for i in ids) if c is not None and _matches(c, search)]
        return tuple(sorted(cards, key=lambda c: c.rank))

    def ended(self, search: str, after: str, now: datetime) -> tuple[tuple[Card, ...], str]:
        """
        Those that have ended, newest first.

        Returns:
            A page, and the id to go on after; "" on the last one.
        """
        ids = list(self._ports.index.known(KNOWN_MAX))
        active = set(self._ports.index.active())
        begin = ids.index(after) + 1 if after in ids else 0
        found: list[Card] = []
        for at in range(begin, len(ids)):
            if ids[at] in active or (card := self._card(ids[at], now)) is None or not _matches(card, search):
                continue
            if len(found) == ENDED_ON_A_PAGE:
                return tuple(found), found[-1].rollout.id
            found.append(card)
        return tuple(found), ""

    def _card(self, rollout_id: str, now: datetime) -> Card | None:
        try:
            rollout, entries = self.rollout(rollout_id)
        except UnknownRollout:
            return None
        except LogError as exc:
            return self._broken(rollout_id, str(exc))
        last = describe.last_decision(entries)
        results = last.event.observed.results if last is not None and isinstance(last.event, Decided) else ()
        rank, attention = attention_of(rollout, results)
        return Card(
            rollout=rollout,
            state=describe.state_name(rollout),
            attention=attention,
            rank=rank,
            phases=tuple(_segments(rollout)),
            worst=worst_of(results),
            next=describe.upcoming(rollout, now),
            looked=rollout.last_gate_check,
        )

    def _broken(self, rollout_id: str, problem: str) -> Card | None:
        """Its first row alone can be replayed; what came of it nobody knows."""
        try:
            first = replay(self._ports.audit.entries(rollout_id)[:1])
        except LogError:
            return None
        return Card(
            rollout=first,
            state="broken",
            attention=f"the log contradicts itself: {problem}",
            rank=0,
            phases=(),
            worst=None,
            next="",
            looked=None,
            broken=problem,
        )


def attention_of(rollout: Rollout, results: Sequence[GateResult]) -> tuple[int, str]:
    """
    Whether a person is needed, and why.

    Returns:
        0 to 3 where somebody is, most urgent first; 5 where nobody is; 9 at the end. And a sentence, "" for nothing.
    """
    match rollout.state:
        case Promoted() | RolledBack() | Aborted():
            return 9, ""
        case Paused(text=text):
            return 1, f"Paused: {text}"
        case AwaitingApproval(entering=entering):
            return 2, f"Waits for approval to enter {rollout.plan.phases[entering].name}"
        case _:
            pass
    if rollout.unwatched:
        return 1, "No gate check comes any more"
    if rollout.troubled >= rollout.plan.policy.tell_after:
        return 1, f"No usable evidence for {rollout.troubled} gate checks"
    if rollout.unguarded:
        return 1, "No guard looks at it"
    if bad := [r.gate for r in results if r.verdict is Verdict.BREACH]:
        return 3, f"Beyond its limit: {', '.join(bad)}"
    return 5, ""


def worst_of(results: Sequence[GateResult]) -> GateResult | None:
    """The gate nearest to stopping the rollout: a breach, then an error, then who uses most of its limit."""

    def weight(r: GateResult) -> tuple[int, float]:
        rank = {Verdict.BREACH: 3, Verdict.ERROR: 2}.get(r.verdict, 1)
        used = r.observed / r.limit if r.observed is not None and r.limit else 0.0
        return rank, used

    numbered = [r for r in results if r.limit is not None or r.verdict in (Verdict.BREACH, Verdict.ERROR)]
    return max(numbered, key=weight, default=None)


def _segments(rollout: Rollout) -> list[tuple[str, str, float]]:
    """Name, ``done``, ``now``, ``next`` or ``left``, and the share of traffic, of each phase."""
    phase, ended = rollout.phase, rollout.ended
    found = []
    for i, p in enumerate(rollout.plan.phases):
        if isinstance(rollout.state, Promoted) or (phase is not None and i < phase):
            word = "done"
        elif phase == i and not ended:
            word = "now"
        else:
            word = "left" if ended else "next"
        found.append((p.name, word, p.weight / 100_000))
    return found


def _matches(card: Card, search: str) -> bool:
    if not (wanted := search.strip().lower()):
        return True
    r, plan = card.rollout, card.rollout.plan
    text = (r.id, plan.name, plan.flag, plan.environment, plan.owner, plan.baseline.model, plan.candidate.model, r.requester)
    return wanted in " ".join((*text, card.state, card.attention)).lower()


# --- one rollout ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the timeline: a row, or several holds in a row for one reason (`count`, the newest of them)."""

    entry: Entry
    kind: str
    text: str
    count: int
    since: datetime
    moved: str


def timeline(entries: Sequence[Entry], before: int) -> tuple[tuple[Line, ...], int]:
    """
    Newest first.

    Args:
        entries: All rows.
        before: Rows below this number; 0 for from the newest on.

    Returns:
        A page, and `before` of the next one; 0 on the last.
    """
    rows, plan = [e for e in entries if not before or e.seq < before], describe.plan_of(entries)
    lines: list[Line] = []
    at = len(rows)
    while at > 0 and len(lines) < ROWS_ON_A_PAGE:
        at -= 1
        entry = rows[at]
        count, since = 1, entry.at
        while at > 0 and _same_hold(entry, rows[at - 1]):
            at -= 1
            count, since = count + 1, rows[at].at
        told = describe.history_row(entry, plan)
        lines.append(Line(entry=entry, kind=_kind(entry), text=told["text"], count=count, since=since, moved=_moved(entry)))
    return tuple(lines), rows[at].seq if at > 0 else 0


def _same_hold(one: Entry, other: Entry) -> bool:
    match one.event, other.event:
        case Decided(decision=Hold() as a), Decided(decision=Hold() as b):
            return a.why is b.why and one.actor == other.actor
        case _:
            return False


def _kind(entry: Entry) -> str:
    return entry.event.decision.kind if isinstance(entry.event, Decided) else entry.event.kind


def _moved(entry: Entry) -> str:
    if not isinstance(entry.event, Decided) or entry.event.weights_before == entry.event.weights_after:
        return ""
    before, after = entry.event.weights_before, entry.event.weights_after
    part = "shadow" if before.live == after.live else "live"
    return f"{getattr(before, part) / 1000:g}% → {getattr(after, part) / 1000:g}%{' mirrored' if part == 'shadow' else ''}"


def spans_of(rollout: Rollout, entries: Sequence[Entry]) -> list[tuple[str, datetime, datetime]]:
    """Each phase that has begun: name, begin, end (or the last row)."""
    found: list[tuple[str, datetime, datetime]] = []
    decided = {e.event.decision_id: e.event.decision for e in entries if isinstance(e.event, Decided)}
    for entry in entries:
        if not isinstance(entry.event, Applied):
            continue
        decision = decided[entry.event.decision_id]
        if decision.kind == "resume":
            continue
        if found:
            found[-1] = (*found[-1][:2], entry.at)
        if decision.kind == "advance":
            found.append((rollout.plan.phases[decision.phase].name, entry.at, entries[-1].at))
        else:
            break
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStep:
    """A phase of the bar."""

    name: str
    word: str
    share: float
    mirrored: bool
    began: datetime | None
    seconds: float | None
    bake_s: float
    ready: datetime | None
    asks: str


def phase_steps(rollout: Rollout, entries: Sequence[Entry]) -> tuple[PhaseStep, ...]:
    rows = describe.phases(rollout, entries)
    spans = spans_of(rollout, entries)
    begun, latest = {name: b for name, b, _ in spans}, spans[-1][0] if spans else ""
    settled = rollout.settled
    since = settled.since if isinstance(settled, Baking | AwaitingApproval) else None
    found = []
    for phase, row, (name, word, share) in zip(rollout.plan.phases, rows, _segments(rollout), strict=True):
        began = begun.get(name)
        if word == "left" and began is not None:
            word = "stopped" if name == latest else "done"
        approval = phase.approval
        found.append(
            PhaseStep(
                name=name,
                word=word,
                share=share,
                mirrored=phase.mode is Mode.SHADOW,
                began=began,
                seconds=row["seconds"],
                bake_s=row["bake_s"],
                ready=since + phase.bake if word == "now" and since is not None else None,
                asks="" if approval is None else f"{approval.count} of {' or '.join(approval.groups)}",
            )
        )
    return tuple(found)


def verbs_of(rollout: Rollout, caller: Caller) -> frozenset[Right]:
    """What this person may do to it as it stands."""
    if rollout.ended:
        return frozenset()
    fits = {Right.ROLL_BACK, Right.ABORT}
    match rollout.state:
        case Paused():
            fits |= {Right.RESUME}
        case AwaitingApproval():
            fits |= {Right.APPROVE, Right.REJECT, Right.PAUSE, Right.PROMOTE, Right.OVERRIDE}
        case Moving():
            pass
        case _:
            fits |= {Right.PAUSE, Right.PROMOTE, Right.OVERRIDE}
    return frozenset(fits) & caller.rights


def last_look(entries: Sequence[Entry]) -> Entry | None:
    """The last row with verdicts: a person's decision rests on none."""
    for entry in reversed(entries):
        if isinstance(entry.event, Decided) and entry.event.observed.results:
            return entry
    return None


def last_move(entries: Sequence[Entry]) -> Entry | None:
    """The last decision that was more than a hold, or a raise that was called off."""
    for entry in reversed(entries):
        match entry.event:
            case Decided(decision=Hold()):
                continue
            case Decided() | Abandoned():
                return entry
            case _:
                continue
    return None


def enforced(results: Sequence[GateResult]) -> list[GateResult]:
    """Breaches first, then what cannot be said, then passes; gates that act before those that warn."""
    order = {Verdict.BREACH: 0, Verdict.ERROR: 1, Verdict.INSUFFICIENT: 2, Verdict.PASS: 3}
    return sorted(results, key=lambda r: (order[r.verdict], r.mode is not GateMode.ENFORCE))


# --- plans ----------------------------------------------------------------------------------------------------------------------


def plan_json(rollout: Rollout) -> dict[str, Any]:
    return plan_to_json(rollout.plan)
