"""Databases for tests: one server for a test session, one fresh database for each test, copied from a migrated template."""

import itertools
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from controller.adapters.postgres.connect import create_database
from controller.adapters.postgres.migrate import upgrade
from services.postgres import EmbeddedPostgres


class Databases:
    """
    Hands out databases of one embedded server.

    Not below pytest's own folder: each new pytest session closes that one to other accounts, and as root the server runs as another.
    """

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="penstock-test-", ignore_cleanup_errors=True)
        self.server = EmbeddedPostgres(Path(self._home.name) / "data", durable=False)
        self._numbers = itertools.count(1)
        self._template: str | None = None

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.server.stop()
        self._home.cleanup()

    def empty(self) -> str:
        """The owner's URL of a database without tables."""
        name = f"test_{next(self._numbers)}"
        return create_database(self.server.url, name)

    def migrated(self) -> str:
        """The owner's URL of a database with all tables."""
        if self._template is None:
            upgrade(create_database(self.server.url, "template_penstock"))
            self._template = "template_penstock"
        name = f"test_{next(self._numbers)}"
        try:
            with psycopg.connect(self.server.url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY file_copy".encode())
        except psycopg.Error as exc:
            exc.add_note("\n".join(self.server.log_path.read_text().splitlines()[-20:]))
            raise
        return self.server.url_for(name)
