"""
What a known person does, the same through every door: the right is asked for, then the command runs.

It stands above `commands` and `tick`; the command line, the HTTP API, Slack and Prefect's forms call it. Its one rule: no door has a verb of
its own, so that what one refuses, all refuse.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from controller import commands
from controller.commands import CommandRefused
from controller.core.people import Caller, NotAllowed, People, Right, require
from controller.core.plan import Approval, Plan
from controller.core.question import step_digest
from controller.core.rollout import Check, LogError, Rollout, replay
from controller.ports import CaughtUp, PortError, Ports, Unavailable
from flagspec import RouteFlag, Snapshot

if TYPE_CHECKING:
    from controller.tick import Tick

REASON_MAX = 1000
"""Characters of a reason, a ticket."""

OF_A_ROLLOUT = (
    Right.APPROVE,
    Right.REJECT,
    Right.PAUSE,
    Right.RESUME,
    Right.PROMOTE,
    Right.ROLL_BACK,
    Right.ABORT,
    Right.OVERRIDE,
)
"""The verbs of `act`."""

NEEDS_REASON = frozenset({Right.REJECT, Right.PAUSE, Right.RESUME, Right.ROLL_BACK, Right.ABORT, Right.OVERRIDE})


class BadAsk(CommandRefused):
    """What was asked for is incomplete; `field` names the part."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Switch(Protocol):
    """A flag store that can un-kill at a version; `adapters.postgres.PostgresFlags` is one."""

    def set_killed(
        self, environment: str, key: str, killed: bool, *, actor: str, reason: str, expected_version: int | None = None
    ) -> RouteFlag:
        """Raises UnknownFlag, FlagConflict, FlagUnavailable."""


