"""
Notices in Slack: one message for each rollout, edited in place, and its news in the thread below.

It stands at the end of the outbox, which calls it at least once for each letter. Its one rule: a letter delivered twice looks as if it
were delivered once. Every message carries the notice's identity as metadata, and before anything is posted the channel or the thread
is read for it: after a connection that broke behind an accepted message nobody can know otherwise.

Reading needs the scopes ``channels:history`` and ``channels:read`` (``groups:`` for private channels) beside ``chat:write``. Without
them, and in private channels that are given by name and not by id, notices are posted all the same, and one may come twice after a
broken connection.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from slack_sdk import WebClient

from controller.adapters.slack.buttons import buttons
from controller.adapters.slack.errors import (
    RAISED,
    ChannelClosed,
    MessageFixed,
    MessageGone,
    MessageRejected,
    is_scope,
    translated,
)
from controller.adapters.slack.messages import is_message_of, metadata, parent_blocks, plain, reply_blocks
from controller.adapters.slack.threads import Thread, ThreadStore
from controller.core.notice import Level, Notice
from controller.crash import Point, reached
from controller.ports import Letter, NotifierRefused, NotifierUnavailable

CHANNEL_ID = re.compile(r"[CGD][A-Z0-9]{6,}")
PAGE = 200
PAGES_MAX = 10
"""Pages that are read to find a message: the latest 2,000 of a channel or a thread."""


def _unsaid(_: Notice) -> str:
    return ""


class SlackNotifier:
    """
    Implements `controller.ports.Notifier`.

    Args:
        token: Bot token.
        default_channel: Name or id of the channel for rollouts that name none, or one that cannot be written to.
        threads: Which message belongs to which rollout.
        base_url: Another Slack API, for a stand-in.
        links: Label to address, shown under the message; ``{rollout_id}`` is filled in.
        timeout_s: For each call of the Web API.
        page: Address of the console, for a button that opens a rollout's page; "" for none.
        clickable: Somebody listens to buttons.
        whom: Markup that calls the people whom a notice is meant for (`mentions`); "" for nobody.
        spent: What the notice's rollout has cost so far, in words; "" where nobody says. Neither of the two may raise.
    """

    def __init__(
        self,
        token: str,
        default_channel: str,
        threads: ThreadStore,
        *,
        base_url: str | None = None,
        links: Mapping[str, str] | None = None,
        timeout_s: int = 10,
        page: str = "",
        clickable: bool = False,
        whom: Callable[[Notice], str] = _unsaid,
        spent: Callable[[Notice], str] = _unsaid,
    ) -> None:
        # The library logs failures that are told to the outbox as well, and the text of messages at debug level.
        silent = logging.Logger("penstock.slack", level=logging.CRITICAL + 1)
        self._web = WebClient(token, base_url=base_url or WebClient.BASE_URL, timeout=timeout_s, retry_handlers=[], logger=silent)
        self._default_channel = default_channel
        self._threads = threads
        self._links = dict(links or {})
        self._page, self._clickable = page, clickable
        self._whom, self._spent = whom, spent
        self._ids: dict[str, str] = {}

    def deliver(self, letter: Letter) -> None:
        """
        Raises:
            NotifierUnavailable: Slack, its token or its channels are not usable now; nothing is lost.
            NotifierRefused: Slack takes the message not even as plain text.
        """
        notice = letter.notice
        channel = notice.channel or self._default_channel
        try:
            try:
                self._tell(notice, channel)
            except ChannelClosed as exc:
                self._tell_elsewhere(notice, channel, exc)
        except MessageRejected as exc:
            raise NotifierRefused(f"Slack takes notice {notice.rollout_id}/{notice.seq} not even as plain text: {exc}") from exc
        except (MessageGone, MessageFixed, *RAISED) as exc:
            raise NotifierUnavailable(f"Slack contradicts itself about {notice.rollout_id}: {type(exc).__name__}") from exc

    def _tell_elsewhere(self, notice: Notice, channel: str, closed: ChannelClosed) -> None:
        """News must reach somebody: a plan's channel that is closed to us is no reason for silence."""
        thread = self._threads.get(notice.rollout_id)
        if channel == self._default_channel and thread is None:
            raise NotifierUnavailable(
                f"Slack channel {channel!r} cannot be written to ({closed}); invite the app or name another"
            ) from closed
        note = f"In this channel because {channel} cannot be written to ({closed})."
        try:
            self._tell(notice, self._default_channel, anew=thread is not None, note=note)
        except ChannelClosed as exc:
            raise NotifierUnavailable(
                f"neither Slack channel {channel!r} ({closed}) nor the default {self._default_channel!r} ({exc}) can be written to"
            ) from exc

    def _tell(self, notice: Notice, channel: str, *, anew: bool = False, note: str = "") -> None:
        known = None if anew else self._threads.get(notice.rollout_id)
        if known is not None:
            # A message that somebody deleted is gone: the rollout gets a new one.
            with suppress(MessageGone):
                return self._retell(notice, known, note)
        found = self._forgotten(notice, channel)
        if found is not None:
            return self._retell(notice, found, note)
        return self._reply(notice, self._post_parent(notice, channel, note))

    def _retell(self, notice: Notice, thread: Thread, note: str) -> None:
        # The edit comes first: a deleted message still takes replies, which nobody would see.
        self._edit(notice, thread, note)
        self._reply(notice, thread)

    # --- the rollout's message --------------------------------------------------------------------------------------------------

    def _forgotten(self, notice: Notice, channel: str) -> Thread | None:
        """The rollout's message, if it was posted and then forgotten on the way from Slack to the database."""
        known = self._channel_id(channel)
        found = None if known is None else self._find(notice, "parent", self._web.conversations_history, channel=known)
        if known is None or found is None:
            return None
        self._threads.put(notice.rollout_id, known, found)
        return known, found

    def _post_parent(self, notice: Notice, channel: str, note: str) -> Thread:
        posted = self._send(
            "chat.postMessage",
            self._web.chat_postMessage,
            self._parent(notice, note),
            notice,
            "parent",
            channel=channel,
        )
        match posted.data:
            case {"channel": str(at), "ts": str(ts)}:
                self._threads.put(notice.rollout_id, at, ts)
                reached(Point.SLACK_KEPT)
                return at, ts
            case _:
                raise NotifierUnavailable("Slack took a message and does not say where it stands")

    def _edit(self, notice: Notice, thread: Thread, note: str) -> None:
        channel, ts = thread
        try:
            self._send(
                "chat.update",
                self._web.chat_update,
                self._parent(notice, note),
                notice,
                "parent",
                channel=channel,
                ts=ts,
            )
        except MessageFixed:
            # The workspace forbids edits, or only so late; what is new stands in the thread.
            return

    def _parent(self, notice: Notice, note: str) -> list[dict[str, Any]]:
        blocks = parent_blocks(notice, self._links, note, self._spent(notice) if notice.phases else "")
        return blocks + buttons(notice, self._page) if self._clickable else blocks

    # --- its thread -------------------------------------------------------------------------------------------------------------

    def _reply(self, notice: Notice, thread: Thread) -> None:
        if notice.level is Level.INFO:
            return
        channel, ts = thread
        if self._find(notice, "reply", self._web.conversations_replies, channel=channel, ts=ts) is not None:
            return
        whom = self._whom(notice)
        self._send(
            "chat.postMessage",
            self._web.chat_postMessage,
            reply_blocks(notice, whom),
            notice,
            "reply",
            whom,
            channel=channel,
            thread_ts=ts,
            reply_broadcast=notice.level is Level.ALARM,
        )

    # --- calls ------------------------------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        call: Callable[..., Any],
        blocks: list[dict[str, Any]],
        notice: Notice,
        part: str,
        whom: str = "",
        **where: Any,
    ) -> Any:
        """Post or edit; a second time as plain text when Slack does not take the blocks."""
        what = {"text": plain(notice, whom), "metadata": metadata(notice, part), **where}
        if method == "chat.postMessage":
            what |= {"unfurl_links": False, "unfurl_media": False}
        try:
            return _called(method, call, blocks=blocks, **what)
        except MessageRejected:
            # An empty list takes the old blocks out of a message that is edited; left out, they would stay.
            return _called(method, call, blocks=[], **what)

    def _find(self, notice: Notice, part: str, pages: Callable[..., Any], **where: Any) -> str | None:
        """Timestamp of a message that was posted before; None if there is none, or if the token may not look."""
        for page in self._read(pages, **where, include_all_metadata=True, limit=PAGE):
            for message in page.get("messages") or ():
                if is_message_of(message, notice, part):
                    return str(message["ts"])
        return None

    def _channel_id(self, channel: str) -> str | None:
        """The id of a channel, which reading needs; None if it cannot be learned."""
        if CHANNEL_ID.fullmatch(channel):
            return channel
        name = channel.removeprefix("#")
        if name in self._ids:
            return self._ids[name]
        for page in self._read(self._web.conversations_list, exclude_archived=True, limit=PAGE):
            self._ids |= {str(c["name"]): str(c["id"]) for c in page.get("channels") or () if "name" in c}
            if name in self._ids:
                return self._ids[name]
        return None

    def _read(self, call: Callable[..., Any], **args: Any) -> Iterator[Any]:
        """Pages of an answer, the first ten; none where the token may not read."""
        for _ in range(PAGES_MAX):
            try:
                page = call(**args)
            except RAISED as exc:
                # A right to read is not needed for news to be told.
                if is_scope(exc):
                    return
                problem = translated(exc, call.__name__.replace("_", ".", 1))
                if isinstance(problem, ChannelClosed):
                    return
                raise problem from exc
            reached(Point.SLACK_READ)
            yield page
            cursor = (page.get("response_metadata") or {}).get("next_cursor")
            if not cursor:
                return
            args["cursor"] = cursor


def check_token(token: str, *, base_url: str | None = None) -> str:
    """
    Whether Slack knows the token, for `doctor`.

    Returns:
        The workspace and the bot's name.

    Raises:
        NotifierUnavailable: Slack refuses the token or does not answer.
    """
    web = WebClient(token, base_url=base_url or WebClient.BASE_URL, timeout=5, retry_handlers=[])
    answer = _called("auth.test", web.auth_test)
    return f"{answer['user']} in {answer['team']}"


def check_socket(app_token: str, *, base_url: str | None = None) -> None:
    """
    Whether Slack would let us listen by Socket Mode.

    Raises:
        NotifierUnavailable: it refuses the app-level token or does not answer.
    """
    web = WebClient(base_url=base_url or WebClient.BASE_URL, timeout=5, retry_handlers=[])
    _called("apps.connections.open", web.apps_connections_open, app_token=app_token)


def _called(method: str, call: Callable[..., Any], **args: Any) -> Any:
    try:
        reached(Point.SLACK_SENDING)
        answer = call(**args)
        reached(Point.SLACK_SENT)
        return answer
    except RAISED as exc:
        raise translated(exc, method) from exc
