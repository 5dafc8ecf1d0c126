"""
Who sits at the browser: logins, sessions, and the token of each form.

A session is a random key in a cookie; the database has its digest, and what the person logged in with. Its one rule: a session is worth
what its proof is worth now: a password that was changed, a token that was taken out, a person who left ends it at the next click.
"""

import hmac
import json
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address

import structlog
from starlette.requests import Request
from starlette.responses import Response

from controller.console.api.calls import address_of
from controller.console.api.problems import Refused
from controller.console.api.shield import BadTokens
from controller.core.people import Caller, NotAllowed, People, Right, claimed
from controller.people import TOKEN_PREFIX, PeopleFile, is_password
from controller.ports import Session, Sessions
from controller.settings import SettingsError
from specfile import SpecError

log = structlog.get_logger("penstock.console")

LASTS = timedelta(hours=12)
"""A shift; then one logs in again."""

GUESSES_AT_ONCE = 2
"""Each takes 32 MiB and a tenth of a second."""

SECRET_MAX = 1024
"""Characters of a password that are looked at."""

PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")

ANYBODY = Caller(name="anybody on this machine", rights=frozenset({Right.READ}), claimed=True)
"""Who reads where nobody is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """
    Somebody at a browser.

    Args:
        caller: As every door knows callers.
        session: None where nobody logged in.
        key: Of the browser, which the tokens of its forms are made from.
    """

    caller: Caller
    session: Session | None
    key: str


class Keeper:
    """
    Args:
        people: Everybody; None where there is no people file.
        sessions: Who is logged in.
        login: `NAME=HASH`, the only login where there is no people file; "" for none.
        issuer: Of OpenID Connect, that is believed; "" for none.

    Raises:
        SettingsError: the login is not one.
    """

    def __init__(self, people: PeopleFile | None, sessions: Sessions, login: str = "", issuer: str = "") -> None:
        self._issuer = issuer
        self._people = people
        self._sessions = sessions
        self._name, _, self._hash = login.rpartition("=")
        if login and (not self._name or not self._hash.startswith("scrypt:")):
            raise SettingsError("PENSTOCK_CONSOLE_LOGIN is not NAME=HASH, with a hash of `penstock people password`")
        self._bad = BadTokens()
        self._guesses = threading.BoundedSemaphore(GUESSES_AT_ONCE)

    @property
    def asks(self) -> bool:
        """Whether there is anybody who could log in."""
        return self._people is not None or bool(self._name)

    @property
    def people_file(self) -> bool:
        return self._people is not None

    def everybody(self) -> People | None:
        """
        Raises:
            Refused: the people file cannot be used.
        """
        if self._people is None:
            return None
        try:
            return self._people.people()
        except SpecError as exc:
            raise Refused(503, "people-file", "the people file cannot be used; `penstock lint` says why") from exc

    def who(self, request: Request) -> Who | None:
        """None for nobody: the browser is sent to the login. Raises Refused, AuditUnavailable."""
        key = request.cookies.get(cookie_name(request), "")
        if not self.asks:
            return Who(caller=ANYBODY, session=None, key=key) if on_loopback(request) else None
        if not key or (session := self._sessions.find(_digest(key))) is None:
            return None
        caller = self._caller(session)
        return None if caller is None else Who(caller=caller, session=session, key=key)

    def log_in(self, request: Request, login: str, secret: str) -> str:
        """
        Returns:
            The key of a new session, whatever the browser had before.

        Raises:
            Refused: wrong, or too many wrong ones from this address.
        """
        address = address_of(request)
        if (wait_s := self._bad.wait_s(address)) is not None:
            text = f"too many wrong logins from here; wait {wait_s:.0f} s"
            raise Refused(429, "too-many-logins", text, headers={"Retry-After": f"{wait_s:.0f}"})
        found = self._check(login, secret[:SECRET_MAX])
        if found is None:
            self._bad.another(address)
            log.warning("bad_login", address=address)
            raise Refused(401, "unknown-caller", "no such login, or another password")
        person, proof = found
        key = secrets.token_urlsafe(32)
        self._sessions.open(_digest(key), person, proof, LASTS)
        log.info("logged_in", person=person, address=address)
        return key

    def let_in(self, request: Request, issuer: str, email: str) -> str:
        """
        A session of whoever an issuer has vouched for.

        Raises:
            Refused: nobody here has that e-mail.
        """
        everybody = self.everybody()
        person = None if everybody is None else everybody.with_email(email)
        if person is None:
            log.warning("stranger_vouched_for", address=address_of(request))
            raise Refused(
                403, "stranger", "you are who you say, and not among the people of this controller (email in people.yaml)"
            )
        key = secrets.token_urlsafe(32)
        self._sessions.open(_digest(key), person.name, _vouched(issuer, person.email), LASTS)
        log.info("logged_in", person=person.name, address=address_of(request), issuer=issuer)
        return key

    def log_out(self, request: Request) -> None:
        if key := request.cookies.get(cookie_name(request), ""):
            self._sessions.close(_digest(key))

    def _check(self, login: str, secret: str) -> tuple[str, str] | None:
        everybody = self.everybody()
        if everybody is not None and secret.startswith(TOKEN_PREFIX):
            caller = everybody.with_token(secret, datetime.now(UTC))
            return None if caller is None else (caller.name, f"token:{_digest(secret)}")
        person = None if everybody is None else everybody.person(login)
        if everybody is None:
            name, hashed = self._name, self._hash if login == self._name else ""
        else:
            name, hashed = ("", "") if person is None else (person.name, person.password)
        with self._guesses:
            right = is_password(secret, hashed)
        return (name, _proof(hashed)) if right else None

    def _caller(self, session: Session) -> Caller | None:
        everybody = self.everybody()
        if everybody is None:
            return claimed(self._name) if session.person == self._name and session.proof == _proof(self._hash) else None
        kind, _, digest = session.proof.partition(":")
        if kind == "token":
            caller = everybody.with_digest(digest, datetime.now(UTC))
            return caller if caller is not None and caller.name == session.person else None
        person = next((p for p in everybody.people if p.name == session.person), None)
        if person is None:
            return None
        # By the issuer of now: an issuer that is no longer believed vouches for nobody.
        proofs = [_proof(person.password)] if person.password else []
        proofs += [_vouched(self._issuer, person.email)] if self._issuer and person.email else []
        if session.proof not in proofs:
            return None
        try:
            return everybody.called(person.name)
        except NotAllowed:
            return None


# --- cookies and forms ----------------------------------------------------------------------------------------------------------


def cookie_name(request: Request) -> str:
    """Behind https with the prefix that binds it to this host."""
    return "__Host-penstock" if request.url.scheme == "https" else "penstock"


def set_cookie(request: Request, response: Response, key: str) -> None:
    response.set_cookie(
        cookie_name(request),
        key,
        max_age=int(LASTS.total_seconds()),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def form_token(key: str) -> str:
    """What a form carries to show that it is ours: only who can read the cookie could make it."""
    return hmac.new(key.encode(), b"form", sha256).hexdigest()


def check_form(request: Request, key: str, token: str) -> None:
    """
    Raises:
        Refused: the form is of another site, or of a session that is no more.
    """
    origin = request.headers.get("origin")
    own = f"{request.url.scheme}://{request.headers.get('host', '')}"
    strange = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") or origin not in (None, own)
    if strange or not key or not hmac.compare_digest(form_token(key), token.encode("ascii", "replace").decode()):
        raise Refused(403, "form", "this form is not of this page, or the page is old: go back, load it again, and send it again")


def on_loopback(request: Request) -> bool:
    """Both by where it comes from and by the name it was asked for: a page elsewhere must not read this one by a name of its own."""
    host = request.url.hostname or ""
    # Through a proxy on this machine everybody seems to be on it.
    if any(name in request.headers for name in PROXIED):
        return False
    return _is_loopback(address_of(request)) and (host == "localhost" or _is_loopback(host))


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _vouched(issuer: str, email: str) -> str:
    return f"oidc:{_digest(json.dumps([issuer, email.lower()]))}"


def _proof(hashed: str) -> str:
    return f"password:{_digest(hashed)}"
