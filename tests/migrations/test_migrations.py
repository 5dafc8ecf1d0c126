"""What `penstock migrate` promises: every step whole or not at all, again without harm, by anybody who may."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from controller.adapters.postgres import open_engine
from controller.adapters.postgres.connect import app_url, connect, create_database, reader_url, single_use_engine
from controller.adapters.postgres.errors import BadDatabaseUrl, DatabaseUnreachable, MigrationFailed, SchemaMismatch
from controller.adapters.postgres.migrate import check, current, upgrade
from controller.adapters.postgres.tables import MIGRATION_LOCK, SCHEMA, SCHEMA_REVISION, metadata
from tests.ports.databases import Databases

pytestmark = pytest.mark.services

CATCH_UP = "CREATE FUNCTION penstock.catch_up_flags(text, bigint)"

ALL = ["0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009"]


def test_an_empty_database_gets_every_revision_and_a_second_run_none(empty_url: str) -> None:
    assert current(empty_url) is None
    assert upgrade(empty_url) == ALL
    assert upgrade(empty_url) == []
    assert current(empty_url) == SCHEMA_REVISION
    check(empty_url)


def test_the_release_needs_the_newest_revision() -> None:
    script = ScriptDirectory(str(resources.files("migrations")))
    assert script.get_heads() == [SCHEMA_REVISION]
    assert [r.revision for r in reversed(list(script.walk_revisions()))] == ALL


def test_the_tables_that_queries_name_are_those_that_migrations_make(empty_url: str) -> None:
    upgrade(empty_url)
    with single_use_engine(empty_url).connect() as connection:
        options = {"version_table_schema": SCHEMA, "include_schemas": True, "compare_server_default": True}
        only_ours = {"include_name": lambda name, kind, _parents: kind != "schema" or name == SCHEMA}
        context = MigrationContext.configure(connection, opts={**options, **only_ours})
        found = [d for group in compare_metadata(context, metadata) for d in (group if isinstance(group, list) else [group])]
    # Comments are for people with psql and stand in the migrations only.
    assert [d for d in found if d[0] != "modify_comment"] == []


def test_check_says_where_the_database_is_and_what_to_run(empty_url: str) -> None:
    with pytest.raises(SchemaMismatch, match=r"no tables of penstock, this release needs 0009: run `penstock migrate`"):
        check(empty_url)
    upgrade(empty_url)
    with connect(empty_url) as connection:
        connection.execute("UPDATE penstock.alembic_version SET version_num = '0002'")
    with pytest.raises(SchemaMismatch, match=r"is at 0002, this release needs 0009: run `penstock migrate`"):
        check(empty_url)
    with pytest.raises(SchemaMismatch, match="is at 0002"):
        open_engine(app_url(empty_url))


def test_a_database_of_a_newer_release_is_left_alone(empty_url: str) -> None:
    upgrade(empty_url)
    with connect(empty_url) as connection:
        connection.execute("UPDATE penstock.alembic_version SET version_num = '9999'")
    for refused in (check, upgrade):
        with pytest.raises(SchemaMismatch, match="is at 9999, this release knows revisions up to 0009"):
            refused(empty_url)


@pytest.mark.parametrize("stop_before", ALL)
def test_a_failed_migration_leaves_the_one_before_it_and_running_again_goes_on(empty_url: str, stop_before: str) -> None:
    # The first statement of each revision that can be made to fail: the name is taken.
    obstacle = {
        "0001": "CREATE SCHEMA penstock; CREATE VIEW penstock.audit_queries AS SELECT 1 AS one",
        "0002": "CREATE SCHEMA penstock; CREATE TABLE penstock.flag_holds (x int)",
        "0003": "CREATE SCHEMA penstock; CREATE TABLE penstock.slack_threads (x int)",
        "0004": "CREATE SCHEMA penstock",
        "0005": "CREATE SCHEMA penstock; CREATE TABLE penstock.heartbeats (x int)",
        "0006": "CREATE SCHEMA penstock; CREATE TABLE penstock.api_requests (x int)",
        "0007": "CREATE SCHEMA penstock; CREATE TABLE penstock.archived_evidence (x int)",
        "0008": "CREATE SCHEMA penstock; CREATE TABLE penstock.console_sessions (x int)",
        "0009": f"CREATE SCHEMA penstock; {CATCH_UP} RETURNS int LANGUAGE sql AS 'SELECT 1'",
    }[stop_before]
    cure = {
        "0001": "DROP VIEW penstock.audit_queries",
        "0002": "DROP TABLE penstock.flag_holds",
        "0003": "DROP TABLE penstock.slack_threads",
        "0004": "ALTER SCHEMA penstock OWNER TO CURRENT_USER",
        "0005": "DROP TABLE penstock.heartbeats",
        "0006": "DROP TABLE penstock.api_requests",
        "0007": "DROP TABLE penstock.archived_evidence",
        "0008": "DROP TABLE penstock.console_sessions",
        "0009": "DROP FUNCTION penstock.catch_up_flags",
    }[stop_before]
    done = ALL[: ALL.index(stop_before)]
    with connect(empty_url) as connection:
        connection.execute(obstacle.encode())
        if stop_before == "0004":
            _fail_grants(connection)
        with pytest.raises(MigrationFailed):
            upgrade(empty_url)
        assert current(empty_url) == (done[-1] if done else None)
        if stop_before == "0004":
            connection.execute("DROP EVENT TRIGGER no_grants")
        connection.execute(cure.encode())
    assert upgrade(empty_url) == ALL[ALL.index(stop_before) :]


def _fail_grants(connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    connection.execute(
        "CREATE FUNCTION no_grants() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no grants today'; END $$"
    )
    connection.execute("CREATE EVENT TRIGGER no_grants ON ddl_command_start WHEN TAG IN ('GRANT') EXECUTE FUNCTION no_grants()")


def test_processes_that_migrate_at_once_do_the_work_once(empty_url: str) -> None:
    program = "import sys; from controller.adapters.postgres.migrate import upgrade; print(*upgrade(sys.argv[1]))"
    argv = [sys.executable, "-c", program, empty_url]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    applied = [process.communicate(timeout=60)[0].split() for process in running]
    assert sorted(applied) == [[], [], ALL]


def test_threads_that_migrate_at_once_do_the_work_once(empty_url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        applied = list(pool.map(upgrade, [empty_url] * 3))
    assert sorted(applied) == [[], [], ALL]


def test_a_killed_migration_leaves_no_lock_behind(empty_url: str) -> None:
    """The process dies in the middle of the third migration, holding the lock of the session."""
    program = (
        "import os, signal, sys\n"
        "from sqlalchemy import Engine, event\n"
        "from controller.adapters.postgres import migrate\n"
        "@event.listens_for(Engine, 'before_cursor_execute')\n"
        "def die(connection, cursor, statement, *rest):\n"
        "    if 'CREATE TABLE penstock.slack_threads' in statement:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "migrate.upgrade(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, empty_url], capture_output=True, check=False, timeout=60)
    assert done.returncode == -9, done.stderr
    assert current(empty_url) == "0002"
    assert upgrade(empty_url) == ["0003", "0004", "0005", "0006", "0007", "0008", "0009"]


def test_a_migration_does_not_wait_long_for_a_table(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade(empty_url)
    with connect(empty_url) as connection:
        connection.execute(
            "DROP TABLE penstock.slack_threads, penstock.outbox, penstock.heartbeats, penstock.api_requests, penstock.archived_evidence, penstock.console_sessions; DROP FUNCTION penstock.is_renewal, penstock.is_catching_up, penstock.catch_up_flags"
        )
        connection.execute("UPDATE penstock.alembic_version SET version_num = '0002'")
        connection.autocommit = False
        connection.execute("LOCK TABLE penstock.alembic_version IN ACCESS EXCLUSIVE MODE")
        with pytest.raises((MigrationFailed, DatabaseUnreachable), match="lock timeout"):
            upgrade(empty_url)
        connection.rollback()
    assert upgrade(empty_url) == ["0003", "0004", "0005", "0006", "0007", "0008", "0009"]


# --- roles ----------------------------------------------------------------------------------------------------------------------


def test_a_role_that_may_not_make_roles_is_told_what_an_administrator_runs() -> None:
    """On a server of its own, because roles belong to the whole server."""
    with Databases() as databases:
        url = databases.empty()
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        with connect(url) as connection:
            connection.execute(f"CREATE ROLE deployer LOGIN; GRANT CREATE ON DATABASE {name} TO deployer".encode())
        mine = databases.server.url_for(name, user="deployer")
        with pytest.raises(MigrationFailed, match="CREATE ROLE penstock_app LOGIN; CREATE ROLE penstock_reader LOGIN;"):
            upgrade(mine)
        assert current(mine) == "0003"
        with connect(url) as connection:
            connection.execute("CREATE ROLE penstock_app LOGIN; CREATE ROLE penstock_reader LOGIN;")
        assert upgrade(mine) == ["0004", "0005", "0006", "0007", "0008", "0009"]
        check(app_url(url))
        check(reader_url(url))


def test_roles_that_are_there_already_are_kept(databases: Databases) -> None:
    for url in (databases.empty(), databases.empty()):
        assert upgrade(url) == ALL


def test_a_database_is_made_once(databases: Databases) -> None:
    first = create_database(databases.server.url, "penstock")
    assert create_database(databases.server.url, "penstock") == first
    assert upgrade(first) == ALL


# --- addresses ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["mysql://root@localhost/db", "", "localhost:5432", "sqlite:///x.db"])
def test_another_kind_of_address_is_refused(url: str) -> None:
    with pytest.raises(BadDatabaseUrl, match="not a postgresql:// address"):
        upgrade(url)


def test_no_password_reaches_a_message() -> None:
    for url in ("postgresql://app:s3cr3t@127.0.0.1:1/db", "postgresql://app:s3cr3t@127.0.0.1:notaport/db?bad%zz=1"):
        with pytest.raises((DatabaseUnreachable, BadDatabaseUrl)) as caught:
            upgrade(url)
        chain, seen = caught.value, []
        while chain is not None:
            seen.append(str(chain))
            chain = chain.__cause__  # type: ignore[assignment]
        assert "s3cr3t" not in " ".join(seen)


def test_an_unreachable_server_is_told_by_address() -> None:
    with pytest.raises(DatabaseUnreachable, match=r"127\.0\.0\.1"):
        upgrade("postgresql://app@127.0.0.1:1/db")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://admin:secret@db.example:5433/penstock?sslmode=require",
            {"host": "db.example", "port": "5433", "sslmode": "require"},
        ),
        ("postgresql+psycopg://admin@/penstock?host=/run/pg", {"host": "/run/pg"}),
        ("postgresql://admin:p%40ss@a,b:5433/penstock", {"host": "a,b", "port": ",5433"}),
    ],
)
def test_the_url_of_the_application_differs_in_the_role_only(url: str, expected: dict[str, str]) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(app_url(url))
    assert parts == {"user": "penstock_app", "dbname": "penstock", **expected}


def test_sessions_are_limited_and_durable(databases: Databases) -> None:
    url = databases.migrated()
    engine = open_engine(app_url(url))
    wanted = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "synchronous_commit", "TimeZone")
    with engine.connect() as connection:
        found = {name: connection.scalar(text(f"SHOW {name}")) for name in wanted}
        connection.rollback()
        assert connection.scalar(text("SELECT current_user")) == "penstock_app"
        assert found == {**dict(zip(wanted, ("10s", "3s", "10s", "on", "UTC"), strict=True))}
    engine.dispose()


def test_the_lock_of_the_migrations_is_free_afterwards(empty_url: str) -> None:
    upgrade(empty_url)
    with connect(empty_url) as connection:
        assert connection.execute("SELECT pg_try_advisory_lock(%s)", (MIGRATION_LOCK,)).fetchone() == (True,)
