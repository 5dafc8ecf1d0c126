from collections.abc import AsyncIterator

import pytest

from tests.router.harness import FlagServer, Router, Upstream, config, serve_flags, serve_router, serve_upstream


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with serve_upstream() as served:
        yield served


@pytest.fixture
async def router(upstream: Upstream) -> AsyncIterator[Router]:
    async with serve_router(config(upstream.url)) as served:
        yield served


@pytest.fixture
async def flag_server() -> AsyncIterator[FlagServer]:
    async with serve_flags() as served:
        yield served
