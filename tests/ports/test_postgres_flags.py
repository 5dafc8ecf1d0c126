"""What only the flag store in Postgres can show: history, snapshots, edits by hand, and many writers at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import psycopg
import pytest
from sqlalchemy import Engine

from bench.cutting import CuttingProxy
from controller.adapters.postgres import PostgresFlags, PostgresFlagSource, reader_url
from controller.adapters.postgres.connect import app_url, connect
from controller.ports import FlagConflict, FlagKilled, FlagUnavailable
from flagspec import Snapshot, assign
from tests.ports.events import change

pytestmark = pytest.mark.services


@pytest.fixture
def flags(engine: Engine) -> PostgresFlags:
    return PostgresFlags(engine)


def test_the_history_says_who_killed_a_flag_and_why(flags: PostgresFlags, owner_url: str) -> None:
    flags.write(change(1_000, decision_id="r1.2.advance"), 0)
    flags.set_killed("production", "chat-model", True, actor="erin", reason="pager 4711")
    flags.set_killed("production", "chat-model", False, actor="sam", reason="fixed in 2.1")
    with connect(reader_url(owner_url)) as connection:
        rows = connection.execute(
            "SELECT revision, version, action, actor, reason, killed, weight, db_user FROM penstock.flag_history ORDER BY revision"
        ).fetchall()
    assert rows == [
        (1, 1, "write", "penstock_app", "", False, 1000, "penstock_app"),
        (2, 2, "kill", "erin", "pager 4711", True, 1000, "penstock_app"),
        (3, 3, "unkill", "sam", "fixed in 2.1", False, 0, "penstock_app"),
    ]


@pytest.mark.parametrize(("actor", "reason"), [("", "fixed"), ("erin", ""), ("  ", "fixed"), ("erin", "\n")])
def test_un_killing_needs_an_actor_and_a_reason(flags: PostgresFlags, actor: str, reason: str) -> None:
    flags.write(change(1_000), 0)
    flags.set_killed("production", "chat-model", True, actor="", reason="")
    with pytest.raises(ValueError, match="needs an actor and a reason"):
        flags.set_killed("production", "chat-model", False, actor=actor, reason=reason)
    found = flags.read("production", "chat-model")
    assert found is not None
    assert found.killed


def test_un_killing_another_version_than_the_one_seen_is_refused(flags: PostgresFlags) -> None:
    flags.write(change(1_000), 0)
    seen = flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")
    flags.set_killed("production", "chat-model", True, actor="sam", reason="worse than thought")
    with pytest.raises(FlagConflict, match="at version 3, not 2"):
        flags.set_killed("production", "chat-model", False, actor="erin", reason="fixed", expected_version=seen.version)
    assert not flags.set_killed("production", "chat-model", False, actor="erin", reason="fixed", expected_version=3).killed


def test_a_snapshot_holds_all_flags_of_one_environment_at_one_revision(flags: PostgresFlags) -> None:
    b = flags.write(change(2, key="b"), 0)
    a = flags.write(change(1, key="a"), 0)
    flags.write(change(3, environment="staging"), 0)
    snapshot = flags.snapshot("production")
    assert (snapshot.revision, snapshot.flags) == (2, (a, b))
    assert (flags.snapshot("unheard-of").revision, flags.snapshot("unheard-of").flags) == (0, ())


def test_of_many_raises_at_one_version_one_lands(more_engines: Callable[[], Engine]) -> None:
    stores = [PostgresFlags(more_engines()) for _ in range(4)]
    stores[0].write(change(0), 0)

    def raise_(number: int) -> bool:
        try:
            stores[number % 4].write(change(number + 1), 1)
        except FlagConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(raise_, range(16))) == 1
    assert stores[0].snapshot("production").revision == 2


def test_a_kill_wins_against_writers_that_never_stop(more_engines: Callable[[], Engine]) -> None:
    stores = [PostgresFlags(more_engines()) for _ in range(4)]
    stores[0].write(change(0), 0)

    def keep_raising(store: PostgresFlags) -> bool:
        for _ in range(200):
            flag = store.read("production", "chat-model")
            assert flag is not None
            try:
                store.write(change(flag.weight + 1), flag.version)
            except FlagConflict:
                continue
            except FlagKilled:
                return True
        return False

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(keep_raising, store) for store in stores[1:]]
        stores[0].set_killed("production", "chat-model", True, actor="erin", reason="pager")
        assert all(w.result() for w in writers)
    flag = stores[0].read("production", "chat-model")
    assert flag is not None
    assert flag.killed


def test_an_edit_by_hand_gets_a_revision_and_leaves_its_trace(flags: PostgresFlags, owner_url: str) -> None:
    flags.write(change(1_000), 0)
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.flags SET weight = 100000, version = 1, revision = 1")
        row = connection.execute("SELECT actor, db_user, weight FROM penstock.flag_history WHERE revision = 2").fetchone()
    assert row == ("postgres", "postgres", 100_000)
    flag = flags.read("production", "chat-model")
    assert flag is not None
    assert (flag.version, flag.revision, flag.weight) == (2, 2, 100_000)


def test_a_flag_deleted_by_hand_moves_the_revision(flags: PostgresFlags, owner_url: str) -> None:
    flags.write(change(1_000), 0)
    with connect(owner_url) as connection:
        connection.execute("DELETE FROM penstock.flags")
    snapshot = flags.snapshot("production")
    assert (snapshot.revision, snapshot.flags) == (2, ())


@pytest.mark.parametrize(
    "edit",
    ["control = '{}'", "candidate = '{\"model\": 5}'", "candidate = '[]'", "weight = 100001", "salt = ''", "key = 'other'"],
)
def test_an_edit_that_routers_could_not_read_is_refused(flags: PostgresFlags, owner_url: str, edit: str) -> None:
    written = flags.write(change(1_000), 0)
    with connect(owner_url) as connection, pytest.raises(psycopg.Error):
        connection.execute(f"UPDATE penstock.flags SET {edit}".encode())
    assert flags.read("production", "chat-model") == written


@pytest.mark.parametrize(
    "change_of_history",
    [
        "INSERT INTO penstock.flag_revisions VALUES ('x', 1)",
        "UPDATE penstock.flag_revisions SET revision = 0",
        "DELETE FROM penstock.flags",
    ],
)
def test_the_controller_cannot_touch_revisions_or_delete_flags(
    flags: PostgresFlags, owner_url: str, change_of_history: str
) -> None:
    flags.write(change(1_000), 0)
    with connect(app_url(owner_url)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(change_of_history.encode())


# --- the source of the door -----------------------------------------------------------------------------------------------------


def test_a_source_hears_of_a_write(flags: PostgresFlags, engine: Engine, owner_url: str) -> None:
    source = PostgresFlagSource(app_url(owner_url), engine)
    assert source.read() == {}
    written = flags.write(change(1_000), 0)
    assert source.wait_for_change(30)
    assert source.read()["production"].flags == (written,)
    assert not source.wait_for_change(0.05)
    source.close()


def test_a_write_between_listening_and_the_first_read_is_not_lost(flags: PostgresFlags, engine: Engine, owner_url: str) -> None:
    source = PostgresFlagSource(app_url(owner_url), engine)
    source.read()
    flags.write(change(1_000), 0)
    seen_at_once = source.read()["production"].revision
    assert seen_at_once == 1
    assert source.wait_for_change(30)
    source.close()


def test_a_cut_line_is_reported_and_made_again_by_the_next_read(flags: PostgresFlags, engine: Engine, owner_url: str) -> None:
    with CuttingProxy(owner_url) as proxy:
        source = PostgresFlagSource(proxy.url(), engine)
        source.read()
        proxy.cut_all()
        with pytest.raises(FlagUnavailable, match="listening for flags"):
            source.wait_for_change(30)
        with pytest.raises(FlagUnavailable, match="not connected"):
            source.wait_for_change(30)
        source.read()
        flags.write(change(1_000), 0)
        assert source.wait_for_change(30)
        source.close()


# --- what a stranger made unreadable -------------------------------------------------------------------------------------------

STRANGE = [
    "lease = 'infinity'",
    "lease = '-infinity'",
    "lease = '20000-01-01Z'",
    """control = '{"model": "m", "params": {"seed": 123456789012345678901234567890}}'""",
    """candidate = '{"model": "m", "params": {"max_tokens": -99999999999999999999}}'""",
]


@pytest.mark.parametrize("edit", STRANGE)
def test_a_flag_that_a_stranger_edited_can_still_be_read_killed_and_lowered(
    flags: PostgresFlags, owner_url: str, edit: str
) -> None:
    flags.write(change(1_000), 0)
    with connect(owner_url) as connection:
        connection.execute(f"UPDATE penstock.flags SET {edit}".encode())
    found = flags.read("production", "chat-model")
    assert found is not None and (found.version, found.weight) == (2, 1_000)
    assert flags.set_killed("production", "chat-model", True, actor="erin", reason="pager").killed
    assert flags.write(change(0), 3).weight == 0


@pytest.mark.parametrize("edit", STRANGE)
def test_an_edit_of_one_flag_keeps_no_other_from_its_routers(
    flags: PostgresFlags, engine: Engine, owner_url: str, edit: str
) -> None:
    flags.write(change(1_000), 0)
    flags.write(change(2_000, key="other"), 0)
    with connect(owner_url) as connection:
        connection.execute(f"UPDATE penstock.flags SET {edit} WHERE key = 'chat-model'".encode())
    source = PostgresFlagSource(app_url(owner_url), engine)
    snapshot = source.read()["production"]
    source.close()
    read = Snapshot.from_json(orjson.loads(orjson.dumps(snapshot.to_json())))  # what a router gets
    assert read.revision == 3
    assert "other" in [f.key for f in read.flags]
    assert all(f.control.model == "gpt-4.1" for f in read.flags)


def test_a_lease_that_lapsed_before_all_time_stays_lapsed(flags: PostgresFlags, owner_url: str) -> None:
    flags.write(change(1_000), 0)
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.flags SET lease = '-infinity'")
    flag = flags.read("production", "chat-model")
    assert flag is not None
    assert assign(flag, "u1", datetime(2026, 1, 1, tzinfo=UTC)).reason == "lease_lapsed"


def test_a_renewal_has_a_word_of_its_own_in_the_history_and_taking_a_lease_away_is_a_write(
    engine: Engine, owner_url: str
) -> None:
    flags = PostgresFlags(engine)
    flag = flags.write(replace(change(1_000), lease=timedelta(minutes=10)), 0)
    flags.renew("production", "chat-model", timedelta(minutes=10), flag.version)
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.flags SET lease = NULL")
        rows = connection.execute("SELECT action, version FROM penstock.flag_history ORDER BY revision").fetchall()
    assert rows == [("write", 1), ("renew", 1), ("write", 2)]
