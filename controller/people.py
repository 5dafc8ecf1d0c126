"""
people.yaml: who may do what, read and checked.

    apiVersion: penstock/v1
    kind: People
    people:
      - {name: dana, email: dana@example.com, slack: U0123ABCD, tokens: [{id: laptop, hash: "sha256:..."}]}
    groups:
      - {name: release-managers, roles: [release-manager], members: [dana], slack: S0123ABCD}

Its one rule: a file with a contradiction (two people with one Slack id, a group with a stranger) is refused whole, at its line and column.
"""

import hashlib
import hmac
import json
import secrets
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import GenerateJsonSchema

from controller.core.people import CONTROLLER_NAMES, Group, People, Person, Role, Token, token_digest
from specfile import Inconsistent, Loc, SpecError, parse

log = structlog.get_logger("penstock.people")

SCHEMA_FILE = Path(__file__).with_name("people.v1.schema.json")

TOKEN_PREFIX = "pst_"
"""So that scanners of repositories can find a token that was committed."""

SCRYPT_LOG_N = 15
"""32 MiB and about a tenth of a second for one guess."""

LOG_N_MAX = 20

_NOBODY = f"scrypt:{SCRYPT_LOG_N}:{'A' * 22}:{'A' * 43}"

PersonName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$")]
GroupName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
WorkspaceId = Annotated[str, Field(pattern=r"^[TE][A-Z0-9]{2,20}$")]
RoleName = Literal["viewer", "auditor", "release-manager", "sre-oncall"]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class TokenSpec(_Spec):
    """A bearer token; `penstock token new` makes one with its line for this file."""

    id: GroupName = Field(description="How you call it, such as laptop or ci")
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] = Field(
        description="sha256: and the digest of the token", repr=False
    )
    roles: list[RoleName] = Field([], description="No more than these roles; default: all that the person may do")
    expires: date | None = Field(None, description="The last day (UTC) on which it is valid")

    def token(self) -> Token:
        ends = None if self.expires is None else datetime.combine(self.expires + timedelta(days=1), time(), UTC)
        return Token(id=self.id, digest=self.hash.removeprefix("sha256:"), roles=_roles(self.roles), expires=ends)


class PersonSpec(_Spec):
    """A person, or a program that acts as itself."""

    name: PersonName = Field(description="As the audit log calls the person")
    full_name: str = Field("", max_length=200)
    email: str = Field("", pattern=r"^([^@\s]+@[^@\s]+)?$", max_length=254)
    login: str = Field("", max_length=254, description="Name at the console's login; default: name")
    slack: str = Field("", pattern=r"^([UW][A-Z0-9]{2,20})?$", description="Slack user id, U0123ABCD")
    password: Annotated[str, Field(pattern=r"^(scrypt:[0-9]{1,2}:[A-Za-z0-9_-]{22}:[A-Za-z0-9_-]{43})?$")] = Field(
        "", description="What `penstock people password` prints, for the console's login; default: none", repr=False
    )
    tokens: list[TokenSpec] = []

    def person(self) -> Person:
        return Person(
            name=self.name,
            full_name=self.full_name,
            email=self.email,
            login=self.login or self.name,
            slack=self.slack,
            password=self.password,
            tokens=tuple(t.token() for t in self.tokens),
        )


class GroupSpec(_Spec):
    """People with common roles; plans name groups in `approval.from`."""

    name: GroupName
    roles: list[RoleName] = Field(min_length=1)
    members: list[PersonName] = Field([], description="Names from people")
    slack: str = Field(
        "", pattern=r"^(S[A-Z0-9]{2,20})?$", description="Slack usergroup id: its members belong too, if they are people"
    )

    def group(self) -> Group:
        return Group(name=self.name, roles=_roles(self.roles), members=tuple(self.members), slack=self.slack)


class SlackSpec(_Spec):
    """The team ids whose clicks count."""

    workspaces: list[WorkspaceId] = []


