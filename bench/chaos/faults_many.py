"""
Many controllers at once: on one tick, one of them frozen past a rollback, and all of them killed and frozen under load.

Its one rule: nobody is told of the others. What keeps them apart is the log and the flag store alone.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from random import Random

from bench.chaos.fault import Trial, fault
from bench.chaos.invariants import one_check_a_slot
from bench.chaos.process import Died, Refused, Worker
from bench.chaos.target import Truth
from bench.chaos.world import World, broken
from controller.crash import Point

EVERY = timedelta(seconds=1)

FREEZE_AT: dict[Point, int] = {
    Point.FLAG_READ: 1,
    Point.MEASURED: 1,
    Point.DECIDED: 1,
    Point.ROW_LOCKING: 2,
    Point.ROW_LOCKED: 2,
    Point.ROW_COMMITTING: 2,
    Point.ROW_COMMITTED: 2,
    Point.RECORDED: 1,
    Point.RAISING: 1,
    Point.FLAG_OPENED: 1,
    Point.FLAG_WRITTEN: 1,
    Point.FLAG_COMMITTED: 1,
    Point.RAISED: 1,
    Point.CONFIRMED: 1,
}
"""Points of the first raise, and which passing belongs to it: opening the rollout has written a row before."""


def together(workers: Sequence[Worker], rollout_id: str, *, raising: Sequence[bool], force: bool = False) -> list[str]:
    """One look by each, all at once; returns how they ended."""
    for worker, may_raise in zip(workers, raising, strict=True):
        worker.order("tick", rollout_id=rollout_id, may_raise=may_raise, force=force)
    outcomes = []
    for worker in workers:
        try:
            outcomes.append(str(worker.answer()["outcome"]))
        except Refused as exc:
            outcomes.append(str(exc))
    return outcomes


@fault("2 to 8 controllers on one tick", group="many", quick=2, full=40)
def on_one_tick(world: World, rng: Random) -> Trial:
    workers = [world.controller() for _ in range(rng.randint(2, 8))]
    for worker in workers:
        worker.ready()
    rollout_id = world.start(workers[0], world.plan(every=EVERY))
    for _ in range(4):
        # As close to the beginning of a slot as it goes: all of them are due.
        now_s = world.now().timestamp()
        time.sleep(EVERY.total_seconds() - now_s % EVERY.total_seconds())
        raising = [True, *(rng.random() < 0.8 for _ in workers[1:])]
        world.note(f"{len(workers)} at once: {together(workers, rollout_id, raising=raising)}")
    world.turn(Truth.ALARM)
    world.note(f"all guards at once: {together(workers, rollout_id, raising=[False] * len(workers))}")
    return world.finish(world.recover(workers[-1], force=False), one_check_a_slot)


def frozen_past_a_rollback(point: Point, nth: int) -> None:
    """Register the fault of one point."""

    @fault(f"frozen at {point} past a rollback", group="many", quick=int(point in _QUICK), full=8)
    def run(world: World, rng: Random) -> Trial:
        sleeper = world.controller(crash_at=f"{point}:{nth}:stop")
        rollout_id = world.start(sleeper)
        sleeper.order("tick", rollout_id=rollout_id, may_raise=True, force=True)
        if not sleeper.wait_frozen():
            raise AssertionError(f"{point} was not reached")
        world.note(f"{sleeper.pid} is frozen at {point}")
        other = world.controller()
        other.ready()
        if rng.random() < 0.5:
            world.look(other, rollout_id, may_raise=True)
        world.turn(Truth.ALARM)
        recover_s = world.recover(other, check_gates=rng.random() < 0.5)
        sleeper.wake()
        try:
            world.note(f"the sleeper: {sleeper.answer()['outcome']}")
            world.look(sleeper, rollout_id, may_raise=True)
        except Refused as exc:
            world.note(f"the sleeper: {exc}")
        except Died as exc:
            return Trial(violations=(broken("the trial itself", f"the sleeper died: {exc}"),))
        world.lapse()
        world.deliver(other)
        return world.finish(recover_s)


@fault("frozen in a rollback past the next rollout", group="many", quick=1, full=25)
def past_the_next_rollout(world: World, rng: Random) -> Trial:
    """Whoever wakes up in the middle of a rollback finds the flag in the hands of another rollout."""
    other = world.controller()
    rollout_id = world.start(other)
    world.raise_to(other, rollout_id, 5_000)
    # The rows of this controller are: the rollback, and its confirmation.
    point, nth = rng.choice(((Point.RECORDED, 1), (Point.LOWERING, 1), (Point.FLAG_OPENED, 1), (Point.ROW_COMMITTED, 1)))
    sleeper = world.controller(f"{point}:{nth}:stop")
    sleeper.ready()
    world.turn(Truth.ALARM, rollout_id)
    sleeper.order("tick", rollout_id=rollout_id, may_raise=False)
    if not sleeper.wait_frozen():
        raise AssertionError(f"{point} was not reached")
    recover_s = world.recover(other, check_gates=False)
    world.turn(Truth.GOOD, rollout_id)
    world.bad.clear()
    world.raise_to(other, world.start(other, key="next"), 5_000)
    return _woken(world, sleeper, rollout_id, recover_s)


@fault("frozen before it settles, past the next raise", group="many", quick=1, full=25)
def past_the_next_raise(world: World, rng: Random) -> Trial:
    """A raise was interrupted; whoever is about to withdraw it wakes up when it was withdrawn and decided anew."""
    dying = world.controller(f"{Point.RECORDED}:1")
    rollout_id = world.start(dying)
    with suppress(Died):
        world.look(dying, rollout_id, may_raise=True)
    sleeper = world.controller(f"{rng.choice((Point.LOG_READ, Point.FLAG_READ, Point.FENCING))}:1:stop")
    sleeper.order("tick", rollout_id=rollout_id, may_raise=rng.random() < 0.5, force=True)
    if not sleeper.wait_frozen():
        raise AssertionError("it was not frozen")
    other = world.controller()
    world.raise_to(other, rollout_id, rng.choice((5_000, 50_000)))
    return _woken(world, sleeper, rollout_id, world.recover(other, check_gates=False))


def _woken(world: World, sleeper: Worker, rollout_id: str, recover_s: float) -> Trial:
    """The sleeper ends what it was about to do; nobody looks after it."""
    before = world.weight()
    sleeper.wake()
    try:
        world.note(f"the sleeper: {sleeper.answer()}")
    except Refused as exc:
        world.note(f"the sleeper: {exc}")
    trial = world.finish(recover_s)
    if world.weight() == before:
        return trial
    found = broken("late_writes_lose", f"the flag was at {before} and is at {world.weight()} after {rollout_id} woke up")
    return replace(trial, violations=(*trial.violations, found))


_QUICK = frozenset({Point.ROW_LOCKED, Point.RAISING, Point.FLAG_WRITTEN})

for _point, _nth in FREEZE_AT.items():
    frozen_past_a_rollback(_point, _nth)


@fault("random kills and freezes under load", group="many", quick=1, full=25)
def under_load(world: World, rng: Random) -> Trial:
    first = world.controller()
    rollouts = [world.start(first, world.plan(every=EVERY, flag=f"{world.name}-{n}")) for n in range(4)]
    for worker in (first, world.controller(), world.controller()):
        worker.call("run")
    ends_s = time.monotonic() + 8
    turns_bad_s = time.monotonic() + rng.uniform(2, 6)
    while (now_s := time.monotonic()) < ends_s:
        if now_s > turns_bad_s:
            turns_bad_s = ends_s + 60
            world.turn(Truth.ALARM, *rng.sample(rollouts, 2))
        victim = rng.choice(world.workers)
        if rng.random() < 0.6:
            victim.close()
            world.workers.remove(victim)
            world.note(f"{victim.pid} is killed")
            world.controller().order("run")
        else:
            victim.freeze()
            time.sleep(rng.uniform(0.1, 1.5))
            victim.wake()
            world.note(f"{victim.pid} was frozen")
        time.sleep(rng.uniform(0.1, 0.5))
    return world.finish(world.recover(force=False), one_check_a_slot)
