"""The API over the real application and a real Postgres: verbs, rights, keys, refusals."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from controller.console.api.shield import BAD_TOKENS, BODY_MAX_BYTES
from controller.core.rollout import replay
from tests.api.conftest import PEOPLE, PLAN, TOKENS, Served

pytestmark = pytest.mark.services

ATTEMPTS = 100


def kinds(served: Served, rollout_id: str) -> Counter[str]:
    return Counter(e.event.kind for e in served.ports.audit.entries(rollout_id))


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status and found["type"].startswith("urn:penstock:problem:")
    return found


def test_a_rollout_from_start_to_rollback_over_http(served: Served) -> None:
    started = served.start()
    assert started.status_code == 200 and started.json()["state"] == "pending"
    rollout_id = started.json()["rollout_id"]
    held = served.post(f"/rollouts/{rollout_id}/promote", json={"digest": started.json()["step"]}).json()
    assert held["state"] == "awaiting_approval" and held["decision"]["why"] == "awaiting_approval"
    question = held["question"]["digest"]
    yes = served.post(f"/rollouts/{rollout_id}/approve", "sam", json={"digest": question}).json()
    assert yes["question"]["approvals"][0]["given"][0]["actor"] == "sam"
    moved = served.post(f"/rollouts/{rollout_id}/promote", json={"digest": question}).json()
    assert (moved["state"], moved["weight"], moved["decision"]["kind"]) == ("baking", 0.05, "advance")
    broken = served.post(
        f"/rollouts/{rollout_id}/override",
        "sam",
        json={"digest": moved["step"], "checks": ["bake"], "reason": "noon", "ticket": "INC-7"},
    ).json()
    assert broken["override"]["checks"] == ["bake"]
    back = served.post(f"/rollouts/{rollout_id}/rollback", json={"reason": "customers complain"}).json()
    assert (back["state"], back["weight"]) == ("rolled_back", 0)
    told = served.get(f"/rollouts/{rollout_id}/why", "amy").json()
    assert "customers complain" in told["sentence"]
    rows = served.get(f"/rollouts/{rollout_id}/decisions?evidence=true", "amy").json()["rows"]
    assert [r["kind"] for r in rows][-3:] == ["overridden", "decided roll_back", "applied"]
    assert rows[-3]["event"]["ticket"] == "INC-7"
    assert served.get(f"/rollouts/{rollout_id}/decisions/{rows[-1]['seq']}").json() == rows[-1]


def test_pause_resume_reject_and_abort(served: Served) -> None:
    rollout_id, question = served.asked()
    no = served.post(f"/rollouts/{rollout_id}/reject", "sam", json={"digest": question, "reason": "not today"}).json()
    assert no["state"] == "paused" and kinds(served, rollout_id)["rejected"] == 1
    assert served.post(f"/rollouts/{rollout_id}/resume", json={"reason": "today"}).json()["state"] == "pending"
    assert served.post(f"/rollouts/{rollout_id}/pause", json={"reason": "wait"}).json()["state"] == "paused"
    assert "paused already" in problem(served.post(f"/rollouts/{rollout_id}/pause", json={"reason": "wait"}), 409)["detail"]
    stale = problem(served.post(f"/rollouts/{rollout_id}/approve", "sam", json={"digest": question}), 409)
    assert "does not wait" in stale["detail"]
    assert served.post(f"/rollouts/{rollout_id}/abort", json={"reason": "called off"}).json()["state"] == "aborted"


def test_flags_are_listed_killed_and_unkilled_at_the_version_that_was_seen(served: Served) -> None:
    rollout_id, question = served.asked()
    served.post(f"/rollouts/{rollout_id}/approve", "sam", json={"digest": question})
    served.post(f"/rollouts/{rollout_id}/promote", json={"digest": question})
    listed = served.get("/flags").json()
    assert [f["key"] for f in listed["flags"]] == ["chat-model"] and served.get("/flags?environment=staging").json()[
        "flags"
    ] == []
    killed = served.post("/flags/production/chat-model/kill", json={"reason": "odd answers"}).json()
    assert killed["killed"] and served.get("/flags/production/chat-model").json() == killed
    problem(served.post("/flags/production/chat-model/unkill", json={"reason": "fine", "version": killed["version"]}), 403)
    other = served.post("/flags/production/chat-model/unkill", "sam", json={"reason": "fine", "version": killed["version"] + 1})
    assert "not" in problem(other, 409)["detail"]
    back = served.post("/flags/production/chat-model/unkill", "sam", json={"reason": "fine", "version": killed["version"]}).json()
    assert (back["killed"], back["weight"]) == (False, 0)
    problem(served.get("/flags/production/nothing"), 404)


def test_the_list_filters_searches_and_pages(served: Served) -> None:
    ids = []
    for n in range(5):
        ids.append(served.start(PLAN.replace("flag: chat-model", f"flag: flag-{n}")).json()["rollout_id"])
    served.post(f"/rollouts/{ids[2]}/abort", json={"reason": "r"})
    first = served.get("/rollouts?limit=2").json()
    second = served.get(f"/rollouts?limit=2&cursor={first['next']}").json()
    third = served.get(f"/rollouts?limit=2&cursor={second['next']}").json()
    assert [r["rollout_id"] for p in (first, second, third) for r in p["rollouts"]] == ids[::-1] and third["next"] is None
    assert [r["rollout_id"] for r in served.get("/rollouts?state=aborted").json()["rollouts"]] == [ids[2]]
    assert len(served.get("/rollouts?state=aborted&state=pending").json()["rollouts"]) == 5
    assert [r["flag"] for r in served.get("/rollouts?q=FLAG-3").json()["rollouts"]] == ["flag-3"]
    assert problem(served.get("/rollouts?cursor=nonsense"), 422)["errors"][0]["field"] == "query.cursor"
    assert served.get("/rollouts/" + ids[0] + "/decisions?limit=1").json()["next"] is None


# --- who ------------------------------------------------------------------------------------------------------------------------


def test_nothing_but_the_document_is_answered_without_a_token(served: Served) -> None:
    document = served.get("/openapi.json", None).json()
    for path, operations in document["paths"].items():
        for method in operations:
            url = path.format(rollout_id="chat-00000000", seq=1, environment="production", key="x")
            answer = served.ask(method.upper(), url, None, headers={"Content-Type": "application/json"}, content="{}")
            assert problem(answer, 401)["type"].endswith("unknown-caller") and answer.headers["www-authenticate"] == "Bearer"


def test_a_right_that_is_lacking_is_refused_with_the_role_that_has_it(served: Served) -> None:
    rollout_id, question = served.asked()
    before = kinds(served, rollout_id)
    for who in ("amy", "dana-viewer"):
        for verb, body in (("approve", {"digest": question}), ("rollback", {"reason": "r"}), ("pause", {"reason": "r"})):
            told = problem(served.post(f"/rollouts/{rollout_id}/{verb}", who, json=body), 403)
            assert "takes the role release-manager or sre-oncall" in told["detail"]
    assert problem(served.start(who="sam"), 403)["detail"].endswith("may not start; that takes the role release-manager")
    assert problem(served.get("/audit/verify"), 403)["detail"].endswith("takes the role auditor")
    own = problem(served.post(f"/rollouts/{rollout_id}/approve", "dana", json={"digest": question}), 409)
    assert "dana is in managers; this approval needs oncall" in own["detail"]
    assert kinds(served, rollout_id) == before


def test_a_token_that_was_taken_out_is_nobodys_at_once(served: Served) -> None:
    assert served.get("/whoami", "amy").json()["groups"] == ["audit"]
    served.people_file.write_text(PEOPLE.replace(TOKENS["amy"][1], "sha256:" + "0" * 64))
    problem(served.get("/whoami", "amy"), 401)


def test_no_token_and_no_secret_reaches_the_log(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    served.get("/whoami", "pst_this-is-secret")
    served.start()
    served.client.post("/hooks/alertmanager", json={}, headers={"Authorization": "Bearer this-is-secret"})
    said = "".join(capfd.readouterr())
    assert "bad_token" in said and "this-is-secret" not in said and not any(t in said for t, _ in TOKENS.values())


def test_bad_tokens_are_counted_by_address_and_do_not_lock_out_the_right_one(served: Served) -> None:
    statuses = Counter(served.get("/whoami", f"pst_guess{n}").status_code for n in range(ATTEMPTS))
    assert statuses == {401: BAD_TOKENS, 429: ATTEMPTS - BAD_TOKENS}
    refused = served.get("/whoami", "pst_guess")
    assert 0 < int(refused.headers["retry-after"]) <= 60 and "guess" not in refused.text
    assert served.get("/whoami", "dana").json()["name"] == "dana"


# --- once -----------------------------------------------------------------------------------------------------------------------


def test_a_key_is_done_once_by_a_hundred_at_once_and_answered_alike(served: Served) -> None:
    rollout_id, question = served.asked()
    send = lambda _: served.post(  # noqa: E731
        f"/rollouts/{rollout_id}/approve", "sam", json={"digest": question}, headers={"Idempotency-Key": "click-1"}
    )
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(ATTEMPTS)))
    assert {a.status_code for a in answers} <= {200, 409}
    assert all(a.json()["type"].endswith("in-progress") for a in answers if a.status_code == 409)
    assert len({a.content for a in answers if a.status_code == 200}) == 1
    assert kinds(served, rollout_id)["approved"] == 1
    replayed = send(0)
    assert replayed.headers["idempotent-replayed"] == "true" and replayed.status_code == 200


def test_a_hundred_starts_with_a_key_open_one_rollout(served: Served) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: served.start(**{"Idempotency-Key": "ci-7"}), range(ATTEMPTS)))
    assert len({a.json()["rollout_id"] for a in answers if a.status_code == 200}) == 1
    assert len(served.get("/rollouts").json()["rollouts"]) == 1


def test_a_key_belongs_to_one_request_of_one_caller(served: Served) -> None:
    first = served.start(**{"Idempotency-Key": "k"})
    assert served.start(**{"Idempotency-Key": "k"}).content == first.content
    other = served.start(PLAN.replace("5%", "6%"), **{"Idempotency-Key": "k"})
    assert problem(other, 422)["type"].endswith("key-of-another-request")
    rollout_id = first.json()["rollout_id"]
    mine = served.post(f"/rollouts/{rollout_id}/pause", "sam", json={"reason": "r"}, headers={"Idempotency-Key": "k"})
    assert mine.status_code == 200
    assert problem(served.start(**{"Idempotency-Key": "two words"}), 422)["errors"][0]["field"] == "header.Idempotency-Key"


def test_a_refusal_is_replayed_and_a_missing_right_is_not_kept(served: Served) -> None:
    rollout_id, _ = served.asked()
    pause = {"json": {"reason": "r"}, "headers": {"Idempotency-Key": "p"}}
    problem(served.post(f"/rollouts/{rollout_id}/resume", **pause), 409)
    again = served.post(f"/rollouts/{rollout_id}/resume", **pause)
    assert problem(again, 409) and again.headers["idempotent-replayed"] == "true"
    problem(served.post(f"/rollouts/{rollout_id}/pause", "amy", json={"reason": "r"}, headers={"Idempotency-Key": "q"}), 403)
    served.people_file.write_text(PEOPLE.replace("[auditor]", "[auditor, sre-oncall]"))
    assert (
        served.post(f"/rollouts/{rollout_id}/pause", "amy", json={"reason": "r"}, headers={"Idempotency-Key": "q"}).status_code
        == 200
    )


# --- refusals -------------------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_named_by_field_and_value(served: Served) -> None:
    rollout_id, question = served.asked()
    told = problem(served.post(f"/rollouts/{rollout_id}/approve", "sam", json={"digest": "abc", "more": 1}), 422)
    assert {e["field"]: e["value"] for e in told["errors"]} == {"body.digest": "abc", "body.more": "1"}
    for reason in ("", " ", "a\0b", "x" * 1001, 7, None):
        told = problem(served.post(f"/rollouts/{rollout_id}/pause", json={"reason": reason}), 422)
        assert told["errors"][0]["field"] == "body.reason"
    assert problem(served.post(f"/rollouts/{rollout_id}/pause", content=b"{", headers={"Content-Type": "application/json"}), 400)
    told = problem(
        served.post(
            f"/rollouts/{rollout_id}/pause", content=b'{"reason": "\\ud800"}', headers={"Content-Type": "application/json"}
        ),
        422,
    )
    assert told["errors"][0]["field"] == "body.reason"
    form = served.post(
        f"/rollouts/{rollout_id}/pause", content=b"reason=x", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    problem(form, 422)
    problem(served.get("/rollouts/chat-00000000"), 404)
    problem(served.get("/rollouts/..%2f..%2fetc"), 404)
    problem(served.get("/nothing"), 404)
    problem(served.ask("DELETE", f"/rollouts/{rollout_id}"), 405)
    wrong = problem(served.start(PLAN.replace("5%", "5")), 422)
    assert wrong["errors"][0]["field"] == "phases.0.traffic" and wrong["errors"][0]["line"] == 11
    problem(served.post("/rollouts", content=PLAN, headers={"Content-Type": "text/plain"}), 415)
    problem(served.post("/rollouts", content=b"\xff", headers={"Content-Type": "application/yaml"}), 400)
    assert problem(served.start(), 409)["detail"].startswith("flag 'chat-model' in production is held by rollout")
    assert question in json.dumps(served.get(f"/rollouts/{rollout_id}").json())


def test_a_plan_is_checked_without_starting_it(served: Served) -> None:
    send = lambda text: served.post("/plans/check", "amy", content=text, headers={"Content-Type": "application/yaml"}).json()  # noqa: E731
    assert send(PLAN)["ok"] and send(PLAN)["could_start"] is None
    assert send(PLAN.replace("[oncall]", "[nobody]"))["could_start"].startswith("phase canary: there is no group 'nobody'")
    wrong = send("kind: Rollout\nflag: [")
    assert not wrong["ok"] and wrong["problems"][0]["line"] == 2
    assert served.get("/rollouts").json()["rollouts"] == []
    from ruamel.yaml import YAML

    as_json = json.dumps(YAML(typ="safe", pure=True).load(PLAN))
    assert served.post("/plans/check", content=as_json, headers={"Content-Type": "application/json"}).json() == send(PLAN)


def test_a_body_that_is_too_large_is_refused_whether_it_says_its_length_or_not(served: Served) -> None:
    problem(served.start("x" * (BODY_MAX_BYTES + 1)), 413)

    def chunks() -> Any:
        for _ in range(BODY_MAX_BYTES // 1000 + 1):
            yield b"x" * 1000

    problem(served.post("/rollouts", content=chunks(), headers={"Content-Type": "application/yaml"}), 413)


def test_no_get_changes_anything_and_no_other_site_may_read(served: Served) -> None:
    rollout_id, _ = served.asked()
    before = kinds(served, rollout_id)
    for verb in ("approve", "reject", "pause", "resume", "promote", "rollback", "abort", "override"):
        problem(served.get(f"/rollouts/{rollout_id}/{verb}"), 405)
    for verb in ("kill", "unkill"):
        problem(served.get(f"/flags/production/chat-model/{verb}"), 405)
    assert kinds(served, rollout_id) == before
    answer = served.get("/rollouts", headers={"Origin": "https://evil.example"})
    assert not [h for h in answer.headers if h.startswith("access-control")]
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
    preflight = served.ask(
        "OPTIONS", "/rollouts", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    problem(preflight, 405)


def test_what_breaks_inside_says_nothing_of_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("secret of the database")

    rollout_id, _ = served.asked()
    monkeypatch.setattr("controller.describe.detail", broken)
    told = problem(served.get(f"/rollouts/{rollout_id}"), 500)
    assert "secret" not in json.dumps(told) and "Traceback" not in json.dumps(told)


def test_without_people_nobody_is_let_in(served: Served) -> None:
    from dataclasses import replace

    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.testclient import TestClient

    from controller.console.api.app import create_api

    alone = TestClient(Starlette(routes=[Mount("/api/v1", create_api(replace(served.api, people=None)))]))
    answer = alone.get("/api/v1/rollouts", headers={"Authorization": f"Bearer {TOKENS['dana'][0]}"})
    assert "PENSTOCK_PEOPLE_FILE" in problem(answer, 401)["detail"]


def test_the_audit_log_is_verified_by_auditors(served: Served) -> None:
    rollout_id, _ = served.asked()
    head = served.get("/audit/head", "amy").json()["head"]
    found = served.get(f"/audit/verify?head={head}", "amy").json()
    assert found["ok"] and found["head"] == head and found["rows"] == len(served.ports.audit.entries(rollout_id))
    wrong = served.get(f"/audit/verify?head=1:{'0' * 64}", "amy").json()
    assert not wrong["ok"] and wrong["problems"][0]["kind"] == "head"


def test_an_export_is_the_rows_as_they_were_hashed(served: Served) -> None:
    rollout_id, _ = served.asked()
    answer = served.get("/audit/export", "amy")
    assert answer.headers["content-type"] == "application/jsonl"
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [r["seq"] for r in rows] == [1, 2] and answer.headers["penstock-rows"] == "2"
    assert (
        answer.headers["penstock-head"]
        == f"{rows[-1]['id']}:{rows[-1]['hash']}"
        == served.get("/audit/head", "amy").json()["head"]
    )
    as_csv = served.get(f"/audit/export?format=csv&rollout={rollout_id}", "amy")
    assert as_csv.headers["content-type"].startswith("text/csv") and len(as_csv.text.splitlines()) == 3
    assert served.get("/audit/export?since=2999-01-01T00:00:00Z", "amy").text == ""
    assert problem(served.get("/audit/export?since=yesterday", "amy"), 422)["errors"][0]["field"] == "query.since"
    problem(served.get("/audit/export"), 403)


def test_the_kill_at_the_flag_door_takes_a_token_where_people_are_known(served: Served) -> None:
    rollout_id, question = served.asked()
    served.post(f"/rollouts/{rollout_id}/approve", "sam", json={"digest": question})
    served.post(f"/rollouts/{rollout_id}/promote", json={"digest": question})
    url, body = "/flags/v1/production/chat-model/kill", {"actor": "eve", "reason": "r"}
    assert served.client.post(url, json=body).status_code == 401
    assert served.client.post(url, json=body, headers={"Authorization": f"Bearer {TOKENS['amy'][0]}"}).status_code == 403
    killed = served.client.post(url, json=body, headers={"Authorization": f"Bearer {TOKENS['dana'][0]}"})
    assert killed.status_code == 200 and killed.json()["decision_id"] == "person:dana"
    assert served.client.get("/flags/v1/snapshot?environment=production").status_code == 200
    assert replay(served.ports.audit.entries(rollout_id)).ended is False
