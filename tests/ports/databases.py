"""Databases for tests: one server for a test session, and on it empty databases and one with all tables that is emptied for each test."""

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from controller.adapters.postgres.connect import connect, create_database
from controller.adapters.postgres.migrate import upgrade
from controller.adapters.postgres.tables import metadata
from services.postgres import EmbeddedPostgres

APPEND_ONLY = ("audit", "audit_evidence", "flag_history")


@contextmanager
def disarmed(owner_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner, while the append-only tables can be changed; all triggers are armed again afterwards."""
    with connect(owner_url) as connection:
        for table in APPEND_ONLY:
            connection.execute(f"ALTER TABLE penstock.{table} DISABLE TRIGGER ALL".encode())
        yield connection
        for table in APPEND_ONLY:
            connection.execute(f"ALTER TABLE penstock.{table} ENABLE ALWAYS TRIGGER {table}_append_only".encode())


class Databases:
    """
    Hands out databases of one embedded server.

    Not below pytest's own folder: each new pytest session closes that one to other accounts, and as root the server runs as another.
    """

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="penstock-test-", ignore_cleanup_errors=True)
        self.server = EmbeddedPostgres(Path(self._home.name) / "data", durable=False)
        self._numbers = itertools.count(1)
        self._migrated: str | None = None

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.server.stop()
        self._home.cleanup()

    def empty(self) -> str:
        """The owner's URL of a database without tables."""
        return create_database(self.server.url, f"test_{next(self._numbers)}")

    def migrated(self) -> str:
        """The owner's URL of the database with all tables, empty and with all triggers armed; the same one each time."""
        if self._migrated is None:
            self._migrated = create_database(self.server.url, "test_migrated")
            upgrade(self._migrated)
        with connect(self._migrated) as connection:
            # Only an owner who disarms the triggers can empty these tables; that is the point of them.
            for table in APPEND_ONLY:
                connection.execute(f"ALTER TABLE penstock.{table} DISABLE TRIGGER {table}_append_only".encode())
            connection.execute(f"TRUNCATE {', '.join(metadata.tables)}".encode())
            for table in APPEND_ONLY:
                connection.execute(f"ALTER TABLE penstock.{table} ENABLE ALWAYS TRIGGER {table}_append_only".encode())
        return self._migrated
