"""
The commands with which a person acts on a rollout: approve, reject, pause, resume, promote, rollback, abort, override; tokens and passwords.

Who acts is what `--actor`, PENSTOCK_ACTOR or the login says: whoever may run this has the database's password already. Its one rule: with
a people file, groups and rights come from there and from nowhere else.
"""

import sys
from datetime import datetime
from typing import Annotated, Literal

from cyclopts import App, Parameter

from controller.act import Acted, Ask, act
from controller.cli.output import Output, console, errors, print_object
from controller.cli.rollouts import EXIT_HELD, EXIT_WAITS, Actor, Id, opened, resolve, say
from controller.core.people import Right
from controller.core.rollout import Check
from controller.settings import SettingsError
from controller.wiring import caller_of

PASSWORD_MIN = 12
"""Characters; length is what makes a password hard to guess."""

Reason = Annotated[str, Parameter(help="Goes into the audit log")]
Digest = Annotated[
    str | None, Parameter(help="The question or step that you saw (`get -o json`); refused if it is another by now")
]


def approve(
    rollout_id: Id,
    *,
    group: Annotated[tuple[str, ...], Parameter(help="The group you approve as; default: all of yours")] = (),
    digest: Digest = None,
    actor: Actor = None,
    output: Output = "table",
) -> int:
    """Say yes to the phase that a rollout waits to enter; the next gate check acts on it."""
    _act(Ask(verb=Right.APPROVE, rollout_id=rollout_id, digest=digest, groups=tuple(group)), actor, output)
    return 0


def reject(rollout_id: Id, *, reason: Reason, digest: Digest = None, actor: Actor = None, output: Output = "table") -> int:
    """Say no to the phase that a rollout waits to enter: it is paused, the votes are void, and everybody is told."""
    _act(Ask(verb=Right.REJECT, rollout_id=rollout_id, reason=reason, digest=digest), actor, output)
    return 0


def pause(rollout_id: Id, *, reason: Reason, actor: Actor = None, output: Output = "table") -> int:
    """Raise nothing until resumed; lowering stays armed."""
    _act(Ask(verb=Right.PAUSE, rollout_id=rollout_id, reason=reason), actor, output, lowering=True)
    return 0


def resume(rollout_id: Id, *, reason: Reason, actor: Actor = None, output: Output = "table") -> int:
    """Let a paused rollout go on; its weight is set again and its phase bakes anew."""
    _act(Ask(verb=Right.RESUME, rollout_id=rollout_id, reason=reason), actor, output)
    return 0


def rollback(rollout_id: Id, *, reason: Reason, actor: Actor = None, output: Output = "table") -> int:
    """Bring the candidate back to 0% now, because of the candidate."""
    _act(Ask(verb=Right.ROLL_BACK, rollout_id=rollout_id, reason=reason), actor, output, lowering=True)
    return 0


def abort(rollout_id: Id, *, reason: Reason, actor: Actor = None, output: Output = "table") -> int:
    """Call the rollout off, whatever the candidate is like; 0% now."""
    _act(Ask(verb=Right.ABORT, rollout_id=rollout_id, reason=reason), actor, output, lowering=True)
    return 0


def override(
    rollout_id: Id,
    *,
    check: Annotated[
        tuple[Literal["approval", "freeze", "bake"], ...], Parameter(help="What the next step may go without; repeatable")
    ],
    reason: Reason,
    ticket: Annotated[str, Parameter(help="Where it is written down, such as INC-4711")],
    digest: Digest = None,
    actor: Actor = None,
    output: Output = "table",
) -> int:
    """
    Break-glass: let the next step be taken without an approval, out of a freeze, or before the bake is over.

    It moves nothing: the next gate check judges everything else. Never past a kill, a breach, a pause or missing evidence.
    """
    checks = tuple(Check(c) for c in check)
    _act(
        Ask(verb=Right.OVERRIDE, rollout_id=rollout_id, reason=reason, ticket=ticket, checks=checks, digest=digest), actor, output
    )
    return 0


def promote(rollout_id: Id, *, digest: Digest = None, actor: Actor = None, output: Output = "table") -> int:
    """Go on now, if nothing stands against it: the gate check that would come by itself; exit code 6 if it holds, 4 for an approval."""
    acted = _act(Ask(verb=Right.PROMOTE, rollout_id=rollout_id, digest=digest), actor, output)
    decision = None if acted.looked is None else acted.looked.decision
    if decision is None or decision.kind in ("advance", "promote"):
        return 0
    errors.print(f"{decision.kind.replace('_', ' ')}: {decision.text}", soft_wrap=True, markup=False)
    return EXIT_WAITS if decision.why.value == "awaiting_approval" else EXIT_HELD


def _act(ask: Ask, actor: str | None, output: Output, *, lowering: bool = False) -> Acted:
    with opened() as (controller, settings):
        caller = caller_of(settings, actor or settings.actor, ask.groups or settings.groups, lowering=lowering)
        named = Ask(
            verb=ask.verb,
            rollout_id=resolve(controller.ports, ask.rollout_id),
            reason=ask.reason,
            digest=ask.digest,
            groups=ask.groups,
            ticket=ask.ticket,
            checks=ask.checks,
        )
        acted = act(named, caller, controller.ports)
        say(acted.rollout, controller.ports, output)
    return acted


token = App(name="token", help="Tokens of the HTTP API: new.")


@token.command
def new(
    id_: Annotated[str, Parameter(name="ID", help="How you call it, such as laptop or ci")],
    *,
    role: Annotated[
        tuple[Literal["viewer", "auditor", "release-manager", "sre-oncall"], ...],
        Parameter(help="It may do no more than this role; repeatable; default: all that the person may"),
    ] = (),
    expires: Annotated[datetime | None, Parameter(help="The last day on which it is valid, 2027-01-31")] = None,
    output: Output = "table",
) -> int:
    """Make a token. It is printed once; people.yaml gets only its hash, in the line that is printed with it."""
    from controller.people import TokenSpec, new_token

    secret, digest = new_token()
    day = None if expires is None else expires.date()
    entry = TokenSpec(id=id_, hash=digest, roles=list(role), expires=day).model_dump(mode="json", exclude_defaults=True)
    if output != "table":
        print_object({"token": secret, "entry": entry}, output)
        return 0
    console.print(secret, soft_wrap=True, markup=False)
    line = ", ".join(
        f"{k}: [{', '.join(v)}]" if isinstance(v, list) else f'{k}: "{v}"' if k == "hash" else f"{k}: {v}"
        for k, v in entry.items()
    )
    errors.print(f"put under the person's tokens in people.yaml: - {{{line}}}", soft_wrap=True, markup=False)
    return 0


people = App(name="people", help="People of people.yaml: password.")


@people.command
def password() -> int:
    """
    A hash of a password, with its line for people.yaml: asked for on a terminal, else read from the first line of stdin.
    """
    import getpass

    from controller.people import hash_password

    if sys.stdin.isatty():
        said = getpass.getpass("password: ")
        if getpass.getpass("again: ") != said:
            raise SettingsError("the two are not the same")
    else:
        said = sys.stdin.readline().rstrip("\r\n")
    if len(said) < PASSWORD_MIN:
        raise SettingsError(f"a password needs at least {PASSWORD_MIN} characters, got {len(said)}")
    print(f'password: "{hash_password(said)}"')  # noqa: T201  # the answer
    return 0
