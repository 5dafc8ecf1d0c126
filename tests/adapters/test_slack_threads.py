"""Which message belongs to which rollout: the same answers from memory and from Postgres."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine

from controller.adapters.postgres.connect import app_url, single_use_engine
from controller.adapters.postgres.migrate import upgrade
from controller.adapters.slack import MemoryThreads, PostgresThreads, ThreadStore
from controller.ports import NotifierUnavailable
from services.postgres import EmbeddedPostgres

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("pg") / "data", durable=False) as server:
        upgrade(server.url)
        # With the rights of the controller, not of the owner.
        engine = single_use_engine(app_url(server.url))
        yield engine
        engine.dispose()


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.services)])
def threads(request: pytest.FixtureRequest) -> ThreadStore:
    return MemoryThreads() if request.param == "memory" else PostgresThreads(request.getfixturevalue("engine"))


def test_a_rollout_without_a_message_has_none(threads: ThreadStore) -> None:
    assert threads.get("never") is None


def test_the_last_message_of_a_rollout_counts(threads: ThreadStore) -> None:
    threads.put("r1", "C1", "1.0")
    threads.put("r2", "C1", "3.0")
    threads.put("r1", "C2", "2.0")
    assert threads.get("r1") == ("C2", "2.0")
    assert threads.get("r2") == ("C1", "3.0")


def test_a_database_that_is_not_there_keeps_the_letter() -> None:
    gone = PostgresThreads(
        create_engine("postgresql+psycopg://nobody:s3cret@127.0.0.1:9/none", connect_args={"connect_timeout": 2})
    )
    with pytest.raises(NotifierUnavailable) as read:
        gone.get("r1")
    with pytest.raises(NotifierUnavailable) as written:
        gone.put("r1", "C1", "1.0")
    assert "slack_threads cannot be read" in str(read.value)
    assert "s3cret" not in str(read.value) + str(written.value)
