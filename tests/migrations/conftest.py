from collections.abc import Iterator

import pytest

from tests.ports.databases import Databases


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    made = Databases(tmp_path_factory.mktemp("postgres") / "data")
    with made.server:
        yield made


@pytest.fixture
def empty_url(databases: Databases) -> str:
    return databases.empty()
