"""
What a person may do: start, approve, reject, override, pause, resume, roll back, abort.

They go through the same commit as the gate check, so a person's word leaves the same rows and obeys the same order. Its one rule: a
command that cannot be done says why and leaves nothing behind.
"""

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256

from controller.commit import Committed, commit, lower_unrecorded, record, settle
from controller.core.converge import unfit_to_begin
from controller.core.decision import Abort, Decision, Pause, Resume, RollBack, Why
from controller.core.notice import notice_of
from controller.core.plan import Plan
from controller.core.question import override_in_force, step_digest, votes_that_count
from controller.core.rollout import (
    Approved,
    AwaitingApproval,
    Baking,
    Check,
    Entry,
    Observed,
    Opened,
    Overridden,
    Paused,
    Pending,
    Rejected,
    Rollout,
    entering_of,
    replay,
)
from controller.ports import AuditUnavailable, FlagHeld, NewEntry, PortError, Ports, SeqTaken, UnknownRollout
from controller.standing import standings


class CommandRefused(Exception):
    """The command does not fit; the message says what it met and what to do instead."""


UNRECORDED = "{}: the flag is at 0%, but the audit log could not be written; the next look records it"

RACE_ATTEMPTS = 5
"""A command that loses the race for a row reads again and tries again; each loss means that somebody else's row went in."""


def rollout_id_of(plan: Plan, key: str) -> str:
    """The same plan name and key give the same id, so that opening twice is opening once."""
    return f"{plan.name}-{sha256(key.encode()).hexdigest()[:8]}"


def start(
    plan: Plan, plan_digest: str, ports: Ports, *, actor: str, key: str, check: Callable[[], None] | None = None
) -> Rollout:
    """
    Open a rollout. Nothing moves yet: the first gate check raises to the first phase.

    Args:
        plan: Checked.
        plan_digest: SHA-256 of the plan as stored.
        ports: The world.
        actor: Who asks.
        key: Makes it idempotent: the same key finds the rollout that it opened before.
        check: One more condition, asked only when the rollout is not open yet; raises what should be raised.

    Raises:
        CommandRefused: the flag serves something else than the plan's baseline, or is killed; the key belongs to another plan.
        FlagHeld: another rollout holds the flag.
    """
    rollout_id = rollout_id_of(plan, key)
    with suppress(UnknownRollout):
        return _same(replay(ports.audit.entries(rollout_id)), plan, key)
    try:
        if check is not None:
            check()
        check_start(plan, ports)
    except FlagHeld:
        # By this very rollout, where the same start came twice at once.
        with suppress(UnknownRollout):
            return _same(replay(ports.audit.entries(rollout_id)), plan, key)
        raise
    event = Opened(plan=plan, plan_digest=plan_digest, key=key)
    draft = Entry(rollout_id=rollout_id, seq=1, at=ports.audit.now(), actor=actor, event=event)
    opened = replay([draft])
    try:
        new = NewEntry(rollout_id=rollout_id, seq=1, actor=actor, event=event)
        return replay([ports.audit.append(new, notice_of(opened, opened, draft))])
    except SeqTaken:
        return _same(replay(ports.audit.entries(rollout_id)), plan, key)


def _same(found: Rollout, plan: Plan, key: str) -> Rollout:
    """Whoever repeats a start with a plan that was edited since must not believe that the edited one runs."""
    if found.plan != plan:
        raise CommandRefused(f"{found.id} was started with the key {key!r} and another plan; take another key for this one")
    return found


def check_start(plan: Plan, ports: Ports) -> None:
    """
    Whether a rollout of this plan could start now.

    Raises:
        CommandRefused: the flag serves something else than the plan's baseline, or is killed.
        FlagHeld: another rollout holds the flag.
    """
    # One whose log cannot be read is left out; whether it holds this flag, the log itself refuses at the first row.
    for other, rollout in standings(ports.index.active(), ports.audit, ports.standings).items():
        held = rollout.plan
        if (held.environment, held.flag) == (plan.environment, plan.flag):
            raise FlagHeld(f"flag {plan.flag!r} in {plan.environment} is held by rollout {other}; end that one first")
    flag = ports.flags.read(plan.environment, plan.flag)
    if flag is None:
        return
    if flag.killed:
        raise CommandRefused(
            f"flag {plan.flag!r} in {plan.environment} is killed; un-kill it first (penstock flags unkill {plan.flag})"
        )
    if unfit := unfit_to_begin(plan, flag):
        raise CommandRefused(f"flag {plan.flag!r} in {plan.environment} {unfit}")


