"""
What a notice looks like in Slack: Block Kit within Slack's limits, and the same in plain text.

It stands between a notice and the Web API, and does no I/O. Its one rule: text that is not ours is escaped and cut before it goes in, so
that no rollout, gate or error text can mention people, make links or break the message. Who is called comes from people.yaml alone.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from controller.core.gates import Verdict
from controller.core.notice import Level, Line, Notice

# docs.slack.dev/reference/block-kit/blocks: limits of the header and of the text of a section.
HEADER_MAX = 150
SECTION_MAX = 3000
FIELD_MAX = 800
"""Slack allows 2,000, but 13,200 for all text of a message together."""
TEXT_MAX = 3000
"""Slack takes 40,000 characters of plain text and recommends 4,000."""

EVENT_TYPE = "penstock_notice"

_VERDICTS = {Verdict.BREACH: "❌", Verdict.ERROR: "⚠️", Verdict.INSUFFICIENT: "⏳", Verdict.PASS: "✅"}
_ENDS = {"promoted": "✅", "rolled_back": "⏪", "aborted": "⏹️"}
_LEVELS = {Level.INFO: "", Level.NEWS: "", Level.ALARM: "🚨"}

Block = dict[str, Any]


def parent_blocks(notice: Notice, links: Mapping[str, str], note: str = "", spent: str = "") -> list[Block]:
    """
    The message of a rollout as it stands.

    Args:
        notice: The newest one.
        links: Label to address, with ``{rollout_id}`` for the rollout's.
        note: One more line below, for example why it stands in this channel.
        spent: What it has cost so far, in words; "" where nobody says.
    """
    fields = [f"*Environment*\n{escape(notice.environment) or '-'}", f"*Exposure*\n{exposure(notice)}"]
    if spent:
        fields.append(f"*Spend*\n{escape(spent)}")
    if notice.next_look is not None:
        fields.append(f"*Next gate*\n{moment(notice.next_look)}")
    if notice.lines:
        fields.append(f"*Worst gate*\n{_line(notice.lines[0])}")
    blocks: list[Block] = [
        {
            "type": "header",
            "text": {"type": "plain_text", "text": cut(notice.title or notice.rollout_id, HEADER_MAX), "emoji": False},
        },
        _section(f"{phase_bar(notice)}{_icon(notice)}*{escape(notice.standing)}*: {escape(notice.text)}"),
        *([{"type": "section", "fields": [_mrkdwn(cut(f, FIELD_MAX)) for f in fields]}] if notice.phases else []),
        _context(_footer(notice, links)),
    ]
    if note:
        blocks.append(_context(escape(note)))
    return blocks


def reply_blocks(notice: Notice, whom: str = "") -> list[Block]:
    """
    What happened, with every gate, for the thread.

    Args:
        notice: Which.
        whom: Markup that calls people (`mentions`); "" for nobody.
    """
    blocks = [_section(f"{_calling(whom)}{_icon(notice)}*{escape(notice.text)}*")]
    if notice.lines:
        blocks.append(_section("\n".join(_line(line) for line in notice.lines)))
    exposed = f" · exposure {exposure(notice)}" if notice.phases else ""
    blocks.append(_context(f"{escape(notice.standing)}{exposed} · {_ask(notice)}"))
    return blocks


def plain(notice: Notice, whom: str = "") -> str:
    """The notice in one short text: for notifications, screen readers, and when Slack does not take the blocks."""
    worst = f" ({notice.lines[0].gate}: {notice.lines[0].text})" if notice.lines else ""
    text = f"{notice.title} [{notice.environment}]: {notice.text}{worst}; {notice.standing}; {notice.ask or f'penstock why {notice.rollout_id}'}"
    return cut(_calling(whom) + _icon(notice) + escape(text), TEXT_MAX)


def metadata(notice: Notice, part: str) -> dict[str, Any]:
    """
    The identity of a message, by which it is found again.

    Args:
        notice: Whose message.
        part: ``parent`` or ``reply``; broadcast replies stand in the channel beside their parents.
    """
    return {"event_type": EVENT_TYPE, "event_payload": {"rollout_id": notice.rollout_id, "seq": notice.seq, "part": part}}


def is_message_of(message: Mapping[str, Any], notice: Notice, part: str) -> bool:
    """Whether a message read from Slack is that part of the notice; a parent is its rollout's whichever notice it shows."""
    found = message.get("metadata")
    if not isinstance(found, Mapping) or found.get("event_type") != EVENT_TYPE:
        return False
    payload = found.get("event_payload")
    if not isinstance(payload, Mapping) or (payload.get("rollout_id"), payload.get("part")) != (notice.rollout_id, part):
        return False
    return part == "parent" or payload.get("seq") == notice.seq


def phase_bar(notice: Notice) -> str:
    """``shadow 10% ▸ *canary-1 1%* ▸ half 50%``: the phase it is in stands out."""
    names = (f"*{escape(name)}*" if index == notice.phase else escape(name) for index, name in enumerate(notice.phases))
    return f"{' ▸ '.join(names)}\n" if notice.phases else ""


def exposure(notice: Notice) -> str:
    return "not measured" if notice.exposure is None else f"{notice.exposure:,.0f} requests"


def moment(at: datetime) -> str:
    """A time as Slack shows it, by each reader's own clock (docs.slack.dev/messaging/formatting-message-text)."""
    return f"<!date^{int(at.timestamp())}^{{date_short_pretty}} {{time}}|{at:%Y-%m-%d %H:%M} UTC>"


def escape(text: str) -> str:
    """The three characters that mean something to Slack (docs.slack.dev/messaging/formatting-message-text)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def cut(text: str, length: int) -> str:
    """At most `length` characters, never ending within an escaped one."""
    if len(text) <= length:
        return text
    return re.sub(r"&[a-z]{0,3}$", "", text[: length - 1]) + "…"


def _line(line: Line) -> str:
    return f"{_VERDICTS[line.verdict]} *{escape(line.gate)}* {line.verdict.value}: {escape(line.text)}"


def _calling(whom: str) -> str:
    return f"{whom} " if whom else ""


def _icon(notice: Notice) -> str:
    icon = _ENDS.get(notice.ended) or ("🔔" if notice.asks else _LEVELS[notice.level])
    return f"{icon} " if icon else ""


def _footer(notice: Notice, links: Mapping[str, str]) -> str:
    where = quote(notice.rollout_id, safe="")
    named = [f"<{address.replace('{rollout_id}', where)}|{escape(label)}>" for label, address in links.items()]
    return " · ".join([_ask(notice), *named])


def _ask(notice: Notice) -> str:
    command = notice.ask or f"penstock why {notice.rollout_id}"
    return f"`{escape(command.replace('`', chr(39)))}`"


def _section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn(cut(text, SECTION_MAX))}


def _context(text: str) -> Block:
    return {"type": "context", "elements": [_mrkdwn(cut(text, FIELD_MAX))]}


def _mrkdwn(text: str) -> Block:
    # verbatim: Slack makes no links of bare addresses and names of channels.
    return {"type": "mrkdwn", "text": text, "verbatim": True}
