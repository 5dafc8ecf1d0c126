"""
Who may do what: the owner migrates, `penstock_app` runs the controller, `penstock_reader` looks.

The controller can add to the audit log and can take nothing out of it. Roles belong to the whole server, so they may be there already; where
the migrating role must not create any, an administrator does it first; the error of `penstock migrate` says how.
"""

from alembic import op
from sqlalchemy import text

revision = "0004"
down_revision = "0003"

GRANTS = {
    "audit": "SELECT, INSERT",
    "audit_evidence": "SELECT, INSERT",
    "audit_queries": "SELECT",
    "flags": "SELECT, INSERT, UPDATE",
    "flag_revisions": "SELECT",
    "flag_history": "SELECT",
    "flag_holds": "SELECT, INSERT, DELETE",
    "outbox": "SELECT, INSERT, UPDATE",
    "slack_threads": "SELECT, INSERT, UPDATE",
    "alembic_version": "SELECT",
}


def upgrade() -> None:
    for role in ("penstock_app", "penstock_reader"):
        _create_role(role)
        op.execute(f"GRANT USAGE ON SCHEMA penstock TO {role}")
    op.execute("REVOKE ALL ON ALL TABLES IN SCHEMA penstock FROM PUBLIC")
    # Only triggers call them.
    op.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA penstock FROM PUBLIC")
    for table, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON penstock.{table} TO penstock_app")
        op.execute(f"GRANT SELECT ON penstock.{table} TO penstock_reader")


def _create_role(role: str) -> None:
    found = op.get_bind().scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
    if found is not None:
        return
    # Another database of the same server may be migrated at this moment.
    op.execute(
        f"""
        DO $$
        BEGIN
            CREATE ROLE {role} LOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END
        $$
        """
    )
