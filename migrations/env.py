"""
How migrations run: one at a time, each in its own transaction, never waiting for long.

A migration that cannot get its lock gives up within seconds: while it waits, every query behind it waits as well. Its one rule: whoever is
killed half-way leaves the old schema or the new one, and running again goes on from there.
"""

from alembic import context
from sqlalchemy import Connection, text

from controller.adapters.postgres.connect import single_use_engine
from controller.adapters.postgres.tables import MIGRATION_LOCK, SCHEMA, metadata

LOCK_TIMEOUT = "5s"
"""Of the tables' locks."""

STATEMENT_TIMEOUT = "5min"

WAIT_FOR_ANOTHER = "60s"
"""How long to wait for somebody else who is migrating the same database."""


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not url:
        raise SystemExit("name the database: alembic -c migrations/alembic.ini -x url=postgresql://... <command>")
    with single_use_engine(url).connect() as made:
        migrate(made)


def migrate(connection: Connection) -> None:
    connection.execute(text(f"SET lock_timeout = '{WAIT_FOR_ANOTHER}'"))
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
    # A migration may compute for minutes between two statements.
    connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
    # Of the session, not of the transaction: it must outlast the transactions of the single migrations.
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    if connection.scalar(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}) is None:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    connection.commit()
    try:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table_schema=SCHEMA,
            include_schemas=True,
            transaction_per_migration=True,
            on_version_apply=context.config.attributes.get("on_version_apply"),
        )
        with context.begin_transaction():
            context.run_migrations()
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
            connection.commit()


run()
