"""`penstock flags kill` with nothing but the flag store up: the database of the log is killed, and there is no Prometheus and no Prefect."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.adapters.postgres import PostgresFlags, app_url, open_engine
from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.tables import SCHEMA_REVISION
from flagspec import assign
from tests.ports.databases import Databases
from tests.ports.events import change

AT = datetime(2026, 3, 1, tzinfo=UTC)

pytestmark = pytest.mark.services

NOWHERE = "http://127.0.0.1:9"
"""The discard port: nothing of ours or of anybody's listens there."""


def penstock(home: Path, env: Mapping[str, str], *argv: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "PREFECT_"))}
    named = {"PENSTOCK_HOME": str(home), "PENSTOCK_PROMETHEUS_URL": NOWHERE, "PREFECT_API_URL": f"{NOWHERE}/api", **env}
    command = [sys.executable, "-m", "controller.cli.app", *argv]
    return subprocess.run(command, env=clean | named, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def flag_store(databases: Databases) -> str:
    url = databases.migrated()
    engine = open_engine(app_url(url))
    PostgresFlags(engine).write(change(50_000, decision_id="r1.2.advance"), 0)
    engine.dispose()
    return url


def test_a_kill_needs_the_flag_store_and_nothing_else(flag_store: str, tmp_path: Path) -> None:
    with Databases() as log:
        log_url = app_url(log.migrated())
        assert log.server.pid is not None
        os.kill(log.server.pid, signal.SIGKILL)
        env = {"PENSTOCK_DATABASE_URL": log_url, "PENSTOCK_FLAGS_DATABASE_URL": app_url(flag_store)}
        rollback = penstock(tmp_path, env, "rollback", "r1", "--reason", "leaks")
        assert rollback.returncode == 1  # the log is really away
        done = penstock(tmp_path, env, "flags", "kill", "chat-model", "--reason", "leaks data", "--actor", "erin", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["killed"] is True
    engine = open_engine(app_url(flag_store))
    flag = PostgresFlags(engine).read("production", "chat-model")
    engine.dispose()
    assert flag is not None and flag.killed
    assert {assign(flag, f"u{i}", AT).arm for i in range(200)} == {"baseline"}


def test_a_kill_does_not_even_need_to_know_that_there_is_a_log(flag_store: str, tmp_path: Path) -> None:
    done = penstock(
        tmp_path, {"PENSTOCK_FLAGS_DATABASE_URL": app_url(flag_store)}, "flags", "kill", "chat-model", "--reason", "x"
    )
    assert done.returncode == 0, done.stderr


def test_a_kill_does_not_wait_for_a_migration(flag_store: str, tmp_path: Path) -> None:
    with connect(flag_store) as connection:
        connection.execute("UPDATE penstock.alembic_version SET version_num = '0004'")
    try:
        env = {"PENSTOCK_DATABASE_URL": app_url(flag_store)}
        assert penstock(tmp_path, env, "list").returncode == 1  # everything else refuses tables of another release
        done = penstock(tmp_path, env, "flags", "kill", "chat-model", "--reason", "x")
        assert done.returncode == 0, done.stderr
    finally:
        with connect(flag_store) as connection:
            connection.execute(f"UPDATE penstock.alembic_version SET version_num = '{SCHEMA_REVISION}'".encode())


def test_somebody_says_that_the_flag_store_was_restored(flag_store: str, tmp_path: Path) -> None:
    env = {"PENSTOCK_FLAGS_DATABASE_URL": app_url(flag_store)}
    not_ahead = penstock(tmp_path, env, "flags", "restored", "--reason", "last night's backup", "--seen", "1")
    assert (not_ahead.returncode, "not ahead of it" in not_ahead.stderr) == (1, True)
    assert penstock(tmp_path, env, "flags", "restored", "--reason", "x", "--seen", "0").returncode == 2
    done = penstock(tmp_path, env, "flags", "restored", "--reason", "last night's backup", "--seen", "700", "-o", "json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["was"], said["lowered"], said["kept"]) == (1, ["chat-model"], [])
    assert said["revision"] > 700
    again = penstock(tmp_path, env, "flags", "restored", "--reason", "and once more", "--actor", "erin")
    assert again.returncode == 0, again.stderr
    engine = open_engine(app_url(flag_store))
    snapshot = PostgresFlags(engine).snapshot("production")
    engine.dispose()
    assert snapshot.revision > said["revision"] + 1_000_000_000
    assert [f.weight for f in snapshot.flags] == [0]
