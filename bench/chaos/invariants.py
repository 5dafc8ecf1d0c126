"""
What must hold after every fault, whatever was broken: each invariant is a function of what the trial left behind.

Its one rule: the checks read what the product stored and what people see, and believe no status that the product gives of itself.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from bench.chaos.fault import Violation
from controller.adapters.postgres.chain import ChainReport
from controller.codec import readings_from_text
from controller.commit import RAISE_VALID
from controller.core.decision import Weights
from controller.core.notice import Level
from controller.core.recompute import recompute
from controller.core.rollout import Abandoned, Applied, Decided, Entry, LogError, Moving, Rollout, fence_id, replay, step
from controller.tick import slot


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagWrite:
    """One row of `flag_history`; `foreign` if it was written by another role than the controllers'."""

    key: str
    version: int
    at: datetime
    action: str
    decision_id: str
    weights: Weights
    killed: bool
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One row of the outbox."""

    rollout_id: str
    seq: int
    level: Level
    delivered: bool
    refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One message that a person sees: whose part it is, ``parent`` or ``reply``."""

    rollout_id: str
    seq: int
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """
    What a trial left behind.

    Args:
        logs: Rows of each rollout, with their texts.
        writes: All writes of flags, in order.
        letters: The outbox.
        messages: What the channels of Slack hold.
        chain: What the product's own verification says.
        restarts: When all controllers were dead and new ones were started; the database's clock.
        bad: Rollouts whose candidate is breaching, and since when it can be seen (the database's clock).
        strangers: Decision ids of flag writes that the trial made itself.
        recover_s: How long the recovery took; None where there was none, infinite where it did not end.
        recover_s_max: How long it may take.
    """

    logs: Mapping[str, Sequence[Entry]]
    writes: Sequence[FlagWrite]
    letters: Sequence[Told]
    messages: Sequence[Shown]
    chain: ChainReport
    restarts: Sequence[datetime] = ()
    bad: Mapping[str, datetime] = field(default_factory=dict)
    strangers: frozenset[str] = frozenset()
    recover_s: float | None = None
    recover_s_max: float = 15.0


@dataclass(slots=True)
class _Log:
    """A rollout's rows with the rollout before each; `broken` if they contradict each other."""

    rows: list[tuple[Rollout | None, Entry]] = field(default_factory=list)
    end: Rollout | None = None
    broken: str = ""

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "_Log":
        log = cls()
        for entry in entries:
            log.rows.append((log.end, entry))
            try:
                log.end = replay([entry]) if log.end is None else step(log.end, entry)
            except LogError as exc:
                log.broken = str(exc)
                break
        return log


def _decisions(facts: Facts) -> dict[str, Entry]:
    return {e.event.decision_id: e for log in facts.logs.values() for e in log if isinstance(e.event, Decided)}


def one_decision(facts: Facts) -> Iterator[str]:
    """One gate check decides in a slot, one row has a number, one decision is confirmed or withdrawn once, one phase is entered once."""
    for rollout_id, entries in facts.logs.items():
        if twice := [seq for seq, n in Counter(e.seq for e in entries).items() if n > 1]:
            yield f"{rollout_id}: rows {twice} exist twice"
        ends = Counter(e.event.decision_id for e in entries if isinstance(e.event, Applied | Abandoned))
        if twice_ended := [i for i, n in ends.items() if n > 1]:
            yield f"{rollout_id}: {twice_ended} ended twice"
        applied = {e.event.decision_id for e in entries if isinstance(e.event, Applied)}
        moves = Counter(
            (e.event.decision.kind, getattr(e.event.decision, "phase", None))
            for e in entries
            if isinstance(e.event, Decided) and e.event.decision_id in applied and e.event.decision.kind != "resume"
        )
        if twice_moved := [move for move, n in moves.items() if n > 1]:
            yield f"{rollout_id}: {twice_moved} took effect twice"


def one_check_a_slot(facts: Facts) -> Iterator[str]:
    """Where gate checks are made when they are due (not forced), each slot has one."""
    for rollout_id, entries in facts.logs.items():
        log = _Log.of(entries)
        if log.end is None:
            continue
        every = log.end.plan.policy.every
        slots = Counter(slot(e.at, every) for e in entries if isinstance(e.event, Decided) and e.event.source == "gate_check")
        if twice := [s for s, n in slots.items() if n > 1]:
            yield f"{rollout_id}: slots {twice} were decided more than once"


def one_flag_write(facts: Facts) -> Iterator[str]:
    """A decision that took effect wrote the flag once; one that did not, at most once."""
    written = Counter(w.decision_id for w in facts.writes if w.action == "write" and not w.foreign)
    for decision_id, n in written.items():
        if n > 1 and decision_id not in facts.strangers:
            yield f"{decision_id} wrote the flag {n} times"
    for log in facts.logs.values():
        for entry in log:
            if isinstance(entry.event, Applied) and not written[entry.event.decision_id]:
                yield f"{entry.event.decision_id} is confirmed and never wrote the flag"


