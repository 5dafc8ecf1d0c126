"""
Postgres: the audit log, the outbox, the embedded flag store, and the schema they live in.

`open_engine` connects, `migrate.upgrade` makes the tables, `chain.verify` checks the log. Importing this package opens nothing and does not
import alembic.
"""

from controller.adapters.postgres.audit import PostgresAudit
from controller.adapters.postgres.connect import app_url, check_schema, create_database, open_engine, reader_url
from controller.adapters.postgres.feed import PostgresFlagSource
from controller.adapters.postgres.flags import PostgresFlags
from controller.adapters.postgres.heartbeats import PostgresHeartbeats
from controller.adapters.postgres.outbox import PostgresOutbox
from controller.adapters.postgres.requests import PostgresRequests
from controller.adapters.postgres.sessions import PostgresSessions

__all__ = [
    "PostgresAudit",
    "PostgresFlagSource",
    "PostgresFlags",
    "PostgresHeartbeats",
    "PostgresOutbox",
    "PostgresRequests",
    "PostgresSessions",
    "app_url",
    "check_schema",
    "create_database",
    "open_engine",
    "reader_url",
]
