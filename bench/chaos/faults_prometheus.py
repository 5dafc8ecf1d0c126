"""
Prometheus in every state of disrepair: each way to answer of `bench.chaos.front`, and the real server killed, frozen and refused.

Its one rule: during the fault the candidate may be raised only on answers that are true; after it everything goes on by itself, up or down as
the candidate deserves.
"""

import os
import signal
import time
from random import Random

from bench.chaos.fault import Trial, Violation, fault
from bench.chaos.front import KINDS, Front, Kind
from bench.chaos.process import Worker
from bench.chaos.stage import SCRAPE
from bench.chaos.target import Truth
from bench.chaos.world import World, broken
from services.prometheus import PrometheusServer

TIMEOUT_S = 1.0
"""Of the controller, so that what hangs does not take minutes."""

LOOK_S_MAX = 5 * TIMEOUT_S + 10.0
"""A look at a phase that goes on asks at most three deadlines long; the rest is for a busy machine."""

QUICK = frozenset(
    {
        *(
            "hung",
            "slow",
            "422",
            "429",
            "503",
            "HTML",
            "200 with error",
            "redirect",
            "NaN",
            "+Inf",
            "-Inf",
            "huge",
            "empty",
            "stale",
        ),
        *("partial, with warnings", "two series where one is expected", "every series twice", "counters reset", "out of order"),
        *("endless", "reset in mid body"),
    }
)
"""The kinds of a quick run."""

CANARY, HALF = 5_000, 50_000
TRIES = 30

PROVEN_S = 2.5
"""Without a look: what would prove the next raise lies in Prometheus when the fault begins, for whoever believes any answer."""


def at_canary(world: World) -> tuple[Worker, str]:
    """A rollout at 5 % that is about to be raised, and its controller."""
    worker = world.controller(PENSTOCK_PROMETHEUS_TIMEOUT=f"{TIMEOUT_S:g}s")
    rollout_id = world.start(worker)
    for _ in range(TRIES):
        world.look(worker, rollout_id, may_raise=True)
        if world.weight() >= CANARY:
            time.sleep(PROVEN_S)
            return worker, rollout_id
        time.sleep(0.2)
    raise AssertionError("the rollout did not reach its first phase")


def looks(world: World, worker: Worker, rollout_id: str, *, usable: bool) -> list[Violation]:
    """Two gate checks and a guard while Prometheus is out of order, and what they did wrong."""
    found: list[Violation] = []
    before = world.weight()
    held = 0
    for may_raise in (True, False, True):
        begun_s = time.monotonic()
        seen = world.look(worker, rollout_id, may_raise=may_raise)
        took_s = time.monotonic() - begun_s
        if took_s > LOOK_S_MAX:
            found.append(broken("bounded", f"a look took {took_s:.1f} s, with a timeout of {TIMEOUT_S:g} s"))
        if seen["outcome"] == "error":
            found.append(broken("never_raises", f"the look ended with {seen['text']}"))
        if world.weight() > before and not usable:
            found.append(broken("no_data_is_no_pass", f"raised from {before} to {world.weight()} on {seen['verdicts']}"))
        held += may_raise and seen["decision"] == "hold"
    if not usable and not world.rollout(rollout_id).ended:
        if held < 2:
            found.append(broken("holds", "a gate check without evidence ended otherwise than by holding"))
        alarms = world.sql("SELECT 1 FROM penstock.outbox WHERE notice ->> 'level' = 'alarm'")
        if not alarms:
            found.append(broken("tells", "two gate checks without evidence, and no alarm"))
    return found


def go_on(world: World, worker: Worker, rollout_id: str, *, lies: bool) -> tuple[float, list[Violation]]:
    """After the fault: down if the candidate is bad, up if it is good; how long it took."""
    begun_s = time.monotonic()
    if world.bad or (lies and world.rollout(rollout_id).ended):
        return world.recover(worker), []
    for _ in range(TRIES):
        world.look(worker, rollout_id, may_raise=True)
        if world.weight() >= HALF:
            took_s = time.monotonic() - begun_s
            world.turn(Truth.ALARM, rollout_id)
            world.recover(worker)
            return took_s, []
        time.sleep(0.2)
    return world.recover(worker), [broken("goes_on", "a good candidate is not raised although Prometheus is well again")]


