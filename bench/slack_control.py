"""
The `/control/` doors of the Slack stand-in: look at messages and calls, click buttons as a person, make calls fail.

JSON in and out; a mistake is 400 (404 for what does not exist) with `{"error": ...}`. Its one rule: whatever a test can do in process
on `SlackServer`, a demo in another process can do here.
"""

import json
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from bench.slack_delivery import Tamper
from bench.slack_limits import Fault
from bench.slack_workspace import SlackError

if TYPE_CHECKING:
    from bench.slack import SlackServer


class Control:
    """The handlers, bound to one server."""

    def __init__(self, server: "SlackServer") -> None:
        self._server = server

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/control/messages", self.messages),
            web.get("/control/calls", self.calls),
            web.get("/control/views", self.views),
            web.post("/control/click", self.click),
            web.post("/control/submit", self.submit),
            web.post("/control/say", self.say),
            web.get("/control/faults", self.list_faults),
            web.post("/control/faults", self.add_faults),
            web.delete("/control/faults", self.clear_faults),
            web.get("/control/socket", self.socket),
            web.post("/control/socket", self.disconnect),
            web.post("/control/reset", self.reset),
        ]

    async def messages(self, request: web.Request) -> web.Response:
        """All messages, oldest first, with metadata and number of edits; `?channel=` for one channel."""
        space = self._server.workspace
        wanted = request.query.get("channel")
        only = None if wanted is None else space.channel_named(wanted).id
        rows = [
            {"channel": channel_id, **space.message_json(m), "edits": m.edits}
            for channel_id, held in space.messages.items()
            for m in held.values()
            if only in (None, channel_id)
        ]
        return web.json_response({"messages": sorted(rows, key=lambda r: r["ts"])})

    async def calls(self, request: web.Request) -> web.Response:
        """The Web API calls so far, in order; `?method=` for one method."""
        wanted = request.query.get("method")
        rows = [
            {"method": c.method, "args": dict(c.args), "answer": c.answer, "at_s": c.at_s}
            for c in self._server.calls
            if wanted in (None, c.method)
        ]
        return web.json_response({"calls": rows})

    async def views(self, request: web.Request) -> web.Response:
        """The modals that are open."""
        return web.json_response({"views": [{"user": v.user, **v.view} for v in self._server.workspace.views.values()]})

    async def click(self, request: web.Request) -> web.Response:
        """`{user, channel, ts, action_id, block_id?, copies?, tamper?}`: answers `{deliveries: [...]}`."""
        data = await _object(request, "user", "channel", "ts", "action_id")
        acks = await self._server.click(
            data["user"],
            data["channel"],
            data["ts"],
            data["action_id"],
            block_id=data.get("block_id"),
            copies=int(data.get("copies", 1)),
            tamper=Tamper(data.get("tamper", "none")),
        )
        return web.json_response({"deliveries": [a.to_json() for a in acks]})

    async def submit(self, request: web.Request) -> web.Response:
        """`{user, view_id, values: {block_id: {action_id: text}}}`."""
        data = await _object(request, "user", "view_id", "values")
        ack = await self._server.submit(data["user"], data["view_id"], data["values"])
        return web.json_response({"deliveries": [ack.to_json()]})

    async def say(self, request: web.Request) -> web.Response:
        """`{user, channel, text, thread_ts?}`: a message that a person writes."""
        data = await _object(request, "user", "channel", "text")
        space = self._server.workspace
        user, channel = space.user(data["user"]).id, space.channel_named(data["channel"]).id
        message = space.say_as(user, channel, data["text"], now_s=time.time(), thread_ts=data.get("thread_ts"))
        return web.json_response({"ts": message.ts})

    async def list_faults(self, request: web.Request) -> web.Response:
        return web.json_response({"faults": [f.to_json() for f in self._server.faults.faults]})

    async def add_faults(self, request: web.Request) -> web.Response:
        """One fault or a list of them: `{method, kind, count?, error?, status?, retry_after_s?, hang_s?}`."""
        data = await _json(request)
        self._server.faults.faults += [Fault.from_json(d) for d in (data if isinstance(data, list) else [data])]
        return await self.list_faults(request)

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._server.faults.faults.clear()
        return await self.list_faults(request)

    async def socket(self, request: web.Request) -> web.Response:
        """How many Socket Mode connections are open."""
        socket = self._server.socket
        return web.json_response({"connections": len(socket.connections), "unexpected_acks": socket.unexpected_acks})

    async def disconnect(self, request: web.Request) -> web.Response:
        """`{disconnect: refresh_requested | link_disabled | warning | drop}`."""
        data = await _object(request, "disconnect")
        if data["disconnect"] not in ("refresh_requested", "link_disabled", "warning", "drop"):
            raise ValueError(f"disconnect: {data['disconnect']!r} is none of refresh_requested, link_disabled, warning, drop")
        return web.json_response({"disconnected": await self._server.socket.disconnect(data["disconnect"])})

    async def reset(self, request: web.Request) -> web.Response:
        """Forget messages, calls, faults and modals."""
        self._server.reset()
        return web.json_response({})


@web.middleware
async def control_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except SlackError as exc:
        return web.json_response({"error": exc.code}, status=404)
    except (ValueError, TypeError) as exc:
        return web.json_response({"error": str(exc)}, status=400)


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.text())
    except ValueError as exc:
        raise ValueError(f"the body is not JSON: {exc}") from exc


async def _object(request: web.Request, *required: str) -> dict[str, Any]:
    data = await _json(request)
    if not isinstance(data, dict):
        raise ValueError("the body must be a JSON object")
    if missing := [name for name in required if name not in data]:
        raise ValueError(f"{missing[0]}: missing; needed: {', '.join(required)}")
    return data
