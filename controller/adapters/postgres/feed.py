"""
What the flag door reads: all flags, and the moment something changes.

One connection for a whole process; `controller.console.flags_hub` fans out from there. Its one rule: LISTEN before the first read, or a
write between the two is seen by nobody. A NOTIFY is a hint to read sooner, never the news itself: one that is lost costs the resync
interval and nothing else.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psycopg
import structlog
from psycopg import sql
from sqlalchemy import Engine

from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.flags import UNREADABLE, PostgresFlags
from controller.adapters.postgres.tables import FLAG_CHANNEL
from controller.ports import FlagUnavailable
from flagspec import Snapshot

log = structlog.get_logger("penstock.flags")


class PostgresFlagSource:
    """
    For one thread.

    Args:
        url: For the connection that listens; it must reach the server itself or a pooler in session mode.
        engine: For the reads.
    """

    def __init__(self, url: str, engine: Engine) -> None:
        self._url = url
        self._flags = PostgresFlags(engine)
        self._connection: psycopg.Connection[Any] | None = None
        self._told: set[tuple[str, str, int]] = set()

    def read(self) -> Mapping[str, Snapshot]:
        """
        All environments as they are now, listening from before the read on.

        Raises:
            FlagUnavailable: the database is down; call again later.
        """
        try:
            self._listen()
            return {name: self._readable(snapshot) for name, snapshot in self._flags.snapshots().items()}
        except FlagUnavailable:
            self.close()
            raise

    def wait_for_change(self, timeout_s: float) -> bool:
        """
        Wait until a flag was written.

        Returns:
            True after a NOTIFY; False when the time is up.

        Raises:
            FlagUnavailable: the connection is lost.
        """
        try:
            with translated(FlagUnavailable, "listening for flags"):
                if self._connection is None:
                    raise FlagUnavailable("listening for flags: not connected")
                # Whatever else has arrived by then is one change as well: the next read sees it all.
                return bool(list(self._connection.notifies(timeout=timeout_s, stop_after=1)))
        except FlagUnavailable:
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _readable(self, snapshot: Snapshot) -> Snapshot:
        """Without flags that no router could read: it would refuse all the others with them, a kill among them."""
        bad = {(f.environment, f.key, f.version) for f in snapshot.flags if UNREADABLE in (f.control, f.candidate)}
        for environment, key, version in sorted(bad - self._told):
            log.error("flag_unreadable", environment=environment, flag=key, version=version)
        self._told = {t for t in self._told if t[0] != snapshot.environment} | bad
        if not bad:
            return snapshot
        return replace(snapshot, flags=tuple(f for f in snapshot.flags if (f.environment, f.key, f.version) not in bad))

    def _listen(self) -> None:
        if self._connection is not None:
            return
        with translated(FlagUnavailable, "listening for flags"):
            connection = connect(self._url)
            try:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(FLAG_CHANNEL)))
            except BaseException:
                connection.close()
                raise
            self._connection = connection
