"""
Runs an ASGI application under uvicorn: in this process for tests and the demo, or as a program of its own.

Its one rule: the kernel chooses the port and the address is known before the first request, so that nothing races for ports.
"""

import asyncio
import contextlib
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bench.cli import say

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TRANSPORT = "bench.transport"


class AddressError(ValueError):
    """A `--listen` address that cannot be used; the message says why."""


@asynccontextmanager
async def running_app(app: App, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """
    Serve the application while the block runs.

    Yields:
        Base address without a slash at the end (`http://127.0.0.1:41234`).

    Raises:
        AddressError: the address is taken or not of this machine.
    """
    listener = listen(host, port)
    server = _Server(_config(app))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        if task.done():
            await task
            raise AddressError(f"{host}:{port}: the server ended before it served")
        yield address_of(listener)
    finally:
        server.should_exit = server.force_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await task
        listener.close()


def run_app(app: App, *, host: str, port: int, announce: Callable[[str], str]) -> None:
    """Serve until SIGINT or SIGTERM; `announce` turns the address into the line that stderr shows first. Raises AddressError."""

    async def main() -> None:
        async with running_app(app, host=host, port=port) as url:
            say(announce(url))
            await until_signalled()

    with uvloop_runner() as runner:
        runner.run(main())


def uvloop_runner() -> "asyncio.Runner":
    """An event loop runner on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def until_signalled() -> None:
    """Wait for SIGINT or SIGTERM."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    await asked.wait()


def reset_connection(scope: Scope) -> None:
    """Close the connection of a request with RST, as a crashed peer does."""
    reset_transport(scope[_TRANSPORT])


def close_connection(scope: Scope) -> None:
    """Close the connection of a request without another word."""
    scope[_TRANSPORT].close()


def reset_transport(transport: asyncio.Transport) -> None:
    """Close a transport with RST: zero linger time makes the kernel drop the connection instead of ending it (tcp(7))."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` as two values. Raises AddressError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise AddressError(f"{text!r} is not an address; write host:port, such as 127.0.0.1:9100")
    return host.strip("[]"), int(port)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises AddressError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as exc:
        problem = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise AddressError(f"cannot listen on {host}:{port}: {problem}") from exc


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to the program around us (a test, the demo), not to one of its servers.
        yield


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which also shows an application its transport: ASGI has no word for a reset."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[_TRANSPORT] = self.transport


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="critical",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
