"""A flag store that was restored from a backup: lifted above its readers, lowered where it may have forgotten a lowering, never raised."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, text

from controller.adapters.postgres import PostgresFlags, PostgresFlagSource, app_url, open_engine
from controller.adapters.postgres.connect import connect
from controller.console.flags_hub import REGISTRY, FlagHub
from controller.ports import CaughtUp, FlagConflict, FlagUnavailable
from flagspec import RouteFlag, Snapshot
from router.config import Flags
from router.flags import FlagClient, FlagTable
from router.metrics import RouterMetrics
from tests.ports.conftest import World
from tests.ports.events import change
from tests.ports.test_flags_door import Door, serving


def catch_up(flags: PostgresFlags, seen: int, environment: str = "production") -> CaughtUp | None:
    return flags.catch_up(environment, seen, actor="erin", reason="restored last night's backup")


def fill(world: World) -> None:
    """At revision 6."""
    for key, weight, shadow in (
        ("canary", 5_000, 0),
        ("shadowed", 0, 100_000),
        ("full", 100_000, 0),
        ("off", 0, 0),
        ("dead", 20_000, 0),
    ):
        world.flags.write(change(weight, shadow=shadow, key=key), 0)
    world.flags.set_killed("production", "dead", True, actor="erin", reason="pager")


def test_a_store_that_is_as_far_as_its_readers_is_left_alone(world: World) -> None:
    fill(world)
    before = {key: world.flags.read("production", key) for key in ("canary", "full", "dead")}
    for seen in (1, 5, 6):
        assert catch_up(world.flags, seen) is None
    assert {key: world.flags.read("production", key) for key in before} == before


def test_what_is_part_way_is_lowered_what_is_whole_stays_and_nothing_is_raised(world: World) -> None:
    fill(world)
    before = {key: world.flags.read("production", key) for key in ("canary", "shadowed", "full", "off", "dead")}
    done = catch_up(world.flags, 500)
    assert done is not None
    assert (done.was, done.lowered, done.kept) == (6, ("canary", "dead", "shadowed"), ("full",))
    now = {key: world.flags.read("production", key) for key in before}
    assert {k: (f.weight, f.shadow_weight, f.killed) for k, f in now.items()} == {
        "canary": (0, 0, False),
        "shadowed": (0, 0, False),
        "full": (100_000, 0, False),
        "off": (0, 0, False),
        "dead": (0, 0, True),
    }
    assert all(f.version == before[k].version + 1 for k, f in now.items())
    assert all(500 < f.revision <= done.revision for f in now.values())
    assert now["canary"].decision_id == "catch_up:500"
    assert now["full"].decision_id == before["full"].decision_id
    # Readers a little ahead of the one that spoke are overtaken as well.
    assert catch_up(world.flags, 600) is None
    # Whoever read a flag before cannot write over it.
    with pytest.raises(FlagConflict):
        world.flags.write(change(50_000, key="canary"), before["canary"].version)
    assert world.flags.write(change(50_000, key="canary"), now["canary"].version).revision == done.revision + 1


# --- Postgres -------------------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_another_environment_is_not_touched(engine: Engine) -> None:
    flags = PostgresFlags(engine)
    flags.write(change(5_000), 0)
    flags.write(change(7_000, environment="staging"), 0)
    assert catch_up(flags, 500) is not None
    assert flags.snapshot("staging").revision == 1
    assert flags.read("staging", "chat-model").weight == 7_000  # type: ignore[union-attr]


@pytest.mark.services
def test_a_flag_at_100_percent_that_a_rollout_still_holds_is_lowered(engine: Engine, owner_url: str) -> None:
    flags = PostgresFlags(engine)
    flags.write(change(100_000), 0)
    with connect(owner_url) as connection:
        connection.execute("INSERT INTO penstock.flag_holds VALUES ('production', 'chat-model', 'r1', 1)")
    done = catch_up(flags, 500)
    assert done is not None
    assert (done.lowered, done.kept) == (("chat-model",), ())


@pytest.mark.services
def test_the_history_says_who_and_why(engine: Engine, owner_url: str) -> None:
    flags = PostgresFlags(engine)
    flags.write(change(5_000), 0)
    flags.write(change(100_000, key="whole"), 0)
    catch_up(flags, 500)
    with connect(app_url(owner_url)) as connection:
        rows = connection.execute(
            "SELECT key, action, actor, reason, weight FROM penstock.flag_history WHERE revision > 500 ORDER BY key"
        ).fetchall()
    why = "restored last night's backup"
    assert rows == [("chat-model", "catch_up", "erin", why, 0), ("whole", "catch_up", "erin", why, 100_000)]


@pytest.mark.services
def test_nobody_raises_in_the_name_of_catching_up(engine: Engine, owner_url: str) -> None:
    PostgresFlags(engine).write(change(5_000), 0)
    with engine.begin() as connection:
        connection.execute(text("SELECT set_config('penstock.catching_up', 'on', true)"))
        connection.execute(text("UPDATE penstock.flags SET weight = 50000"))
    with connect(app_url(owner_url)) as reading:
        assert reading.execute("SELECT action FROM penstock.flag_history ORDER BY revision").fetchall() == [
            ("write",),
            ("write",),
        ]


@pytest.mark.services
@pytest.mark.parametrize("seen", [2**40 + 2, 2**53, 10**18 - 1])
def test_a_revision_that_no_store_was_ever_at_is_refused_and_changes_nothing(engine: Engine, seen: int) -> None:
    flags = PostgresFlags(engine)
    flags.write(change(5_000), 0)
    with pytest.raises(FlagUnavailable, match="no store was ever at revision"):
        catch_up(flags, seen)
    assert flags.snapshot("production").revision == 1
    assert catch_up(flags, 2**40 + 1) is not None


@pytest.mark.services
def test_a_store_that_may_only_be_read_is_not_taken_for_a_restored_one(engine: Engine, owner_url: str) -> None:
    PostgresFlags(engine).write(change(5_000), 0)
    replica = open_engine(f"{app_url(owner_url)}&options=-c%20default_transaction_read_only%3Don")
    try:
        with pytest.raises(FlagUnavailable, match="read-only"):
            catch_up(PostgresFlags(replica), 500)
    finally:
        replica.dispose()
    assert PostgresFlags(engine).snapshot("production").revision == 1


@pytest.mark.services
def test_writers_and_those_who_catch_up_do_not_wait_for_each_other_for_ever(
    engine: Engine, more_engines: Callable[[], Engine]
) -> None:
    flags = PostgresFlags(engine)
    for key in ("a", "b", "c"):
        flags.write(change(5_000, key=key), 0)
    failures: list[BaseException] = []
    done: list[CaughtUp | None] = []

    def write(store: PostgresFlags, key: str) -> None:
        try:
            for _ in range(30):
                found = store.read("production", key)
                assert found is not None
                with suppress(FlagConflict):
                    store.write(change(5_000, key=key), found.version)
        except BaseException as exc:
            failures.append(exc)

    def lift(store: PostgresFlags) -> None:
        try:
            for n in range(1, 10):
                done.append(catch_up(store, n * 3_000_000))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(PostgresFlags(more_engines()), key)) for key in ("a", "b", "c")]
    threads += [threading.Thread(target=lift, args=(PostgresFlags(more_engines()),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    # Each of the nine steps was taken once, by either of the two.
    assert sum(d is not None for d in done) == 9


# --- the door -------------------------------------------------------------------------------------------------------------------


def rewind(owner_url: str, *, weight: int = 5_000, killed: bool = False, revision: int = 1) -> None:
    """As a backup would have it: flags of before, revisions of before, no history of what came after."""
    with connect(owner_url) as connection, connection.transaction():
        connection.execute("ALTER TABLE penstock.flag_history DISABLE TRIGGER flag_history_append_only")
        connection.execute("ALTER TABLE penstock.flags DISABLE TRIGGER USER")
        connection.execute("DELETE FROM penstock.flag_history WHERE revision > %s", (revision,))
        connection.execute(
            "UPDATE penstock.flags SET weight = %s, killed = %s, version = %s, revision = %s",
            (weight, killed, revision, revision),
        )
        connection.execute("UPDATE penstock.flag_revisions SET revision = %s", (revision,))
        connection.execute("ALTER TABLE penstock.flags ENABLE TRIGGER USER")
        connection.execute("ALTER TABLE penstock.flag_history ENABLE ALWAYS TRIGGER flag_history_append_only")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A door and where its flags are."""

    door: Door
    flags: PostgresFlags
    owner_url: str

    async def snapshot(self, seen: int | None = None) -> Snapshot:
        headers = {} if seen is None else {"If-None-Match": f'"production:{seen}"'}
        answer = await self.door.get("/snapshot?environment=production", headers=headers)
        assert answer.status_code == 200, answer.text
        return Snapshot.from_json(answer.json())