def fresh_evidence(facts: Facts) -> Iterator[str]:
    """Every raise rests on a look that is at most `RAISE_VALID` older, and that began after the last restart of everybody."""
    decisions = _decisions(facts)
    for write in _raises(facts):
        if write.foreign:
            continue
        found = decisions.get(write.decision_id)
        if found is None or not isinstance(found.event, Decided):
            continue  # `authorised` tells of it
        if found.event.source == "person":
            continue
        looked = found.event.observed.at
        if looked is None or write.at - looked > RAISE_VALID:
            yield f"{write.decision_id} raised at {write.at} on a look of {looked}"
        elif missed := [r for r in facts.restarts if looked < r < write.at]:
            yield f"{write.decision_id} raised at {write.at} on a look of {looked}, before the restart at {missed[-1]}"


def _raises(facts: Facts) -> Iterator[FlagWrite]:
    before: dict[str, Weights] = {}
    for write in facts.writes:
        old = before.get(write.key, Weights())
        if write.weights.live > old.live or write.weights.shadow > old.shadow:
            yield write
        before[write.key] = write.weights


def notice_at_least_once(facts: Facts) -> Iterator[str]:
    """Every row has a letter, every letter was delivered, and what is news stands in Slack."""
    letters = {(t.rollout_id, t.seq): t for t in facts.letters}
    shown = {(m.rollout_id, m.seq) for m in facts.messages if m.part == "reply"}
    parents = {m.rollout_id for m in facts.messages if m.part == "parent"}
    for rollout_id, entries in facts.logs.items():
        if rollout_id not in parents:
            yield f"{rollout_id} has no message"
        for entry in entries:
            letter = letters.get((rollout_id, entry.seq))
            if letter is None:
                yield f"{rollout_id}/{entry.seq} has no letter"
            elif not letter.delivered:
                yield f"{rollout_id}/{entry.seq} was {'refused' if letter.refused else 'never delivered'}"
            elif letter.level is not Level.INFO and (rollout_id, entry.seq) not in shown:
                yield f"{rollout_id}/{entry.seq} counts as delivered and is not in Slack"


def no_visible_duplicate(facts: Facts) -> Iterator[str]:
    """A person sees one message a rollout and one reply a notice."""
    parents = Counter(m.rollout_id for m in facts.messages if m.part == "parent")
    replies = Counter((m.rollout_id, m.seq) for m in facts.messages if m.part == "reply")
    yield from (f"{rollout_id} has {n} messages" for rollout_id, n in parents.items() if n > 1)
    yield from (f"{rollout_id}/{seq} was told {n} times" for (rollout_id, seq), n in replies.items() if n > 1)


def log_agrees_with_flag(facts: Facts) -> Iterator[str]:
    """The flag carries what the log says, by the decision that the log says, and nothing is left under way."""
    last = {w.key: w for w in facts.writes}
    for rollout_id, entries in facts.logs.items():
        log = _Log.of(entries)
        if log.broken or log.end is None:
            yield f"{rollout_id}: {log.broken or 'no rows'}"
            continue
        end = log.end
        if isinstance(end.state, Moving):
            yield f"{rollout_id}: {end.state.decision_id} is still under way"
            continue
        own = [w for w in facts.writes if w.decision_id.startswith(f"{rollout_id}.")]
        # After its end the flag may be in the hands of the next rollout.
        write = own[-1] if end.ended and own else last.get(end.plan.flag)
        if end.applied == "":
            if write is not None and write.decision_id.startswith(f"{rollout_id}."):
                yield f"{rollout_id}: the log knows of no change, the flag carries {write.decision_id}"
            continue
        if write is None:
            yield f"{rollout_id}: the log says {end.weights}, there is no flag"
        elif write.decision_id in facts.strangers or write.killed or write.foreign:
            continue  # told by the trial that did it
        elif (write.weights, write.decision_id) != (end.weights, end.applied):
            yield f"{rollout_id}: the log says {end.weights} by {end.applied}, the flag {write.weights} by {write.decision_id}"


def chain_intact(facts: Facts) -> Iterator[str]:
    """The log is what was written; and a decision that somebody forged for a flag write is found."""
    forged = {w.decision_id for w in facts.writes if w.foreign and w.decision_id not in _decisions(facts)}
    told = {i: p for p in facts.chain.problems for i in forged if f"was written by {i}, which no row decided" in p.text}
    yield from (p.text for p in facts.chain.problems if p not in told.values())
    posing = {i for i in forged if i.endswith((".advance", ".promote", ".resume"))}
    yield from (f"{i} is forged, and the verification does not say so" for i in sorted(posing - set(told)))


