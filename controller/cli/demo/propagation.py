"""
How fast a flag write reaches the router, measured from outside.

It listens for the database's notice of each write (as `penstock serve` does) and then reads the router's metrics page until
`penstock_flag_revision_applied` has the write's revision. What it reports is therefore an upper bound: it holds the time of reading the
page (some 30 ms), which the router spends after it has the flag. Its one rule: it asks the router only while a write is on its way.
"""

import http.client
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from sqlalchemy import select

from controller.adapters.postgres.connect import connect, single_use_engine
from controller.adapters.postgres.tables import FLAG_CHANNEL, flag_history

_APPLIED = re.compile(rb"^penstock_flag_revision_applied\{[^}]*\} ([0-9.e+]+)", re.MULTILINE)
GIVE_UP_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One write of a flag: the store's own time of it."""

    revision: int
    at: datetime
    key: str
    weight: int
    shadow_weight: int
    decision_id: str


class Propagation:
    """
    Args:
        database_url: Of the flag store.
        router: `host:port` of the router.
        environment: Whose flags.
    """

    def __init__(self, database_url: str, router: str, environment: str) -> None:
        self._url = database_url
        self._router = router
        self._environment = environment
        self._seen: dict[int, datetime] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="propagation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def reached(self, revision: int) -> datetime | None:
        """When the router was first seen at this revision or a later one; None if never."""
        times = [at for seen, at in list(self._seen.items()) if seen >= revision]
        return min(times) if times else None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except (psycopg.Error, OSError):
                # The database went away: writes of that time are not measured, the rest is.
                self._stop.wait(1)

    def _listen(self) -> None:
        with connect(self._url) as connection:
            connection.execute(f"LISTEN {FLAG_CHANNEL}".encode())
            while not self._stop.is_set():
                for notice in connection.notifies(timeout=0.5, stop_after=1):
                    environment, _, revision = notice.payload.partition(" ")
                    if environment == self._environment and revision.isdecimal():
                        self._await_router(int(revision))

    def _await_router(self, revision: int) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        line = http.client.HTTPConnection(self._router, timeout=5)
        try:
            while not self._stop.is_set() and time.monotonic() < deadline:
                line.request("GET", "/metrics")
                match = _APPLIED.search(line.getresponse().read())
                if match is not None and float(match[1]) >= revision:
                    self._seen.setdefault(int(float(match[1])), datetime.now(UTC))
                    return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            line.close()


def writes_of(database_url: str, environment: str) -> Mapping[str, Write]:
    """All writes of an environment's flags, by the decision that made them."""
    h = flag_history.c
    columns = (h.revision, h.at, h.key, h.weight, h.shadow_weight, h.decision_id)
    engine = single_use_engine(database_url)
    with engine.connect() as connection:
        rows = connection.execute(select(*columns).where(h.environment == environment).order_by(h.revision)).all()
    found = (
        Write(revision=r.revision, at=r.at, key=r.key, weight=r.weight, shadow_weight=r.shadow_weight, decision_id=r.decision_id)
        for r in rows
    )
    return {write.decision_id: write for write in found}
