"""
Which texts of the audit log lie in an archive and no longer here.

The rows are a note of where to look and prove nothing: a text proves itself by its digest, wherever it is found.
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE penstock.archived_evidence (
            digest  text NOT NULL,
            archive text NOT NULL,
            at      timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT archived_evidence_pkey PRIMARY KEY (digest)
        )
        """
    )
    op.execute("COMMENT ON COLUMN penstock.archived_evidence.archive IS 'name of the file that it was moved to'")
    op.execute("REVOKE ALL ON penstock.archived_evidence FROM PUBLIC")
    op.execute("GRANT SELECT ON penstock.archived_evidence TO penstock_app")
    op.execute("GRANT SELECT ON penstock.archived_evidence TO penstock_reader")
