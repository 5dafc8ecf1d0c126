"""
Buttons under a rollout's message, the modals that ask for a reason, and what comes back from both: pure, no I/O.

It stands between a notice and Slack's interactivity. Its one rule: a button carries the rollout and the digest of what the person saw, and nothing that
says what the person may do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from controller.adapters.slack.messages import Block, cut, escape
from controller.core.notice import Notice
from controller.core.people import Right

ACTION = "penstock_"
"""Before the name of each button and modal of ours."""

MODAL_MAX = 3000
"""Characters of a text in a modal, and of the metadata that it carries."""

_LABELS = {Right.APPROVE: "Approve", Right.REJECT: "Reject", Right.ROLL_BACK: "Roll back", Right.OVERRIDE: "Override"}
_STYLES = {Right.APPROVE: "primary", Right.ROLL_BACK: "danger"}
CHECKS = {"approval": "go without the approval", "freeze": "raise out of a freeze", "bake": "do not wait for the bake to end"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlackClick:
    """
    What somebody did in Slack, as Slack signed it.

    Args:
        team, user: Ids.
        verb: What is asked for; None for a button that only opens a page.
        rollout_id, digest: Of the message that was clicked.
        trigger: With it a modal can be opened, for three seconds; "" from a modal.
        channel: Where it was; "" where Slack does not say.
        reason, ticket, checks: From a modal.
        submitted: It comes from a modal.
    """

    team: str
    user: str
    verb: Right | None
    rollout_id: str
    digest: str
    trigger: str = ""
    channel: str = ""
    reason: str = ""
    ticket: str = ""
    checks: tuple[str, ...] = ()
    submitted: bool = False


class NotOurs(ValueError):
    """A payload that is no click of ours, or not what Slack sends; says what was seen."""


def buttons(notice: Notice, page: str) -> list[Block]:
    """
    The buttons under a rollout's message.

    Args:
        notice: The newest one.
        page: Address of the console; "" for none.
    """
    verbs: tuple[Right, ...] = ()
    if not notice.ended and notice.phases:
        verbs = (Right.APPROVE, Right.REJECT, Right.OVERRIDE, Right.ROLL_BACK) if notice.question else (Right.ROLL_BACK,)
    value = json.dumps({"r": notice.rollout_id, "d": notice.question}, separators=(",", ":"))
    elements: list[Block] = [
        {
            "type": "button",
            "action_id": f"{ACTION}{verb.value}",
            "text": {"type": "plain_text", "text": _LABELS[verb], "emoji": False},
            "value": value,
            **({"style": _STYLES[verb]} if verb in _STYLES else {}),
        }
        for verb in verbs
    ]
    if page and notice.phases:
        address = f"{page.rstrip('/')}/rollouts/{quote(notice.rollout_id, safe='')}"
        open_ = {"type": "plain_text", "text": "Open", "emoji": False}
        elements.append({"type": "button", "action_id": f"{ACTION}open", "text": open_, "url": address})
    return [{"type": "actions", "block_id": "penstock", "elements": elements}] if elements else []


def modal(click: SlackClick) -> dict[str, Any]:
    """The modal that asks for the reason of a reject, rollback or override."""
    assert click.verb is not None, "a page is opened by Slack itself"
    label = _LABELS[click.verb]
    blocks: list[Block] = [
        {
            "type": "section",
            "text": {"type": "plain_text", "text": cut(f"{label}: {click.rollout_id}", MODAL_MAX), "emoji": False},
        },
        _input("reason", "Reason", "Goes into the audit log", multiline=True),
    ]
    if click.verb is Right.OVERRIDE:
        blocks.append(_input("ticket", "Ticket", "Where it is written down, such as INC-4711"))
        options = [{"text": {"type": "plain_text", "text": text}, "value": name} for name, text in CHECKS.items()]
        blocks.append(
            {
                "type": "input",
                "block_id": "checks",
                "label": {"type": "plain_text", "text": "What the next step may go without"},
                "element": {"type": "checkboxes", "action_id": "value", "options": options},
            }
        )
    kept = {"r": click.rollout_id, "d": click.digest, "c": click.channel}
    return {
        "type": "modal",
        "callback_id": f"{ACTION}{click.verb.value}",
        "title": {"type": "plain_text", "text": label},
        "submit": {"type": "plain_text", "text": label},
        "close": {"type": "plain_text", "text": "Cancel"},
        "private_metadata": json.dumps(kept, separators=(",", ":")),
        "blocks": blocks,
    }


def told(title: str, text: str) -> dict[str, Any]:
    """A modal that only says something, in the place of the one that was submitted."""
    return {
        "type": "modal",
        "title": {"type": "plain_text", "text": cut(title, 24)},
        "close": {"type": "plain_text", "text": "Close"},
        "blocks": [{"type": "section", "text": {"type": "plain_text", "text": cut(text, MODAL_MAX), "emoji": False}}],
    }


def click_of(payload: Any) -> SlackClick:
    """
    What a payload of Slack's interactivity asks for.

    Raises:
        NotOurs: it is of another app's or of a kind that we have no button for.
    """
    match payload:
        case {
            "type": "block_actions",
            "team": {"id": str(team)},
            "user": {"id": str(user)},
            "actions": [{"action_id": str(action), **rest}],
            **more,
        }:
            verb = _verb(action)
            kept = _kept(rest.get("value")) if verb is not None else {}
            channel = more.get("channel")
            return SlackClick(
                team=team,
                user=user,
                verb=verb,
                rollout_id=kept.get("r", ""),
                digest=kept.get("d", ""),
                trigger=str(more.get("trigger_id") or ""),
                channel=str(channel.get("id") or "") if isinstance(channel, Mapping) else "",
            )
        case {
            "type": "view_submission",
            "team": {"id": str(team)},
            "user": {"id": str(user)},
            "view": {"callback_id": str(action), "private_metadata": str(metadata), "state": {"values": dict(values)}},
        }:
            kept = _kept(metadata)
            return SlackClick(
                team=team,
                user=user,
                verb=_verb(action),
                rollout_id=kept.get("r", ""),
                digest=kept.get("d", ""),
                channel=kept.get("c", ""),
                reason=_text(values, "reason"),
                ticket=_text(values, "ticket"),
                checks=_checked(values),
                submitted=True,
            )
    kind = payload.get("type") if isinstance(payload, Mapping) else type(payload).__name__
    raise NotOurs(f"a payload of type {kind!r} that is no click of ours")


def whisper(text: str) -> str:
    """Plain text for one person, who sees it alone."""
    return escape(text)


def _verb(action: str) -> Right | None:
    name = action.removeprefix(ACTION)
    if name == action:
        raise NotOurs(f"a button {action[:60]!r} that is not ours")
    if name == "open":
        return None
    try:
        verb = Right(name)
    except ValueError:
        raise NotOurs(f"a button {action[:60]!r} of another release") from None
    if verb not in _LABELS:
        raise NotOurs(f"a button {action[:60]!r} of another release")
    return verb


def _kept(text: Any) -> dict[str, str]:
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise NotOurs("a button whose value is none of ours") from None
    # Ids and digests: nothing that a database would stumble over.
    good = isinstance(data, dict) and all(isinstance(v, str) and v.isascii() and v.isprintable() for v in data.values())
    if not good or not data.get("r"):
        raise NotOurs("a button whose value is none of ours")
    return dict(data)


def _text(values: Mapping[str, Any], block: str) -> str:
    found = _element(values, block).get("value")
    return found.strip() if isinstance(found, str) else ""


def _checked(values: Mapping[str, Any]) -> tuple[str, ...]:
    options = _element(values, "checks").get("selected_options")
    return tuple(str(o.get("value")) for o in options if isinstance(o, Mapping)) if isinstance(options, list) else ()


def _element(values: Mapping[str, Any], block: str) -> Mapping[str, Any]:
    """What somebody put into a block of the modal; empty for nothing, and for what Slack does not send."""
    actions = values.get(block)
    element = actions.get("value") if isinstance(actions, Mapping) else None
    return element if isinstance(element, Mapping) else {}


def _input(block: str, label: str, hint: str, *, multiline: bool = False) -> Block:
    return {
        "type": "input",
        "block_id": block,
        "label": {"type": "plain_text", "text": label},
        "hint": {"type": "plain_text", "text": hint},
        "element": {"type": "plain_text_input", "action_id": "value", "multiline": multiline, "max_length": 1000},
    }
