"""
The pages by which people come in: name and password, or an issuer that vouches for them (OpenID Connect).

They stand before all other pages, which `app` draws, and leave sessions to `login`. Its one rule: an answer is to a login that began in this browser;
what it must remember until then lies in a cookie, and nothing here.
"""

import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from controller.console.api.listing import decoded, encoded
from controller.console.api.problems import Refused, refused
from controller.console.web.login import Keeper, Who, check_form, cookie_name, form_token, set_cookie
from controller.ports import PortError

if TYPE_CHECKING:
    from controller.adapters.oidc import OidcProvider, Question

OIDC_COOKIE = "penstock_oidc"

_OWN_PATH = re.compile(r"/(?![/\\])[A-Za-z0-9._~/?=&%:,+-]*")


class Render(Protocol):
    """Draws a page by its template."""

    def __call__(
        self, request: Request, template: str, who: Who | None, *, status: int, headers: Mapping[str, str] | None, **values: Any
    ) -> Response: ...


class Entrance:
    """
    Args:
        keeper: Who may come in.
        oidc: The issuer; None for none.
        render: Draws a page.
        arriving: Called when somebody is about to log in.
    """

    def __init__(self, keeper: Keeper, oidc: "OidcProvider | None", render: Render, arriving: Callable[[], None]) -> None:
        self._keeper, self._oidc, self._render, self._arriving = keeper, oidc, render, arriving

    def routes(self) -> list[Route]:
        return [
            Route("/login", self.page, methods=["GET"]),
            Route("/login", self.log_in, methods=["POST"]),
            Route("/login/oidc", self.go_to_issuer),
            Route("/login/oidc/back", self.back_from_issuer),
        ]

    async def page(self, request: Request) -> Response:
        return self._form(request)

    def _form(self, request: Request, *, problem: Refused | None = None, login: str = "") -> Response:
        self._arriving()
        # The form of somebody who is nobody yet: bound to this browser by a cookie all the same.
        key = request.cookies.get(cookie_name(request), "") or secrets.token_urlsafe(32)
        response = self._render(
            request,
            "login.html",
            None,
            status=200 if problem is None else problem.problem.status,
            headers={} if problem is None else problem.headers,
            problem=None if problem is None else problem.problem,
            form_token=form_token(key),
            after=_own_path(request.query_params.get("next", "")),
            login=login,
            asks=self._keeper.asks,
            people_file=self._keeper.people_file,
            issuer="" if self._oidc is None else self._oidc.issuer,
        )
        if cookie_name(request) not in request.cookies:
            set_cookie(request, response, key)
        return response

    async def log_in(self, request: Request) -> Response:
        form = await read_form(request)
        login = form.get("login", "")[:254]
        try:
            check_form(request, request.cookies.get(cookie_name(request), ""), form.get("token", ""))
            if not self._keeper.asks:
                raise Refused(401, "unknown-caller", "nobody can log in: this controller knows no people (PENSTOCK_PEOPLE_FILE)")
            key = await run_in_threadpool(self._keeper.log_in, request, login, form.get("password", ""))
        except Refused as exc:
            return self._form(request, problem=exc, login=login)
        except PortError as exc:
            return self._form(request, problem=refused(exc), login=login)
        response = RedirectResponse(_own_path(form.get("next", "")) or "/rollouts", 303)
        set_cookie(request, response, key)
        return response

    async def go_to_issuer(self, request: Request) -> Response:
        secret, after = secrets.token_urlsafe(32), _own_path(request.query_params.get("next", ""))
        try:
            if self._oidc is None:
                raise HTTPException(404, "this console knows no issuer")
            where = await run_in_threadpool(self._oidc.where, _question(request, secret))
        except (PortError, HTTPException) as exc:
            return self._form(request, problem=refused(exc))
        response = RedirectResponse(where, 303)
        response.set_cookie(
            OIDC_COOKIE,
            f"{secret}.{encoded(after)}",
            max_age=600,
            path="/login/oidc",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )
        return response

    async def back_from_issuer(self, request: Request) -> Response:
        secret, _, after = request.cookies.get(OIDC_COOKIE, "").partition(".")
        try:
            if self._oidc is None or not secret:
                raise Refused(403, "form", "this login did not begin in this browser, or took too long: log in again")
            key = await run_in_threadpool(self._proven, request, secret)
        except (PortError, Refused) as exc:
            response = self._form(request, problem=refused(exc))
        else:
            response = RedirectResponse(_own_path(decoded(after)) or "/rollouts", 303)
            set_cookie(request, response, key)
        response.delete_cookie(OIDC_COOKIE, path="/login/oidc")
        return response

    def _proven(self, request: Request, secret: str) -> str:
        from controller.adapters.oidc import NotProven

        assert self._oidc is not None
        try:
            proven = self._oidc.who(_question(request, secret), dict(request.query_params))
        except NotProven as exc:
            raise Refused(401, "not-proven", str(exc)) from exc
        return self._keeper.let_in(request, self._oidc.issuer, proven.email)


def _question(request: Request, secret: str) -> "Question":
    """All of it comes from one secret in the browser's cookie, so that nothing needs to be remembered here."""
    from controller.adapters.oidc import Question

    def part(name: str) -> str:
        return hmac.new(secret.encode(), name.encode(), sha256).hexdigest()

    back = f"{request.url.scheme}://{request.headers.get('host', '')}/login/oidc/back"
    return Question(state=part("state"), nonce=part("nonce"), verifier=part("verifier"), back=back)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; none where it is no form, or has too many."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        return {}
    try:
        return dict(parse_qsl((await request.body()).decode(), keep_blank_values=True, max_num_fields=50))
    except ValueError:
        return {}


def _own_path(text: str) -> str:
    """Where to go after the login; "" for anything but a page of this console."""
    return text if len(text) < 1_000 and _OWN_PATH.fullmatch(text) else ""
