"""What proves the log to somebody who trusts neither us nor the database: published heads, exports, and rows that come out of themselves again."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from controller import codec, commands
from controller.adapters.archive import Archive, BadArchive, archive, cell, value_of, verify_export
from controller.adapters.heads import HeadFile, HeadSigner, check_signatures, keygen, public_key, public_path, read_heads
from controller.adapters.memory import Behaviour, MemoryMetrics
from controller.adapters.postgres import PostgresAudit, PostgresFlags, app_url, chain, reader_url
from controller.adapters.postgres.chain import verify
from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.export import Wanted, export
from controller.core.chain import HASHED, Head
from controller.core.decision import Why
from controller.core.digests import Digests
from controller.core.measurement import Counts, Sampled
from controller.core.plan import Mode, Phase, Plan, Policy, RateLimit, Silence
from controller.core.rollout import Decided
from controller.ports import AuditUnavailable, BadHeads, FlagChange, Ports
from controller.publish import publish
from controller.recheck import COMPUTED, recheck, recheck_all
from controller.tick import tick
from flagspec import Variant
from tests.ports.databases import disarmed
from tests.ports.events import applied, decided, hold, notice, opened
from tests.recheck import assert_replays

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
SCRIPT = re.search(
    r"```python\n(# verify\.py.*?)```", (ROOT / "docs" / "how-to" / "prove-it-afterwards.md").read_text("utf-8"), re.DOTALL
)


@pytest.fixture
def audit(engine: Engine) -> PostgresAudit:
    return PostgresAudit(engine)


@pytest.fixture
def url(owner_url: str) -> str:
    return reader_url(owner_url)


def fill(audit: PostgresAudit, rollout_id: str = "r1", flag: str = "chat-model", rows: int = 6) -> None:
    advance = decided(rollout_id, 2, text='=HYPERLINK("http://x")\n"quoted", grüße ☃ \\ \u2028')
    for row in (opened(rollout_id, flag), advance, applied(rollout_id, 3, advance)):
        audit.append(row, notice(rollout_id, row.seq))
    for seq in range(4, rows + 1):
        audit.append(hold(rollout_id, seq), None)


def as_owner(owner_url: str, *statements: str) -> None:
    """What an owner does who knows of the triggers and of the notices that would tell."""
    with disarmed(owner_url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rewrite(owner_url: str) -> None:
    """Hash every row anew, so that the chain is right again whatever was edited."""
    from controller.adapters.postgres.rows import row_hash

    with disarmed(owner_url) as connection:
        names = ", ".join(f"{n}::text" if n in ("verdicts", "reasons", "event") else n for n in HASHED)
        last = "0" * 64
        for number, row in enumerate(
            connection.execute(f"SELECT {names} FROM penstock.audit ORDER BY id".encode()).fetchall(), 1
        ):
            values = dict(zip(HASHED, row, strict=True)) | {"id": number}
            stored = row_hash(last, values)
            connection.execute(
                b"UPDATE penstock.audit SET id = %s, prev_hash = %s, hash = %s WHERE id = %s", (number, last, stored, row[0])
            )
            last = stored


# --- tampering by the owner -----------------------------------------------------------------------------------------------------

SILENCED = "DELETE FROM penstock.outbox"


@pytest.mark.parametrize(
    ("statements", "kinds"),
    [
        (["UPDATE penstock.audit SET reason = 'all was well' WHERE id = 2"], {"hash"}),
        (
            [
                """UPDATE penstock.audit SET event = replace(event::text, '"exposure":1000.25', '"exposure":9999.0')::json WHERE id = 2"""
            ],
            {"hash"},
        ),
        (["UPDATE penstock.audit SET at = 'infinity' WHERE id = 2"], {"hash"}),
        (["UPDATE penstock.audit SET event = '[]' WHERE id = 2"], {"hash"}),
        (["DELETE FROM penstock.audit WHERE id = 5"], {"gap", "sequence"}),
        (
            [
                "UPDATE penstock.audit SET id = 100, seq = 100 WHERE id = 4",
                "UPDATE penstock.audit SET id = 4, seq = 4 WHERE id = 5",
                "UPDATE penstock.audit SET id = 5, seq = 5 WHERE id = 100",
            ],
            {"hash", "fork"},
        ),
        (
            [
                "INSERT INTO penstock.audit SELECT 7, rollout_id, 7, at, kind, actor, plan_digest, decision_id, action, source, why, reason, "
                "verdicts, reasons, weight_before, weight_after, shadow_weight_before, shadow_weight_after, flag_version_before, "
                "flag_version_after, event, prev_hash, hash FROM penstock.audit WHERE id = 6"
            ],
            {"hash", "fork"},
        ),
        (["UPDATE penstock.audit_evidence SET answer = replace(answer, 'success', 'succes5')"], {"evidence"}),
        (
            [
                "UPDATE penstock.audit_evidence SET digest = repeat('z', 64) WHERE digest = (SELECT min(digest) FROM penstock.audit_evidence)"
            ],
            {"evidence"},
        ),
        (["DELETE FROM penstock.audit_evidence WHERE digest = (SELECT max(digest) FROM penstock.audit_evidence)"], {"evidence"}),
    ],
)
def test_what_the_owner_edits_is_found_without_any_head(
    audit: PostgresAudit, owner_url: str, url: str, statements: list[str], kinds: set[str]
) -> None:
    fill(audit)
    as_owner(owner_url, SILENCED, *statements)
    report = verify(url)
    assert {p.kind for p in report.problems} == kinds


def test_an_end_that_was_cut_off_or_a_chain_that_was_written_anew_is_found_with_the_published_heads(
    audit: PostgresAudit, owner_url: str, url: str, tmp_path: Path
) -> None:
    fill(audit)
    book, signer = HeadFile(tmp_path / "heads.jsonl"), HeadSigner(None)
    assert publish(audit, audit.now(), book, signer, audit).fresh
    fill(audit, "r2", "other")
    assert publish(audit, audit.now(), book, signer, audit).fresh
    heads = [Head(id=h.id, hash=h.hash) for h in read_heads(tmp_path / "heads.jsonl")[0]]
    assert [h.id for h in heads] == [6, 12]
    assert verify(url, heads).ok

    as_owner(owner_url, "DELETE FROM penstock.audit WHERE id > 10", SILENCED)
    assert verify(url).ok, "a chain cannot show by itself that its end is gone"
    assert [(p.audit_id, p.kind) for p in verify(url, heads).problems] == [(12, "head")]
    as_owner(owner_url, "UPDATE penstock.audit SET actor = 'nobody' WHERE id = 2")
    rewrite(owner_url)
    assert verify(url).ok, "nor that all of it was written anew"
    assert [(p.audit_id, p.kind) for p in verify(url, heads).problems] == [(6, "head"), (12, "head")]


def test_a_cut_off_end_also_shows_in_notices_holds_and_the_history_of_flags(
    audit: PostgresAudit, owner_url: str, engine: Engine, url: str
) -> None:
    fill(audit, rows=3)
    PostgresFlags(engine).write(
        FlagChange(
            environment="production", key="chat-model", control=Variant(model="a"), candidate=Variant(model="b"), salt="s", unit="user",
            weight=1000, shadow_weight=0, decision_id="r1.2.advance",
        ),
        0,
    )  # fmt: skip
    assert verify(url).ok
    as_owner(owner_url, "DELETE FROM penstock.audit")
    texts = [p.text for p in verify(url).problems]
    assert any("is held by r1 since row 1" in t for t in texts)
    assert any("a notice tells of row r1/3" in t for t in texts)
    assert any("was written by r1.2.advance, which no row decided" in t for t in texts)


def test_a_flag_that_is_not_as_its_history_tells_is_found(audit: PostgresAudit, owner_url: str, engine: Engine, url: str) -> None:
    change = FlagChange(
        environment="production", key="chat-model", control=Variant(model="a"), candidate=Variant(model="b"), salt="s", unit="user",
        weight=1000, shadow_weight=0, decision_id="person:x",
    )  # fmt: skip
    PostgresFlags(engine).write(change, 0)
    with connect(owner_url) as connection:
        connection.execute("UPDATE penstock.flags SET weight = 2000")
    assert verify(url).ok, "an edit with psql stands in the history"
    as_owner(owner_url, "DELETE FROM penstock.flag_history WHERE version = 2")
    assert [p.kind for p in verify(url).problems] == ["history"]


@pytest.mark.parametrize("table", ["audit", "audit_evidence", "flag_history", "flag_revisions"])
@pytest.mark.parametrize("change", ["UPDATE penstock.{} SET {}", "DELETE FROM penstock.{}", "TRUNCATE penstock.{}"])
def test_the_controllers_role_can_take_nothing_back(audit: PostgresAudit, owner_url: str, table: str, change: str) -> None:
    fill(audit)
    column = {
        "audit": "actor = ''",
        "audit_evidence": "answer = ''",
        "flag_history": "actor = ''",
        "flag_revisions": "revision = 0",
    }[table]
    with connect(app_url(owner_url)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(change.format(table, column).encode())


# --- from a known head on -------------------------------------------------------------------------------------------------------


def test_verifying_goes_on_from_a_known_head(audit: PostgresAudit, owner_url: str, url: str) -> None:
    fill(audit)
    known = audit.head()
    assert known is not None
    for seq in range(7, 11):
        audit.append(decided("r1", seq, answer=f"answer {seq}"), None)
    report = verify(url, since=known)
    # Row 6, which the head is of, and the four after it, with the answers that they rest on.
    assert (report.ok, report.rows, report.answers) == (True, 5, 6)
    as_owner(
        owner_url,
        "UPDATE penstock.audit SET actor = 'x' WHERE id = 2",
        "UPDATE penstock.audit_evidence SET answer = 'x' WHERE answer = 'answer 8'",
    )
    found = verify(url, since=known).problems
    assert {p.kind for p in found} == {"evidence"}
    other = verify(url, since=Head(id=6, hash="e" * 64)).problems
    assert (6, "head") in [(p.audit_id, p.kind) for p in other]
    assert [p.kind for p in verify(url, since=Head(id=99, hash="e" * 64)).problems if p.audit_id] == ["head"]


def test_a_missing_row_after_a_known_head_is_found(audit: PostgresAudit, owner_url: str, url: str) -> None:
    fill(audit)
    known = chain.head(url)
    assert known is not None
    audit.append(hold("r1", 7), None)
    audit.append(hold("r1", 8), None)
    as_owner(owner_url, "DELETE FROM penstock.audit WHERE id = 7")
    assert {p.kind for p in verify(url, since=known).problems} == {"gap", "sequence"}


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_a_log_that_is_read_in_pieces_is_one_chain_and_its_problems_are_told_in_order(
    audit: PostgresAudit, owner_url: str, url: str, monkeypatch: pytest.MonkeyPatch, processes: int | None
) -> None:
    monkeypatch.setattr(chain, "PIECE", 2)
    monkeypatch.setattr(chain, "BATCH", 1)
    for number in range(3):
        fill(audit, f"r{number}", f"flag-{number}", rows=5)
    told: list[tuple[str, int]] = []
    report = chain.verify(url, processes=processes, progress=lambda what, more: told.append((what, more)))
    assert (report.ok, report.rows, report.rollouts, report.answers) == (True, 15, 3, 2)
    assert sum(n for what, n in told if what == "rows") == 15 and sum(n for what, n in told if what == "answers") == 2
    as_owner(owner_url, SILENCED, "DELETE FROM penstock.audit WHERE id = 8")
    as_owner(owner_url, SILENCED, "UPDATE penstock.audit SET actor = 'mallory' WHERE id IN (3, 12)")
    found = [(p.audit_id, p.kind) for p in chain.verify(url, processes=processes).problems]
    assert found == [(3, "hash"), (9, "gap"), (12, "hash"), (None, "sequence")]


def test_a_process_that_dies_is_said_and_nothing_is_said_about_the_log(
    audit: PostgresAudit, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(audit)
    monkeypatch.setattr(chain, "_take", os.abort)  # what every process of the pool begins with
    with pytest.raises(AuditUnavailable, match="a process that read it died"):
        chain.verify(url, processes=2)


# --- published heads ------------------------------------------------------------------------------------------------------------


def test_a_signed_head_is_checked_with_the_public_key_and_no_other(audit: PostgresAudit, tmp_path: Path) -> None:
    fill(audit)
    mine, other = tmp_path / "key.pem", tmp_path / "other.pem"
    keygen(mine), keygen(other)
    assert mine.stat().st_mode & 0o777 == 0o600
    path = tmp_path / "sub" / "heads.jsonl"
    done = publish(audit, audit.now(), HeadFile(path), HeadSigner(mine), audit)
    heads, problems = read_heads(path)
    assert done.head is not None and (list(heads), list(problems)) == ([done.head], [])
    assert check_signatures(heads, public_key(public_path(mine))) == []
    assert [p.kind for p in check_signatures(heads, public_key(public_path(other)))] == ["signature"]
    for changed in (
        replace(heads[0], hash="a" * 64), replace(heads[0], id=5), replace(heads[0], release="9"), replace(heads[0], signature=""),
        replace(heads[0], at=heads[0].at + timedelta(days=1)), replace(heads[0], signature="not base64!"),
    ):  # fmt: skip
        assert [p.kind for p in check_signatures([changed], public_key(public_path(mine)))] == ["signature"]


def test_a_head_is_published_once_to_the_file_and_to_people(audit: PostgresAudit, owner_url: str, tmp_path: Path) -> None:
    book = HeadFile(tmp_path / "heads.jsonl")
    assert publish(audit, audit.now(), book, HeadSigner(None), audit).head is None
    fill(audit, rows=3)
    for fresh in (True, False, False):
        assert publish(audit, audit.now(), book, HeadSigner(None), audit).fresh is fresh
    assert len(read_heads(tmp_path / "heads.jsonl")[0]) == 1
    told = [x.notice for _ in range(9) for x in audit.due(9) if not audit.done(x)]
    assert [n.seq for n in told if n.rollout_id == "audit:head"] == [3]


def test_a_log_that_lost_what_was_published_gets_an_alarm_and_no_new_head(
    audit: PostgresAudit, owner_url: str, tmp_path: Path
) -> None:
    fill(audit)
    book = HeadFile(tmp_path / "heads.jsonl")
    publish(audit, audit.now(), book, HeadSigner(None), audit)
    as_owner(owner_url, SILENCED, "DELETE FROM penstock.audit WHERE id = 6")
    done = publish(audit, audit.now(), book, HeadSigner(None), audit)
    assert "row 6 was published and is not in the log any more, which ends at 5" in done.broken
    assert [(x.notice.level.value, x.notice.seq) for x in audit.due(9)] == [("alarm", -6)]
    as_owner(owner_url, "UPDATE penstock.audit SET id = 6, seq = 6 WHERE id = 5")
    assert "row 6 has hash" in publish(audit, audit.now(), book, HeadSigner(None), audit).broken
    assert len(read_heads(tmp_path / "heads.jsonl")[0]) == 1


def test_a_line_that_was_cut_off_is_told_of_and_does_not_swallow_the_next(audit: PostgresAudit, tmp_path: Path) -> None:
    fill(audit)
    path = tmp_path / "heads.jsonl"
    path.write_text('{"v":1,"id":3,"ha')
    publish(audit, audit.now(), HeadFile(path), HeadSigner(None), audit)
    heads, problems = read_heads(path)
    assert [h.id for h in heads] == [6]
    assert len(problems) == 1 and "line 1 is no head" in problems[0].text


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff\xfe"])
def test_what_is_no_key_is_refused_by_the_name_of_its_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    for load in (HeadSigner, public_key):
        with pytest.raises(BadHeads, match=r"key\.pem"):
            load(path)
    with pytest.raises(BadHeads, match="cannot be written"):
        keygen(path)


# --- exports --------------------------------------------------------------------------------------------------------------------


def exported(url: str, folder: Path, format: Any = "jsonl", **wanted: Any) -> dict[str, Any]:
    with archive(folder, format) as to:
        return export(url, to, Wanted(**wanted), sign=HeadSigner(None).sign)


@pytest.fixture
def filled(audit: PostgresAudit) -> PostgresAudit:
    fill(audit)
    fill(audit, "r2", "other-flag")
    audit.append(decided("r2", 7, answer="\0 odd", text="-1+cmd|'/c calc'!A0"), None)
    return audit


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_an_export_verifies_without_a_database(filled: PostgresAudit, url: str, tmp_path: Path, format: Any) -> None:
    manifest = exported(url, tmp_path / "out", format, answers=True)
    assert (manifest["count"], manifest["first"]["id"], manifest["last"]["id"]) == (13, 1, 13)
    report = verify_export(tmp_path / "out", [Head(id=6, hash=filled.head(6).hash)])  # type: ignore[union-attr]
    assert (report.ok, report.rows, report.rollouts, report.answers) == (True, 13, 2, 3), report.problems
    assert report.head == filled.head()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_rows_leave_just_as_they_were_hashed(filled: PostgresAudit, url: str, tmp_path: Path, format: Any) -> None:
    exported(url, tmp_path / "out", format)
    names = (*HASHED, "prev_hash", "hash")
    with connect(url) as connection:
        columns = ", ".join(f"{n}::text" if n in ("verdicts", "reasons", "event") else n for n in names)
        stored = connection.execute(f"SELECT {columns} FROM penstock.audit ORDER BY id".encode()).fetchall()
    expected = [dict(zip(names, row, strict=True)) for row in stored]
    for row in expected:
        row["at"] = row["at"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+00:00")
    if format == "jsonl":
        found = [json.loads(x) for x in (tmp_path / "out" / "rows.jsonl").read_text("utf-8").split("\n")[:-1]]
    else:
        with (tmp_path / "out" / "rows.csv").open(encoding="utf-8", newline="") as file:
            raw = list(csv.DictReader(file))
        dangerous = [c for row in raw for c in row.values() if c.lstrip()[:1] in tuple("=+-@") and not re.fullmatch(r"-?\d+", c)]
        assert [c for c in dangerous if c] == []
        found = [{n: value_of(n, c) for n, c in row.items()} for row in raw]
    assert found == expected


def test_the_auditors_own_script_verifies_an_export_and_finds_what_was_changed(
    filled: PostgresAudit, url: str, tmp_path: Path
) -> None:
    assert SCRIPT is not None and len(SCRIPT[1].splitlines()) <= 32
    script = tmp_path / "verify.py"
    script.write_text(SCRIPT[1], "utf-8")
    exported(url, tmp_path / "out", answers=True)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(script), str(tmp_path / "out")], capture_output=True, text=True)

    good = run()
    assert (good.returncode, good.stdout) == (0, f"13 rows, the last is 13:{filled.head().hash}\n"), good.stderr  # type: ignore[union-attr]
    rows = tmp_path / "out" / "rows.jsonl"
    whole = rows.read_text("utf-8")
    for bad in (whole.replace('"erin"', '"fred"', 1), "".join(whole.splitlines(keepends=True)[:-1])):
        rows.write_text(bad, "utf-8")
        assert "rows.jsonl was changed" in run().stderr
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        for file in manifest["files"]:
            file["sha256"] = sha256((tmp_path / "out" / file["name"]).read_bytes()).hexdigest()
        original = (tmp_path / "out" / "manifest.json").read_text()
        (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
        assert run().returncode == 1
        assert not verify_export(tmp_path / "out").ok
        (tmp_path / "out" / "manifest.json").write_text(original)


@pytest.mark.parametrize(
    ("file", "old", "new", "kinds"),
    [
        ("rows.jsonl", '"actor":"erin"', '"actor":"fred"', {"file", "hash"}),
        ("answers.jsonl", "success", "succes5", {"file", "evidence"}),
        ("manifest.json", '"count": 13,\n  "first"', '"count": 12,\n  "first"', {"file"}),
    ],
)
def test_a_changed_export_is_found(
    filled: PostgresAudit, url: str, tmp_path: Path, file: str, old: str, new: str, kinds: set[str]
) -> None:
    exported(url, tmp_path / "out", answers=True)
    path = tmp_path / "out" / file
    assert old in path.read_text("utf-8")
    path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
    assert {p.kind for p in verify_export(tmp_path / "out").problems} == kinds


def test_an_export_of_one_rollout_or_a_span_of_time_holds_just_that(filled: PostgresAudit, url: str, tmp_path: Path) -> None:
    one = exported(url, tmp_path / "one", rollout_id="r2", answers=True)
    assert (one["count"], one["first"]["id"]) == (7, 7)
    assert (verify_export(tmp_path / "one").ok, verify_export(tmp_path / "one").rollouts) == (True, 1)
    since = filled.entries("r1")[2].at
    span = exported(url, tmp_path / "span", since=since, until=filled.entries("r1")[4].at)
    assert (span["count"], span["first"]["id"], span["last"]["id"]) == (2, 3, 4)
    assert verify_export(tmp_path / "span").ok
    none = exported(url, tmp_path / "none", rollout_id="r9'; DROP TABLE penstock.audit --", answers=True)
    assert (none["count"], none["last"]) == (0, None)
    assert verify_export(tmp_path / "none").ok


def test_an_export_is_whole_or_not_there(filled: PostgresAudit, url: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), archive(tmp_path / "out", "jsonl") as to:
        to.rows([])
        raise RuntimeError("the power went")
    assert list(tmp_path.iterdir()) == []
    exported(url, tmp_path / "out")
    with pytest.raises(BadArchive, match="is there already"):
        exported(url, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(BadArchive, match="cannot be read as an export"):
        verify_export(tmp_path / "out")


def test_rows_alone_go_to_a_stream(filled: PostgresAudit, url: str) -> None:
    out = BytesIO()
    export(url, Archive(None, "jsonl", out), Wanted(), sign=HeadSigner(None).sign, alone=True)
    assert [json.loads(x)["id"] for x in out.getvalue().splitlines()] == list(range(1, 14))


@given(st.one_of(st.none(), st.text()))
def test_a_cell_begins_no_formula_and_gives_its_text_back(text: str | None) -> None:
    written = cell(text)
    assert written.lstrip()[:1] not in tuple("=+-@＝＋－＠")
    assert value_of("reason", written) == text


@given(st.sets(st.binary(min_size=32, max_size=32), max_size=30), st.sets(st.binary(min_size=32, max_size=32), max_size=10))
def test_digests_are_there_or_missing(present: set[bytes], others: set[bytes]) -> None:
    digests = Digests(b"".join(present))
    twin = {next(iter(present))[:8] + bytes(24)} if present else set()
    asked = [d.hex().encode() for d in {*present, *others, *twin}]
    assert set(digests.missing(asked)) == {d for d in asked if bytes.fromhex(d.decode()) not in present}
    assert list(Digests(b"").missing([b"zz", b"\xff"])) == [b"zz", b"\xff"]


# --- rows that come out of themselves again -------------------------------------------------------------------------------------

EVERY = timedelta(minutes=15)


class Moved:
    """A log whose clock is moved by hand: real rows, at times that a test chooses."""

    def __init__(self, audit: PostgresAudit) -> None:
        self.audit, self.at = audit, datetime.now(UTC)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.audit, name)

    def now(self) -> datetime:
        return self.at


def real_plan() -> Plan:
    return Plan(
        name="real", environment="production", flag="chat", baseline=Variant(model="old"), candidate=Variant(model="new", params={"t": 0.1}),
        phases=(
            Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta(0)),
            Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(hours=9)),
        ),
        gates=(RateLimit(name="errors", indicator="error_ratio", limit=0.01), Silence()),
        policy=Policy(every=EVERY, guard_every=timedelta(minutes=5), block=timedelta(minutes=5)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A rollout of real looks at a real database; `look` makes one more, and changes what the candidate is like."""

    audit: PostgresAudit
    look: Callable[..., Any]
    ports: Ports
    rollout_id: str

    @property
    def engine(self) -> Engine:
        return self.audit._engine


