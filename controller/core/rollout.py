"""
What a rollout is: the replay of its audit log.

`next_state` is the only place where a rollout moves; live running and replay both go through it. Its one rule: an event that does not
fit the state it meets is refused, because a log that contains it was not written by us.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal, assert_never

from controller.core.decision import (
    Abort,
    Advance,
    Decision,
    Hold,
    Pause,
    Promote,
    Resume,
    RollBack,
    Weights,
    Why,
    lowers,
    target,
)
from controller.core.gates import GateResult, Verdict, unproven
from controller.core.measurement import Measurement
from controller.core.plan import GateMode, Plan
from flagspec import RouteFlag


class LogError(ValueError):
    """The audit log contradicts itself; names the rollout, the row and both sides of the contradiction."""


# --- states ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One person's approval of entering a phase."""

    actor: str
    groups: tuple[str, ...]
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Opened; the flag has not been touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baking:
    """At the weight of phase `phase` since `since`, when the flag store confirmed it."""

    phase: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingApproval:
    """
    As Baking (or Pending, with phase None), and ready to enter `entering` as soon as people say yes.

    `unproven` are the gates without a proof that the question names; when another one comes, it is asked anew and the votes are void.
    """

    phase: int | None
    since: datetime
    entering: int
    asked_at: datetime
    votes: tuple[Vote, ...] = ()
    unproven: tuple[str, ...] = ()


Settled = Pending | Baking | AwaitingApproval


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """Nothing is raised until a person resumes; `settled` is what it was paused in."""

    settled: Settled
    why: Why
    text: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """A change of the flag was decided and not yet confirmed; `settled` is where the rollout stands if it never lands."""

    settled: Settled | Paused
    decision: Decision
    decision_id: str
    weights: Weights
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    why: Why
    text: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    actor: str
    text: str
    at: datetime


Ended = Promoted | RolledBack | Aborted
State = Pending | Baking | AwaitingApproval | Paused | Moving | Promoted | RolledBack | Aborted


# --- events ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The first row: the plan, whole. `key` makes opening idempotent (a flow run's id, for example)."""

    plan: Plan
    plan_digest: str
    key: str
    kind: Literal["opened"] = "opened"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """
    The statistical evidence of a look, as JSON texts; a log may give references (``sha256:...``) in their place.

    Args:
        before: The case (`controller.core.evidence.case`) before the look; "" for the first one.
        traffic: What happened since, in the phase that it happened in (`controller.codec.traffic_to_text`).
        after: The case after it: the next look goes on from here.
    """

    before: str
    traffic: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagRead:
    """
    The flag as a look read it.

    Args:
        flag: None if there was none.
        at: By the clock that its lease is read by.
    """

    flag: RouteFlag | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """
    What a decision rests on: each gate's measurement and verdict, the exposure so far (requests), and the evidence gathered.

    `at` is the time of the look, which the row follows by a moment; None where a person decided without looking. `guard_silent_since` is
    when a guard last looked, where a gate check found that it should have done so long ago. `found` is there where the flag was
    not as the log explains (killed, drift, a lapsed lease, a lowering without a row): then the decision rests on it, too.
    """

    at: datetime | None = None
    measurements: tuple[tuple[str, Measurement], ...] = ()
    results: tuple[GateResult, ...] = ()
    exposure: float | None = None
    gathered: Gathered | None = None
    guard_silent_since: datetime | None = None
    found: FlagRead | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """
    A decision, before any effect.

    Args:
        decision_id: Carried by the flag write; unique to rollout, row and kind.
        decision: What was decided.
        observed: What it rests on.
        weights_before: Of the flag as it was read.
        weights_after: That the decision asks for (equal to before if it asks for none).
        flag_version_before: Of the flag as it was read; 0 when there was none.
        source: Who looked: the gate check, the guard or a person.
    """

    decision_id: str
    decision: Decision
    observed: Observed = field(default_factory=Observed)
    weights_before: Weights
    weights_after: Weights
    flag_version_before: int
    source: Literal["gate_check", "guard", "person"]
    kind: Literal["decided"] = "decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The flag store confirmed the change; the bake clock starts here."""

    decision_id: str
    weights: Weights
    flag_version: int
    kind: Literal["applied"] = "applied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A raise that did not land was fenced off; it will be judged again on fresh evidence."""

    decision_id: str
    text: str
    flag_version: int
    kind: Literal["abandoned"] = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """A person said yes to entering phase `entering` (index); `digest` is the question that was answered (`core.question`)."""

    entering: int
    groups: tuple[str, ...]
    digest: str = ""
    kind: Literal["approved"] = "approved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A person said no to entering phase `entering` (index): the rollout is paused, and what was voted is void."""

    entering: int
    groups: tuple[str, ...]
    reason: str
    digest: str = ""
    kind: Literal["rejected"] = "rejected"


