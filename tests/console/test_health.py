"""`/readyz`, `/healthz` and `/metrics` of real processes: `penstock serve` and `penstock guard` on a real Postgres."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from controller.adapters.memory import MemoryFlags, MemoryMetrics
from controller.adapters.postgres import PostgresAudit, PostgresHeartbeats, app_url, open_engine
from controller.adapters.postgres.census import Census
from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.tables import SCHEMA_REVISION
from controller.console.health import beating
from controller.ports import PortError, Ports
from controller.sweep import gates_checked
from tests.console.conftest import Start, commands
from tests.ports.databases import Databases
from tests.ports.events import applied, decided, opened, roll_back

pytestmark = pytest.mark.services


def ready(url: str, part: str = "") -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{url}/readyz{part}", timeout=30)
    return answer.status_code, answer.json()


def sample(url: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", httpx.get(f"{url}/metrics", timeout=30).text, re.MULTILINE)
    assert found is not None, series
    return float(found.group(1))


def until(what: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not what():
        assert time.monotonic() < ends, "not within 30 s"
        time.sleep(0.1)


def test_serve_says_which_part_is_not_well(start: Start, databases: Databases) -> None:
    owner = databases.migrated()
    url = start("serve")
    status, body = ready(url)
    assert (status, body["reason"]) == (503, "guard: the guard has never looked")
    assert body["parts"]["database"] == {"ok": True, "seen": f"schema {SCHEMA_REVISION}"}
    assert ready(url, "/flags")[0] == 200  # a load balancer asks this one: a dead guard keeps no flags from routers
    engine = open_engine(app_url(owner))
    PostgresHeartbeats(engine).beat("guard")
    engine.dispose()
    assert ready(url)[0] == 200
    with connect(owner) as connection:
        connection.execute("UPDATE penstock.heartbeats SET at = at - interval '5 minutes'")
        assert "the guard has not looked for 30" in ready(url)[1]["reason"]
        assert sample(url, 'penstock_heartbeat_age_seconds{who="guard"}') >= 300
        connection.execute("UPDATE penstock.heartbeats SET at = clock_timestamp()")
        connection.execute("UPDATE penstock.alembic_version SET version_num = '0004'")
        try:
            status, body = ready(url)
        finally:
            connection.execute(f"UPDATE penstock.alembic_version SET version_num = '{SCHEMA_REVISION}'".encode())
    assert status == 503 and body["reason"].startswith("database: the database is at 0004, this release needs")
    assert ready(url, "/unheard-of")[0] == 404


def test_a_guard_beats_serves_its_own_numbers_and_makes_serve_ready(start: Start, databases: Databases) -> None:
    guard, serve = start("guard"), start("serve")
    for url in (guard, serve):
        until(lambda url=url: ready(url)[0] == 200)  # type: ignore[misc]  # a default binds it
    assert sample(guard, 'penstock_guard_rounds_total{outcome="ok"}') >= 1
    assert sample(guard, 'penstock_rollouts{state="baking"}') == 0
    assert sample(serve, "penstock_database_up") == 1 and sample(serve, "penstock_rollouts_active") == 0
    assert sample(serve, 'penstock_heartbeat_age_seconds{who="guard"}') < 60


def test_a_database_that_dies_makes_the_processes_not_ready_and_not_dead(tmp_path: Path) -> None:
    with Databases() as own, commands(own, tmp_path) as run:
        guard, serve = run("guard"), run("serve")
        own.server.stop()
        for url in (guard, serve):
            assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
            status, body = ready(url)
            assert status == 503 and not body["parts"]["database"]["ok"]
        assert sample(serve, "penstock_database_up") == 0
        until(lambda: sample(guard, "penstock_guard_blind") == 1)


def test_counts_of_the_log_are_the_same_for_whoever_starts_anew(databases: Databases) -> None:
    engine: Engine = open_engine(app_url(databases.migrated()))
    audit = PostgresAudit(engine)
    one = Census(engine)
    up, down = decided("r1", 2), roll_back("r1", 4)
    for entry in (opened("r1"), up, applied("r1", 3, up), down, applied("r1", 5, down)):
        audit.append(entry, None)
        one.read_on()
    another = Census(engine)
    another.read_on()
    another.read_on()
    for seen in (one, another):
        assert seen.decisions == {("gate_check", "advance"): 1, ("gate_check", "roll_back"): 1}
        assert seen.verdicts == {("gate_check", "pass"): 2, ("gate_check", "insufficient"): 2}
        assert {o: sum(d.counts) for o, d in seen.durations.items()} == {"promoted": 0, "rolled_back": 1, "aborted": 0}
    engine.dispose()


def test_gate_checks_that_fail_are_counted_whichever_process_made_them(databases: Databases) -> None:
    engine: Engine = open_engine(app_url(databases.migrated()))
    audit, beats, census = PostgresAudit(engine), PostgresHeartbeats(engine), Census(engine)
    ports = Ports(audit=audit, index=audit, heartbeats=beats, metrics=MemoryMetrics(), flags=MemoryFlags())
    audit.append(opened("r1"), None)
    assert census.moment().unchecked == 0
    gates_checked(ports, [], ["r1", "ended long ago"])
    assert census.moment().unchecked == 1
    gates_checked(ports, ["another"], [])
    assert census.moment().unchecked == 1
    gates_checked(ports, ["r1"], [])
    assert census.moment().unchecked == 0
    engine.dispose()


def test_a_loop_that_hangs_is_not_well() -> None:
    for age in (None, 61.0):
        with pytest.raises(PortError, match=r"never|61 s"):
            beating(lambda age=age: age)()  # type: ignore[misc]  # a default binds it
    assert beating(lambda: 3.0)() == "looked 3 s ago"
