"""
The controller's HTTP door: the web console, flags for routers, the API, Alertmanager's hook, whether it is well, and its metrics.

Its one rule: it binds before it says that it listens, and a database that is down makes it not ready, never dead.
"""

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount

from controller.adapters.slack.desk import SlackDesk
from controller.console import alertmanager, flags_hub
from controller.console.api.app import PREFIX, create_api
from controller.console.api.calls import Door
from controller.console.flags_door import Admit, routes
from controller.console.flags_hub import FlagHub
from controller.console.health import CensusCollector, Check, beating, bind, health_routes
from controller.console.slack_door import SlackDoor, socket
from controller.console.slack_door import route as slack_route
from controller.console.web.app import create_web
from controller.core.people import Right
from controller.people import PeopleFile
from controller.ports import FlagUnavailable
from controller.settings import Settings
from controller.wiring import Api, open_api, open_flag_source, open_people, open_watch


def create_app(
    hub: FlagHub,
    checks: Mapping[str, Check] | None = None,
    registries: Sequence[CollectorRegistry] = (),
    *,
    api: Api | None = None,
    people: PeopleFile | None = None,
    slack: SlackDoor | None = None,
) -> Starlette:
    """
    The application over a hub; the hub runs as long as the application does.

    Args:
        hub: Of the flags.
        checks: Beside that of the flags, for `/readyz`.
        registries: For `/metrics`.
        api: Of the HTTP API, Alertmanager's door and the web console; None for none of them.
        people: Who may kill at the flag door; None takes the caller's word.
        slack: Takes clicks that Slack sends over signed HTTP, where the settings have a signing secret.
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
    known = [*routes(hub, None if people is None else _admit(people)), *health_routes(parts, registries)]
    if api is not None:
        known += [Mount(PREFIX, create_api(api)), alertmanager.route(api, api.settings.alertmanager_token)]
        if slack is not None and api.settings.slack_signing_secret:
            known.append(slack_route(slack, api.settings.slack_signing_secret))
    app = Starlette(routes=known, lifespan=lifespan)
    if api is not None:
        # Not a route: one at / would answer 404 where a route of ours answers 405 for another method.
        app.router.default = create_web(api)
    return app


def _admit(people: PeopleFile) -> Admit:
    door = Door(people)
    return lambda request, killed: door.admit(request, Right.KILL if killed else Right.UNKILL).name


@contextlib.contextmanager
def _slack(settings: Settings, api: Api | None) -> Iterator[SlackDoor | None]:
    """Slack's door, listening by Socket Mode where there is an app-level token; None where nobody could click."""
    if api is None or not settings.slack_clicks:
        yield None
        return
    desk = SlackDesk(settings.slack_token, base_url=settings.slack_api_url)
    door = SlackDoor(api.ports, api.people, desk)
    if not settings.slack_app_token:
        yield door
        return
    with socket(door, settings.slack_app_token, desk):
        yield door


def run(settings: Settings, listen: str) -> int:
    """
    Serve until stopped.

    Args:
        settings: Where the databases are.
        listen: ``host:port``.

    Raises:
        SettingsError: no database, or an address that cannot be listened on.
    """
    with (
        open_flag_source(settings) as (source, switch),
        open_watch(settings) as watch,
        open_api(settings) as api,
        _slack(settings, api) as slack,
    ):
        hub = FlagHub(source, switch)
        bound = bind(listen)
        registry = CollectorRegistry()
        checks: dict[str, Check] = {}
        if watch is not None:
            registry.register(CensusCollector(watch.census))
            checks = {"database": watch.database, "guard": beating(watch.guard_age_s)}
        app = create_app(hub, checks, [registry, flags_hub.REGISTRY], api=api, people=open_people(settings), slack=slack)
        config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=3)
        host, port = bound.getsockname()[:2]
        sys.stderr.write(f"penstock serve listening on http://{listen.rpartition(':')[0] or host}:{port}\n")
        sys.stderr.flush()
        uvicorn.Server(config).run(sockets=[bound])
    return 0