class Check(StrEnum):
    """What a person may override: what people and calendars ask for. Evidence, breaches and kills are not among them."""

    APPROVAL = "approval"
    FREEZE = "freeze"
    BAKE = "bake"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overridden:
    """
    Break-glass: a person lets one step be taken without some checks. It moves nothing; the next gate check judges the others.

    Args:
        entering: The phase (index) that it holds for; the number of phases for the promotion.
        checks: What is not asked for.
        groups: The person's.
        reason, ticket: Why, and where that is written down.
        digest: The step (`core.question`).
    """

    entering: int
    checks: tuple[Check, ...]
    groups: tuple[str, ...]
    reason: str
    ticket: str
    digest: str = ""
    kind: Literal["overridden"] = "overridden"


Event = Opened | Decided | Applied | Abandoned | Approved | Rejected | Overridden


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """An Overridden row that is in force: until a phase is entered, the rollout is paused, or `OVERRIDE_LASTS` has passed."""

    event: Overridden
    actor: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the audit log: an event with its identity. `at` is the database's clock."""

    rollout_id: str
    seq: int
    at: datetime
    actor: str
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """
    A rollout as its log tells it.

    Args:
        state: Where it stands.
        seq: Of the last row; the next row is seq + 1.
        last_gate_check: When a gate check last wrote a row; None before the first.
        troubled: Gate checks in a row that ended without usable evidence.
        unwatched: The guard has raised the alarm that gate checks do not come, and none came since.
        unguarded: Gate checks in a row that found that no guard looks.
        warned: Gates that only warn and were breached at the last gate check.
        weights: What the flag must carry according to the log.
        applied: The decision ids that the flag may carry: the last one confirmed, "" before the first.
        exposure: Requests that the candidate answered, as last measured.
        evidence: The case as it was last recorded, or a reference to it; "" before the first.
        override: The last break-glass that is not used up; None for none.
    """

    id: str
    plan: Plan
    plan_digest: str
    requester: str
    opened_at: datetime
    state: State
    seq: int
    last_gate_check: datetime | None = None
    troubled: int = 0
    unwatched: bool = False
    unguarded: int = 0
    warned: frozenset[str] = frozenset()
    weights: Weights = field(default_factory=Weights)
    applied: str = ""
    exposure: float | None = None
    evidence: str = ""
    override: Override | None = None

    @property
    def ended(self) -> bool:
        return isinstance(self.state, Promoted | RolledBack | Aborted)

    @property
    def ended_at(self) -> datetime | None:
        return self.state.at if isinstance(self.state, Promoted | RolledBack | Aborted) else None

    @property
    def settled(self) -> Settled | None:
        """The settled state beneath pauses and moves; None once ended."""
        return settled_of(self.state)

    @property
    def phase(self) -> int | None:
        """Index of the phase it is in; None before the first and after the end."""
        return None if (s := self.settled) is None else phase_of(s)


def settled_of(state: State) -> Settled | None:
    match state:
        case Moving(settled=inner) | Paused(settled=inner):
            return settled_of(inner)
        case Pending() | Baking() | AwaitingApproval():
            return state
        case Promoted() | RolledBack() | Aborted():
            return None
        case _:
            assert_never(state)


def phase_of(settled: Settled) -> int | None:
    return None if isinstance(settled, Pending) else settled.phase


def entering_of(settled: Settled) -> int:
    """Index of the phase that comes next; the number of phases where that is the promotion."""
    index = phase_of(settled)
    return 0 if index is None else index + 1


