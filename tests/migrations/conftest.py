from collections.abc import Iterator

import pytest

from tests.ports.databases import Databases


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    with Databases() as made:
        yield made


@pytest.fixture
def empty_url(databases: Databases) -> str:
    return databases.empty()
