"""
The audit log in Postgres: `controller.ports.AuditLog`, `RolloutIndex` and `Outbox` on one database.

`append` is one transaction: take the chain's lock, read the head, write the row, hold or release the flag, write the notice. Its one rule:
(rollout, seq) decides. The lock only keeps the chain in one line; whoever comes second to a row is told so, and an unclear commit is
looked up by its key under the same lock, where it can no longer change.
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import psycopg
from sqlalchemy import (
    ARRAY,
    Connection,
    Engine,
    Integer,
    RowMapping,
    Select,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    not_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from controller.adapters.evidence_files import BadEvidenceFiles, EvidenceFiles
from controller.adapters.postgres.errors import reason, translated
from controller.adapters.postgres.outbox import PostgresOutbox
from controller.adapters.postgres.rows import (
    REFERENCE,
    Answer,
    Packed,
    columns,
    is_reference,
    pack,
    raw,
    references,
    row_hash,
    text_of,
    unpack,
)
from controller.adapters.postgres.tables import CHAIN_LOCK, archived_evidence, audit, audit_evidence, flag_holds, outbox
from controller.codec import CodecError, notice_to_json
from controller.core.chain import GENESIS, Head
from controller.core.notice import Notice
from controller.core.rollout import Abandoned, Applied, Decided, Entry, LogError, Opened
from controller.crash import Point, reached
from controller.ports import AuditUnavailable, FlagHeld, NewEntry, News, SeqTaken, TextLost, UnknownRollout
from controller.shelf import Mark

ENDING = frozenset({"promote", "roll_back", "abort"})
"""Decisions whose confirmation ends the rollout."""

RAISING = frozenset({"advance", "promote", "resume"})
"""Decisions that may send more users to the candidate."""

STRAYS_EVERY_S = 10.0
"""Between two searches for rollouts that have not ended and hold no flag; only a hand in the database can have made one."""

CACHED_ROLLOUTS = 256
"""Rows never change, so a guard that looks every few seconds reads only what is new. Bounded, for processes that live for months."""


NEWS_ROWS = 200
"""Rows of news that are read at a time; one may have 50 kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What `append` must know before it writes, read under the chain's lock."""

    at: datetime
    id: int
    hash: str
    seq: int
    plan_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    entries: tuple[Entry, ...]
    last_hash: str


@dataclass(slots=True, kw_only=True)
class _Rows:
    """New rows of one rollout; not `readable` if one of them cannot be read."""

    first_hash: str
    last: Mark = field(default_factory=Mark)
    entries: list[Entry] = field(default_factory=list)
    readable: bool = True


def _linked_query() -> Select[Any]:
    """The rows of one rollout, each with the hashes that its neighbours in the chain have of it."""
    before, after = audit.alias("before"), audit.alias("after")
    joined = audit.outerjoin(before, before.c.id == audit.c.id - 1).outerjoin(after, after.c.id == audit.c.id + 1)
    return (
        select(audit, before.c.hash.label("hash_before"), after.c.prev_hash.label("named_after"))
        .select_from(joined)
        .where(audit.c.rollout_id == bindparam("rollout_id"))
        .order_by(audit.c.seq)
    )


_LINKED = _linked_query()


def _head_query() -> Select[Any]:
    """The clock, the last row of the chain, and the last row of one rollout; built once, as every append asks it."""
    last = select(audit.c.id, audit.c.hash).order_by(audit.c.id.desc()).limit(1).subquery("last")
    tail = (
        select(audit.c.seq, audit.c.plan_digest)
        .where(audit.c.rollout_id == bindparam("rollout_id"))
        .order_by(audit.c.seq.desc())
        .limit(1)
        .subquery("tail")
    )
    one = select(func.clock_timestamp().label("at")).subquery("one")
    joined = one.outerjoin(last, text("true")).outerjoin(tail, text("true"))
    return select(one.c.at, last.c.id, last.c.hash, tail.c.seq, tail.c.plan_digest).select_from(joined)


_HEAD = _head_query()


def _strays_query() -> Select[Any]:
    """Rollouts that have not ended and hold no flag: whoever took the hold away must not have taken the guard away with it."""
    rows, held = audit.alias("rows"), flag_holds
    last = (
        select(rows.c.kind, rows.c.action)
        .where(rows.c.rollout_id == audit.c.rollout_id)
        .order_by(rows.c.seq.desc())
        .limit(1)
        .lateral("last")
    )
    holds = select(held.c.rollout_id).where(held.c.rollout_id == audit.c.rollout_id).exists()
    over = and_(last.c.kind == "applied", func.coalesce(last.c.action, "").in_(sorted(ENDING)))
    opened = audit.c.seq == literal_column("1")  # a literal, so that the index of first rows is used
    both = audit.join(last, text("true"))
    return select(audit.c.rollout_id).select_from(both).where(opened, not_(holds), not_(over)).order_by(audit.c.id)