def replay(entries: Iterable[Entry]) -> Rollout:
    """
    Args:
        entries: The rows of one rollout, in order of `seq` from 1.

    Raises:
        LogError: no rows, a gap, a row of another rollout, or an event that does not fit.
    """
    rollout: Rollout | None = None
    for entry in entries:
        rollout = _open(entry) if rollout is None else step(rollout, entry)
    if rollout is None:
        raise LogError("the rollout has no audit rows")
    return rollout


def step(rollout: Rollout, entry: Entry) -> Rollout:
    """The rollout after one more row."""
    if entry.rollout_id != rollout.id or entry.seq != rollout.seq + 1:
        raise LogError(f"row {entry.rollout_id}/{entry.seq} cannot follow row {rollout.id}/{rollout.seq}")
    try:
        state = next_state(rollout.state, entry.event, entry.at, entry.actor)
    except LogError as exc:
        raise LogError(f"row {entry.rollout_id}/{entry.seq}: {exc}") from None
    last_gate_check, troubled, exposure = rollout.last_gate_check, rollout.troubled, rollout.exposure
    evidence, warned = rollout.evidence, rollout.warned
    override = None if isinstance(state, Paused) else rollout.override
    unwatched, unguarded = rollout.unwatched, rollout.unguarded
    weights, applied = rollout.weights, rollout.applied
    match entry.event:
        case Decided() as event:
            if event.source == "gate_check":
                last_gate_check = entry.at
                trouble = isinstance(event.decision, Hold) and event.decision.why in (Why.METRICS_FAILED, Why.NOT_ENOUGH_EVIDENCE)
                troubled = troubled + 1 if trouble else 0
                unwatched = False
                unguarded = 0 if event.observed.guard_silent_since is None else unguarded + 1
                warned = frozenset(
                    r.gate for r in event.observed.results if r.mode is GateMode.WARN and r.verdict is Verdict.BREACH
                )
            elif event.decision.why is Why.DEAD_MAN:
                unwatched = True
            if event.observed.exposure is not None:
                exposure = event.observed.exposure
            if event.observed.gathered is not None:
                evidence = event.observed.gathered.after
        case Applied() as event:
            weights, applied, override = event.weights, event.decision_id, None
        case Abandoned() as event:
            applied = fence_id(event.decision_id)
        case Overridden() as event:
            override = Override(event=event, actor=entry.actor, at=entry.at)
        case Opened() | Approved() | Rejected():
            pass
    # Not dataclasses.replace: this runs for every row of every look, and replace costs three times as much.
    return Rollout(
        id=rollout.id,
        plan=rollout.plan,
        plan_digest=rollout.plan_digest,
        requester=rollout.requester,
        opened_at=rollout.opened_at,
        state=state,
        seq=entry.seq,
        last_gate_check=last_gate_check,
        troubled=troubled,
        unwatched=unwatched,
        unguarded=unguarded,
        warned=warned,
        weights=weights,
        applied=applied,
        exposure=exposure,
        evidence=evidence,
        override=override,
    )


def _open(entry: Entry) -> Rollout:
    if not isinstance(entry.event, Opened) or entry.seq != 1:
        raise LogError(f"row {entry.rollout_id}/{entry.seq}: the first row must open the rollout, got {entry.event.kind!r}")
    return Rollout(
        id=entry.rollout_id,
        plan=entry.event.plan,
        plan_digest=entry.event.plan_digest,
        requester=entry.actor,
        opened_at=entry.at,
        state=Pending(),
        seq=1,
    )


def fence_id(decision_id: str) -> str:
    """What the flag carries after a lost raise was fenced off."""
    return f"{decision_id}.abandoned"


def next_state(state: State, event: Event, at: datetime, actor: str) -> State:
    """
    Where an event leads.

    Args:
        state: Before the event.
        event: What the row says.
        at: When the row was written.
        actor: Who wrote it.

    Raises:
        LogError: the event does not fit the state.
    """
    match event:
        case Opened():
            raise LogError("a rollout is opened once, by its first row")
        case Decided():
            return _decided(state, event, at)
        case Applied():
            moving = _expect_moving(state, event.decision_id)
            return _landed(moving, at, actor)
        case Abandoned():
            moving = _expect_moving(state, event.decision_id)
            if lowers(moving.decision):
                raise LogError(f"{moving.decision.kind} {event.decision_id} was abandoned; lowering is always finished")
            return moving.settled
        case Approved():
            return _approved(state, event, at, actor)
        case Rejected():
            if not (isinstance(state, AwaitingApproval) and state.entering == event.entering):
                raise LogError(f"rejected entering phase {event.entering}, which nobody was asked for")
            return Paused(settled=state, why=Why.REJECTED, text=f"{actor} rejected it: {event.reason}", since=at)
        case Overridden():
            if not (isinstance(state, Pending | Baking | AwaitingApproval) and entering_of(state) == event.entering):
                raise LogError(f"overrode checks of entering phase {event.entering}, which does not come next")
            return state
        case _:
            assert_never(event)


