"""The owner of the database as an enemy: what was edited is told, nothing breaks for the others, and nothing is raised on it."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from controller import commands
from controller.adapters.postgres import PostgresAudit, PostgresFlags
from controller.adapters.postgres.chain import verify
from controller.adapters.postgres.connect import connect
from controller.core.rollout import LogError
from controller.ports import AuditUnavailable, FlagChange
from controller.recheck import recheck
from controller.shelf import Mark
from tests.ports.databases import disarmed
from tests.ports.events import opened
from tests.ports.test_audit_proof import Looked, as_owner, audit, fill, looked, url

__all__ = ["audit", "looked", "url"]

pytestmark = pytest.mark.services

UNREADABLE = (
    "'[]'",
    "'null'",
    "'\"x\"'",
    "'1e400'",
    "repeat('[', 9000) || repeat(']', 9000)",
    "'{\"v\":1' || repeat('0', 5000) || '}'",
)


def beyond_checks(owner_url: str, *statements: str) -> None:
    """As an owner who also takes the triggers of flags out of the way for a moment."""
    with connect(owner_url) as connection:
        connection.execute("ALTER TABLE penstock.flags DISABLE TRIGGER ALL")
    try:
        as_owner(owner_url, *statements)
    finally:
        with connect(owner_url) as connection:
            connection.execute("ALTER TABLE penstock.flags ENABLE TRIGGER ALL")


# --- verifying --------------------------------------------------------------------------------------------------------------------


def test_an_id_far_beyond_the_others_is_a_gap_and_no_search_without_end(audit: PostgresAudit, owner_url: str, url: str) -> None:
    fill(audit)
    as_owner(owner_url, f"UPDATE penstock.audit SET id = {2**63 - 1} WHERE id = 6")
    assert {(p.audit_id, p.kind) for p in verify(url).problems} >= {(2**63 - 1, "gap"), (2**63 - 1, "hash")}


@pytest.mark.parametrize("event", UNREADABLE)
def test_a_row_that_nobody_can_read_stands_in_the_way_of_its_own_rollout_alone(
    audit: PostgresAudit, owner_url: str, url: str, event: str
) -> None:
    fill(audit, rows=3)
    audit.append(opened("r2", "other"), None)
    as_owner(owner_url, f"UPDATE penstock.audit SET event = ({event})::json WHERE id = 2")
    assert {p.kind for p in verify(url).problems} == {"hash"}
    assert set(audit.news({"r1": Mark(), "r2": Mark()})) == {"r2"}
    for read in (lambda: audit.entries("r1"), lambda: audit.entry("r1", 2), lambda: list(audit.odd_columns("r1"))):
        with pytest.raises(AuditUnavailable, match="r1/2 cannot be read"):
            read()


@pytest.mark.parametrize(
    ("statement", "kind", "text"),
    [
        ("UPDATE penstock.flags SET lease = now() + interval '1 year'", "history", "which its history does not tell of so"),
        ("UPDATE penstock.flags SET salt = 'other'", "history", "which its history does not tell of so"),
        ("""UPDATE penstock.flags SET candidate = '{"model":"evil"}'""", "history", "which its history does not tell of so"),
        ("UPDATE penstock.flags SET written_at = 'infinity'", "history", "which its history does not tell of so"),
        (
            "UPDATE penstock.flags f SET weight = 0, version = h.version, revision = h.revision, decision_id = h.decision_id, written_at = h.at "
            "FROM penstock.flag_history h WHERE h.revision = 1",
            "history",
            "which its history does not tell of so",
        ),
        ("DELETE FROM penstock.flags", "history", "without its deletion"),
        (
            "UPDATE penstock.flag_history SET weight = 7 WHERE revision = 1",
            "history",
            "something else than the flag that it keeps",
        ),
        (
            "UPDATE penstock.flag_history SET at = at - interval '1 day' WHERE revision = 1",
            "history",
            "something else than the flag",
        ),
        (
            "UPDATE penstock.flag_history SET flag = '[]' WHERE revision = 1",
            "history",
            "something else than the flag that it keeps",
        ),
        (
            """UPDATE penstock.flag_history SET flag = replace(flag::text, '"written_at":"2', '"written_at":"x')::json WHERE revision = 1""",
            "history",
            "cannot be compared",
        ),
        ("DELETE FROM penstock.flag_history WHERE revision = 1", "history", "follows nothing"),
        (
            "UPDATE penstock.flag_history SET action = 'renew' WHERE revision = 2",
            "history",
            "version 2 (renew) follows version 1",
        ),
        ("UPDATE penstock.flag_revisions SET revision = 1", "history", "is at revision 1, its history at 2"),
        ("DELETE FROM penstock.flag_revisions", "history", "is at revision none, its history at 2"),
        ("DELETE FROM penstock.flag_holds", "orphan", "has not ended and holds no flag"),
        ("UPDATE penstock.flag_holds SET flag = 'other'", "orphan", "whose plan moves another flag"),
    ],
)
def test_what_the_owner_edits_beside_the_log_is_told(
    looked: Looked, owner_url: str, url: str, statement: str, kind: str, text: str
) -> None:
    looked.look()
    commands.pause(looked.rollout_id, looked.ports, actor="amir", reason="lunch")
    commands.resume(looked.rollout_id, looked.ports, actor="amir", reason="done")
    assert verify(url).ok
    beyond_checks(owner_url, statement)
    assert [(p.kind, True) for p in verify(url).problems if text in p.text] == [(kind, True)], verify(url).problems


@pytest.mark.parametrize(
    ("statement", "back", "text"),
    [
        (
            "DROP TRIGGER audit_append_only ON penstock.audit",
            "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON penstock.audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION penstock.refuse_change(); "
            "ALTER TABLE penstock.audit ENABLE ALWAYS TRIGGER audit_append_only",
            "trigger audit_append_only of audit is not there",
        ),
        (
            "ALTER TABLE penstock.flag_history ENABLE TRIGGER flag_history_append_only",
            "ALTER TABLE penstock.flag_history ENABLE ALWAYS TRIGGER flag_history_append_only",
            "trigger flag_history_append_only of flag_history is switched off",
        ),
        (
            "ALTER TABLE penstock.flags DISABLE TRIGGER flags_record",
            "ALTER TABLE penstock.flags ENABLE TRIGGER flags_record",
            "trigger flags_record of flags is switched off",
        ),
        (
            "GRANT UPDATE ON penstock.audit TO penstock_app",
            "REVOKE UPDATE ON penstock.audit FROM penstock_app",
            "role penstock_app may UPDATE audit",
        ),
        (
            "GRANT INSERT ON penstock.audit TO penstock_reader",
            "REVOKE INSERT ON penstock.audit FROM penstock_reader",
            "role penstock_reader may INSERT audit",
        ),
    ],
)
def test_what_protects_the_log_is_in_place_or_it_is_told(
    audit: PostgresAudit, owner_url: str, url: str, statement: str, back: str, text: str
) -> None:
    assert verify(url).ok
    with connect(owner_url) as connection:
        connection.execute(statement.encode())
        try:
            assert [(p.kind, p.text) for p in verify(url).problems] == [("rights", text)]
        finally:
            connection.execute(back.encode())
    assert verify(url).ok


def test_a_write_that_was_taken_out_of_the_history_is_missed_by_its_row(looked: Looked, owner_url: str, url: str) -> None:
    for _ in range(2):
        looked.look()
        commands.pause(looked.rollout_id, looked.ports, actor="amir", reason="lunch")
        commands.resume(looked.rollout_id, looked.ports, actor="amir", reason="done")
    as_owner(
        owner_url,
        """UPDATE penstock.flag_history SET decision_id = 'x', flag = replace(flag::text, decision_id, 'x')::json WHERE revision = 2""",
    )
    (problem,) = verify(url).problems
    assert problem.kind == "history" and "tells of a write of its flag by" in problem.text


def test_a_life_with_everything_in_it_is_no_alarm(looked: Looked, owner_url: str, url: str, engine: Engine) -> None:
    store = PostgresFlags(engine)
    looked.look()
    flag = store.read("production", "chat")
    assert flag is not None
    change = FlagChange(
        environment="production", key="leased", control=flag.control, candidate=flag.candidate, salt="s", unit="user",
        weight=1000, shadow_weight=0, decision_id="person:x", lease=timedelta(hours=1),
    )  # fmt: skip
    written = store.write(change, 0)
    for _ in range(3):
        store.renew("production", "leased", timedelta(hours=1), written.version)
    store.write(change, written.version)
    commands.pause(looked.rollout_id, looked.ports, actor="amir", reason="enough \0 \ud800")
    store.set_killed("production", "chat", True, actor="oncall", reason="alarm")
    with connect(owner_url) as connection:
        connection.execute("SET TIME ZONE 'Asia/Kathmandu'")
        connection.execute("UPDATE penstock.flags SET weight = 3 WHERE key = 'leased'")
        connection.execute("DELETE FROM penstock.flags WHERE key = 'leased'")
        connection.execute("SELECT penstock.catch_up_flags('production', 5000)")
    store.write(change, 0)
    looked.look(may_raise=False)
    assert verify(url).problems == ()
    as_owner(owner_url, "DELETE FROM penstock.flag_history WHERE action = 'renew'")
    assert verify(url).problems == (), "as `penstock audit archive` leaves it"


# --- raising ----------------------------------------------------------------------------------------------------------------------


def rehash(owner_url: str, seq: int) -> None:
    """Hash one row rightly, whose followers name the old one."""
    from controller.adapters.postgres.rows import row_hash
    from controller.core.chain import HASHED

    names = ", ".join(f"{n}::text" if n in ("verdicts", "reasons", "event") else n for n in HASHED)
    with disarmed(owner_url) as connection:
        row: Any = connection.execute(f"SELECT {names} FROM penstock.audit WHERE seq = {seq}".encode()).fetchone()
        (before,) = connection.execute(f"SELECT prev_hash FROM penstock.audit WHERE seq = {seq}".encode()).fetchone() or ("",)
        stored = row_hash(before, dict(zip(HASHED, row, strict=True)))
        connection.execute(f"UPDATE penstock.audit SET hash = '{stored}' WHERE seq = {seq}".encode())


@pytest.mark.parametrize(
    ("statement", "rehashed"),
    [
        ("UPDATE penstock.audit SET actor = 'mallory' WHERE seq = 1", False),
        ("UPDATE penstock.audit SET actor = 'mallory' WHERE seq = 2", True),
        ("UPDATE penstock.audit SET at = at - interval '1 day' WHERE seq = 3", False),
        ("UPDATE penstock.audit SET reason = 'all was well' WHERE seq = 2", False),
        ("UPDATE penstock.audit SET id = id + 100 WHERE seq = 2", True),
        ("DELETE FROM penstock.audit WHERE seq = 2", False),
    ],
)
@pytest.mark.parametrize("warm", [True, False])
def test_nothing_is_raised_on_rows_that_somebody_changed_and_lowering_goes_on(
    looked: Looked, owner_url: str, statement: str, rehashed: bool, warm: bool
) -> None:
    looked.look()
    commands.pause(looked.rollout_id, looked.ports, actor="amir", reason="lunch")
    if not warm:
        looked.audit._known.clear()
    as_owner(owner_url, statement)
    if rehashed:
        rehash(owner_url, 2)
    with pytest.raises(LogError):
        commands.resume(looked.rollout_id, looked.ports, actor="amir", reason="done")
    flag = looked.ports.flags.read("production", "chat")
    assert flag is not None and flag.weight == 5000
    if statement.startswith("DELETE") and not warm:
        return  # nobody can say where it stands: `penstock flags kill`
    commands.abort(looked.rollout_id, looked.ports, actor="amir", reason="odd")
    flag = looked.ports.flags.read("production", "chat")
    assert flag is not None and flag.weight == 0


def test_a_bake_that_was_made_longer_by_hand_does_not_promote(looked: Looked, owner_url: str) -> None:
    looked.look()
    as_owner(owner_url, "UPDATE penstock.audit SET at = at - interval '30 days'")
    looked.audit._known.clear()
    for _ in range(3):
        with pytest.raises(LogError, match=r"row real-\w+/1 .* is not what was written.*nothing is raised"):
            for _ in range(4):
                looked.look()
    flag = looked.ports.flags.read("production", "chat")
    assert flag is not None and flag.weight == 5000


# --- notices ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["a\0b", "half \ud800 a pair"])
def test_what_a_person_typed_holds_up_nobodys_notices(looked: Looked, url: str, typed: str) -> None:
    looked.look()
    commands.pause(looked.rollout_id, looked.ports, actor="amir", reason=typed)
    seqs = [x.notice.seq for _ in range(5) for x in looked.audit.due(9) if not looked.audit.done(x)]
    assert seqs == [e.seq for e in looked.audit.entries(looked.rollout_id) if e.seq in seqs] and len(seqs) >= 2
    assert verify(url).problems == ()
    assert [d for r in recheck(looked.rollout_id, looked.audit) for d in r.differences] == []


@pytest.mark.parametrize(
    "edit", [f"notice = ({UNREADABLE[4]})::json", f"notice = ({UNREADABLE[5]})::json", "attempts = 2147483647"]
)
def test_a_letter_that_was_edited_holds_up_nobody_elses(audit: PostgresAudit, owner_url: str, edit: str) -> None:
    fill(audit, rows=3)
    fill(audit, "r2", "other", rows=3)
    as_owner(owner_url, f"UPDATE penstock.outbox SET {edit} WHERE rollout_id = 'r1' AND seq = 1")
    assert "r2" in [x.notice.rollout_id for x in audit.due(9)]
