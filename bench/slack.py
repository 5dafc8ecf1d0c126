"""
The Slack stand-in: as much of Slack's Web API, Socket Mode and signed interactivity as a notifier can tell from the real one.

    python -m bench.slack --listen 127.0.0.1:9200

* `POST /api/<method>`: the Web API (`WebClient(base_url="http://127.0.0.1:9200/api/")`), form-encoded or JSON, bearer token checked.
* `GET /link/?ticket=...`: the Socket Mode websocket whose address `apps.connections.open` gives.
* `GET /`: the channels as a person sees them; buttons can be clicked.
* `/control/...`: for tests and demos (each handler says what it takes): messages, calls, click, submit, say, faults, socket, reset.

Its one rule: an app talks to `/api/` as it would to Slack; everything Slack does not have lies under `/control/`.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from bench.cli import say
from bench.serving import AddressError, address_of, listen, parse_address, reset_transport, until_signalled
from bench.slack_control import Control, control_errors
from bench.slack_delivery import Ack, SocketMode, Tamper, deliver_http
from bench.slack_limits import Fault, FaultKind, FaultScript, RateLimiter, RateLimits
from bench.slack_page import channel_log, channel_page
from bench.slack_workspace import APP_ID, TEAM_ID, Directory, SlackError, User, View, Workspace

_BODY_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SlackConfig:
    """
    How the stand-in behaves.

    Args:
        bot_token: The one accepted `xoxb-` token; None accepts any that starts so.
        app_token: The same for `xapp-`.
        signing_secret: Signs HTTP interactions.
        interactivity_url: Where clicks go over signed HTTP; None sends them over Socket Mode.
        limits: Rate limits.
        directory: People, groups, channels.
    """

    bot_token: str | None = None
    app_token: str | None = None
    signing_secret: str = "stand-in-signing-secret"
    interactivity_url: str | None = None
    limits: RateLimits = field(default_factory=RateLimits)
    directory: Directory = field(default_factory=Directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One Web API call as it was counted; arguments are kept without the token."""

    method: str
    args: Mapping[str, Any]
    answer: str  # "ok", an error code, or the kind of the fault
    at_s: float


