"""
The channel as a person would see it: one HTML page with messages, threads and buttons that can be clicked.

Its one rule: every text of a message passes `mrkdwn`, which escapes first and formats afterwards.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

from bench.slack_workspace import Channel, Message, SlackError, Workspace

_EMOJI = {
    "white_check_mark": "✅",
    "heavy_check_mark": "✔️",
    "x": "❌",
    "warning": "⚠️",
    "rotating_light": "🚨",
    "rocket": "🚀",
    "tada": "🎉",
    "rewind": "⏪",
    "hourglass_flowing_sand": "⏳",
    "hourglass": "⌛",
    "double_vertical_bar": "⏸️",
    "pause_button": "⏸️",
    "arrow_forward": "▶️",
    "arrow_up": "⬆️",
    "arrow_down": "⬇️",
    "octagonal_sign": "🛑",
    "eyes": "👀",
    "bell": "🔔",
    "large_green_circle": "🟢",
    "large_yellow_circle": "🟡",
    "red_circle": "🔴",
    "white_circle": "⚪",
    "moneybag": "💰",
    "chart_with_upwards_trend": "📈",
    "chart_with_downwards_trend": "📉",
    "bust_in_silhouette": "👤",
    "snowflake": "❄️",
    "lock": "🔒",
}

_STYLE = """
:root{color-scheme:light;--line:#e3e3e6;--soft:#616061;--link:#1264a3}
*{box-sizing:border-box}body{margin:0;font:15px/1.46 system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;color:#1d1c1d;display:flex;
height:100vh;background:#fff}
nav{width:220px;background:#3f0e40;color:#cfc3cf;padding:18px 0;flex:none}nav h1{font-size:17px;color:#fff;margin:0 18px 18px}
nav a{display:block;color:inherit;text-decoration:none;padding:4px 18px}nav a.here{background:#1164a3;color:#fff}
main{flex:1;display:flex;flex-direction:column;min-width:0}header{border-bottom:1px solid var(--line);padding:12px 22px;display:flex;
align-items:center;gap:16px}header h2{margin:0;font-size:18px;flex:1}header label{font-size:13px;color:var(--soft)}
#log{flex:1;overflow-y:auto;padding:16px 22px}.msg{display:grid;grid-template-columns:36px 1fr;gap:10px;padding:7px 0;max-width:860px}
.face{width:36px;height:36px;border-radius:6px;background:#4a154b;color:#fff;display:grid;place-items:center;font-weight:700}
.face.bot{background:#0b6e69}.who{font-weight:800}.tag{background:#e8e8e8;color:#616061;font-size:10px;font-weight:700;padding:1px 4px;
border-radius:3px;margin-left:5px;vertical-align:1px}time,.edited{color:var(--soft);font-size:12px;margin-left:6px}
.thread{margin:6px 0 4px 17px;padding-left:20px;border-left:2px solid var(--line)}.thread>.count{font-size:13px;font-weight:700;color:var(--link)}
.thread .msg{grid-template-columns:24px 1fr}.thread .face{width:24px;height:24px;font-size:12px;border-radius:4px}
h3{margin:4px 0;font-size:18px}hr{border:0;border-top:1px solid var(--line);margin:10px 0}.ctx{color:var(--soft);font-size:13px;margin:4px 0}
.fields{display:grid;grid-template-columns:1fr 1fr;gap:6px 24px;margin:4px 0}.sec{margin:4px 0;overflow-wrap:anywhere}
.sec.with{display:flex;justify-content:space-between;gap:16px}.acts{display:flex;flex-wrap:wrap;gap:8px;margin:8px 0}
button{font:inherit;font-weight:700;font-size:14px;padding:5px 12px;border-radius:5px;border:1px solid #bbb;background:#fff;cursor:pointer}
button.primary{background:#007a5a;border-color:#007a5a;color:#fff}button.danger{background:#e01e5a;border-color:#e01e5a;color:#fff}
code{background:#f6f6f6;border:1px solid var(--line);border-radius:3px;padding:1px 3px;font-size:12.5px;color:#c01343}
pre{background:#f8f8f8;border:1px solid var(--line);border-radius:4px;padding:8px;overflow-x:auto;font-size:12.5px;margin:6px 0}
blockquote{border-left:4px solid #ddd;margin:4px 0;padding-left:12px}.at{background:#e8f1fa;color:var(--link);border-radius:3px;padding:0 2px}
a{color:var(--link)}.none{color:var(--soft)}#note{font-size:13px;color:var(--soft)}
"""

_SCRIPT = """
const log=document.getElementById('log'),note=document.getElementById('note'),who=document.getElementById('who');
let shown=log.innerHTML;
log.scrollTop=log.scrollHeight;
async function refresh(){try{const a=await fetch(location.pathname+location.search+(location.search?'&':'?')+'part=log');
const t=await a.text();if(t!==shown){const low=log.scrollHeight-log.scrollTop-log.clientHeight<40;shown=t;log.innerHTML=t;
if(low)log.scrollTop=log.scrollHeight}}catch(e){note.textContent='stand-in not reachable'}}
setInterval(refresh,1500);
log.addEventListener('click',async e=>{const b=e.target.closest('button[data-action]');if(!b)return;
const a=await fetch('control/click',{method:'POST',headers:{'content-type':'application/json'},body:JSON.stringify({user:who.value,
channel:b.dataset.channel,ts:b.dataset.ts,block_id:b.dataset.block,action_id:b.dataset.action})});
const r=await a.json();const d=(r.deliveries||[])[0]||{};
note.textContent=a.ok?(d.acknowledged?'acknowledged after '+Math.round(d.after_s*1000)+' ms':'not acknowledged: '+d.reason):r.error;
refresh()});
"""


def channel_page(workspace: Workspace, channel: Channel) -> str:
    """The whole page for one channel."""
    links = "".join(
        f'<a href="?channel={escape(c.id)}"{" class=here" if c.id == channel.id else ""}># {escape(c.name)}</a>'
        for c in workspace.directory.channels
    )
    people = "".join(f"<option value={escape(u.id)}>{escape(u.real_name)}</option>" for u in workspace.directory.users)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>#{escape(channel.name)}</title><style>{_STYLE}</style>"
        f"<nav><h1>Slack stand-in</h1>{links}</nav><main><header><h2># {escape(channel.name)}</h2><span id=note></span>"
        f"<label>clicking as <select id=who>{people}</select></label></header>"
        f"<div id=log>{channel_log(workspace, channel)}</div></main><script>{_SCRIPT}</script></html>"
    )


def channel_log(workspace: Workspace, channel: Channel) -> str:
    """The messages of the channel, oldest first, each with its thread."""
    held = sorted(workspace.messages.get(channel.id, {}).values(), key=lambda m: m.ts)
    top = [m for m in held if m.thread_ts in (None, m.ts)]
    if not top:
        return "<p class=none>No messages yet.</p>"
    return "".join(_message(workspace, channel, m) for m in top)


def mrkdwn(text: str, workspace: Workspace) -> str:
    """Slack's mrkdwn as HTML."""
    kept: list[str] = []

    def keep(html: str) -> str:
        kept.append(html)
        return f"\x00{len(kept) - 1}\x00"

    # Slack's own &lt; &gt; &amp; are already escapes, everything else is escaped here.
    safe = escape(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"), quote=True).replace("\x00", "")
    safe = re.sub(r"```\n?(.*?)```", lambda m: keep(f"<pre>{m[1]}</pre>"), safe, flags=re.S)
    safe = re.sub(r"`([^`\n]+)`", lambda m: keep(f"<code>{m[1]}</code>"), safe)
    safe = re.sub(r"&lt;@(\w+)(?:\|[^&]*)?&gt;", lambda m: keep(f"<span class=at>@{escape(_name(workspace, m[1]))}</span>"), safe)
    safe = re.sub(
        r"&lt;!subteam\^(\w+)(?:\|[^&]*)?&gt;", lambda m: keep(f"<span class=at>@{escape(_group(workspace, m[1]))}</span>"), safe
    )
    safe = re.sub(r"&lt;!(here|channel|everyone)&gt;", lambda m: keep(f"<span class=at>@{m[1]}</span>"), safe)
    safe = re.sub(r"&lt;!date\^\d+\^[^|&]*\|(.*?)&gt;", lambda m: m[1], safe)
    safe = re.sub(r"&lt;(https?://[^|\s]+?)(?:\|(.*?))?&gt;", lambda m: keep(f'<a href="{m[1]}">{m[2] or m[1]}</a>'), safe)
    safe = re.sub(r":([a-z0-9_+-]+):", lambda m: _EMOJI.get(m[1], m[0]), safe)
    for mark, tag in ((r"\*", "b"), ("_", "i"), ("~", "s")):
        safe = re.sub(rf"(?<![\w{mark}]){mark}(?=\S)([^\n{mark}]+?)(?<=\S){mark}(?![\w{mark}])", rf"<{tag}>\1</{tag}>", safe)
    safe = re.sub(
        r"(?:^&gt; ?.*(?:\n|$))+",
        lambda m: f"<blockquote>{re.sub(r'(?m)^&gt; ?', '', m[0]).strip()}</blockquote>",
        safe,
        flags=re.M,
    )
    safe = safe.replace("\n", "<br>")
    while "\x00" in safe:
        safe = re.sub(r"\x00(\d+)\x00", lambda m: kept[int(m[1])], safe)
    return safe


def _message(workspace: Workspace, channel: Channel, message: Message, *, in_thread: bool = False) -> str:
    user = workspace.user(message.user)
    at = datetime.fromtimestamp(float(message.ts), UTC)
    tag = "<span class=tag>APP</span>" if user.is_bot else ""
    edited = " <span class=edited>(edited)</span>" if message.edited_ts else ""
    if message.blocks:
        body = "".join(_block(workspace, channel, message, b) for b in message.blocks)
    else:
        body = f"<div class=sec>{mrkdwn(message.text, workspace)}</div>"
    thread = "" if in_thread else _thread(workspace, channel, message)
    return (
        f'<div class=msg id="m{message.ts}"><div class="face{" bot" if user.is_bot else ""}">{escape(user.real_name[:1])}</div><div>'
        f"<span class=who>{escape(user.real_name)}</span>{tag}<time>{at:%H:%M:%S}</time>{edited}{body}{thread}</div></div>"
    )


def _thread(workspace: Workspace, channel: Channel, message: Message) -> str:
    replies = workspace.replies(message.ts)
    if not replies:
        return ""
    word = "reply" if len(replies) == 1 else "replies"
    inside = "".join(_message(workspace, channel, r, in_thread=True) for r in replies)
    return f"<div class=thread><div class=count>{len(replies)} {word}</div>{inside}</div>"


def _block(workspace: Workspace, channel: Channel, message: Message, block: Mapping[str, Any]) -> str:
    match block.get("type"):
        case "header":
            return f"<h3>{_text(workspace, block['text'])}</h3>"
        case "divider":
            return "<hr>"
        case "context":
            parts = (_text(workspace, e) if e.get("type") != "image" else "" for e in block["elements"])
            return f"<div class=ctx>{' &nbsp; '.join(p for p in parts if p)}</div>"
        case "section":
            text = f"<div>{_text(workspace, block['text'])}</div>" if "text" in block else ""
            fields = "".join(f"<div>{_text(workspace, f)}</div>" for f in block.get("fields", ()))
            accessory = _button(workspace, channel, message, block, block["accessory"]) if "accessory" in block else ""
            inside = text + (f"<div class=fields>{fields}</div>" if fields else "")
            return f'<div class="sec{" with" if accessory else ""}"><div>{inside}</div>{accessory}</div>'
        case "actions":
            return f"<div class=acts>{''.join(_button(workspace, channel, message, block, e) for e in block['elements'])}</div>"
        case other:
            return f"<div class=ctx>[{escape(str(other))} block]</div>"


def _button(workspace: Workspace, channel: Channel, message: Message, block: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    if item.get("type") != "button":
        return f"<span class=none>[{escape(str(item.get('type')))}]</span>"
    data = {"channel": channel.id, "ts": message.ts, "block": block["block_id"], "action": item.get("action_id", "")}
    if item.get("url"):
        return f'<a href="{escape(item["url"])}"><button>{_text(workspace, item["text"])}</button></a>'
    marks = " ".join(f'data-{k}="{escape(str(v))}"' for k, v in data.items())
    return f'<button class="{escape(item.get("style", ""))}" {marks}>{_text(workspace, item["text"])}</button>'


def _text(workspace: Workspace, item: Mapping[str, Any]) -> str:
    text = str(item.get("text", ""))
    if item.get("type") == "mrkdwn":
        return mrkdwn(text, workspace)
    return re.sub(r":([a-z0-9_+-]+):", lambda m: _EMOJI.get(m[1], m[0]), escape(text)).replace("\n", "<br>")


def _name(workspace: Workspace, user_id: str) -> str:
    try:
        return workspace.user(user_id).real_name
    except SlackError:
        return user_id


def _group(workspace: Workspace, group_id: str) -> str:
    return next((g.handle for g in workspace.directory.groups if g.id == group_id), group_id)
