from collections.abc import Iterator

import pytest

from tests.ports.databases import Databases


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with Databases() as made:
        yield made