_STRAYS = _strays_query()


class PostgresAudit(PostgresOutbox):
    """
    Entries carry the raw answers of their evidence as references (`sha256:...`), because a look at a rollout needs none of them;
    `entry` reads one row with its answers.

    Args:
        engine: On the database.
        files: Where texts are that were moved out of it.
    """

    def __init__(self, engine: Engine, files: EvidenceFiles | None = None) -> None:
        super().__init__(engine)
        self._files = files
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._strays: list[str] = []
        self._strays_due_s = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        with translated(AuditUnavailable, "reading the database's clock"), self._engine.connect() as connection:
            at: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
            return at.astimezone(UTC)

    # --- reading ----------------------------------------------------------------------------------------------------------------

    def entries(self, rollout_id: str) -> Sequence[Entry]:
        with self._lock:
            known = self._known.get(rollout_id)
        fresh = self._read(rollout_id, from_seq=len(known.entries) if known else 1)
        if known is not None and not (fresh and fresh[0]["hash"] == known.last_hash):
            # The last row that we know is not there any more: the database was restored from a backup.
            known, fresh = None, self._read(rollout_id, from_seq=1)
        new = fresh if known is None else fresh[1:]
        entries = (*(known.entries if known else ()), *(_entry(row) for row in new))
        if not entries:
            raise UnknownRollout(f"no rollout {rollout_id!r}")
        with self._lock:
            self._known[rollout_id] = _Known(entries=entries, last_hash=fresh[-1]["hash"])
            self._known.move_to_end(rollout_id)
            while len(self._known) > CACHED_ROLLOUTS:
                self._known.popitem(last=False)
        return entries

    def news(self, known: Mapping[str, Mark]) -> Mapping[str, News]:
        read = self._read_news({i: m.seq for i, m in known.items()})
        # Not there any more as it was: the database was restored from a backup.
        odd = [i for i, m in known.items() if m.seq and (i not in read or read[i].first_hash != m.token)]
        read |= self._read_news(dict.fromkeys(odd, 0)) if odd else {}
        return {
            i: News(entries=tuple(rows.entries), whole=known[i].seq == 0 or i in odd, mark=rows.last)
            for i, rows in read.items()
            if rows.readable
        }

    def _read_news(self, after: Mapping[str, int]) -> dict[str, _Rows]:
        """Rows from the last known one on; of that one, whose event is known, only what tells it."""
        pairs = (
            func.unnest(bindparam("ids", list(after), ARRAY(Text)), bindparam("seqs", list(after.values()), ARRAY(Integer)))
            .table_valued("rollout_id", "seq", name="known")
            .render_derived()
        )
        event = case((audit.c.seq > pairs.c.seq, audit.c.event)).label("event")
        query = (
            select(audit.c.rollout_id, audit.c.seq, audit.c.at, audit.c.actor, event, audit.c.hash)
            .join(pairs, and_(audit.c.rollout_id == pairs.c.rollout_id, audit.c.seq >= pairs.c.seq))
            .order_by(audit.c.rollout_id, audit.c.seq)
        )
        found: dict[str, _Rows] = {}
        with translated(AuditUnavailable, f"reading the logs of {len(after)} rollouts"), self._engine.connect() as connection:
            # A few rows at a time: those of a long rollout are hundreds of MB, and what a replay needs of them is little.
            for row in connection.execution_options(yield_per=NEWS_ROWS).execute(query).mappings():
                rows = found.setdefault(row["rollout_id"], _Rows(first_hash=row["hash"]))
                rows.last = Mark(seq=row["seq"], token=row["hash"])
                if row["event"] is None or not rows.readable:
                    continue
                try:
                    rows.entries.append(_entry(row, bare=True))
                except AuditUnavailable:
                    rows.readable = False
        return found

    def entry(self, rollout_id: str, seq: int) -> Entry:
        """
        One row with the raw answers of its evidence.

        Raises:
            UnknownRollout: there is no such row.
            AuditUnavailable: it cannot be read.
            TextLost: one of its answers cannot be.
        """
        with translated(AuditUnavailable, f"reading row {rollout_id}/{seq}"), self._engine.connect() as connection:
            query = select(audit).where(audit.c.rollout_id == rollout_id, audit.c.seq == seq)
            row = connection.execute(query).mappings().one_or_none()
            if row is None:
                raise UnknownRollout(f"no row {rollout_id}/{seq}")
            try:
                digests = list(references(row["event"]))
            except CodecError as exc:
                raise AuditUnavailable(f"row {rollout_id}/{seq} cannot be read: {exc}") from exc
            wanted = select(audit_evidence).where(audit_evidence.c.digest.in_(digests))
            found = connection.execute(wanted).mappings().all()
        answers = {a["digest"]: _text(Answer(digest=a["digest"], answer=a["answer"], encoding=a["encoding"])) for a in found}
        for digest in set(digests) - set(answers):
            if (filed := self._filed(digest)) is not None:
                answers[digest] = filed
        return _entry(row, answers)

    def _filed(self, digest: str) -> str | None:
        """A text that is in a file and no longer in the database; None where it is not."""
        if self._files is None:
            return None
        try:
            found = self._files.get(digest)
        except BadEvidenceFiles as exc:
            raise TextLost(str(exc)) from exc
        return None if found is None else found.decode("utf-8", "surrogatepass")

    def text(self, reference: str) -> str:
        if not is_reference(reference):
            return reference
        digest = reference.removeprefix(REFERENCE)
        with translated(AuditUnavailable, f"reading the text {digest[:12]}"), self._engine.connect() as connection:
            row = connection.execute(select(audit_evidence).where(audit_evidence.c.digest == digest)).mappings().one_or_none()
        if row is None:
            if (filed := self._filed(digest)) is not None:
                return filed
            raise TextLost(f"the log refers to a text {digest[:12]} that is not there{self._archived(digest)}")
        try:
            found = raw(Answer(digest=digest, answer=row["answer"], encoding=row["encoding"]))
        except ValueError as exc:
            raise TextLost(f"the text {digest[:12]} that the log refers to cannot be decoded: it was changed") from exc
        if (seen := sha256(found).hexdigest()) != digest:
            raise TextLost(f"the text {digest[:12]} that the log refers to hashes to {seen[:12]}: it was changed")
        return found.decode("utf-8", "surrogatepass")

    def _archived(self, digest: str) -> str:
        """Where a text was moved to, in words; "" where nobody says that it was."""
        with translated(AuditUnavailable, f"looking for the text {digest[:12]}"), self._engine.connect() as connection:
            name = connection.scalar(select(archived_evidence.c.archive).where(archived_evidence.c.digest == digest))
        folder = "the folder of PENSTOCK_EVIDENCE_FOLDER" if self._files is None else str(self._files.folder)
        return "" if name is None else f": it was archived in {name}, which is not in {folder}"

    def head(self, audit_id: int | None = None) -> Head | None:
        query = select(audit.c.id, audit.c.hash, audit.c.at).order_by(audit.c.id.desc()).limit(1)
        if audit_id is not None:
            query = query.where(audit.c.id == audit_id)
        with translated(AuditUnavailable, "reading the head of the audit log"), self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Head(id=row.id, hash=row.hash, at=row.at.astimezone(UTC))

    def odd_columns(self, rollout_id: str) -> Iterator[tuple[int, str, str, str]]:
        """
        Where the columns of a rollout's rows say something else than their events: seq, column, what it says, what the event says.

        Raises:
            AuditUnavailable: they cannot be read.
        """
        query = select(audit).where(audit.c.rollout_id == rollout_id).order_by(audit.c.seq)
        decided: dict[str, Mapping[Any, Any]] = {}
        plan_digest = ""
        with translated(AuditUnavailable, f"reading the log of {rollout_id}"), self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=500).execute(query).mappings():
                entry = _entry(row)
                event = entry.event
                plan_digest = event.plan_digest if isinstance(event, Opened) else plan_digest
                settled = decided.get(event.decision_id) if isinstance(event, Applied | Abandoned) else None
                for name, value in columns(entry, plan_digest, row["event"], settled).items():
                    if row[name] != value:
                        yield row["seq"], name, str(row[name]), str(value)
                if row["kind"] == "decided" and row["decision_id"] is not None:
                    decided[row["decision_id"]] = row

    def active(self) -> Sequence[str]:
        query = select(flag_holds.c.rollout_id).order_by(flag_holds.c.audit_id)
        with translated(AuditUnavailable, "listing the active rollouts"), self._engine.connect() as connection:
            held = list(connection.scalars(query))
            if time.monotonic() >= self._strays_due_s:
                self._strays = list(connection.scalars(_STRAYS))
                self._strays_due_s = time.monotonic() + STRAYS_EVERY_S
        return [*held, *(i for i in self._strays if i not in held)]

    def known(self, limit: int) -> Sequence[str]:
        query = select(audit.c.rollout_id).where(audit.c.seq == literal_column("1")).order_by(audit.c.id.desc()).limit(limit)
        with translated(AuditUnavailable, "listing the rollouts"), self._engine.connect() as connection:
            return list(connection.scalars(query))

    def _read(self, rollout_id: str, from_seq: int) -> Sequence[RowMapping]:
        query = (
            select(audit.c.rollout_id, audit.c.seq, audit.c.at, audit.c.actor, audit.c.event, audit.c.hash)
            .where(audit.c.rollout_id == rollout_id, audit.c.seq >= from_seq)
            .order_by(audit.c.seq)
        )
        with translated(AuditUnavailable, f"reading the log of {rollout_id}"), self._engine.connect() as connection:
            return connection.execute(query).mappings().all()

    # --- writing ----------------------------------------------------------------------------------------------------------------

    def append(self, new: NewEntry, notice: Notice | None) -> Entry:
        doing = f"writing row {new.rollout_id}/{new.seq}"
        try:
            packed, letter = pack(new.event), None if notice is None else _json(notice_to_json(notice))
        except ValueError as exc:
            # As unwritable as a database that is down, and a lowering must go on all the same.
            raise AuditUnavailable(f"{doing}: the row cannot be stored as JSON: {exc}") from exc
        # A checkout that fails has written nothing; everything after it is settled below.
        with translated(AuditUnavailable, doing):
            connection = self._engine.connect()
        with connection:
            try:
                if isinstance(new.event, Decided) and new.event.decision.kind in RAISING:
                    self._expect_unchanged(connection, new.rollout_id)
                row = self._write(connection, new, packed, letter)
            except IntegrityError as exc:
                # A foreign row in the way of anything else is no race that somebody won: who lost one goes away, and nothing would be lowered.
                if isinstance(exc.orig, psycopg.errors.UniqueViolation) and exc.orig.diag.table_name == audit.name:
                    raise SeqTaken(f"row {new.rollout_id}/{new.seq} exists") from exc
                raise AuditUnavailable(f"{doing}: {reason(exc)}") from exc
            except SQLAlchemyError as exc:
                raise AuditUnavailable(f"{doing}: {reason(exc)}") from exc
            reached(Point.ROW_COMMITTING)
            try:
                connection.commit()
            except (SQLAlchemyError, psycopg.Error) as exc:
                self._settle_commit(row, exc)
        reached(Point.ROW_COMMITTED)
        return _entry(row, {a.digest: text_of(a) for a in packed.answers})

    @staticmethod
    def _expect_unchanged(connection: Connection, rollout_id: str) -> None:
        """Before the chain's lock, as a long rollout's rows take a while. Raises LogError: nothing may be raised on rows that somebody changed."""
        rows = connection.execute(_LINKED, {"rollout_id": rollout_id}, execution_options={"yield_per": NEWS_ROWS})
        for count, row in enumerate(rows.mappings(), 1):
            if row["seq"] != count:
                raise LogError(f"row {rollout_id}/{row['seq']} stands where row {rollout_id}/{count} should: nothing is raised")
            linked = (row["hash_before"] or GENESIS) == row["prev_hash"] and row["named_after"] in (row["hash"], None)
            if not linked or row_hash(row["prev_hash"], dict(row)) != row["hash"]:
                text = f"row {rollout_id}/{count} (id {row['id']}) is not what was written: it does not fit into the hash chain"
                raise LogError(f"{text}; nothing is raised (penstock audit verify)")

    def _write(self, connection: Connection, new: NewEntry, packed: Packed, letter: str | None) -> dict[str, Any]:
        if packed.answers:
            # Before the lock: other writers need not wait for the bulk of the bytes.
            values = [{"digest": a.digest, "answer": a.answer, "encoding": a.encoding} for a in packed.answers]
            connection.execute(pg_insert(audit_evidence).on_conflict_do_nothing(index_elements=["digest"]), values)
        reached(Point.ROW_LOCKING)
        connection.execute(select(func.pg_advisory_xact_lock(CHAIN_LOCK)))
        reached(Point.ROW_LOCKED)
        head = self._head(connection, new.rollout_id)
        if new.seq != head.seq + 1:
            raise SeqTaken(f"row {new.rollout_id}/{new.seq}: the log is at {head.seq}")
        event = new.event
        plan_digest = event.plan_digest if isinstance(event, Opened) else head.plan_digest or ""
        decided = None
        if isinstance(event, Applied | Abandoned):
            decided = self._decided(connection, new.rollout_id, event.decision_id)
        entry = Entry(rollout_id=new.rollout_id, seq=new.seq, at=head.at, actor=new.actor, event=event)
        row = {"id": head.id + 1, **columns(entry, plan_digest, packed.event, decided)}
        row |= {"prev_hash": head.hash, "hash": row_hash(head.hash, row)}
        if isinstance(event, Opened):
            self._hold(connection, event, row)
        connection.execute(insert(audit), row)
        reached(Point.ROW_INSERTED)
        if isinstance(event, Applied) and row["action"] in ENDING:
            connection.execute(delete(flag_holds).where(flag_holds.c.rollout_id == new.rollout_id))
        if letter is not None:
            values_of = {"id": row["id"], "rollout_id": new.rollout_id, "seq": new.seq, "notice": letter}
            connection.execute(insert(outbox), {**values_of, "created_at": head.at, "due_at": head.at})
        return row

    @staticmethod
    def _head(connection: Connection, rollout_id: str) -> _Head:
        # A statement of its own: one that also took the lock would see the table as it was before it waited.
        row = connection.execute(_HEAD, {"rollout_id": rollout_id}).one()
        return _Head(
            at=row.at.astimezone(UTC), id=row.id or 0, hash=row.hash or GENESIS, seq=row.seq or 0, plan_digest=row.plan_digest
        )

    @staticmethod
    def _decided(connection: Connection, rollout_id: str, decision_id: str) -> RowMapping | None:
        query = (
            select(audit)
            .where(audit.c.rollout_id == rollout_id, audit.c.decision_id == decision_id, audit.c.kind == "decided")
            .order_by(audit.c.seq.desc())
            .limit(1)
        )
        return connection.execute(query).mappings().one_or_none()

    @staticmethod
    def _hold(connection: Connection, event: Opened, row: Mapping[str, Any]) -> None:
        place = {"environment": event.plan.environment, "flag": event.plan.flag}
        wanted = {**place, "rollout_id": row["rollout_id"], "audit_id": row["id"]}
        take = pg_insert(flag_holds).values(wanted).on_conflict_do_nothing(index_elements=["environment", "flag"])
        if connection.scalar(take.returning(flag_holds.c.rollout_id)) is not None:
            return
        holder = connection.scalar(select(flag_holds.c.rollout_id).filter_by(**place))
        raise FlagHeld(f"flag {event.plan.flag!r} in {event.plan.environment} is held by rollout {holder}")

    def _settle_commit(self, row: Mapping[str, Any], exc: BaseException) -> None:
        """
        Find out whether a commit that reported an error has happened. Returns if it has.

        The transaction in question held the chain's lock, so whoever gets the lock now knows that it has ended.
        """
        key = f"{row['rollout_id']}/{row['seq']}"
        try:
            # Not from the pool's other connections before they are checked: pre-ping replaces the dead ones.
            with self._engine.connect() as connection:
                connection.execute(select(func.pg_advisory_xact_lock(CHAIN_LOCK)))
                query = select(audit.c.hash).where(audit.c.rollout_id == row["rollout_id"], audit.c.seq == row["seq"])
                found = connection.scalar(query)
        except (SQLAlchemyError, psycopg.Error) as second:
            raise AuditUnavailable(f"writing row {key}: {reason(exc)}; whether it landed is unknown: {reason(second)}") from exc
        if found == row["hash"]:
            return
        if found is not None:
            raise SeqTaken(f"row {key} exists") from exc
        raise AuditUnavailable(f"writing row {key}: {reason(exc)}; it was not written") from exc


def _text(stored: Answer) -> str:
    try:
        return text_of(stored)
    except ValueError as exc:
        raise TextLost(f"the text {stored.digest[:12]} that the log refers to cannot be decoded: it was changed") from exc


def _entry(row: Mapping[Any, Any], answers: Mapping[str, str] | None = None, *, bare: bool = False) -> Entry:
    try:
        event = unpack(row["event"], answers, bare=bare)
    except CodecError as exc:
        raise AuditUnavailable(f"row {row['rollout_id']}/{row['seq']} cannot be read by this release: {exc}") from exc
    return Entry(rollout_id=row["rollout_id"], seq=row["seq"], at=row["at"].astimezone(UTC), actor=row["actor"], event=event)


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), sort_keys=True, allow_nan=False)