@pytest.fixture
async def place(engine: Engine, owner_url: str) -> AsyncIterator[Place]:
    async with at(engine, owner_url) as made:
        yield made


@asynccontextmanager
async def at(engine: Engine, owner_url: str, *, open_to_all: bool = True) -> AsyncIterator[Place]:
    flags = PostgresFlags(engine)
    hub = FlagHub(PostgresFlagSource(app_url(owner_url), engine), flags, resync_s=0.1)
    async with serving(hub, None if open_to_all else lambda _request, _killed: "erin") as door:
        yield Place(door=door, flags=flags, owner_url=owner_url)


def written(flags: PostgresFlags, times: int) -> RouteFlag:
    """A flag that was raised to 5 %, and killed by the last of so many writes."""
    flag = flags.write(change(5_000), 0)
    for _ in range(times - 2):
        flag = flags.write(change(5_000), flag.version)
    return flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")


@pytest.mark.services
async def test_a_door_that_was_there_lifts_the_store_by_itself_and_readers_hear_of_it(place: Place) -> None:
    await asyncio.to_thread(written, place.flags, 8)
    assert (await place.snapshot()).revision == 8
    async with place.door.events() as stream:
        await stream.next()
        await asyncio.to_thread(rewind, place.owner_url)
        snapshot = Snapshot.from_json((await stream.next()).json())
    assert snapshot.revision > 8
    # The kill is forgotten, and what it was to stop does not come back.
    assert [(f.weight, f.killed) for f in snapshot.flags] == [(0, False)]


