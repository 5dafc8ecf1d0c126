"""
The audit log: append-only, hash-chained, with the raw answers that its decisions rest on.

`audit.event` is `json` and not `jsonb`, because the hash is over the text that was written. `audit_evidence` is addressed by the SHA-256 of
the answer: gates that share a query share its row, and the digests inside the hashed events bind the answers to the chain.
"""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE penstock.audit (
            id                   bigint NOT NULL,
            rollout_id           text NOT NULL,
            seq                  integer NOT NULL,
            at                   timestamptz NOT NULL,
            kind                 text NOT NULL,
            actor                text NOT NULL,
            plan_digest          text NOT NULL,
            decision_id          text,
            action               text,
            source               text,
            why                  text,
            reason               text,
            verdicts             json,
            reasons              json,
            weight_before        integer,
            weight_after         integer,
            shadow_weight_before integer,
            shadow_weight_after  integer,
            flag_version_before  bigint,
            flag_version_after   bigint,
            event                json NOT NULL,
            prev_hash            text NOT NULL,
            hash                 text NOT NULL,
            CONSTRAINT audit_pkey PRIMARY KEY (id),
            CONSTRAINT audit_rollout_seq UNIQUE (rollout_id, seq),
            CONSTRAINT audit_counts_from_one CHECK (id >= 1 AND seq >= 1)
        )
        """
    )
    op.execute("CREATE INDEX audit_opened ON penstock.audit (id) WHERE seq = 1")
    op.execute(
        """
        CREATE TABLE penstock.audit_evidence (
            digest   text NOT NULL,
            answer   text NOT NULL,
            encoding text NOT NULL,
            CONSTRAINT audit_evidence_pkey PRIMARY KEY (digest),
            CONSTRAINT audit_evidence_encoding CHECK (encoding IN ('utf8', 'base64'))
        )
        """
    )
    for table, column, words in _COMMENTS:
        op.execute(f"COMMENT ON COLUMN penstock.{table}.{column} IS '{words}'")
    op.execute(
        """
        CREATE FUNCTION penstock.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% of %.% refused: the table is append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege';
        END
        $$
        """
    )
    for table in ("audit", "audit_evidence"):
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON penstock.{table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION penstock.refuse_change()"
        )
        # An ordinary trigger is skipped under session_replication_role = replica.
        op.execute(f"ALTER TABLE penstock.{table} ENABLE ALWAYS TRIGGER {table}_append_only")
    op.execute(
        """
        CREATE VIEW penstock.audit_queries AS
        SELECT a.id AS audit_id, a.rollout_id, a.seq, m.measurement ->> 0 AS gate,
               e.evidence ->> 'query' AS query, (e.evidence ->> 'at')::timestamptz AS evaluated_at,
               e.evidence ->> 'digest' AS digest, e.evidence ->> 'note' AS note, v.answer, v.encoding
        FROM penstock.audit a
        CROSS JOIN LATERAL json_array_elements(a.event -> 'observed' -> 'measurements') AS m (measurement)
        CROSS JOIN LATERAL json_array_elements(m.measurement -> 1 -> 'evidence') AS e (evidence)
        LEFT JOIN penstock.audit_evidence v ON 'sha256:' || v.digest = e.evidence ->> 'answer'
        WHERE a.kind = 'decided'
        """
    )
    op.execute("COMMENT ON VIEW penstock.audit_queries IS 'every query behind every decision, with its raw answer'")


_COMMENTS = (
    ("audit", "id", "position in the chain, without gaps"),
    ("audit", "at", "clock of the database"),
    ("audit", "plan_digest", "SHA-256 of the plan that the rollout follows"),
    ("audit", "action", "what was decided, or what the confirmed change was decided as"),
    ("audit", "verdicts", "gate to verdict"),
    ("audit", "reasons", "gate to reason"),
    ("audit", "weight_before", "thousandths of a percent"),
    ("audit", "weight_after", "thousandths of a percent; of a decision: what it asks for"),
    ("audit", "event", "the whole row as the controller reads it; raw answers are in audit_evidence"),
    ("audit", "hash", "SHA-256 of prev_hash and the canonical JSON of all other columns"),
    ("audit_evidence", "digest", "SHA-256 of the answer"),
    ("audit_evidence", "encoding", "utf8: the answer as it came; base64: it holds bytes that a text column refuses"),
)