def _answers(kind: Kind) -> None:
    @fault(f"Prometheus: {kind.name}", group="prometheus", quick=kind.name in QUICK, full=25, recover_s_max=20.0)
    def run(world: World, rng: Random) -> Trial:
        front = world.stack.enter_context(Front(world.stage.prometheus.url))
        world.prometheus_url = front.url
        worker, rollout_id = at_canary(world)
        if rng.random() < 0.5:
            world.look(worker, rollout_id, may_raise=False)
        front.way = kind.answer
        if rng.random() < 0.6:
            world.turn(rng.choice((Truth.FAILING, Truth.ALARM)), rollout_id)
        found = looks(world, worker, rollout_id, usable=kind.usable)
        if rng.random() < 0.3:
            world.restarted()
            worker = world.controller(PENSTOCK_PROMETHEUS_TIMEOUT=f"{TIMEOUT_S:g}s")
        front.heal()
        return _end(world, worker, rollout_id, found, lies=kind.lies)


for _kind in KINDS.values():
    _answers(_kind)


@fault("Prometheus: refused", group="prometheus", quick=1, full=25, recover_s_max=20.0)
def refused(world: World, rng: Random) -> Trial:
    front = world.stack.enter_context(Front(world.stage.prometheus.url))
    world.prometheus_url = front.url
    worker, rollout_id = at_canary(world)
    front.close_door()
    if rng.random() < 0.6:
        world.turn(Truth.FAILING, rollout_id)
    found = looks(world, worker, rollout_id, usable=False)
    front.heal()
    return _end(world, worker, rollout_id, found)


@fault("Prometheus: any answer, anew for each question", group="prometheus", quick=2, full=50, recover_s_max=20.0)
def anything(world: World, rng: Random) -> Trial:
    front = world.stack.enter_context(Front(world.stage.prometheus.url))
    world.prometheus_url = front.url
    worker, rollout_id = at_canary(world)
    quick = [k for k in KINDS.values() if k.name not in ("hung", "trickle", "endless")]
    front.way = lambda exchange: rng.choice(quick).answer(exchange)
    if rng.random() < 0.6:
        world.turn(rng.choice((Truth.FAILING, Truth.ALARM)), rollout_id)
    # Some answers are true by chance: that it is raised on them is as it should be.
    found = looks(world, worker, rollout_id, usable=True)
    front.heal()
    return _end(world, worker, rollout_id, found, lies=True)


@fault("Prometheus: kill -9 and started again", group="prometheus", quick=1, full=25, recover_s_max=30.0)
def killed(world: World, rng: Random) -> Trial:
    server = _own(world, 0)
    worker, rollout_id = at_canary(world)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    if rng.random() < 0.6:
        world.turn(Truth.FAILING, rollout_id)
    found = looks(world, worker, rollout_id, usable=False)
    port = server.port
    server.stop()
    _own(world, port)
    return _end(world, worker, rollout_id, found)


@fault("Prometheus: frozen and woken", group="prometheus", quick=1, full=25, recover_s_max=30.0)
def frozen(world: World, rng: Random) -> Trial:
    server = _own(world, 0)
    worker, rollout_id = at_canary(world)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        if rng.random() < 0.6:
            world.turn(Truth.FAILING, rollout_id)
        found = looks(world, worker, rollout_id, usable=False)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    return _end(world, worker, rollout_id, found)


def _own(world: World, port: int) -> PrometheusServer:
    """A Prometheus of this trial's own; on the data of the one before when it has its port."""
    server = PrometheusServer(
        world.folder / "prometheus",
        {"router": [world.stage.target.address]},
        scrape_interval=SCRAPE,
        port=port,
        fresh=port == 0,
    )
    world.stack.enter_context(server)
    world.prometheus_url = server.url
    return server


def _end(world: World, worker: Worker, rollout_id: str, found: list[Violation], *, lies: bool = False) -> Trial:
    took_s, more = go_on(world, worker, rollout_id, lies=lies)
    trial = world.finish(took_s)
    return Trial(violations=(*found, *more, *trial.violations), recover_s=trial.recover_s, passed=trial.passed)
