"""
The tables, for queries; what makes them is in `migrations/`, and a test keeps the two in step.

All of them live in a schema of their own, so that a database may be shared with others (Prefect's own tables, say). Documents are
`json`, not `jsonb`: `json` keeps the very text that was written, and the hash chain is over that text.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    cast,
    text,
    type_coerce,
)
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.types import UserDefinedType

SCHEMA = "penstock"

SCHEMA_REVISION = "0009"
"""The migration that this release needs (a constant, so that looking costs no import of alembic; a test compares it)."""

CHAIN_LOCK = 5_836_180_420_221_018_417
"""Advisory lock of the audit chain, an arbitrary constant of this database's 64-bit lock space."""

MIGRATION_LOCK = 5_836_180_420_221_018_418
"""Advisory lock of the migrations."""

FLAG_CHANNEL = "penstock_flags"
"""Where the triggers on `flags` NOTIFY, and nothing else does: NOTIFY takes a lock of the whole server at commit."""


class JsonText(UserDefinedType[str]):
    """A `json` column that is written and read as the text that it is."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:
        return "JSON"

    def bind_expression(self, bindvalue: BindParameter[str]) -> ColumnElement[Any]:
        return cast(type_coerce(bindvalue, Text()), JSON())

    def column_expression(self, colexpr: ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(colexpr, Text())


metadata = MetaData(schema=SCHEMA)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("rollout_id", Text, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("plan_digest", Text, nullable=False),
    Column("decision_id", Text),
    Column("action", Text),
    Column("source", Text),
    Column("why", Text),
    Column("reason", Text),
    Column("verdicts", JsonText),
    Column("reasons", JsonText),
    Column("weight_before", Integer),
    Column("weight_after", Integer),
    Column("shadow_weight_before", Integer),
    Column("shadow_weight_after", Integer),
    Column("flag_version_before", BigInteger),
    Column("flag_version_after", BigInteger),
    Column("event", JsonText, nullable=False),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    UniqueConstraint("rollout_id", "seq", name="audit_rollout_seq"),
    CheckConstraint("id >= 1 AND seq >= 1", name="audit_counts_from_one"),
    Index("audit_opened", "id", postgresql_where=text("seq = 1")),
)

audit_evidence = Table(
    "audit_evidence",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("answer", Text, nullable=False),
    Column("encoding", Text, nullable=False),
    CheckConstraint("encoding IN ('utf8', 'base64')", name="audit_evidence_encoding"),
)

archived_evidence = Table(
    "archived_evidence",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("archive", Text, nullable=False, comment="name of the file that it was moved to"),
    Column("at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
)

flags = Table(
    "flags",
    metadata,
    Column("environment", Text),
    Column("key", Text),
    Column("version", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("killed", Boolean, nullable=False, server_default=text("false")),
    Column("weight", Integer, nullable=False),
    Column("shadow_weight", Integer, nullable=False),
    Column("salt", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("control", JsonText, nullable=False),
    Column("candidate", JsonText, nullable=False),
    Column("decision_id", Text, nullable=False),
    Column("lease", DateTime(timezone=True)),
    Column("written_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("environment", "key", name="flags_pkey"),
    CheckConstraint("weight BETWEEN 0 AND 100000", name="flags_weight"),
    CheckConstraint("shadow_weight BETWEEN 0 AND 100000", name="flags_shadow_weight"),
    CheckConstraint("environment <> '' AND key <> '' AND salt <> ''", name="flags_not_empty"),
)

flag_revisions = Table(
    "flag_revisions",
    metadata,
    Column("environment", Text, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

flag_history = Table(
    "flag_history",
    metadata,
    Column("environment", Text),
    Column("revision", BigInteger),
    Column("key", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("action", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("db_user", Text, nullable=False),
    Column("decision_id", Text, nullable=False),
    Column("killed", Boolean, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("shadow_weight", Integer, nullable=False),
    Column("flag", JsonText, nullable=False),
    PrimaryKeyConstraint("environment", "revision", name="flag_history_pkey"),
    Index("flag_history_by_flag", "environment", "key", "revision"),
)

flag_holds = Table(
    "flag_holds",
    metadata,
    Column("environment", Text),
    Column("flag", Text),
    Column("rollout_id", Text, nullable=False),
    Column("audit_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("environment", "flag", name="flag_holds_pkey"),
    UniqueConstraint("rollout_id", name="flag_holds_rollout"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("rollout_id", Text, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("notice", JsonText, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("due_at", DateTime(timezone=True), nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    Column("delivered_at", DateTime(timezone=True)),
    Column("refused", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("rollout_id", "seq", name="outbox_rollout_seq"),
    Index("outbox_waiting", "rollout_id", "id", postgresql_where=text("delivered_at IS NULL AND NOT refused")),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    Column("who", Text),
    Column("rollout_id", Text),
    Column("at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("who", "rollout_id", name="heartbeats_pkey"),
)

api_requests = Table(
    "api_requests",
    metadata,
    Column("caller", Text),
    Column("key", Text),
    Column("fingerprint", Text, nullable=False),
    Column("taken_at", DateTime(timezone=True), nullable=False),
    Column("status", Integer),
    Column("answer", Text),
    PrimaryKeyConstraint("caller", "key", name="api_requests_pkey"),
    CheckConstraint("(status IS NULL) = (answer IS NULL)", name="api_requests_answered"),
    Index("api_requests_taken", "taken_at"),
)

console_sessions = Table(
    "console_sessions",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("person", Text, nullable=False),
    Column("proof", Text, nullable=False),
    Column("opened_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Index("console_sessions_expiry", "expires_at"),
)

slack_threads = Table(
    "slack_threads",
    metadata,
    Column("rollout_id", Text, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("ts", Text, nullable=False),
)
