"""
The flag store refuses, hangs, is slow, is cut off in mid-write, and is edited by strangers who own the database.

Its one rule: whatever is done to a flag from outside, nothing of ours raises it afterwards without a person, a breach still ends at 0, and
people are told.
"""

import time
from collections.abc import Callable
from random import Random

from bench.chaos.fault import Trial, Violation, fault
from bench.chaos.faults_prometheus import CANARY, TRIES, at_canary
from bench.chaos.process import Refused, Worker
from bench.chaos.target import Truth
from bench.chaos.world import World, broken
from bench.cutting import CuttingProxy
from controller.adapters.postgres.connect import connect
from controller.core.decision import Why
from controller.core.rollout import Paused

WRITES_A_FLAG = b"penstock.flags "
"""In an UPDATE; the INSERT of a first write says `penstock.flags (`."""

FIRST_WRITE = b"INTO penstock.flags"


def refusing(world: World) -> Callable[[], None]:
    """Every write of a flag fails; returns what ends it."""
    world.sql(
        "CREATE FUNCTION penstock.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'out of order'; END $$;"
        "CREATE TRIGGER a_refuse BEFORE INSERT OR UPDATE ON penstock.flags FOR EACH ROW EXECUTE FUNCTION penstock.refuse()"
    )
    return lambda: drop(world)


def drop(world: World) -> None:
    world.sql("DROP TRIGGER a_refuse ON penstock.flags; DROP FUNCTION penstock.refuse()")


def locking(world: World) -> Callable[[], None]:
    """Somebody else's transaction holds the flag's row; returns what ends it."""
    connection = connect(world.owner_url, autocommit=False)
    connection.execute(b"SET LOCAL idle_in_transaction_session_timeout = 0")
    connection.execute(b"SELECT 1 FROM penstock.flags FOR UPDATE")
    return connection.close


def slowing(world: World, proxy: CuttingProxy) -> Callable[[], None]:
    """Every message to the database takes its time."""
    proxy.delay_s = 0.1

    def end() -> None:
        proxy.delay_s = 0.0

    return end


def refusing_connections(world: World, proxy: CuttingProxy) -> Callable[[], None]:
    """Nobody is let in, and who is in is thrown out."""
    proxy.refuse = True
    proxy.cut_all()

    def end() -> None:
        proxy.refuse = False

    return end


def _outage(name: str, begin: Callable[[World, CuttingProxy], Callable[[], None]]) -> None:
    @fault(f"flag store: {name}", group="flags", quick=1, full=25, recover_s_max=25.0)
    def run(world: World, rng: Random) -> Trial:
        proxy = world.stack.enter_context(CuttingProxy(world.owner_url))
        world.database_url = proxy.url()
        worker, rollout_id = at_canary(world)
        end = begin(world, proxy)
        try:
            if rng.random() < 0.6:
                world.turn(rng.choice((Truth.FAILING, Truth.ALARM)), rollout_id)
            for _ in range(2):
                world.look(worker, rollout_id, may_raise=rng.random() < 0.5)
        finally:
            end()
        return ended(world, worker, rollout_id, rng, [])


_outage("every write fails", lambda world, _: refusing(world))
_outage("the flag is locked", lambda world, _: locking(world))
_outage("slow", slowing)
_outage("down", refusing_connections)


def ended(world: World, worker: Worker, rollout_id: str, rng: Random, found: list[Violation]) -> Trial:
    """By a breach, if there is none yet; with the controller that there is, or with a new one."""
    if not world.bad:
        world.look(worker, rollout_id, may_raise=True)
        world.turn(Truth.ALARM, rollout_id)
    took_s = world.recover(worker if rng.random() < 0.5 else None, check_gates=rng.random() < 0.7)
    trial = world.finish(took_s)
    return Trial(violations=(*found, *trial.violations), recover_s=trial.recover_s)


# --- cut off in mid-write -------------------------------------------------------------------------------------------------------


def _cut(name: str, how: str, *, raising: bool) -> None:
    @fault(f"flag store: {name}", group="flags", quick=1, full=25)
    def run(world: World, rng: Random) -> Trial:
        proxy = world.stack.enter_context(CuttingProxy(world.owner_url))
        world.database_url = proxy.url()
        if raising:
            worker = world.controller()
            rollout_id = world.start(worker)
            proxy.only, proxy.cut_commit = FIRST_WRITE, how
            world.look(worker, rollout_id, may_raise=True)
        else:
            worker, rollout_id = at_canary(world)
            world.turn(Truth.ALARM, rollout_id)
            proxy.only, proxy.cut_commit = WRITES_A_FLAG, how
            world.look(worker, rollout_id, may_raise=False)
        if proxy.cut_commit is not None:
            raise AssertionError("no write of a flag was cut")
        if rng.random() < 0.5:
            world.restarted()
            worker = world.controller()
        return ended(world, worker, rollout_id, rng, [])


_cut("cut off before a raise is applied", "before", raising=True)
_cut("a raise is applied, then the line is cut", "after", raising=True)
_cut("cut off before a lowering is applied", "before", raising=False)
_cut("a lowering is applied, then the line is cut", "after", raising=False)


# --- strangers ------------------------------------------------------------------------------------------------------------------

RAISED = "weight = 90000"

