"""The Slack stand-in, as the real slack_sdk sees it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.signature import SignatureVerifier
from slack_sdk.socket_mode import SocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.socket_mode.response import SocketModeResponse

from bench.slack import SlackConfig, SlackServer, running_slack
from bench.slack_delivery import ACK_TIMEOUT_S, Tamper, signature
from bench.slack_limits import Fault, FaultKind, RateLimiter, RateLimits
from bench.slack_workspace import SlackError, Workspace

UNLIMITED = RateLimits(post_per_s=0, tiers=False)
BUTTON = {
    "type": "button",
    "action_id": "approve",
    "value": "r-1",
    "style": "primary",
    "text": {"type": "plain_text", "text": "Approve"},
}
ACTIONS = [{"type": "actions", "block_id": "ask", "elements": [BUTTON]}]


@pytest.fixture
async def slack() -> AsyncIterator[SlackServer]:
    async with running_slack(SlackConfig(limits=UNLIMITED)) as server:
        yield server


def client(slack: SlackServer, **options: Any) -> WebClient:
    return WebClient(token="xoxb-test", base_url=slack.api_url, retry_handlers=[], **options)


async def refused(call: Any, **args: Any) -> str:
    with pytest.raises(SlackApiError) as caught:
        await asyncio.to_thread(call, **args)
    return str(caught.value.response["error"])


async def test_a_message_its_thread_and_its_edit_are_seen_in_history_with_metadata(slack: SlackServer) -> None:
    api = client(slack)
    assert (await asyncio.to_thread(api.auth_test))["user_id"] == "U0PENSTOCK"
    note = {"event_type": "penstock_notice", "event_payload": {"id": "n-1"}}
    parent = await asyncio.to_thread(api.chat_postMessage, channel="#llm-rollouts", text="started", metadata=note)
    assert parent["channel"] == "C0ROLLOUTS"
    reply = await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text="at 1%", thread_ts=parent["ts"])
    await asyncio.to_thread(api.chat_update, channel="C0ROLLOUTS", ts=parent["ts"], text="at 1% now", blocks=ACTIONS)

    history = await asyncio.to_thread(api.conversations_history, channel="C0ROLLOUTS", include_all_metadata=True)
    assert [m["text"] for m in history["messages"]] == ["at 1% now"]
    top = history["messages"][0]
    assert (top["reply_count"], top["latest_reply"]) == (1, reply["ts"])
    assert top["metadata"] == note
    assert "edited" in top
    plain = await asyncio.to_thread(api.conversations_history, channel="C0ROLLOUTS")
    assert "metadata" not in plain["messages"][0]
    replies = await asyncio.to_thread(api.conversations_replies, channel="C0ROLLOUTS", ts=parent["ts"])
    assert [m["ts"] for m in replies["messages"]] == [parent["ts"], reply["ts"]]
    assert replies["messages"][1]["thread_ts"] == parent["ts"]


async def test_an_edit_keeps_the_blocks_that_it_does_not_mention_and_an_empty_list_removes_them(slack: SlackServer) -> None:
    api = client(slack)
    ts = (await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text="a", blocks=ACTIONS))["ts"]
    kept = await asyncio.to_thread(api.chat_update, channel="C0ROLLOUTS", ts=ts, text="b")
    assert kept["message"]["blocks"][0]["block_id"] == "ask"
    gone = await asyncio.to_thread(api.chat_update, channel="C0ROLLOUTS", ts=ts, text="c", blocks=[])
    assert "blocks" not in gone["message"]


async def test_refusals_have_slacks_names(slack: SlackServer) -> None:
    api = client(slack)
    other = slack.workspace.say_as("U0ALICE", "C0ROLLOUTS", "hello", now_s=time.time()).ts
    post, update = api.chat_postMessage, api.chat_update
    assert await refused(post, channel="C404", text="a") == "channel_not_found"
    assert await refused(post, channel="C0PRIVATE", text="a") == "not_in_channel"
    assert await refused(post, channel="C0ARCHIVED", text="a") == "is_archived"
    assert await refused(post, channel="C0ROLLOUTS", text="") == "no_text"
    assert await refused(post, channel="C0ROLLOUTS", text="a" * 40_001) == "msg_too_long"
    assert await refused(post, channel="C0ROLLOUTS", text="a", thread_ts="1.000000") == "thread_not_found"
    assert await refused(post, channel="C0ROLLOUTS", text="a", blocks="{") == "invalid_blocks_format"
    assert await refused(post, channel="C0ROLLOUTS", text="a", metadata={"event_type": "x"}) == "invalid_metadata_format"
    assert await refused(update, channel="C0ROLLOUTS", ts="1.000000", text="a") == "message_not_found"
    assert await refused(update, channel="C0ROLLOUTS", ts=other, text="a") == "cant_update_message"
    assert await refused(update, channel="#llm-rollouts", ts=other, text="a") == "channel_not_found"
    assert await refused(api.users_info, user="U404") == "user_not_found"
    assert await refused(api.usergroups_users_list, usergroup="S404") == "no_such_subteam"
    assert await refused(api.conversations_replies, channel="C0ROLLOUTS", ts="1.000000") == "thread_not_found"
    assert await refused(api.api_call, api_method="no.such") == "unknown_method"
    assert await refused(WebClient(token="nonsense", base_url=slack.api_url).auth_test) == "invalid_auth"
    assert await refused(WebClient(base_url=slack.api_url).auth_test) == "not_authed"
    assert await refused(api.apps_connections_open, app_token="xoxb-bot") == "not_allowed_token_type"
    assert len(slack.workspace.messages["C0ROLLOUTS"]) == 1


async def test_a_json_body_is_read_as_well_as_a_form(slack: SlackServer) -> None:
    body = {"channel": "C0ROLLOUTS", "text": "a", "blocks": ACTIONS}
    headers = {"authorization": "Bearer xoxb-test"}
    async with aiohttp.ClientSession() as http:
        async with http.post(slack.api_url + "chat.postMessage", json=body, headers=headers) as answer:
            assert (await answer.json())["message"]["blocks"][0]["elements"] == [BUTTON]
        async with http.post(slack.api_url + "auth.test", json={"token": "xoxb-test"}) as answer:
            assert (await answer.json()) == {"ok": False, "error": "not_authed"}
    assert all("xoxb" not in repr(c) for c in slack.calls)


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"type": "sectoin"}, "unsupported type: sectoin [json-pointer:/blocks/0/type]"),
        ({"type": "section"}, "missing required field: text or fields [json-pointer:/blocks/0]"),
        (
            {"type": "section", "text": {"type": "mrkdwn", "text": "a" * 3001}},
            "must be less than 3001 characters [json-pointer:/blocks/0/text/text]",
        ),
        (
            {"type": "section", "text": {"type": "mrkdwn", "text": ""}},
            "must be more than 0 characters [json-pointer:/blocks/0/text/text]",
        ),
        (
            {"type": "section", "fields": [{"type": "mrkdwn", "text": "a"}] * 11},
            "no more than 10 items allowed [json-pointer:/blocks/0/fields]",
        ),
        (
            {"type": "header", "text": {"type": "mrkdwn", "text": "a"}},
            "must be one of: plain_text [json-pointer:/blocks/0/text/type]",
        ),
        (
            {"type": "header", "text": {"type": "plain_text", "text": "a" * 151}},
            "must be less than 151 characters [json-pointer:/blocks/0/text/text]",
        ),
        ({"type": "context", "elements": []}, "must have at least 1 item [json-pointer:/blocks/0/elements]"),
        ({"type": "divider", "text": "a"}, "invalid additional property: text [json-pointer:/blocks/0]"),
        (
            {"type": "actions", "elements": [{**BUTTON, "style": "green"}]},
            "must be one of: primary, danger [json-pointer:/blocks/0/elements/0/style]",
        ),
        (
            {"type": "actions", "elements": [BUTTON, BUTTON]},
            "`action_id` approve already exists [json-pointer:/blocks/0/elements/1/action_id]",
        ),
        (
            {"type": "actions", "elements": [{**BUTTON, "text": {"type": "plain_text", "text": "a" * 76}}]},
            "must be less than 76 characters [json-pointer:/blocks/0/elements/0/text/text]",
        ),
    ],
)
async def test_blocks_that_slack_refuses_are_refused_in_its_words(
    slack: SlackServer, block: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SlackApiError) as caught:
        await asyncio.to_thread(client(slack).chat_postMessage, channel="C0ROLLOUTS", text="a", blocks=[block])
    answer = caught.value.response
    assert answer["error"] == "invalid_blocks"
    assert answer["errors"] == [problem]
    assert answer["response_metadata"]["messages"] == [f"[ERROR] {problem}"]


async def test_more_blocks_or_text_than_a_message_holds_is_refused(slack: SlackServer) -> None:
    api = client(slack)
    assert (
        await refused(api.chat_postMessage, channel="C0ROLLOUTS", text="a", blocks=[{"type": "divider"}] * 51) == "invalid_blocks"
    )
    long = {"type": "section", "text": {"type": "mrkdwn", "text": "a" * 3000}}
    assert await refused(api.chat_postMessage, channel="C0ROLLOUTS", text="a", blocks=[long] * 5) == "msg_blocks_too_long"


async def test_posting_faster_than_one_a_second_is_limited_with_retry_after() -> None:
    async with running_slack(SlackConfig(limits=RateLimits(post_burst=2))) as slack:
        api = client(slack)
        for _ in range(2):
            await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text="a")
        with pytest.raises(SlackApiError) as caught:
            await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text="a")
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.response["error"] == "ratelimited"
        await asyncio.to_thread(api.chat_postMessage, channel="C0GENERAL", text="another channel has its own limit")


def test_a_limit_refills_with_time() -> None:
    limiter = RateLimiter(RateLimits(post_per_s=0.5, post_burst=1))
    assert limiter.retry_after_s("chat.postMessage", "C", now_s=100.0) is None
    assert limiter.retry_after_s("chat.postMessage", "C", now_s=100.0) == 2
    assert limiter.retry_after_s("chat.postMessage", "C", now_s=101.9) == 1
    assert limiter.retry_after_s("chat.postMessage", "C", now_s=102.0) is None


async def test_a_reset_after_accept_has_posted_and_a_plain_reset_has_not(slack: SlackServer) -> None:
    api = client(slack)
    slack.faults.faults += [
        Fault(method="chat.postMessage", kind=FaultKind.RESET),
        Fault(method="chat.postMessage", kind=FaultKind.RESET_AFTER_ACCEPT),
    ]
    for text in ("lost", "posted"):
        with pytest.raises(OSError):
            await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text=text)
    assert [m.text for m in slack.workspace.messages["C0ROLLOUTS"].values()] == ["posted"]
    assert [c.answer for c in slack.calls] == ["reset", "ok"]


async def test_scripted_faults_hit_the_next_calls_of_their_method_only(slack: SlackServer) -> None:
    api = client(slack, timeout=1)
    faults = [
        {"method": "chat.postMessage", "kind": "error", "error": "fatal_error", "count": 2},
        {"method": "chat.postMessage", "kind": "rate_limited", "retry_after_s": 7},
        {"method": "chat.postMessage", "kind": "status", "status": 503},
    ]
    async with aiohttp.ClientSession() as http, http.post(slack.url + "/control/faults", json=faults) as answer:
        assert answer.status == 200
    assert (await asyncio.to_thread(api.auth_test))["ok"]
    post: dict[str, Any] = {"channel": "C0ROLLOUTS", "text": "a"}
    assert await refused(api.chat_postMessage, **post) == "fatal_error"
    assert await refused(api.chat_postMessage, **post) == "fatal_error"
    with pytest.raises(SlackApiError) as limited:
        await asyncio.to_thread(api.chat_postMessage, **post)
    assert limited.value.response.headers["retry-after"] == "7"
    with pytest.raises(SlackApiError) as down:
        await asyncio.to_thread(api.chat_postMessage, **post)
    assert down.value.response.status_code == 503
    slack.faults.faults.append(Fault(method="*", kind=FaultKind.TIMEOUT, hang_s=30))
    hasty = client(slack, timeout=0.2)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(hasty.chat_postMessage, **post)
    assert (await asyncio.to_thread(api.chat_postMessage, **post))["ok"]


async def test_a_wrong_fault_is_refused_with_its_field(slack: SlackServer) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.post(slack.url + "/control/faults", json={"method": "*", "kind": "explode"}) as answer:
            assert (answer.status, "kind: 'explode' is none of error," in (await answer.json())["error"]) == (400, True)
        async with http.post(slack.url + "/control/click", json={"user": "U0ALICE"}) as answer:
            assert (answer.status, (await answer.json())["error"]) == (
                400,
                "channel: missing; needed: user, channel, ts, action_id",
            )


async def test_a_click_reaches_the_app_over_socket_mode_and_opens_a_modal(slack: SlackServer) -> None:
    api = client(slack)
    view = {
        "type": "modal",
        "callback_id": "reason",
        "title": {"type": "plain_text", "text": "Roll back"},
        "submit": {"type": "plain_text", "text": "Roll back"},
        "blocks": [
            {
                "type": "input",
                "block_id": "why",
                "label": {"type": "plain_text", "text": "Reason"},
                "element": {"type": "plain_text_input", "action_id": "text"},
            }
        ],
    }
    seen: list[SocketModeRequest] = []

    def on_request(sm: SocketModeClient, request: SocketModeRequest) -> None:
        seen.append(request)
        if request.payload["type"] == "block_actions":
            with suppress(SlackApiError):
                sm.web_client.views_open(trigger_id=request.payload["trigger_id"], view=view)
            sm.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id))
        else:
            errors = {"response_action": "errors", "errors": {"why": "too short"}}
            sm.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id, payload=errors))

    sm = SocketModeClient(app_token="xapp-test", web_client=api)
    sm.socket_mode_request_listeners.append(on_request)  # type: ignore[arg-type]
    await asyncio.to_thread(sm.connect)
    try:
        ts = (await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text="?", blocks=ACTIONS))["ts"]
        acks = await slack.click("U0BOB", "#llm-rollouts", ts, "approve", copies=2)
        assert [(a.via, a.acknowledged) for a in acks] == [("socket", True)] * 2
        payload = seen[0].payload
        assert payload["user"]["id"] == "U0BOB"
        assert payload["container"]["message_ts"] == ts
        assert payload["actions"][0]["value"] == "r-1"
        assert seen[0].envelope_id != seen[1].envelope_id
        assert seen[1].payload["trigger_id"] == payload["trigger_id"]
        # Both copies carry one trigger, which opens one modal.
        (opened,) = slack.workspace.views.values()
        ack = await slack.submit("U0BOB", opened.id, {"why": {"text": "latency"}})
        assert ack.payload == {"response_action": "errors", "errors": {"why": "too short"}}
        assert seen[-1].payload["view"]["state"]["values"]["why"]["text"]["value"] == "latency"
        assert opened.id in slack.workspace.views
    finally:
        await asyncio.to_thread(sm.close)


async def test_the_app_reconnects_after_slack_asks_it_to(slack: SlackServer) -> None:
    sm = SocketModeClient(app_token="xapp-test", web_client=client(slack), ping_interval=0.2)
    await asyncio.to_thread(sm.connect)
    try:
        async with asyncio.timeout(20):
            while not slack.socket.connections:
                await asyncio.sleep(0.01)
        first = slack.socket.connections[0]
        assert await slack.socket.disconnect("refresh_requested") == 1
        async with asyncio.timeout(20):
            while not slack.socket.connections or first in slack.socket.connections:
                await asyncio.sleep(0.01)
    finally:
        await asyncio.to_thread(sm.close)
    opened = [c for c in slack.calls if c.method == "apps.connections.open"]
    assert len(opened) == 2


async def test_hello_comes_first_and_a_ticket_is_good_once(slack: SlackServer) -> None:
    url = (await asyncio.to_thread(client(slack).apps_connections_open, app_token="xapp-test"))["url"]
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(url) as socket:
            hello = await socket.receive_json()
            assert (hello["type"], hello["num_connections"]) == ("hello", 1)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await http.ws_connect(url)


async def test_a_click_that_nobody_acknowledges_says_so(slack: SlackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.slack_delivery.ACK_TIMEOUT_S", 0.05)
    assert ACK_TIMEOUT_S == 3.0
    api = client(slack)
    ts = (await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text="?", blocks=ACTIONS))["ts"]
    assert (await slack.click("U0BOB", "C0ROLLOUTS", ts, "approve"))[0].reason == "no Socket Mode connection"
    url = (await asyncio.to_thread(api.apps_connections_open, app_token="xapp-test"))["url"]
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        await socket.receive_json()
        ack = (await slack.click("U0BOB", "C0ROLLOUTS", ts, "approve"))[0]
        assert (ack.acknowledged, ack.reason) == (False, "no acknowledgement in 0.05 s")
        await socket.send_json({"envelope_id": (await socket.receive_json())["envelope_id"]})
        async with asyncio.timeout(10):
            while not slack.socket.unexpected_acks:
                await asyncio.sleep(0.01)


async def test_clicks_by_http_are_signed_as_slack_signs_and_can_be_signed_wrongly() -> None:
    verdicts: list[bool] = []
    payloads: list[str] = []

    async def app(request: web.Request) -> web.Response:
        body = await request.text()
        verdicts.append(SignatureVerifier("shh").is_valid_request(body, dict(request.headers)))
        payloads.append(parse_qs(body)["payload"][0])
        return web.Response(status=200 if verdicts[-1] else 401)

    application = web.Application()
    application.router.add_post("/slack/actions", app)
    async with TestServer(application) as door:
        config = SlackConfig(limits=UNLIMITED, signing_secret="shh", interactivity_url=str(door.make_url("/slack/actions")))
        async with running_slack(config) as slack:
            ts = (await asyncio.to_thread(client(slack).chat_postMessage, channel="C0ROLLOUTS", text="?", blocks=ACTIONS))["ts"]
            tampers = [Tamper.NONE, Tamper.SIGNATURE, Tamper.STALE, Tamper.BODY]
            acks = [(await slack.click("U0CAROL", "C0ROLLOUTS", ts, "approve", tamper=t))[0] for t in tampers]
    assert verdicts == [True, False, False, False]
    assert [a.status for a in acks] == [200, 401, 401, 401]
    assert '"block_actions"' in payloads[0]


def test_the_signature_is_that_of_slacks_own_example() -> None:
    # docs.slack.dev, "Verifying requests from Slack": secret, timestamp, body and signature of the worked example.
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA"
        b"&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J"
        b"%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    expected = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
    assert signature("8f742231b10e8888abcd99yyyzzz85a5", "1531420618", body) == expected


def test_a_trigger_expires_after_three_seconds_and_is_good_once() -> None:
    space = Workspace()
    view = {"type": "modal", "title": {"type": "plain_text", "text": "a"}, "blocks": [{"type": "divider"}]}

    def open_with(trigger: str, at_s: float) -> str:
        try:
            space.call("views.open", {"trigger_id": trigger, "view": view}, now_s=at_s)
        except SlackError as exc:
            return exc.code
        return "ok"

    first, second = space.new_trigger("U0BOB", now_s=100.0), space.new_trigger("U0BOB", now_s=100.0)
    assert open_with(first, 103.0) == "ok"
    assert open_with(first, 103.0) == "exchanged_trigger_id"
    assert open_with(second, 103.1) == "expired_trigger_id"
    assert open_with("nonsense", 100.0) == "invalid_trigger_id"


def test_two_messages_at_the_same_moment_have_different_ids_in_order() -> None:
    space = Workspace()
    made = [
        space.call("chat.postMessage", {"channel": "C0GENERAL", "text": str(i)}, now_s=1_700_000_000.0)["ts"] for i in range(3)
    ]
    assert made == ["1700000000.000000", "1700000000.000001", "1700000000.000002"]


def test_history_comes_in_pages() -> None:
    space = Workspace()
    for i in range(5):
        space.call("chat.postMessage", {"channel": "C0GENERAL", "text": str(i)}, now_s=1_700_000_000.0 + i)
    first = space.call("conversations.history", {"channel": "C0GENERAL", "limit": "2"}, now_s=0)
    assert ([m["text"] for m in first["messages"]], first["has_more"]) == (["4", "3"], True)
    cursor = first["response_metadata"]["next_cursor"]
    rest = space.call("conversations.history", {"channel": "C0GENERAL", "cursor": cursor}, now_s=0)
    assert ([m["text"] for m in rest["messages"]], rest["has_more"]) == (["2", "1", "0"], False)
    late = space.call("conversations.history", {"channel": "C0GENERAL", "oldest": "1700000003.000000"}, now_s=0)
    assert [m["text"] for m in late["messages"]] == ["4"]


async def test_the_page_shows_threads_and_buttons_and_escapes_what_people_write(slack: SlackServer) -> None:
    api = client(slack)
    text = "*bold* `a*b*c` <https://example.com/x|link> <@U0ALICE> <script>alert(1)</script> :rocket: 2 * 3 * 4 snake_case_name"
    section = {"type": "section", "text": {"type": "mrkdwn", "text": text}}
    ts = (await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text="?", blocks=[section, *ACTIONS]))["ts"]
    await asyncio.to_thread(api.chat_postMessage, channel="C0ROLLOUTS", text="in the thread", thread_ts=ts)
    async with aiohttp.ClientSession() as http, http.get(slack.url + "/") as answer:
        page = await answer.text()
    assert "<b>bold</b> <code>a*b*c</code> " in page
    assert '<a href="https://example.com/x">link</a>' in page
    assert "@Alice Moreno" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 🚀 2 * 3 * 4 snake_case_name" in page
    assert "1 reply" in page
    assert 'data-action="approve"' in page
