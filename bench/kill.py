"""
How long a kill takes from the flag store to every router.

    python -m bench.kill [--routers 20] [--listeners 980] [--rounds 10] [-o json]

A real Postgres, `penstock serve` and that many router processes that follow it; beside them listeners, which only hold a stream of flags
open, as further routers would. Each round a flag is raised and killed over HTTP; the time is counted from the moment that the request is sent to
what each router writes into its log when it obeys (the same machine's clock), and to the byte that each listener gets. Its one rule: what is
late is counted, and what never comes ends the run with 1.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from bench.cli import emit, say
from services.ports import free_port
from services.process import ChildProcess, http_ready

LATE_S = 30.0

ROUTER = """\
apiVersion: penstock/v1
kind: Router
listen: 127.0.0.1:0
environment: production
flags: {{source: "{door}/flags/v1"}}
providers: [{{name: p, base_url: "http://127.0.0.1:9/v1"}}]
models: [{{name: old, provider: p}}, {{name: new, provider: p}}]
routes: [{{name: chat, match: {{model: [chat]}}, flag: chat-model, default: old}}]
"""


class Late(Exception):
    """Somebody has not heard of a kill; says who."""


@contextmanager
def door(home: Path) -> Iterator[tuple[str, Any, int]]:
    """`penstock serve` on a Postgres of its own: its address, the flag store behind it, its process id."""
    from controller.adapters.postgres import PostgresFlags, app_url, open_engine
    from controller.adapters.postgres.connect import create_database
    from controller.adapters.postgres.migrate import upgrade
    from services.postgres import EmbeddedPostgres

    with EmbeddedPostgres(home / "data", durable=False) as server:
        url = create_database(server.url, "penstock")
        upgrade(url)
        engine = open_engine(app_url(url))
        environ = {**os.environ, "PENSTOCK_DATABASE_URL": app_url(url), "PENSTOCK_HOME": str(home / "home")}
        address = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "controller.cli.app", "serve", "--listen", address.removeprefix("http://")]
        process = ChildProcess(command, log_path=home / "serve.log", name="serve", env=environ)
        try:
            process.wait_ready(http_ready(f"{address}/healthz"), timeout_s=LATE_S)
            yield address, PostgresFlags(engine), process.pid
        finally:
            process.stop()
            engine.dispose()


def _said(log: Path, what: str) -> str:
    """The address in a process's log, once it is there."""
    until = time.monotonic() + LATE_S
    while time.monotonic() < until:
        for word in log.read_text(errors="replace").replace('"', " ").split():
            if word.startswith(what):
                return word.rstrip("/,")
        time.sleep(0.05)
    raise Late(f"{log.name} does not say where it listens: {log.read_text(errors='replace')[-300:]}")


@contextmanager
def routers(home: Path, address: str, count: int) -> Iterator[list[Path]]:
    """That many routers; their logs."""
    config = home / "router.yaml"
    config.write_text(ROUTER.format(door=address))
    logs = [home / f"router-{i}.log" for i in range(count)]
    with ExitStack() as running:
        for path in logs:
            log = running.enter_context(path.open("w"))
            process = subprocess.Popen([sys.executable, "-m", "router", "--config", str(config)], stderr=log)
            running.callback(process.wait)
            running.callback(process.terminate)
        for path in logs:
            _said(path, "http://127.0.0.1")
        yield logs


def applied(log: Path, version: int) -> float | None:
    """When a router obeyed a version of the flag, in seconds since the epoch."""
    for line in log.read_text().splitlines():
        if f'"version":{version},' in line and '"event":"flag_applied"' in line:
            return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
    return None


class Listeners:
    """Streams of flags that are only read; `heard` has when each saw the word `killed` come true last."""

    def __init__(self, address: str, count: int) -> None:
        self._url, self._count = f"{address}/flags/v1/events?environment=production", count
        self.heard: list[float] = [0.0] * count
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_read=60)
        )
        ready = [asyncio.Event() for _ in range(self._count)]
        self._tasks = [asyncio.create_task(self._listen(i, ready[i])) for i in range(self._count)]
        await asyncio.gather(*(asyncio.wait_for(r.wait(), 60) for r in ready))

    async def _listen(self, index: int, ready: asyncio.Event) -> None:
        async with self._http.get(self._url) as stream:
            async for line in stream.content:
                ready.set()
                if b'"killed": true' in line or b'"killed":true' in line:
                    self.heard[index] = time.time()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()