class Restorable(Protocol):
    """A flag store that knows its revision; `adapters.postgres.PostgresFlags` is one."""

    def snapshot(self, environment: str) -> Snapshot: ...

    def catch_up(self, environment: str, seen: int, *, actor: str, reason: str) -> CaughtUp | None:
        """As `FlagStore.catch_up`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """
    What is asked of one rollout.

    Args:
        verb: One of `OF_A_ROLLOUT`.
        rollout_id: Which.
        reason: Needed by `NEEDS_REASON`.
        digest: The step that the person saw (`core.question.step_digest`); None for whichever comes now. Heeded by verbs that go on or
            say no: nobody's rollback is refused because the rollout has moved.
        groups: In whose name an approval is given, of the caller's own; empty for all of them.
        ticket, checks: Of an override.
    """

    verb: Right
    rollout_id: str
    reason: str = ""
    digest: str | None = None
    groups: tuple[str, ...] = ()
    ticket: str = ""
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """What came of it: the rollout afterwards, and of `promote` the look that was taken."""

    rollout: Rollout
    looked: "Tick | None" = None


def act(ask: Ask, caller: Caller, ports: Ports) -> Acted:
    """
    Do one thing to one rollout.

    Raises:
        NotAllowed: the caller does not have the right.
        CommandRefused: it does not fit; BadAsk where a part is missing.
        UnknownRollout, Unavailable, LogError: as the commands say.
    """
    require(caller, ask.verb)
    who, where = caller.name, ask.rollout_id
    reason = words("reason", ask.reason) if ask.verb in NEEDS_REASON else ask.reason
    match ask.verb:
        case Right.APPROVE:
            done = commands.approve(where, ports, actor=who, groups=_in_the_name_of(ask, caller), digest=ask.digest)
        case Right.REJECT:
            done = commands.reject(where, ports, actor=who, groups=caller.groups, reason=reason, digest=ask.digest)
        case Right.PAUSE:
            done = commands.pause(where, ports, actor=who, reason=reason)
        case Right.RESUME:
            done = commands.resume(where, ports, actor=who, reason=reason)
        case Right.ROLL_BACK:
            done = commands.roll_back(where, ports, actor=who, reason=reason)
        case Right.ABORT:
            done = commands.abort(where, ports, actor=who, reason=reason)
        case Right.OVERRIDE:
            if not ask.checks:
                raise BadAsk("checks", f"name what is overridden: {', '.join(Check)}")
            done = commands.override(
                where,
                ports,
                actor=who,
                groups=caller.groups,
                checks=tuple(c for c in Check if c in ask.checks),
                reason=reason,
                ticket=words("ticket", ask.ticket),
                digest=ask.digest,
            )
        case Right.PROMOTE:
            return _promote(ask, ports)
        case _:
            raise BadAsk("verb", f"{ask.verb.value} is nothing that is done to a rollout")
    return Acted(rollout=done)


def _promote(ask: Ask, ports: Ports) -> Acted:
    """Go on now, if nothing stands against it: the gate check that would come by itself. It skips no check."""
    from controller.tick import tick  # numpy comes with it

    rollout = replay(ports.audit.entries(ask.rollout_id))
    if rollout.ended:
        raise CommandRefused(f"{rollout.id} has ended: {type(rollout.state).__name__}")
    if ask.digest is not None and ask.digest != step_digest(rollout):
        raise CommandRefused(f"{rollout.id}: another step comes next by now; look again")
    looked = tick(rollout.id, ports, ports.audit.now(), may_raise=True, force=True)
    return Acted(rollout=looked.rollout, looked=looked)


def start(
    plan: Plan,
    plan_digest: str,
    caller: Caller,
    ports: Ports,
    *,
    key: str,
    people: People | None,
    check: Callable[[], None] | None = None,
) -> Rollout:
    """
    Open a rollout.

    Args:
        plan, plan_digest, key, check: As `commands.start`.
        people: Everybody, to refuse a plan that nobody could approve; None where nobody is known.

    Raises:
        NotAllowed: the caller may not start anything.
        CommandRefused, FlagHeld: as `commands.start`; also for a plan that nobody could approve.
    """
    require(caller, Right.START)

    def checks() -> None:
        if people is not None:
            check_approvers(plan, people, caller.name)
        if check is not None:
            check()

    return commands.start(plan, plan_digest, ports, actor=caller.name, key=key, check=checks)


def check_approvers(plan: Plan, people: People, requester: str) -> None:
    """
    Whether there are people who could give each approval that a plan asks for.

    Raises:
        CommandRefused: names the phase, and what is lacking.
    """
    asked: list[tuple[str, Approval]] = [(f"phase {p.name}", p.approval) for p in plan.phases if p.approval is not None]
    if plan.policy.ask is not None:
        asked.append(("gates.ask", plan.policy.ask))
    for where, approval in asked:
        groups = []
        for name in approval.groups:
            if (group := people.group(name)) is None:
                known = ", ".join(g.name for g in people.groups) or "none"
                raise CommandRefused(f"{where}: there is no group {name!r} among the people; there are {known}")
            groups.append(group)
        if any(g.slack for g in groups):
            continue  # a usergroup's members are Slack's to know
        able = {m for g in groups for m in g.members if Right.APPROVE in people.called(m).rights}
        if approval.not_requester:
            able.discard(requester)
        if len(able) < approval.count:
            who = f"{', '.join(sorted(able)) or 'nobody'} could" + (f" ({requester} may not)" if approval.not_requester else "")
            raise CommandRefused(
                f"{where} needs {approval.count} approval{'s' if approval.count > 1 else ''} from {' or '.join(approval.groups)}, but {who}"
            )


def switch(
    flags: Switch, environment: str, key: str, killed: bool, caller: Caller, *, reason: str, version: int | None = None
) -> RouteFlag:
    """
    The kill switch.

    Args:
        flags: Where.
        environment, key: Which flag.
        killed: True kills; False takes a kill back, with both weights at 0.
        caller: Who.
        reason: Goes into the flag's history.
        version: Of the killed flag, for un-killing; None for whichever it is at.

    Raises:
        NotAllowed: the caller does not have the right.
        BadAsk: no reason.
        UnknownFlag, FlagConflict, FlagUnavailable: as the store says.
    """
    require(caller, Right.KILL if killed else Right.UNKILL)
    said = words("reason", reason)
    return flags.set_killed(environment, key, killed, actor=caller.name, reason=said, expected_version=version)


BEYOND_A_BACKUP = 1_000_000_000
"""Writes that a flag store is taken to have lost where nobody knows better: more than any has in the life of a backup."""


def restored(flags: Restorable, environment: str, caller: Caller, *, reason: str, seen: int | None = None) -> CaughtUp:
    """
    Say that the flag store was restored from a backup: what is part-way is lowered, and readers hear the store again.

    Args:
        flags: Where.
        environment: Which.
        caller: Who.
        reason: Goes into the flags' history.
        seen: The highest revision that a reader has (`penstock_flag_revision_applied` of the routers); None for whatever it is.

    Raises:
        NotAllowed: the caller does not have the right (to kill: it can only lower).
        BadAsk: no reason; or the store is at that revision or above, so that nobody is ahead of it.
        FlagUnavailable: as the store says.
    """
    require(caller, Right.KILL)
    said = words("reason", reason)
    here = flags.snapshot(environment).revision
    done = flags.catch_up(environment, here + BEYOND_A_BACKUP if seen is None else seen, actor=caller.name, reason=said)
    if done is None:
        raise BadAsk("seen", f"{environment} is at revision {here}: a reader that has seen {seen} is not ahead of it")
    return done


# --- clicks ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Click:
    """
    A button that was pressed in Slack, as Slack signed it.

    Args:
        team, user: Slack's ids.
        usergroups: Of the user, as far as Slack was asked.
        verb: What the button says; text from outside.
        rollout_id, digest: What it was shown for.
        reason, ticket, checks: From the modal; texts from outside.
    """

    team: str
    user: str
    verb: str
    rollout_id: str
    digest: str
    usergroups: frozenset[str] = frozenset()
    reason: str = ""
    ticket: str = ""
    checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    What the person is told.

    Args:
        done: It was done, by this click or by one before it.
        text: One sentence.
        rollout: Afterwards; None where nothing was done.
        again: Nothing was done, and the same click may succeed later.
    """

    done: bool
    text: str
    rollout: Rollout | None = None
    again: bool = False


