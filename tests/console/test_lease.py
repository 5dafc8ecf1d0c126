"""A lease from end to end: real Postgres, `penstock serve` as a process, and a router that goes back to the baseline when all of them are gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from controller.adapters.postgres import PostgresFlags, app_url, open_engine
from flagspec import Variant
from tests.console.conftest import commands
from tests.ports.databases import Databases
from tests.ports.events import change
from tests.router.harness import Upstream, config, eventually, serve_router, serve_upstream

pytestmark = pytest.mark.services

LEASE = timedelta(seconds=4)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with serve_upstream() as served:
        yield served


async def test_renewals_keep_the_candidate_and_without_them_the_router_goes_back_by_itself(
    databases: Databases, tmp_path: Path, upstream: Upstream
) -> None:
    engine = open_engine(app_url(databases.migrated()))
    flags = PostgresFlags(engine)
    raise_ = replace(change(100_000, decision_id="r1.2.advance"), control=Variant(model="old"), candidate=Variant(model="new"))
    with ExitStack() as controller:
        run = controller.enter_context(commands(databases, tmp_path))
        door = await asyncio.to_thread(run, "serve")
        flag = flags.write(replace(raise_, lease=LEASE), 0)
        async with serve_router(config(upstream.url, flags={"source": f"{door}/flags/v1"})) as router:
            await eventually(lambda: router.app.flags.revision == flag.revision)
            for _ in range(6):  # longer than the lease
                renewed = await asyncio.to_thread(flags.renew, "production", "chat-model", LEASE, flag.version)
                await eventually(lambda renewed=renewed: router.app.flags.revision == renewed.revision)  # type: ignore[misc]  # a default binds it
                assert (await router.ask()).headers["x-penstock-arm"] == "candidate"
                await asyncio.sleep(1)
            controller.close()
            engine.dispose()
            await eventually(lambda: router.metric("penstock_flag_weight_applied", flag="chat-model") == 0)
            answered = await router.ask()
            assert (answered.headers["x-penstock-arm"], answered.headers["x-penstock-model"]) == ("baseline", "old")
