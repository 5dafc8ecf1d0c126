"""
A flag store that went back in time is lifted above what its readers have seen.

Readers order flags by their revision and ignore an older one, so a store that was restored from a backup is not heard until it has caught up, nor
is a kill. `catch_up_flags` moves the revision above theirs and lowers what is part-way, because the store may have forgotten who lowered
it; every flag of the environment is written once more, so that history and readers see it. It never raises. The app role may call it; it
cannot move a revision by other means.
"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(
        """
        CREATE FUNCTION penstock.is_catching_up(was penstock.flags, is_now penstock.flags) RETURNS boolean
        LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
            SELECT coalesce(current_setting('penstock.catching_up', true), '') = 'on'
               AND is_now.weight <= was.weight AND is_now.shadow_weight <= was.shadow_weight
               AND (was.killed, was.salt, was.unit, was.control::text, was.candidate::text)
                 = (is_now.killed, is_now.salt, is_now.unit, is_now.control::text, is_now.candidate::text)
        $$
        """
    )
    op.execute("REVOKE ALL ON FUNCTION penstock.is_catching_up(penstock.flags, penstock.flags) FROM PUBLIC")
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
            ELSIF TG_OP = 'UPDATE' AND penstock.is_catching_up(OLD, NEW) THEN
                what := 'catch_up';
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
    # Flags first, then the revision: the order in which every write of a flag locks them.
    op.execute(
        """
        CREATE FUNCTION penstock.catch_up_flags(
            of_environment text, seen bigint, OUT was bigint, OUT is_now bigint, OUT lowered text[], OUT kept text[]
        )
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            beyond  CONSTANT bigint := 1000000;
            farthest CONSTANT bigint := 1099511627776;
            here    bigint;
        BEGIN
            SELECT r.revision INTO here FROM penstock.flag_revisions r WHERE r.environment = of_environment;
            IF coalesce(here, 0) >= seen THEN
                RETURN;
            END IF;
            PERFORM 1 FROM penstock.flags f WHERE f.environment = of_environment ORDER BY f.key FOR UPDATE;
            INSERT INTO penstock.flag_revisions (environment, revision) VALUES (of_environment, 0) ON CONFLICT DO NOTHING;
            SELECT r.revision INTO here FROM penstock.flag_revisions r WHERE r.environment = of_environment FOR UPDATE;
            IF here >= seen THEN
                RETURN;
            END IF;
            IF seen - here > farthest OR seen > 9007199254740991 - beyond THEN
                RAISE EXCEPTION 'no store was ever at revision %: % is at %', seen, of_environment, here USING ERRCODE = 'check_violation';
            END IF;
            was := here;
            UPDATE penstock.flag_revisions SET revision = seen + beyond WHERE environment = of_environment;
            PERFORM set_config('penstock.catching_up', 'on', true);
            WITH part_way AS (
                SELECT f.key, f.shadow_weight > 0 OR (f.weight > 0 AND (f.weight < 100000 OR EXISTS (
                    SELECT 1 FROM penstock.flag_holds h WHERE h.environment = f.environment AND h.flag = f.key
                ))) AS yes
                FROM penstock.flags f WHERE f.environment = of_environment
            ), written AS (
                UPDATE penstock.flags f
                SET weight = CASE WHEN p.yes THEN 0 ELSE f.weight END,
                    shadow_weight = 0,
                    decision_id = CASE WHEN p.yes THEN 'catch_up:' || seen ELSE f.decision_id END
                FROM part_way p WHERE f.environment = of_environment AND f.key = p.key
                RETURNING f.key, p.yes, f.weight, f.killed
            )
            SELECT coalesce(array_agg(w.key ORDER BY w.key) FILTER (WHERE w.yes), '{}'),
                   coalesce(array_agg(w.key ORDER BY w.key) FILTER (WHERE w.weight > 0 AND NOT w.killed), '{}')
            INTO lowered, kept FROM written w;
            SELECT r.revision INTO is_now FROM penstock.flag_revisions r WHERE r.environment = of_environment;
            PERFORM set_config('penstock.catching_up', 'off', true);
            PERFORM pg_notify('penstock_flags', of_environment || ' ' || is_now);
        END
        $$
        """
    )
    op.execute("REVOKE ALL ON FUNCTION penstock.catch_up_flags(text, bigint) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION penstock.catch_up_flags(text, bigint) TO penstock_app")
