"""
Who is logged in to the web console.

A row is deleted at logout, which is what makes a logout one; the key of a session is stored only as its digest.
"""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE penstock.console_sessions (
            digest     text NOT NULL,
            person     text NOT NULL,
            proof      text NOT NULL,
            opened_at  timestamptz NOT NULL,
            expires_at timestamptz NOT NULL,
            CONSTRAINT console_sessions_pkey PRIMARY KEY (digest)
        )
        """
    )
    op.execute(
        "COMMENT ON COLUMN penstock.console_sessions.digest IS 'SHA-256 of the session key; the key itself is only in the cookie'"
    )
    op.execute("COMMENT ON COLUMN penstock.console_sessions.proof IS 'What the person logged in with, as a digest'")
    op.execute("CREATE INDEX console_sessions_expiry ON penstock.console_sessions (expires_at)")
    op.execute("REVOKE ALL ON penstock.console_sessions FROM PUBLIC")
    op.execute("GRANT SELECT, INSERT, DELETE ON penstock.console_sessions TO penstock_app")
