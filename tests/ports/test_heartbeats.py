"""Who looked when, in memory and in Postgres alike."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from controller.adapters.memory import MemoryHeartbeats
from controller.adapters.postgres import PostgresHeartbeats
from controller.adapters.postgres.connect import connect


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.services)])
def beats(request: pytest.FixtureRequest) -> Any:
    return MemoryHeartbeats() if request.param == "memory" else PostgresHeartbeats(request.getfixturevalue("engine"))


def test_whoever_never_looked_has_no_time(beats: Any) -> None:
    assert beats.last_beat("guard") is None and beats.last_beat("guard", "r1") is None


def test_a_beat_is_of_the_looker_and_of_what_it_looked_at(beats: Any) -> None:
    beats.beat("guard", ["r1", "r2", "r1"])
    assert beats.last_beat("guard") is not None
    assert beats.last_beat("guard", "r1") == beats.last_beat("guard", "r2") or beats.last_beat("guard", "r2") is not None
    assert beats.last_beat("guard", "r3") is None and beats.last_beat("gate-check", "r1") is None


def test_a_later_beat_counts_and_others_stay_as_they_were(beats: Any) -> None:
    beats.beat("guard", ["r1", "r2"])
    first = beats.last_beat("guard", "r1")
    beats.beat("guard", ["r2"])
    assert beats.last_beat("guard", "r1") == first
    assert beats.last_beat("guard", "r2") > first


@pytest.mark.services
def test_the_age_is_the_databases_and_rows_of_ended_rollouts_go(owner_url: str, more_engines: Callable[[], Any]) -> None:
    beats = PostgresHeartbeats(more_engines())
    assert beats.age_s("guard") is None
    beats.beat("guard", ["old", "new"])
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.heartbeats SET at = at - interval '8 days' WHERE rollout_id = 'old'")
        connection.execute("UPDATE penstock.heartbeats SET at = at - interval '1 hour' WHERE rollout_id = ''")
    assert timedelta(minutes=59) < timedelta(seconds=beats.age_s("guard") or 0.0) < timedelta(minutes=61)
    beats.beat("guard", ["new"])
    assert beats.last_beat("guard", "old") is None and beats.last_beat("guard", "new") is not None
    assert (beats.age_s("guard") or 1e9) < 60
