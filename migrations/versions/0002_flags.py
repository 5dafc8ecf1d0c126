"""
The flag store: compare-and-set rows, a revision per environment, the history of every write, and who holds a flag.

Version, revision, history and NOTIFY are made by triggers, so that a flag edited with psql is seen by the routers and by the controller
like any other write. The row of `flag_revisions` is locked by each write: revisions become visible in their order.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE penstock.flags (
            environment   text NOT NULL,
            key           text NOT NULL,
            version       bigint NOT NULL,
            revision      bigint NOT NULL,
            killed        boolean NOT NULL DEFAULT false,
            weight        integer NOT NULL,
            shadow_weight integer NOT NULL,
            salt          text NOT NULL,
            unit          text NOT NULL,
            control       json NOT NULL,
            candidate     json NOT NULL,
            decision_id   text NOT NULL,
            lease         timestamptz,
            written_at    timestamptz NOT NULL,
            CONSTRAINT flags_pkey PRIMARY KEY (environment, key),
            CONSTRAINT flags_weight CHECK (weight BETWEEN 0 AND 100000),
            CONSTRAINT flags_shadow_weight CHECK (shadow_weight BETWEEN 0 AND 100000),
            CONSTRAINT flags_not_empty CHECK (environment <> '' AND key <> '' AND salt <> ''),
            -- A row that routers could not read would stop the news of all the others.
            CONSTRAINT flags_variants CHECK (
                coalesce(control ->> 'model', '') <> '' AND json_typeof(control -> 'model') = 'string'
                AND coalesce(json_typeof(control -> 'params'), 'object') = 'object'
                AND coalesce(candidate ->> 'model', '') <> '' AND json_typeof(candidate -> 'model') = 'string'
                AND coalesce(json_typeof(candidate -> 'params'), 'object') = 'object'
            )
        )
        """
    )
    op.execute(
        """
        CREATE TABLE penstock.flag_revisions (
            environment text NOT NULL,
            revision    bigint NOT NULL,
            CONSTRAINT flag_revisions_pkey PRIMARY KEY (environment)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE penstock.flag_history (
            environment   text NOT NULL,
            revision      bigint NOT NULL,
            key           text NOT NULL,
            version       bigint NOT NULL,
            at            timestamptz NOT NULL,
            action        text NOT NULL,
            actor         text NOT NULL,
            reason        text NOT NULL,
            db_user       text NOT NULL,
            decision_id   text NOT NULL,
            killed        boolean NOT NULL,
            weight        integer NOT NULL,
            shadow_weight integer NOT NULL,
            flag          json NOT NULL,
            CONSTRAINT flag_history_pkey PRIMARY KEY (environment, revision)
        )
        """
    )
    op.execute("CREATE INDEX flag_history_by_flag ON penstock.flag_history (environment, key, revision)")
    op.execute(
        """
        CREATE TABLE penstock.flag_holds (
            environment text NOT NULL,
            flag        text NOT NULL,
            rollout_id  text NOT NULL,
            audit_id    bigint NOT NULL,
            CONSTRAINT flag_holds_pkey PRIMARY KEY (environment, flag),
            CONSTRAINT flag_holds_rollout UNIQUE (rollout_id)
        )
        """
    )
    # SECURITY DEFINER: who may write a flag need not be able to write its history or its revision.
    op.execute(
        """
        CREATE FUNCTION penstock.number_flag_write() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            IF TG_OP = 'UPDATE' AND (NEW.environment, NEW.key) IS DISTINCT FROM (OLD.environment, OLD.key) THEN
                RAISE EXCEPTION 'a flag cannot be renamed: %/%', OLD.environment, OLD.key;
            END IF;
            INSERT INTO penstock.flag_revisions AS r (environment, revision) VALUES (NEW.environment, 1)
            ON CONFLICT (environment) DO UPDATE SET revision = r.revision + 1
            RETURNING r.revision INTO NEW.revision;
            NEW.version := CASE WHEN TG_OP = 'INSERT' THEN 1 ELSE OLD.version + 1 END;
            NEW.written_at := clock_timestamp();
            RETURN NEW;
        END
        $$
        """
    )
    op.execute(
        """
        CREATE FUNCTION penstock.record_flag_write() RETURNS trigger
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
    op.execute(
        "CREATE TRIGGER flags_number BEFORE INSERT OR UPDATE ON penstock.flags "
        "FOR EACH ROW EXECUTE FUNCTION penstock.number_flag_write()"
    )
    op.execute(
        "CREATE TRIGGER flags_record AFTER INSERT OR UPDATE OR DELETE ON penstock.flags "
        "FOR EACH ROW EXECUTE FUNCTION penstock.record_flag_write()"
    )
    op.execute(
        "CREATE TRIGGER flag_history_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON penstock.flag_history "
        "FOR EACH STATEMENT EXECUTE FUNCTION penstock.refuse_change()"
    )
    op.execute("ALTER TABLE penstock.flag_history ENABLE ALWAYS TRIGGER flag_history_append_only")
