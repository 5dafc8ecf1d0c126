"""
How Slack reaches an app: envelopes over Socket Mode, or signed HTTP requests.

Protocols: docs.slack.dev/apis/events-api/using-socket-mode and docs.slack.dev/authentication/verifying-requests-from-slack. Its one
rule: an app has three seconds to acknowledge; a late acknowledgement is reported as none, as the person who clicked would see it.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import aiohttp
from aiohttp import web

from bench.slack_workspace import APP_ID

ACK_TIMEOUT_S = 3.0
_PING_EVERY_S = 10.0


class Tamper(Enum):
    """How a signed request is made wrong, to see that the app refuses it."""

    NONE = "none"
    SIGNATURE = "signature"  # signed with another secret
    UNSIGNED = "unsigned"  # no signature headers
    STALE = "stale"  # ten minutes old, rightly signed
    BODY = "body"  # changed after signing


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """
    What came back for one delivery.

    Args:
        via: `socket`, `http` or `nobody` (no connection and no address to deliver to).
        acknowledged: In time.
        after_s: When; the time limit if it never came.
        status: HTTP status; 0 over Socket Mode.
        payload: What the app sent with it (an error for a modal, for example).
        reason: Why it was not acknowledged.
    """

    via: str
    acknowledged: bool
    after_s: float
    status: int = 0
    payload: Any = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "via": self.via,
            "acknowledged": self.acknowledged,
            "after_s": round(self.after_s, 4),
            "status": self.status,
            "payload": self.payload,
            "reason": self.reason,
        }


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """The `X-Slack-Signature` of a request: HMAC-SHA256 over `v0:timestamp:body`."""
    return "v0=" + hmac.new(secret.encode(), b"v0:" + timestamp.encode() + b":" + body, hashlib.sha256).hexdigest()


class SocketMode:
    """The websocket side: tickets, connections, envelopes in flight."""

    def __init__(self) -> None:
        self.connections: list[web.WebSocketResponse] = []
        self.unexpected_acks = 0
        self._tickets: set[str] = set()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._turn = count()

    def new_ticket(self) -> str:
        ticket = str(uuid4())
        self._tickets.add(ticket)
        return ticket

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One connection, from hello to its end. A ticket is good for one connection."""
        ticket = request.query.get("ticket", "")
        if ticket not in self._tickets:
            return web.Response(status=404, text="unknown or used ticket")
        self._tickets.discard(ticket)
        socket = web.WebSocketResponse(heartbeat=_PING_EVERY_S, autoping=True)
        await socket.prepare(request)
        self.connections.append(socket)
        hello = {
            "type": "hello",
            "num_connections": len(self.connections),
            "connection_info": {"app_id": APP_ID},
            "debug_info": {"host": "bench-slack", "build_number": 1, "approximate_connection_time": 18_060},
        }
        try:
            await socket.send_json(hello)
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    self._acknowledged(message.data)
        finally:
            if socket in self.connections:
                self.connections.remove(socket)
        return socket

    async def deliver(self, kind: str, payload: Mapping[str, Any], *, envelope_id: str | None = None) -> Ack:
        """Send one envelope to one of the connections, in turn, and wait for its acknowledgement."""
        live = [c for c in self.connections if not c.closed]
        if not live:
            return Ack(via="nobody", acknowledged=False, after_s=0.0, reason="no Socket Mode connection")
        socket = live[next(self._turn) % len(live)]
        envelope_id = envelope_id or str(uuid4())
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[envelope_id] = answer
        begun = time.monotonic()
        accepts = payload.get("type") == "view_submission"
        try:
            await socket.send_json(
                {"envelope_id": envelope_id, "type": kind, "accepts_response_payload": accepts, "payload": dict(payload)}
            )
            async with asyncio.timeout(ACK_TIMEOUT_S):
                given = await answer
        except TimeoutError:
            return Ack(
                via="socket", acknowledged=False, after_s=ACK_TIMEOUT_S, reason=f"no acknowledgement in {ACK_TIMEOUT_S:g} s"
            )
        except ConnectionError as exc:
            return Ack(via="socket", acknowledged=False, after_s=time.monotonic() - begun, reason=f"connection lost: {exc}")
        finally:
            self._waiting.pop(envelope_id, None)
        return Ack(via="socket", acknowledged=True, after_s=time.monotonic() - begun, payload=given)

    async def disconnect(self, reason: str) -> int:
        """
        End all connections; returns how many there were.

        Args:
            reason: `refresh_requested` and `link_disabled` say so and close; `warning` only says so; `drop` cuts the line without a word.
        """
        ended = list(self.connections)
        for socket in ended:
            if reason == "drop":
                transport = socket.get_extra_info("transport")
                if transport is not None:
                    transport.abort()
                continue
            await socket.send_json({"type": "disconnect", "reason": reason, "debug_info": {"host": "bench-slack"}})
            if reason != "warning":
                await socket.close()
        return len(ended)

    async def close(self) -> None:
        for socket in list(self.connections):
            await socket.close()

    def _acknowledged(self, text: str) -> None:
        try:
            data = json.loads(text)
            waiting = self._waiting.get(data["envelope_id"])
        except (ValueError, KeyError, TypeError):
            self.unexpected_acks += 1
            return
        if waiting is None or waiting.done():
            self.unexpected_acks += 1
        else:
            waiting.set_result(data.get("payload"))


async def deliver_http(
    session: aiohttp.ClientSession, url: str, secret: str, payload: Mapping[str, Any], *, tamper: Tamper = Tamper.NONE
) -> Ack:
    """Post one interaction to the app's request URL, signed, and wait for its answer."""
    body = urlencode({"payload": json.dumps(payload)}).encode()
    stamp = str(int(time.time()) - (600 if tamper is Tamper.STALE else 0))
    signed = signature(secret + ("wrong" if tamper is Tamper.SIGNATURE else ""), stamp, body)
    headers = {"content-type": "application/x-www-form-urlencoded", "user-agent": "Slackbot 1.0 (+https://api.slack.com/robots)"}
    if tamper is not Tamper.UNSIGNED:
        headers |= {"x-slack-request-timestamp": stamp, "x-slack-signature": signed}
    if tamper is Tamper.BODY:
        body += b"+"
    begun = time.monotonic()
    try:
        async with (
            asyncio.timeout(ACK_TIMEOUT_S),
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            text = await answer.text()
    except TimeoutError:
        return Ack(via="http", acknowledged=False, after_s=ACK_TIMEOUT_S, reason=f"no answer in {ACK_TIMEOUT_S:g} s")
    except aiohttp.ClientError as exc:
        return Ack(via="http", acknowledged=False, after_s=time.monotonic() - begun, reason=f"{type(exc).__name__}: {exc}")
    try:
        given = json.loads(text) if text else None
    except ValueError:
        given = text[:200]
    good = 200 <= answer.status < 300
    reason = "" if good else f"status {answer.status}"
    return Ack(
        via="http", acknowledged=good, after_s=time.monotonic() - begun, status=answer.status, payload=given, reason=reason
    )
