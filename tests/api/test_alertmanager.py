"""Alertmanager's webhook: a firing alert makes the guard look at once at the rollouts that it names, and decides nothing itself."""

import json
from dataclasses import replace
from typing import Any

import pytest
from httpx import Response

from controller.adapters.memory import MemoryMetrics
from controller.console.alertmanager import BODY_MAX_BYTES
from controller.core.measurement import Counts, Sampled
from tests.api.conftest import ALERTMANAGER, PLAN, Served

pytestmark = pytest.mark.services

# As Alertmanager's documentation describes it: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
PAYLOAD: dict[str, Any] = {
    "version": "4",
    "groupKey": '{}:{alertname="CandidateSlow"}',
    "truncatedAlerts": 0,
    "status": "firing",
    "receiver": "penstock",
    "groupLabels": {"alertname": "CandidateSlow"},
    "commonLabels": {"alertname": "CandidateSlow", "severity": "sev1"},
    "commonAnnotations": {"summary": "p95 over 3 s"},
    "externalURL": "http://alertmanager:9093",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "CandidateSlow", "severity": "sev1"},
            "annotations": {"summary": "p95 over 3 s"},
            "startsAt": "2026-11-26T08:00:00.000Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus:9090/graph",
            "fingerprint": "c1d2e3f4a5b60718",
        }
    ],
}


def send(served: Served, body: Any, token: str = ALERTMANAGER) -> Response:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return served.client.post("/hooks/alertmanager", content=raw, headers=headers)


def alert(*, status: str = "firing", **labels: str) -> dict[str, Any]:
    one = {**PAYLOAD["alerts"][0], "status": status, "labels": {**PAYLOAD["alerts"][0]["labels"], **labels}}
    return {**PAYLOAD, "alerts": [one]}


def in_canary(served: Served) -> str:
    rollout_id, question = served.asked()
    served.post(f"/rollouts/{rollout_id}/approve", "sam", json={"digest": question})
    assert served.post(f"/rollouts/{rollout_id}/promote", json={"digest": question}).json()["weight"] == 0.05
    return rollout_id


def breached(served: Served) -> Served:
    """The same application, and an alert of severity sev1 fires: what the plan's gate no-sev1 asks about."""
    assert isinstance(served.ports.metrics, MemoryMetrics)
    served.ports.metrics.says["no-sev1"] = Sampled(candidate=Counts(bad=0.0, total=1.0))
    return served


@pytest.mark.parametrize("name", ["rollout", "flag", "flag in environment"])
def test_the_rollout_that_an_alert_names_is_looked_at_at_once_and_a_breach_rolls_back(served: Served, name: str) -> None:
    rollout_id = in_canary(served)
    labels = {"rollout": {"rollout": rollout_id}, "flag": {"flag": "chat-model"}}.get(
        name, {"flag": "chat-model", "environment": "production"}
    )
    answer = send(breached(served), alert(**labels)).json()
    assert [(r["rollout_id"], r["outcome"], r["decision"]) for r in answer["looked"]] == [(rollout_id, "decided", "roll_back")]
    assert served.get(f"/rollouts/{rollout_id}").json()["state"] == "rolled_back"


def test_an_alert_decides_nothing_where_no_gate_is_breached(served: Served) -> None:
    rollout_id = in_canary(served)
    answer = send(served, alert(rollout=rollout_id)).json()
    assert [(r["outcome"], r["decision"]) for r in answer["looked"]] == [("quiet", "hold")]
    assert served.get(f"/rollouts/{rollout_id}").json()["state"] == "baking"


@pytest.mark.parametrize(
    "body",
    [
        alert(status="resolved", flag="chat-model"),
        alert(flag="another"),
        alert(flag="chat-model", environment="staging"),
        alert(rollout="chat-00000000", flag="chat-model"),
        PAYLOAD,
        {**PAYLOAD, "alerts": []},
    ],
)
def test_what_names_no_active_rollout_looks_at_none(served: Served, body: dict[str, Any]) -> None:
    rollout_id = in_canary(served)
    answer = send(breached(served), body)
    assert (answer.status_code, answer.json()["looked"]) == (200, [])
    assert served.get(f"/rollouts/{rollout_id}").json()["state"] == "baking"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({**PAYLOAD, "version": "3"}, 422, "version"),
        ({k: v for k, v in PAYLOAD.items() if k != "alerts"}, 422, "alerts"),
        ({**PAYLOAD, "alerts": [{"status": "on fire", "labels": {}}]}, 422, "alerts.0.status"),
        ([], 422, ""),
        (b"{", 422, ""),
        (b"", 422, ""),
        (b"\xff\xfe", 422, ""),
        (b"x" * (BODY_MAX_BYTES + 1), 413, None),
    ],
)
def test_what_is_no_payload_is_refused_politely(served: Served, body: Any, status: int, field: str | None) -> None:
    answer = send(served, body)
    assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
    if field is not None:
        assert answer.json()["errors"][0]["field"] == field


def test_only_alertmanagers_own_token_opens_this_door(served: Served) -> None:
    from tests.api.conftest import TOKENS

    for token in ("", "guess", TOKENS["sam"][0]):
        assert send(served, PAYLOAD, token).status_code == 401
    assert served.client.get("/hooks/alertmanager").status_code == 405
    assert served.get("/rollouts", ALERTMANAGER).status_code == 401


def test_without_a_token_of_its_own_the_door_is_closed(served: Served) -> None:
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from controller.console.alertmanager import route

    closed = replace(served, client=TestClient(Starlette(routes=[route(served.api, "")])))
    answer = send(closed, PAYLOAD, "")
    assert answer.status_code == 401 and "PENSTOCK_ALERTMANAGER_TOKEN is not set" in answer.json()["detail"]


def test_many_rollouts_are_looked_at_in_bounds(served: Served) -> None:
    for n in range(3):
        assert (
            served.start(PLAN.replace("name: chat,", f"name: chat{n},").replace("flag: chat-model", f"flag: f{n}")).status_code
            == 200
        )
    alerts = [alert(flag=f"f{n % 3}")["alerts"][0] for n in range(100)]
    answer = send(served, {**PAYLOAD, "alerts": alerts}).json()
    assert (answer["firing"], len(answer["looked"]), answer["left"]) == (100, 3, 0)
