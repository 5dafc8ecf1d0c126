"""
The console as an application: pages, the forms on them, and what stands in front of both.

Each page asks who is there and for a right; each form is checked to be ours and then does what the command line does. Its one rule: nothing
is decided here, and nothing that a person or a provider wrote reaches a browser unescaped.
"""

import re
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller import act, describe
from controller.codec import event_to_json, plan_digest
from controller.commands import CommandRefused, check_start
from controller.compare import differences, last_of
from controller.console.api.app import alone, exported, verified
from controller.console.api.listing import decoded, encoded
from controller.console.api.models import ROLLOUT_ID
from controller.console.api.problems import Refused, refused
from controller.console.api.shield import Shield
from controller.console.web import charts, views
from controller.console.web.entrance import Entrance, read_form
from controller.console.web.live import Full, Live
from controller.console.web.login import Keeper, Who, check_form, cookie_name, form_token, set_cookie
from controller.core.measurement import Evidence
from controller.core.notice import account_of, next_look, standing
from controller.core.people import RIGHTS, NotAllowed, Right, Role, require
from controller.core.question import question_of, step_digest
from controller.core.rollout import Check, Decided, Entry
from controller.forecast.calendar import calendar
from controller.ports import FlagHeld, PortError, UnknownRollout
from controller.settings import SettingsError
from controller.spec import RolloutSpec
from controller.wiring import NO_PROMETHEUS, Api, check_models, make_metrics, make_oidc, spent_on
from specfile import SpecError, load

if TYPE_CHECKING:
    pass

log = structlog.get_logger("penstock.console")

HERE = Path(__file__).parent

ANSWER_SHOWN = 20_000
"""Characters of a raw answer on a page; the export has all of it."""