async def measure(address: str, store: Any, logs: Sequence[Path], listeners: Listeners, rounds: int) -> dict[str, list[float]]:
    """Seconds from the request to each router and each listener, of all rounds."""
    from controller.ports import FlagChange
    from flagspec import Variant

    change = FlagChange(
        environment="production",
        key="chat-model",
        control=Variant(model="old"),
        candidate=Variant(model="new"),
        salt="s",
        unit="user",
        weight=50_000,
        shadow_weight=0,
        decision_id="bench.1.advance",
    )
    found: dict[str, list[float]] = {"answer": [], "routers": [], "listeners": []}
    version = 0
    await listeners.open()
    try:
        async with aiohttp.ClientSession() as http:
            for number in range(rounds):
                raised = store.write(replace(change, decision_id=f"bench.{number}.advance"), version)
                await _all_applied(logs, raised.version)
                await asyncio.sleep(0.3)
                began = time.time()
                body = {"actor": "bench", "reason": "measured"}
                async with http.post(f"{address}/flags/v1/production/chat-model/kill", json=body) as answer:
                    killed = await answer.json()
                    assert answer.status == 200, killed
                found["answer"].append(time.time() - began)
                version = killed["version"]
                found["routers"] += [at - began for at in await _all_applied(logs, version)]
                until = time.monotonic() + LATE_S
                while min(listeners.heard, default=began) < began:
                    if time.monotonic() > until:
                        raise Late(f"{sum(h < began for h in listeners.heard)} listeners have not heard of kill {number}")
                    await asyncio.sleep(0.01)
                found["listeners"] += [at - began for at in listeners.heard]
                async with http.post(
                    f"{address}/flags/v1/production/chat-model/unkill", json={**body, "version": version}
                ) as answer:
                    version = (await answer.json())["version"]
    finally:
        await listeners.close()
    return found


async def _all_applied(logs: Sequence[Path], version: int) -> list[float]:
    until = time.monotonic() + LATE_S
    while any((at := applied(log, version)) is None for log in logs):
        if time.monotonic() > until:
            late = [log.name for log in logs if applied(log, version) is None]
            raise Late(f"version {version} has not reached {', '.join(late)}")
        await asyncio.sleep(0.02)
    return [at for log in logs if (at := applied(log, version)) is not None]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _line(name: str, values: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(values)
    if not ordered:
        return {"to": name, "times": 0}
    return {
        "to": name,
        "times": len(ordered),
        "median_s": round(median(ordered), 4),
        "p99_s": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 4),
        "longest_s": round(ordered[-1], 4),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 when a kill did not reach somebody."""
    parser = argparse.ArgumentParser(prog="python -m bench.kill", description="How long a kill takes to every router.")
    parser.add_argument("--routers", type=int, default=20)
    parser.add_argument("--listeners", type=int, default=980)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * args.listeners + 1024)), hard))
    # As root the embedded server runs under another account, which must be able to enter the folder.
    with tempfile.TemporaryDirectory(prefix="penstock-kill-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        home.chmod(0o755)
        with door(home) as (address, store, pid), routers(home, address, args.routers) as logs:
            say(f"{args.routers} routers and {args.listeners} listeners follow {address}")
            before = _cpu_s(pid)
            try:
                found = asyncio.run(measure(address, store, logs, Listeners(address, args.listeners), args.rounds))
            except Late as exc:
                say(str(exc))
                return 1
            cpu = _cpu_s(pid) - before
    rows = [_line(name, values) for name, values in found.items()]
    if args.output == "json":
        emit(json.dumps({"rows": rows, "door_cpu_s": round(cpu, 2), "rounds": args.rounds}))
        return 0
    for row in rows:
        emit("  ".join(f"{k} {v}" for k, v in row.items()))
    emit(f"the door used {cpu:.2f} s of CPU for {args.rounds} rounds, with {args.routers + args.listeners} readers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