@pytest.fixture
def looked(engine: Engine) -> Looked:
    audit = PostgresAudit(engine)
    moved = Moved(audit)
    seen = Sampled(candidate=Counts(bad=0, total=2000.0), baseline=Counts(bad=0, total=2000.0))
    metrics = MemoryMetrics(says={"candidate-reports": seen}, candidate=Behaviour(), baseline=Behaviour())
    ports = Ports(audit=moved, index=audit, flags=PostgresFlags(engine), metrics=metrics)

    rollout_id = commands.start(real_plan(), codec.plan_digest(real_plan()), ports, actor="rita", key="b").id

    def look(may_raise: bool = True, **truth: Any) -> Any:
        moved.at += EVERY
        for name, value in truth.items():
            setattr(metrics, name, value)
        return tick(rollout_id, ports, moved.at, may_raise=may_raise).decision

    return Looked(audit=audit, look=look, ports=ports, rollout_id=rollout_id)


def whys(looked: Looked) -> list[Why]:
    return [e.event.decision.why for e in looked.audit.entries(looked.rollout_id) if isinstance(e.event, Decided)]


def test_every_decision_comes_out_of_its_row_again_those_that_rest_on_the_flag_as_well(looked: Looked, engine: Engine) -> None:
    store = PostgresFlags(engine)
    looked.look()
    looked.look(failure="connection refused")
    looked.look(failure="")
    flag = store.read("production", "chat")
    assert flag is not None
    stranger = FlagChange(
        environment="production", key="chat", control=flag.control, candidate=flag.candidate, salt=flag.salt, unit=flag.unit,
        weight=90_000, shadow_weight=0, decision_id="stranger",
    )  # fmt: skip
    store.write(stranger, flag.version)
    looked.look()
    looked.look()
    commands.resume(looked.rollout_id, looked.ports, actor="amir", reason="was me")
    looked.look()
    store.set_killed("production", "chat", True, actor="oncall", reason="alarm")
    looked.look(may_raise=False)
    assert {Why.STARTED, Why.METRICS_FAILED, Why.DRIFT, Why.PAUSED, Why.BY_PERSON, Why.KILLED} <= set(whys(looked))
    counts = assert_replays(looked.audit, [looked.rollout_id])
    assert (counts[COMPUTED], counts["by_person"], counts["opened"]) == (len(whys(looked)) - 1, 1, 1)
    assert list(looked.audit.odd_columns(looked.rollout_id)) == []