BODY_MAX_BYTES = 262_144
"""A plan of the size that the API takes, as a form writes it: up to three bytes for one."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """
    A request of somebody who may make it.

    Args:
        form: Of a POST; {} else.
    """

    request: Request
    who: Who
    form: Mapping[str, str] = field(default_factory=dict)

    def query(self, name: str) -> str:
        return self.request.query_params.get(name, "")


Work = Callable[[Visit], Response]


def create_web(parts: Api) -> ASGIApp:
    """
    Args:
        parts: What it works on.

    Returns:
        An application to mount at the root, after everything else.

    Raises:
        SettingsError: the console's login cannot be used.
    """
    return _Safe(_Console(parts).app())


class _Console:
    def __init__(self, parts: Api) -> None:
        self._parts = parts
        self._ports = parts.ports
        self._board = views.Board(parts.ports)
        self._keeper = Keeper(parts.people, parts.sessions, parts.settings.console_login, parts.settings.oidc_issuer)
        self._entrance = Entrance(self._keeper, make_oidc(parts.settings), self._render, self._board.warm)
        self._live = Live(self._ends)
        self._pages = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        prefect = parts.settings.prefect_api_url
        self._pages.globals |= {
            "prefect_url": prefect.rstrip("/").removesuffix("/api") if prefect else "",
            "amount": charts.amount,
            "chart_size": (charts.WIDTH, charts.HEIGHT, charts.LEFT, charts.RIGHT, charts.TOP, charts.BOTTOM),
        }
        self._pages.filters |= {
            "pct": lambda share: f"{share * 100:.4g}%",
            "iso": lambda at: "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "clock": lambda at: "" if at is None else f"{at.astimezone(UTC):%H:%M:%S}",
            "day": lambda at: "" if at is None else f"{at.astimezone(UTC):%a %d %b %H:%M:%S}",
            "words": lambda text: str(text).replace("_", " "),
            "span": _span,
            "url": lambda text: quote(str(text), safe=""),
            "usd": lambda dollars: f"{dollars:,.2f} USD" if dollars >= 0.1 or not dollars else f"{dollars:.2g} USD",
            "short": lambda count: f"{count:,.0f}",
        }

    def app(self) -> ASGIApp:
        one = "/rollouts/{rollout_id}"
        page, form = self._page, self._form
        routes = [
            Route("/", page(lambda v: RedirectResponse("/rollouts", 303))),
            *self._entrance.routes(),
            Route("/logout", form(self._log_out, Right.READ), methods=["POST"]),
            Route("/rollouts", page(self._rollouts)),
            Route(one, page(self._rollout)),
            Route(f"{one}/rows/{{seq:int}}", page(self._row)),
            Route(f"{one}/plan", page(self._plan_of)),
            Route(f"{one}/spend", page(self._spend)),
            Route(f"{one}/{{verb}}", form(self._act, Right.READ), methods=["POST"]),
            Route("/flags", page(self._flags)),
            Route("/flags/{environment}/{key}/kill", form(self._kill, Right.KILL), methods=["POST"]),
            Route("/flags/{environment}/{key}/unkill", form(self._kill, Right.UNKILL), methods=["POST"]),
            Route("/plan", page(self._plan), methods=["GET"]),
            Route("/plan", form(self._plan, Right.READ), methods=["POST"]),
            Route("/plan/start", form(self._start, Right.START), methods=["POST"]),
            Route("/audit", page(self._audit)),
            Route("/audit/verify", form(self._verify, Right.EXPORT), methods=["POST"]),
            Route("/audit/export", page(self._export, Right.EXPORT)),
            Route("/me", page(self._me)),
        ]
        pages = Starlette(routes=routes, exception_handlers=dict.fromkeys((Exception, HTTPException, Refused), self._broke))
        # A stream lasts as long as its page: it must not take one of the places that the shield has for requests.
        open_ended = [Route("/live", self._listen), Mount("/static", StaticFiles(directory=HERE / "static"))]
        return Starlette(routes=[*open_ended, Mount("/", Shield(pages, body_max_bytes=BODY_MAX_BYTES))])

    # --- who is there -----------------------------------------------------------------------------------------------------------

    def _page(self, work: Work, right: Right = Right.READ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def answer(request: Request) -> Response:
            return await run_in_threadpool(self._answer, request, work, right, None)

        return answer

    def _form(self, work: Work, right: Right) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def answer(request: Request) -> Response:
            form = await read_form(request)
            return await run_in_threadpool(self._answer, request, work, right, form)

        return answer

    def _answer(self, request: Request, work: Work, right: Right, form: Mapping[str, str] | None) -> Response:
        who: Who | None = None
        try:
            if (who := self._keeper.who(request)) is None:
                return self._to_login(request)
            fresh = "" if who.key else secrets.token_urlsafe(32)
            who = Who(caller=who.caller, session=who.session, key=who.key or fresh)
            if form is not None:
                check_form(request, who.key, form.get("token", ""))
            require(who.caller, right)
            response = work(Visit(request=request, who=who, form=form or {}))
        except Exception as exc:
            return self._refuse(request, exc, who)
        if fresh:
            set_cookie(request, response, fresh)
        return response

    def _to_login(self, request: Request) -> Response:
        if not self._keeper.asks:
            text = "This controller knows no people, so its console can only be read, and only from this machine (PENSTOCK_PEOPLE_FILE)."
            return self._refuse(request, Refused(401, "unknown-caller", text), None)
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        after = "" if request.method != "GET" or path == "/" else f"?{urlencode({'next': path})}"
        return RedirectResponse(f"/login{after}", 303)

    async def _broke(self, request: Request, exc: Exception) -> Response:
        return await run_in_threadpool(self._refuse, request, exc, None)

    def _refuse(self, request: Request, exc: Exception, who: Who | None) -> Response:
        problem = refused(exc)
        if who is None:
            with suppress(Exception):
                who = self._keeper.who(request)
        return self._render(
            request, "refused.html", who, status=problem.problem.status, headers=problem.headers, problem=problem.problem
        )

    def _render(
        self,
        request: Request,
        template: str,
        who: Who | None,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **values: Any,
    ) -> Response:
        html = self._pages.get_template(template).render(
            who=who,
            caller=None if who is None else who.caller,
            token="" if who is None else form_token(who.key),
            path=request.url.path,
            rights=Right,
            now=datetime.now(UTC),
            **values,
        )
        return Response(html, status, headers, media_type="text/html")

    def _show(self, visit: Visit, template: str, **values: Any) -> Response:
        return self._render(visit.request, template, visit.who, **values)

    def _log_out(self, visit: Visit) -> Response:
        self._keeper.log_out(visit.request)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(cookie_name(visit.request), path="/", secure=visit.request.url.scheme == "https", httponly=True)
        return response

    # --- rollouts ---------------------------------------------------------------------------------------------------------------

    def _rollouts(self, visit: Visit) -> Response:
        search, after = visit.query("q")[:200], visit.query("after")
        now = self._ports.audit.now()
        show = visit.query("show") if visit.query("show") in ("attention", "running", "ended") else "all"
        active = () if show == "ended" or after else self._board.active(search, now)
        ended, more = ((), "") if show in ("attention", "running") else self._board.ended(search, decoded(after), now)
        return self._show(
            visit,
            "rollouts.html",
            attention=[c for c in active if c.rank < 5] if show != "running" else [],
            running=[c for c in active if c.rank >= 5] if show != "attention" else [],
            ended=ended,
            more=encoded(more) if more else "",
            search=search,
            show=show,
            paged=bool(after),
        )

    def _rollout(self, visit: Visit, *, status: int = 200, problem: str = "") -> Response:
        rollout, entries = self._board.rollout(_id(visit))
        now = self._ports.audit.now()
        look, move, last = views.last_look(entries), views.last_move(entries), describe.last_decision(entries)
        before = visit.query("before")
        lines, older = views.timeline(entries, int(before) if before.isdecimal() and len(before) < 10 else 0)
        results = views.enforced(look.event.observed.results) if look is not None and isinstance(look.event, Decided) else []
        phase = rollout.phase
        _, attention = views.attention_of(rollout, results)
        return self._show(
            visit,
            "rollout.html",
            status=status,
            problem=problem,
            rollout=rollout,
            plan=rollout.plan,
            state=describe.state_name(rollout),
            standing=standing(rollout),
            attention=attention,
            weights=rollout.weights,
            steps=views.phase_steps(rollout, entries),
            phase=None if phase is None else rollout.plan.phases[phase],
            upcoming=describe.upcoming(rollout, now),
            next_look=next_look(rollout, last, now),
            frozen=describe.frozen_row(rollout, now),
            freezes=[] if rollout.ended else describe.freeze_rows(rollout.plan, now, now + describe.FREEZES_AHEAD),
            question=question_of(rollout, now),
            override=describe.override_row(rollout, now),
            digest=step_digest(rollout),
            verbs=views.verbs_of(rollout, visit.who.caller),
            checks=list(Check),
            last=last,
            move=move,
            move_text=account_of(move, entries) if move is not None and isinstance(move.event, Decided) else "",
            results=results,
            look=look,
            charts=charts.charts(rollout, entries, views.spans_of(rollout, entries)),
            lines=lines,
            older=older,
            rows=len(entries),
            first_page=not before,
        )

    def _row(self, visit: Visit) -> Response:
        rollout, entries = self._board.rollout(_id(visit))
        entry = self._ports.audit.entry(rollout.id, visit.request.path_params["seq"])
        return self._show(
            visit,
            "row.html",
            rollout=rollout,
            entry=entry,
            told=describe.history_row(entry, rollout.plan),
            account=account_of(entry, entries) if isinstance(entry.event, Decided) else "",
            results=views.enforced(entry.event.observed.results) if isinstance(entry.event, Decided) else [],
            questions=_questions(entry),
            event=_indented(event_to_json(entry.event)),
            prometheus=self._parts.settings.prometheus_url or "",
            shown=ANSWER_SHOWN,
            rows=len(entries),
        )

    def _plan_of(self, visit: Visit) -> Response:
        rollout, _ = self._board.rollout(_id(visit))
        plan = rollout.plan
        before = last_of(plan.flag, plan.environment, self._ports, before=rollout.id)
        return self._show(
            visit,
            "plan_of.html",
            rollout=rollout,
            before=before,
            changes=() if before is None else differences(before.plan, plan),
            text=_indented(views.plan_json(rollout)),
        )

    def _spend(self, visit: Visit) -> Response:
        """Apart from the rollout's page, which must not wait for Prometheus."""
        rollout, _ = self._board.rollout(_id(visit))
        end = rollout.ended_at or self._ports.audit.now()
        spent, problem = None, ""
        try:
            spent = spent_on(self._parts.settings, rollout.plan, rollout.opened_at, end)
        except (PortError, SettingsError) as exc:
            problem = str(exc)
        budget = rollout.plan.kept.get("budget")
        return self._show(
            visit,
            "spend.html",
            rollout=rollout,
            spent=spent,
            candidates=None if spent is None else spent.get("candidate", 0.0) + spent.get("shadow", 0.0),
            problem=problem,
            budget=budget if isinstance(budget, Mapping) else {},
        )

    def _act(self, visit: Visit) -> Response:
        rollout_id, name, form = _id(visit), visit.request.path_params["verb"].replace("-", "_"), visit.form
        verb = next((v for v in act.OF_A_ROLLOUT if v.value == name), None)
        if verb is None:
            raise HTTPException(404, "there is no such page")
        caller = visit.who.caller
        try:
            if verb is Right.PROMOTE and self._parts.settings.prometheus_url is None:
                raise SettingsError(NO_PROMETHEUS)
            groups = tuple(g for g in form.get("groups", "").split(",") if g) if caller.claimed else ()
            ask = act.Ask(
                verb=verb,
                rollout_id=rollout_id,
                reason=form.get("reason", ""),
                digest=form.get("digest") or None,
                groups=groups,
                ticket=form.get("ticket", ""),
                checks=tuple(c for c in Check if form.get(f"check-{c.value}")),
            )
            act.act(ask, caller, self._ports)
        except (CommandRefused, NotAllowed, SettingsError, FlagHeld) as exc:
            return self._rollout(visit, status=refused(exc).problem.status, problem=str(exc))
        return RedirectResponse(f"/rollouts/{rollout_id}", 303)

    # --- flags ------------------------------------------------------------------------------------------------------------------

    def _flags(self, visit: Visit, *, status: int = 200, problem: str = "") -> Response:
        holders = {}
        with suppress(PortError):
            for rollout_id in self._ports.index.active():
                rollout, _ = self._board.rollout(rollout_id)
                holders[rollout.plan.environment, rollout.plan.flag] = rollout
        return self._show(
            visit, "flags.html", status=status, problem=problem, snapshots=self._parts.flags.snapshots(), holders=holders
        )

    def _kill(self, visit: Visit) -> Response:
        part, form = visit.request.path_params, visit.form
        killed = visit.request.url.path.endswith("/kill")
        version = int(v) if (v := form.get("version", "")).isdecimal() and len(v) < 19 else None
        try:
            act.switch(
                self._parts.flags,
                part["environment"],
                part["key"],
                killed,
                visit.who.caller,
                reason=form.get("reason", ""),
                version=None if killed else version,
            )
        except (CommandRefused, PortError) as exc:
            return self._flags(visit, status=refused(exc).problem.status, problem=str(exc))
        return RedirectResponse("/flags", 303)

    # --- plans ------------------------------------------------------------------------------------------------------------------

    def _plan(self, visit: Visit) -> Response:
        text = visit.form.get("plan", "").replace("\r\n", "\n")
        values: dict[str, Any] = {"text": text, "problems": (), "plan": None, "why_not": "", "outlook": None, "no_outlook": ""}
        values |= {"key": str(uuid.uuid4()), "steps": (), "late": (), "digest": ""}
        status = 200
        if visit.request.method == "POST":
            try:
                spec = load(text, name="plan").validate(RolloutSpec)
            except SpecError as exc:
                status, values["problems"] = 422, exc.problems
            else:
                plan = spec.to_plan()
                values |= {"plan": plan, "digest": plan_digest(plan), **self._outlook(plan)}
                try:
                    if (everybody := self._keeper.everybody()) is not None:
                        act.check_approvers(plan, everybody, visit.who.caller.name)
                    check_models(self._parts.settings, plan)
                    check_start(plan, self._ports)
                except (CommandRefused, FlagHeld) as exc:
                    values["why_not"] = str(exc)
        return self._show(visit, "plan.html", status=status, **values)

    def _outlook(self, plan: Any) -> dict[str, Any]:
        """As `penstock plan` computes it, on today's traffic of the baseline."""
        from controller.forecast.baseline import NothingMeasured, read
        from controller.forecast.outlook import outlook

        if self._parts.settings.prometheus_url is None:
            return {"no_outlook": NO_PROMETHEUS}
        begin = datetime.now(UTC)
        try:
            found = outlook(plan, read(plan, make_metrics(self._parts.settings), begin))
        except (NothingMeasured, ValueError, PortError) as exc:
            return {"no_outlook": str(exc)}
        median, late = (calendar(plan, [p.lasts and p.lasts[i] for p in found.phases], begin) for i in (0, 1))
        return {"outlook": found, "steps": median, "late": late}

    def _start(self, visit: Visit) -> Response:
        plan = load(visit.form.get("plan", "").replace("\r\n", "\n"), name="plan").validate(RolloutSpec).to_plan()
        rollout = act.start(
            plan,
            plan_digest(plan),
            visit.who.caller,
            self._ports,
            key=f"console/{visit.who.caller.name}/{visit.form.get('key', '')[:64]}",
            people=self._keeper.everybody(),
            check=lambda: check_models(self._parts.settings, plan),
        )
        return RedirectResponse(f"/rollouts/{rollout.id}", 303)

    # --- the audit log ----------------------------------------------------------------------------------------------------------

    def _audit(self, visit: Visit, report: Any = None) -> Response:
        head = self._ports.audit.head()
        return self._show(visit, "audit.html", head=head, report=report, mayexport=Right.EXPORT in visit.who.caller.rights)

    def _verify(self, visit: Visit) -> Response:
        for _ in alone():
            return self._audit(visit, verified(self._parts))
        raise AssertionError("alone yields once or raises")

    def _export(self, visit: Visit) -> Response:
        format: Literal["jsonl", "csv"] = "csv" if visit.query("format") == "csv" else "jsonl"
        rollout_id = visit.query("rollout") or None
        if rollout_id is not None and not re.fullmatch(ROLLOUT_ID, rollout_id):
            raise Refused(422, "invalid", "rollout: is no id of a rollout")
        for _ in alone():
            response = exported(self._parts, format, rollout_id)
            response.headers["Content-Disposition"] = (
                f'attachment; filename="audit{"-" + rollout_id if rollout_id else ""}.{format}"'
            )
            return response
        raise AssertionError("alone yields once or raises")

    def _me(self, visit: Visit) -> Response:
        everybody = self._keeper.everybody()
        return self._show(
            visit,
            "me.html",
            everybody=everybody,
            roles={role.value: sorted(r.value for r in RIGHTS[role]) for role in Role},
            local=bool(self._parts.settings.console_login),
        )

    # --- what is new ------------------------------------------------------------------------------------------------------------

    async def _listen(self, request: Request) -> Response:
        async def still() -> bool:
            try:
                return await run_in_threadpool(self._keeper.who, request) is not None
            except (PortError, Refused):
                return True

        if not await still():
            return Response("nobody is logged in", 401)

        async def events() -> AsyncIterator[dict[str, str]]:
            try:
                async for end in self._live.stream(still):
                    yield {"event": "changed", "data": end}
            except Full:
                yield {"event": "full", "data": ""}

        return EventSourceResponse(events(), ping=15)

    def _ends(self) -> str:
        head = self._ports.audit.head()
        revisions = (f"{name}:{s.revision}" for name, s in sorted(self._parts.flags.snapshots().items()))
        return f"{0 if head is None else head.id} {' '.join(revisions)}"


