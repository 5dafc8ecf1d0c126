from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Engine

from controller.adapters.memory import MemoryAudit, MemoryFlags
from controller.adapters.postgres import PostgresAudit, PostgresFlags, app_url, open_engine
from tests.ports.databases import Databases


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One implementation of the ports. `audit` is audit log, index and outbox."""

    audit: Any
    flags: Any
    name: str


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    with Databases() as made:
        yield made


@pytest.fixture
def owner_url(databases: Databases) -> str:
    return databases.migrated()


@pytest.fixture
def engine(owner_url: str) -> Iterator[Engine]:
    made = open_engine(app_url(owner_url))
    yield made
    made.dispose()


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.services)])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        return World(audit=MemoryAudit(), flags=MemoryFlags(), name="memory")
    engine = request.getfixturevalue("engine")
    return World(audit=PostgresAudit(engine), flags=PostgresFlags(engine), name="postgres")


@pytest.fixture
def more_engines(owner_url: str) -> Iterator[Callable[[], Engine]]:
    """Further controllers on the same database."""
    made: list[Engine] = []

    def make() -> Engine:
        made.append(open_engine(app_url(owner_url)))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()
