"""
A migration that dies half-way: at every statement of every revision, by its own death and by its session's.

Its one rule: what is left is compared with a database that was migrated to that revision in peace, down to triggers and grants.
"""

import itertools
import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import resources
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from alembic import command
from alembic.config import Config

from bench.chaos.fault import Trial, Violation, fault
from bench.chaos.stage import Stage
from bench.chaos.world import World, broken
from controller.adapters.postgres.connect import connect, create_database
from controller.adapters.postgres.errors import MigrationFailed
from controller.adapters.postgres.migrate import current, upgrade
from controller.adapters.postgres.tables import SCHEMA_REVISION

_NUMBERS = itertools.count(1)
_LOCK = threading.Lock()
_PEACEFUL: dict[tuple[Stage, str], Mapping[str, Any]] = {}
_COUNTED: dict[Stage, Mapping[str, int]] = {}

DIGESTS = {
    "columns": """SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns
                  WHERE table_schema = 'penstock' ORDER BY 1, 2""",
    "constraints": """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
                      WHERE connamespace = to_regnamespace('penstock') ORDER BY 1, 2""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'penstock' ORDER BY 1",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'penstock' ORDER BY 1",
    "triggers": """SELECT tgrelid::regclass::text, tgname, tgenabled::text, pg_get_triggerdef(t.oid) FROM pg_trigger t
                   JOIN pg_class c ON c.oid = tgrelid WHERE c.relnamespace = to_regnamespace('penstock') AND NOT tgisinternal ORDER BY 1, 2""",
    "functions": """SELECT proname, md5(prosrc), prosecdef, proacl::text FROM pg_proc
                    WHERE pronamespace = to_regnamespace('penstock') ORDER BY 1""",
    "grants": "SELECT relname, relacl::text FROM pg_class WHERE relnamespace = to_regnamespace('penstock') ORDER BY 1",
}


def revisions() -> list[str]:
    """All of this release, oldest first."""
    found = (path.name[:4] for path in resources.files("migrations").joinpath("versions").iterdir())
    return sorted(name for name in found if name.isdecimal())


def schema(url: str) -> Mapping[str, Any]:
    """Everything that migrations make, in a form that can be compared."""
    with connect(url) as connection:
        return {name: connection.execute(query.encode()).fetchall() for name, query in DIGESTS.items()}


def half_way(revision: str) -> None:
    """Register the fault of one revision."""

    @fault(f"migration {revision} killed half-way", group="migration", quick=1, full=25)
    def run(world: World, rng: Random) -> Trial:
        stage, before = world.stage, ([*[None], *revisions()])[revisions().index(revision)]
        url = create_database(stage.postgres.url, f"migrated_{next(_NUMBERS)}")
        nth, how = rng.randint(1, _statements(stage)[revision]), rng.choice(("kill", "session"))
        code = _in_process(stage, _die_at, url, revision, nth, how)
        found, begun_s = current(url), time.monotonic()
        world.note(f"{how} at statement {nth} of {revision}: status {code}, the database is at {found}")
        violations = list(_left(stage, url, found, {before, revision} if code else {SCHEMA_REVISION}))
        upgrade_code = _in_process(stage, upgrade, url)
        if upgrade_code or schema(url) != _peaceful(stage, SCHEMA_REVISION):
            violations.append(broken("rerun_works", f"running again ended with {upgrade_code} at {current(url)}"))
        took_s = time.monotonic() - begun_s
        return Trial(violations=tuple(violations), recover_s=took_s)


def _left(stage: Stage, url: str, found: str | None, allowed: set[str | None]) -> list[Violation]:
    if found not in allowed:
        return [broken("old_or_new", f"the database is at {found}, which is none of {allowed}")]
    left, whole = schema(url), _peaceful(stage, found)
    different = [name for name in DIGESTS if left[name] != whole[name]]
    return [broken("old_or_new", f"at {found}, these are of another revision: {different}")] if different else []


def _peaceful(stage: Stage, revision: str | None) -> Mapping[str, Any]:
    """The schema of a database that was migrated to a revision and no further."""
    key = (stage, revision or "")
    with _LOCK:
        if key not in _PEACEFUL:
            url = create_database(stage.postgres.url, f"peaceful_{revision or 'empty'}")
            if revision is not None and _in_process(stage, migrate_to, url, revision):
                raise AssertionError(f"{revision} cannot be migrated to in peace")
            _PEACEFUL[key] = schema(url)
        return _PEACEFUL[key]


def _in_process(stage: Stage, target: Any, *args: Any) -> int:
    """Exit status of a process that runs it: alembic keeps module globals, and what is killed here is a process."""
    process = stage.forked.Process(target=target, args=args, daemon=True)
    process.start()
    process.join(120)
    code = process.exitcode
    process.close()
    return 1 if code is None else code


def migrate_to(url: str, revision: str) -> None:
    """As `alembic upgrade REVISION`."""
    config = Config(cmd_opts=Namespace(x=[f"url={url}"]))
    config.set_main_option("script_location", str(resources.files("migrations")))
    command.upgrade(config, revision)


class _Statements:
    """Counts the statements of each revision while it is migrated to, its bookkeeping included."""

    def __init__(self, before: Callable[[str, int, Any], None]) -> None:
        self._left = revisions()
        self._nth = 0
        self._before = before

    def listen(self) -> None:
        from sqlalchemy import Engine, event

        event.listen(Engine, "before_cursor_execute", self._count)

    def _count(self, _connection: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        # Alembic ends each revision by writing its number down; what comes before the first is its search for the last one.
        ends = "alembic_version" in statement and statement.lstrip().startswith(("INSERT", "UPDATE"))
        if self._left and (ends or "alembic_version" not in statement):
            self._nth += 1
            self._before(self._left[0], self._nth, cursor)
        if ends:
            self._left, self._nth = self._left[1:], 0


def _die_at(url: str, revision: str, nth: int, how: str) -> None:
    """Migrate, and die before the nth statement of a revision."""

    def die(at: str, n: int, cursor: Any) -> None:
        if (at, n) == (revision, nth):
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            with suppress(Exception):
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    _Statements(die).listen()
    with suppress(MigrationFailed):
        upgrade(url)
        return
    sys.exit(1)


def _statements(stage: Stage) -> Mapping[str, int]:
    """How many statements each revision has."""
    with _LOCK:
        if stage not in _COUNTED:
            url = create_database(stage.postgres.url, "counted")
            ours, theirs = stage.forked.Pipe(duplex=False)
            if _in_process(stage, _count_all, url, theirs):
                raise AssertionError("the database cannot be migrated in peace")
            _COUNTED[stage] = ours.recv()
    return _COUNTED[stage]


def _count_all(url: str, answer: Connection) -> None:
    counts: dict[str, int] = {}

    def count(at: str, nth: int, _cursor: Any) -> None:
        counts[at] = nth

    _Statements(count).listen()
    upgrade(url)
    answer.send(counts)


for _revision in revisions():
    half_way(_revision)
