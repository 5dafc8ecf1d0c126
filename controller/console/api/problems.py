"""
Refusals as `application/problem+json` (RFC 9457): what was wrong, in which field, and with what value.

Every error of a command and of the framework comes by here. Its one rule: what nobody expected is answered without a word about its inside;
the log has it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from controller.act import BadAsk
from controller.commands import CommandRefused
from controller.core.people import NotAllowed
from controller.core.rollout import LogError
from controller.ports import FlagConflict, FlagHeld, FlagKilled, PortError, Unavailable, UnknownFlag, UnknownRollout
from controller.settings import SettingsError
from specfile import SpecError

log = structlog.get_logger("penstock.api")

VALUE_MAX = 80
"""Characters of a refused value that are repeated."""


class FieldProblem(BaseModel):
    """One field that is wrong; of a plan, `line` and `column` say where it stands."""

    field: str = Field(description="Where: body.reason, query.limit, or a place in the plan")
    value: Annotated[str | None, Field(description="What was there, shortened")] = None
    message: str
    line: int | None = None
    column: int | None = None


class Problem(BaseModel):
    """A refusal."""

    type: str = Field(description="urn:penstock:problem: and a word that programs can go by")
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []


class Refused(Exception):
    """A request that is refused as it is."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Iterable[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(
            type=f"urn:penstock:problem:{kind}", title=kind.replace("-", " "), status=status, detail=detail, errors=list(errors)
        )
        self.headers = dict(headers or {})


def of_field(field: str, value: object, message: str, *, status: int = 422, kind: str = "invalid") -> Refused:
    return Refused(status, kind, f"{field}: {message}", errors=[FieldProblem(field=field, value=shown(value), message=message)])


def refused(exc: Exception) -> Refused:
    """The refusal that an error comes to."""
    match exc:
        case Refused():
            return exc
        case NotAllowed():
            return Refused(403, "not-allowed", str(exc))
        case BadAsk():
            return Refused(422, "invalid", str(exc), errors=[FieldProblem(field=f"body.{exc.field}", message=str(exc))])
        case CommandRefused() | FlagHeld() | FlagConflict() | FlagKilled():
            return Refused(409, "refused", str(exc))
        case UnknownRollout() | UnknownFlag():
            return Refused(404, "unknown", str(exc))
        case SpecError():
            errors = [FieldProblem(field=p.path or "body", message=p.text, line=p.line, column=p.column) for p in exc.problems]
            return Refused(422, "invalid", str(exc), errors=errors)
        case RequestValidationError():
            return _invalid(exc)
        case HTTPException():
            kinds = {404: "unknown", 405: "method-not-allowed"}
            return Refused(exc.status_code, kinds.get(exc.status_code, "refused"), str(exc.detail), headers=exc.headers)
        case Unavailable() | PortError() | SettingsError():
            return Refused(503, "unavailable", str(exc), headers={"Retry-After": "1"})
        case LogError():
            log.error("log_contradicts_itself", error=str(exc))
            return Refused(500, "log-broken", f"the audit log contradicts itself: {exc}")
        case _:
            log.error("request_broke", exc_info=exc)
            return Refused(500, "internal", "something broke inside; the controller's log says what")


def answer(problem: Refused) -> Response:
    # Not as UTF-8: what is repeated of a request may be no text at all.
    body = json.dumps(problem.problem.model_dump(exclude_none=True), ensure_ascii=True)
    return Response(body, problem.problem.status, media_type="application/problem+json", headers=problem.headers)


async def on_error(_: Request, exc: Exception) -> Response:
    """The application's handler of everything that is raised."""
    return answer(refused(exc))


def shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= VALUE_MAX else f"{text[: VALUE_MAX - 3]}..."


def _invalid(exc: RequestValidationError) -> Refused:
    errors = []
    for found in exc.errors():
        if found["type"] == "json_invalid":
            return Refused(400, "malformed", f"the body is not JSON: {found.get('ctx', {}).get('error', found['msg'])}")
        message = str(found["msg"]).removeprefix("Value error, ")
        missing = found["type"] == "missing"
        value = None if missing else shown(found.get("input"))
        errors.append(FieldProblem(field=".".join(str(p) for p in found["loc"]), value=value, message=message))
    return Refused(422, "invalid", "; ".join(f"{e.field}: {e.message}" for e in errors), errors=errors)


_TEXTS = {
    400: "The body is not what its content type says.",
    401: "No token, or one that is nobody's.",
    403: "The person may not do this.",
    404: "There is no such rollout, row or flag.",
    409: "It does not fit: another question, another state, another holder.",
    413: "The body is too large.",
    415: "The body has another content type than the ones that are read.",
    422: "A field is missing or wrong.",
    429: "Too many bad tokens from this address.",
    503: "The database or Prometheus does not answer; try again.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of an operation, for OpenAPI."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": _TEXTS[s], "content": content} for s in (*statuses,)}
