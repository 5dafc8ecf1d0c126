"""
Alertmanager's door: a firing alert that names a rollout or a flag makes the guard look at it at once.

    POST /hooks/alertmanager        webhook payload, version 4; Authorization: Bearer PENSTOCK_ALERTMANAGER_TOKEN

The payload is that of https://prometheus.io/docs/alerting/latest/configuration/#webhook_config. Its one rule: an alert lowers nothing by
itself. It only says when to look; what is found decides, as at every other look.
"""

import hmac
from collections.abc import Iterable
from typing import Any, Literal

import structlog
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from controller.console.api.calls import address_of, as_json
from controller.console.api.problems import FieldProblem, Refused, answer, refused, shown
from controller.console.api.shield import BadTokens, Shield
from controller.core.rollout import LogError, Rollout, replay
from controller.ports import Ports
from controller.sweep import look
from controller.wiring import Api

log = structlog.get_logger("penstock.alertmanager")

PATH = "/hooks/alertmanager"

BODY_MAX_BYTES = 1_048_576
"""A group of alerts has no limit of its own; `max_alerts` in Alertmanager's configuration gives it one."""

LOOKS_MAX = 20
"""Of one payload. The guard looks at the others on its own beat."""


class Alert(BaseModel):
    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    fingerprint: str = ""


class Payload(BaseModel):
    """What is read of it; Alertmanager may add more."""

    version: Literal["4"]
    status: Literal["firing", "resolved"]
    alerts: list[Alert]
    group_key: str = Field("", alias="groupKey")
    receiver: str = ""


def route(parts: Api, token: str) -> Route:
    """
    Args:
        parts: What the looks work on.
        token: That Alertmanager must send; "" lets nobody in.
    """
    return Route(PATH, Shield(_door(parts, token), body_max_bytes=BODY_MAX_BYTES), methods=["POST"])


def _door(parts: Api, token: str) -> ASGIApp:
    bad = BadTokens()

    async def hook(request: Request) -> Response:
        try:
            _admit(request, token, bad)
            payload = _read(await request.body())
            return as_json(await run_in_threadpool(_looked, parts, payload))
        except Exception as exc:
            return answer(refused(exc))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await hook(Request(scope, receive)))(scope, receive, send)

    return app


def _admit(request: Request, token: str, bad: BadTokens) -> None:
    ask = {"WWW-Authenticate": "Bearer"}
    if not token:
        raise Refused(401, "unknown-caller", "PENSTOCK_ALERTMANAGER_TOKEN is not set, so this door is closed", headers=ask)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
        return
    address = address_of(request)
    if (wait_s := bad.another(address)) is not None:
        raise Refused(429, "too-many-bad-tokens", f"too many bad tokens from {address}", headers={"Retry-After": f"{wait_s:.0f}"})
    raise Refused(401, "unknown-caller", "the token of Alertmanager is needed: Authorization: Bearer", headers=ask)


def _read(body: bytes) -> Payload:
    try:
        return Payload.model_validate_json(body)
    except ValidationError as exc:
        errors = [
            FieldProblem(field=".".join(str(p) for p in e["loc"]), value=shown(e.get("input")), message=e["msg"])
            for e in exc.errors(include_url=False)[:20]
        ]
        raise Refused(422, "invalid", "this is no webhook payload of Alertmanager, version 4", errors=errors) from exc


def _looked(parts: Api, payload: Payload) -> dict[str, Any]:
    firing = [a.labels for a in payload.alerts if a.status == "firing"]
    named = _named(parts.ports, firing) if firing else []
    rows = []
    for rollout_id in named[:LOOKS_MAX]:
        swept = look(rollout_id, parts.ports, may_raise=False)
        decision = None if swept.tick is None else swept.tick.decision
        rows.append(
            {
                "rollout_id": rollout_id,
                "outcome": "failed" if swept.tick is None else swept.tick.outcome.value,
                "decision": None if decision is None else decision.kind,
                "text": swept.error or ("" if decision is None else decision.text),
            }
        )
    log.info("alerts_taken", firing=len(firing), looked=len(rows), group=payload.group_key[:200])
    # A look that failed is no reason to send the alert again: the guard looks every few seconds.
    return {"firing": len(firing), "looked": rows, "left": len(named[LOOKS_MAX:])}


def _named(ports: Ports, firing: Iterable[dict[str, str]]) -> list[str]:
    """Active rollouts that an alert names by `rollout`, or by `flag` and, where it has one, `environment`."""
    found = []
    labels = list(firing)
    for rollout_id in ports.index.active():
        if any(_names(a, rollout_id, None) for a in labels):
            found.append(rollout_id)
            continue
        if any("flag" in a and "rollout" not in a for a in labels):
            try:
                rollout = replay(ports.audit.entries(rollout_id))
            except LogError:
                continue
            if any(_names(a, rollout_id, rollout) for a in labels):
                found.append(rollout_id)
    return found


def _names(labels: dict[str, str], rollout_id: str, rollout: Rollout | None) -> bool:
    if "rollout" in labels:
        return labels["rollout"] == rollout_id
    if rollout is None or labels.get("flag") != rollout.plan.flag:
        return False
    return labels.get("environment", rollout.plan.environment) == rollout.plan.environment
