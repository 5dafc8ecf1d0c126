"""
Who may do what: people, the groups they are in, the roles of the groups, and what each role may do.

Every door (command line, HTTP, Slack, Prefect's forms) turns whoever knocks into a `Caller` here and asks `require` before it calls a
command. Its one rule: what is not granted is refused; nobody is anybody by default.
"""

import hmac
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256


class NotAllowed(Exception):
    """The person is known and may not do this, or is not known; the message says which right is lacking and who has it."""


class Right(StrEnum):
    """One thing that may be done; the verbs of every door."""

    READ = "read"
    START = "start"
    APPROVE = "approve"
    REJECT = "reject"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    ABORT = "abort"
    OVERRIDE = "override"
    KILL = "kill"
    UNKILL = "unkill"
    EXPORT = "export"


class Role(StrEnum):
    VIEWER = "viewer"
    AUDITOR = "auditor"
    RELEASE_MANAGER = "release-manager"
    SRE_ONCALL = "sre-oncall"


_LOWERING = frozenset({Right.REJECT, Right.PAUSE, Right.ROLL_BACK, Right.ABORT, Right.KILL})

RIGHTS: Mapping[Role, frozenset[Right]] = {
    Role.VIEWER: frozenset({Right.READ}),
    Role.AUDITOR: frozenset({Right.READ, Right.EXPORT}),
    # Starts and carries on; whoever raises is not whoever breaks the glass or takes a kill back.
    Role.RELEASE_MANAGER: _LOWERING | {Right.READ, Right.START, Right.APPROVE, Right.RESUME, Right.PROMOTE},
    # Stops, mends, and answers for the exceptions.
    Role.SRE_ONCALL: _LOWERING | {Right.READ, Right.APPROVE, Right.RESUME, Right.PROMOTE, Right.OVERRIDE, Right.UNKILL},
}
"""The table of `docs/reference/people-yaml.md`; a test holds the two together."""

CONTROLLER_NAMES = frozenset({"gate-check", "guard"})
"""How the controller signs its own rows; no person may be called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """
    Whoever knocks, once it is known who that is.

    Args:
        name: As it goes into the audit log.
        groups: In whose name approvals are given.
        rights: What may be done.
        claimed: The name is what the caller says; nothing was checked.
    """

    name: str
    groups: tuple[str, ...] = ()
    rights: frozenset[Right] = frozenset()
    claimed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """
    A secret that stands for a person; only its digest is known.

    Args:
        id: How people call it.
        digest: SHA-256 of the token, hexadecimal. A token is 256 random bits, which no dictionary holds: it needs no slow hash.
        roles: It carries no more than these; empty for all that the person may.
        expires: From then on it is none; None for never.
    """

    id: str
    digest: str = field(repr=False)
    roles: tuple[Role, ...] = ()
    expires: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Someone, or a program that acts as itself; `slack` is a user id (``U...``), `password` a hash (``scrypt:...``), "" for none."""

    name: str
    full_name: str = ""
    email: str = ""
    login: str = ""
    slack: str = ""
    password: str = field(default="", repr=False)
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """People with common roles; `slack` is a usergroup id (``S...``) whose members belong to it as well, if they are people."""

    name: str
    roles: tuple[Role, ...]
    members: tuple[str, ...] = ()
    slack: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Everybody, as `people.yaml` says; `workspaces` are the Slack team ids (``T...``) whose clicks count."""

    people: tuple[Person, ...]
    groups: tuple[Group, ...]
    workspaces: tuple[str, ...] = ()

    def called(self, name: str) -> Caller:
        """
        Raises:
            NotAllowed: there is no such person.
        """
        if not any(p.name == name for p in self.people):
            raise NotAllowed(f"{name!r} is not among the people of this controller")
        return self._caller(name)

    def person(self, login: str) -> Person | None:
        """Whoever logs in by this name."""
        return next((p for p in self.people if (p.login or p.name).lower() == login.lower()), None)

    def with_email(self, email: str) -> Person | None:
        return next((p for p in self.people if p.email and p.email.lower() == email.lower()), None)

    def with_token(self, token: str, now: datetime) -> Caller | None:
        """Whose token it is; None for nobody's, or one that has expired. Takes as long whichever it is."""
        return self.with_digest(token_digest(token), now)

    def with_digest(self, given: str, now: datetime) -> Caller | None:
        """As `with_token`, for who keeps only a token's digest."""
        found = None
        for person in self.people:
            for known in person.tokens:
                # No early end: the time must not tell how many were tried.
                if hmac.compare_digest(known.digest, given) and (known.expires is None or now < known.expires):
                    found = person.name, known.roles
        if found is None:
            return None
        name, roles = found
        caller = self._caller(name)
        return caller if not roles else Caller(name=name, groups=caller.groups, rights=caller.rights & rights_of(roles))

    def in_slack(self, team: str, user: str, usergroups: Set[str] = frozenset()) -> Caller:
        """
        Args:
            team, user: Ids that Slack signed.
            usergroups: Ids of the usergroups that the user is in, as far as somebody asked Slack.

        Raises:
            NotAllowed: another workspace, or nobody known.
        """
        if team not in self.workspaces:
            raise NotAllowed(f"clicks from the Slack workspace {team!r} do not count here")
        person = next((p for p in self.people if p.slack and p.slack == user), None)
        if person is None:
            raise NotAllowed(f"the Slack user {user!r} is not among the people of this controller")
        return self._caller(person.name, usergroups)

    def group(self, name: str) -> Group | None:
        return next((g for g in self.groups if g.name == name), None)

    def holders(self, right: Right) -> tuple[str, ...]:
        """Names of the groups that have a right."""
        return tuple(g.name for g in self.groups if right in rights_of(g.roles))

    def _caller(self, name: str, usergroups: Set[str] = frozenset()) -> Caller:
        own = [g for g in self.groups if name in g.members or (g.slack and g.slack in usergroups)]
        rights = frozenset().union(*(rights_of(g.roles) for g in own))
        return Caller(name=name, groups=tuple(g.name for g in own), rights=rights)


def claimed(name: str, groups: tuple[str, ...] = ()) -> Caller:
    """Someone whose name and groups are what they say, where no people file exists: may do everything, and the log shows the name."""
    return Caller(name=name, groups=groups, rights=frozenset(Right), claimed=True)


def rights_of(roles: tuple[Role, ...]) -> frozenset[Right]:
    return frozenset().union(*(RIGHTS[role] for role in roles))


def require(caller: Caller, right: Right) -> None:
    """
    Raises:
        NotAllowed: the caller does not have the right; names the roles that have it.
    """
    if right not in caller.rights:
        roles = " or ".join(role.value for role in Role if right in RIGHTS[role])
        of = f"is in {', '.join(caller.groups)}" if caller.groups else "is in no group"
        raise NotAllowed(f"{caller.name} {of} and may not {right.replace('_', ' ')}; that takes the role {roles}")


def token_digest(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