def approve(rollout_id: str, ports: Ports, *, actor: str, groups: tuple[str, ...], digest: str | None = None) -> Rollout:
    """
    Say yes to the phase that the rollout waits to enter.

    Args:
        rollout_id, ports: Which, and where.
        actor, groups: Who, and in whose name.
        digest: The question that is answered (`core.question`); None for whichever is asked now.

    Raises:
        CommandRefused: it waits for nobody, another question is asked by now, or this person's approval would not count.
    """

    def attempt(rollout: Rollout) -> Rollout:
        state = _asked(rollout, digest)
        asked = rollout.plan.approvals_of(state.entering, unproven=True)
        assert asked, "only a phase with an approval, or a plan that asks for one, is waited for"
        own = [a for a in asked if set(groups) & set(a.groups)]
        if not own:
            wanted = " or ".join(dict.fromkeys(g for a in asked for g in a.groups))
            raise CommandRefused(f"{actor} is in {', '.join(groups) or 'no group'}; this approval needs {wanted}")
        if actor == rollout.requester and all(a.not_requester for a in own):
            raise CommandRefused(f"{actor} started {rollout_id}; the plan wants somebody else to approve (not_requester)")
        now = ports.audit.now()
        if all(any(v.actor == actor for v in votes_that_count(a, state.votes, rollout.requester, now)) for a in own):
            return rollout
        event = Approved(entering=state.entering, groups=groups, digest=step_digest(rollout))
        return record(rollout, event, ports, actor)

    return _retried(rollout_id, ports, attempt)


def reject(
    rollout_id: str, ports: Ports, *, actor: str, groups: tuple[str, ...], reason: str, digest: str | None = None
) -> Rollout:
    """
    Say no to the phase that the rollout waits to enter: it is paused until somebody resumes it, and is then asked for anew.

    Raises:
        CommandRefused: it waits for nobody, or another question is asked by now.
    """

    def attempt(rollout: Rollout) -> Rollout:
        state = _asked(rollout, digest)
        event = Rejected(entering=state.entering, groups=groups, reason=reason, digest=step_digest(rollout))
        return record(rollout, event, ports, actor)

    return _retried(rollout_id, ports, attempt)


def override(
    rollout_id: str,
    ports: Ports,
    *,
    actor: str,
    groups: tuple[str, ...],
    checks: tuple[Check, ...],
    reason: str,
    ticket: str,
    digest: str | None = None,
) -> Rollout:
    """
    Break-glass: let the next step be taken without some checks. The next gate check judges all others and moves.

    Raises:
        CommandRefused: no step comes next, another one comes by now, or it is this person's own approval that would be overridden.
    """

    def attempt(rollout: Rollout) -> Rollout:
        state = rollout.state
        if not isinstance(state, Pending | Baking | AwaitingApproval):
            raise CommandRefused(f"{rollout_id} is {_kind(rollout)}: there is no next step whose checks could be overridden")
        _same_step(rollout, digest)
        entering = entering_of(state)
        needed = rollout.plan.approvals_of(entering, unproven=True) if entering < len(rollout.plan.phases) else ()
        if Check.APPROVAL in checks and actor == rollout.requester and any(a.not_requester for a in needed):
            raise CommandRefused(f"{actor} started {rollout_id}; the plan wants somebody else's yes, also past break-glass")
        in_force = override_in_force(rollout, ports.audit.now())
        if in_force is not None and in_force.actor == actor and set(checks) <= set(in_force.event.checks):
            return rollout
        event = Overridden(
            entering=entering, checks=checks, groups=groups, reason=reason, ticket=ticket, digest=step_digest(rollout)
        )
        return record(rollout, event, ports, actor)

    return _retried(rollout_id, ports, attempt)


