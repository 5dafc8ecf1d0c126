"""
Connections to Postgres: one way to open them, with every wait bounded.

Its one rule: nothing waits for ever. Connecting, a lock, a statement, an idle transaction and a dead network each have a limit, set per
connection, so that a hung database becomes an error that somebody handles.
"""

from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, text
from sqlalchemy.pool import NullPool

from controller.adapters.postgres.errors import BadDatabaseUrl, DatabaseUnreachable, SchemaMismatch, translated
from controller.adapters.postgres.tables import SCHEMA, SCHEMA_REVISION

APP_ROLE = "penstock_app"
READER_ROLE = "penstock_reader"

_CONNECTION = {
    "application_name": "penstock",
    "connect_timeout": "3",
    # Notices within about 10 s that the other machine is gone; libpq ignores these on a Unix socket.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""libpq parameters; what the URL says wins."""

_SESSION = {
    "TimeZone": "UTC",
    "lock_timeout": "3s",
    "statement_timeout": "10s",
    # Somebody who takes the chain's lock and freezes gives it back.
    "idle_in_transaction_session_timeout": "10s",
}

_POOL = {"pool_size": 3, "max_overflow": 2, "pool_timeout": 5.0, "pool_pre_ping": True, "pool_recycle": 1800}


def open_engine(url: str, *, require_schema: bool = True) -> Engine:
    """
    The engine that the adapters work on.

    Args:
        url: ``postgresql://`` as libpq reads it (several hosts, sockets and options included).
        require_schema: Connect once and refuse a database whose tables are of another release.

    Raises:
        BadDatabaseUrl: the URL is not one.
        DatabaseUnreachable, SchemaMismatch: only with `require_schema`.
    """
    engine = _engine(url, **_POOL)
    if require_schema:
        try:
            check_schema(engine)
        except Exception:
            engine.dispose()
            raise
    return engine


def single_use_engine(url: str) -> Engine:
    """An engine that keeps no connection: for migrations, verification and other one-off work. Raises BadDatabaseUrl."""
    return _engine(url, poolclass=NullPool)


def connect(url: str, *, autocommit: bool = True) -> "psycopg.Connection[tuple[Any, ...]]":
    """
    A bare psycopg connection with the same limits, for LISTEN and streaming.

    Raises:
        BadDatabaseUrl: the URL is not one.
        psycopg.Error: no connection could be made; the caller translates it.
    """
    connection = psycopg.connect(**_parameters(url), autocommit=True)
    try:
        _prepare(connection)
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


def app_url(admin_url: str) -> str:
    """
    The same database as the role that the controller works as, without the administrator's password.

    For servers that trust local connections, as the embedded one does; elsewhere the user gives the role's own URL.

    Raises:
        BadDatabaseUrl: the URL is not one.
    """
    return _with(admin_url, user=APP_ROLE, password=None)


def reader_url(admin_url: str) -> str:
    """As `app_url`, for the role that may only read."""
    return _with(admin_url, user=READER_ROLE, password=None)


def owner_url(local_url: str) -> str:
    """As `app_url`, for the role that owns the embedded database. Raises BadDatabaseUrl."""
    return _with(local_url, user="postgres", password=None)


def create_database(admin_url: str, name: str) -> str:
    """
    Make a database if there is none of that name.

    Returns:
        Its URL, for the same role.

    Raises:
        BadDatabaseUrl: the URL is not one.
        DatabaseUnreachable: it could not be made.
    """
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    # UniqueViolation: somebody else is making it at this moment.
    there_already = suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation)
    with translated(DatabaseUnreachable, f"creating database {name!r}"), connect(admin_url) as connection, there_already:
        connection.execute(statement)
    return _with(admin_url, dbname=name)


