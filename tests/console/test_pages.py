"""What pages show and what their forms do: the real application, a real Postgres, the verbs of every other door."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from controller.console.web.app import create_web
from controller.core.decision import Hold, Why
from controller.core.rollout import Decided, replay
from controller.ports import NewEntry
from tests.api.conftest import PLAN
from tests.console.web import Site, forms, site, words
from tests.ports.databases import Databases
from tests.ports.events import applied, change, decided, evidence, hold, opened, roll_back

pytestmark = pytest.mark.services

STATIC = Path("controller/console/web/static")


@pytest.fixture
def console(databases: Databases, tmp_path: Path) -> Iterator[Site]:
    with site(databases, tmp_path) as made:
        yield made


def fill(console: Site, rollout_id: str, *, rolled_back: bool = False, holds: int = 3, flag: str = "chat-model") -> None:
    """A rollout that has begun, looked, and perhaps ended; written as a controller would."""
    audit = console.served.ports.audit
    audit.append(opened(rollout_id, flag), None)
    begin = decided(rollout_id, 2)
    audit.append(begin, None)
    audit.append(applied(rollout_id, 3, begin), None)
    for i in range(holds):
        audit.append(hold(rollout_id, 4 + i), None)
    if rolled_back:
        end = roll_back(rollout_id, 4 + holds)
        audit.append(end, None)
        audit.append(applied(rollout_id, 5 + holds, end), None)


def test_the_list_begins_with_whoever_needs_somebody(console: Site) -> None:
    fill(console, "calm-00000001", flag="third")
    fill(console, "over-00000002", rolled_back=True, flag="other")
    waiting, _ = console.served.asked()
    page = console.browser("dana").get("/rollouts")
    text = page.text
    assert text.index('id="h-attention"') < text.index(waiting) < text.index('id="h-running"') < text.index("calm-00000001")
    assert text.index("calm-00000001") < text.index('id="h-ended"') < text.index("over-00000002")
    assert "Waits for approval to enter canary" in words(page)
    assert "<title>(1) Rollouts" in text


def test_the_list_is_searched_and_filtered(console: Site) -> None:
    fill(console, "calm-00000001", flag="third")
    fill(console, "over-00000002", rolled_back=True, flag="other")
    browser = console.browser("dana")
    assert "over-00000002" not in browser.get("/rollouts?show=running").text
    assert "calm-00000001" not in browser.get("/rollouts?show=ended").text
    assert "calm-00000001" not in browser.get("/rollouts?q=OTHER").text
    assert "over-00000002" in browser.get("/rollouts?q=OTHER").text
    assert "Nothing is being rolled out that matches" in words(browser.get("/rollouts?q=%3Cb%3E"))


def test_a_rollout_says_what_moved_why_on_which_numbers_and_what_is_next(console: Site) -> None:
    fill(console, "chat-00000001")
    page = console.browser("dana").get("/rollouts/chat-00000001")
    text = words(page)
    assert "the gates passed" in text
    assert "2 of 5 minutes" in text
    assert "0.15%" in text
    assert "0.0001 to 0.009" in text
    assert "3 looks since" in text
    assert "1,000 users' requests" in text
    assert '<rect class="band' in page.text
    assert '<line class="limit"' in page.text
    assert "Table of errors" in text


def test_spend_is_said_to_be_unknown_where_prometheus_does_not_answer(console: Site) -> None:
    fill(console, "chat-00000001")
    assert "not known" in words(console.browser("dana").get("/rollouts/chat-00000001/spend"))


@pytest.mark.parametrize(
    "answer, said",
    [
        (
            {"candidate": 1.5, "shadow": 0.5, "baseline": 12.0},
            "2.00 USD by the candidate, 0.50 USD of it for mirrored copies; 12.00 USD by the baseline",
        ),
        ({"baseline": 0.004}, "0.00 USD by the candidate; 0.004 USD by the baseline"),
        (None, "nobody counts what it costs"),
    ],
)
def test_spend_is_of_the_flag_since_the_rollout_began(
    databases: Databases, tmp_path: Path, answer: dict[str, float] | None, said: str
) -> None:
    asked: list[str] = []

    class Prometheus(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(parse_qs(urlsplit(self.path).query))

        def do_POST(self) -> None:
            self._say(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

        def _say(self, query: dict[str, list[str]]) -> None:
            asked.extend(query["query"])
            at = float(query["time"][0])
            result = [{"metric": {"arm": arm}, "value": [at, str(value)]} for arm, value in (answer or {}).items()]
            raw = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Prometheus)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with site(databases, tmp_path) as made:
            settings = replace(made.served.api.settings, prometheus_url=f"http://127.0.0.1:{server.server_port}")
            app = Starlette(routes=[Mount("/", create_web(replace(made.served.api, settings=settings)))])
            made.served = replace(made.served, app=app)
            fill(made, "chat-00000001")
            assert said in words(made.browser("dana").get("/rollouts/chat-00000001/spend"))
    finally:
        server.shutdown()
        server.server_close()
    query = r'sum by \(arm\) \(increase\(penstock_cost_usd_total\{environment="production",flag="chat-model"\}\[\d+s\]\)\)'
    assert len(asked) == 1
    assert re.fullmatch(query, asked[0])


def test_a_row_shows_the_exact_question_and_the_raw_answer(console: Site) -> None:
    fill(console, "chat-00000001")
    page = words(console.browser("dana").get("/rollouts/chat-00000001/rows/2"))
    assert 'sum(rate(penstock_requests_total{arm="candidate"}[5m]))' in page
    assert '{"status":"success","data":[1]}' in page


def test_a_rollback_takes_one_click_and_a_reason(console: Site) -> None:
    rollout_id, _ = console.served.asked()
    page = f"/rollouts/{rollout_id}"
    browser = console.browser("sam")
    empty = browser.send(page, f"{page}/roll-back", reason="  ")
    assert empty.status_code == 422
    assert "say why" in words(empty)
    assert browser.send(page, f"{page}/roll-back", reason="bad answers in German").status_code == 303
    rollout = replay(console.served.ports.audit.entries(rollout_id))
    assert rollout.ended
    after = words(browser.get(page))
    assert "bad answers in German" in after
    assert f"{page}/roll-back" not in forms(browser.get(page))


def test_an_approval_is_given_once_and_only_to_the_question_that_was_shown(console: Site) -> None:
    rollout_id, _ = console.served.asked()
    page = f"/rollouts/{rollout_id}"
    browser = console.browser("sam")
    assert f"{page}/approve" in forms(browser.get(page))
    stale = browser.send(page, f"{page}/approve", digest="0" * 64)
    assert stale.status_code == 409
    assert browser.send(page, f"{page}/approve").status_code == 303
    assert "sam" in words(browser.get(page))


def test_a_rejection_pauses_and_a_resume_goes_on(console: Site) -> None:
    rollout_id, _ = console.served.asked()
    page = f"/rollouts/{rollout_id}"
    browser = console.browser("sam")
    assert browser.send(page, f"{page}/reject", reason="not on a Friday").status_code == 303
    assert "not on a Friday" in words(browser.get(page))
    assert "Needs attention" in words(browser.get("/rollouts"))
    assert browser.send(page, f"{page}/resume", reason="Monday").status_code == 303


@pytest.mark.parametrize("verb", ["approve", "reject", "pause", "resume", "promote", "roll-back", "abort", "override"])
def test_who_may_only_read_has_no_button_and_no_way_around_it(console: Site, verb: str) -> None:
    rollout_id, digest = console.served.asked()
    page = f"/rollouts/{rollout_id}"
    browser = console.browser("amy")
    shown = browser.get(page)
    assert set(forms(shown)) == {"/logout"}
    fields = forms(shown)["/logout"] | {"reason": "x", "digest": digest, "ticket": "T-1", "check-approval": "1"}
    answer = browser.client.post(f"{page}/{verb}", data=fields, follow_redirects=False)
    assert answer.status_code == 403
    assert "may not" in words(answer)
    assert len(console.served.ports.audit.entries(rollout_id)) == 2


def test_an_override_needs_a_ticket_and_is_shown(console: Site) -> None:
    rollout_id, _ = console.served.asked()
    page = f"/rollouts/{rollout_id}"
    browser = console.browser("sam")
    assert browser.send(page, f"{page}/override", reason="x", ticket="T-1").status_code == 422
    fields = {"check-approval": "1"}
    assert browser.send(page, f"{page}/override", reason="outage of the old model", ticket="T-1", **fields).status_code == 303
    assert "Break-glass by sam (T-1): approval" in words(browser.get(page))


def test_a_flag_is_killed_and_only_who_may_takes_it_back(console: Site) -> None:
    console.served.ports.flags.write(change(5_000), 0)
    manager, oncall = console.browser("dana"), console.browser("sam")
    at = "/flags/production/chat-model"
    assert manager.send("/flags", f"{at}/kill", reason="smoke").status_code == 303
    assert "Killed: everybody gets" in words(manager.get("/flags"))
    assert f"{at}/unkill" not in forms(manager.get("/flags"))
    old = forms(oncall.get("/flags"))[f"{at}/unkill"]
    assert oncall.client.post(f"{at}/unkill", data=old | {"version": "1", "reason": "x"}).status_code == 409
    assert oncall.send("/flags", f"{at}/unkill", reason="no fire").status_code == 303
    assert f"{at}/kill" in forms(oncall.get("/flags"))


def test_a_plan_is_checked_with_lines_and_started_once(console: Site) -> None:
    browser = console.browser("dana")
    wrong = browser.send("/plan", "/plan", plan=PLAN.replace("max: 1%", "max: 100.5%"))
    assert wrong.status_code == 422
    assert "line 7" in words(wrong)
    right = browser.send("/plan", "/plan", plan=PLAN)
    assert "could start now" in words(right)
    fields = forms(right)["/plan/start"] | {"plan": PLAN.replace("\n", "\r\n")}
    first = browser.client.post("/plan/start", data=fields, follow_redirects=False)
    again = browser.client.post("/plan/start", data=fields, follow_redirects=False)
    assert first.status_code == again.status_code == 303
    assert first.headers["location"] == again.headers["location"]
    assert "held" in words(browser.send("/plan", "/plan", plan=PLAN))
    assert "/plan/start" not in forms(console.browser("sam").send("/plan", "/plan", plan=PLAN))


def test_a_plan_shows_what_changed_since_the_last_one_of_its_flag(console: Site) -> None:
    fill(console, "chat-00000001", rolled_back=True)
    audit = console.served.ports.audit
    new = opened("chat-00000002")
    plan = replace(new.event.plan, phases=tuple(replace(p, weight=min(p.weight * 5, 100_000)) for p in new.event.plan.phases))  # type: ignore[union-attr]
    audit.append(replace(new, event=replace(new.event, plan=plan)), None)  # type: ignore[type-var]
    page = words(console.browser("dana").get("/rollouts/chat-00000002/plan"))
    assert "Changed since chat-00000001" in page
    assert "phases[canary].weight 1% 5%" in page


def test_the_audit_log_is_verified_and_exported_by_an_auditor_alone(console: Site) -> None:
    fill(console, "chat-00000001")
    amy, dana = console.browser("amy"), console.browser("dana")
    assert "The log is whole" in words(amy.send("/audit", "/audit/verify"))
    rows = amy.get("/audit/export?format=jsonl&rollout=chat-00000001")
    assert rows.headers["content-disposition"] == 'attachment; filename="audit-chat-00000001.jsonl"'
    assert len(rows.text.strip().splitlines()) >= 6
    assert "/audit/verify" not in forms(dana.get("/audit"))
    assert dana.get("/audit/export").status_code == 403


@pytest.mark.parametrize(
    "word", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'; DROP TABLE audit; --", "{{ 7 * 7 }}", "\u202e"]
)
def test_words_of_people_and_providers_stay_words(console: Site, word: str) -> None:
    audit = console.served.ports.audit
    first = opened("odd-00000001")
    plan = replace(first.event.plan, owner=word, labels={"x": word})  # type: ignore[union-attr]
    audit.append(NewEntry(rollout_id="odd-00000001", seq=1, actor=word, event=replace(first.event, plan=plan)), None)  # type: ignore[type-var]
    row = decided("odd-00000001", 2, Hold(why=Why.BAKING, text=word), answer=f'{{"data": "{word}"}}')
    event = row.event
    assert isinstance(event, Decided)
    (name, measured), *_ = event.observed.measurements
    asked = replace(measured, evidence=(evidence(word, word),))
    results = tuple(replace(r, reason=word) for r in event.observed.results)
    observed = replace(event.observed, measurements=((name, asked),), results=results)
    audit.append(replace(row, actor=word, event=replace(event, observed=observed)), None)
    browser = console.browser("amy")
    for path in (
        "/rollouts",
        "/rollouts/odd-00000001",
        "/rollouts/odd-00000001/rows/1",
        "/rollouts/odd-00000001/rows/2",
        "/rollouts/odd-00000001/plan",
    ):
        page = browser.get(path)
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text
        assert "49" not in words(page).split(word)[0][-3:]
    assert word in words(browser.get("/rollouts/odd-00000001/rows/2"))


@pytest.mark.parametrize(
    "path",
    ["/rollouts/none-00000000", "/rollouts/..%2f..%2fetc", "/rollouts/chat-00000001/rows/99", "/nowhere", "/rollouts/x/y/z"],
)
def test_what_is_not_there_is_said_so_in_words(console: Site, path: str) -> None:
    answer = console.browser("dana").get(path)
    assert answer.status_code == 404
    assert "<h1>" in answer.text


def test_the_timeline_goes_back_page_by_page_without_a_gap(console: Site) -> None:
    audit = console.served.ports.audit
    fill(console, "long-00000001", holds=0)
    for i in range(100):
        why = Why.BAKING if i % 2 else Why.NOT_ENOUGH_EVIDENCE
        audit.append(decided("long-00000001", 4 + i, Hold(why=why, text=f"look {i}")), None)
    browser = console.browser("dana")
    path, seen = "/rollouts/long-00000001", []
    while path:
        page = browser.get(path).text
        timeline = page[page.index('<section id="timeline"') :]
        seen += [int(part.split('"')[0]) for part in timeline.split('class="evidence" href="/rollouts/long-00000001/rows/')[1:]]
        older = timeline.split('href="/rollouts/long-00000001?before=')
        path = f"/rollouts/long-00000001?before={older[1].split('#')[0]}" if len(older) > 1 else ""
    assert seen == list(range(103, 0, -1))


def test_scripts_weigh_less_than_60_kb() -> None:
    assert sum(len(gzip.compress(f.read_bytes())) for f in STATIC.glob("*.js")) < 60_000


def test_the_other_doors_are_where_they_were(console: Site) -> None:
    client = console.browser().client
    assert client.get("/healthz").status_code == 200
    assert client.get("/api/v1/rollouts").status_code == 401
    assert client.get("/api/v1/nowhere").headers["content-type"] == "application/problem+json"
