"""
The router as a process: reads the configuration, opens the sockets, serves until told to stop.

Its one rule: everything that can be wrong with configuration or port is said before the first request is accepted.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flagspec import FlagSpecError, Snapshot
from router import collector, logs
from router.app import RouterApp
from router.attempt import Target
from router.config import RouterConfig, read_config, split_listen
from router.connections import open_connections
from router.drills import DrillDoor
from router.engine import Engine
from router.environment import governed
from router.flags import FlagClient, FlagTable, check_snapshot, read_snapshot_file
from router.metrics import RouterMetrics
from router.pairs import PairSink
from router.redact import Redactor
from router.shared import Shared
from router.workers import Place, exposition, supervise
from specfile import SpecError

log = logs.get_logger()

BACKLOG = 2048

GARBAGE = (20_000, 20, 50)
"""Thresholds of Python's collector. With its own (700) it walks through everything that is under way again and again: 64 requests at a time cost
9 to 14 % more each than 16, and up to 7 % with these in three runs of four (bench.router_cpu, JSON)."""


def create_app(
    config: RouterConfig,
    *,
    environ: Mapping[str, str] = os.environ,
    directory: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
    pair_sinks: Sequence[PairSink] = (),
    snapshot: Snapshot | None = None,
    place: Place | None = None,
) -> RouterApp:
    """
    The ASGI application; it opens its connections in its lifespan.

    Args:
        environ: Where providers' keys, the token of drills and `router.environment`'s flags are looked up.
        directory: What a relative ``file:`` source of flags is relative to; by default the current directory.
        clock: Seconds that never run backwards, for breakers.
        pair_sinks: Beside those that the configuration names.
        snapshot: Flags that its caller knows, in place of the configuration's source.
        place: Among other workers; None for a process without others.

    Raises:
        FlagSpecError: a static snapshot cannot be used.
        ValueError: a flag of the environment cannot, or a sink of shadow pairs.
    """
    governing = governed(config, environ)
    config = governing.config
    metrics = RouterMetrics(config.environment)
    table = FlagTable(config.environment)
    targets = _targets(config, environ)
    if snapshot is not None:
        check_snapshot(snapshot, config.environment)
    static = snapshot or governing.snapshot or _static_snapshot(config, directory)
    client = None
    if config.flags is not None and static is None:
        client = FlagClient(config.flags, table, metrics)
    else:
        metrics.flag_stale.set(0)
    tracing = collector.wanted(config, environ)
    redacted = Redactor(config.redact).tree
    waited = asyncio.Event()
    sinks = _sinks(config, environ, directory, metrics, pair_sinks)
    digest_key = _digest_key(config, environ)
    store = None if place is None else Shared(place.store_path, place.index, place.count)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Engine]:
        async with (
            collector.opened(tracing, config, targets, metrics, environ, redacted) as tracer,
            open_connections() as connections,
        ):
            engine = Engine(
                config, targets, connections, table, metrics, clock=clock, sinks=sinks, digest_key=digest_key, tracer=tracer,
                store=store,
            )  # fmt: skip
            table.subscribe(engine.flags_changed)
            if static is not None:
                table.take_snapshot(static)
            if client is not None and config.flags is not None:
                client.start()
                asyncio.get_running_loop().call_later(config.flags.ready_wait.total_seconds(), waited.set)
            try:
                yield engine
            finally:
                if client is not None:
                    await client.close()
                await engine.close()

    def ready() -> bool:
        return client is None or client.first_snapshot.is_set() or waited.is_set()

    whole = None if place is None else partial(exposition, place)
    return RouterApp(config, metrics, table, lifespan, ready, DrillDoor(config.drills, environ), whole)


def run(config_path: Path, *, listen: str | None = None, workers: int = 1, place: Place | None = None) -> int:
    """
    Serve until SIGINT or SIGTERM.

    Args:
        config_path: router.yaml.
        listen: ``host:port`` in place of the file's.
        workers: Processes that serve; more than one are started from here and watched.
        place: Of this process among them, where it was started so.

    Returns:
        Exit code: 0 after a stop that was asked for; 1 when the configuration or the port cannot be used, which stderr says.
    """
    try:
        config = read_config(config_path)
        host, port = split_listen(listen or config.listen)
        if place is not None:
            config = _part_of(config, place)
        app = create_app(config, directory=config_path.parent, place=place)
        sock = _bind(host, port) if place is None else socket.socket(fileno=place.listening)
        own = None if place is None else _own_socket(place)
    except (SpecError, FlagSpecError, ValueError) as exc:
        _say(str(exc))
        return 1
    except OSError as exc:
        _say(f"cannot listen on {listen or config.listen}: {exc.strerror or exc}")
        return 1
    logs.configure(redacted=Redactor(config.redact).tree if config.redact.logs else None)
    if workers > 1:
        listening = f"penstock router listening on {_shown(sock)} ({workers} workers)"
        with sock:
            return supervise(sock, ["--config", str(config_path), *(("--listen", listen) if listen else ())], workers, listening)
    _say_what_is_missing(config, os.environ)
    if said := governed(config, os.environ).said:
        log.info("flags_in_force", **said)
    server = _Server(
        uvicorn.Config(
            app, loop="auto", http=patient(config.body_timeout.total_seconds()), ws="none", lifespan="on", access_log=False, log_level="warning",
            server_header=False, date_header=False, backlog=BACKLOG, timeout_graceful_shutdown=10,
        )
    )  # fmt: skip
    # What is loaded stays, and need not be walked.
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    # uvicorn raises the signal that stopped it once more when it is done; a stop that was asked for is no failure.
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[sock] if own is None else [sock, own])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sock.close()
    return 0 if server.started else 1


def patient(seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, which closes a connection whose request line and headers are not there in time: it waits for them forever."""

    class Patient(HttpToolsProtocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            self._arrived()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._late is None:
                self._expect(self.transport)

        def on_headers_complete(self) -> None:
            self._arrived()
            super().on_headers_complete()

        def _expect(self, transport: asyncio.Transport) -> None:
            self._late = self.loop.call_later(seconds, transport.close)

        def _arrived(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Patient


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets and len(sockets) == 1:
            _say(f"penstock router listening on {_shown(sockets[0])}")


def _shown(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _part_of(config: RouterConfig, place: Place) -> RouterConfig:
    """What one worker does of it: its share of the copies at once, and a file of pairs of its own."""
    shadow = config.shadow
    changed: dict[str, object] = {"concurrency": max(1, shadow.concurrency // place.count)}
    if shadow.pairs is not None and shadow.pairs.file is not None:
        path = Path(shadow.pairs.file.path)
        file = shadow.pairs.file.model_copy(update={"path": str(path.with_name(f"{path.stem}-{place.index}{path.suffix}"))})
        changed["pairs"] = shadow.pairs.model_copy(update={"file": file})
    return config.model_copy(update={"shadow": shadow.model_copy(update=changed)})


def _own_socket(place: Place) -> socket.socket:
    """Where the other workers and the parent reach this one by itself."""
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    own.bind(place.own_address())
    own.listen(BACKLOG)
    own.setblocking(False)
    return own


def _say(text: str) -> None:
    """To the person at the terminal; everything else is a log line."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _bind(host: str, port: int) -> socket.socket:
    """Binds here and not in uvicorn, which ends the process when the port is taken."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Listening at once makes a second process on the same port fail now.
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _targets(config: RouterConfig, environ: Mapping[str, str]) -> dict[str, Target]:
    providers = {p.name: p for p in config.providers}
    targets = {}
    for model in config.models:
        provider = providers[model.provider]
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "penstock-router"}
        headers |= provider.headers
        if provider.api_key_env and (key := environ.get(provider.api_key_env)):
            bearer = provider.api_key_header == "authorization"
            headers[provider.api_key_header] = f"Bearer {key}" if bearer else key
        first_token = model.timeout.first_token
        targets[model.name] = Target(
            model=model.name,
            upstream_name=model.upstream_name or model.name,
            provider=provider.name,
            base_url=provider.base_url,
            headers=headers,
            forward_authorization=provider.api_key_env is None,
            drop=frozenset(provider.drop),
            request_s=model.timeout.request.total_seconds(),
            stream_s=model.timeout.stream.total_seconds(),
            first_token_s=None if first_token is None else first_token.total_seconds(),
        )
    return targets


def _sinks(
    config: RouterConfig, environ: Mapping[str, str], directory: Path | None, metrics: RouterMetrics, more: Sequence[PairSink]
) -> list[tuple[str, PairSink]]:
    made = [("python", sink) for sink in more]
    if (spec := config.shadow.pairs) is not None:
        from router.sinks import make_sinks

        drain_s = config.shadow.drain.total_seconds()
        made += make_sinks(spec, environ=environ, directory=directory, drain_s=drain_s, count=metrics.pairs)
    return made


def _digest_key(config: RouterConfig, environ: Mapping[str, str]) -> bytes | None:
    pairs = config.shadow.pairs
    name = pairs.digest_key_env if pairs is not None else None
    if name is None:
        return None
    if not (key := environ.get(name, "").strip()):
        raise ValueError(
            f"shadow.pairs.digest_key_env: the variable {name} is not set, and digests without it would not be keyed"
        )
    return key.encode()


def _static_snapshot(config: RouterConfig, directory: Path | None) -> Snapshot | None:
    if config.flags is None or not config.flags.source.startswith("file:"):
        return None
    path = (directory or Path()) / config.flags.source.removeprefix("file:")
    snapshot = read_snapshot_file(path)
    check_snapshot(snapshot, config.environment)
    return snapshot


def _say_what_is_missing(config: RouterConfig, environ: Mapping[str, str]) -> None:
    for provider in config.providers:
        if provider.api_key_env and not environ.get(provider.api_key_env):
            log.warning("api_key_missing", provider=provider.name, env=provider.api_key_env)
    if config.drills and not environ.get(config.drills.token_env, "").strip():
        log.warning("drill_token_missing", env=config.drills.token_env)
    pairs = config.shadow.pairs
    if pairs and pairs.http and pairs.http.token_env and not environ.get(pairs.http.token_env):
        log.warning("pairs_token_missing", env=pairs.http.token_env)