EDITS: dict[str, str] = {
    "raises it": f"UPDATE penstock.flags SET {RAISED}, decision_id = 'stranger:1'",
    "raises it and forges the decision": f"UPDATE penstock.flags SET {RAISED}, decision_id = %(rollout)s || '.9.advance'",
    "raises it by the decision in force": f"UPDATE penstock.flags SET {RAISED}",
    "raises it, with all triggers off": (
        f"ALTER TABLE penstock.flags DISABLE TRIGGER USER; UPDATE penstock.flags SET {RAISED}; "
        "ALTER TABLE penstock.flags ENABLE TRIGGER USER"
    ),
    "lowers it": "UPDATE penstock.flags SET weight = 1, decision_id = 'stranger:1'",
    "swaps the models": "UPDATE penstock.flags SET control = candidate, candidate = control",
    "names another candidate": 'UPDATE penstock.flags SET candidate = \'{"model": "theirs"}\'',
    "makes it unreadable": 'UPDATE penstock.flags SET candidate = \'{"model": "m", "params": {"seed": 99999999999999999999}}\'',
    "changes the salt": "UPDATE penstock.flags SET salt = 'other'",
    "deletes it": "DELETE FROM penstock.flags",
    "un-latches a kill": (
        "UPDATE penstock.flags SET killed = true, decision_id = 'person:erin'; UPDATE penstock.flags SET killed = false"
    ),
}
"""What is done to a flag at 5 %, all of it as the owner of the database."""


def _stranger(name: str, edit: str) -> None:
    @fault(f"a stranger {name}", group="flags", quick=1, full=25)
    def run(world: World, rng: Random) -> Trial:
        worker, rollout_id = at_canary(world)
        seq = world.rollout(rollout_id).seq
        world.sql(edit.replace("%(rollout)s", f"'{rollout_id}'"))
        # A gate check as well as a guard: with all its evidence in hand, it must not raise what it does not know.
        world.look(worker, rollout_id, may_raise=rng.random() < 0.5)
        world.look(worker, rollout_id, may_raise=True)
        found = []
        rollout = world.rollout(rollout_id)
        if not (isinstance(rollout.state, Paused) and rollout.state.why is Why.DRIFT):
            found.append(broken("stops_raising", f"a flag that nobody of ours wrote, and the rollout is {rollout.state}"))
        if not world.sql(
            "SELECT 1 FROM penstock.outbox WHERE seq > %s AND notice ->> 'level' = 'alarm' LIMIT 1",
            seq,
        ):
            found.append(broken("tells", "a flag that nobody of ours wrote, and no alarm"))
        if rng.random() < 0.5:
            worker.call("command", name="resume", rollout_id=rollout_id, actor="erin", reason="seen")
            if (weight := world.weight()) != CANARY:
                found.append(broken("sets_it_right", f"resumed, and the flag is at {weight}"))
        return ended(world, worker, rollout_id, rng, found)


for _name, _edit in EDITS.items():
    _stranger(_name, _edit)


@fault("a stranger kills it", group="flags", quick=1, full=25)
def kills(world: World, rng: Random) -> Trial:
    """However it came about: a killed flag ends its rollout."""
    worker, rollout_id = at_canary(world)
    world.sql("UPDATE penstock.flags SET killed = true")
    found = []
    world.look(worker, rollout_id, may_raise=rng.random() < 0.5)
    if not world.rollout(rollout_id).ended:
        found.append(broken("lowered", "killed, and the rollout goes on"))
    return ended(world, worker, rollout_id, rng, found)


@fault("a stranger releases its hold", group="flags", quick=1, full=25, recover_s_max=25.0)
def releases(world: World, rng: Random) -> Trial:
    """Nobody may lose sight of a rollout that has not ended."""
    worker, rollout_id = at_canary(world)
    world.sql("DELETE FROM penstock.flag_holds")
    world.turn(Truth.ALARM, rollout_id)
    begun_s = time.monotonic()
    worker.call("run")
    found = []
    if not world.until(lambda: world.weight() == 0, timeout_s=25):
        found.append(broken("lowered", "a breach of a rollout that is not held, and nobody looks"))
    took_s = time.monotonic() - begun_s
    worker.call("halt")
    trial = world.finish(world.recover(worker) and took_s)
    return Trial(violations=(*found, *trial.violations), recover_s=trial.recover_s)


def _in_between(name: str, edit: str) -> None:
    @fault(f"flag store: {name} between decision and raise", group="flags", quick=1, full=25)
    def run(world: World, rng: Random) -> Trial:
        worker = world.controller(crash_at="raising:2:stop")
        rollout_id = world.start(worker)
        for _ in range(TRIES):
            worker.order("tick", rollout_id=rollout_id, may_raise=True, force=True)
            if worker.wait_frozen(timeout_s=5):
                break
            worker.answer()
            time.sleep(0.2)
        else:
            raise AssertionError("the second raise was not reached")
        before = world.sql("SELECT version FROM penstock.flags")[0]["version"]
        world.sql(edit)
        worker.wake()
        try:
            world.note(f"woken: {worker.answer()}")
        except Refused as exc:
            world.note(f"woken: {exc}")
        ours = world.sql(
            "SELECT 1 FROM penstock.flag_history WHERE version > %s AND db_user = 'penstock_app' AND weight > 0", before + 1
        )
        found = [broken("conflict", "raised over somebody else's write")] if ours else []
        world.look(worker, rollout_id, may_raise=True)
        return ended(world, worker, rollout_id, rng, found)


_in_between("somebody writes", "UPDATE penstock.flags SET weight = 30000, decision_id = 'stranger:1'")
_in_between("somebody kills", "UPDATE penstock.flags SET killed = true, decision_id = 'person:erin'")
_in_between("somebody deletes", "DELETE FROM penstock.flags")
