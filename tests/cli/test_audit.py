"""`penstock audit` on a real database, as the auditor and the person who answers one use it."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_commands import start
from tests.ports.databases import Databases, disarmed

pytestmark = pytest.mark.services


@pytest.fixture
def rows(cli: Cli, rollout_yaml: Path) -> str:
    """A rollout with five rows: opened, advanced, confirmed, held, paused by a person."""
    rollout_id = start(cli, rollout_yaml)
    cli("tick")
    cli("tick", "--force")
    cli("pause", rollout_id, "--reason", "lunch")
    return rollout_id


def owner(databases: Databases, *statements: str) -> None:
    assert databases._migrated is not None
    with disarmed(databases._migrated) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_heads_are_published_signed_and_verified(
    cli: Cli, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, databases: Databases
) -> None:
    key, heads = tmp_path / "audit.pem", tmp_path / "heads.jsonl"
    assert cli("audit", "keygen", str(key)).code == 0
    assert cli("audit", "keygen", str(key)).code == 1
    assert key.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("PENSTOCK_AUDIT_HEADS_FILE", str(heads))
    bare = json.loads(cli("audit", "head", "-o", "json").out)
    assert (bare["head"]["id"], bare["head"]["signature"], bare["published"]) == (5, "", False)
    monkeypatch.setenv("PENSTOCK_AUDIT_KEY_FILE", str(key))
    first = json.loads(cli("audit", "head", "--publish", "-o", "json").out)
    assert (first["published"], first["fresh"]) == (True, True)
    assert not json.loads(cli("audit", "head", "--publish", "-o", "json").out)["fresh"]

    verified = cli("audit", "verify", "--heads", str(heads), "--public-key", f"{key}.pub", "-o", "json")
    told = json.loads(verified.out)
    assert (verified.code, told["ok"], told["rows"], told["heads"], told["signatures_checked"]) == (0, True, 5, 1, True)
    assert "signatures were not checked" in cli("audit", "verify", "--heads", str(heads)).out
    head = told["head"]
    assert json.loads(cli("audit", "verify", "--since", head, "-o", "json").out)["rows"] == 1
    assert cli("audit", "verify", "--since", "5").code == 1

    cli("audit", "keygen", str(tmp_path / "other.pem"))
    odd = json.loads(cli("audit", "verify", "--heads", str(heads), "--public-key", f"{tmp_path}/other.pem.pub", "-o", "json").out)
    assert [p["kind"] for p in odd["problems"]] == ["signature"]

    owner(databases, "DELETE FROM penstock.audit WHERE id = 5", "DELETE FROM penstock.outbox")
    cut = cli("audit", "verify", "--heads", str(heads), "-o", "json")
    assert (cut.code, [p["kind"] for p in json.loads(cut.out)["problems"]]) == (1, ["head"])
    broken = cli("audit", "head", "--publish", "-o", "json")
    assert broken.code == 1 and "row 5 was published and is not in the log any more" in json.loads(broken.out)["broken"]
    assert len(heads.read_text().splitlines()) == 1


def test_every_row_is_replayed_and_what_was_edited_is_told(cli: Cli, rows: str, databases: Databases) -> None:
    told = json.loads(cli("audit", "replay", rows, "-o", "json").out)
    kinds = {k: told[k] for k in ("computed", "by_person", "opened", "settled", "votes", "incomplete")}
    assert told["ok"] and kinds == {"computed": 2, "by_person": 1, "opened": 1, "settled": 1, "votes": 0, "incomplete": 0}
    assert "5 rows of 1 rollouts: all agree" in cli("audit", "replay", "--all").out
    assert cli("audit", "replay").code == cli("audit", "replay", "nobody").code == 1
    owner(
        databases,
        """UPDATE penstock.audit SET event = replace(event::text, '"why":"started"', '"why":"accepted"')::json WHERE id = 2""",
    )
    answer = cli("audit", "replay", "--all", "-o", "json")
    assert answer.code == 1
    assert {d["what"] for d in json.loads(answer.out)["differences"]} == {"decision", "column why"}
    owner(databases, "UPDATE penstock.audit SET event = '[]' WHERE id = 3")
    answer = cli("audit", "replay", "--all", "-o", "json")
    assert (answer.code, [d["what"] for d in json.loads(answer.out)["differences"]]) == (1, ["row"])


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_an_export_is_verified_with_nothing_running(
    cli: Cli, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    out = tmp_path / "out"
    cli("audit", "head", "--publish")
    made = json.loads(cli("audit", "export", "--out", str(out), "--format", format, "--answers", "-o", "json").out)
    assert made["count"] == 5
    assert cli("audit", "export", "--out", str(out)).code == 1
    monkeypatch.delenv("PENSTOCK_DATABASE_URL")
    told = json.loads(cli("audit", "verify", "--export", str(out), "-o", "json").out)
    assert (told["ok"], told["rows"], told["heads"]) == (True, 5, 1), told
    assert cli("audit", "verify", "--export", str(tmp_path)).code == 1


def test_rows_alone_are_written_to_stdout(cli: Cli, rows: str) -> None:
    said = cli("audit", "export", "--out", "-", "--rollout", rows)
    assert [json.loads(line)["seq"] for line in said.out.splitlines()] == [1, 2, 3, 4, 5]
    assert (said.code, said.err) == (0, "5 rows\n")


def test_the_evidence_of_ended_rollouts_is_archived_and_found_again(
    cli: Cli, rollout_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.environ["PENSTOCK_DATABASE_URL"].replace("penstock_app@", "postgres@", 1)
    rollout_id = json.loads(cli("start", rollout_yaml, "-o", "json").out)["rollout_id"]
    assert cli("tick", "--force").code == 0
    cli("abort", rollout_id, "--reason", "enough")
    refused = cli("audit", "archive", "--older-than", "0s")
    assert refused.code == 1 and "only the owner of the tables may archive" in refused.err
    told = json.loads(cli("audit", "archive", "--older-than", "0s", "--database", owner, "-o", "json").out)
    assert told["rollouts"] == 1 and len(told["files"]) == (1 if told["texts"] else 0)
    found = json.loads(cli("audit", "verify", "--evidence", told["folder"], "-o", "json").out)
    assert (found["ok"], found["filed"], found["unchecked"]) == (True, told["texts"], 0)
    assert cli("audit", "replay", "--all").code == 0
    assert cli("audit", "archive", "--older-than", "soon").code == 1
