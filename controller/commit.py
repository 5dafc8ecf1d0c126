"""
One decision, made real: record it, change the flag, confirm, and let the outbox speak.

It stands behind `tick` and `commands`, which decide; both write through here and nowhere else. Its one rule is the order: the Decided
row comes before the flag, the Applied row after it. Whoever dies in between is survived by `settle`, which the next look runs first.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from controller.core.converge import (
    Convergence,
    Drift,
    FinishLowering,
    GiveUpRaise,
    InStep,
    Killed,
    Landed,
    UnrecordedLowering,
    converge,
    salt_of,
    seen,
)
from controller.core.decision import Decision, Promote, Weights, lowers
from controller.core.notice import notice_of
from controller.core.rollout import (
    Abandoned,
    Applied,
    Decided,
    Entry,
    Event,
    LogError,
    Moving,
    Observed,
    Rollout,
    fence_id,
    moves,
    replay,
    step,
)
from controller.crash import Point, reached
from controller.ports import (
    AuditUnavailable,
    FlagChange,
    FlagConflict,
    FlagKilled,
    FlagUnavailable,
    NewEntry,
    PortError,
    Ports,
    SeqTaken,
)
from flagspec import RouteFlag

RAISE_VALID = timedelta(seconds=30)
"""After the look began. A raise that has not reached the flag by then is refused by the store: its evidence is too old."""

LOWERING_ATTEMPTS = 10
"""A lowering that loses the compare-and-set race is read and written again; each loss means that somebody else's write went through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """
    Args:
        rollout: As the log tells it now.
        flag: As last read or written.
        lost: Another controller wrote the row first; nothing more was done here.
        unrecorded: The flag was lowered although the log could not be written; the next look records it.
    """

    rollout: Rollout
    flag: RouteFlag | None
    lost: bool = False
    unrecorded: bool = False


def commit(
    rollout: Rollout,
    flag: RouteFlag | None,
    decision: Decision,
    ports: Ports,
    *,
    actor: str,
    source: str,
    observed: Observed,
    at: datetime,
) -> Committed:
    """
    Args:
        rollout, flag: What the decision was made on.
        decision: What to do.
        ports: Where to.
        actor: Who decided: ``gate-check``, ``guard`` or a person.
        source: ``gate_check``, ``guard`` or ``person``.
        observed: The evidence of the decision.
        at: When the look began; a raise must reach the flag within `RAISE_VALID` of it.

    Raises:
        AuditUnavailable: nothing was recorded and nothing begun; a lowering is done all the same (`Committed.unrecorded`).
        FlagUnavailable: recorded, but the flag store did not confirm; the next look settles it.
    """
    weights = moves(rollout.plan, rollout.settled, decision)
    decision_id = f"{rollout.id}.{rollout.seq + 1}.{decision.kind}"
    decided = Decided(
        decision_id=decision_id,
        decision=decision,
        observed=observed,
        weights_before=seen(flag),
        weights_after=seen(flag) if weights is None else weights,
        flag_version_before=0 if flag is None else flag.version,
        source=source,  # type: ignore[arg-type]  # one of the three, by the callers
    )
    try:
        rollout = record(rollout, decided, ports, actor)
    except SeqTaken:
        return Committed(rollout=rollout, flag=flag, lost=True)
    except AuditUnavailable:
        if not lowers(decision):
            raise
        try:
            return Committed(rollout=rollout, flag=_lower(rollout, decision_id, ports), unrecorded=True)
        except SeqTaken:
            return Committed(rollout=rollout, flag=flag, lost=True)
    reached(Point.RECORDED)
    if weights is None:
        return Committed(rollout=rollout, flag=flag)
    try:
        return _apply(rollout, flag, ports, actor, not_after=at + RAISE_VALID)
    except SeqTaken:
        return Committed(rollout=rollout, flag=flag, lost=True)


def lower_unrecorded(rollout: Rollout, kind: str, ports: Ports) -> RouteFlag:
    """
    Bring the flag to 0 although no row can be written now; the next look that can write records it.

    Args:
        rollout: As far as its log tells.
        kind: ``roll_back`` or ``abort``.
        ports: Where to.

    Raises:
        FlagUnavailable: unknown whether it landed.
        SeqTaken: the rollout has ended meanwhile.
    """
    return _lower(rollout, _lowering_id(rollout, kind), ports)


def lower_as_seen(rollout: Rollout, flag: RouteFlag, kind: str, ports: Ports) -> RouteFlag:
    """
    The same for a look that cannot read the log: only if the flag is still the one that was judged, as nobody can be asked whose it is now.

    Raises:
        FlagConflict: it is not.
        FlagUnavailable: unknown whether it landed.
    """
    reached(Point.LOWERING)
    return ports.flags.write(_change(rollout, Weights(), _lowering_id(rollout, kind)), flag.version)


def _lowering_id(rollout: Rollout, kind: str) -> str:
    state = rollout.state
    if isinstance(state, Moving) and lowers(state.decision):
        return state.decision_id  # it is decided already, and is only finished
    return f"{rollout.id}.{rollout.seq + 1}.{kind}"


def record(rollout: Rollout, event: Event, ports: Ports, actor: str) -> Rollout:
    """
    Append one row and return the rollout after it.

    Raises:
        SeqTaken, AuditUnavailable: as the port says.
        LogError: the event does not fit; nothing was written.
    """
    new = NewEntry(rollout_id=rollout.id, seq=rollout.seq + 1, actor=actor, event=event)
    # A dry run of the step: refuses what does not fit before it is written, and says what to tell.
    looked = event.observed.at if isinstance(event, Decided) else None
    draft = Entry(rollout_id=new.rollout_id, seq=new.seq, at=looked or ports.audit.now(), actor=actor, event=event)
    notice = notice_of(rollout, step(rollout, draft), draft)
    return step(rollout, ports.audit.append(new, notice))


def settle(
    rollout: Rollout, flag: RouteFlag | None, ports: Ports, *, actor: str
) -> tuple[Rollout, RouteFlag | None, Convergence]:
    """
    Finish or withdraw whatever an earlier look left half-done.

    Returns:
        The rollout and flag afterwards, and how they stand to each other; never Landed, FinishLowering or GiveUpRaise.

    Raises:
        SeqTaken: another controller is settling the same change.
        AuditUnavailable, FlagUnavailable: try again at the next look.
    """
    for _ in range(LOWERING_ATTEMPTS):
        found = converge(rollout, flag)
        match found:
            case InStep() | Killed() | UnrecordedLowering() | Drift():
                return rollout, flag, found
            case Landed():
                assert flag is not None, "a change cannot have landed in a flag that is not there"
                rollout = _confirm(rollout, flag, ports, actor)
            case FinishLowering():
                done = _apply(rollout, flag, ports, actor)
                rollout, flag = done.rollout, done.flag
            case GiveUpRaise(fenced=fenced):
                rollout, flag = _give_up(rollout, flag, ports, actor, fenced=fenced)
        if rollout.ended:
            return rollout, flag, InStep()
    raise FlagUnavailable(f"flag {rollout.plan.flag!r} kept changing while {rollout.id} was settled; the next look tries again")


def _apply(rollout: Rollout, flag: RouteFlag | None, ports: Ports, actor: str, *, not_after: datetime | None = None) -> Committed:
    moving = rollout.state
    assert isinstance(moving, Moving), moving
    if lowers(moving.decision):
        flag = _lower(rollout, moving.decision_id, ports)
    else:
        try:
            # A promoted flag is nobody's to renew.
            lease = None if isinstance(moving.decision, Promote) else rollout.plan.policy.lease
            change = replace(_change(rollout, moving.weights, moving.decision_id), not_after=not_after, lease=lease)
            reached(Point.RAISING)
            flag = ports.flags.write(change, 0 if flag is None else flag.version)
            reached(Point.RAISED)
        except (FlagConflict, FlagKilled):
            # Somebody changed the flag since it was read. The next look withdraws the raise and judges what it finds.
            return Committed(rollout=rollout, flag=flag, lost=True)
    return Committed(rollout=_confirm(rollout, flag, ports, actor), flag=flag)


def _confirm(rollout: Rollout, flag: RouteFlag, ports: Ports, actor: str) -> Rollout:
    moving = rollout.state
    assert isinstance(moving, Moving), moving
    applied = Applied(decision_id=moving.decision_id, weights=moving.weights, flag_version=flag.version)
    rollout = record(rollout, applied, ports, actor)
    reached(Point.CONFIRMED)
    return rollout


def _lower(rollout: Rollout, decision_id: str, ports: Ports) -> RouteFlag:
    """
    Write weight 0 whatever the flag says now; unconditional but for the version, which makes late raises lose.

    Raises:
        SeqTaken: the rollout has ended while this controller was asleep.
    """
    change = _change(rollout, Weights(), decision_id)
    for _ in range(LOWERING_ATTEMPTS):
        flag = ports.flags.read(change.environment, change.key)
        if flag is not None and flag.decision_id == decision_id and seen(flag) == Weights():
            return flag
        if _ended_meanwhile(rollout, ports):
            raise SeqTaken(f"{rollout.id} has ended; {decision_id} comes too late for flag {change.key!r}")
        try:
            reached(Point.LOWERING)
            flag = ports.flags.write(change, 0 if flag is None else flag.version)
            reached(Point.LOWERED)
            return flag
        except FlagConflict:
            continue
    raise FlagUnavailable(f"flag {change.key!r} kept changing while {decision_id} lowered it")


def _ended_meanwhile(rollout: Rollout, ports: Ports) -> bool:
    """
    Whether others brought the rollout to its end, after which the flag may be another rollout's.

    Asked between the reading of the flag and its writing: if it has not ended by then, no other rollout has written what was read, and
    whoever does so now makes the version fail. A log that cannot be read, or contradicts itself, keeps nobody from lowering.
    """
    try:
        return replay(ports.audit.entries(rollout.id)).ended
    except (PortError, LogError):
        return False


def _give_up(
    rollout: Rollout, flag: RouteFlag | None, ports: Ports, actor: str, *, fenced: bool
) -> tuple[Rollout, RouteFlag | None]:
    moving = rollout.state
    assert isinstance(moving, Moving), moving
    if not fenced and not (flag is not None and flag.killed):
        settled_weights = rollout.weights
        # Before the first change the flag may serve whatever came before this rollout: then it is fenced by a plain weight 0 write.
        # A lease that has lapsed meanwhile stays lapsed: a fence is no reason to send anybody back to the candidate.
        change = replace(_change(rollout, settled_weights, fence_id(moving.decision_id)), keeps_lease=True)
        # As in `_ended_meanwhile`: the log that says what to fence must not be older than the flag.
        if (seq := ports.audit.entries(rollout.id)[-1].seq) > rollout.seq:
            raise SeqTaken(f"{rollout.id} is at row {seq}, this look knew {rollout.seq}")
        try:
            reached(Point.FENCING)
            flag = ports.flags.write(change, 0 if flag is None else flag.version)
            reached(Point.FENCED)
        except (FlagConflict, FlagKilled):
            return rollout, ports.flags.read(rollout.plan.environment, rollout.plan.flag)
    text = f"{moving.decision.kind} {moving.decision_id} had not reached the flag"
    version = 0 if flag is None else flag.version
    rollout = record(rollout, Abandoned(decision_id=moving.decision_id, text=text, flag_version=version), ports, actor)
    reached(Point.WITHDRAWN)
    return rollout, flag


def _change(rollout: Rollout, weights: Weights, decision_id: str) -> FlagChange:
    plan = rollout.plan
    return FlagChange(
        environment=plan.environment,
        key=plan.flag,
        control=plan.baseline,
        candidate=plan.candidate,
        salt=salt_of(rollout),
        unit=plan.unit,
        weight=weights.live,
        shadow_weight=weights.shadow,
        decision_id=decision_id,
    )
