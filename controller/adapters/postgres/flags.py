"""
The embedded flag store: `controller.ports.FlagStore` on rows that are written by compare-and-set.

Its one rule: a kill is unconditional and latched. It asks for no version, so it wins every race: a raise that was read before it finds
another version, and a raise that comes after it is refused. What a stranger made of a row keeps nobody from killing or lowering its flag.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import orjson
import structlog
from sqlalchemy import (
    ARRAY,
    Connection,
    Engine,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal,
    not_,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from controller.adapters.postgres.errors import translated
from controller.adapters.postgres.tables import flag_revisions, flags
from controller.crash import Point, reached
from controller.ports import CaughtUp, FlagCapabilities, FlagChange, FlagConflict, FlagKilled, FlagUnavailable, UnknownFlag
from flagspec import FlagSpecError, RouteFlag, Snapshot, Variant

PROPAGATION_BOUND_S = 2.0
"""The resync of the readers' hub (1 s), which finds what a lost NOTIFY did not tell, and as much again for the way."""

UNREADABLE = Variant(model="(unreadable)")
"""Stands for a side of a flag that only an edit by hand can have made: one that no router could read."""

_LEASE = case(
    (flags.c.lease >= literal(datetime(9999, 1, 1, tzinfo=UTC)), null()),
    (flags.c.lease < literal(datetime(1970, 1, 1, tzinfo=UTC)), literal(datetime(1970, 1, 1, tzinfo=UTC))),
    else_=flags.c.lease,
).label("lease")
"""Postgres has an infinity and years that Python has no word for."""

_COLUMNS = (*(c for c in flags.c if c.name not in ("lease", "written_at")), _LEASE)

_UNNUMBERED = {"version": 0, "revision": 0, "written_at": func.clock_timestamp()}
"""What the triggers fill in."""


log = structlog.get_logger("penstock.flags")


