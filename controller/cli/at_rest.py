"""
Reading what a `penstock up` or a demo left behind when it no longer runs.

Its one rule: only commands that read come here; nothing is decided while nobody guards.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from controller.settings import Settings


@contextmanager
def readable(settings: Settings, *, owner: bool = False) -> Iterator[Settings]:
    """
    Settings that name a database if there is one to read.

    A database that is named or runs is used as it is. Else the embedded one in the home folder, if it was ever made, runs for as
    long as the command does.

    Args:
        settings: As the environment has them.
        owner: Of a database that is at rest, name the address of the tables' owner instead of the reader's.

    Raises:
        ServiceError: it is there and cannot be started.
    """
    data_dir = settings.home / "postgres"
    if settings.database_url is not None or not (data_dir / "PG_VERSION").exists():
        yield settings
        return
    from controller.adapters.postgres import reader_url
    from services.postgres import EmbeddedPostgres

    sys.stderr.write(f"penstock is not running; reading the database it left in {data_dir}\n")
    with EmbeddedPostgres(data_dir) as server:
        url = server.url_for("penstock")
        yield replace(settings, database_url=url if owner else reader_url(url))
