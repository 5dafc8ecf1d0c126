"""The commands that run until they are stopped: up, serve, guard, router; and the demo."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from controller.settings import Settings, SettingsError, load
from specfile import parse_duration


def up(
    *,
    router: Annotated[Path | None, Parameter(help="Run a router with this router.yaml as well")] = None,
    prefect: Annotated[bool, Parameter(help="Run Prefect's server and the flows")] = True,
) -> int:
    """
    Start everything on this machine and stay until Ctrl-C: Postgres, Prometheus, Prefect, the flag door, the guard.

    A service whose address is in the environment (PENSTOCK_DATABASE_URL, PENSTOCK_PROMETHEUS_URL, PREFECT_API_URL) is used and not
    started.
    """
    from controller.cli.up import up as run

    return run(load(), router=router, prefect=prefect)


def demo(
    *,
    scenario: Annotated[Literal["good", "slow", "errors", "silent", "all"], Parameter(help="Which candidate to watch")] = "all",
    seed: Annotated[int, Parameter(help="Of users, traffic and the simulated provider")] = 1,
    trace: Annotated[
        Path | None, Parameter(help="Arrivals to replay: a CSV with TIMESTAMP,ContextTokens,GeneratedTokens")
    ] = None,
    speed: Annotated[float | None, Parameter(help="How many times faster than it happened")] = None,
    keep: Annotated[bool, Parameter(help="Keep everything running afterwards, to look around")] = False,
    home: Annotated[Path | None, Parameter(help="Where the demo keeps its data")] = None,
    output: Annotated[Literal["live", "json"], Parameter(name=["--output", "-o"])] = "live",
) -> int:
    """Watch rollouts end to end on real parts: a good candidate, a slow one, a failing one, a silent one. Needs nothing running."""
    from controller.cli.demo import run_demo

    return run_demo(scenario, seed=seed, trace=trace, speed=speed, output=output, keep=keep, home=home)


def router(
    *,
    config: Annotated[Path, Parameter(help="The router.yaml")],
    listen: str | None = None,
    workers: Annotated[int, Parameter(help="Processes that serve; they share limits, breakers and budgets")] = 1,
) -> int:
    """The model router, the data plane: OpenAI-compatible, obeys flags, needs neither database nor Prefect."""
    # This process becomes the router; it does not import it: the planes do not know each other.
    more = (*(("--listen", listen) if listen else ()), *(("--workers", str(workers)) if workers != 1 else ()))
    os.execv(sys.executable, [sys.executable, "-m", "router", "--config", str(config), *more])


def serve(*, listen: Annotated[str | None, Parameter(help="host:port; default: PENSTOCK_LISTEN")] = None) -> int:
    """The HTTP door: flags for routers at /flags/v1, /healthz, /readyz and /metrics."""
    from controller.console.app import run

    settings = load()
    return run(settings, listen or settings.listen)


def guard(
    *,
    every: Annotated[
        str | None, Parameter(help="Time between looks, such as 15s; default: the shortest guard_every of the plans")
    ] = None,
    mail: Annotated[bool, Parameter(help="Deliver notices as well")] = True,
    listen: Annotated[
        str | None, Parameter(help="host:port of /healthz, /readyz, /metrics; default: PENSTOCK_GUARD_LISTEN; off: nowhere")
    ] = None,
) -> int:
    """Look at every active rollout every few seconds and lower at a breach; deliver notices beside it."""
    from controller import guard as loop
    from controller.wiring import open_controller

    pause: timedelta | None = None
    if every is not None:
        try:
            pause = parse_duration(every)
        except ValueError as exc:
            raise SettingsError(f"--every: {exc}") from exc
        if not timedelta(0) < pause <= timedelta(days=1):
            raise SettingsError(f"--every: {every!r} is not within 0s..1d (0s excluded)")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = load()
    if listen is not None:
        settings = replace(settings, guard_listen=None if listen == "off" else listen)
    with open_controller(settings) as controller, _health(settings):
        postman = None
        if mail:
            postman = threading.Thread(
                target=loop.mail, args=(controller.outbox, controller.notifier, stop), name="mail", daemon=True
            )
            postman.start()
        loop.guard(controller.ports, pause, stop)
        if postman is not None:
            postman.join(timeout=10)
    return 0


@contextmanager
def _health(settings: Settings) -> Iterator[None]:
    """The guard's own health and metrics. An address that is taken costs them, and never the guard."""
    if settings.guard_listen is None:
        yield
        return
    import structlog

    from controller import metrics
    from controller.console.health import Check, beating, bind, serve_beside
    from controller.wiring import open_flags, open_watch

    try:
        bound = bind(settings.guard_listen, what="PENSTOCK_GUARD_LISTEN")
    except SettingsError as exc:
        structlog.get_logger("penstock.guard").error("guard_without_metrics", error=str(exc))
        yield
        return
    with open_flags(settings) as store, open_watch(settings) as watch:
        assert watch is not None, "a controller has a database"
        checks: dict[str, Check] = {
            "database": watch.database,
            "flags": lambda: f"readable at {store.now():%H:%M:%S} UTC",
            "guard": beating(metrics.last_round_age_s),
        }
        stop = serve_beside(bound, checks, [metrics.REGISTRY])
        try:
            yield
        finally:
            stop()
