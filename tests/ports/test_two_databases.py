"""Log and flags in two real Postgres servers, and the one with the log is killed: a breach is lowered all the same."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from controller.adapters.memory import Behaviour, MemoryMetrics
from controller.adapters.postgres import PostgresAudit, PostgresFlags, PostgresHeartbeats, app_url, open_engine
from controller.codec import plan_digest
from controller.commands import start
from controller.core.decision import Why
from controller.core.measurement import Counts, Sampled
from controller.core.plan import Mode, Phase, Plan, Policy, RateLimit, Silence
from controller.core.rollout import RolledBack, replay
from controller.guard import guard
from controller.ports import Ports
from controller.sweep import sweep
from flagspec import Variant
from tests.ports.databases import Databases

pytestmark = pytest.mark.services

BEAT = timedelta(milliseconds=200)
WAIT_S = 30.0


@pytest.fixture
def second() -> Iterator[Databases]:
    """The server with the log: one of its own, because it dies."""
    with Databases() as made:
        yield made


def until(what: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < ends, f"not within {WAIT_S:g} s"
        time.sleep(0.05)


def plan() -> Plan:
    return Plan(
        name="chat",
        environment="production",
        flag="chat-model",
        baseline=Variant(model="old"),
        candidate=Variant(model="new"),
        phases=(
            Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta(hours=1)),
            Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(hours=1)),
        ),
        gates=(RateLimit(name="errors", indicator="error_ratio", limit=0.01), Silence()),
        policy=Policy(guard_every=BEAT, block=timedelta(seconds=1)),
    )


def test_with_the_logs_server_killed_the_guard_lowers_and_the_next_look_records_it(second: Databases, owner_url: str) -> None:
    log_engine, flag_engine = open_engine(app_url(second.migrated())), open_engine(app_url(owner_url))
    audit, flags = PostgresAudit(log_engine), PostgresFlags(flag_engine)
    reports = Sampled(candidate=Counts(bad=0, total=500), baseline=Counts(bad=0, total=9500))
    metrics = MemoryMetrics(
        says={"candidate-reports": reports},
        baseline=Behaviour(rps=2000.0, bad={"error_ratio": 0.001}),
        candidate=Behaviour(rps=100.0),
    )
    ports = Ports(audit=audit, index=audit, flags=flags, metrics=metrics, heartbeats=PostgresHeartbeats(log_engine))
    rollout = start(plan(), plan_digest(plan()), ports, actor="rita", key="k")
    list(sweep(ports, may_raise=True, force=True))

    def weight() -> int:
        flag = flags.read("production", "chat-model")
        assert flag is not None
        return flag.weight

    assert weight() == 5_000
    stop = threading.Event()
    running = threading.Thread(target=guard, args=(ports, None, stop), daemon=True)
    running.start()
    try:
        until(lambda: PostgresHeartbeats(log_engine).last_beat("guard", rollout.id) is not None)
        rows = len(audit.entries(rollout.id))
        pid = second.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: second.server.returncode is not None)
        time.sleep(5 * BEAT.total_seconds())
        assert weight() == 5_000  # a good candidate keeps its weight while the log is away
        metrics.candidate = Behaviour(rps=100.0, bad={"error_ratio": 0.5})
        until(lambda: weight() == 0)
        flag = flags.read("production", "chat-model")
        assert flag is not None and flag.decision_id == f"{rollout.id}.{rows + 1}.roll_back"
        second.server.stop()
        second.server.start()
        until(lambda: replay(audit.entries(rollout.id)).ended)
        told = replay(audit.entries(rollout.id))
    finally:
        stop.set()
        running.join(timeout=WAIT_S)
        for engine in (log_engine, flag_engine):
            engine.dispose()
    assert isinstance(told.state, RolledBack) and told.state.why is Why.UNRECORDED_LOWERING
    assert told.state.text == f"{rollout.id}.{rows + 1}.roll_back lowered the flag while the audit log could not be written"
