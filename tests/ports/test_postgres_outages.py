"""What becomes of a write when the line to Postgres is cut at the worst moment: never two rows, never a wrong answer."""

from collections.abc import Callable, Iterator

import pytest
from psycopg import sql
from sqlalchemy import Engine, text

from bench.cutting import CuttingProxy
from controller.adapters.postgres import PostgresAudit, PostgresFlags, open_engine, reader_url
from controller.adapters.postgres.chain import verify
from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.tables import CHAIN_LOCK
from controller.ports import AuditUnavailable, FlagUnavailable
from tests.ports.events import change, hold, notice, opened

pytestmark = pytest.mark.services


@pytest.fixture
def proxy(owner_url: str) -> Iterator[CuttingProxy]:
    with CuttingProxy(owner_url) as made:
        yield made


@pytest.fixture
def cut_engine(proxy: CuttingProxy) -> Iterator[Engine]:
    made = open_engine(proxy.url())
    yield made
    made.dispose()


def test_a_commit_that_landed_and_reported_an_error_counts_as_written(
    proxy: CuttingProxy, cut_engine: Engine, owner_url: str
) -> None:
    audit = PostgresAudit(cut_engine)
    audit.append(opened("r1"), None)
    proxy.cut_commit = "after"
    entry = audit.append(hold("r1", 2), notice("r1", 2))
    assert entry.event == hold("r1", 2).event
    assert [e.seq for e in audit.entries("r1")] == [1, 2]
    assert [x.notice.seq for x in audit.due(10)] == [2]
    assert verify(reader_url(owner_url)).ok


def test_a_commit_that_never_arrived_is_reported_and_can_be_written_again(
    proxy: CuttingProxy, cut_engine: Engine, owner_url: str
) -> None:
    audit = PostgresAudit(cut_engine)
    audit.append(opened("r1"), None)
    proxy.cut_commit = "before"
    with pytest.raises(AuditUnavailable, match=r"r1/2.*it was not written"):
        audit.append(hold("r1", 2), notice("r1", 2))
    assert len(audit.entries("r1")) == 1
    audit.append(hold("r1", 2), notice("r1", 2))
    report = verify(reader_url(owner_url))
    assert (report.ok, report.rows) == (True, 2)


def test_an_unclear_commit_with_the_database_gone_says_that_it_is_unknown(proxy: CuttingProxy, cut_engine: Engine) -> None:
    audit = PostgresAudit(cut_engine)
    audit.append(opened("r1"), None)
    proxy.cut_commit, proxy.refuse = "after", True
    with pytest.raises(AuditUnavailable, match="whether it landed is unknown"):
        audit.append(hold("r1", 2), None)
    proxy.refuse = False
    assert [e.seq for e in audit.entries("r1")] == [1, 2]


def test_every_call_says_unavailable_while_the_database_is_gone_and_works_after(proxy: CuttingProxy, cut_engine: Engine) -> None:
    audit, flags = PostgresAudit(cut_engine), PostgresFlags(cut_engine)
    audit.append(opened("r1"), notice("r1", 1))
    flags.write(change(1_000), 0)
    (letter,) = audit.due(1)
    proxy.refuse = True
    proxy.cut_all()
    audit_calls = [
        audit.now,
        lambda: audit.entries("r1"),
        lambda: audit.entry("r1", 1),
        audit.active,
        lambda: audit.known(5),
        lambda: audit.append(hold("r1", 2), None),
        lambda: audit.due(5),
        lambda: audit.done(letter),
        lambda: audit.failed(letter, "x", None, final=False),
        audit.waiting,
    ]
    flag_calls = [
        lambda: flags.read("production", "chat-model"),
        lambda: flags.write(change(2_000), 1),
        lambda: flags.set_killed("production", "chat-model", True, actor="erin", reason="pager"),
        lambda: flags.snapshot("production"),
    ]
    for call in audit_calls:
        with pytest.raises(AuditUnavailable):
            call()
    for call in flag_calls:
        with pytest.raises(FlagUnavailable):
            call()
    proxy.refuse = False
    audit.append(hold("r1", 2), None)
    assert flags.write(change(2_000), 1).version == 2


def test_whoever_holds_the_lock_of_the_chain_for_too_long_makes_others_unavailable(engine: Engine, owner_url: str) -> None:
    audit = PostgresAudit(engine)
    with connect(owner_url, autocommit=False) as frozen:
        frozen.execute("SELECT pg_advisory_xact_lock(%s)", (CHAIN_LOCK,))
        with pytest.raises(AuditUnavailable, match="lock timeout"):
            audit.append(opened("r1"), None)
    audit.append(opened("r1"), None)


def test_an_argument_that_is_not_text_is_an_error_of_the_port(engine: Engine) -> None:
    for odd in ("\udcff", "a\0b"):
        with pytest.raises(AuditUnavailable):
            PostgresAudit(engine).entries(odd)
        with pytest.raises(FlagUnavailable):
            PostgresFlags(engine).read("production", odd)


def test_the_pool_gives_back_every_connection(engine: Engine) -> None:
    audit = PostgresAudit(engine)
    audit.append(opened("r1"), None)
    for _ in range(20):
        for refused in (opened("r1"), opened("r2"), hold("r1", 9)):
            with pytest.raises(Exception, match=r"r1|r2"):
                audit.append(refused, None)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with engine.connect() as connection:
        held = connection.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))
    assert held == 0


def test_a_database_that_was_read_only_for_a_while_is_written_again_by_connections_of_that_time(
    engine: Engine, owner_url: str, more_engines: Callable[[], Engine]
) -> None:
    PostgresAudit(engine).append(opened("r1"), None)
    with connect(owner_url) as owner:
        (name,) = owner.execute("SELECT current_database()").fetchone() or ("",)
        database = sql.Identifier(name)
        owner.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(database))
        try:
            begun_then = more_engines()
            audit, flags = PostgresAudit(begun_then), PostgresFlags(begun_then)
            with pytest.raises(AuditUnavailable, match="read-only"):
                audit.append(hold("r1", 2), None)
            assert len(audit.entries("r1")) == 1  # reads go on, and leave a connection of that time in the pool
        finally:
            owner.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(database))
    with pytest.raises(FlagUnavailable, match="read-only"):
        flags.write(change(1_000), 0)  # the one that finds out
    assert flags.write(change(1_000), 0).version == 1
    assert audit.append(hold("r1", 2), None).seq == 2
