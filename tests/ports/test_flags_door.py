"""The flag door over real HTTP, on flags in memory and in Postgres."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
import uvicorn
from httpx_sse import ServerSentEvent, aconnect_sse
from sqlalchemy import Engine
from starlette.applications import Starlette

from bench.cutting import CuttingProxy
from controller.adapters.postgres import PostgresFlags, PostgresFlagSource, app_url, open_engine
from controller.adapters.postgres.connect import connect
from controller.console import flags_door, flags_hub
from controller.console.flags_door import Admit, routes
from controller.console.flags_hub import FlagHub, LocalSource
from controller.ports import CaughtUp, FlagUnavailable, UnknownFlag
from flagspec import RouteFlag, Snapshot, Variant, flag_from_json
from tests.ports.events import change

FLAG = RouteFlag(
    environment="production",
    key="chat-model",
    version=1,
    revision=1,
    control=Variant(model="gpt-4.1"),
    candidate=Variant(model="gpt-5", params={"stop": ["ä"]}),
    salt="s",
)


class LocalSwitch:
    """Kills flags of a LocalSource."""

    def __init__(self, source: LocalSource) -> None:
        self._source = source

    def read(self, environment: str, key: str) -> RouteFlag | None:
        found = self._source.read().get(environment)
        return next((f for f in found.flags if f.key == key), None) if found else None

    def set_killed(
        self, environment: str, key: str, killed: bool, *, actor: str, reason: str, expected_version: int | None = None
    ) -> RouteFlag:
        flag = self.read(environment, key)
        if flag is None:
            raise UnknownFlag(f"no flag {key!r} in {environment}")
        written = replace(flag, killed=killed, version=flag.version + 1, revision=self._source.read()[environment].revision + 1)
        self._source.put(written)
        return written

    def catch_up(self, environment: str, seen: int, *, actor: str, reason: str) -> CaughtUp | None:
        raise FlagUnavailable("there is no store behind it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    base: str
    client: httpx.AsyncClient
    hub: FlagHub

    def get(self, path: str, **kwargs: Any) -> Any:
        return self.client.get(self.base + path, **kwargs)

    @asynccontextmanager
    async def events(
        self, query: str = "environment=production", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator["Stream"]:
        url = f"{self.base}/events?{query}"
        async with aconnect_sse(self.client, "GET", url, headers=dict(headers or {})) as source:
            assert source.response.status_code == 200
            yield Stream(source.aiter_sse())


class Stream:
    def __init__(self, events: Any) -> None:
        self._events = events

    async def next(self) -> ServerSentEvent:
        async with asyncio.timeout(30):
            event: ServerSentEvent = await anext(self._events)
            return event


@asynccontextmanager
async def serving(hub: FlagHub, admit: Admit | None = None) -> AsyncIterator[Door]:
    app = Starlette(routes=routes(hub, admit))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(30.0), limits=limits) as client:
        try:
            yield Door(base=f"http://127.0.0.1:{listener.getsockname()[1]}/flags/v1", client=client, hub=hub)
        finally:
            server.should_exit = True
            await task
            await hub.close()


@pytest.fixture
def source() -> LocalSource:
    return LocalSource()


@pytest.fixture
async def door(source: LocalSource) -> AsyncIterator[Door]:
    async with serving(FlagHub(source, LocalSwitch(source))) as made:
        yield made


def put(source: LocalSource, revision: int, **changes: Any) -> RouteFlag:
    flag = replace(FLAG, revision=revision, version=revision, **changes)
    source.put(flag)
    return flag


# --- snapshots ------------------------------------------------------------------------------------------------------------------


async def test_a_snapshot_is_the_environments_flags_with_a_strong_etag(door: Door, source: LocalSource) -> None:
    flag = put(source, 1, weight=1_000)
    answer = await door.get("/snapshot?environment=production")
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"production:1"'
    assert Snapshot.from_json(answer.json()) == Snapshot(environment="production", revision=1, flags=(flag,))


async def test_an_unknown_environment_is_empty_at_revision_0(door: Door) -> None:
    answer = await door.get("/snapshot?environment=nowhere")
    assert answer.json() == {"schema": "penstock.flags/v1", "environment": "nowhere", "revision": 0, "flags": []}
    assert answer.headers["etag"] == '"nowhere:0"'


@pytest.mark.parametrize("tag", ['"production:1"', 'W/"production:1"', '"x", "production:1"', "*"])
async def test_the_same_etag_is_answered_304_without_a_body(door: Door, source: LocalSource, tag: str) -> None:
    put(source, 1)
    answer = await door.get("/snapshot?environment=production", headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"production:1"')


@pytest.mark.parametrize("tag", ['"production:0"', '"staging:1"', "production:1", ""])
async def test_another_etag_is_answered_with_the_snapshot(door: Door, source: LocalSource, tag: str) -> None:
    put(source, 1)
    answer = await door.get("/snapshot?environment=production", headers={"If-None-Match": tag})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("", "environment"),
        ("environment=", "environment"),
        ("environment=Production", "environment"),
        ("environment=a%22b", "environment"),
        ("environment=" + "a" * 64, "environment"),
        ("environment=production&wait=1", "after"),
        ("environment=production&after=x", "after"),
        ("environment=production&after=-1", "after"),
        ("environment=production&after=1.5", "after"),
        ("environment=production&after=%D9%A1", "after"),
        ("environment=production&after=" + "9" * 19, "after"),
        ("environment=production&after=1&wait=soon", "wait"),
        ("environment=production&after=1&wait=-1", "wait"),
        ("environment=production&after=1&wait=nan", "wait"),
        ("environment=production&after=1&wait=inf", "wait"),
        ("environment=production&after=1&wait=61", "wait"),
    ],
)
async def test_a_bad_parameter_is_named(door: Door, query: str, parameter: str) -> None:
    answer = await door.get(f"/snapshot?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["parameter"] == parameter
    assert parameter in answer.json()["error"]["message"]


# --- long poll ------------------------------------------------------------------------------------------------------------------


async def test_a_long_poll_behind_the_revision_is_answered_at_once(door: Door, source: LocalSource) -> None:
    put(source, 5)
    answer = await door.get("/snapshot?environment=production&after=4&wait=60")
    assert answer.json()["revision"] == 5


async def test_a_long_poll_ends_with_the_change(door: Door, source: LocalSource) -> None:
    put(source, 5)
    waiting = asyncio.create_task(door.get("/snapshot?environment=production&after=5&wait=60"))
    await door.get("/snapshot?environment=production")
    put(source, 6, weight=7)
    answer = await waiting
    assert (answer.status_code, answer.json()["revision"], answer.json()["flags"][0]["weight"]) == (200, 6, 7)


async def test_a_long_poll_without_a_change_is_304(door: Door, source: LocalSource) -> None:
    put(source, 5)
    answer = await door.get("/snapshot?environment=production&after=5&wait=0.05")
    assert (answer.status_code, answer.headers["etag"]) == (304, '"production:5"')


async def test_a_long_poll_is_not_woken_by_changes_before_its_revision(door: Door, source: LocalSource) -> None:
    put(source, 5)
    waiting = asyncio.create_task(door.get("/snapshot?environment=production&after=7&wait=60"))
    await door.get("/snapshot?environment=production")
    for revision in (6, 7, 8):
        put(source, revision)
        await door.get(f"/snapshot?environment=production&after={revision - 1}&wait=30")
    assert (await waiting).json()["revision"] == 8


async def test_a_change_of_another_environment_wakes_nobody(door: Door, source: LocalSource) -> None:
    put(source, 5)
    waiting = asyncio.create_task(door.get("/snapshot?environment=production&after=5&wait=0.3"))
    put(source, 1, environment="staging")
    assert (await waiting).status_code == 304


# --- events ---------------------------------------------------------------------------------------------------------------------


async def test_a_stream_begins_with_the_snapshot_and_goes_on_with_each_write(door: Door, source: LocalSource) -> None:
    put(source, 3, weight=1)
    async with door.events() as stream:
        first = await stream.next()
        assert (first.event, first.id) == ("snapshot", "3")
        assert Snapshot.from_json(first.json()).revision == 3
        for revision in (4, 5):
            flag = put(source, revision, weight=revision)
            event = await stream.next()
            assert (event.event, event.id, flag_from_json(event.json())) == ("flag", str(revision), flag)


async def test_a_stream_of_an_environment_without_flags_begins_empty(door: Door, source: LocalSource) -> None:
    async with door.events() as stream:
        assert (await stream.next()).json()["flags"] == []
        put(source, 1)
        assert (await stream.next()).event == "flag"


async def test_a_reader_that_is_up_to_date_resumes_without_a_snapshot(door: Door, source: LocalSource) -> None:
    put(source, 3)
    async with door.events(headers={"Last-Event-ID": "3"}) as stream:
        await door.get("/snapshot?environment=production")
        put(source, 4)
        assert ((event := await stream.next()).event, event.id) == ("flag", "4")


@pytest.mark.parametrize("last_id", ["2", "9", "x", ""])
async def test_a_reader_that_is_not_up_to_date_resumes_with_a_snapshot(door: Door, source: LocalSource, last_id: str) -> None:
    put(source, 3)
    async with door.events(headers={"Last-Event-ID": last_id}) as stream:
        assert ((event := await stream.next()).event, event.id) == ("snapshot", "3")


def state(*flags: RouteFlag, revision: int) -> flags_hub.State:
    return flags_hub.State(Snapshot(environment="production", revision=revision, flags=flags))


def test_single_flags_are_sent_only_when_they_tell_everything() -> None:
    a1, a2, b3 = FLAG, replace(FLAG, revision=2), replace(FLAG, key="b", revision=3)
    seen = state(a1, revision=1).snapshot
    assert state(a2, revision=2).newer_than(seen) == (a2,)
    assert state(b3, a2, revision=3).newer_than(seen) == (a2, b3)
    overtaken = replace(FLAG, revision=3)
    assert state(overtaken, revision=3).newer_than(seen) is None
    assert state(revision=2).newer_than(seen) is None, "a flag is gone"
    assert state(a1, revision=1).newer_than(state(b3, a2, revision=3).snapshot) == (), "back in time: nothing newer"


async def test_a_silent_stream_is_kept_alive(source: LocalSource, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flags_door.HEARTBEAT_S <= 10
    monkeypatch.setattr(flags_door, "HEARTBEAT_S", 0.05)
    async with serving(FlagHub(source, LocalSwitch(source))) as door:
        url = f"{door.base}/events?environment=production"
        async with door.client.stream("GET", url) as response, asyncio.timeout(30):
            lines = response.aiter_lines()
            while await anext(lines) != ": alive":
                pass


async def test_a_reader_that_takes_nothing_holds_up_nobody(door: Door, source: LocalSource) -> None:
    big = Variant(model="gpt-5", params={"x": "y" * 400_000})
    put(source, 1, candidate=big)
    host, port = door.base.removeprefix("http://").partition("/")[0].split(":")
    stuck_reader, stuck_writer = await asyncio.open_connection(host, int(port), limit=1024)
    stuck_writer.write(f"GET /flags/v1/events?environment=production HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    await stuck_writer.drain()
    async with door.events() as stream:
        await stream.next()
        for revision in range(2, 30):
            put(source, revision, candidate=big)
            assert (await stream.next()).id == str(revision)
    stuck_writer.close()
    assert stuck_reader is not None


async def test_a_thousand_readers_cost_the_source_one_read(source: LocalSource) -> None:
    put(source, 1)
    reads = 0

    class Counting(LocalSource):
        def read(self) -> Mapping[str, Snapshot]:
            nonlocal reads
            reads += 1
            return source.read()

        def wait_for_change(self, timeout_s: float) -> bool:
            return source.wait_for_change(timeout_s)

    hub = FlagHub(Counting(), LocalSwitch(source), resync_s=60)
    seen = (await hub.current("production")).snapshot
    readers = [asyncio.create_task(hub.next(seen)) for _ in range(1000)]
    await asyncio.sleep(0)
    put(source, 2)
    states = await asyncio.gather(*readers)
    assert {s.revision for s in states} == {2}
    assert len({id(s) for s in states}) == 1
    assert reads == 2
    put(source, 3)
    await hub.close()


# --- the source is down ---------------------------------------------------------------------------------------------------------


async def until_down(door: Door, reason: str | None) -> None:
    async with asyncio.timeout(30):
        while door.hub.down != reason:
            await asyncio.sleep(0.01)


async def test_questions_are_answered_503_while_the_source_is_down_and_streams_go_on_after(
    door: Door, source: LocalSource
) -> None:
    put(source, 1)
    async with door.events() as stream:
        await stream.next()
        source.fail("the database is away")
        await until_down(door, "the database is away")
        for path in ("/snapshot?environment=production", "/events?environment=production"):
            answer = await door.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["message"] == "the database is away"
        source.fail(None)
        put(source, 2, weight=5)
        assert ((event := await stream.next()).event, event.id) == ("flag", "2")
        assert (await door.get("/snapshot?environment=production")).status_code == 200


async def test_a_long_poll_during_an_outage_does_not_say_that_nothing_changed(door: Door, source: LocalSource) -> None:
    put(source, 1)
    await door.get("/snapshot?environment=production")
    waiting = asyncio.create_task(door.get("/snapshot?environment=production&after=1&wait=1"))
    await door.get("/snapshot?environment=production")
    source.fail("the database is away")
    assert (await waiting).status_code == 503


# --- the kill switch ------------------------------------------------------------------------------------------------------------


async def test_a_kill_is_answered_with_the_flag_and_told_to_readers(door: Door, source: LocalSource) -> None:
    put(source, 1, weight=1_000)
    async with door.events() as stream:
        await stream.next()
        answer = await door.client.post(f"{door.base}/production/chat-model/kill", json={"actor": "erin", "reason": "pager"})
        assert (answer.status_code, answer.json()["killed"]) == (200, True)
        assert flag_from_json((await stream.next()).json()).killed
        assert (await door.get("/snapshot?environment=production")).json()["flags"][0]["killed"]


@pytest.mark.parametrize(
    ("action", "body", "status", "parameter"),
    [
        ("kill", {"reason": "pager"}, 400, "actor"),
        ("kill", {"actor": "erin"}, 400, "reason"),
        ("kill", {"actor": " ", "reason": "pager"}, 400, "actor"),
        ("kill", {"actor": 5, "reason": "pager"}, 400, "actor"),
        ("kill", {"actor": "erin", "reason": "x" * 1001}, 400, "reason"),
        ("kill", [], 400, "body"),
        ("unkill", {"actor": "erin", "reason": "fixed"}, 400, "version"),
        ("unkill", {"actor": "erin", "reason": "fixed", "version": True}, 400, "version"),
        ("unkill", {"actor": "erin", "reason": "fixed", "version": "2"}, 400, "version"),
        ("unkill", {"actor": "erin", "reason": "fixed", "version": 2**63}, 400, "version"),
        ("kill", {"actor": "erin", "reason": "x" * 20_000}, 413, "body"),
    ],
)
async def test_a_bad_kill_is_refused_and_named(
    door: Door, source: LocalSource, action: str, body: Any, status: int, parameter: str
) -> None:
    put(source, 1)
    answer = await door.client.post(f"{door.base}/production/chat-model/{action}", json=body)
    assert (answer.status_code, answer.json()["error"]["parameter"]) == (status, parameter)
    assert source.read()["production"].revision == 1


async def test_a_kill_that_a_web_form_could_send_is_refused(door: Door, source: LocalSource) -> None:
    put(source, 1)
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        body = b'{"actor": "erin", "reason": "pager"}'
        answer = await door.client.post(f"{door.base}/production/chat-model/kill", content=body, headers=headers)
        assert answer.status_code == 415
    answer = await door.client.post(
        f"{door.base}/production/chat-model/kill", content=b"{", headers={"content-type": "application/json; charset=utf-8"}
    )
    assert (answer.status_code, answer.json()["error"]["parameter"]) == (400, "body")


async def test_an_unknown_flag_is_404(door: Door) -> None:
    answer = await door.client.post(f"{door.base}/production/nothing/kill", json={"actor": "erin", "reason": "pager"})
    assert (answer.status_code, answer.json()["error"]["parameter"]) == (404, "key")


# --- on Postgres ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def postgres_door(engine: Engine, owner_url: str) -> AsyncIterator[Door]:
    hub = FlagHub(PostgresFlagSource(app_url(owner_url), engine), PostgresFlags(engine))
    async with serving(hub) as made:
        yield made


@pytest.mark.services
async def test_a_write_in_postgres_reaches_a_stream(postgres_door: Door, engine: Engine) -> None:
    flags = PostgresFlags(engine)
    async with postgres_door.events() as stream:
        assert (await stream.next()).json()["revision"] == 0
        written = await asyncio.to_thread(flags.write, change(1_000), 0)
        assert flag_from_json((await stream.next()).json()) == written


@pytest.mark.services
async def test_killing_and_un_killing_through_the_door(postgres_door: Door, engine: Engine, owner_url: str) -> None:
    await asyncio.to_thread(PostgresFlags(engine).write, change(1_000), 0)
    base, client = f"{postgres_door.base}/production/chat-model", postgres_door.client
    killed = (await client.post(f"{base}/kill", json={"actor": "erin", "reason": "pager"})).json()
    assert (killed["killed"], killed["version"]) == (True, 2)
    stale = await client.post(f"{base}/unkill", json={"actor": "erin", "reason": "fixed", "version": 1})
    assert (stale.status_code, stale.json()["error"]["parameter"]) == (409, "version")
    back = await client.post(f"{base}/unkill", json={"actor": "erin", "reason": "fixed", "version": 2})
    assert (back.json()["killed"], back.json()["weight"]) == (False, 0)
    with connect(app_url(owner_url)) as connection:
        rows = connection.execute("SELECT action, actor, reason FROM penstock.flag_history ORDER BY revision OFFSET 1").fetchall()
    assert rows == [("kill", "erin", "pager"), ("unkill", "erin", "fixed")]


@pytest.mark.services
async def test_a_lost_notification_is_healed_by_the_resync(
    owner_url: str, engine: Engine, more_engines: Callable[[], Engine]
) -> None:
    with CuttingProxy(owner_url) as proxy:
        proxy.swallow_notify = True
        hub = FlagHub(PostgresFlagSource(proxy.url(), more_engines()), PostgresFlags(engine), resync_s=0.2)
        async with serving(hub) as door, door.events() as stream:
            await stream.next()
            written = await asyncio.to_thread(PostgresFlags(engine).write, change(1_000), 0)
            assert flag_from_json((await stream.next()).json()) == written


@pytest.mark.services
async def test_a_stream_outlives_an_outage_of_postgres(owner_url: str, engine: Engine) -> None:
    with CuttingProxy(owner_url) as proxy:
        reads = open_engine(proxy.url())
        hub = FlagHub(PostgresFlagSource(proxy.url(), reads), PostgresFlags(reads))
        async with serving(hub) as door, door.events() as stream:
            await stream.next()
            proxy.refuse = True
            proxy.cut_all()
            async with asyncio.timeout(30):
                while (await door.get("/snapshot?environment=production")).status_code != 503:
                    await asyncio.sleep(0.01)
            written = await asyncio.to_thread(PostgresFlags(engine).write, change(1_000), 0)
            proxy.refuse = False
            assert flag_from_json((await stream.next()).json()) == written
        reads.dispose()
