"""
Whether the tables beside the audit log agree with it and with each other: holds, notices, flags and the history of their writes; and whether what
protects them is in place.

It stands beside `chain`, which follows the log itself. Its one rule: no hash covers these tables, so that it tells of what does not fit together,
and not of an edit that leaves all of them in agreement.
"""

from typing import Any

import psycopg

from controller.adapters.postgres.tables import SCHEMA
from controller.core.chain import HEAD_NOTICE, Findings

_FLAG = "'flag ' || {0}.key || ' in ' || {0}.environment"

_OPENED = """
SELECT id, rollout_id, event #>> '{{plan,environment}}' AS environment, event #>> '{{plan,flag}}' AS flag
FROM {schema}.audit WHERE seq = 1 AND CASE WHEN event::text ~ '\\\\u(0000|d[89a-f])' THEN false ELSE true END
"""
"""Without plans in which somebody typed NUL or half a surrogate pair, which the server's JSON functions refuse."""

_LAST = """
SELECT DISTINCT ON (rollout_id) rollout_id, kind = 'applied' AND coalesce(action, '') IN ('promote', 'roll_back', 'abort') AS over
FROM {schema}.audit ORDER BY rollout_id, seq DESC
"""

_LATEST = "SELECT DISTINCT ON (environment, key) * FROM {schema}.flag_history ORDER BY environment, key, revision DESC"

_STRAYS: dict[str, tuple[str, ...]] = {
    "orphan": (
        "SELECT 'flag ' || h.flag || ' in ' || h.environment || ' is held by ' || h.rollout_id || ' since row ' || h.audit_id "
        "|| ', which is not there' FROM {schema}.flag_holds h "
        "LEFT JOIN {schema}.audit a ON a.id = h.audit_id AND a.rollout_id = h.rollout_id AND a.seq = 1 WHERE a.id IS NULL",
        "SELECT 'flag ' || h.flag || ' in ' || h.environment || ' is held by ' || h.rollout_id || ', whose plan moves another flag' "
        f"FROM {{schema}}.flag_holds h JOIN ({_OPENED}) o ON o.id = h.audit_id AND o.rollout_id = h.rollout_id "
        "WHERE (h.environment, h.flag) IS DISTINCT FROM (o.environment, o.flag)",
        f"SELECT 'rollout ' || l.rollout_id || CASE WHEN l.over THEN ' has ended and still holds a flag' "
        f"ELSE ' has not ended and holds no flag' END FROM ({_LAST}) l LEFT JOIN {{schema}}.flag_holds h USING (rollout_id) "
        "WHERE l.over = (h.rollout_id IS NOT NULL)",
        "SELECT 'a notice tells of row ' || o.rollout_id || '/' || o.seq || ', which is not there' FROM {schema}.outbox o "
        "LEFT JOIN {schema}.audit a ON a.rollout_id = o.rollout_id AND a.seq = o.seq "
        f"WHERE a.id IS NULL AND o.rollout_id <> '{HEAD_NOTICE}'",
        # A lowering may come before its row; a raise never does.
        f"SELECT DISTINCT {_FLAG.format('d')} || ' was written by ' || d.decision_id || ', which no row decided' "
        "FROM (SELECT h.*, regexp_match(h.decision_id, '^(.+)[.]([0-9]{{1,9}})[.](advance|promote|resume)([.]abandoned)?$') AS parts "
        "FROM {schema}.flag_history h WHERE h.action = 'write') d "
        "LEFT JOIN {schema}.audit a ON a.rollout_id = d.parts[1] AND a.seq = d.parts[2]::integer AND a.action = d.parts[3] "
        "WHERE d.parts IS NOT NULL AND a.id IS NULL",
    ),
    "history": (
        f"SELECT {_FLAG.format('f')} || ' is at revision ' || f.revision || ', which its history does not tell of so' "
        f"FROM {{schema}}.flags f LEFT JOIN ({_LATEST}) h USING (environment, key) WHERE h.action IS NOT DISTINCT FROM 'delete' OR "
        "(f.revision, f.version, f.killed, f.weight, f.shadow_weight, f.decision_id, f.written_at, f.salt, f.unit, "
        "f.control::text, f.candidate::text, f.lease) IS DISTINCT FROM "
        "(h.revision, h.version, h.killed, h.weight, h.shadow_weight, h.decision_id, h.at, h.flag ->> 'salt', h.flag ->> 'unit', "
        "(h.flag -> 'control')::text, (h.flag -> 'candidate')::text, (h.flag ->> 'lease')::timestamptz)",
        f"SELECT {_FLAG.format('h')} || ' is not there, but its history ends at revision ' || h.revision || ' without its deletion' "
        f"FROM ({_LATEST}) h LEFT JOIN {{schema}}.flags f USING (environment, key) WHERE f.key IS NULL AND h.action <> 'delete'",
        f"SELECT {_FLAG.format('h')} || ': revision ' || h.revision || ' of its history says something else than the flag that it keeps' "
        "FROM {schema}.flag_history h WHERE (h.environment, h.key, h.revision::text, h.version::text, h.killed::text, h.weight::text, "
        "h.shadow_weight::text, h.decision_id, h.at) IS DISTINCT FROM (h.flag ->> 'environment', h.flag ->> 'key', "
        "h.flag ->> 'revision', h.flag ->> 'version', h.flag ->> 'killed', h.flag ->> 'weight', h.flag ->> 'shadow_weight', "
        "h.flag ->> 'decision_id', (h.flag ->> 'written_at')::timestamptz)",
        # A renewal and a deletion keep the version; renewals are removed by `penstock audit archive`.
        f"SELECT {_FLAG.format('h')} || ': version ' || h.version || ' (' || h.action || ') follows ' || coalesce('version ' || h.was, "
        "'nothing') || ' in its history' FROM (SELECT *, lag(version) OVER w AS was, lag(action) OVER w AS did FROM {schema}.flag_history "
        "WINDOW w AS (PARTITION BY environment, key ORDER BY revision)) h WHERE h.version IS DISTINCT FROM "
        "CASE WHEN h.action IN ('renew', 'delete') THEN h.was WHEN h.did IS NOT DISTINCT FROM 'delete' THEN 1 "
        "ELSE coalesce(h.was, 0) + 1 END",
        "SELECT 'environment ' || h.environment || ' is at revision ' || coalesce(r.revision::text, 'none') "
        "|| ', its history at ' || max(h.revision) FROM {schema}.flag_history h LEFT JOIN {schema}.flag_revisions r USING (environment) "
        "GROUP BY h.environment, r.revision HAVING r.revision IS NULL OR r.revision < max(h.revision)",
        # Only of flags that this database keeps, as they may lie in another one; and not of what the store is known to have forgotten.
        "SELECT 'row ' || a.id || ' (' || a.rollout_id || '/' || a.seq || ') tells of a write of its flag by ' || a.decision_id "
        "|| ', which the history does not tell of' FROM {schema}.audit a "
        f"JOIN ({_OPENED}) o USING (rollout_id) WHERE a.kind = 'applied' AND EXISTS (SELECT FROM {{schema}}.flag_history h "
        "WHERE (h.environment, h.key) = (o.environment, o.flag) AND h.at > a.at) AND NOT EXISTS (SELECT FROM {schema}.flag_history h "
        "WHERE h.environment = o.environment AND h.action = 'catch_up' AND h.at > a.at) AND NOT EXISTS (SELECT FROM {schema}.flag_history h "
        "WHERE (h.environment, h.key) = (o.environment, o.flag) AND (h.decision_id, h.weight, h.shadow_weight) = (a.decision_id, a.weight_after, a.shadow_weight_after))",
    ),
}

