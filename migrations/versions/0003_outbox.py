"""
Notices on their way to people. A notice is written in the transaction of its audit row and carries that row's id.
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE penstock.outbox (
            id           bigint NOT NULL,
            rollout_id   text NOT NULL,
            seq          integer NOT NULL,
            notice       json NOT NULL,
            created_at   timestamptz NOT NULL,
            due_at       timestamptz NOT NULL,
            attempts     integer NOT NULL DEFAULT 0,
            last_error   text,
            delivered_at timestamptz,
            refused      boolean NOT NULL DEFAULT false,
            CONSTRAINT outbox_pkey PRIMARY KEY (id),
            CONSTRAINT outbox_rollout_seq UNIQUE (rollout_id, seq)
        )
        """
    )
    op.execute("CREATE INDEX outbox_waiting ON penstock.outbox (rollout_id, id) WHERE delivered_at IS NULL AND NOT refused")
    op.execute("COMMENT ON COLUMN penstock.outbox.due_at IS 'not before; also the end of the lease of whoever is delivering it'")
    op.execute(
        """
        CREATE TABLE penstock.slack_threads (
            rollout_id text NOT NULL,
            channel    text NOT NULL,
            ts         text NOT NULL,
            CONSTRAINT slack_threads_pkey PRIMARY KEY (rollout_id)
        )
        """
    )
