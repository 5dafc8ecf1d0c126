"""Whatever happened in a world: its log must come out again."""

from collections.abc import Iterator

import pytest

from tests.simulation.world import WORLDS


@pytest.fixture(autouse=True)
def _every_row_comes_out_again() -> Iterator[None]:
    WORLDS.clear()
    yield
    for world in WORLDS:
        world.assert_replays()
    WORLDS.clear()
