"""
The Slack workspace behind the stand-in: people, groups, channels, messages, modals, and what each Web API method does to them.

No I/O and no clock of its own. Error names and answers are those of docs.slack.dev/reference/methods. Its one rule: where Slack's
behaviour is not documented the stand-in is the stricter one (a reply to a message that does not exist is `thread_not_found`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from bench.slack_blocks import MESSAGE_BLOCK_TEXT_MAX, block_problems, text_length, view_problems

TEXT_MAX = 40_000
TRIGGER_LIFE_S = 3.0
METADATA_MAX = 16_384
TEAM_ID = "T0PENSTOCK"
BOT_ID = "B0PENSTOCK"
APP_ID = "A0PENSTOCK"


class SlackError(Exception):
    """An answer `{"ok": false, "error": code}`; `more` is merged into it."""

    def __init__(self, code: str, **more: Any) -> None:
        super().__init__(code)
        self.code = code
        self.more = more


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    id: str
    name: str
    real_name: str
    email: str = ""
    is_bot: bool = False
    deleted: bool = False
    tz: str = "Europe/Berlin"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserGroup:
    id: str
    handle: str
    name: str
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A channel; the bot can post where it is a member, and in archived ones nobody can."""

    id: str
    name: str
    is_member: bool = True
    is_archived: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Who and what there is. The defaults are enough for a demo."""

    users: tuple[User, ...] = (
        User(id="U0ALICE", name="alice", real_name="Alice Moreno", email="alice@example.com"),
        User(id="U0BOB", name="bob", real_name="Bob Tanaka", email="bob@example.com"),
        User(id="U0CAROL", name="carol", real_name="Carol Weiss", email="carol@example.com"),
        User(id="U0DAVE", name="dave", real_name="Dave Okafor", email="dave@example.com"),
    )
    groups: tuple[UserGroup, ...] = (
        UserGroup(id="S0RELEASE", handle="release-managers", name="Release managers", users=("U0ALICE", "U0BOB")),
        UserGroup(id="S0ONCALL", handle="sre-oncall", name="SRE on call", users=("U0CAROL",)),
    )
    channels: tuple[Channel, ...] = (
        Channel(id="C0ROLLOUTS", name="llm-rollouts"),
        Channel(id="C0GENERAL", name="general"),
        Channel(id="C0PRIVATE", name="not-a-member", is_member=False),
        Channel(id="C0ARCHIVED", name="archived", is_archived=True),
    )
    bot: User = User(id="U0PENSTOCK", name="penstock", real_name="Penstock", is_bot=True)


@dataclass(slots=True, kw_only=True)
class Message:
    """A message as the channel holds it; `user` differs from the bot's for messages of people."""

    ts: str
    user: str
    text: str
    blocks: list[dict[str, Any]]
    metadata: dict[str, Any] | None = None
    thread_ts: str | None = None
    broadcast: bool = False
    edited_ts: str | None = None
    edits: int = 0


@dataclass(slots=True, kw_only=True)
class View:
    id: str
    view: dict[str, Any]
    user: str


@dataclass(slots=True)
class _Trigger:
    user: str
    issued_s: float
    used: bool = False