def replay_agrees(facts: Facts) -> Iterator[str]:
    """Verdicts, decision and evidence of every row come out again from the row alone."""
    for entries in facts.logs.values():
        for before, entry in _Log.of(entries).rows:
            event = entry.event
            if before is None or not isinstance(event, Decided):
                continue
            gathered = event.observed.gathered
            readings = () if gathered is None else readings_from_text(gathered.traffic)
            again = recompute(before, entry, readings)
            if again is None or event.observed.at is None:
                continue
            if again.results != event.observed.results:
                yield f"{event.decision_id}: other verdicts come out: {again.results}"
            if again.decision is not None and again.decision != event.decision:
                yield f"{event.decision_id}: another decision comes out: {again.decision}"
            if gathered is not None and again.evidence != gathered.after:
                yield f"{event.decision_id}: other evidence comes out"


def authorised(facts: Facts) -> Iterator[str]:
    """Every write of a flag is explained by a decision that was recorded before it, with its weights; or fences one that was."""
    decisions = _decisions(facts)
    fences = {fence_id(i): e for i, e in decisions.items()}
    for write in facts.writes:
        if write.foreign or write.decision_id in facts.strangers or write.decision_id.startswith("person:"):
            continue
        if write.action == "catch_up" and write.weights == Weights():
            continue
        if (found := decisions.get(write.decision_id)) is not None and isinstance(found.event, Decided):
            if found.event.weights_after != write.weights:
                yield f"{write.decision_id} decided {found.event.weights_after}, the flag got {write.weights}"
            elif found.at > write.at and write.weights != Weights():
                yield f"{write.decision_id} was recorded at {found.at}, after the flag was written at {write.at}"
        elif write.decision_id in fences:
            continue
        elif write.weights != Weights() or not _lowering(write, facts):
            yield f"nobody decided {write.decision_id}, which wrote {write.weights}"


def _lowering(write: FlagWrite, facts: Facts) -> bool:
    """Whether it is a lowering of one of these rollouts that was made while no row could be written."""
    mine = any(write.decision_id.startswith(f"{rollout_id}.") for rollout_id in facts.logs)
    return mine and write.decision_id.endswith((".roll_back", ".abort"))


def lowered(facts: Facts) -> Iterator[str]:
    """A breach that is under way ends at 0, unless the last look before the promotion came before it could be seen."""
    last = {w.key: w for w in facts.writes}
    for rollout_id, since in facts.bad.items():
        log = facts.logs.get(rollout_id, ())
        end = _Log.of(log).end
        if end is None or any(_promoted_before(e, since) for e in log):
            continue
        write = last.get(end.plan.flag)
        if write is not None and write.weights != Weights() and not write.killed:
            yield f"{rollout_id} breaches, and the flag is at {write.weights}"


def _promoted_before(entry: Entry, since: datetime) -> bool:
    event = entry.event
    if not isinstance(event, Decided) or event.decision.kind != "promote":
        return False
    return event.observed.at is not None and event.observed.at < since


def recovers(facts: Facts) -> Iterator[str]:
    if facts.recover_s is not None and facts.recover_s > facts.recover_s_max:
        yield f"the recovery took {facts.recover_s:.1f} s, longer than {facts.recover_s_max:g} s"


def in_order(facts: Facts) -> Iterator[str]:
    """Versions of a flag follow each other without a gap: no write was lost behind another one."""
    by_key: dict[str, list[FlagWrite]] = {}
    for write in facts.writes:
        by_key.setdefault(write.key, []).append(write)
    for key, writes in by_key.items():
        for one, other in pairwise(writes):
            if other.version != one.version + 1 and "delete" not in (one.action, other.action):
                yield f"flag {key}: version {other.version} follows {one.version}"


INVARIANTS: Mapping[str, Callable[[Facts], Iterator[str]]] = {
    check.__name__: check
    for check in (
        one_decision,
        one_flag_write,
        fresh_evidence,
        notice_at_least_once,
        no_visible_duplicate,
        log_agrees_with_flag,
        chain_intact,
        replay_agrees,
        authorised,
        lowered,
        recovers,
        in_order,
    )
}
"""By name, in the order in which they are reported. `one_check_a_slot` is asked for by the trials that force nothing."""


def check(facts: Facts, *more: Callable[[Facts], Iterator[str]]) -> tuple[Violation, ...]:
    """Everything that does not hold."""
    asked = {**INVARIANTS, **{c.__name__: c for c in more}}
    return tuple(Violation(invariant=name, text=text) for name, one in asked.items() for text in one(facts))
