"""
`penstock up`: everything on one machine, in one command, until Ctrl-C.

Its one rule: it prints where things are only once they answer, and leaves nothing behind when it ends.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.cli.parts import Program
from controller.cli.stack import Stack, StackError, StackPlan
from controller.settings import Settings
from specfile import SpecError, load

CONSOLE_PORT, ROUTER_PORT, PREFECT_PORT, PROMETHEUS_PORT = 8420, 8421, 4200, 9090
"""What docs and examples say. The first two are settings (PENSTOCK_LISTEN, `listen` in router.yaml)."""


def up(
    settings: Settings,
    *,
    router: Path | None = None,
    prefect: bool = True,
    prefect_port: int = PREFECT_PORT,
    prometheus_port: int = PROMETHEUS_PORT,
    environ: Mapping[str, str] = os.environ,
    stop: threading.Event | None = None,
) -> int:
    """
    Run until interrupted.

    Args:
        settings: Services that they name are used and not started.
        router: A router.yaml; with it a router runs as well.
        prefect: Without it nothing is checked on a schedule but by `penstock guard` (which only lowers) and `penstock tick`.
        prefect_port: Of Prefect's server on loopback.
        prometheus_port: Of Prometheus on loopback.
        environ: What the parts inherit.
        stop: Ends it as Ctrl-C does.

    Returns:
        0 when it was told to stop, 1 when it could not start.
    """
    stop = stop or threading.Event()
    try:
        address = None if router is None else _listen_of(router)
        plan = StackPlan(
            prefect=prefect,
            prefect_port=prefect_port,
            prometheus_port=prometheus_port,
            # Without a router of ours there is one somewhere else, on the port that the docs name.
            scrape={"router": (address or f"127.0.0.1:{ROUTER_PORT}",)},
            listens={} if address is None else {f"the router (listen in {router})": address},
            routers=() if router is None else (_router_program(router, str(address)),),
        )
        if address is not None and settings.router_url is None:
            settings = replace(settings, router_url=f"http://{address}")
        stack = Stack(settings, plan, environ=environ, say=_say)
        _say(f"starting (home {settings.home})")
        with _signals(stop), stack:
            _print_table(stack, address)
            _say("ready; Ctrl-C stops everything")
            while not stop.wait(1.0):
                pass
            _say("stopping")
    except SpecError as exc:
        _say(str(exc))
        return 1
    except StackError as exc:
        _say(f"penstock up: {exc}")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


class _signals:
    """SIGTERM and SIGINT become a stop: while it starts as KeyboardInterrupt, so that waiting ends at once; later as the event."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._heard)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            return  # a second Ctrl-C must not cut short the stopping
        self._stop.set()
        raise KeyboardInterrupt


def _listen_of(router: Path) -> str:
    """`host:port` of a router.yaml; everything else in it is the router's to judge."""
    listen = load(router, name=str(router)).data.get("listen", f"127.0.0.1:{ROUTER_PORT}")
    if not isinstance(listen, str) or not listen.rpartition(":")[2].isdecimal():
        raise StackError(f"{router}: listen: {listen!r} is not host:port")
    return listen


def _router_program(config: Path, address: str) -> Program:
    argv = ("controller.cli.app", "router", "--config", str(config.absolute()))
    return Program(name="router", argv=argv, ready_url=f"http://{address}/readyz")


def _print_table(stack: Stack, router: str | None) -> None:
    settings = stack.settings
    found = {"console": f"http://{settings.listen}"}
    if stack.console_login:
        found["console login"] = stack.console_login
    if router is not None:
        found["router"] = f"http://{router}/v1"
    if settings.prefect_api_url is not None:
        found["Prefect"] = settings.prefect_api_url.removesuffix("/api")
    found |= {"Prometheus": str(settings.prometheus_url), "logs": str(settings.home / "logs")}
    with suppress(OSError):  # output that nobody takes is no reason to stop everything
        Console(highlight=False, soft_wrap=True).print(address_table(found))


def address_table(found: Mapping[str, str]) -> Table:
    """What is where."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, address in found.items():
        table.add_row(Text(name, style="bold"), Text(address))
    return table


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