class PostgresFlags:
    capabilities = FlagCapabilities(cas="native", granularity=1, propagation_bound_s=PROPAGATION_BOUND_S)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def now(self) -> datetime:
        with translated(FlagUnavailable, "reading the flag store's clock"), self._engine.connect() as connection:
            at: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
            return at.astimezone(UTC)

    def read(self, environment: str, key: str) -> RouteFlag | None:
        with translated(FlagUnavailable, f"reading flag {key!r} in {environment}"), self._engine.connect() as connection:
            return self._read(connection, environment, key)

    def read_all(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], RouteFlag]:
        pairs = (
            func.unnest(
                bindparam("environments", [e for e, _ in wanted], ARRAY(Text)),
                bindparam("keys", [k for _, k in wanted], ARRAY(Text)),
            )
            .table_valued("environment", "key", name="wanted")
            .render_derived()
        )
        query = select(flags).join(pairs, and_(flags.c.environment == pairs.c.environment, flags.c.key == pairs.c.key))
        with translated(FlagUnavailable, f"reading {len(wanted)} flags"), self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        found = {}
        for row in rows:
            with suppress(FlagUnavailable):
                found[row["environment"], row["key"]] = _flag(row)
        return found

    def write(self, change: FlagChange, expected_version: int) -> RouteFlag:
        with (
            translated(FlagUnavailable, f"writing flag {change.key!r} in {change.environment}"),
            self._engine.begin() as connection,
        ):
            # A client that freezes after this question loses its transaction to idle_in_transaction_session_timeout.
            if (
                change.not_after is not None
                and connection.execute(select(func.clock_timestamp())).scalar_one() > change.not_after
            ):
                raise FlagConflict(f"flag {change.key!r}: {change.decision_id} came after {change.not_after.isoformat()}")
            reached(Point.FLAG_OPENED)
            if expected_version == 0:
                statement: Any = (
                    insert(flags).values(**_values(change), **_UNNUMBERED).on_conflict_do_nothing().returning(*_COLUMNS)
                )
            else:
                raises = bool(change.weight or change.shadow_weight)
                statement = (
                    update(flags)
                    .where(_is(change.environment, change.key), flags.c.version == expected_version)
                    .where(not_(and_(flags.c.killed, bindparam("raises", raises))))
                    .values(**_values(change))
                    .returning(*_COLUMNS)
                )
            row = connection.execute(statement).mappings().one_or_none()
            if row is None:
                # What the triggers did for a row that was not written after all goes with this transaction.
                connection.rollback()
            reached(Point.FLAG_WRITTEN)
        reached(Point.FLAG_COMMITTED)
        if row is None:
            self._refuse(change, expected_version)
        return _flag(row)

    def renew(self, environment: str, key: str, lease: timedelta, expected_version: int) -> RouteFlag:
        statement = (
            update(flags)
            .where(_is(environment, key), flags.c.version == expected_version, not_(flags.c.killed))
            .where(flags.c.lease > func.clock_timestamp())
            .values(lease=func.clock_timestamp() + lease)
            .returning(*_COLUMNS)
        )
        with (
            translated(FlagUnavailable, f"renewing the lease of flag {key!r} in {environment}"),
            self._engine.begin() as connection,
        ):
            connection.execute(text("SELECT set_config('penstock.renewal', 'on', true)"))
            row = connection.execute(statement).mappings().one_or_none()
        if row is None:
            raise FlagConflict(f"flag {key!r} is not at version {expected_version}, is killed, or its lease has lapsed")
        return _flag(row)

    def set_killed(
        self, environment: str, key: str, killed: bool, *, actor: str, reason: str, expected_version: int | None = None
    ) -> RouteFlag:
        """
        As the port says.

        Args:
            environment, key: Which flag.
            killed: True to kill, False to un-kill, which also sets both weights to 0.
            actor, reason: Kept in `flag_history`; un-killing needs both.
            expected_version: For un-killing: refuse if the flag is at another version. A kill never asks.

        Raises:
            ValueError: un-killing without an actor or a reason.
            UnknownFlag: there is no such flag.
            FlagConflict: un-killing at another version than expected.
            FlagUnavailable: unknown whether it landed.
        """
        if not killed and not (actor.strip() and reason.strip()):
            raise ValueError(f"un-killing flag {key!r} needs an actor and a reason, got {actor!r} and {reason!r}")
        # Postgres' text holds no NUL, and nothing in a name may keep a kill from landing.
        actor = actor.replace("\0", "")
        values: dict[str, Any] = {"killed": killed, "decision_id": f"person:{actor}"}
        statement = update(flags).where(_is(environment, key))
        if not killed:
            values |= {"weight": 0, "shadow_weight": 0}
            if expected_version is not None:
                statement = statement.where(flags.c.version == expected_version)
        doing = f"{'killing' if killed else 'un-killing'} flag {key!r} in {environment}"
        with translated(FlagUnavailable, doing), self._engine.begin() as connection:
            _sign(connection, actor, reason)
            row = connection.execute(statement.values(**values).returning(*_COLUMNS)).mappings().one_or_none()
            current = self._read(connection, environment, key) if row is None else None
        if row is not None:
            return _flag(row)  # after the commit: a kill lands, whatever can be read of the flag
        if current is None:
            raise UnknownFlag(f"no flag {key!r} in {environment}")
        raise FlagConflict(f"flag {key!r} is at version {current.version}, not {expected_version}")

    def catch_up(self, environment: str, seen: int, *, actor: str, reason: str) -> CaughtUp | None:
        statement = text("SELECT * FROM penstock.catch_up_flags(:environment, :seen)")
        doing = f"catching up with revision {seen} in {environment}"
        with translated(FlagUnavailable, doing), self._engine.begin() as connection:
            _sign(connection, actor, reason)
            done = connection.execute(statement, {"environment": environment, "seen": seen}).mappings().one()
        if done["was"] is None:
            return None
        lowered, kept = tuple(done["lowered"]), tuple(done["kept"])
        return CaughtUp(environment=environment, was=done["was"], revision=done["is_now"], lowered=lowered, kept=kept)

    def snapshot(self, environment: str) -> Snapshot:
        """All flags of an environment at one revision; revision 0 and no flags if nothing was ever written there."""
        found = self.snapshots(environment)
        return found.get(environment, Snapshot(environment=environment, revision=0, flags=()))

    def snapshots(self, environment: str | None = None) -> dict[str, Snapshot]:
        """
        The environments that have ever had a flag, or one of them; without flags whose row cannot be read at all.

        Raises:
            FlagUnavailable: they cannot be read.
        """
        # One statement sees one state: a revision never comes with flags of another.
        query = (
            select(flag_revisions.c.revision.label("environment_revision"), flag_revisions.c.environment.label("of"), *_COLUMNS)
            .select_from(flag_revisions.outerjoin(flags, flags.c.environment == flag_revisions.c.environment))
            .order_by(flag_revisions.c.environment, flags.c.key)
        )
        if environment is not None:
            query = query.where(flag_revisions.c.environment == environment)
        with translated(FlagUnavailable, "reading the flags"), self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        grouped: dict[str, tuple[int, list[RouteFlag]]] = {}
        for row in rows:
            _, members = grouped.setdefault(row["of"], (row["environment_revision"], []))
            if row["key"] is None:
                continue
            try:
                members.append(_flag(row))
            except FlagUnavailable as exc:  # one bad row must not keep the news of all others
                log.error("flag_unreadable", environment=row["of"], flag=row["key"], error=str(exc))
        return {name: Snapshot(environment=name, revision=rev, flags=tuple(members)) for name, (rev, members) in grouped.items()}

    def _refuse(self, change: FlagChange, expected_version: int) -> NoReturn:
        current = self.read(change.environment, change.key)
        version = 0 if current is None else current.version
        if current is not None and current.killed and version == expected_version:
            raise FlagKilled(f"flag {change.key!r} is killed")
        raise FlagConflict(f"flag {change.key!r} is at version {version}, not {expected_version}")

    @staticmethod
    def _read(connection: Connection, environment: str, key: str) -> RouteFlag | None:
        row = connection.execute(select(*_COLUMNS).where(_is(environment, key))).mappings().one_or_none()
        return None if row is None else _flag(row)