@pytest.mark.services
@pytest.mark.parametrize("way", ["tag", "weak tag", "long poll", "stream"])
async def test_a_door_that_was_not_there_hears_it_from_its_readers(place: Place, way: str) -> None:
    await asyncio.to_thread(place.flags.write, change(5_000), 0)
    url, name = "/snapshot?environment=production", '"production:8"'
    match way:
        case "tag" | "weak tag":
            tags = f'"staging:99", {"W/" if way == "weak tag" else ""}{name}'
            found = Snapshot.from_json((await place.door.get(url, headers={"If-None-Match": tags})).json())
        case "long poll":
            found = Snapshot.from_json((await place.door.get(f"{url}&after=8&wait=20")).json())
        case _:
            async with place.door.events(headers={"Last-Event-ID": "8"}) as stream:
                found = Snapshot.from_json((await stream.next()).json())
    assert found.revision > 8
    assert [f.weight for f in found.flags] == [0]


@pytest.mark.services
async def test_many_readers_lift_the_store_once(place: Place) -> None:
    await asyncio.to_thread(place.flags.write, change(5_000), 0)
    found = await asyncio.gather(*(place.snapshot(seen) for seen in range(5, 45)))
    assert len({s.revision for s in found}) == 1
    assert (await asyncio.to_thread(place.flags.read, "production", "chat-model")).version == 2  # type: ignore[union-attr]


@pytest.mark.services
async def test_a_write_that_another_door_told_first_lifts_nothing(place: Place) -> None:
    assert (await place.snapshot()).revision == 0
    flag = await asyncio.to_thread(place.flags.write, change(5_000), 0)
    assert (await place.door.get("/snapshot?environment=production&after=0&wait=20")).json()["revision"] == 1

    async def late() -> RouteFlag:
        await asyncio.sleep(0.05)
        return await asyncio.to_thread(place.flags.write, change(6_000), flag.version)

    early, _ = await asyncio.gather(place.door.get("/snapshot?environment=production&after=2&wait=0"), late())
    assert early.status_code == 304
    assert (await asyncio.to_thread(place.flags.read, "production", "chat-model")).weight == 6_000  # type: ignore[union-attr]


