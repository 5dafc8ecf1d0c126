"""
Buttons in Slack, clicked in the stand-in over real sockets and signed HTTP, on a real Postgres: what a click does, what a person is told, and that a
hundred of them do it once.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from bench.serving import address_of, listen
from bench.slack import SlackConfig, SlackServer
from bench.slack_delivery import Tamper
from bench.slack_delivery import signature as slack_signature
from bench.slack_workspace import TEAM_ID
from controller import commands
from controller.adapters.memory import MemoryMetrics
from controller.adapters.postgres import PostgresAudit, PostgresFlags, app_url, open_engine
from controller.adapters.postgres.outbox import PostgresOutbox
from controller.adapters.slack import PostgresThreads, SlackNotifier
from controller.adapters.slack.desk import SlackDesk
from controller.codec import plan_digest
from controller.console.slack_door import SlackDoor, route, socket
from controller.core.plan import Approval, Mode, Phase, Plan, Policy, RateLimit
from controller.core.rollout import Aborted, Approved, AwaitingApproval, Paused, RolledBack, Rollout, replay
from controller.deliver import Pace, deliver
from controller.people import PeopleFile
from controller.ports import NotifierUnavailable, Ports
from controller.tick import tick
from flagspec import Variant
from tests.ports.databases import Databases

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

PEOPLE = f"""\
apiVersion: penstock/v1
kind: People
slack: {{workspaces: [{TEAM_ID}]}}
people:
  - {{name: alice, slack: U0ALICE}}
  - {{name: bob, slack: U0BOB}}
  - {{name: carol, slack: U0CAROL}}
groups:
  - {{name: release-managers, roles: [release-manager], members: [alice], slack: S0RELEASE}}
  - {{name: oncall, roles: [sre-oncall], members: [carol]}}
  - {{name: lookers, roles: [viewer], members: [bob]}}
