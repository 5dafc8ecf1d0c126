"""Log and flags in two real Postgres servers, and the one with the log is killed: a breach is lowered all the same."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

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
from services.postgres import EmbeddedPostgres
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


@dataclass(slots=True)
class Guarded:
    """A canary at 5% under a running guard, with the log on one server and the flags on another."""

    rollout_id: str
    audit: PostgresAudit
    flags: PostgresFlags
    metrics: MemoryMetrics
    server: EmbeddedPostgres

    def weight(self) -> int:
        flag = self.flags.read("production", "chat-model")
        assert flag is not None
        return flag.weight

    def turns_bad(self) -> None:
        self.metrics.candidate = Behaviour(rps=100.0, bad={"error_ratio": 0.5})


@pytest.fixture
def guarded(second: Databases, owner_url: str) -> Iterator[Guarded]:
    log_engine, flag_engine = open_engine(app_url(second.migrated())), open_engine(app_url(owner_url))
    audit, flags = PostgresAudit(log_engine), PostgresFlags(flag_engine)
    reports = Sampled(candidate=Counts(bad=0, total=500), baseline=Counts(bad=0, total=9500))
    baseline = Behaviour(rps=2000.0, bad={"error_ratio": 0.001})
    metrics = MemoryMetrics(says={"candidate-reports": reports}, baseline=baseline, candidate=Behaviour(rps=100.0))
    beats = PostgresHeartbeats(log_engine)
    ports = Ports(audit=audit, index=audit, flags=flags, metrics=metrics, heartbeats=beats)
    rollout_id = start(plan(), plan_digest(plan()), ports, actor="rita", key="k").id
    list(sweep(ports, may_raise=True, force=True))
    stop = threading.Event()
    running = threading.Thread(target=guard, args=(ports, None, stop), kwargs={"patience_s": 2.0}, daemon=True)
    running.start()
    made = Guarded(rollout_id=rollout_id, audit=audit, flags=flags, metrics=metrics, server=second.server)
    try:
        until(lambda: beats.last_beat("guard", rollout_id) is not None)
        assert made.weight() == 5_000
        yield made
    finally:
        stop.set()
        running.join(timeout=WAIT_S)
        for engine in (log_engine, flag_engine):
            engine.dispose()


def test_with_the_logs_server_killed_the_guard_lowers_and_the_next_look_records_it(guarded: Guarded) -> None:
    rows = len(guarded.audit.entries(guarded.rollout_id))
    pid = guarded.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: guarded.server.returncode is not None)
    time.sleep(5 * BEAT.total_seconds())
    assert guarded.weight() == 5_000  # a good candidate keeps its weight while the log is away
    guarded.turns_bad()
    until(lambda: guarded.weight() == 0)
    flag = guarded.flags.read("production", "chat-model")
    assert flag is not None and flag.decision_id == f"{guarded.rollout_id}.{rows + 1}.roll_back"
    guarded.server.stop()
    guarded.server.start()
    until(lambda: replay(guarded.audit.entries(guarded.rollout_id)).ended)
    told = replay(guarded.audit.entries(guarded.rollout_id)).state
    assert isinstance(told, RolledBack) and told.why is Why.UNRECORDED_LOWERING
    assert told.text == f"{flag.decision_id} lowered the flag while the audit log could not be written"


def test_a_log_that_accepts_and_never_answers_is_unreadable_too(guarded: Guarded) -> None:
    """As on a disk that stands still: connections stay open, no statement ever ends."""
    pid = guarded.server.pid
    assert pid is not None
    family = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    for one in family:
        os.kill(one, signal.SIGSTOP)
    try:
        guarded.turns_bad()
        until(lambda: guarded.weight() == 0)
    finally:
        for one in family:
            os.kill(one, signal.SIGCONT)
    until(lambda: replay(guarded.audit.entries(guarded.rollout_id)).ended)
