"""
Bring a database to the schema of this release.

`penstock migrate` and `penstock up` call `upgrade`; everything else calls `check` and refuses to work on tables of another release. Its one
rule: running it again, or twice at once, does no harm.
"""

import threading
from importlib import resources
from typing import Any

from sqlalchemy import Engine

from controller.adapters.postgres.connect import APP_ROLE, READER_ROLE, check_schema, schema_revision, single_use_engine
from controller.adapters.postgres.errors import DatabaseUnreachable, MigrationFailed, SchemaMismatch, original, reason, translated
from controller.adapters.postgres.tables import SCHEMA, SCHEMA_REVISION

ROLES_SQL = f"CREATE ROLE {APP_ROLE} LOGIN; CREATE ROLE {READER_ROLE} LOGIN;"
"""What an administrator runs where the migrating role may not create roles."""


_ONE_AT_A_TIME = threading.Lock()
"""Alembic keeps the environment that it runs in in module globals."""


def upgrade(url: str) -> list[str]:
    """
    Apply every migration that the database does not have yet.

    Args:
        url: As the role that owns the tables (or may create the schema `penstock`).

    Returns:
        The revisions that were applied, oldest first; empty when there was nothing to do.

    Raises:
        BadDatabaseUrl: the URL is not one.
        DatabaseUnreachable: no connection.
        SchemaMismatch: the database is newer than this release.
        MigrationFailed: with the reason; earlier migrations stay, the failed one left nothing.
    """
    import psycopg
    from alembic import command
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    engine = single_use_engine(url)
    applied: list[str] = []

    def on_apply(*, step: Any, **_: Any) -> None:
        applied.append(step.up_revision_id)

    with translated(DatabaseUnreachable, "connecting to the database"), engine.connect() as connection:
        _refuse_newer(engine)
        try:
            with _ONE_AT_A_TIME:
                command.upgrade(_config(connection, on_apply), "head")
        except (SQLAlchemyError, psycopg.Error) as exc:
            raise MigrationFailed(_why(exc, applied)) from exc
        except CommandError as exc:
            raise MigrationFailed(f"migrating: {exc}") from exc
    return applied


def current(url: str) -> str | None:
    """The last revision that was applied; None before the first. Raises BadDatabaseUrl, DatabaseUnreachable."""
    with translated(DatabaseUnreachable, "connecting to the database"), single_use_engine(url).connect() as connection:
        return schema_revision(connection)


def check(url: str) -> None:
    """Raises BadDatabaseUrl, DatabaseUnreachable, or SchemaMismatch, which says what to run."""
    check_schema(single_use_engine(url))


def _refuse_newer(engine: Engine) -> None:
    with engine.connect() as connection:
        found = schema_revision(connection)
    if found is not None and found > SCHEMA_REVISION:
        raise SchemaMismatch(
            f"the database is at {found}, this release knows revisions up to {SCHEMA_REVISION}: install the newer penstock"
        )


def _config(connection: Any, on_apply: Any) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["on_version_apply"] = on_apply
    return config


def _why(exc: BaseException, applied: list[str]) -> str:
    import psycopg

    cause = original(exc)
    done = f" (applied before it: {', '.join(applied)})" if applied else ""
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        return (
            f"migrating: {reason(exc)}{done}; let an administrator run: {ROLES_SQL} "
            f"CREATE SCHEMA {SCHEMA} AUTHORIZATION <the migrating role>; and then migrate again"
        )
    if isinstance(cause, psycopg.errors.LockNotAvailable):
        return f"migrating: {reason(exc)}{done}; somebody holds a lock on the tables or is migrating as well: try again"
    return f"migrating: {reason(exc)}{done}"