"""

PLAN = Plan(
    name="chat",
    environment="production",
    flag="chat",
    baseline=Variant(model="old"),
    candidate=Variant(model="new"),
    phases=(
        Phase(
            name="canary",
            mode=Mode.LIVE,
            weight=5_000,
            bake=timedelta(0),
            approval=Approval(groups=("release-managers", "oncall"), count=2),
        ),
        Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(0)),
    ),
    gates=(RateLimit(name="errors", indicator="error_ratio", limit=0.01),),
    policy=Policy(),
)


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with Databases() as made:
        yield made


@pytest.fixture
def engine(databases: Databases) -> Iterator[Engine]:
    made = open_engine(app_url(databases.migrated()))
    yield made
    made.dispose()


class Desk:
    """A controller with a rollout that waits for two approvals, and its message in Slack."""

    def __init__(self, engine: Engine, slack: SlackServer, people: Path | None) -> None:
        audit = PostgresAudit(engine)
        self.ports = Ports(audit=audit, index=audit, flags=PostgresFlags(engine), metrics=MemoryMetrics())
        self.slack = slack
        self.desk = SlackDesk("xoxb-test", base_url=slack.api_url)
        self.door = SlackDoor(self.ports, None if people is None else PeopleFile(people), self.desk)
        self._outbox = PostgresOutbox(engine)
        self._notifier = SlackNotifier(
            "xoxb-test",
            "#llm-rollouts",
            PostgresThreads(engine),
            base_url=slack.api_url,
            page="http://console.example:8420",
            clickable=True,
        )
        self.id = commands.start(PLAN, plan_digest(PLAN), self.ports, actor="rita", key="k").id
        tick(self.id, self.ports, audit.now(), may_raise=True)

    def mail(self) -> None:
        while deliver(self._outbox, self._notifier, pace=Pace(sleep=lambda _s: None)).sent:
            pass

    def rollout(self) -> Rollout:
        return replay(self.ports.audit.entries(self.id))

    def approvals(self) -> list[str]:
        return [e.actor for e in self.ports.audit.entries(self.id) if isinstance(e.event, Approved)]

    def message(self) -> Any:
        return next(m for m in self.slack.workspace.messages["C0ROLLOUTS"].values() if m.thread_ts is None)

    def buttons(self) -> list[str]:
        return [e["text"]["text"] for b in self.message().blocks if b["type"] == "actions" for e in b["elements"]]

    async def click(self, user: str, verb: str, **how: Any) -> Any:
        return await self.slack.click(user, "C0ROLLOUTS", self.message().ts, f"penstock_{verb}", **how)

    async def told(self, count: int = 1) -> list[dict[str, Any]]:
        await until(lambda: len(self.slack.workspace.whispers) >= count)
        return self.slack.workspace.whispers

    async def modal(self) -> Any:
        await until(lambda: bool(self.slack.workspace.views))
        return next(iter(self.slack.workspace.views.values()))


async def until(what: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not what():
        assert time.monotonic() < ends, "it did not happen"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def by_socket(engine: Engine, people: Path | None) -> AsyncIterator[Desk]:
    async with SlackServer(SlackConfig()).running() as slack:
        desk = await asyncio.to_thread(Desk, engine, slack, people)
        await asyncio.to_thread(desk.mail)
        with socket(desk.door, "xapp-test", desk.desk):
            await until(lambda: bool(slack.socket.connections))
            yield desk


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.yaml"
    path.write_text(PEOPLE)
    return path


async def test_two_people_approve_and_the_rollout_goes_on(engine: Engine, people: Path) -> None:
    async with by_socket(engine, people) as desk:
        assert desk.buttons() == ["Approve", "Reject", "Override", "Roll back", "Open"]
        for count, user in enumerate(("U0ALICE", "U0CAROL"), 1):
            (ack,) = await desk.click(user, "approve")
            assert ack.acknowledged
            assert "approve" in (await desk.told(count))[-1]["text"]
        assert desk.approvals() == ["alice", "carol"]
        await asyncio.to_thread(tick, desk.id, desk.ports, desk.ports.audit.now(), may_raise=True)
        await asyncio.to_thread(desk.mail)
        assert desk.buttons() == ["Roll back", "Open"], "who is not asked any more sees no button for it"


async def test_a_reject_asks_why_and_pauses(engine: Engine, people: Path) -> None:
    async with by_socket(engine, people) as desk:
        await desk.click("U0ALICE", "reject")
        view = await desk.modal()
        assert view.view["title"]["text"] == "Reject" and desk.rollout().state.__class__ is AwaitingApproval
        empty = await desk.slack.submit("U0ALICE", view.id, {"reason": {"value": "  "}})
        assert empty.payload["response_action"] == "errors"
        done = await desk.slack.submit("U0ALICE", view.id, {"reason": {"value": "evaluation is not read yet"}})
        assert done.payload == {"response_action": "clear"}
        state = desk.rollout().state
        assert isinstance(state, Paused) and "evaluation is not read yet" in state.text


async def test_a_rollback_needs_one_click_and_a_reason(engine: Engine, people: Path) -> None:
    async with by_socket(engine, people) as desk:
        await desk.click("U0CAROL", "roll_back")
        view = await desk.modal()
        await desk.slack.submit("U0CAROL", view.id, {"reason": {"value": "users complain"}})
        assert isinstance(desk.rollout().state, RolledBack | Aborted)
        await asyncio.to_thread(desk.mail)
        assert desk.buttons() == ["Open"]


async def test_an_override_takes_a_ticket_and_what_to_go_without(engine: Engine, people: Path) -> None:
    async with by_socket(engine, people) as desk:
        await desk.click("U0CAROL", "override")
        view = await desk.modal()
        picked = {"type": "checkboxes", "selected_options": [{"value": "approval"}]}
        values = {"reason": {"value": "outage of the old model"}, "ticket": {"value": "INC-7"}, "checks": {"value": picked}}
        done = await desk.slack.submit("U0CAROL", view.id, values)
        assert done.payload == {"response_action": "clear"}
        assert desk.rollout().override is not None and desk.rollout().override.event.ticket == "INC-7"  # type: ignore[union-attr]


async def test_a_usergroup_makes_a_person_belong(engine: Engine, people: Path) -> None:
    people.write_text(PEOPLE.replace("members: [alice], slack", "members: [], slack"))
    async with by_socket(engine, people) as desk:
        await desk.click("U0ALICE", "approve")
        await desk.told()
        assert desk.approvals() == ["alice"]


@pytest.mark.parametrize(
    ("user", "verb", "says"),
    [
        ("U0BOB", "override", "bob"),
        ("U0DAVE", "approve", "is not among the people"),
        ("U0DAVE", "roll_back", "is not among the people"),
        ("U0ALICE", "override", "alice"),
    ],
)
async def test_who_may_not_is_told_so_and_no_row_is_written(
    engine: Engine, people: Path, user: str, verb: str, says: str
) -> None:
    people.write_text(PEOPLE.replace(", slack: S0RELEASE", ""))
    async with by_socket(engine, people) as desk:
        rows = len(desk.ports.audit.entries(desk.id))
        await desk.click(user, verb)
        assert says in (await desk.told())[0]["text"] and desk.slack.workspace.whispers[0]["user"] == user
        assert len(desk.ports.audit.entries(desk.id)) == rows and not desk.slack.workspace.views


async def test_a_hundred_deliveries_of_a_click_are_one_row_and_one_answer(engine: Engine, people: Path) -> None:
    async with by_socket(engine, people) as desk:
        acks = await desk.click("U0ALICE", "approve", copies=100)
        assert all(a.acknowledged for a in acks)
        await desk.told()
        assert desk.approvals() == ["alice"] and len(desk.slack.workspace.whispers) == 1


async def test_a_hundred_clicks_of_one_person_are_one_row(engine: Engine, people: Path) -> None:
    async with by_socket(engine, people) as desk:
        await asyncio.gather(*(desk.click("U0ALICE", "approve") for _ in range(100)))
        await desk.told(100)
        assert desk.approvals() == ["alice"]


async def test_without_people_and_from_other_workspaces_no_click_counts(engine: Engine, people: Path) -> None:
    async with by_socket(engine, None) as desk:
        await desk.click("U0ALICE", "approve")
        assert "knows no people" in (await desk.told())[0]["text"] and desk.approvals() == []


async def test_a_button_of_before_answers_no_later_question(engine: Engine, people: Path) -> None:
    async with by_socket(engine, people) as desk:
        payload = desk.slack._block_actions(
            desk.slack.workspace.user("U0ALICE"), "C0ROLLOUTS", desk.message().ts, "penstock_approve", None
        )
        commands.reject(desk.id, desk.ports, actor="carol", groups=("oncall",), reason="no")
        commands.resume(desk.id, desk.ports, actor="carol", reason="yes")
        tick(desk.id, desk.ports, desk.ports.audit.now(), may_raise=True, force=True)
        assert isinstance(desk.rollout().state, AwaitingApproval)
        _, later = desk.door.take(payload)
        assert later is not None
        await asyncio.to_thread(later)
        assert desk.approvals() == [] and "this answers another step" in (await desk.told())[0]["text"]


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        "text",
        {"type": "shortcut"},
        {"type": "block_actions", "team": None, "user": {"id": "U"}, "actions": []},
        {"type": "block_actions", "team": {"id": "T"}, "user": {"id": "U"}, "actions": [{"action_id": "other"}]},
        {
            "type": "block_actions",
            "team": {"id": "T"},
            "user": {"id": "U"},
            "actions": [{"action_id": "penstock_kill", "value": "{}"}],
        },
        {
            "type": "block_actions",
            "team": {"id": "T"},
            "user": {"id": "U"},
            "actions": [{"action_id": "penstock_approve", "value": "x"}],
        },
        {
            "type": "block_actions",
            "team": {"id": "T"},
            "user": {"id": "U"},
            "actions": [{"action_id": "penstock_approve", "value": "[1]"}],
        },
        {"type": "view_submission", "team": {"id": "T"}, "user": {"id": "U"}, "view": {"callback_id": "penstock_reject"}},
    ],
)
def test_what_is_no_click_of_ours_is_acknowledged_and_does_nothing(engine: Engine, payload: Any) -> None:
    assert unreachable(engine, None).take(payload) == ({}, None)


def unreachable(engine: Engine, people: Path | None) -> SlackDoor:
    """A door behind which no Slack answers: for payloads that need none."""
    audit = PostgresAudit(engine)
    ports = Ports(audit=audit, index=audit, flags=PostgresFlags(engine), metrics=MemoryMetrics())
    return SlackDoor(
        ports, None if people is None else PeopleFile(people), SlackDesk("xoxb-test", base_url="http://127.0.0.1:9/")
    )


# --- signed HTTP ----------------------------------------------------------------------------------------------------------------


@contextmanager
def served(door: SlackDoor, secret: str) -> Iterator[str]:
    import threading

    import uvicorn
    from starlette.applications import Starlette

    bound = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=[route(door, secret)]), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        yield f"{address_of(bound)}/hooks/slack"
    finally:
        server.should_exit = True
        thread.join(10)


async def test_signed_http_does_the_same_and_nothing_that_is_not_signed_now(engine: Engine, people: Path) -> None:
    config = SlackConfig()
    server = SlackServer(config)
    async with server.running() as slack:
        desk = await asyncio.to_thread(Desk, engine, slack, people)
        await asyncio.to_thread(desk.mail)
        with served(desk.door, config.signing_secret) as url:
            slack.config = replace(config, interactivity_url=url)
            for tamper in (t for t in Tamper if t is not Tamper.NONE):
                (ack,) = await desk.click("U0ALICE", "approve", tamper=tamper)
                assert ack.status in (400, 401), tamper
            assert desk.approvals() == []
            (ack,) = await desk.click("U0ALICE", "approve")
            assert ack.acknowledged and ack.status == 200
            await desk.told()
            assert desk.approvals() == ["alice"]
            await desk.click("U0CAROL", "reject")
            view = await desk.modal()
            done = await slack.submit("U0CAROL", view.id, {"reason": {"value": "no"}})
            assert done.payload == {"response_action": "clear"} and isinstance(desk.rollout().state, Paused)


@pytest.mark.parametrize(
    ("stamp", "signature", "body", "status"),
    [
        ("abc", None, b"payload={}", 401),
        ("NaN", None, b"payload={}", 401),
        ("9" * 30, None, b"payload={}", 401),
        (None, "v0=" + "é" * 64, b"payload={}", 401),
        (None, "", b"payload={}", 401),
        (None, None, b"payload=" + b"[" * 100_000, 400),
        (None, None, b"\xff\xfe", 401),
        (None, None, b"ssl_check=1", 400),
    ],
)
async def test_a_request_that_is_no_text_no_time_or_no_payload_is_refused_and_breaks_nothing(
    engine: Engine, people: Path, stamp: str | None, signature: str | None, body: bytes, status: int
) -> None:
    door = unreachable(engine, people)
    at = stamp or str(int(time.time()))
    signed_as = slack_signature("secret", at, body) if signature is None else signature
    headers = {b"x-slack-request-timestamp": at.encode(), b"x-slack-signature": signed_as.encode()}
    with served(door, "secret") as url:
        async with httpx.AsyncClient() as http:
            got = await http.post(url, content=body, headers=list(headers.items()))
    assert got.status_code == status and "Traceback" not in got.text


def submission(verb: str, kept: Any, values: Any) -> dict[str, Any]:
    view = {"callback_id": f"penstock_{verb}", "private_metadata": json.dumps(kept), "state": {"values": values}}
    return {"type": "view_submission", "team": {"id": TEAM_ID}, "user": {"id": "U0CAROL"}, "view": view}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"reason": {"value": "text"}},
        {"reason": [1]},
        {"reason": {"value": {"value": 5}}},
        {"reason": 7, "checks": {"value": {"selected_options": 5}}},
    ],
)
def test_a_modal_without_a_reason_asks_for_it_whatever_stands_there(engine: Engine, people: Path, values: Any) -> None:
    door = unreachable(engine, people)
    answer, later = door.take(submission("override", {"r": "chat-1", "d": "d"}, values))
    assert answer == {"response_action": "errors", "errors": {"reason": "a reason is needed"}} and later is None


@pytest.mark.parametrize("rollout_id", ["nul\0x", "\ud800", "ä", "", 5])
def test_a_modal_with_an_id_that_is_none_does_nothing(engine: Engine, people: Path, rollout_id: Any) -> None:
    door = unreachable(engine, people)
    assert door.take(submission("roll_back", {"r": rollout_id}, {"reason": {"value": {"value": "why"}}})) == ({}, None)


def test_buttons_carry_what_was_seen_and_no_rights(engine: Engine) -> None:
    from controller.adapters.slack.buttons import buttons
    from tests.adapters.test_slack import notice

    (block,) = buttons(replace(notice(), question="d" * 64, ended=""), "")
    assert {json.loads(e["value"])["d"] for e in block["elements"]} == {"d" * 64}


async def test_doctor_tries_the_socket_and_says_that_nobody_may_click_without_people(
    people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from controller.cli.checks import _slack
    from controller.settings import SettingsError, load

    config = SlackConfig(bot_token="xoxb-test", app_token="xapp-test")
    async with SlackServer(config).running() as slack:
        monkeypatch.delenv("PENSTOCK_DATABASE_URL", raising=False)
        monkeypatch.setenv("PENSTOCK_SLACK_TOKEN", "xoxb-test")
        monkeypatch.setenv("PENSTOCK_SLACK_API_URL", slack.api_url)
        monkeypatch.setenv("PENSTOCK_SLACK_APP_TOKEN", "xapp-test")
        monkeypatch.setenv("PENSTOCK_PEOPLE_FILE", str(people))
        settings = replace(load(), database_url=None)
        assert (await asyncio.to_thread(_slack, settings)).endswith("buttons over Socket Mode")
        with pytest.raises(SettingsError, match="no click counts without a people file"):
            await asyncio.to_thread(_slack, replace(settings, people_file=None))
        with pytest.raises(NotifierUnavailable, match=r"apps\.connections\.open"):
            await asyncio.to_thread(_slack, replace(settings, slack_app_token="xapp-other"))
