"""
What Slack's refusals mean for a letter: wait, go elsewhere, say it more simply, or give up.

Its one rule: nobody's news is thrown away because of something that a person can repair. A bad token, a missing scope, a channel without
the bot in it and every fault of Slack's wait in the outbox; only a message that Slack cannot take even as plain text is given up.

    NotifierUnavailable  (ports)  tokens, scopes, rate limits, 5xx, timeouts, resets, and whatever is not known
    ChannelClosed                 this channel cannot be written to: use the default channel, or wait for somebody to open it
    MessageGone                   the message or its thread is not there any more: post anew
    MessageFixed                  the workspace lets nobody edit the message: leave it
    MessageRejected               the content was not taken: say it as plain text, else NotifierRefused
"""

from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from slack_sdk.errors import SlackApiError, SlackClientError

from controller.ports import NotifierUnavailable, PortError

TOKEN = frozenset(
    {
        "invalid_auth",
        "not_authed",
        "account_inactive",
        "token_revoked",
        "token_expired",
        "no_permission",
        "missing_scope",
        "not_allowed_token_type",
        "org_login_required",
        "ekm_access_denied",
        "access_denied",
        "team_access_not_granted",
    }
)
CHANNEL = frozenset(
    {
        "channel_not_found",
        "not_in_channel",
        "is_archived",
        "restricted_action",
        "restricted_action_read_only_channel",
        "restricted_action_thread_only_channel",
        "restricted_action_non_threadable_channel",
        "restricted_action_thread_locked",
        "invalid_channel",
    }
)
GONE = frozenset({"message_not_found", "thread_not_found", "cannot_reply_to_message"})
FIXED = frozenset({"cant_update_message", "edit_window_closed"})
CONTENT = frozenset(
    {
        "invalid_blocks",
        "invalid_blocks_format",
        "msg_blocks_too_long",
        "msg_too_long",
        "no_text",
        "invalid_metadata_format",
        "invalid_metadata_schema",
        "metadata_too_large",
        "metadata_must_be_sent_from_app",
        "too_many_attachments",
        "invalid_arguments",
        "invalid_arg_name",
        "markdown_text_conflict",
    }
)


class ChannelClosed(PortError):
    pass


class MessageGone(PortError):
    pass


class MessageFixed(PortError):
    pass


class MessageRejected(PortError):
    pass


def translated(exc: Exception, method: str) -> PortError:
    """
    An exception of slack-sdk, or of what lies below it, in our words.

    Args:
        exc: One of `RAISED`.
        method: Web API method that was called; part of the message.
    """
    if not isinstance(exc, SlackApiError):
        # A ValueError is about a header that cannot be sent, and quotes it: the token.
        text = f": {str(exc)[:200]}" if isinstance(exc, OSError | HTTPException) else ""
        return NotifierUnavailable(f"Slack cannot be reached ({method}): {type(exc).__name__}{text}")
    status, headers, data = _parts(exc.response)
    code = str(data.get("error", "no answer that can be read"))[:200]
    retry_after_s = _seconds(headers)
    if status == 429 or code in ("ratelimited", "rate_limited"):
        wait = "" if retry_after_s is None else f", again in {retry_after_s:g} s"
        return NotifierUnavailable(
            f"Slack's rate limit of {method} is reached{wait}", 30.0 if retry_after_s is None else retry_after_s
        )
    if status >= 500:
        return NotifierUnavailable(f"Slack answered {method} with HTTP status {status}", retry_after_s)
    if code in TOKEN:
        needed = f" (needed: {data['needed']})" if isinstance(data.get("needed"), str) else ""
        return NotifierUnavailable(
            f"Slack does not accept the token for {method}: {code}{needed}; repair the token or the app's scopes"
        )
    if code in CHANNEL:
        return ChannelClosed(f"{method}: {code}")
    if code in GONE:
        return MessageGone(f"{method}: {code}")
    if code in FIXED:
        return MessageFixed(f"{method}: {code}")
    if code in CONTENT:
        return MessageRejected(f"{method}: {code}{_details(data)}")
    return NotifierUnavailable(f"Slack answered {method} with HTTP status {status}: {code}", retry_after_s)


def is_scope(exc: Exception) -> bool:
    """Whether a call was refused for a right that posting does not need."""
    return isinstance(exc, SlackApiError) and _parts(exc.response)[2].get("error") in (
        "missing_scope",
        "not_allowed_token_type",
        "no_permission",
    )


RAISED = (SlackClientError, OSError, HTTPException, ValueError)
"""What WebClient lets through: urllib's errors are OSErrors, a broken answer is an HTTPException or a ValueError."""


def _parts(response: Any) -> tuple[int, Mapping[str, str], Mapping[str, Any]]:
    """Status, headers with small names, and data of a SlackResponse."""
    data = getattr(response, "data", None)
    headers = getattr(response, "headers", None) or {}
    status = getattr(response, "status_code", 0)
    return int(status), {str(k).lower(): _first(v) for k, v in headers.items()}, data if isinstance(data, Mapping) else {}


def _first(value: Any) -> str:
    return str(value[0]) if isinstance(value, list) and value else str(value)


def _seconds(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    # A pause of hours is not believed: it would keep people in the dark.
    return min(max(seconds, 1.0), 3600.0) if seconds == seconds else None


def _details(data: Mapping[str, Any]) -> str:
    metadata = data.get("response_metadata")
    messages = metadata.get("messages") if isinstance(metadata, Mapping) else None
    return f" ({'; '.join(str(m) for m in messages)[:300]})" if isinstance(messages, list) and messages else ""
