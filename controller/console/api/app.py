"""
The API as an application: operations, who may call them, and how each answers.

Each operation asks for a right, reads its input through a model, calls the function that the command line calls, and answers what `-o json`
prints. Its one rule: nothing is decided here.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any, Literal

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AwareDatetime, BeforeValidator
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from controller import act, describe
from controller.codec import plan_digest
from controller.commands import CommandRefused, check_start
from controller.console.api import models as m
from controller.console.api.calls import Call, Door, as_json, once
from controller.console.api.listing import LIMIT_MAX, page_of, rows_of
from controller.console.api.problems import Problem, Refused, documented, of_field, on_error
from controller.console.api.shield import Shield
from controller.core.chain import ChainReport, Head
from controller.core.people import NotAllowed, Right
from controller.core.rollout import LogError, Rollout, replay
from controller.ports import FlagHeld, PortError, UnknownFlag
from controller.settings import SettingsError
from controller.spec import RolloutSpec
from controller.sweep import beat
from controller.wiring import NO_PROMETHEUS, Api, check_models
from flagspec import flag_to_json
from specfile import SpecError, load

PREFIX = "/api/v1"

EXPORT_IN_MEMORY = 8_388_608
"""Bytes; a larger export is written to a temporary file."""

PLAN_TYPES = ("application/yaml", "application/json", "application/x-yaml", "text/yaml")

RolloutId = Annotated[str, Path(pattern=m.ROLLOUT_ID, examples=["chat-gpt-5-1a2b3c4d"])]
FlagPart = Annotated[str, Path(pattern=m.NAME)]
Environment = Annotated[str, Query(pattern=m.NAME, description="Of the flags")]


def _written_out(text: object) -> object:
    # pydantic would take any number for seconds since 1970.
    if isinstance(text, str) and not re.match(r"\d{4}-\d\d-\d\d[Tt ]", text):
        raise ValueError("is no time; write 2026-11-26T08:00:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out)]

_READS = documented(401, 403, 404, 422, 429, 503)
_ACTS = documented(400, 401, 403, 404, 409, 413, 422, 429, 503)


def create_api(parts: Api) -> ASGIApp:
    """
    Args:
        parts: What it works on.

    Returns:
        An application to mount at `PREFIX`.
    """
    api = FastAPI(
        title="Penstock",
        version="1",
        description="Progressive delivery for LLM models: what the command line does, for programs.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    known = (
        Refused,
        NotAllowed,
        CommandRefused,
        PortError,
        LogError,
        SpecError,
        SettingsError,
        RequestValidationError,
        HTTPException,
    )
    for kind in (*known, Exception):
        api.add_exception_handler(kind, on_error)
    door = Door(parts.people)
    _reading(api, parts, door)
    _plans(api, parts, door)
    _acting(api, parts, door)
    _flags(api, parts, door)
    _audit(api, parts, door)
    _document(api)
    return Shield(_quiet(api))


# --- reading --------------------------------------------------------------------------------------------------------------------


def _reading(api: FastAPI, parts: Api, door: Door) -> None:
    Reader = Annotated[Call, Depends(door.needs(Right.READ))]
    audit = parts.ports.audit

    @api.get(
        "/whoami",
        response_model=m.Whoami,
        responses=documented(401, 429, 503),
        summary="Who the token stands for",
        tags=["people"],
    )
    def whoami(call: Reader) -> Response:
        caller = call.caller
        return as_json({"name": caller.name, "groups": list(caller.groups), "rights": sorted(r.value for r in caller.rights)})

    @api.get("/rollouts", response_model=m.Page, responses=_READS, summary="Rollouts, newest first", tags=["rollouts"])
    def list_rollouts(
        call: Reader,
        state: Annotated[list[m.State], Query(description="Only these; default: all", max_length=9)] = [],  # noqa: B006  # FastAPI copies it
        q: Annotated[str, Query(max_length=200, description="Text in id, flag, environment, models, requester or standing")] = "",
        limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 50,
        cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
    ) -> Response:
        return as_json(page_of(parts.ports, state, q, limit, cursor))

    @api.get(
        "/rollouts/{rollout_id}",
        response_model=m.Detail,
        responses=_READS,
        summary="Where a rollout stands, and what comes next",
        tags=["rollouts"],
    )
    def get_rollout(rollout_id: RolloutId, call: Reader) -> Response:
        entries = audit.entries(rollout_id)
        return as_json(describe.detail(replay(entries), entries, audit.now()))

    @api.get(
        "/rollouts/{rollout_id}/why",
        response_model=m.Explanation,
        responses=_READS,
        summary="Why traffic moved, or did not",
        tags=["rollouts"],
    )
    def why(rollout_id: RolloutId, call: Reader) -> Response:
        entries = audit.entries(rollout_id)
        return as_json(describe.explanation(replay(entries), entries, audit.now()))

    @api.get(
        "/rollouts/{rollout_id}/decisions",
        response_model=m.Rows,
        responses=_READS,
        summary="The rows of its audit log",
        tags=["rollouts"],
    )
    def decisions(
        rollout_id: RolloutId,
        call: Reader,
        after: Annotated[int, Query(ge=0, lt=2**31, description="Number of the last row that you have")] = 0,
        limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 50,
        evidence: Annotated[bool, Query(description="Whole rows with measurements and raw answers; at most 20 at once")] = False,
    ) -> Response:
        return as_json(rows_of(parts.ports, rollout_id, after=after, limit=limit, evidence=evidence))

    @api.get(
        "/rollouts/{rollout_id}/decisions/{seq}",
        response_model=m.RowOut,
        responses=_READS,
        summary="One row, whole",
        tags=["rollouts"],
    )
    def decision(rollout_id: RolloutId, seq: Annotated[int, Path(ge=1, lt=2**31)], call: Reader) -> Response:
        plan = describe.plan_of(audit.entries(rollout_id))
        return as_json(describe.history_json(audit.entry(rollout_id, seq), plan))


# --- plans ----------------------------------------------------------------------------------------------------------------------


async def _plan_text(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in PLAN_TYPES:
        raise of_field("content-type", kind, f"a plan is {' or '.join(PLAN_TYPES[:2])}", status=415, kind="content-type")
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError as exc:
        raise Refused(400, "malformed", f"the body is not UTF-8: {exc.reason} at byte {exc.start}") from exc


def _plans(api: FastAPI, parts: Api, door: Door) -> None:
    Text = Annotated[str, Depends(_plan_text)]
    body = {"requestBody": {"required": True, "content": {t: {"schema": _PLAN} for t in PLAN_TYPES[:2]}}}

    def could_start(spec: RolloutSpec, caller: str) -> None:
        plan = spec.to_plan()
        act.check_approvers(plan, door.everybody(), caller)
        check_models(parts.settings, plan)
        check_start(plan, parts.ports)

    @api.post("/plans/check", response_model=m.Checked, responses=documented(400, 401, 403, 413, 415, 422, 429, 503),
              openapi_extra=body, summary="Check a plan, and whether it could start now; changes nothing", tags=["plans"])  # fmt: skip
    def check(text: Text, call: Annotated[Call, Depends(door.needs(Right.READ))]) -> Response:
        try:
            spec = load(text, name="plan").validate(RolloutSpec)
        except SpecError as exc:
            return as_json({"ok": False, "problems": [asdict(p) for p in exc.problems]})
        why_not: str | None = None
        try:
            could_start(spec, call.caller.name)
        except (CommandRefused, FlagHeld) as exc:
            why_not = str(exc)
        return as_json(
            {
                "ok": True,
                "plan_digest": plan_digest(spec.to_plan()),
                "kept_for_later": sorted(spec.kept_for_later()),
                "problems": [],
                "could_start": why_not,
            }
        )

    @api.post("/rollouts", response_model=m.Detail, responses=documented(400, 401, 403, 409, 413, 415, 422, 429, 503),
              openapi_extra=body, summary="Start a rollout; nothing moves yet", tags=["rollouts"])  # fmt: skip
    def start(text: Text, call: Annotated[Call, Depends(door.needs(Right.START))]) -> Response:
        def work() -> dict[str, Any]:
            plan = load(text, name="plan").validate(RolloutSpec).to_plan()
            rollout = act.start(
                plan,
                plan_digest(plan),
                call.caller,
                parts.ports,
                key=f"api/{call.caller.name}/{call.key}" if call.key else _fresh_key(),
                people=door.everybody(),
                check=lambda: check_models(parts.settings, plan),
            )
            return _detail(parts, rollout)

        return once(parts.requests, call, work)


# --- acting ---------------------------------------------------------------------------------------------------------------------


def _acting(api: FastAPI, parts: Api, door: Door) -> None:
    def may(right: Right) -> Any:
        return Depends(door.needs(right))

    def do(call: Call, ask: act.Ask) -> Response:
        return once(parts.requests, call, lambda: _detail(parts, act.act(ask, call.caller, parts.ports).rollout))

    def operation(path: str, summary: str, model: type = m.Detail) -> Callable[[Any], Any]:
        more = {"response_model": model, "responses": _ACTS, "summary": summary, "tags": ["rollouts"]}
        return api.post(f"/rollouts/{{rollout_id}}/{path}", **more)  # type: ignore[arg-type]

    @operation("approve", "Say yes to the phase that it waits to enter")
    def approve(rollout_id: RolloutId, body: m.ApproveIn, call: Annotated[Call, may(Right.APPROVE)]) -> Response:
        return do(call, act.Ask(verb=Right.APPROVE, rollout_id=rollout_id, digest=body.digest, groups=tuple(body.groups)))

    @operation("reject", "Say no to it: paused, the votes are void")
    def reject(rollout_id: RolloutId, body: m.RejectIn, call: Annotated[Call, may(Right.REJECT)]) -> Response:
        return do(call, act.Ask(verb=Right.REJECT, rollout_id=rollout_id, digest=body.digest, reason=body.reason))

    @operation("override", "Break-glass for the next step: approval, freeze, bake")
    def override(rollout_id: RolloutId, body: m.OverrideIn, call: Annotated[Call, may(Right.OVERRIDE)]) -> Response:
        ask = act.Ask(
            verb=Right.OVERRIDE,
            rollout_id=rollout_id,
            digest=body.digest,
            reason=body.reason,
            ticket=body.ticket,
            checks=tuple(body.checks),
        )
        return do(call, ask)

    @operation("pause", "Raise nothing until resumed; lowering stays armed")
    def pause(rollout_id: RolloutId, body: m.ReasonIn, call: Annotated[Call, may(Right.PAUSE)]) -> Response:
        return do(call, act.Ask(verb=Right.PAUSE, rollout_id=rollout_id, reason=body.reason))

    @operation("resume", "Go on; the weight is set again, the phase bakes anew")
    def resume(rollout_id: RolloutId, body: m.ReasonIn, call: Annotated[Call, may(Right.RESUME)]) -> Response:
        return do(call, act.Ask(verb=Right.RESUME, rollout_id=rollout_id, reason=body.reason))

    @operation("rollback", "0% now, because of the candidate")
    def rollback(rollout_id: RolloutId, body: m.ReasonIn, call: Annotated[Call, may(Right.ROLL_BACK)]) -> Response:
        return do(call, act.Ask(verb=Right.ROLL_BACK, rollout_id=rollout_id, reason=body.reason))

    @operation("abort", "0% now, whatever the candidate is like")
    def abort(rollout_id: RolloutId, body: m.ReasonIn, call: Annotated[Call, may(Right.ABORT)]) -> Response:
        return do(call, act.Ask(verb=Right.ABORT, rollout_id=rollout_id, reason=body.reason))

    @operation("promote", "Take the next gate check now; skips none of its checks", m.Promoted)
    def promote(rollout_id: RolloutId, body: m.PromoteIn, call: Annotated[Call, may(Right.PROMOTE)]) -> Response:
        def work() -> dict[str, Any]:
            if parts.settings.prometheus_url is None:
                raise SettingsError(NO_PROMETHEUS)
            acted = act.act(act.Ask(verb=Right.PROMOTE, rollout_id=rollout_id, digest=body.digest), call.caller, parts.ports)
            decision = None if acted.looked is None else acted.looked.decision
            made = None if decision is None else {"kind": decision.kind, "why": decision.why.value, "text": decision.text}
            return {**_detail(parts, acted.rollout), "decision": made}

        return once(parts.requests, call, work)


# --- flags ----------------------------------------------------------------------------------------------------------------------


def _flags(api: FastAPI, parts: Api, door: Door) -> None:
    Reader = Annotated[Call, Depends(door.needs(Right.READ))]

    @api.get("/flags", response_model=m.Flags, responses=_READS, summary="The flags of an environment", tags=["flags"])
    def list_flags(call: Reader, environment: Environment = "production") -> Response:
        return as_json(parts.flags.snapshot(environment).to_json())

    @api.get("/flags/{environment}/{key}", response_model=m.FlagOut, responses=_READS, summary="One flag", tags=["flags"])
    def get_flag(environment: FlagPart, key: FlagPart, call: Reader) -> Response:
        flag = parts.flags.read(environment, key)
        if flag is None:
            raise UnknownFlag(f"no flag {key!r} in {environment}")
        return as_json(flag_to_json(flag))

    @api.post(
        "/flags/{environment}/{key}/kill",
        response_model=m.FlagOut,
        responses=_ACTS,
        summary="Everybody gets the control; latched",
        tags=["flags"],
    )
    def kill(
        environment: FlagPart, key: FlagPart, body: m.ReasonIn, call: Annotated[Call, Depends(door.needs(Right.KILL))]
    ) -> Response:
        def work() -> dict[str, Any]:
            return flag_to_json(act.switch(parts.flags, environment, key, True, call.caller, reason=body.reason))

        return once(parts.requests, call, work)

    @api.post(
        "/flags/{environment}/{key}/unkill",
        response_model=m.FlagOut,
        responses=_ACTS,
        summary="Takes a kill back; the weights are 0",
        tags=["flags"],
    )
    def unkill(
        environment: FlagPart, key: FlagPart, body: m.UnkillIn, call: Annotated[Call, Depends(door.needs(Right.UNKILL))]
    ) -> Response:
        def work() -> dict[str, Any]:
            flag = act.switch(parts.flags, environment, key, False, call.caller, reason=body.reason, version=body.version)
            return flag_to_json(flag)

        return once(parts.requests, call, work)


# --- the audit log --------------------------------------------------------------------------------------------------------------


def _audit(api: FastAPI, parts: Api, door: Door) -> None:
    from controller.adapters.postgres import chain

    Auditor = Annotated[Call, Depends(door.needs(Right.EXPORT))]
    answers = documented(401, 403, 422, 429, 503)

    def text_of(head: Head | None) -> str | None:
        return None if head is None else str(head)

    @api.get(
        "/audit/head",
        response_model=m.HeadOut,
        responses=answers,
        summary="The last row, to be written down elsewhere",
        tags=["audit"],
    )
    def head(call: Auditor) -> Response:
        return as_json({"head": text_of(chain.head(parts.database_url))})

    @api.get(
        "/audit/verify",
        response_model=m.VerifyOut,
        responses=answers,
        summary="Follow the hash chain through every row",
        tags=["audit"],
    )
    def verify(
        call: Auditor,
        _: Annotated[None, Depends(alone)],
        head: Annotated[
            str | None, Query(pattern=r"^[0-9]{1,18}:[0-9a-f]{64}$", description="A head that was written down")
        ] = None,
    ) -> Response:
        known = []
        if head is not None:
            number, _sep, digest = head.partition(":")
            known = [Head(id=int(number), hash=digest)]
        report = verified(parts, known)
        return as_json(
            {
                "ok": report.ok,
                "rows": report.rows,
                "rollouts": report.rollouts,
                "answers": report.answers,
                "head": text_of(report.head),
                "problem_count": report.problem_count,
                "problems": [{"audit_id": p.audit_id, "kind": p.kind, "text": p.text} for p in report.problems],
            }
        )

    @api.get(
        "/audit/export",
        responses={**answers, 200: {"description": "Rows as they were hashed", "content": _EXPORTED}},
        response_class=Response,
        summary="Rows as they were hashed, as `penstock audit export --out -` writes them",
        tags=["audit"],
    )
    def export_rows(
        call: Auditor,
        _: Annotated[None, Depends(alone)],
        format: Annotated[Literal["jsonl", "csv"], Query()] = "jsonl",
        rollout: Annotated[str | None, Query(pattern=m.ROLLOUT_ID, description="Only this rollout's rows")] = None,
        since: Annotated[Moment | None, Query(description="Written from then on")] = None,
        until: Annotated[Moment | None, Query(description="Written before then")] = None,
    ) -> Response:
        return exported(parts, format, rollout, since, until)


_AUDITING = threading.Lock()


def alone() -> Iterator[None]:
    """Following the whole chain takes a processor for as long as it lasts: one at a time. Raises Refused."""
    if not _AUDITING.acquire(blocking=False):
        raise Refused(503, "busy", "the log is being verified or exported already", headers={"Retry-After": "10"})
    try:
        yield
    finally:
        _AUDITING.release()


def verified(parts: Api, known: Sequence[Head] = ()) -> ChainReport:
    """Follow the chain, and tell the alert that somebody did."""
    from controller.adapters.postgres import chain

    report = chain.verify(parts.database_url, known)
    if report.ok:
        beat(parts.ports, "audit-verify")  # for the alert that nobody verifies the log
    return report


def exported(
    parts: Api,
    format: Literal["jsonl", "csv"],
    rollout: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Response:
    """The rows as a download; signed where there is a key."""
    from controller.adapters.archive import Archive
    from controller.adapters.heads import HeadSigner
    from controller.adapters.postgres.export import Wanted, export

    # Whole before it is sent: what goes out under 200 has been read to its end.
    rows = SpooledTemporaryFile(max_size=EXPORT_IN_MEMORY)  # noqa: SIM115  # closed when it is sent
    wanted = Wanted(rollout_id=rollout, since=since, until=until)
    try:
        signer = HeadSigner(parts.settings.audit_key_file)
        told = export(parts.database_url, Archive(None, format, rows), wanted, sign=signer.sign, alone=True)  # type: ignore[arg-type]
    except BaseException:
        rows.close()
        raise
    rows.seek(0)
    head = "" if told["head"] is None else f"{told['head']['id']}:{told['head']['hash']}"
    headers = {"Penstock-Rows": str(told["count"]), "Penstock-Head": head}
    kind = "text/csv" if format == "csv" else "application/jsonl"
    return StreamingResponse(_chunks(rows), media_type=kind, headers=headers, background=BackgroundTask(rows.close))


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(65_536):
        yield chunk


# --- OpenAPI --------------------------------------------------------------------------------------------------------------------

_EXPORTED = {kind: {"schema": {"type": "string"}} for kind in ("application/jsonl", "text/csv")}
_PLAN = {"$ref": "#/components/schemas/RolloutSpec"}


def _document(api: FastAPI) -> None:
    """The schemas that no operation names as its model: the plan, and the refusals."""
    make = api.openapi

    def openapi() -> dict[str, Any]:
        if not api.openapi_schema:
            document = make()
            schemas = document["components"]["schemas"]
            for model in (RolloutSpec, Problem):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[model.__name__] = schema
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        return api.openapi_schema or {}

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way


def _quiet(app: ASGIApp) -> ASGIApp:
    """Starlette raises what broke once more after it has answered; the log has it already."""

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(Exception):
            await app(scope, receive, send)

    return quiet


def _detail(parts: Api, rollout: Rollout) -> dict[str, Any]:
    return describe.detail(rollout, parts.ports.audit.entries(rollout.id), parts.ports.audit.now())


def _fresh_key() -> str:
    import uuid

    return f"api/{uuid.uuid4()}"