class SlackServer:
    """The stand-in in this process; its state can be looked at and its buttons clicked without HTTP."""

    def __init__(self, config: SlackConfig | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.config = config or SlackConfig()
        self.url = ""
        self.socket = SocketMode()
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self.reset()

    @property
    def api_url(self) -> str:
        """For `slack_sdk.WebClient(base_url=...)`."""
        return f"{self.url}/api/"

    def reset(self) -> None:
        """Forget everything but open connections."""
        self.workspace = Workspace(directory=self.config.directory)
        self.faults = FaultScript()
        self.calls: list[Call] = []
        self._limiter = RateLimiter(self.config.limits)

    async def click(
        self,
        user: str,
        channel: str,
        ts: str,
        action_id: str,
        *,
        block_id: str | None = None,
        copies: int = 1,
        tamper: Tamper = Tamper.NONE,
    ) -> list[Ack]:
        """
        Click a button as a person.

        Args:
            user: Id of the person.
            channel: Id, name or #name.
            ts: The message.
            action_id: The button; with `block_id` if several blocks have one of that name.
            copies: How often Slack delivers the same click.
            tamper: How the signed request is made wrong (HTTP only).

        Returns:
            What came back for each copy.

        Raises:
            SlackError: no such user, channel, message or button.
        """
        payload = self._block_actions(
            self.workspace.user(user), self.workspace.channel_named(channel).id, ts, action_id, block_id
        )
        return await self._deliver(payload, copies=copies, tamper=tamper)

    async def submit(self, user: str, view_id: str, values: Mapping[str, Any]) -> Ack:
        """
        Submit a modal as the person who has it open; it closes unless the app answers with errors.

        Args:
            values: Block id to action id to the element's state (`{"type": "plain_text_input", "value": "..."}`) or its text.
        """
        held = self.workspace.views.get(view_id)
        if held is None or held.user != user:
            raise SlackError("view_not_found")
        ack = (await self._deliver(self._view_submission(held, self.workspace.user(user), values)))[0]
        if ack.acknowledged and not (
            isinstance(ack.payload, Mapping) and ack.payload.get("response_action") in ("errors", "update")
        ):
            del self.workspace.views[view_id]
        return ack

    @asynccontextmanager
    async def running(self, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator["SlackServer"]:
        """Serve while the block runs. Raises AddressError."""
        listener = listen(host, port)
        self.url = address_of(listener)
        runner = web.AppRunner(_application(self), access_log=None, shutdown_timeout=0.5)
        try:
            async with aiohttp.ClientSession(trust_env=False) as self._session:
                await runner.setup()
                await web.SockSite(runner, listener).start()
                yield self
                await self.socket.close()
        finally:
            await runner.cleanup()
            listener.close()

    async def handle_api(self, request: web.Request) -> web.StreamResponse:
        """One Web API call."""
        method = request.match_info["method"]
        try:
            args = await _arguments(request)
            token = request.headers.get("authorization", "").removeprefix("Bearer ") or str(args.get("token", ""))
            args.pop("token", None)
            self._authenticate(method, token)
        except SlackError as exc:
            return _refusal(exc)
        fault = self.faults.take(method)
        if fault is not None:
            return await self._fail(request, method, args, fault)
        now_s = self._clock()
        wait_s = self._limiter.retry_after_s(method, str(args.get("channel", "")), now_s=now_s)
        if wait_s is not None:
            self._count(method, args, "ratelimited")
            return _rate_limited(wait_s)
        return self._execute(method, args)

    def _execute(self, method: str, args: Mapping[str, Any]) -> web.Response:
        try:
            if method == "apps.connections.open":
                link = f"{self.url.replace('http', 'ws', 1)}/link/?ticket={self.socket.new_ticket()}&app_id={APP_ID}"
                answer: dict[str, Any] = {"url": link}
            else:
                answer = self.workspace.call(method, args, now_s=self._clock())
        except SlackError as exc:
            self._count(method, args, exc.code)
            return _refusal(exc)
        self._count(method, args, "ok")
        return web.json_response({"ok": True, **answer})

    async def _fail(self, request: web.Request, method: str, args: Mapping[str, Any], fault: Fault) -> web.StreamResponse:
        if fault.kind in (FaultKind.RESET_AFTER_ACCEPT, FaultKind.TIMEOUT_AFTER_ACCEPT, FaultKind.SLOW):
            answer = self._execute(method, args)
        else:
            self._count(method, args, fault.kind.value)
        match fault.kind:
            case FaultKind.ERROR:
                return web.json_response({"ok": False, "error": fault.error})
            case FaultKind.STATUS:
                return web.Response(
                    status=fault.status, text="<html><body>upstream trouble</body></html>", content_type="text/html"
                )
            case FaultKind.RATE_LIMITED:
                return _rate_limited(fault.retry_after_s)
            case FaultKind.SLOW:
                await asyncio.sleep(fault.hang_s)
                return answer
            case FaultKind.TIMEOUT | FaultKind.TIMEOUT_AFTER_ACCEPT:
                await asyncio.sleep(fault.hang_s)
            case FaultKind.RESET | FaultKind.RESET_AFTER_ACCEPT:
                pass
        if request.transport is not None:
            reset_transport(request.transport)
        return web.Response(status=500)  # never arrives

    def _authenticate(self, method: str, token: str) -> None:
        if not token:
            raise SlackError("not_authed")
        wants, only = ("xapp-", self.config.app_token) if method == "apps.connections.open" else ("xoxb-", self.config.bot_token)
        if not token.startswith(wants):
            raise SlackError("not_allowed_token_type" if token.startswith(("xoxb-", "xapp-", "xoxp-")) else "invalid_auth")
        if only is not None and token != only:
            raise SlackError("invalid_auth")

    def _count(self, method: str, args: Mapping[str, Any], answer: str) -> None:
        self.calls.append(Call(method=method, args=dict(args), answer=answer, at_s=self._clock()))

    async def _deliver(self, payload: Mapping[str, Any], *, copies: int = 1, tamper: Tamper = Tamper.NONE) -> list[Ack]:
        if self.config.interactivity_url is None:
            return [await self.socket.deliver("interactive", payload) for _ in range(copies)]
        assert self._session is not None, "deliveries need a running server"
        url, secret = self.config.interactivity_url, self.config.signing_secret
        return [await deliver_http(self._session, url, secret, payload, tamper=tamper) for _ in range(copies)]

    def _block_actions(self, user: User, channel_id: str, ts: str, action_id: str, block_id: str | None) -> dict[str, Any]:
        message = self.workspace.message(channel_id, ts)
        for block in message.blocks:
            for item in (*block.get("elements", ()), block.get("accessory") or {}):
                if item.get("action_id") == action_id and block_id in (None, block["block_id"]):
                    now_s = self._clock()
                    action = {
                        "action_id": action_id,
                        "block_id": block["block_id"],
                        "type": item["type"],
                        "text": item.get("text"),
                    }
                    if "value" in item:
                        action["value"] = item["value"]
                    container = {"type": "message", "message_ts": ts, "channel_id": channel_id, "is_ephemeral": False}
                    if message.thread_ts:
                        container["thread_ts"] = message.thread_ts
                    return {
                        **self._payload("block_actions", user, now_s),
                        "container": container,
                        "channel": {"id": channel_id, "name": self.workspace.channel_named(channel_id).name},
                        "message": self.workspace.message_json(message),
                        "state": {"values": {}},
                        "response_url": f"{self.url}/response/{TEAM_ID}",
                        "actions": [{**action, "action_ts": f"{now_s:.6f}"}],
                    }
        raise SlackError("action_not_found")

    def _view_submission(self, held: View, user: User, values: Mapping[str, Any]) -> dict[str, Any]:
        state = {
            block: {
                action: given if isinstance(given, Mapping) else {"type": "plain_text_input", "value": given}
                for action, given in inside.items()
            }
            for block, inside in values.items()
        }
        view = {**held.view, "state": {"values": state}}
        return {**self._payload("view_submission", user, self._clock()), "view": view, "response_urls": []}

    def _payload(self, kind: str, user: User, now_s: float) -> dict[str, Any]:
        return {
            "type": kind,
            "user": {"id": user.id, "username": user.name, "name": user.name, "team_id": TEAM_ID},
            "api_app_id": APP_ID,
            "token": "deprecated-verification-token",
            "trigger_id": self.workspace.new_trigger(user.id, now_s=now_s),
            "team": {"id": TEAM_ID, "domain": "penstock"},
            "enterprise": None,
            "is_enterprise_install": False,
        }


@asynccontextmanager
async def running_slack(
    config: SlackConfig | None = None, *, port: int = 0, host: str = "127.0.0.1"
) -> AsyncIterator[SlackServer]:
    """
    A stand-in in this process while the block runs.

    Yields:
        The server: `.api_url` for the client, `.workspace.messages`, `.calls`, `.faults`, `.click(...)` for the test.
    """
    async with SlackServer(config).running(host=host, port=port) as server:
        yield server


def _application(server: SlackServer) -> web.Application:
    app = web.Application(client_max_size=_BODY_MAX, middlewares=[control_errors])

    async def page(request: web.Request) -> web.Response:
        channel = server.workspace.channel_named(request.query.get("channel", server.config.directory.channels[0].id))
        whole = request.query.get("part") != "log"
        text = channel_page(server.workspace, channel) if whole else channel_log(server.workspace, channel)
        return web.Response(text=text, content_type="text/html", headers={"cache-control": "no-store"})

    app.add_routes(
        [
            web.get("/", page),
            web.route("*", "/api/{method}", server.handle_api),
            web.get("/link/", server.socket.handle),
            *Control(server).routes(),
        ]
    )
    return app


async def _arguments(request: web.Request) -> dict[str, Any]:
    """The arguments of a call, from the query, a form or a JSON body. Raises SlackError as Slack does."""
    args: dict[str, Any] = dict(request.query)
    if request.content_type == "application/json":
        text = await request.text()
        try:
            body = json.loads(text) if text else {}
        except ValueError as exc:
            raise SlackError("invalid_json") from exc
        if not isinstance(body, dict):
            raise SlackError("json_not_object")
        # Slack reads a token in a JSON body nowhere.
        return {**args, **{k: v for k, v in body.items() if k != "token"}}
    return {**args, **{k: v for k, v in (await request.post()).items() if isinstance(v, str)}}


def _refusal(exc: SlackError) -> web.Response:
    return web.json_response({"ok": False, "error": exc.code, **exc.more})


def _rate_limited(retry_after_s: int) -> web.Response:
    return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers={"retry-after": str(retry_after_s)})


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status (2: wrong usage, 1: the address cannot be used)."""
    parser = argparse.ArgumentParser(prog="python -m bench.slack", description="A Slack stand-in for tests and demos.")
    parser.add_argument(
        "--listen", default="127.0.0.1:9200", metavar="HOST:PORT", help="default: %(default)s; port 0 chooses one"
    )
    parser.add_argument("--interactivity-url", metavar="URL", help="deliver clicks there by signed HTTP, not over Socket Mode")
    parser.add_argument("--signing-secret", default=SlackConfig().signing_secret, metavar="TEXT", help="default: %(default)s")
    parser.add_argument("--no-rate-limits", action="store_true", help="never answer 429 by itself")
    args = parser.parse_args(argv)
    limits = RateLimits(post_per_s=0, tiers=False) if args.no_rate_limits else RateLimits()
    config = SlackConfig(signing_secret=args.signing_secret, interactivity_url=args.interactivity_url, limits=limits)

    async def serve(host: str, port: int) -> None:
        async with running_slack(config, host=host, port=port) as server:
            say(f"Slack stand-in on {server.url}/ (Web API: {server.api_url}, control: {server.url}/control/messages)")
            await until_signalled()

    try:
        host, port = parse_address(args.listen)
    except AddressError as exc:
        parser.error(str(exc))
    try:
        asyncio.run(serve(host, port))
    except AddressError as exc:
        say(f"bench.slack: {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
