"""The flag client against a real flag server: what comes into force, and what never does."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import router.flags
from flagspec import FlagSpecError, Snapshot, flag_to_json
from router.flags import FlagClient, FlagTable, read_snapshot_file
from router.metrics import RouterMetrics
from router.server import create_app
from tests.router.harness import FlagServer, Router, Upstream, config, eventually, flag, serve_flags, serve_router


def spec(upstream: Upstream, flags: FlagServer, **more: str) -> Any:
    return config(upstream.url, flags={"source": flags.url, **more})


def weight(router: Router) -> float | None:
    return router.metric("penstock_flag_weight_applied", flag="chat-model")


async def test_a_write_reaches_the_next_request(upstream: Upstream, flag_server: FlagServer) -> None:
    flag_server.write(flag(0, revision=1))
    async with serve_router(spec(upstream, flag_server)) as router:
        await eventually(lambda: router.app.flags.revision == 1)
        assert (await router.ask()).headers["x-penstock-arm"] == "baseline"
        flag_server.write(flag(100_000, revision=2))
        await eventually(lambda: router.app.flags.revision == 2)
        assert (await router.ask()).headers["x-penstock-arm"] == "candidate"
        assert (weight(router), router.metric("penstock_flag_revision_applied")) == (100_000, 2)
        flag_server.write(flag(100_000, revision=3, killed=True))
        await eventually(lambda: weight(router) == 0)
        assert (await router.ask()).headers["x-penstock-arm"] == "baseline"


async def test_without_a_control_plane_the_default_answers_and_readiness_waits_but_not_forever(upstream: Upstream) -> None:
    async with serve_flags() as gone:
        pass
    async with serve_router(spec(upstream, gone, ready_wait="300ms")) as router:
        async with router.http.get(f"{router.url}/readyz") as response:
            assert response.status == 503
        assert (await router.ask()).headers["x-penstock-model"] == "old"
        while True:
            async with router.http.get(f"{router.url}/readyz") as response:
                if response.status == 200:
                    break
        async with router.http.get(f"{router.url}/healthz") as response:
            assert response.status == 200


async def test_the_last_good_flags_stay_in_force_and_staleness_shows_until_the_source_is_back(
    upstream: Upstream, flag_server: FlagServer
) -> None:
    flag_server.write(flag(100_000, revision=1))
    async with serve_router(spec(upstream, flag_server, stale_after="200ms")) as router:
        await eventually(lambda: router.app.flags.revision == 1)
        flag_server.mode = "down"
        flag_server.wake()
        await eventually(lambda: router.metric("penstock_flag_stale") == 1)
        assert (await router.ask()).headers["x-penstock-arm"] == "candidate"
        flag_server.mode = "ok"
        flag_server.write(flag(0, revision=2))
        await eventually(lambda: router.app.flags.revision == 2)
        assert (await router.ask()).headers["x-penstock-arm"] == "baseline"


async def test_where_the_file_asks_for_it_a_silent_source_means_the_control_until_it_is_back(
    upstream: Upstream, flag_server: FlagServer
) -> None:
    flag_server.write(flag(100_000, revision=1))
    async with serve_router(spec(upstream, flag_server, stale_after="200ms", on_stale="control")) as router:
        await eventually(lambda: router.app.flags.revision == 1)
        assert ((await router.ask()).headers["x-penstock-arm"], weight(router)) == ("candidate", 100_000)
        flag_server.mode = "down"
        flag_server.wake()
        await eventually(lambda: weight(router) == 0)
        got = await router.ask()
        assert (got.headers["x-penstock-model"], got.headers["x-penstock-arm"]) == ("old", "baseline")
        assert router.metric("penstock_flag_revision_applied") == 1, "what was seen is not forgotten"
        flag_server.mode = "ok"
        flag_server.wake()
        await eventually(lambda: weight(router) == 100_000)
        assert (await router.ask()).headers["x-penstock-arm"] == "candidate"


async def test_polls_where_the_stream_does_not_get_through(upstream: Upstream, flag_server: FlagServer) -> None:
    flag_server.mode = "silent_stream"
    flag_server.write(flag(0, revision=1))
    async with serve_router(spec(upstream, flag_server, stream_silence="50ms")) as router:
        await eventually(lambda: any("wait=" in r for r in flag_server.requests))
        flag_server.write(flag(50_000, revision=2))
        await eventually(lambda: router.app.flags.revision == 2)
        assert weight(router) == 50_000


async def test_a_snapshot_with_one_bad_flag_is_refused_whole(upstream: Upstream, flag_server: FlagServer) -> None:
    flag_server.write(flag(10_000, revision=1))
    async with serve_router(spec(upstream, flag_server)) as router:
        await eventually(lambda: flag_server.streams == 1)
        good, bad = flag(90_000, revision=5), flag_to_json(flag(0, revision=5, key="other"))
        flag_server.override = {
            **flag_server.snapshot().to_json(),
            "revision": 5,
            "flags": [flag_to_json(good), {**bad, "weight": -1}],
        }
        asked = len(flag_server.requests)
        flag_server.mode = "ended"
        flag_server.wake()
        await eventually(lambda: len(flag_server.requests) >= asked + 3)
        assert (router.app.flags.revision, weight(router)) == (1, 10_000)


async def test_a_gap_between_events_is_closed_by_a_snapshot(upstream: Upstream, flag_server: FlagServer) -> None:
    flag_server.write(flag(0, revision=1))
    async with serve_router(spec(upstream, flag_server)) as router:
        await eventually(lambda: flag_server.streams == 1)
        flag_server.write(flag(7_000, revision=9))
        await eventually(lambda: router.app.flags.revision == 9)
        assert weight(router) == 7_000


def test_an_older_revision_never_replaces_a_newer_one() -> None:
    table = FlagTable("production")
    assert table.take_snapshot(Snapshot(environment="production", revision=5, flags=(flag(5, revision=5),)))
    assert not table.take_snapshot(Snapshot(environment="production", revision=4, flags=(flag(4, revision=4),)))
    assert table.take_flag(flag(3, revision=3)), "an old event asks for nothing"
    assert table.take_flag(flag(6, revision=6))
    assert not table.take_flag(flag(8, revision=8)), "7 is missing"
    seen = table.get("chat-model")
    assert seen is not None and seen.weight == 8
    assert table.revision == 6, "until the snapshot closes the gap"


@pytest.mark.parametrize(
    "flags", [(flag(environment="staging"),), (flag(), flag())], ids=["of another environment", "one key twice"]
)
def test_refuses_snapshots_that_are_not_for_this_router(flags: Any) -> None:
    with pytest.raises(FlagSpecError):
        FlagTable("production").take_snapshot(Snapshot(environment="production", revision=1, flags=flags))


async def test_a_static_snapshot_is_in_force_from_the_start(upstream: Upstream, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps(Snapshot(environment="production", revision=3, flags=(flag(100_000, revision=3),)).to_json()))
    async with serve_router(config(upstream.url, flags={"source": f"file:{path}"})) as router:
        assert (await router.ask()).headers["x-penstock-arm"] == "candidate"
        async with router.http.get(f"{router.url}/readyz") as response:
            assert response.status == 200
        assert router.metric("penstock_flag_stale") == 0


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_static_snapshot_that_cannot_be_used_stops_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "flags.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FlagSpecError, match=r"flags\.json"):
        read_snapshot_file(path)
    with pytest.raises(FlagSpecError, match=r"flags\.json"):
        create_app(config("http://127.0.0.1:9/v1", flags={"source": "file:flags.json"}), directory=tmp_path)


async def test_a_source_that_was_well_for_a_while_is_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router.flags, "BACKOFF_S", (0.01, 0.2))
    pauses: list[float] = []

    class Log:
        def warning(self, event: str, **more: Any) -> None:
            pauses.append(more["again_in_s"])

    monkeypatch.setattr(router.flags, "log", Log())
    spec_of = config("http://nowhere", flags={"source": "http://nowhere"}).flags
    assert spec_of is not None
    client = FlagClient(spec_of, FlagTable("production"), RouterMetrics("production"))

    async def breaks(self: FlagClient, session: object) -> None:
        await asyncio.sleep(0.5 if len(pauses) == 4 else 0)
        raise aiohttp.ClientPayloadError("the stream ended")

    monkeypatch.setattr(FlagClient, "_stream", breaks)
    follow = asyncio.create_task(client._follow())
    await eventually(lambda: len(pauses) >= 6)
    follow.cancel()
    assert pauses[:6] == [0.01, 0.02, 0.04, 0.08, 0.01, 0.02]
