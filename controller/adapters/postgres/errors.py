"""
What can be wrong with the database itself; each class is named by what the caller can do.

    BadDatabaseUrl        correct the address
    DatabaseProblem
    +-- DatabaseUnreachable   wait, or start the server; also an Unavailable
    +-- SchemaMismatch        run `penstock migrate`, or install the matching release; also an Unavailable
    +-- MigrationFailed       read the reason; what was applied before the failed migration stays, the failed one left nothing

Its one rule: a message never carries a password, a statement's parameters or a row.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from controller.ports import Unavailable

MIGRATE_HINT = "run `penstock migrate`"

_OLD_SCHEMA = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
)


class BadDatabaseUrl(ValueError):
    """Not a postgresql:// address."""


class DatabaseProblem(Exception):
    """The database cannot be used as it is."""


class DatabaseUnreachable(DatabaseProblem, Unavailable):
    """No connection could be made."""


class SchemaMismatch(DatabaseProblem, Unavailable):
    """The tables are of another release than this program."""


class MigrationFailed(DatabaseProblem):
    """A migration could not be applied."""


@contextmanager
def translated(kind: type[Unavailable], doing: str) -> Iterator[None]:
    """
    Turn whatever the database libraries raise into one of the ports' errors.

    Args:
        kind: The error to raise.
        doing: What was being done, for the message ("reading flag 'chat-model'").
    """
    try:
        yield
    except (SQLAlchemyError, psycopg.Error, UnicodeEncodeError) as exc:
        # UnicodeEncodeError: an argument of the command line that is not text, on its way to the driver.
        raise kind(f"{doing}: {reason(exc)}") from exc


def reason(exc: BaseException) -> str:
    """The first line of a database error, with a hint where one helps."""
    cause = original(exc)
    text = str(cause).strip()
    first = text.splitlines()[0] if text else type(cause).__name__
    if isinstance(cause, _OLD_SCHEMA):
        return f"{first} ({MIGRATE_HINT})"
    return first


def original(exc: BaseException) -> BaseException:
    """The driver's error beneath SQLAlchemy's."""
    return exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