class PeopleSpec(_Spec):
    """Who may do what, as written in people.yaml."""

    api_version: Literal["penstock/v1"] = Field("penstock/v1", alias="apiVersion")
    kind: Literal["People"]
    slack: SlackSpec = SlackSpec()
    people: list[PersonSpec] = Field(min_length=1)
    groups: list[GroupSpec] = []

    @model_validator(mode="after")
    def _fits(self) -> "PeopleSpec":
        if problems := list(self._problems()):
            raise Inconsistent(problems)
        return self

    def _problems(self) -> Iterator[tuple[Loc, str]]:
        each = list(enumerate(self.people))
        yield from _twice(((("people", i, "name"), p.name.lower()) for i, p in each), "another person is called {!r}")
        yield from _twice(((("people", i, "email"), p.email.lower()) for i, p in each), "another person has the e-mail {!r}")
        yield from _twice(((("people", i, "slack"), p.slack) for i, p in each), "another person is the Slack user {!r}")
        logins = ((("people", i, "login" if p.login else "name"), (p.login or p.name).lower()) for i, p in each)
        yield from _twice(logins, "another person logs in as {!r}")
        tokens = [(("people", i, "tokens", j), t) for i, p in each for j, t in enumerate(p.tokens)]
        yield from _twice((((*loc, "hash"), t.hash) for loc, t in tokens), "another token has this hash")
        yield from _twice((((*loc, "id"), f"{loc[1]}/{t.id}") for loc, t in tokens), "this person has another token of this id")
        yield from _twice(((("groups", i, "name"), g.name) for i, g in enumerate(self.groups)), "another group is called {!r}")
        yield from _twice(
            ((("groups", i, "slack"), g.slack) for i, g in enumerate(self.groups)), "another group is the usergroup {!r}"
        )
        for i, person in each:
            if person.name.lower() in CONTROLLER_NAMES:
                yield ("people", i, "name"), f"{person.name!r} is how the controller signs its own decisions"
        known = {p.name for p in self.people}
        for i, group in enumerate(self.groups):
            for j, member in enumerate(group.members):
                if member not in known:
                    yield ("groups", i, "members", j), f"{member!r} is not under people"

    def to_people(self) -> People:
        return People(
            people=tuple(p.person() for p in self.people),
            groups=tuple(g.group() for g in self.groups),
            workspaces=tuple(self.slack.workspaces),
        )


class PeopleFile:
    """
    A people.yaml that is read again when it changes, so that a token that was taken out counts no more.

    A newer file that cannot be read changes nothing: the people before it stay, and the log says what is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._people: People | None = None

    def people(self) -> People:
        """
        Raises:
            SpecError: the file cannot be used, and there was none before it.
        """
        stamp = self._stamp()
        if self._people is None or stamp != self._seen:
            self._seen = stamp
            try:
                self._people = read_people(self._path)
            except SpecError as exc:
                log.error("people_file_unusable", problems=str(exc))
                if self._people is None:
                    raise
        return self._people

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def read_people(path: Path) -> People:
    """
    Read and check a people.yaml.

    Raises:
        specfile.SpecError: one line for each problem, with file, line and column.
    """
    return parse(PeopleSpec, path).to_people()


def new_token() -> tuple[str, str]:
    """A token of 256 random bits, and its hash as people.yaml has it."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    return token, f"sha256:{token_digest(token)}"


def hash_password(password: str) -> str:
    """As people.yaml has it: ``scrypt:log2(N):salt:hash``, salted, so that two hashes of one password differ."""
    salt = secrets.token_bytes(16)
    return f"scrypt:{SCRYPT_LOG_N}:{_text(salt)}:{_text(_scrypt(password, salt, SCRYPT_LOG_N))}"


def is_password(password: str, hashed: str) -> bool:
    """Takes as long for somebody without a password as for a wrong one."""
    _, log_n, salt, digest = (hashed or _NOBODY).split(":")
    same = hmac.compare_digest(_text(_scrypt(password, urlsafe_b64decode(salt + "=="), min(int(log_n), LOG_N_MAX))), digest)
    return same and bool(hashed)


def _scrypt(password: str, salt: bytes, log_n: int) -> bytes:
    said = unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
    return hashlib.scrypt(said, salt=salt, n=1 << log_n, r=8, p=1, dklen=32, maxmem=(1 << log_n) * 1024 + (1 << 20))


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def schema_text() -> str:
    """The JSON Schema of people.yaml, for editors: ``python -m controller.people`` writes it beside this file."""
    made = PeopleSpec.model_json_schema()
    head = {"$schema": GenerateJsonSchema.schema_dialect, "$id": SCHEMA_FILE.name, "title": "Penstock: people.yaml"}
    return json.dumps({**head, **{k: v for k, v in made.items() if k not in head}}, indent=2, ensure_ascii=False) + "\n"


def _roles(names: Iterable[str]) -> tuple[Role, ...]:
    return tuple(Role(name) for name in names)


def _twice(values: Iterable[tuple[Loc, Any]], text: str) -> Iterator[tuple[Loc, str]]:
    seen: set[Any] = set()
    for loc, value in values:
        if value and value in seen:
            yield loc, text.format(value)
        seen.add(value)


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
