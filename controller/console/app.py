"""
The controller's HTTP door: flags for routers, and whether it is well.

Its one rule: it binds before it says that it listens, and a database that is down makes it not ready, never dead.
"""

import contextlib
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controller.console.flags_door import routes
from controller.console.flags_hub import FlagHub
from controller.settings import Settings, SettingsError
from controller.wiring import open_flag_source


def create_app(hub: FlagHub) -> Starlette:
    """The application over a hub; the hub runs as long as the application does."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with hub:
            yield

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        down = hub.down
        return JSONResponse(
            {"status": "ok"} if down is None else {"status": "down", "reason": down}, 200 if down is None else 503
        )

    return Starlette(routes=[*routes(hub), Route("/healthz", healthz), Route("/readyz", readyz)], lifespan=lifespan)


def run(settings: Settings, listen: str) -> int:
    """
    Serve until stopped.

    Args:
        settings: Where the database is.
        listen: ``host:port``.

    Raises:
        SettingsError: no database, or an address that cannot be listened on.
    """
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SettingsError(f"listen: {listen!r} is not an address to listen on (write 127.0.0.1:8420)")
    with open_flag_source(settings) as (source, switch):
        hub = FlagHub(source, switch)
        try:
            bound = socket.create_server((host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as exc:
            raise SettingsError(f"cannot listen on {listen}: {exc.strerror or exc}; is another penstock running?") from exc
        config = uvicorn.Config(create_app(hub), log_level="warning", lifespan="on", timeout_graceful_shutdown=3)
        sys.stderr.write(f"penstock serve listening on http://{host}:{bound.getsockname()[1]}\n")
        sys.stderr.flush()
        uvicorn.Server(config).run(sockets=[bound])
    return 0
