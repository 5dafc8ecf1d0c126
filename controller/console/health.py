"""
Whether the controller is well, over HTTP: `/healthz`, `/readyz` and `/metrics`, for `penstock serve` and for the guard.

It stands beside the flag door. Its one rule: whoever is not well says which part it is; a part that is down makes a process not ready,
never dead.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from controller.adapters.postgres.census import Census
from controller.ports import PortError
from controller.settings import SettingsError

log = structlog.get_logger("penstock.health")

SILENT_S = 60.0
"""A guard whose loop has not come round for so long is not looking."""

Check = Callable[[], str]
"""Says in a few words what it found; raises PortError when that is not well."""


def health_routes(checks: Mapping[str, Check], registries: Sequence[CollectorRegistry]) -> list[BaseRoute]:
    """
    Args:
        checks: By the name of the part; ``/readyz`` asks all of them, ``/readyz/NAME`` one.
        registries: What ``/metrics`` shows, one after the other.
    """

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        only = request.path_params.get("part")
        if only is not None and only not in checks:
            return JSONResponse({"status": "unknown", "parts": sorted(checks)}, 404)
        asked = checks if only is None else {only: checks[only]}
        found = await asyncio.to_thread(lambda: {name: _found(check) for name, check in asked.items()})
        down = {name: part["seen"] for name, part in found.items() if not part["ok"]}
        body: dict[str, object] = {"status": "down" if down else "ok", "parts": found}
        if down:
            body["reason"] = "; ".join(f"{name}: {text}" for name, text in down.items())
        return JSONResponse(body, 503 if down else 200)

    async def metrics(_: Request) -> Response:
        page = await asyncio.to_thread(lambda: b"".join(generate_latest(r) for r in registries))
        return Response(page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/readyz/{part}", readyz),
        Route("/metrics", metrics),
    ]


def _found(check: Check) -> dict[str, object]:
    try:
        return {"ok": True, "seen": check()}
    except PortError as exc:
        return {"ok": False, "seen": str(exc)}
    except Exception as exc:  # whatever it is, the part is not well, and the others are still asked
        return {"ok": False, "seen": f"{type(exc).__name__}: {exc}"}


class CensusCollector(Collector):
    """The numbers of the database, for Prometheus. A database that cannot be read is told by `penstock_database_up` 0."""

    def __init__(self, census: Census) -> None:
        self._census = census

    def collect(self) -> Iterator[Metric]:
        census = self._census
        up = GaugeMetricFamily("penstock_database_up", "1 when the controller's database could be read for this page.")
        try:
            census.read_on()
            moment = census.moment()
        except PortError as exc:
            log.warning("metrics_without_database", error=str(exc))
            up.add_metric([], 0.0)
            yield up
            return
        up.add_metric([], 1.0)
        yield up
        for name, text, value in (
            ("penstock_rollouts_active", "Rollouts that hold a flag.", moment.active),
            ("penstock_gate_checks_failing", "Rollouts at which the last gate check could not look.", moment.unchecked),
            ("penstock_outbox_waiting", "Notices that are not delivered yet.", moment.waiting),
            ("penstock_outbox_oldest_age_seconds", "Age of the oldest notice that is not delivered yet.", moment.oldest_s),
            ("penstock_outbox_refused", "Notices that will never be delivered.", moment.refused),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        beats = GaugeMetricFamily("penstock_heartbeat_age_seconds", "Time since a looker was last alive.", labels=["who"])
        for who, seconds in sorted(moment.beats.items()):
            beats.add_metric([who], seconds)
        yield beats
        decisions = CounterMetricFamily("penstock_decisions", "Decisions in the audit log.", labels=["source", "decision"])
        for key, count in sorted(census.decisions.items()):
            decisions.add_metric(list(key), count)
        yield decisions
        verdicts = CounterMetricFamily("penstock_recorded_verdicts", "Verdicts in the audit log.", labels=["source", "verdict"])
        for key, count in sorted(census.verdicts.items()):
            verdicts.add_metric(list(key), count)
        yield verdicts
        took = HistogramMetricFamily(
            "penstock_rollout_duration_seconds", "From the start of a rollout to its end.", labels=["outcome"]
        )
        for outcome, durations in census.durations.items():
            took.add_metric([outcome], buckets=list(durations.buckets()), sum_value=durations.sum_s)
        yield took


def bind(listen: str, *, what: str = "listen") -> socket.socket:
    """
    Args:
        listen: ``host:port``.
        what: The setting, for messages.

    Raises:
        SettingsError: it is no address, or cannot be listened on.
    """
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SettingsError(f"{what}: {listen!r} is not an address to listen on (write 127.0.0.1:8420)")
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:
        raise SettingsError(f"cannot listen on {listen}: {exc.strerror or exc}; is another penstock running?") from exc


def serve_beside(
    bound: socket.socket, checks: Mapping[str, Check], registries: Sequence[CollectorRegistry]
) -> Callable[[], None]:
    """
    Serve health and metrics on a thread of their own.

    Args:
        bound: Listens already.
        checks, registries: As `health_routes`.

    Returns:
        What ends it.
    """
    app = Starlette(routes=health_routes(checks, registries))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="health", daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(timeout=5)

    return stop


def beating(age_s: Callable[[], float | None]) -> Check:
    """
    A check of the guard's loop.

    Args:
        age_s: Seconds since it last came round; None for never.
    """

    def check() -> str:
        age = age_s()
        if age is None:
            raise PortError("the guard has never looked")
        if age > SILENT_S:
            raise PortError(f"the guard has not looked for {age:.0f} s")
        return f"looked {max(age, 0.0):.0f} s ago"

    return check