def _decided(state: State, event: Decided, at: datetime) -> State:
    if isinstance(state, Moving):
        raise LogError(f"decided {event.decision.kind} while {state.decision_id} is on its way")
    if isinstance(state, Promoted | RolledBack | Aborted):
        raise LogError(f"decided {event.decision.kind} after the rollout ended")
    settled: Settled | Paused = state
    match event.decision:
        case Hold(why=Why.AWAITING_APPROVAL):
            # By the look's own time, which the row holds: a notice names the question before the log says when it was written.
            return _await(settled, event.observed.at or at, tuple(r.gate for r in unproven(event.observed.results)))
        case Hold():
            return settled
        case Pause():
            inner = settled.settled if isinstance(settled, Paused) else settled
            return Paused(settled=inner, why=event.decision.why, text=event.decision.text, since=at)
        case Resume():
            if not isinstance(settled, Paused):
                raise LogError("resumed a rollout that is not paused")
        case Advance() | Promote():
            if isinstance(settled, Paused):
                raise LogError(f"decided {event.decision.kind} while paused")
        case RollBack() | Abort():
            pass
        case _:
            assert_never(event.decision)
    return Moving(settled=settled, decision=event.decision, decision_id=event.decision_id, weights=event.weights_after, since=at)


def _await(settled: Settled | Paused, at: datetime, missing: tuple[str, ...]) -> State:
    match settled:
        case AwaitingApproval():
            if set(missing) <= set(settled.unproven):
                return settled
            # People said yes to another step: one with fewer gates unproven.
            return replace(settled, asked_at=at, votes=(), unproven=missing)
        case Pending():
            return AwaitingApproval(phase=None, since=at, entering=0, asked_at=at, unproven=missing)
        case Baking():
            return AwaitingApproval(
                phase=settled.phase, since=settled.since, entering=settled.phase + 1, asked_at=at, unproven=missing
            )
        case Paused():
            raise LogError("asked for approval while paused")
        case _:
            assert_never(settled)


def _approved(state: State, event: Approved, at: datetime, actor: str) -> State:
    match state:
        case AwaitingApproval() if state.entering == event.entering:
            votes = tuple(v for v in state.votes if v.actor != actor)
            return replace(state, votes=(*votes, Vote(actor=actor, groups=event.groups, at=at)))
        case _:
            raise LogError(f"approved entering phase {event.entering}, which nobody was asked for")


def _expect_moving(state: State, decision_id: str) -> Moving:
    if not isinstance(state, Moving) or state.decision_id != decision_id:
        raise LogError(f"{decision_id} was settled, but it was not on its way")
    return state


def _landed(moving: Moving, at: datetime, actor: str) -> State:
    match moving.decision:
        case Advance(phase=phase):
            return Baking(phase=phase, since=at)
        case Resume():
            inner = settled_of(moving.settled)
            resumed = None if inner is None else phase_of(inner)
            # Evidence from before the pause may be stale: the phase bakes anew.
            return Pending() if resumed is None else Baking(phase=resumed, since=at)
        case Promote():
            return Promoted(at=at)
        case RollBack() as decision:
            return RolledBack(why=decision.why, text=decision.text, at=at)
        case Abort() as decision:
            return Aborted(actor=actor, text=decision.text, at=at)
        case Hold() | Pause():
            raise LogError(f"{moving.decision.kind} does not move the flag")
        case _:
            assert_never(moving.decision)


def moves(plan: Plan, settled: Settled | None, decision: Decision) -> Weights | None:
    """The weights a decision asks for from a settled state; None when it leaves the flag alone."""
    return target(plan, decision, None if settled is None else phase_of(settled))