def _asked(rollout: Rollout, digest: str | None) -> AwaitingApproval:
    if not isinstance(rollout.state, AwaitingApproval):
        told = f" ({rollout.state.text})" if isinstance(rollout.state, Paused) else ""
        raise CommandRefused(f"{rollout.id} does not wait for an approval; it is {_kind(rollout)}{told}")
    _same_step(rollout, digest)
    return rollout.state


def _same_step(rollout: Rollout, digest: str | None) -> None:
    if digest is not None and digest != (now := step_digest(rollout)):
        raise CommandRefused(f"{rollout.id}: this answers another step ({digest[:12]}) than the one that comes now ({now[:12]})")


def pause(rollout_id: str, ports: Ports, *, actor: str, reason: str) -> Rollout:
    def attempt(rollout: Rollout) -> Rollout:
        if isinstance(rollout.state, Paused):
            raise CommandRefused(f"{rollout_id} is paused already")
        return _commit(rollout, Pause(why=Why.BY_PERSON, text=reason), ports, actor)

    return _retried(rollout_id, ports, attempt)


def resume(rollout_id: str, ports: Ports, *, actor: str, reason: str) -> Rollout:
    def attempt(rollout: Rollout) -> Rollout:
        if not isinstance(rollout.state, Paused):
            raise CommandRefused(f"{rollout_id} is not paused; it is {_kind(rollout)}")
        flag = ports.flags.read(rollout.plan.environment, rollout.plan.flag)
        if flag is not None and flag.killed:
            raise CommandRefused(f"flag {flag.key!r} is killed: the next look rolls {rollout_id} back; un-kill it and start anew")
        return _commit(rollout, Resume(why=Why.BY_PERSON, text=reason), ports, actor)

    return _retried(rollout_id, ports, attempt)


def roll_back(rollout_id: str, ports: Ports, *, actor: str, reason: str) -> Rollout:
    """Bring the candidate back to 0 because of the candidate."""
    decision = RollBack(why=Why.BY_PERSON, text=f"{actor}: {reason}")
    return _retried(rollout_id, ports, lambda r: _commit(r, decision, ports, actor), lowering=decision)


def abort(rollout_id: str, ports: Ports, *, actor: str, reason: str) -> Rollout:
    """Call the rollout off, whatever the candidate is like."""
    decision = Abort(why=Why.BY_PERSON, text=reason)
    return _retried(rollout_id, ports, lambda r: _commit(r, decision, ports, actor), lowering=decision)


class _Lost(Exception):
    """Another controller wrote first."""


def _commit(rollout: Rollout, decision: Decision, ports: Ports, actor: str) -> Rollout:
    flag = ports.flags.read(rollout.plan.environment, rollout.plan.flag)
    done: Committed = commit(
        rollout, flag, decision, ports, actor=actor, source="person", observed=Observed(), at=ports.audit.now()
    )
    if done.unrecorded:
        raise PortError(UNRECORDED.format(rollout.id))
    if done.lost and done.rollout.seq == rollout.seq:
        raise _Lost
    return done.rollout


def _retried(
    rollout_id: str, ports: Ports, attempt: Callable[[Rollout], Rollout], *, lowering: RollBack | Abort | None = None
) -> Rollout:
    for _ in range(RACE_ATTEMPTS):
        rollout = replay(ports.audit.entries(rollout_id))
        if rollout.ended:
            raise CommandRefused(f"{rollout_id} has ended: {_kind(rollout)}")
        try:
            if not isinstance(rollout.state, Pending | Baking):
                flag = ports.flags.read(rollout.plan.environment, rollout.plan.flag)
                try:
                    rollout, _, _ = settle(rollout, flag, ports, actor="gate-check")
                except AuditUnavailable as exc:
                    if lowering is None:
                        raise
                    lower_unrecorded(rollout, lowering.kind, ports)
                    raise PortError(UNRECORDED.format(rollout_id)) from exc
                if rollout.ended:
                    raise CommandRefused(f"{rollout_id} has ended: {_kind(rollout)}")
            return attempt(rollout)
        except (SeqTaken, _Lost):
            continue
    raise PortError(f"{rollout_id}: other controllers kept writing; try again")


def _kind(rollout: Rollout) -> str:
    return type(rollout.state).__name__
