"""What only the audit log in Postgres can show: the columns, the grants, the chain, and many writers at once."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256

import psycopg
import pytest
from sqlalchemy import Engine, event

from controller.adapters.postgres import PostgresAudit, PostgresFlags, PostgresOutbox, app_url, reader_url
from controller.adapters.postgres.chain import Head, head, verify
from controller.adapters.postgres.connect import connect
from controller.codec import plan_digest
from controller.commands import check_start, start
from controller.core.notice import Level
from controller.core.rollout import Decided, Gathered
from controller.ports import AuditUnavailable, FlagHeld, Ports, SeqTaken, TextLost
from controller.sweep import anybody_due, sweep
from controller.wiring import NoMetrics
from tests.ports.databases import disarmed
from tests.ports.events import applied, decided, hold, measurements, notice, opened, plan, roll_back

pytestmark = pytest.mark.services


@pytest.fixture
def audit(engine: Engine) -> PostgresAudit:
    return PostgresAudit(engine)


def fill(audit: PostgresAudit, rollout_id: str = "r1", flag: str = "chat-model") -> None:
    """Four rows: opened, advanced, confirmed, held."""
    advance = decided(rollout_id, 2)
    for row in (opened(rollout_id, flag), advance, applied(rollout_id, 3, advance), hold(rollout_id, 4)):
        audit.append(row, notice(rollout_id, row.seq))


# --- what an auditor reads ------------------------------------------------------------------------------------------------------


def test_an_auditor_reads_a_decision_in_plain_sql(audit: PostgresAudit, owner_url: str) -> None:
    fill(audit)
    with connect(reader_url(owner_url)) as connection:
        row = connection.execute(
            "SELECT actor, action, source, why, reason, verdicts ->> 'latency', reasons ->> 'errors', weight_before, weight_after, "
            "shadow_weight_before, flag_version_before, flag_version_after, decision_id FROM penstock.audit WHERE rollout_id = 'r1' AND seq = 2"
        ).fetchone()
    assert row == (
        *("gate-check", "advance", "gate_check", "started", "the gates passed", "insufficient", "0.15%"),
        *(1000, 1000, 7, 4, None, "r1.2.advance"),
    )


def test_a_confirmed_change_names_both_sides_and_both_flag_versions(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), None)
    back = roll_back("r1", 2)
    audit.append(back, None)
    audit.append(applied("r1", 3, back), None)
    with connect(reader_url(owner_url)) as connection:
        row = connection.execute(
            "SELECT kind, action, weight_before, weight_after, flag_version_before, flag_version_after FROM penstock.audit WHERE seq = 3"
        ).fetchone()
    assert row == ("applied", "roll_back", 1000, 0, 4, 5)


def test_every_row_carries_the_digest_of_its_plan(audit: PostgresAudit, owner_url: str) -> None:
    fill(audit)
    with connect(reader_url(owner_url)) as connection:
        digests = connection.execute("SELECT DISTINCT plan_digest FROM penstock.audit").fetchall()
    assert digests == [(opened("r1").event.plan_digest,)]  # type: ignore[union-attr]


def test_every_query_of_a_decision_is_listed_with_its_raw_answer(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), None)
    audit.append(decided("r1", 2, answer='{"status":"success","data":["grüße"]}'), None)
    with connect(reader_url(owner_url)) as connection:
        rows = connection.execute(
            "SELECT gate, query, evaluated_at, digest, answer FROM penstock.audit_queries WHERE rollout_id = 'r1' ORDER BY gate, query"
        ).fetchall()
    assert [(r[0], r[4]) for r in rows] == [
        ("candidate-reports", None),
        ("errors", '{"status":"success","data":["grüße"]}'),
        ("latency", '{"status":"success","data":[2]}'),
        ("latency", '{"status":"success","data":["grüße"]}'),
    ]
    assert rows[1][1] == 'sum(rate(penstock_requests_total{arm="candidate"}[5m]))'
    assert rows[1][2] == datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert rows[1][3] == sha256('{"status":"success","data":["grüße"]}'.encode()).hexdigest()


def test_an_answer_that_gates_and_rows_share_is_stored_once(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), None)
    for seq in (2, 3, 4):
        audit.append(decided("r1", seq), None)
    with connect(reader_url(owner_url)) as connection:
        assert connection.execute("SELECT count(*) FROM penstock.audit_evidence").fetchone() == (2,)


def test_a_look_at_the_log_reads_references_and_entry_reads_the_answers(audit: PostgresAudit) -> None:
    audit.append(opened("r1"), None)
    audit.append(decided("r1", 2, answer="the answer"), None)
    seen = audit.entries("r1")[1].event.observed.measurements[0][1].evidence[0]  # type: ignore[union-attr]
    assert seen.answer == "sha256:" + sha256(b"the answer").hexdigest()
    assert seen.digest == sha256(b"the answer").hexdigest()
    assert audit.entry("r1", 2).event == decided("r1", 2, answer="the answer").event


@pytest.mark.parametrize("odd", ["\0", "a\0b", "\ud800", "\udcff lone", "\U0001f600", "'; DROP TABLE audit; --", "\\u0000"])
def test_odd_text_survives_in_answers_and_in_words(audit: PostgresAudit, owner_url: str, odd: str) -> None:
    audit.append(opened("r1"), None)
    audit.append(decided("r1", 2, answer=odd, text=f"said {odd}"), None)
    assert audit.entry("r1", 2).event == decided("r1", 2, answer=odd, text=f"said {odd}").event
    assert audit.entries("r1")[1].event.decision.text == f"said {odd}"  # type: ignore[union-attr]
    assert verify(reader_url(owner_url)).ok


def test_a_number_that_json_has_no_word_for_is_an_unwritable_row(audit: PostgresAudit) -> None:
    from dataclasses import replace

    row = decided("r1", 2)
    event = replace(row.event, observed=replace(row.event.observed, exposure=float("inf")))  # type: ignore[union-attr, type-var]
    audit.append(opened("r1"), None)
    with pytest.raises(AuditUnavailable, match="r1/2: the row cannot be stored as JSON"):
        audit.append(replace(row, event=event), None)
    assert len(audit.entries("r1")) == 1


# --- who may do what ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["audit", "audit_evidence", "flag_history"])
@pytest.mark.parametrize("change", ["UPDATE penstock.{0} SET {1}", "DELETE FROM penstock.{0}", "TRUNCATE penstock.{0}"])
def test_the_controller_cannot_change_the_log(audit: PostgresAudit, owner_url: str, table: str, change: str) -> None:
    fill(audit)
    column = {"audit": "actor = 'nobody'", "audit_evidence": "answer = ''", "flag_history": "actor = 'nobody'"}[table]
    with (
        connect(app_url(owner_url)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"),
    ):
        connection.execute(change.format(table, column).encode())
    assert verify(reader_url(owner_url)).rows == 4


@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.parametrize(
    "change", ["UPDATE penstock.audit SET actor = 'x'", "DELETE FROM penstock.audit", "TRUNCATE penstock.audit"]
)
def test_the_owner_cannot_change_the_log_by_accident(audit: PostgresAudit, owner_url: str, change: str, replica: bool) -> None:
    fill(audit)
    with connect(owner_url) as connection:
        if replica:
            connection.execute("SET session_replication_role = replica")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            connection.execute(change.encode())


def test_the_reader_can_only_read(audit: PostgresAudit, owner_url: str) -> None:
    fill(audit)
    with connect(reader_url(owner_url)) as connection:
        assert connection.execute("SELECT count(*) FROM penstock.audit").fetchone() == (4,)
        for change in ("INSERT INTO penstock.flag_holds VALUES ('e', 'f', 'r', 1)", "DELETE FROM penstock.outbox"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(change.encode())


# --- the chain ------------------------------------------------------------------------------------------------------------------


def test_an_untouched_log_verifies_with_its_head(audit: PostgresAudit, owner_url: str) -> None:
    assert verify(owner_url).head is None
    fill(audit)
    fill(audit, "r2", "other-flag")
    report = verify(reader_url(owner_url))
    assert (report.ok, report.rows, report.rollouts, report.answers) == (True, 8, 2, 2)
    assert report.head == head(reader_url(owner_url))


def test_the_hash_can_be_computed_by_hand(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), None)
    with connect(reader_url(owner_url)) as connection:
        row = connection.execute("SELECT event::text, at, plan_digest, prev_hash, hash FROM penstock.audit").fetchone()
    assert row is not None
    event, at, plan_digest, prev_hash, stored = row
    empty = [
        *("action", "decision_id", "flag_version_after", "flag_version_before", "reason", "reasons", "shadow_weight_after"),
        *("shadow_weight_before", "source", "verdicts", "weight_after", "weight_before", "why"),
    ]
    document = dict.fromkeys(empty) | {
        "id": 1, "rollout_id": "r1", "seq": 1, "at": at.strftime("%Y-%m-%dT%H:%M:%S.%f+00:00"),
        "kind": "opened", "actor": "erin", "plan_digest": plan_digest, "event": event,
    }  # fmt: skip
    written = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert prev_hash == "0" * 64
    assert sha256((prev_hash + written).encode()).hexdigest() == stored


@pytest.mark.parametrize(
    ("tampering", "kinds"),
    [
        ("UPDATE penstock.audit SET actor = 'nobody' WHERE id = 3", {"hash"}),
        ("UPDATE penstock.audit SET weight_after = 5 WHERE id = 2", {"hash"}),
        ("UPDATE penstock.audit SET at = at + interval '1 microsecond' WHERE id = 4", {"hash"}),
        ("UPDATE penstock.audit SET verdicts = '{}' WHERE id = 2", {"hash"}),
        ("UPDATE penstock.audit SET event = (event::text || ' ')::json WHERE id = 1", {"hash"}),
        ("UPDATE penstock.audit SET hash = repeat('a', 64) WHERE id = 2", {"hash", "fork"}),
        ("DELETE FROM penstock.audit WHERE id = 2", {"gap", "sequence", "orphan"}),
        ("DELETE FROM penstock.audit WHERE id = 1", {"gap", "sequence", "orphan"}),
        (
            "DELETE FROM penstock.audit WHERE id = 2; UPDATE penstock.audit SET id = id - 1, seq = seq - 1 WHERE id > 2",
            {"fork", "hash", "orphan"},
        ),
        ("UPDATE penstock.audit_evidence SET answer = answer || ' '", {"evidence"}),
        ("UPDATE penstock.audit_evidence SET encoding = 'base64'", {"evidence"}),
        ("DELETE FROM penstock.audit_evidence", {"evidence"}),
    ],
)
def test_an_owner_who_disables_the_triggers_is_found_out(
    audit: PostgresAudit, owner_url: str, tampering: str, kinds: set[str]
) -> None:
    fill(audit)
    with disarmed(owner_url) as connection:
        connection.execute(tampering.encode())
    report = verify(reader_url(owner_url))
    assert not report.ok
    assert {p.kind for p in report.problems} == kinds


def test_a_cut_off_end_is_found_with_a_head_published_before(audit: PostgresAudit, owner_url: str) -> None:
    fill(audit)
    published = head(reader_url(owner_url))
    assert published is not None
    with disarmed(owner_url) as connection:
        connection.execute("DELETE FROM penstock.audit WHERE id = 4")
        connection.execute("DELETE FROM penstock.outbox WHERE seq = 4")
    assert verify(reader_url(owner_url)).ok
    report = verify(reader_url(owner_url), [published])
    assert [(p.audit_id, p.kind) for p in report.problems] == [(4, "head")]
    other = Head(id=2, hash="f" * 64)
    assert [(p.audit_id, p.kind) for p in verify(reader_url(owner_url), [other]).problems] == [(2, "head")]


# --- many writers ---------------------------------------------------------------------------------------------------------------


def test_writers_at_the_same_time_make_one_chain(more_engines: Callable[[], Engine], owner_url: str) -> None:
    logs = [PostgresAudit(more_engines()) for _ in range(4)]

    def write(number: int) -> None:
        log, rollout_id = logs[number % 4], f"r{number}"
        log.append(opened(rollout_id, f"flag-{number}"), notice(rollout_id, 1))
        for seq in range(2, 12):
            log.append(decided(rollout_id, seq, answer=f"answer {seq % 3}"), notice(rollout_id, seq))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    report = verify(reader_url(owner_url))
    assert (report.ok, report.rows, report.rollouts) == (True, 88, 8)


def test_of_many_writers_of_one_row_one_succeeds(more_engines: Callable[[], Engine], owner_url: str) -> None:
    logs = [PostgresAudit(more_engines()) for _ in range(4)]
    logs[0].append(opened("r1"), None)

    def write(log: PostgresAudit) -> int:
        won = 0
        for seq in range(2, 12):
            try:
                log.append(hold("r1", seq), notice("r1", seq))
                won += 1
            except SeqTaken:
                pass
        return won

    with ThreadPoolExecutor(4) as pool:
        won = sum(pool.map(write, logs))
    rows = logs[0].entries("r1")
    assert won == len(rows) - 1
    assert verify(reader_url(owner_url)).ok


def test_of_many_rollouts_on_one_flag_one_is_opened(more_engines: Callable[[], Engine]) -> None:
    logs = [PostgresAudit(more_engines()) for _ in range(4)]

    def start(number: int) -> str | None:
        try:
            logs[number % 4].append(opened(f"r{number}"), None)
        except FlagHeld as exc:
            return str(exc).rpartition(" ")[2]
        return None

    with ThreadPoolExecutor(8) as pool:
        holders = list(pool.map(start, range(8)))
    (holder,) = logs[0].active()
    assert holders.count(None) == 1
    assert set(holders) - {None} == {holder}


def test_a_reader_notices_rows_of_other_writers(more_engines: Callable[[], Engine]) -> None:
    mine, other = PostgresAudit(more_engines()), PostgresAudit(more_engines())
    mine.append(opened("r1"), None)
    assert len(mine.entries("r1")) == 1
    other.append(hold("r1", 2), None)
    assert [e.seq for e in mine.entries("r1")] == [1, 2]


def test_a_reader_notices_that_the_database_went_back_in_time(audit: PostgresAudit, owner_url: str) -> None:
    fill(audit)
    assert len(audit.entries("r1")) == 4
    with connect(owner_url) as connection:
        connection.execute("ALTER TABLE penstock.audit DISABLE TRIGGER ALL")
        connection.execute("DELETE FROM penstock.audit WHERE id > 2")
    assert [e.seq for e in audit.entries("r1")] == [1, 2]


# --- the outbox -----------------------------------------------------------------------------------------------------------------


def test_a_letter_is_handed_to_one_deliverer_at_a_time(more_engines: Callable[[], Engine]) -> None:
    writer = PostgresAudit(more_engines())
    for number in range(20):
        writer.append(opened(f"r{number}", f"flag-{number}"), notice(f"r{number}", 1))
    boxes = [PostgresOutbox(more_engines()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda box: [x.id for _ in range(4) for x in box.due(3)], boxes))
    handed_out = [i for batch in batches for i in batch]
    assert sorted(handed_out) == list(range(1, 21))


def test_a_later_letter_waits_for_the_one_that_is_being_delivered(audit: PostgresAudit) -> None:
    audit.append(opened("r1"), notice("r1", 1))
    audit.append(hold("r1", 2), notice("r1", 2))
    (first,) = audit.due(10)
    assert audit.due(10) == []
    audit.done(first)
    assert [x.notice.seq for x in audit.due(10)] == [2]


def test_a_refresh_that_is_being_delivered_is_not_taken_away(audit: PostgresAudit) -> None:
    audit.append(opened("r1"), replace(notice("r1", 1), level=Level.INFO))
    (first,) = audit.due(10)
    audit.append(hold("r1", 2), notice("r1", 2))
    assert audit.due(10) == [] and audit.waiting() == 2
    audit.done(first)
    assert [x.notice.seq for x in audit.due(10)] == [2]


def test_a_letter_whose_deliverer_died_is_handed_out_again(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), notice("r1", 1))
    (first,) = audit.due(10)
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.outbox SET due_at = clock_timestamp()")  # its lease has ended
    assert audit.due(10) == [first]


def test_a_failed_letter_is_put_off_longer_each_time_or_as_told(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), notice("r1", 1))

    def pause_after(retry_after_s: float | None) -> float:
        with connect(owner_url) as connection:
            connection.execute("UPDATE penstock.outbox SET due_at = clock_timestamp()")
            (letter,) = audit.due(1)
            connection.execute("BEGIN")
            before = connection.execute("SELECT clock_timestamp()").fetchone()
            connection.execute("COMMIT")
            audit.failed(letter, "HTTP 503", retry_after_s, final=False)
            due = connection.execute("SELECT due_at FROM penstock.outbox").fetchone()
        assert before is not None
        assert due is not None
        return float((due[0] - before[0]).total_seconds())

    pauses = [pause_after(None) for _ in range(4)]
    assert [round(p) for p in pauses] == [2, 4, 8, 16]
    assert round(pause_after(77.0)) == 77
    assert audit.due(10) == []


def test_a_letter_that_failed_for_long_is_still_tried_every_five_minutes(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), notice("r1", 1))
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.outbox SET attempts = 100000")
        (letter,) = audit.due(1)
        audit.failed(letter, "HTTP 503", None, final=False)
        row = connection.execute(
            "SELECT due_at - clock_timestamp() <= interval '300 s', last_error FROM penstock.outbox"
        ).fetchone()
    assert row == (True, "HTTP 503")


def test_a_letter_delivered_twice_stays_delivered(audit: PostgresAudit) -> None:
    audit.append(opened("r1"), notice("r1", 1))
    (letter,) = audit.due(1)
    audit.done(letter)
    audit.failed(letter, "late", None, final=False)
    assert audit.waiting() == 0


def test_measurements_keep_their_numbers_to_the_last_digit(audit: PostgresAudit) -> None:
    audit.append(opened("r1"), None)
    audit.append(decided("r1", 2), None)
    assert audit.entry("r1", 2).event.observed.measurements == measurements()  # type: ignore[union-attr]


# --- what a stranger did to the tables ------------------------------------------------------------------------------------------


def test_a_text_that_was_deleted_or_changed_is_lost_and_not_only_unavailable(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), None)
    gathered = Gathered(before="", traffic="what happened", after="the case")
    row = audit.append(decided("r1", 2, gathered=gathered), None)
    assert isinstance(row.event, Decided)
    reference = "sha256:" + sha256(b"the case").hexdigest()
    assert audit.text(reference) == "the case"
    with connect(owner_url) as connection:
        connection.execute("ALTER TABLE penstock.audit_evidence DISABLE TRIGGER USER")
        connection.execute("UPDATE penstock.audit_evidence SET answer = 'another case' WHERE answer = 'the case'")
        with pytest.raises(TextLost, match="it was changed"):
            audit.text(reference)
        connection.execute("UPDATE penstock.audit_evidence SET encoding = 'base64', answer = '?' WHERE answer = 'another case'")
        with pytest.raises(TextLost, match="it was changed"):
            audit.text(reference)
        connection.execute("DELETE FROM penstock.audit_evidence")
        with pytest.raises(TextLost, match="not there"):
            audit.text(reference)


def test_a_foreign_letter_in_the_way_is_no_lost_race(audit: PostgresAudit, owner_url: str) -> None:
    audit.append(opened("r1"), None)
    with connect(owner_url) as connection:
        connection.execute(
            "INSERT INTO penstock.outbox (id, rollout_id, seq, notice, created_at, due_at) VALUES (99, 'r1', 2, '{}', now(), now())"
        )
    with pytest.raises(AuditUnavailable, match="outbox_rollout_seq"):
        audit.append(roll_back("r1", 2), notice("r1", 2))


@pytest.mark.parametrize("written", ["[]", "{}", "5", "null", '"text"'])
def test_a_letter_that_no_release_wrote_is_set_aside_and_the_next_one_goes_out(
    audit: PostgresAudit, owner_url: str, written: str
) -> None:
    audit.append(opened("r1"), notice("r1", 1))
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.outbox SET notice = %s::json", (written,))
    audit.append(opened("r2", "other"), notice("r2", 1))
    assert [letter.notice.rollout_id for letter in audit.due(10)] == ["r2"]
    assert audit.waiting() == 1


@pytest.mark.parametrize("written", ["[]", "{}", "5", "null", '{"v": 1, "kind": "decided", "observed": 5}'])
def test_a_row_that_no_release_wrote_is_an_error_of_the_port(audit: PostgresAudit, owner_url: str, written: str) -> None:
    audit.append(opened("r1"), None)
    with connect(owner_url) as connection:
        connection.execute("ALTER TABLE penstock.audit DISABLE TRIGGER USER")
        connection.execute("UPDATE penstock.audit SET event = %s::json", (written,))
        connection.execute("ALTER TABLE penstock.audit ENABLE ALWAYS TRIGGER audit_append_only")
    with pytest.raises(AuditUnavailable, match="cannot be read by this release"):
        audit.entries("r1")
    with pytest.raises(AuditUnavailable, match="cannot be read by this release"):
        audit.entry("r1", 1)


def test_a_rollout_that_lost_its_rows_keeps_nobody_from_starting_or_being_checked(engine: Engine, owner_url: str) -> None:
    audit = PostgresAudit(engine)
    audit.append(opened("gone"), None)
    audit.append(opened("due", "other"), None)
    with connect(owner_url) as connection:
        connection.execute("ALTER TABLE penstock.audit DISABLE TRIGGER USER")
        connection.execute("DELETE FROM penstock.audit WHERE rollout_id = 'gone'")
        connection.execute("ALTER TABLE penstock.audit ENABLE ALWAYS TRIGGER audit_append_only")
    ports = Ports(audit=audit, index=audit, flags=PostgresFlags(engine), metrics=NoMetrics())
    assert anybody_due(ports)
    wanted = plan("third")
    assert start(wanted, plan_digest(wanted), ports, actor="erin", key="k").seq == 1


def test_a_rollout_whose_hold_was_taken_away_is_still_looked_at_until_it_ends(engine: Engine, owner_url: str) -> None:
    audit = PostgresAudit(engine)
    for rollout_id, flag in (("kept", "a"), ("robbed", "b"), ("over", "c")):
        audit.append(opened(rollout_id, flag), None)
    with connect(owner_url) as connection:
        connection.execute("DELETE FROM penstock.flag_holds WHERE rollout_id <> 'kept'")
    back = roll_back("over", 2)
    audit.append(back, None)
    audit.append(applied("over", 3, back), None)
    assert audit.active() == ["kept", "robbed"]
    with pytest.raises(FlagHeld, match="held by rollout robbed"):
        check_start(plan("b"), Ports(audit=audit, index=audit, flags=PostgresFlags(engine), metrics=NoMetrics()))


def test_letters_that_did_not_go_out_are_counted_with_the_latest_reason(audit: PostgresAudit) -> None:
    assert audit.stuck() == (0, "")
    for number in range(3):
        audit.append(opened(f"r{number}", f"flag-{number}"), notice(f"r{number}", 1))
    first, second, third = audit.due(3)
    audit.failed(first, "HTTP 503", 5.0, final=False)
    audit.failed(second, "channel_not_found", 60.0, final=False)
    audit.failed(third, "msg_too_long", None, final=True)
    assert audit.stuck() == (2, "channel_not_found")
    audit.done(second)
    assert audit.stuck() == (1, "HTTP 503")


# --- many rollouts --------------------------------------------------------------------------------------------------------------


def statements(engine: Engine, ports: Ports) -> int:
    """Of a guard's pass over all rollouts that finds nothing to write."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        swept = list(sweep(ports, may_raise=False))
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert swept and all(s.tick is not None for s in swept), [s.error for s in swept]
    return len(asked)


def test_the_number_of_statements_of_a_guards_pass_does_not_grow_with_the_number_of_rollouts(engine: Engine) -> None:
    audit = PostgresAudit(engine)
    ports = Ports(audit=audit, index=audit, flags=PostgresFlags(engine), metrics=NoMetrics())

    def opened_up_to(count: int, since: int = 0) -> int:
        for index in range(since, count):
            audit.append(opened(f"r{index}", f"flag-{index}"), None)
        statements(engine, ports)  # the first pass learns what the log holds
        return statements(engine, ports)

    assert opened_up_to(3) == opened_up_to(12, since=3) <= 6
