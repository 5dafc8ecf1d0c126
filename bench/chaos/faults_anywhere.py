"""
Death and refusal at places that nobody named: any line of the product, any statement or commit, any moment of a session.

It stands beside `faults_crash`, whose points lie where the author thought of them. Its one rule: chance chooses the place, not the code.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import controller
from bench.chaos.fault import Trial, fault
from bench.chaos.faults_crash import story
from bench.chaos.faults_postgres import under_load
from bench.chaos.process import Died, Refused
from bench.chaos.target import Truth
from bench.chaos.world import World
from controller.adapters.postgres.connect import connect

LINES = (300, 30_000)
"""Of the product's own code; a whole story has about so many."""

_OWN = str(Path(next(iter(controller.__path__))))


def count_lines() -> None:
    """A prelude: the process dies before it runs its n-th line of the product."""
    left = int(os.environ["CHAOS_DIES_AT_LINE"])

    def line(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left == 0:
            os.write(2, f"died before {frame.f_code.co_filename}:{frame.f_lineno}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, _event: str, _arg: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(_OWN) else None

    threading.settrace(call)
    sys.settrace(call)


@fault("kill -9 before any line", group="crash", quick=2, full=50)
def any_line(world: World, rng: Random) -> Trial:
    for _ in range(rng.randint(1, 3)):
        nth = int(math.exp(rng.uniform(*map(math.log, LINES))))
        worker = world.controller(prelude="bench.chaos.faults_anywhere:count_lines", CHAOS_DIES_AT_LINE=str(nth))
        with suppress(Died):
            story(world, worker)
        world.note(f"line {nth}: {'not reached' if worker.alive else 'died'}")
        world.rollouts = world.opened()
        world.restarted()
    if rng.random() < 0.5 and world.rollouts:
        world.turn(Truth.ALARM)
    return world.finish(world.recover(check_gates=rng.random() < 0.7))


# --- refused by the database ----------------------------------------------------------------------------------------------------

STATES = (
    "40001",
    "40P01",
    "55P03",
    "57014",
    "25P02",
    "53100",
    "53200",
    "53300",
    "57P01",
    "XX000",
    "23505",
    "22P02",
    "42501",
    "25006",
)
"""Serialization, deadlock, lock, cancel, aborted, disk, memory, connections, shutdown, internal, unique, text, rights, read-only."""

TABLES = ("audit", "audit_evidence", "flags", "flag_history", "flag_holds", "outbox", "heartbeats")


@fault("postgres: any error at any statement or commit", group="postgres", quick=2, full=50)
def any_error(world: World, rng: Random) -> Trial:
    worker = world.controller()
    rollout_id = world.start(worker)
    ends = [
        refusing(
            world, table, at=rng.choice(("statement", "commit")), state=rng.choice(STATES), share=rng.choice((0.3, 0.6, 1.0))
        )
        for table in rng.sample(TABLES, rng.randint(1, 3))
    ]
    turns = rng.randint(2, 9)
    try:
        for n in range(14):
            if n == turns:
                world.turn(Truth.ALARM, rollout_id)
            ended = world.look(worker, rollout_id, may_raise=rng.random() < 0.6)["ended"]
            with suppress(Refused):
                worker.call("deliver")
            if ended:
                break
            time.sleep(0.1)
    finally:
        for end in ends:
            end()
    return world.finish(world.recover(worker))


def refusing(world: World, table: str, *, at: str, state: str, share: float) -> Callable[[], None]:
    """A share of the writes of a table fail; returns what ends it."""
    name = f"any_{table}"
    world.sql(
        f"CREATE FUNCTION penstock.{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF random() < {share} THEN "
        f"RAISE EXCEPTION 'out of order' USING ERRCODE = '{state}'; END IF; RETURN NEW; END $$"
    )
    when = ("CONSTRAINT TRIGGER", "AFTER", "DEFERRABLE INITIALLY DEFERRED") if at == "commit" else ("TRIGGER", "BEFORE", "")
    world.sql(
        f"CREATE {when[0]} {name} {when[1]} INSERT OR UPDATE ON penstock.{table} {when[2]} "
        f"FOR EACH ROW EXECUTE FUNCTION penstock.{name}()"
    )
    world.note(f"{table} answers {state} at {at}, {share:.0%}")
    return lambda: void(world.sql(f"DROP TRIGGER {name} ON penstock.{table}; DROP FUNCTION penstock.{name}"))


def void(_: object) -> None:
    """For a statement whose rows nobody wants."""


# --- sessions -------------------------------------------------------------------------------------------------------------------

_PIDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'penstock_app'"


@fault("postgres: sessions ended at any moment", group="postgres", quick=0, full=25)
def sessions_ended(world: World, rng: Random) -> Trial:
    def end_some() -> None:
        until_s = time.monotonic() + 4
        while time.monotonic() < until_s:
            if pids := [r["pid"] for r in world.sql(_PIDS)]:
                world.sql(f"SELECT pg_{rng.choice(('terminate', 'cancel'))}_backend(%s)", rng.choice(pids))
            time.sleep(rng.uniform(0, 0.08))

    return under_load(world, rng, end_some)


def _database_says(name: str, setting: str, usual: str) -> None:
    """Sessions that begin meanwhile find the database so, and may outlive it."""

    @fault(f"postgres: {name} for a while", group="postgres", quick=0, full=25)
    def run(world: World, rng: Random) -> Trial:
        database = world.sql("SELECT current_database() AS name")[0]["name"]

        def say() -> None:
            world.sql(f"ALTER DATABASE {database} {setting}")
            try:
                world.sql(f"SELECT pg_terminate_backend(pid) FROM ({_PIDS}) AS s")
                world.note(name)
                time.sleep(4)
            finally:
                with connect(world.owner_url) as connection:
                    connection.execute(b"SET default_transaction_read_only = off")
                    connection.execute(f"ALTER DATABASE {database} {usual}".encode())

        return under_load(world, rng, say)


_database_says("read-only", "SET default_transaction_read_only = on", "RESET default_transaction_read_only")
_database_says("no connection left", "CONNECTION LIMIT 1", "CONNECTION LIMIT -1")
