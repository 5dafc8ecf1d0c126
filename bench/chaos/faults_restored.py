"""
The flag store goes back in time: its tables are those of a backup, while the log and the routers know what came after.

Its one rule: what the store has forgotten (a rollback, a kill) is not undone by its forgetting, routers hear what is written from then on, and
what they had in force is raised by nobody but a person.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from bench.chaos.fault import Trial, Violation, fault
from bench.chaos.faults_flags import ended
from bench.chaos.faults_prometheus import HALF, at_canary
from bench.chaos.process import Worker
from bench.chaos.target import ENVIRONMENT
from bench.chaos.world import World, broken
from controller.core.decision import Why
from controller.core.rollout import Paused
from flagspec import Snapshot
from services.ports import free_port
from services.process import ChildProcess, http_ready

TABLES = ("flags", "flag_revisions", "flag_history")

FORGOTTEN = frozenset({"one_flag_write", "in_order", "log_agrees_with_flag"})
"""Cannot be asked of a history that was restored with the flags; what matters of them is asked here."""


def back_up(world: World) -> None:
    world.sql(
        "DROP SCHEMA IF EXISTS backup CASCADE; CREATE SCHEMA backup; "
        + "; ".join(f"CREATE TABLE backup.{t} AS TABLE penstock.{t}" for t in TABLES)
    )


def restore(world: World) -> None:
    """In one transaction, as the owner, with all triggers off."""
    off = "; ".join(f"ALTER TABLE penstock.{t} DISABLE TRIGGER USER" for t in ("flags", "flag_history"))
    copy = "; ".join(f"DELETE FROM penstock.{t}; INSERT INTO penstock.{t} SELECT * FROM backup.{t}" for t in TABLES)
    world.sql(
        f"{off}; {copy}; ALTER TABLE penstock.flags ENABLE TRIGGER USER; "
        "ALTER TABLE penstock.flag_history ENABLE ALWAYS TRIGGER flag_history_append_only"
    )


@contextmanager
def serving(world: World) -> Iterator[str]:
    """`penstock serve` as a process; yields the address of its flag door."""
    port = free_port()
    door = ChildProcess(
        [sys.executable, "-m", "controller.cli.app", "serve", "--listen", f"127.0.0.1:{port}"],
        name="penstock serve",
        log_path=world.folder / "serve.log",
        env={**os.environ, **world.environ()},
    )
    door.wait_ready(http_ready(f"http://127.0.0.1:{port}/readyz/flags"), timeout_s=60)
    try:
        yield f"http://127.0.0.1:{port}/flags/v1"
    finally:
        door.stop()


def snapshot(door: str, seen: int | None = None) -> Snapshot | None:
    """As a router asks that has `seen`; None when the door says that nothing has changed."""
    tag = {} if seen is None else {"If-None-Match": f'"{ENVIRONMENT}:{seen}"'}
    request = urllib.request.Request(f"{door}/snapshot?environment={ENVIRONMENT}", headers=tag)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Snapshot.from_json(json.load(answer))
    except urllib.error.HTTPError as exc:
        if exc.code != 304:
            raise
        return None


def hears(door: str, seen: int) -> bool:
    """Whether a router that has `seen` takes over what the door says."""
    found = snapshot(door, seen)
    return found is not None and found.revision > seen


def kill(door: str, flag: str) -> None:
    request = urllib.request.Request(
        f"{door}/{ENVIRONMENT}/{flag}/kill",
        json.dumps({"actor": "erin", "reason": "pager"}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def _restored(name: str, *, door_stays: bool) -> None:
    @fault(f"flag store: restored from a backup, {name}", group="flags", quick=1, full=25, recover_s_max=25.0)
    def run(world: World, rng: Random) -> Trial:
        worker, rollout_id = at_canary(world)
        flag = world.rollout(rollout_id).plan.flag
        back_up(world)
        match what := rng.choice(("raised", "rolled back", "killed")):
            case "raised":
                world.raise_to(worker, rollout_id, HALF)
            case "rolled back":
                worker.call("command", name="roll_back", rollout_id=rollout_id, actor="erin", reason="seen")
            case _:
                world.sql("UPDATE penstock.flags SET killed = true, decision_id = 'person:erin'")
        world.note(f"{what} since the backup")
        seen = max(r["revision"] for r in world.sql("SELECT revision FROM penstock.flag_revisions"))
        in_force = world.weight() if what == "raised" else 0
        if door_stays:
            with serving(world) as door:
                snapshot(door)
                restore(world)
                found = _heard(world, worker, rollout_id, door, flag, seen, in_force)
        else:
            restore(world)
            with serving(world) as door:
                found = _heard(world, worker, rollout_id, door, flag, seen, in_force)
        trial = ended(world, worker, rollout_id, rng, found)
        kept = tuple(v for v in trial.violations if v.invariant not in FORGOTTEN)
        return Trial(violations=kept, recover_s=trial.recover_s)


def _heard(world: World, worker: Worker, rollout_id: str, door: str, flag: str, seen: int, in_force: int) -> list[Violation]:
    """What is wrong with what a router that had `seen` and `in_force` hears from now on."""
    found = []
    seq = world.rollout(rollout_id).seq
    if not world.until(lambda: hears(door, seen)):
        found.append(broken("heard", f"a router at revision {seen} is told nothing that it would take"))
    heard = snapshot(door)
    assert heard is not None
    if weight := next((f.weight for f in heard.flags if f.key == flag and not f.killed), 0):
        found.append(broken("stops_raising", f"the backup has brought {weight} back to a router that had {in_force}"))
    if not world.rollout(rollout_id).ended:
        world.look(worker, rollout_id, may_raise=True)
        rollout = world.rollout(rollout_id)
        if in_force and not (isinstance(rollout.state, Paused) and rollout.state.why is Why.DRIFT):
            found.append(broken("stops_raising", f"the flag is not what the log says, and the rollout is {rollout.state}"))
        if not world.sql("SELECT 1 FROM penstock.outbox WHERE seq > %s AND notice ->> 'level' = 'alarm' LIMIT 1", seq):
            found.append(broken("tells", "a restored flag store, and no alarm"))
    kill(door, flag)
    if not hears(door, heard.revision):
        found.append(broken("heard", "a kill after the restore reaches no router"))
    return found


_restored("the door stays", door_stays=True)
_restored("the door is new", door_stays=False)
