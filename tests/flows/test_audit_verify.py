"""The audit-verify flow, on a real database: intact and said so, or broken, failed, and not counted as verified."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.adapters.memory import MemoryHeartbeats
from flows.registry import DEPLOYMENTS
from tests.flows.conftest import World
from tests.ports.databases import Databases


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    with Databases() as running:
        yield running.migrated()


def test_the_log_is_verified_each_night_against_every_published_head(world: World, tmp_path: Path, database_url: str) -> None:
    assert [d.cron for d in DEPLOYMENTS if d.name == "audit-verify"] == ["37 3 * * *"]
    assert world.run("audit-verify").state_name == "Failed", "no database is named"
    heads = tmp_path / "heads.jsonl"
    settings, beats = replace(world.controller.settings, database_url=database_url, audit_heads_file=heads), MemoryHeartbeats()
    world.controller = replace(world.controller, settings=settings, ports=replace(world.ports, heartbeats=beats))
    assert world.run("audit-verify").state_name == "Intact"
    assert beats.beats.pop(("audit-verify", ""))

    at = datetime(2026, 3, 2, tzinfo=UTC).isoformat()
    head = {"v": 1, "id": 99, "hash": "0" * 64, "at": at, "published_at": at, "release": "0.1.0", "key": "", "signature": ""}
    heads.write_text(json.dumps(head) + "\nno head\n")
    broken = world.run("audit-verify")
    assert (broken.state_name, broken.state_type.value if broken.state_type else "") == ("Broken", "FAILED")
    assert broken.state is not None and "line 2" in str(broken.state.message) and "99" in str(broken.state.message)
    assert not beats.beats, "a broken log does not count as verified"
