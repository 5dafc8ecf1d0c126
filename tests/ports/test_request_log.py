"""Requests that are done once: in memory and in Postgres."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from controller.adapters.memory import MemoryRequests, wall_clock
from controller.adapters.postgres import PostgresRequests
from controller.adapters.postgres.connect import connect
from controller.ports import RequestLog, Taken

OURS = Taken(ours=True)
Later = Callable[[timedelta], None]


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.services)])
def log(request: pytest.FixtureRequest) -> tuple[RequestLog, Later]:
    """A request log, and a way to let time pass over what it holds."""
    if request.param == "memory":
        memory = MemoryRequests()

        def later(by: timedelta) -> None:
            at = wall_clock() + by
            memory.clock = lambda: at

        return memory, later
    engine: Engine = request.getfixturevalue("engine")
    owner_url: str = request.getfixturevalue("owner_url")

    def aged(by: timedelta) -> None:
        with connect(owner_url) as connection:
            connection.execute("UPDATE penstock.api_requests SET taken_at = taken_at - %s", (by,))

    return PostgresRequests(engine), aged


def test_who_takes_it_works_and_everybody_else_is_told(log: tuple[RequestLog, Later]) -> None:
    requests, _ = log
    assert requests.take("dana", "k", "f") == OURS
    assert requests.take("dana", "k", "f") == Taken()
    assert requests.take("dana", "k", "g") == Taken(same=False)
    assert requests.take("sam", "k", "g") == OURS
    requests.answer("dana", "k", 200, "{}")
    assert requests.take("dana", "k", "f") == Taken(status=200, answer="{}")
    assert requests.take("dana", "k", "g") == Taken(same=False, status=200, answer="{}")
    requests.answer("dana", "k", 500, "late")
    requests.give_back("dana", "k")
    assert requests.take("dana", "k", "f") == Taken(status=200, answer="{}")


def test_what_came_to_nothing_can_be_tried_again(log: tuple[RequestLog, Later]) -> None:
    requests, _ = log
    assert requests.take("dana", "k", "f") == OURS
    requests.give_back("dana", "k")
    assert requests.take("dana", "k", "g") == OURS


def test_the_work_of_somebody_who_died_is_done_again_after_a_while_and_only_as_it_was(log: tuple[RequestLog, Later]) -> None:
    requests, later = log
    assert requests.take("dana", "k", "f") == OURS
    later(timedelta(seconds=50))
    assert requests.take("dana", "k", "f") == Taken()
    later(timedelta(seconds=70))
    assert requests.take("dana", "k", "g") == Taken(same=False)
    assert requests.take("dana", "k", "f") == OURS
    requests.answer("dana", "k", 200, "{}")
    later(timedelta(seconds=200))
    assert requests.take("dana", "k", "f") == Taken(status=200, answer="{}")


@pytest.mark.services
def test_of_a_hundred_at_once_one_takes_it(engine: Engine) -> None:
    requests = PostgresRequests(engine)
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda _: requests.take("dana", "k", "f"), range(100)))
    assert sum(t.ours for t in taken) == 1


@pytest.mark.services
def test_answers_are_gone_after_a_week(engine: Engine, owner_url: str) -> None:
    requests = PostgresRequests(engine)
    requests.take("dana", "old", "f")
    requests.answer("dana", "old", 200, "{}")
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.api_requests SET taken_at = taken_at - interval '8 days'")
    requests.take("dana", "new", "f")
    assert requests.take("dana", "old", "g") == OURS
