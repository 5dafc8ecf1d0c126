"""
Controllers whose machine does not know the time: ten minutes off, jumping backwards, and in the hour that happens twice.

The clock of one controller is shifted (libfaketime under the process), that of another is right, and both do the same. Its one rule: every time
and every slot comes from the database's clock, so that nobody can tell from the rows which controller wrote them.
"""

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from bench.chaos.fault import Skipped, Trial, Violation, fault
from bench.chaos.faults_many import EVERY
from bench.chaos.faults_prometheus import HALF, TRIES
from bench.chaos.invariants import one_check_a_slot
from bench.chaos.process import Worker
from bench.chaos.target import Truth
from bench.chaos.world import World, broken
from controller.core.decision import Hold
from controller.core.rollout import Decided

LIBRARY = "faketime/libfaketimeMT.so.1"
AROUND = timedelta(minutes=2)
"""Nothing that these plans say lies further away from now."""

PAST = timedelta(hours=6)
"""How much of the baseline's past the first look reads."""

_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)")


def shifted(world: World, how: str, zone: str = "UTC") -> tuple[Worker, Path]:
    """A controller with a clock of its own, and the file that sets it. Raises Skipped."""
    found = sorted(Path("/usr/lib").glob(f"*/{LIBRARY}"))
    if not found:
        raise Skipped("libfaketime is not installed (Debian and Ubuntu: apt-get install faketime)")
    dial = world.folder / "clock"
    dial.parent.mkdir(parents=True, exist_ok=True)
    dial.write_text(how)
    worker = world.controller(
        fresh=True,
        LD_PRELOAD=str(found[0]),
        FAKETIME_TIMESTAMP_FILE=str(dial),
        FAKETIME_NO_CACHE="1",
        # Timeouts are measured with it, and no clock that is set moves it.
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        DONT_FAKE_MONOTONIC="1",
        TZ=zone,
    )
    return worker, dial


def _clock(name: str, how: str, *, zone: str = "UTC", then: str = "", quick: int = 1) -> None:
    """
    Register a fault.

    Args:
        name: Its name.
        how: The clock, as libfaketime takes it.
        zone: The process's time zone.
        then: What the clock is set to in mid-run; "" leaves it.
        quick: Trials of a quick run.
    """

    @fault(f"clock: {name}", group="clock", quick=quick, full=25, recover_s_max=30.0)
    def run(world: World, rng: Random) -> Trial:
        begun = world.now()
        wrong, dial = shifted(world, how, zone)
        right = world.controller()
        off_s, shown = wrong.call("clock")
        if abs(off_s - time.time()) < AROUND.total_seconds():
            raise AssertionError(f"the clock is not off: {shown}")
        world.note(f"the clock shows {shown}")
        plans = [world.plan(every=EVERY, flag=f"{world.name}-{who}") for who in ("wrong", "right", "both")]
        alone, beside, shared = (world.start(w, p) for w, p in zip((wrong, right, wrong), plans, strict=True))
        flags = dict(zip((alone, beside, shared), (p.flag for p in plans), strict=True))
        for _ in range(TRIES):
            for worker, rollout_id in ((wrong, alone), (right, beside), (wrong, shared), (right, shared)):
                if world.weight(flags[rollout_id]) < HALF:  # who is ahead waits, and is not promoted before the alarm
                    world.look(worker, rollout_id, may_raise=True, force=False)
            if then:
                dial.write_text(then)
            if all(world.weight(flag) >= HALF for flag in flags.values()) or _times(world, begun):
                break
            time.sleep(0.2)
        if early := _times(world, begun):
            return Trial(violations=tuple(early))
        world.turn(Truth.ALARM, alone, beside, shared)
        for worker, rollout_id in ((wrong, alone), (right, beside), (wrong, shared)):
            world.look(worker, rollout_id, may_raise=False)
        found = _times(world, begun)
        if (one := _moves(world, alone)) != (other := _moves(world, beside)):
            found.append(broken("same_rows", f"with a shifted clock {one}, without {other}"))
        trial = world.finish(world.recover(wrong, force=False), one_check_a_slot)
        return Trial(violations=(*found, *trial.violations), recover_s=trial.recover_s)


def _moves(world: World, rollout_id: str) -> list[tuple[str, Any, str]]:
    """What was decided up to 50 %, and the end; holds and the last raise depend on how many checks there were."""
    events = [e.event for e in world.entries(rollout_id) if isinstance(e.event, Decided)]
    decisions = [e.decision for e in events if not isinstance(e.decision, Hold)]
    moves = [(d.kind, getattr(d, "phase", None), d.why.value) for d in decisions]
    return [m for m in moves if m[:2] != ("advance", 2)]


def _times(world: World, begun: datetime) -> list[Violation]:
    """Every time that was written lies between the trial's begin and its end, as the database saw them."""
    first, last = begun - AROUND, world.now() + AROUND
    found = []
    tables = {
        "audit": "SELECT row_to_json(a)::text AS row FROM penstock.audit a",
        "outbox": "SELECT row_to_json(o)::text AS row FROM penstock.outbox o",
        "flag_history": "SELECT row_to_json(h)::text AS row FROM penstock.flag_history h",
    }
    for table, statement in tables.items():
        for row in world.sql(statement):
            for text, asked in _written(json.loads(row["row"])):
                earliest = first - PAST if asked else first
                if not earliest <= datetime.fromisoformat(text) <= last:
                    found.append(broken("database_clock", f"{table} has the time {text}, it was {begun} to {last}"))
                    break
    return found


def _written(data: Any, *, asked: bool = False) -> Iterator[tuple[str, bool]]:
    """All times in a document, and whether each is that of a question: the very first look asks for hours of the past."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _written(value, asked=asked or key == "evidence")
    elif isinstance(data, list):
        for value in data:
            yield from _written(value, asked=asked)
    elif isinstance(data, str):
        yield from ((text, asked) for text in _TIME.findall(data))


_clock("ten minutes fast", "+600s")
_clock("ten minutes slow", "-600s", quick=0)
_clock("a year fast", "+1y", quick=0)
_clock("goes back by an hour in mid-run", "+1800s", then="-1800s")
_clock("the hour that happens twice", "@2026-10-25 02:59:57", zone="Europe/Berlin")
_clock("the hour that does not happen", "@2026-03-29 01:59:57", zone="Europe/Berlin", quick=0)
_clock("half an hour of summer time", "@2026-04-05 01:59:57", zone="Australia/Lord_Howe", quick=0)
