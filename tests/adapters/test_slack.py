"""The Slack notifier against the stand-in: one message for a rollout, its thread, and nothing twice."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from bench.slack import SlackConfig, SlackServer, running_slack
from bench.slack_limits import Fault, FaultKind, RateLimits
from bench.slack_workspace import Message
from controller.adapters.slack import MemoryThreads, SlackNotifier
from controller.adapters.slack.messages import cut, escape, parent_blocks, plain, reply_blocks
from controller.core.gates import Verdict
from controller.core.notice import Level, Line, Notice
from controller.ports import Letter, NotifierRefused, NotifierUnavailable

pytestmark = pytest.mark.timeout(30)

ROLLOUTS = "C0ROLLOUTS"
TOKEN = "xoxb-secret-token"


def notice(seq: int = 1, level: Level = Level.NEWS, **changed: Any) -> Notice:
    values: dict[str, Any] = {
        "rollout_id": "chat-gpt-5-7f3a",
        "seq": seq,
        "level": level,
        "title": "chat-gpt-5: gpt-4.1 to gpt-5",
        "text": f"step {seq}",
        "standing": "canary-5 at 5%",
        "phases": ("shadow 10%", "canary-5 5%", "full 100%"),
        "phase": 1,
        "lines": (
            Line(gate="error-rate", verdict=Verdict.BREACH, text="4.2% bad requests, limit 1%"),
            Line(gate="p95", verdict=Verdict.PASS, text="1.1% requests slower than 3 s, limit 5%"),
        ),
        "exposure": 1234.4,
        "environment": "production",
    }
    return Notice(**(values | changed))


@pytest.fixture
async def slack() -> AsyncIterator[SlackServer]:
    async with running_slack(SlackConfig(bot_token=TOKEN, limits=RateLimits(post_per_s=0, tiers=False))) as server:
        yield server


class Post:
    """A notifier on the stand-in, with a memory of threads that can be lost."""

    def __init__(self, slack: SlackServer, *, token: str = TOKEN, channel: str = "#llm-rollouts", **options: Any) -> None:
        self.slack, self.threads = slack, MemoryThreads()
        self.notifier = SlackNotifier(token, channel, self.threads, base_url=slack.api_url, **options)

    async def tell(self, *notices: Notice) -> None:
        for n in notices:
            await asyncio.to_thread(self.notifier.deliver, Letter(id=n.seq, notice=n))

    async def unavailable(self, n: Notice) -> NotifierUnavailable:
        with pytest.raises(NotifierUnavailable) as caught:
            await self.tell(n)
        return caught.value

    def messages(self, channel: str = ROLLOUTS) -> list[Message]:
        return sorted(self.slack.workspace.messages.get(channel, {}).values(), key=lambda m: m.ts)

    def parents(self, channel: str = ROLLOUTS) -> list[Message]:
        return [m for m in self.messages(channel) if m.thread_ts in (None, m.ts)]

    def replies(self, channel: str = ROLLOUTS) -> list[Message]:
        return [m for m in self.messages(channel) if m.thread_ts not in (None, m.ts)]


def shown(message: Message) -> str:
    return "\n".join(texts(message.blocks))


def texts(value: Any) -> Sequence[str]:
    if isinstance(value, dict):
        own = [value["text"]] if isinstance(value.get("text"), str) else []
        return [*own, *(t for v in value.values() for t in texts(v))]
    return [t for v in value for t in texts(v)] if isinstance(value, list) else []


# --- one message and its thread -------------------------------------------------------------------------------------------------


async def test_a_rollout_has_one_message_that_is_edited_and_its_news_in_the_thread(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(1), notice(2, Level.INFO), notice(3, Level.ALARM, standing="ended at 0%"))
    [parent] = post.parents()
    assert parent.edits == 2
    assert "*ended at 0%*: step 3" in shown(parent)
    assert [(m.metadata or {})["event_payload"]["seq"] for m in post.replies()] == [1, 3]
    assert [m.broadcast for m in post.replies()] == [False, True]


async def test_the_message_says_where_it_stands_on_what_numbers_and_how_to_ask_why(slack: SlackServer) -> None:
    post = Post(slack, links={"Console": "https://penstock.example/rollouts/{rollout_id}"})
    await post.tell(notice())
    text = shown(post.parents()[0])
    for part in (
        "chat-gpt-5: gpt-4.1 to gpt-5",
        "shadow 10% ▸ *canary-5 5%* ▸ full 100%",
        "*canary-5 at 5%*: step 1",
        "*error-rate* breach: 4.2% bad requests, limit 1%",
        "1,234 requests",
        "production",
        "`penstock why chat-gpt-5-7f3a`",
        "<https://penstock.example/rollouts/chat-gpt-5-7f3a|Console>",
    ):
        assert part in text
    assert "requests slower than 3 s" in shown(post.replies()[0])


async def test_published_heads_of_the_audit_log_are_a_thread_of_their_own_without_phases_or_exposure(slack: SlackServer) -> None:
    post = Post(slack)
    heads = [
        notice(
            n, rollout_id="audit:head", title="Audit log", text=f"head {n}:abc", standing=f"row {n}", phases=(), phase=-1, lines=(),
            exposure=None, environment="", ask="penstock audit verify",
        )
        for n in (3, 9, 9)
    ]  # fmt: skip
    await post.tell(*heads)
    [parent] = post.parents()
    assert [shown(m).split("\n")[0] for m in post.replies()] == ["*head 3:abc*", "*head 9:abc*"]
    for message in (parent, *post.replies()):
        assert "`penstock audit verify`" in shown(message)
        assert not any(word in shown(message).lower() for word in ("exposure", "phase", "penstock why"))


async def test_two_rollouts_have_two_messages(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(1), notice(1, rollout_id="other"), notice(2), notice(2, rollout_id="other"))
    assert len(post.parents()) == 2
    assert {m.thread_ts for m in post.replies()} == {p.ts for p in post.parents()}


async def test_a_plans_own_channel_is_used(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(channel="#general"))
    assert (len(post.parents("C0GENERAL")), post.messages(ROLLOUTS)) == (1, [])


async def test_a_message_that_somebody_deleted_is_posted_anew(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(1))
    slack.workspace.messages[ROLLOUTS].clear()
    await post.tell(notice(2))
    [parent] = post.parents()
    assert "step 2" in shown(parent)
    assert [m.thread_ts for m in post.replies()] == [parent.ts]


async def test_a_message_that_cannot_be_edited_is_left_and_its_news_are_told(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(1))
    slack.faults.faults.append(Fault(method="chat.update", kind=FaultKind.ERROR, error="edit_window_closed"))
    await post.tell(notice(2))
    assert (len(post.parents()), len(post.replies())) == (1, 2)


# --- nothing twice --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FaultKind.RESET_AFTER_ACCEPT, FaultKind.RESET, FaultKind.STATUS])
@pytest.mark.parametrize("calls_before", [0, 1])
async def test_a_letter_is_told_once_however_its_first_delivery_broke(
    slack: SlackServer, kind: FaultKind, calls_before: int
) -> None:
    post = Post(slack)
    if calls_before:
        # The message is posted; what breaks is the reply below it.
        await post.tell(notice(1, Level.INFO))
    slack.faults.faults.append(Fault(method="chat.postMessage", kind=kind))
    alarm = notice(2, Level.ALARM)
    await post.unavailable(alarm)
    await post.tell(alarm)
    await post.tell(alarm)
    assert (len(post.parents()), len(post.replies())) == (1, 1)


async def test_an_answer_that_never_comes_is_given_up_and_the_letter_is_still_told_once(slack: SlackServer) -> None:
    post = Post(slack, timeout_s=1)
    slack.faults.faults.append(Fault(method="chat.postMessage", kind=FaultKind.TIMEOUT_AFTER_ACCEPT, hang_s=20.0))
    assert "cannot be reached" in str(await post.unavailable(notice(1)))
    await post.tell(notice(1))
    assert (len(post.parents()), len(post.replies())) == (1, 1)


async def test_a_message_that_the_database_forgot_is_found_in_the_channel(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(1), notice(2, Level.ALARM))
    after_restart = Post(slack)
    # Behind three pages of other people's messages, one of which speaks of the rollout.
    for i in range(450):
        slack.workspace.say_as("U0ALICE", ROLLOUTS, f"chat-gpt-5-7f3a {i}", now_s=2e9 + i)
    await after_restart.tell(notice(3))
    assert len([m for m in post.parents() if m.user == "U0PENSTOCK"]) == 1
    assert len(post.replies()) == 3


async def test_a_new_message_for_a_deleted_one_is_posted_once_although_the_connection_broke(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(1))
    slack.workspace.messages[ROLLOUTS].clear()
    slack.faults.faults.append(Fault(method="chat.postMessage", kind=FaultKind.RESET_AFTER_ACCEPT))
    await post.unavailable(notice(2))
    await post.tell(notice(2))
    assert (len(post.parents()), len(post.replies())) == (1, 1)


async def test_a_channel_that_is_closed_later_moves_the_rollout_to_the_default_one(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(1, channel="#general"))
    slack.faults.faults.append(Fault(method="chat.update", kind=FaultKind.ERROR, error="is_archived"))
    await post.tell(notice(2, channel="#general"), notice(3, channel="#general"))
    assert (len(post.parents("C0GENERAL")), len(post.parents(ROLLOUTS)), len(post.replies(ROLLOUTS))) == (1, 1, 2)


async def test_without_the_right_to_read_notices_are_posted_all_the_same(slack: SlackServer) -> None:
    post = Post(slack)
    for method in ("conversations.list", "conversations.history", "conversations.replies"):
        slack.faults.faults.append(Fault(method=method, kind=FaultKind.ERROR, error="missing_scope", count=9))
    await post.tell(notice(1), notice(2))
    assert (len(post.parents()), len(post.replies())) == (1, 2)


# --- refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["chat.postMessage", "conversations.replies", "chat.update"])
async def test_a_rate_limit_is_passed_on_and_not_slept_through(slack: SlackServer, method: str) -> None:
    post = Post(slack)
    await post.tell(notice(1, Level.INFO))
    slack.faults.faults.append(Fault(method=method, kind=FaultKind.RATE_LIMITED, retry_after_s=900))
    problem = await post.unavailable(notice(2))
    assert problem.retry_after_s == 900.0
    assert "rate limit" in str(problem)
    await post.tell(notice(2))
    assert len(post.replies()) == 1


@pytest.mark.parametrize("code", ["invalid_auth", "account_inactive", "token_revoked", "missing_scope"])
async def test_a_token_that_is_not_accepted_keeps_the_letter_and_says_so(slack: SlackServer, code: str) -> None:
    slack.faults.faults.append(Fault(method="chat.postMessage", kind=FaultKind.ERROR, error=code))
    problem = await Post(slack).unavailable(notice())
    assert f"does not accept the token for chat.postMessage: {code}" in str(problem)
    assert TOKEN not in str(problem)


@pytest.mark.parametrize("token", ["xoxb-wrong", "nonsense", "xoxb-with\nnewline"])
async def test_no_message_of_an_error_holds_the_token(slack: SlackServer, token: str) -> None:
    problem = await Post(slack, token=token).unavailable(notice())
    assert token not in str(problem) and "newline" not in str(problem)


@pytest.mark.parametrize("closed", ["#not-a-member", "#archived", "#no-such-channel"])
async def test_a_plans_channel_that_is_closed_sends_the_news_to_the_default_one(slack: SlackServer, closed: str) -> None:
    post = Post(slack)
    await post.tell(notice(1, channel=closed), notice(2, channel=closed))
    [parent] = post.parents()
    assert len(post.replies()) == 2
    assert parent.edits == 1
    assert post.messages("C0PRIVATE") == post.messages("C0ARCHIVED") == []


async def test_a_default_channel_that_is_closed_keeps_the_letter_until_somebody_opens_it(slack: SlackServer) -> None:
    problem = await Post(slack, channel="#not-a-member").unavailable(notice())
    assert "'#not-a-member' cannot be written to" in str(problem)
    assert "not_in_channel" in str(problem)
    both = await Post(slack, channel="#not-a-member").unavailable(notice(channel="#archived"))
    assert "neither" in str(both) and "is_archived" in str(both)


@pytest.mark.parametrize("status", [500, 503])
async def test_trouble_at_slack_keeps_the_letter(slack: SlackServer, status: int) -> None:
    slack.faults.faults.append(Fault(method="chat.postMessage", kind=FaultKind.STATUS, status=status))
    problem = await Post(slack).unavailable(notice())
    assert f"HTTP status {status}" in str(problem)


async def test_blocks_that_slack_does_not_take_are_said_as_plain_text(slack: SlackServer) -> None:
    post = Post(slack)
    slack.faults.faults.append(Fault(method="chat.postMessage", kind=FaultKind.ERROR, error="invalid_blocks"))
    await post.tell(notice(1, Level.INFO))
    slack.faults.faults.append(Fault(method="chat.update", kind=FaultKind.ERROR, error="invalid_blocks"))
    await post.tell(notice(2, Level.INFO))
    [parent] = post.parents()
    assert parent.blocks == []
    assert "step 2; canary-5 at 5%" in parent.text.replace(" (error-rate: 4.2% bad requests, limit 1%)", "")


async def test_what_slack_takes_not_even_as_plain_text_is_given_up(slack: SlackServer) -> None:
    slack.faults.faults.append(Fault(method="chat.postMessage", kind=FaultKind.ERROR, error="msg_too_long", count=2))
    with pytest.raises(NotifierRefused, match=r"chat-gpt-5-7f3a/1 not even as plain text: chat\.postMessage: msg_too_long"):
        await Post(slack).tell(notice(1))


async def test_a_slack_that_is_not_there_keeps_the_letter() -> None:
    async with running_slack() as gone:
        post = Post(gone)
    assert "cannot be reached" in str(await post.unavailable(notice()))


# --- text -----------------------------------------------------------------------------------------------------------------------


async def test_text_of_any_length_is_cut_to_what_slack_takes(slack: SlackServer) -> None:
    post = Post(slack)
    long = "<&>" * 20_000
    lines = tuple(Line(gate=f"gate-{i}" * 20, verdict=Verdict.ERROR, text=long) for i in range(60))
    await post.tell(
        notice(title=long, text=long, standing=long, lines=lines, environment=long, phases=tuple(f"p{i} 1%" for i in range(500)))
    )
    # The stand-in refuses what Slack would; plain text would have no blocks.
    assert post.parents()[0].blocks and post.replies()[0].blocks


async def test_an_empty_notice_is_taken(slack: SlackServer) -> None:
    post = Post(slack)
    await post.tell(notice(title="", text="", standing="", phases=(), phase=-1, lines=(), exposure=None, environment=""))
    assert post.parents()[0].blocks and post.replies()[0].blocks


def test_no_text_of_a_rollout_can_mention_people_or_make_links() -> None:
    evil = "<!channel> <https://evil.example|click> & more"
    told = notice(
        text=evil, standing=evil, lines=(Line(gate=evil, verdict=Verdict.PASS, text=evil),), phases=(evil,), environment=evil
    )
    marked = [t for t in (*texts(parent_blocks(told, {})), *texts(reply_blocks(told)), plain(told)) if "evil" in t]
    assert marked
    assert all("<" not in t and "&lt;!channel&gt;" in t for t in marked)


def test_cutting_never_leaves_half_an_escaped_character() -> None:
    assert cut(escape("a<b"), 4) == "a…"
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"


async def test_whoever_is_meant_is_called_in_the_thread_and_its_notification_and_never_by_an_edit(slack: SlackServer) -> None:
    post = Post(slack, whom=lambda n: "<!subteam^S0ONCALL>" if n.on_call else "")
    await post.tell(notice(1, Level.ALARM, on_call=True), notice(2))
    first, second = post.replies()
    assert shown(first).startswith("<!subteam^S0ONCALL> 🚨 *step 1*") and first.text.startswith("<!subteam^S0ONCALL> ")
    assert "subteam" not in shown(second) + second.text
    assert "subteam" not in "".join(shown(m) + m.text for m in post.parents())


async def test_the_message_says_what_was_spent_and_when_the_next_gate_is(slack: SlackServer) -> None:
    post = Post(slack, spent=lambda n: f"$1.50 by the candidate of {n.rollout_id} & co")
    await post.tell(notice(1, next_look=datetime(2026, 5, 4, 9, 15, tzinfo=UTC)), notice(2))
    [parent] = post.parents()
    assert "*Spend*\n$1.50 by the candidate of chat-gpt-5-7f3a &amp; co" in shown(parent)
    assert "Next gate" not in shown(parent), "the newest one has none"
    blocks = parent_blocks(notice(1, next_look=datetime(2026, 5, 4, 9, 15, tzinfo=UTC)), {})
    assert "*Next gate*\n<!date^1777886100^{date_short_pretty} {time}|2026-05-04 09:15 UTC>" in texts(blocks)
    assert "*Spend*" not in "".join(texts(blocks))
