"""
Who calls, and whether the call was made before: the two questions in front of every operation.

Its one rule: the right is asked for before anything is read of the body, and an answer that was given once is given again, not worked
out again.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any

import orjson
import structlog
from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from controller.console.api.problems import Refused, answer, refused
from controller.console.api.shield import BadTokens
from controller.core.people import Caller, People, Right, require
from controller.people import PeopleFile
from controller.ports import RequestLog, Unavailable
from specfile import SpecError

log = structlog.get_logger("penstock.api")

LOWERING = frozenset({Right.PAUSE, Right.ROLL_BACK, Right.ABORT, Right.KILL})
"""Verbs that go on where no key can be kept: doing them twice is doing them once."""

NOT_KEPT = frozenset({401, 403, 429})
"""Refusals that say nothing about the request itself."""

# It only tells OpenAPI; `Door.admit` reads the header itself, for the doors that are no part of it too.
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False, description="`penstock token new`"))]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="The same key is done once; a replay gets the same answer",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """
    A request whose caller is known and has the right.

    Args:
        right: That was asked for.
        key: Idempotency key; None for none.
        fingerprint: SHA-256 of method, path, query and body.
    """

    caller: Caller
    right: Right
    key: str | None
    fingerprint: str


class Door:
    """Tokens to callers, for one application."""

    def __init__(self, people: PeopleFile | None) -> None:
        self._people = people
        self._bad = BadTokens()

    def everybody(self) -> People:
        """Raises Refused: there is no people file that can be used."""
        if self._people is None:
            raise Refused(
                401,
                "unknown-caller",
                "this controller knows no people, so it lets nobody in (PENSTOCK_PEOPLE_FILE)",
                headers=_ASK,
            )
        try:
            return self._people.people()
        except SpecError as exc:
            raise Refused(
                503, "people-file", f"the people file cannot be used: {len(exc.problems)} problems; `penstock lint` shows them"
            ) from exc

    def caller(self, address: str, token: str | None) -> Caller:
        """
        Raises:
            Refused: no token, nobody's, or too many of those from this address.
        """
        everybody = self.everybody()
        if not token:
            raise Refused(401, "unknown-caller", "a token is needed: Authorization: Bearer pst_...", headers=_ASK)
        caller = everybody.with_token(token, datetime.now(UTC))
        if caller is not None:
            return caller
        wait_s = self._bad.another(address)
        if wait_s is not None:
            wait = f"{wait_s:.0f}"
            raise Refused(
                429, "too-many-bad-tokens", f"too many bad tokens from {address}; wait {wait} s", headers={"Retry-After": wait}
            )
        log.warning("bad_token", address=address)
        raise Refused(401, "unknown-caller", "the token is nobody's, or has expired", headers=_ASK)

    def admit(self, request: Request, right: Right) -> Caller:
        """
        Raises:
            Refused: as `caller`.
            NotAllowed: the person does not have the right.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        caller = self.caller(address_of(request), token.strip() if scheme.lower() == "bearer" else None)
        require(caller, right)
        return caller

    def needs(self, right: Right) -> Callable[..., Awaitable[Call]]:
        """The dependency of an operation that takes a right."""

        async def known(request: Request, bearer: Bearer, idempotency_key: Key = None) -> Call:
            caller = self.admit(request, right)
            said = f"{request.method} {request.url.path}?{request.url.query}\n".encode() + await request.body()
            return Call(caller=caller, right=right, key=idempotency_key, fingerprint=sha256(said).hexdigest())

        async def reading(request: Request, bearer: Bearer) -> Call:
            return await known(request, bearer)

        return reading if right in (Right.READ, Right.EXPORT) else known


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


_ASK = {"WWW-Authenticate": "Bearer"}


def once(requests: RequestLog, call: Call, work: Callable[[], Any]) -> Response:
    """
    Do the work of a call, or give the answer that it got before.

    Args:
        requests: Where answers are kept.
        call: Whose.
        work: Returns what is answered as JSON; raises what `problems.refused` knows.
    """
    if call.key is None:
        return as_json(work())
    who, key = call.caller.name, call.key
    try:
        taken = requests.take(who, key, call.fingerprint)
    except Unavailable:
        if call.right not in LOWERING:
            raise
        return as_json(work())
    if not taken.ours:
        if not taken.same:
            raise Refused(422, "key-of-another-request", f"Idempotency-Key {key!r} belongs to another request; take a new one")
        if taken.status is None or taken.answer is None:
            raise Refused(409, "in-progress", "the same request is being worked on", headers={"Retry-After": "1"})
        kind = "application/json" if taken.status < 400 else "application/problem+json"
        return Response(taken.answer, taken.status, media_type=kind, headers={"Idempotent-Replayed": "true"})
    try:
        given = as_json(work())
    except Exception as exc:
        problem = refused(exc)
        if problem.problem.status >= 500 or problem.problem.status in NOT_KEPT:
            with suppress(Unavailable):
                requests.give_back(who, key)
            raise
        given = answer(problem)
    with suppress(Unavailable):  # it is done, and said; a replay finds that out by itself
        requests.answer(who, key, given.status_code, bytes(given.body).decode())
    return given


def as_json(data: Any) -> Response:
    try:
        body = orjson.dumps(data)
    except TypeError:  # a text that is no UTF-8
        body = json.dumps(data, default=str).encode()
    return Response(body, media_type="application/json")
