"""
Answers of the HTTP API, so that a request that is sent twice is done once.

A row is taken before the work and answered after it; it may be deleted, since the audit log tells what was done.
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE penstock.api_requests (
            caller      text NOT NULL,
            key         text NOT NULL,
            fingerprint text NOT NULL,
            taken_at    timestamptz NOT NULL,
            status      integer,
            answer      text,
            CONSTRAINT api_requests_pkey PRIMARY KEY (caller, key),
            CONSTRAINT api_requests_answered CHECK ((status IS NULL) = (answer IS NULL))
        )
        """
    )
    op.execute("COMMENT ON COLUMN penstock.api_requests.fingerprint IS 'SHA-256 of method, path and body'")
    op.execute("CREATE INDEX api_requests_taken ON penstock.api_requests (taken_at)")
    op.execute("REVOKE ALL ON penstock.api_requests FROM PUBLIC")
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON penstock.api_requests TO penstock_app")
    op.execute("GRANT SELECT ON penstock.api_requests TO penstock_reader")