class _Safe:
    """Sets the headers that every answer has; what broke has been answered and logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                if scope.get("scheme") == "https":
                    own.append((b"strict-transport-security", b"max-age=31536000"))
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        with suppress(Exception):
            await self._app(scope, receive, sending)


def _id(visit: Visit) -> str:
    rollout_id = str(visit.request.path_params["rollout_id"])
    if not re.fullmatch(ROLLOUT_ID, rollout_id):
        raise UnknownRollout(f"no rollout {rollout_id[:80]!r}")
    return rollout_id


def _indented(data: Any) -> str:
    import json

    return json.dumps(data, indent=2, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question to Prometheus, and the gates that rest on it."""

    evidence: Evidence
    gates: tuple[str, ...]


def _questions(entry: Entry) -> list[Asked]:
    if not isinstance(entry.event, Decided):
        return []
    found: dict[tuple[str, datetime], tuple[Evidence, list[str]]] = {}
    for gate, measurement in entry.event.observed.measurements:
        for evidence in measurement.evidence:
            found.setdefault((evidence.query, evidence.at), (evidence, []))[1].append(gate)
    return [Asked(evidence=e, gates=tuple(gates)) for e, gates in found.values()]


def _span(seconds: float | None) -> str:
    """A length of time in its two largest units: ``2 h 05 min``."""
    if seconds is None:
        return ""
    whole = round(seconds)
    for unit, size, small, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s" if whole or not seconds else f"{seconds:.2g} s"