def check_schema(engine: Engine) -> None:
    """
    Raises:
        DatabaseUnreachable: it cannot be asked.
        SchemaMismatch: its tables are of another release; the message says what to do.
    """
    with translated(DatabaseUnreachable, "connecting to the database"), engine.connect() as connection:
        found = schema_revision(connection)
    if found == SCHEMA_REVISION:
        return
    if found is None:
        raise SchemaMismatch(
            f"the database has no tables of penstock, this release needs {SCHEMA_REVISION}: run `penstock migrate`"
        )
    if found > SCHEMA_REVISION:
        raise SchemaMismatch(
            f"the database is at {found}, this release knows revisions up to {SCHEMA_REVISION}: install the newer penstock"
        )
    raise SchemaMismatch(f"the database is at {found}, this release needs {SCHEMA_REVISION}: run `penstock migrate`")


def schema_revision(connection: Connection) -> str | None:
    """Which migration was applied last; None before the first."""
    if connection.scalar(text(f"SELECT to_regclass('{SCHEMA}.alembic_version')")) is None:
        return None
    found = connection.scalar(text(f"SELECT version_num FROM {SCHEMA}.alembic_version"))
    return None if found is None else str(found)


def _engine(url: str, **options: Any) -> Engine:
    parameters = _parameters(url)
    engine = create_engine(
        "postgresql+psycopg://",
        # libpq reads the URL, not SQLAlchemy, so that every address that psql takes is taken here.
        creator=lambda: psycopg.connect(**parameters),
        hide_parameters=True,
        **options,
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: "psycopg.Connection[Any]", _record: object) -> None:
        connection.autocommit = True
        _prepare(connection)
        connection.autocommit = False

    @event.listens_for(engine, "handle_error")
    def _on_error(context: ExceptionContext) -> None:
        # A session keeps what the server said when it began: one from a time of "read only" would refuse until it is recycled.
        if isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction):
            context.is_disconnect = True

    return engine


def _prepare(connection: "psycopg.Connection[Any]") -> None:
    """Session settings; the connection is in autocommit, so that no rollback takes them back."""
    with connection.cursor() as cursor:
        settings = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SESSION.items())
        cursor.execute(f"SELECT {settings}".encode())
        # An acknowledged audit row must survive a crash of the server, whatever the server's default is.
        cursor.execute("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
        # Older servers and some platforms do not have it; the idle limit above still ends an abandoned transaction.
        with suppress(psycopg.Error):
            cursor.execute("SET client_connection_check_interval = '2s'")


def _parameters(url: str) -> dict[str, Any]:
    if url.startswith("postgresql+psycopg://"):
        url = "postgresql://" + url.partition("://")[2]
    if not url.startswith(("postgresql://", "postgres://")):
        raise BadDatabaseUrl(f"database: {url.partition(':')[0]!r} is not a postgresql:// address")
    try:
        return {**_CONNECTION, **conninfo_to_dict(url)}
    except psycopg.Error:
        # libpq's message quotes the address, password included: it is left out, the cause as well.
        raise BadDatabaseUrl(
            "database: the postgresql:// address cannot be read; check its escapes (%40 for @) and options"
        ) from None


def _with(url: str, **changes: str | None) -> str:
    parts = {k: v for k, v in conninfo_to_dict(_as_libpq(url)).items() if v is not None}
    for name, value in changes.items():
        parts.pop(name, None)
        if value is not None:
            parts[name] = value
    return _as_url(parts)


def _as_libpq(url: str) -> str:
    _parameters(url)
    return "postgresql://" + url.partition("://")[2]


def _as_url(parts: dict[str, Any]) -> str:
    """A URL with everything but user, password and database as options, which holds for sockets and several hosts alike."""
    user, password = str(parts.pop("user", "")), str(parts.pop("password", ""))
    name = quote(str(parts.pop("dbname", "")), safe="")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    options = urlencode({k: str(v) for k, v in parts.items()}, safe="/,", quote_via=quote)
    return f"postgresql://{login}{'@' if login else ''}/{name}" + (f"?{options}" if options else "")
