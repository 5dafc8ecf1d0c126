"""
kill -9 at every crash point: a rollout's whole story, cut at a random passing of the point, and gone on with by a new process.

Its one rule: the story is always the same (start, two raises, a breach, every notice), so that every point lies on its way; chance chooses which
passing of the point is the last, what the candidate is like afterwards, and whether the recovery is cut as well.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any

from bench.chaos.fault import Trial, fault
from bench.chaos.process import Died, Refused, Worker
from bench.chaos.target import Truth
from bench.chaos.world import World
from controller.crash import Point

PASSINGS = {
    **dict.fromkeys((Point.LOG_READ, Point.FLAG_READ, Point.SETTLED, Point.MEASURED, Point.SLACK_READ), 5),
    **dict.fromkeys(
        (Point.DECIDED, Point.RECORDED, Point.CONFIRMED, Point.FLAG_OPENED, Point.FLAG_WRITTEN, Point.FLAG_COMMITTED), 3
    ),
    **dict.fromkeys((Point.RAISING, Point.RAISED), 2),
    **dict.fromkeys((Point.ROW_LOCKING, Point.ROW_LOCKED, Point.ROW_INSERTED, Point.ROW_COMMITTING, Point.ROW_COMMITTED), 7),
    # News; refreshes that wait together are one letter.
    **dict.fromkeys((Point.LETTER_DELIVERED, Point.LETTER_CLOSING, Point.LETTER_CLOSED), 4),
    **dict.fromkeys((Point.LETTERS_LEASING, Point.LETTERS_LEASED, Point.SLACK_SENDING, Point.SLACK_SENT), 5),
    **dict.fromkeys((Point.QUERY_SENDING, Point.QUERY_ANSWERED), 10),
}
"""How often every story passes a point at least; the others it passes once."""

AFTER_A_CRASH = frozenset({Point.FENCING, Point.FENCED, Point.WITHDRAWN})
"""Only a raise that another process left half-done leads there."""

TRIES = 40
BEAT_S = 0.2


def story(world: World, worker: Worker) -> str:
    """
    Start, raise, raise again, breach, roll back, and tell people of all of it.

    Returns:
        The rollout.

    Raises:
        Died: the controller did, somewhere in it.
    """
    rollout_id = world.start(worker)
    for weight in (5_000, 50_000):
        for _ in range(TRIES):
            world.look(worker, rollout_id, may_raise=True)
            world.look(worker, rollout_id, may_raise=False)
            world.deliver(worker)
            if world.weight() >= weight:
                break
            time.sleep(BEAT_S)
    world.turn(Truth.ALARM, rollout_id)
    for _ in range(TRIES):
        if world.look(worker, rollout_id, may_raise=False)["ended"]:
            break
        time.sleep(BEAT_S)
    world.deliver(worker)
    return rollout_id


def crash_at(point: Point) -> None:
    """Register the fault of one point."""

    @fault(f"kill -9 at {point}", group="crash", quick=1, full=25)
    def run(world: World, rng: Random) -> Trial:
        if point in AFTER_A_CRASH:
            _cut(world, Point.RECORDED, 1)
        elif point is Point.LETTER_PUT_OFF:
            world.slack_fails_once()
        if not _cut(world, point, rng.randint(1, PASSINGS.get(point, 1))):
            raise AssertionError(f"{point} was not reached")
        world.passed.add(point)
        if rng.random() < 0.5 and world.rollouts:
            # It turned bad while nobody looked: what was under way must not be raised any more.
            world.turn(Truth.ALARM)
        if rng.random() < 0.3:
            _cut(world, rng.choice(list(Point)), 1)
        return world.finish(world.recover(check_gates=rng.random() < 0.7))


_ROW = (Point.ROW_LOCKED, Point.ROW_INSERTED, Point.ROW_COMMITTING, Point.ROW_COMMITTED, Point.RECORDED)
_FLAG = (Point.FLAG_OPENED, Point.FLAG_WRITTEN, Point.FLAG_COMMITTED, Point.CONFIRMED)
PEOPLE: Mapping[tuple[str, ...], tuple[Point, ...]] = {
    ("pause",): _ROW,
    ("pause", "resume"): (*_ROW, *_FLAG, Point.RAISING, Point.RAISED),
    ("abort",): (*_ROW, *_FLAG, Point.LOWERING, Point.LOWERED),
    ("roll_back",): (*_ROW, *_FLAG, Point.LOWERING, Point.LOWERED),
}
"""What people say, and where the last word may be cut."""


@fault("kill -9 in the middle of a person's word", group="crash", quick=2, full=50)
def of_people(world: World, rng: Random) -> Trial:
    """Pause, resume, abort or roll back; afterwards the person says it again, or does not."""
    calm = world.controller()
    rollout_id = world.start(calm)
    world.raise_to(calm, rollout_id, 5_000)
    words = rng.choice(list(PEOPLE))
    said: dict[str, Any] = {"rollout_id": rollout_id, "actor": "erin", "reason": "for a reason"}
    for word in words[:-1]:
        calm.call("command", name=word, **said)
    point = rng.choice(PEOPLE[words])
    worker = world.controller(f"{point}:1")
    try:
        worker.call("command", name=words[-1], **said)
    except Died:
        world.note(f"{words[-1]} died at {point}")
    else:
        raise AssertionError(f"{point} was not reached in {words[-1]}")
    if rng.random() < 0.3:
        world.turn(Truth.ALARM)
    world.restarted()
    worker = world.controller()
    if rng.random() < 0.5:
        with suppress(Refused):
            worker.call("command", name=words[-1], **said)
    return world.finish(world.recover(worker, check_gates=rng.random() < 0.7))


def _cut(world: World, point: Point, nth: int) -> bool:
    """One life of a controller that dies at a point; whether it did."""
    worker = world.controller(crash_at=f"{point}:{nth}")
    try:
        story(world, worker)
    except Died:
        world.note(f"died at {point}:{nth}")
        world.rollouts = world.opened()
        world.restarted()
        return True
    world.note(f"{point}:{nth} was not reached")
    world.restarted()
    return False


for _point in Point:
    crash_at(_point)