@pytest.mark.services
async def test_where_killing_takes_a_token_a_readers_word_lowers_nothing_and_is_counted(engine: Engine, owner_url: str) -> None:
    async with at(engine, owner_url, open_to_all=False) as place:
        await asyncio.to_thread(place.flags.write, change(5_000), 0)
        before = REGISTRY.get_sample_value("penstock_flag_readers_ahead_total") or 0
        found = await place.snapshot(seen=8)
        assert (found.revision, found.flags[0].weight) == (1, 5_000)
        assert REGISTRY.get_sample_value("penstock_flag_readers_ahead_total") == before + 1
        # What the door itself has seen is no hearsay.
        await asyncio.to_thread(place.flags.write, change(6_000), 1)
        async with asyncio.timeout(10):
            while (await place.snapshot()).revision < 2:
                await asyncio.sleep(0.02)
        await asyncio.to_thread(rewind, owner_url)
        async with asyncio.timeout(10):
            while (found := await place.snapshot()).flags[0].weight:
                await asyncio.sleep(0.02)
        assert found.revision > 2


@pytest.mark.services
async def test_a_claim_that_cannot_be_true_is_answered_with_what_there_is(place: Place) -> None:
    await asyncio.to_thread(place.flags.write, change(5_000), 0)
    found = await place.snapshot(seen=10**17)
    assert (found.revision, found.flags[0].weight) == (1, 5_000)


@pytest.mark.services
async def test_a_restored_store_that_cannot_be_lifted_is_told_to_nobody(engine: Engine, owner_url: str) -> None:
    async with at(engine, owner_url) as place:
        await asyncio.to_thread(written, place.flags, 8)
        assert (await place.snapshot()).revision == 8
        with connect(owner_url) as connection:
            connection.execute("REVOKE EXECUTE ON FUNCTION penstock.catch_up_flags(text, bigint) FROM penstock_app")
        try:
            await asyncio.to_thread(rewind, owner_url)
            async with asyncio.timeout(20):
                while (answer := await place.door.get("/snapshot?environment=production")).status_code != 503:
                    await asyncio.sleep(0.02)
            assert "permission denied" in answer.text
        finally:
            with connect(owner_url) as connection:
                connection.execute("GRANT EXECUTE ON FUNCTION penstock.catch_up_flags(text, bigint) TO penstock_app")
        async with asyncio.timeout(20):
            while (answer := await place.door.get("/snapshot?environment=production")).status_code != 200:
                await asyncio.sleep(0.02)
        assert Snapshot.from_json(answer.json()).revision > 8


@pytest.mark.services
@pytest.mark.parametrize("restarted", [False, True], ids=["the door stays", "the door is started again"])
async def test_a_router_obeys_a_kill_after_the_store_was_restored(engine: Engine, owner_url: str, restarted: bool) -> None:
    table = FlagTable("production")

    def client(place: Place) -> FlagClient:
        return FlagClient(Flags.model_validate({"source": place.door.base}), table, RouterMetrics("production"))

    async def until(weight: int, *, killed: bool) -> None:
        async with asyncio.timeout(20):
            while (flag := table.get("chat-model")) is None or (flag.weight, flag.killed) != (weight, killed):
                await asyncio.sleep(0.01)

    async def obeys(place: Place) -> None:
        await until(0, killed=False)
        await asyncio.to_thread(place.flags.set_killed, "production", "chat-model", True, actor="erin", reason="pager")
        await until(0, killed=True)

    async with at(engine, owner_url) as place:
        following = client(place)
        following.start()
        flag = await asyncio.to_thread(place.flags.write, change(5_000), 0)
        await asyncio.to_thread(place.flags.write, change(20_000), flag.version)
        await until(20_000, killed=False)
        if not restarted:
            await asyncio.to_thread(rewind, owner_url)
            await obeys(place)
        await following.close()
    if restarted:
        rewind(owner_url)
        async with at(engine, owner_url) as place:
            following = client(place)
            following.start()
            await obeys(place)
            await following.close()