def test_a_lowering_without_a_row_and_a_flag_that_is_gone_come_out_again(looked: Looked, owner_url: str, engine: Engine) -> None:
    looked.look()
    with connect(owner_url) as connection:
        connection.execute("DELETE FROM penstock.flags")
    looked.look()
    assert whys(looked)[-1] is Why.DRIFT
    assert_replays(looked.audit, [looked.rollout_id])


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"verdict":"pass"', '"verdict":"breach"', "candidate-reports"),
        ('"why":"started"', '"why":"accepted"', "decision"),
        ('"live":5000', '"live":6000', "weights"),
        ('"decision_id":"real', '"decision_id":"unreal', "decision id"),
    ],
)
def test_what_was_edited_in_a_row_does_not_come_out_of_it_again(
    looked: Looked, owner_url: str, old: str, new: str, what: str
) -> None:
    for _ in range(3):
        looked.look()
    (seq,) = [e.seq for e in looked.audit.entries(looked.rollout_id) if isinstance(e.event, Decided)][
        -1 if "verdict" in old else 0 :
    ][:1]
    as_owner(owner_url, f"UPDATE penstock.audit SET event = replace(event::text, '{old}', '{new}')::json WHERE seq = {seq}")
    fresh = PostgresAudit(looked.engine)
    _, differences = recheck_all([looked.rollout_id], fresh)
    assert (seq, what) in [(d.seq, d.what) for d in differences], differences


def test_a_column_that_says_something_else_than_its_event_is_found(looked: Looked, owner_url: str) -> None:
    looked.look()
    as_owner(owner_url, "UPDATE penstock.audit SET reason = 'all was well' WHERE seq = 2")
    assert next((seq, name) for seq, name, _, _ in looked.audit.odd_columns(looked.rollout_id)) == (2, "reason")


def test_evidence_that_was_changed_is_told_and_nothing_breaks(looked: Looked, owner_url: str) -> None:
    for _ in range(3):
        looked.look()
    for answer, encoding in (("{}", "utf8"), ("x", "base64")):
        as_owner(owner_url, f"UPDATE penstock.audit_evidence SET answer = '{answer}', encoding = '{encoding}'")
        rows = list(recheck(looked.rollout_id, PostgresAudit(looked.engine)))
        assert {d.what for r in rows for d in r.differences} == {"evidence"}
