"""
What stands before every request: how large a body may be, how many requests are worked on at once, and how often a token may be wrong.

Its one rule: a limit never stands between a person with a right token and the kill of a flag.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.console.api.problems import Refused, answer

BODY_MAX_BYTES = 65_536
"""Ten times the largest example of a plan; reading YAML takes time."""

AT_ONCE = 16
WAITING_MAX = 200

BAD_TOKENS = 10
BAD_TOKENS_WINDOW_S = 60.0
ADDRESSES_MAX = 10_000

HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Shield:
    """
    An application behind limits.

    Args:
        app: What is behind.
        body_max_bytes: A larger body is refused, whether it says its length or not.
    """

    def __init__(self, app: ASGIApp, *, body_max_bytes: int = BODY_MAX_BYTES) -> None:
        self._app = app
        self._body_max_bytes = body_max_bytes
        self._slots: asyncio.Semaphore | None = None
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except Refused as exc:
            await answer(exc)(scope, receive, send)
            return
        if scope["path"].endswith("/kill"):
            await self._app(scope, _replayed(body, receive), _with_headers(send))
            return
        if self._slots is None:
            self._slots = asyncio.Semaphore(AT_ONCE)
        if self._waiting >= WAITING_MAX:
            busy = Refused(503, "busy", f"{WAITING_MAX} requests are waiting already", headers={"Retry-After": "1"})
            await answer(busy)(scope, receive, send)
            return
        self._waiting += 1
        try:
            async with self._slots:
                await self._app(scope, _replayed(body, receive), _with_headers(send))
        finally:
            self._waiting -= 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self._body_max_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > self._body_max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Refused:
        return Refused(413, "too-large", f"the body is larger than {self._body_max_bytes} bytes")


def _replayed(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sending


class BadTokens:
    """
    How many wrong tokens came from an address of late.

    A right token is never held up by the wrong ones of its neighbours: it is looked at first. The limit saves the log and the processor;
    what keeps tokens from being guessed is their 256 bits.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def wait_s(self, address: str) -> float | None:
        """Seconds until the address may try again; None while it may."""
        began, count = self._seen.get(address, (0.0, 0))
        left = began + BAD_TOKENS_WINDOW_S - self._clock()
        return left if count >= BAD_TOKENS and left > 0 else None

    def another(self, address: str) -> float | None:
        """
        Count one more.

        Returns:
            Seconds until the address may try again; None while it may.
        """
        now = self._clock()
        began, count = self._seen.pop(address, (now, 0))
        if now - began >= BAD_TOKENS_WINDOW_S:
            began, count = now, 0
        self._seen[address] = (began, count + 1)
        while len(self._seen) > ADDRESSES_MAX:
            self._seen.popitem(last=False)
        return None if count < BAD_TOKENS else began + BAD_TOKENS_WINDOW_S - now