@dataclass(slots=True)
class Workspace:
    """
    The state.

    Args:
        directory: People, groups, channels.
    """

    directory: Directory = field(default_factory=Directory)
    messages: dict[str, dict[str, Message]] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    whispers: list[dict[str, Any]] = field(default_factory=list)
    _triggers: dict[str, _Trigger] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))
    _last_us: int = 0

    def call(self, method: str, args: Mapping[str, Any], *, now_s: float) -> dict[str, Any]:
        """
        One Web API call, already authenticated.

        Args:
            method: Such as `chat.postMessage`.
            args: Arguments, from a form (all strings) or from JSON.
            now_s: Unix time.

        Returns:
            The answer without `ok`.

        Raises:
            SlackError: any refusal.
        """
        found = _METHODS.get(method)
        if found is None:
            raise SlackError("unknown_method", req_method=method)
        return found(self, args, now_s)

    def new_trigger(self, user: str, *, now_s: float) -> str:
        """A trigger id for one modal, good for three seconds."""
        trigger_id = f"{next(self._numbers)}.{TEAM_ID}.{int(now_s * 1000)}"
        self._triggers[trigger_id] = _Trigger(user, now_s)
        return trigger_id

    def say_as(self, user: str, channel_id: str, text: str, *, now_s: float, thread_ts: str | None = None) -> Message:
        """A message that a person writes. Raises SlackError."""
        channel = self._channel(channel_id)
        return self._add(channel, Message(ts=self._ts(now_s), user=user, text=text, blocks=[], thread_ts=thread_ts))

    def user(self, user_id: Any) -> User:
        """Raises SlackError `user_not_found`."""
        for user in (*self.directory.users, self.directory.bot):
            if user_id == user.id:
                return user
        raise SlackError("user_not_found")

    def message(self, channel_id: str, ts: str) -> Message:
        """Raises SlackError `message_not_found`."""
        found = self.messages.get(channel_id, {}).get(ts)
        if found is None:
            raise SlackError("message_not_found")
        return found

    def message_json(self, message: Message, *, with_metadata: bool = True) -> dict[str, Any]:
        """A message as the Web API shows it."""
        out: dict[str, Any] = {"type": "message", "user": message.user, "ts": message.ts, "text": message.text, "team": TEAM_ID}
        if message.user == self.directory.bot.id:
            out |= {"bot_id": BOT_ID, "app_id": APP_ID}
        if message.blocks:
            out["blocks"] = message.blocks
        if message.edited_ts:
            out["edited"] = {"user": message.user, "ts": message.edited_ts}
        if message.thread_ts:
            out["thread_ts"] = message.thread_ts
            if message.thread_ts != message.ts:
                parent = self._find(message.thread_ts)
                out["parent_user_id"] = parent.user if parent else None
        if message.metadata and with_metadata:
            out["metadata"] = message.metadata
        replies = self.replies(message.ts)
        if replies:
            out |= {
                "thread_ts": message.ts,
                "reply_count": len(replies),
                "reply_users": sorted({r.user for r in replies}),
                "reply_users_count": len({r.user for r in replies}),
                "latest_reply": replies[-1].ts,
                "subscribed": False,
            }
        return out

    def replies(self, ts: str) -> list[Message]:
        """Replies in the thread of a message, oldest first."""
        found = [m for held in self.messages.values() if ts in held for m in held.values() if m.thread_ts == ts and m.ts != ts]
        return sorted(found, key=lambda m: m.ts)

    def channel_named(self, wanted: Any) -> Channel:
        """A channel by id, name or `#name`. Raises SlackError `channel_not_found`."""
        for channel in self.directory.channels:
            if wanted in (channel.id, channel.name, f"#{channel.name}"):
                return channel
        raise SlackError("channel_not_found")

    def _auth_test(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        bot = self.directory.bot
        return {
            "url": "https://penstock.example.slack.com/",
            "team": "Penstock stand-in",
            "user": bot.name,
            "team_id": TEAM_ID,
            "user_id": bot.id,
            "bot_id": BOT_ID,
            "is_enterprise_install": False,
        }

    def _post_message(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        channel = self._writable(self.channel_named(args.get("channel")))
        text, blocks = _content(args)
        if not text and not blocks:
            raise SlackError("no_text")
        metadata = _metadata(args)
        thread_ts = args.get("thread_ts") or None
        if thread_ts is not None:
            parent = self.messages.get(channel.id, {}).get(str(thread_ts))
            if parent is None:
                raise SlackError("thread_not_found")
            if parent.thread_ts not in (None, parent.ts):
                raise SlackError("cannot_reply_to_message")
        message = Message(
            ts=self._ts(now_s),
            user=self.directory.bot.id,
            text=text or "",
            blocks=self._with_ids(blocks or []),
            metadata=metadata,
            thread_ts=None if thread_ts is None else str(thread_ts),
            broadcast=_flag(args.get("reply_broadcast")),
        )
        self._add(channel, message)
        return {"channel": channel.id, "ts": message.ts, "message": self.message_json(message)}

    def _update(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        # Unlike chat.postMessage this takes a channel's id only.
        channel = self._writable(self._channel(args.get("channel")))
        message = self.message(channel.id, str(args.get("ts")))
        if message.user != self.directory.bot.id:
            raise SlackError("cant_update_message")
        text, blocks = _content(args)
        if not text and not blocks:
            raise SlackError("no_text")
        metadata = _metadata(args)
        message.text = text if text is not None else message.text
        if blocks is not None:  # left out, the blocks stay; an empty list removes them
            message.blocks = self._with_ids(blocks)
        if "metadata" in args:  # likewise
            message.metadata = metadata
        message.edited_ts = self._ts(now_s)
        message.edits += 1
        return {"channel": channel.id, "ts": message.ts, "text": message.text, "message": self.message_json(message)}

    def _history(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        channel = self._readable(self._channel(args.get("channel")))
        held = self.messages.get(channel.id, {}).values()
        found = [m for m in held if m.thread_ts in (None, m.ts) or m.broadcast]
        return self._page(sorted(found, key=lambda m: m.ts, reverse=True), args, default_limit=100)

    def _replies(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        channel = self._readable(self._channel(args.get("channel")))
        asked = self.messages.get(channel.id, {}).get(str(args.get("ts")))
        if asked is None:
            raise SlackError("thread_not_found")
        parent = self.messages[channel.id][asked.thread_ts] if asked.thread_ts else asked
        return self._page([parent, *self.replies(parent.ts)], args, default_limit=1000)

    def _views_open(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        trigger = self._triggers.get(str(args.get("trigger_id")))
        if trigger is None:
            raise SlackError("invalid_trigger_id")
        if now_s - trigger.issued_s > TRIGGER_LIFE_S:
            raise SlackError("expired_trigger_id")
        if trigger.used:
            raise SlackError("exchanged_trigger_id")
        view = _json_arg(args, "view", "invalid_arguments")
        if problems := view_problems(view):
            raise _with_messages("invalid_arguments", problems)
        trigger.used = True
        opened = {
            "id": f"V{next(self._numbers):08d}",
            "team_id": TEAM_ID,
            "state": {"values": {}},
            "hash": f"{int(now_s)}.{next(self._numbers)}",
            "app_id": APP_ID,
            "bot_id": BOT_ID,
            **view,
            "blocks": self._with_ids(view["blocks"]),
        }
        self.views[str(opened["id"])] = View(id=str(opened["id"]), view=opened, user=trigger.user)
        return {"view": opened}

    def _post_ephemeral(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        channel, user = self._channel(args.get("channel")), self.user(args.get("user"))
        text, blocks = _content(args)
        if not text and not blocks:
            raise SlackError("no_text")
        ts = self._ts(now_s)
        self.whispers.append({"channel": channel.id, "user": user.id, "text": text or "", "message_ts": ts})
        return {"message_ts": ts}

    def _users_info(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        user = self.user(args.get("user"))
        profile = {"real_name": user.real_name, "display_name": user.name, "email": user.email}
        plain = {"id": user.id, "team_id": TEAM_ID, "name": user.name, "real_name": user.real_name, "tz": user.tz}
        return {"user": {**plain, "deleted": user.deleted, "is_bot": user.is_bot, "profile": profile}}

    def _groups_list(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        rows = [
            {"id": g.id, "team_id": TEAM_ID, "name": g.name, "handle": g.handle, "users": list(g.users)}
            for g in self.directory.groups
        ]
        if not _flag(args.get("include_users")):
            rows = [{k: v for k, v in row.items() if k != "users"} for row in rows]
        return {"usergroups": rows}

    def _group_users(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        for group in self.directory.groups:
            if group.id == args.get("usergroup"):
                return {"users": list(group.users)}
        raise SlackError("no_such_subteam")

    def _conversations_list(self, args: Mapping[str, Any], now_s: float) -> dict[str, Any]:
        rows = [
            {"id": c.id, "name": c.name, "is_channel": True, "is_member": c.is_member, "is_archived": c.is_archived}
            for c in self.directory.channels
        ]
        return {"channels": rows, "response_metadata": {"next_cursor": ""}}

    def _channel(self, channel_id: Any) -> Channel:
        for channel in self.directory.channels:
            if channel.id == channel_id:
                return channel
        raise SlackError("channel_not_found")

    def _readable(self, channel: Channel) -> Channel:
        if not channel.is_member:
            raise SlackError("not_in_channel")
        return channel

    def _writable(self, channel: Channel) -> Channel:
        if channel.is_archived:
            raise SlackError("is_archived")
        return self._readable(channel)

    def _page(self, found: list[Message], args: Mapping[str, Any], *, default_limit: int) -> dict[str, Any]:
        oldest, latest = str(args.get("oldest") or "0"), str(args.get("latest") or "9999999999")
        inclusive = _flag(args.get("inclusive"))
        inside = [
            m
            for m in found
            if float(oldest) < float(m.ts) < float(latest) or (inclusive and float(m.ts) in (float(oldest), float(latest)))
        ]
        try:
            limit, start = int(args.get("limit") or default_limit), int(args.get("cursor") or 0)
        except ValueError as exc:
            raise SlackError("invalid_cursor") from exc
        page, more = inside[start : start + limit], start + limit < len(inside)
        with_metadata = _flag(args.get("include_all_metadata"))
        return {
            "messages": [self.message_json(m, with_metadata=with_metadata) for m in page],
            "has_more": more,
            "response_metadata": {"next_cursor": str(start + limit) if more else ""},
        }

    def _add(self, channel: Channel, message: Message) -> Message:
        self.messages.setdefault(channel.id, {})[message.ts] = message
        return message

    def _find(self, ts: str) -> Message | None:
        return next((held[ts] for held in self.messages.values() if ts in held), None)

    def _ts(self, now_s: float) -> str:
        # A ts is the identity of a message in its channel: two never share one.
        self._last_us = max(self._last_us + 1, int(now_s * 1_000_000))
        return f"{self._last_us // 1_000_000}.{self._last_us % 1_000_000:06d}"

    def _with_ids(self, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**b, "block_id": b.get("block_id") or f"blk{next(self._numbers)}"} for b in blocks]


_METHODS: dict[str, Callable[[Workspace, Mapping[str, Any], float], dict[str, Any]]] = {
    "auth.test": Workspace._auth_test,
    "chat.postMessage": Workspace._post_message,
    "chat.update": Workspace._update,
    "chat.postEphemeral": Workspace._post_ephemeral,
    "conversations.history": Workspace._history,
    "conversations.replies": Workspace._replies,
    "conversations.list": Workspace._conversations_list,
    "views.open": Workspace._views_open,
    "users.info": Workspace._users_info,
    "usergroups.list": Workspace._groups_list,
    "usergroups.users.list": Workspace._group_users,
}


def _content(args: Mapping[str, Any]) -> tuple[str | None, list[dict[str, Any]] | None]:
    """Text and blocks; None for what was left out. Raises SlackError."""
    text = args.get("text")
    if text is not None and not isinstance(text, str):
        raise SlackError("invalid_arguments")
    if text is not None and len(text) > TEXT_MAX:
        raise SlackError("msg_too_long")
    blocks = None
    if args.get("blocks") is not None:
        blocks = _json_arg(args, "blocks", "invalid_blocks_format")
        if problems := block_problems(blocks):
            raise _with_messages("invalid_blocks", problems)
        if text_length(blocks) > MESSAGE_BLOCK_TEXT_MAX:
            raise SlackError("msg_blocks_too_long")
    return text, blocks


def _metadata(args: Mapping[str, Any]) -> dict[str, Any] | None:
    if not args.get("metadata"):
        return None
    metadata = _json_arg(args, "metadata", "invalid_metadata_format")
    if not metadata:
        return None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("event_type"), str):
        raise SlackError("invalid_metadata_format")
    if not isinstance(metadata.get("event_payload"), dict):
        raise SlackError("invalid_metadata_format")
    if len(json.dumps(metadata)) > METADATA_MAX:
        raise SlackError("metadata_too_large")
    return metadata


def _json_arg(args: Mapping[str, Any], name: str, refusal: str) -> Any:
    """An argument that a form carries as JSON text and a JSON body as it is."""
    value = args.get(name)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as exc:
        raise SlackError(refusal) from exc


def _flag(value: Any) -> bool:
    return value is True or str(value).lower() in ("1", "true")


def _with_messages(code: str, problems: list[str]) -> SlackError:
    messages = [f"[ERROR] {p}" for p in problems]
    return SlackError(code, errors=problems, response_metadata={"messages": messages})