def press(click: Click, people: People | None, ports: Ports) -> Answer:
    """One click: done once, however often it comes; or a refusal in words. Never raises for anything that a click can hold."""
    try:
        if people is None:
            raise NotAllowed("this controller knows no people (PENSTOCK_PEOPLE_FILE), so no click counts")
        caller = people.in_slack(click.team, click.user, click.usergroups)
        verb = next((v for v in OF_A_ROLLOUT if v.value == click.verb), None)
        if verb is None:
            raise BadAsk("verb", f"{click.verb[:40]!r} is no button of this release")
        if any(c not in set(Check) for c in click.checks):
            raise BadAsk("checks", f"only {', '.join(Check)} can be overridden")
        ask = Ask(
            verb=verb,
            rollout_id=click.rollout_id,
            reason=click.reason,
            digest=click.digest,
            ticket=click.ticket,
            checks=tuple(Check(c) for c in click.checks),
        )
        acted = act(ask, caller, ports)
    except (NotAllowed, CommandRefused) as exc:
        return Answer(done=False, text=str(exc))
    except (PortError, LogError) as exc:
        return Answer(done=False, text=str(exc), again=isinstance(exc, Unavailable))
    return Answer(done=True, text=f"{caller.name}: {verb.value.replace('_', ' ')}", rollout=acted.rollout)


def words(field: str, text: str) -> str:
    """
    What a person wrote, without the space around it.

    Raises:
        BadAsk: nothing, or too much, or what no text column holds.
    """
    said = text.strip()
    if not said:
        raise BadAsk(
            field, "say why; it goes into the audit log" if field == "reason" else "is needed; it goes into the audit log"
        )
    if len(said) > REASON_MAX or "\0" in said:
        raise BadAsk(field, f"1 to {REASON_MAX} characters without NUL are needed, got {len(said)}")
    return said


def _in_the_name_of(ask: Ask, caller: Caller) -> tuple[str, ...]:
    if not ask.groups or caller.claimed:
        return ask.groups or caller.groups
    if strange := [g for g in ask.groups if g not in caller.groups]:
        raise NotAllowed(f"{caller.name} is not in {', '.join(strange)}")
    return ask.groups
