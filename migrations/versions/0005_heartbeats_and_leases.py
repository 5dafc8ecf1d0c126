"""
Who looked when, and leases that are renewed: a heartbeat for each looker and rollout, and no new version for a renewal.

Heartbeats say whether somebody looks, not what was decided, so they are no part of the audit log and may be overwritten. A renewal moves the
end of a flag's lease and nothing else: it has a revision, so that readers hear of it, and a row in the history, but the version stays, so
that a raise that was read before it still fits. Whoever renews says so (`penstock.renewal`) and changes nothing else: any other write of a
flag, with psql too, is a new version.
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # Rows are overwritten every few seconds: room for the new versions on the same page.
    op.execute(
        """
        CREATE TABLE penstock.heartbeats (
            who        text NOT NULL,
            rollout_id text NOT NULL,
            at         timestamptz NOT NULL,
            CONSTRAINT heartbeats_pkey PRIMARY KEY (who, rollout_id)
        ) WITH (fillfactor = 50)
        """
    )
    op.execute("COMMENT ON COLUMN penstock.heartbeats.rollout_id IS 'which rollout was looked at; empty: the looker itself'")
    op.execute("REVOKE ALL ON penstock.heartbeats FROM PUBLIC")
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON penstock.heartbeats TO penstock_app")
    op.execute("GRANT SELECT ON penstock.heartbeats TO penstock_reader")
    op.execute(
        """
        CREATE FUNCTION penstock.is_renewal(was penstock.flags, is_now penstock.flags) RETURNS boolean
        LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
            SELECT coalesce(current_setting('penstock.renewal', true), '') = 'on'
               AND was.lease IS NOT NULL AND is_now.lease IS NOT NULL
               AND (was.killed, was.weight, was.shadow_weight, was.salt, was.unit, was.control::text, was.candidate::text, was.decision_id)
                 = (is_now.killed, is_now.weight, is_now.shadow_weight, is_now.salt, is_now.unit, is_now.control::text,
                    is_now.candidate::text, is_now.decision_id)
        $$
        """
    )
    op.execute("REVOKE ALL ON FUNCTION penstock.is_renewal(penstock.flags, penstock.flags) FROM PUBLIC")
    op.execute(
        """
        CREATE OR REPLACE FUNCTION penstock.number_flag_write() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            IF TG_OP = 'UPDATE' AND (NEW.environment, NEW.key) IS DISTINCT FROM (OLD.environment, OLD.key) THEN
                RAISE EXCEPTION 'a flag cannot be renamed: %/%', OLD.environment, OLD.key;
            END IF;
            INSERT INTO penstock.flag_revisions AS r (environment, revision) VALUES (NEW.environment, 1)
            ON CONFLICT (environment) DO UPDATE SET revision = r.revision + 1
            RETURNING r.revision INTO NEW.revision;
            IF TG_OP = 'INSERT' THEN
                NEW.version := 1;
            ELSIF penstock.is_renewal(OLD, NEW) THEN
                NEW.version := OLD.version;
            ELSE
                NEW.version := OLD.version + 1;
            END IF;
            NEW.written_at := clock_timestamp();
            RETURN NEW;
        END
        $$
        """
    )
    op.execute(
        """
        CREATE OR REPLACE FUNCTION penstock.record_flag_write() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            written penstock.flags := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
            what    text := 'write';
        BEGIN
            IF TG_OP = 'DELETE' THEN
                what := 'delete';
                UPDATE penstock.flag_revisions SET revision = revision + 1 WHERE environment = OLD.environment
                RETURNING revision INTO written.revision;
                written.written_at := clock_timestamp();
            ELSIF TG_OP = 'UPDATE' AND NEW.killed AND NOT OLD.killed THEN
                what := 'kill';
            ELSIF TG_OP = 'UPDATE' AND OLD.killed AND NOT NEW.killed THEN
                what := 'unkill';
            ELSIF TG_OP = 'UPDATE' AND penstock.is_renewal(OLD, NEW) THEN
                what := 'renew';
            END IF;
            INSERT INTO penstock.flag_history
                (environment, revision, key, version, at, action, actor, reason, db_user, decision_id, killed, weight, shadow_weight, flag)
            VALUES
                (written.environment, written.revision, written.key, written.version, written.written_at, what,
                 coalesce(nullif(current_setting('penstock.actor', true), ''), session_user),
                 coalesce(current_setting('penstock.reason', true), ''), session_user,
                 written.decision_id, written.killed, written.weight, written.shadow_weight, row_to_json(written));
            PERFORM pg_notify('penstock_flags', written.environment || ' ' || written.revision);
            RETURN NULL;
        END
        $$
        """
    )
