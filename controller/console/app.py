"""
The controller's HTTP door: flags for routers, whether it is well, and its metrics.

Its one rule: it binds before it says that it listens, and a database that is down makes it not ready, never dead.
"""

import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from controller.console.flags_door import routes
from controller.console.flags_hub import FlagHub
from controller.console.health import CensusCollector, Check, beating, bind, health_routes
from controller.ports import FlagUnavailable
from controller.settings import Settings
from controller.wiring import open_flag_source, open_watch


def create_app(
    hub: FlagHub, checks: Mapping[str, Check] | None = None, registries: Sequence[CollectorRegistry] = ()
) -> Starlette:
    """
    The application over a hub; the hub runs as long as the application does.

    Args:
        hub: Of the flags.
        checks: Beside that of the flags, for `/readyz`.
        registries: For `/metrics`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with hub:
            yield

    def flags() -> str:
        if hub.down is not None:
            raise FlagUnavailable(hub.down)
        return "readable"

    parts = {"flags": flags, **(checks or {})}
    return Starlette(routes=[*routes(hub), *health_routes(parts, registries)], lifespan=lifespan)


def run(settings: Settings, listen: str) -> int:
    """
    Serve until stopped.

    Args:
        settings: Where the databases are.
        listen: ``host:port``.

    Raises:
        SettingsError: no database, or an address that cannot be listened on.
    """
    with open_flag_source(settings) as (source, switch), open_watch(settings) as watch:
        hub = FlagHub(source, switch)
        bound = bind(listen)
        registry = CollectorRegistry()
        checks: dict[str, Check] = {}
        if watch is not None:
            registry.register(CensusCollector(watch.census))
            checks = {"database": watch.database, "guard": beating(watch.guard_age_s)}
        app = create_app(hub, checks, [registry])
        config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=3)
        host, port = bound.getsockname()[:2]
        sys.stderr.write(f"penstock serve listening on http://{listen.rpartition(':')[0] or host}:{port}\n")
        sys.stderr.flush()
        uvicorn.Server(config).run(sockets=[bound])
    return 0