def _is(environment: str, key: str) -> Any:
    return and_(flags.c.environment == environment, flags.c.key == key)


def _sign(connection: Connection, actor: str, reason: str) -> None:
    """For the history, which a trigger writes; lasts as long as the transaction."""
    signed = text("SELECT set_config('penstock.actor', :actor, true), set_config('penstock.reason', :reason, true)")
    connection.execute(signed, {"actor": actor.replace("\0", ""), "reason": reason.replace("\0", "")})


def _values(change: FlagChange) -> dict[str, Any]:
    return {
        "environment": change.environment,
        "key": change.key,
        "weight": change.weight,
        "shadow_weight": change.shadow_weight,
        "salt": change.salt,
        "unit": change.unit,
        "control": _variant_json(change.control),
        "candidate": _variant_json(change.candidate),
        "decision_id": change.decision_id,
        **({} if change.keeps_lease else {"lease": None if change.lease is None else func.clock_timestamp() + change.lease}),
    }


def _variant_json(variant: Variant) -> str:
    return json.dumps({"model": variant.model, "params": dict(variant.params)}, sort_keys=True, allow_nan=False)


def _flag(row: Mapping[Any, Any]) -> RouteFlag:
    try:
        return RouteFlag(
            environment=row["environment"],
            key=row["key"],
            version=row["version"],
            revision=row["revision"],
            killed=row["killed"],
            weight=row["weight"],
            shadow_weight=row["shadow_weight"],
            salt=row["salt"],
            unit=row["unit"],
            control=_variant(row["control"]),
            candidate=_variant(row["candidate"]),
            decision_id=row["decision_id"],
            lease=row["lease"],
        )
    except (FlagSpecError, KeyError, TypeError, ValueError) as exc:
        # Only an edit by hand can bring such a row about.
        raise FlagUnavailable(f"flag {row['key']!r} in {row['environment']} cannot be read: {exc}") from exc


def _variant(stored: str) -> Variant:
    try:
        data = json.loads(stored)
        orjson.dumps(data)  # as the door sends it: no lone surrogates, no numbers beyond 64 bits
        match data:
            case {"model": str() as model, **rest} if isinstance(params := rest.get("params", {}), dict):
                return Variant(model=model, params=params)
    except (ValueError, TypeError, RecursionError):
        pass
    return UNREADABLE