_GUARDS = (
    # As the migrations make them: the three that refuse changes fire even for a replica.
    "SELECT CASE WHEN t.tgname IS NULL THEN 'trigger ' || w.name || ' of ' || w.of || ' is not there' "
    "ELSE 'trigger ' || w.name || ' of ' || w.of || ' is switched off' END "
    "FROM (VALUES ('audit', 'audit_append_only', 'A'), ('audit_evidence', 'audit_evidence_append_only', 'A'), "
    "('flag_history', 'flag_history_append_only', 'A'), ('flags', 'flags_number', 'OA'), ('flags', 'flags_record', 'OA')) "
    "AS w (of, name, fires) LEFT JOIN pg_catalog.pg_trigger t ON t.tgname = w.name AND t.tgrelid = ('{schema}.' || w.of)::regclass "
    "WHERE t.tgname IS NULL OR strpos(w.fires, t.tgenabled::text) = 0",
    "SELECT 'role ' || r.rolname || ' may ' || p.may || ' ' || w.of FROM pg_catalog.pg_roles r, "
    "(VALUES ('audit'), ('audit_evidence'), ('flag_history'), ('flag_revisions')) AS w (of), "
    "(VALUES ('INSERT'), ('UPDATE'), ('DELETE'), ('TRUNCATE')) AS p (may) "
    "WHERE r.rolname IN ('penstock_app', 'penstock_reader') AND has_table_privilege(r.oid, ('{schema}.' || w.of)::regclass, p.may) "
    "AND NOT (p.may = 'INSERT' AND r.rolname = 'penstock_app' AND w.of IN ('audit', 'audit_evidence'))",
)
"""What lets the log grow and nothing else: the triggers, and that the roles of the product may not take anything back."""


def strays(connection: psycopg.Connection[tuple[Any, ...]], findings: Findings) -> None:
    """What other tables tell of rows that are not there, flags that are not as their history has them, and who may change what nobody may."""
    connection.execute(b"SET LOCAL enable_sort = on")
    for kind, queries in (*_STRAYS.items(), ("rights", _GUARDS)):
        for query in queries:
            try:
                with connection.transaction():
                    found = connection.execute(query.format(schema=SCHEMA).encode()).fetchall()
            except psycopg.DataError as exc:
                # What was written cannot be no text, time or number.
                findings.add(None, kind, f"what was edited cannot be compared: {exc.diag.message_primary}")
                continue
            for (text,) in found:
                findings.add(None, kind, text or "a row without a name")
