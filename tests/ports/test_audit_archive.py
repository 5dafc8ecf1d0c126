"""Texts of ended rollouts leave the database for files: nothing is lost, everything is still proven, and nobody can pass a deletion off as it."""

import zipfile
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from controller import codec, commands
from controller.adapters.archive import archive as new_archive
from controller.adapters.archive import verify_export
from controller.adapters.evidence_files import BadEvidenceFiles, EvidenceFiles
from controller.adapters.heads import HeadSigner
from controller.adapters.postgres import PostgresAudit, app_url, chain, reader_url, retire
from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.export import Wanted, export
from controller.core.rollout import Decided
from controller.ports import AuditUnavailable, TextLost
from controller.recheck import recheck_all
from tests.ports.test_audit_proof import SILENCED, Looked, as_owner, looked, real_plan

pytestmark = pytest.mark.services

__all__ = ["looked"]


@dataclass(frozen=True, slots=True)
class Two:
    """One rollout that has ended and one that goes on, each with evidence."""

    owner_url: str
    engine: Engine
    ended: str
    active: str
    files: EvidenceFiles

    def retire(self, **more: Any) -> retire.Retired:
        audit = PostgresAudit(self.engine)
        before = audit.now() + timedelta(seconds=1)
        chosen = retire.ended_before(audit, audit, before, 100)
        assert chosen == [self.ended]
        return retire.retire(self.owner_url, chosen, before, self.files, **more)

    def stored(self) -> set[str]:
        with connect(self.owner_url) as connection:
            return {row[0] for row in connection.execute(b"SELECT digest FROM penstock.audit_evidence")}

    def rows(self, audit: PostgresAudit) -> list[Any]:
        return [audit.entry(i, e.seq) for i in (self.ended, self.active) for e in audit.entries(i)]


@pytest.fixture
def two(looked: Looked, owner_url: str, tmp_path: Path) -> Two:
    looked.look()
    looked.look()
    commands.abort(looked.rollout_id, looked.ports, actor="rita", reason="enough")
    second = commands.start(real_plan(), codec.plan_digest(real_plan()), looked.ports, actor="rita", key="c")
    ports = looked.ports
    from controller.tick import tick

    for _ in range(2):
        tick(second.id, ports, ports.audit.now(), may_raise=True, force=True)
    return Two(owner_url, looked.engine, looked.rollout_id, second.id, EvidenceFiles(tmp_path / "evidence"))


def test_what_an_ended_rollout_rested_on_is_moved_and_everything_is_read_and_proven_as_before(two: Two) -> None:
    before, stored = two.rows(PostgresAudit(two.engine)), two.stored()
    planned = two.retire(dry_run=True)
    assert two.stored() == stored and not two.files.folder.exists() and planned.texts > 0
    done = two.retire()
    assert (done.rollouts, done.texts, len(done.files)) == (1, planned.texts, 1)
    assert len(stored) - len(two.stored()) == done.texts and two.stored() < stored
    reading = PostgresAudit(two.engine, two.files)
    assert two.rows(reading) == before
    assert recheck_all([two.ended, two.active], reading)[1] == []
    report = chain.verify(reader_url(two.owner_url), files=two.files, complete=True)
    assert (report.ok, report.filed, report.unchecked) == (True, done.texts, 0), report.problems
    with zipfile.ZipFile(two.files.folder / done.files[0]) as file:
        assert {sha256(file.read(name)).hexdigest() for name in file.namelist()} == set(file.namelist()) == stored - two.stored()
    again = two.retire()
    assert (again.texts, again.files) == (0, ())


def test_without_the_files_it_is_said_what_nobody_checked_and_where_it_went(two: Two, tmp_path: Path) -> None:
    done = two.retire()
    report = chain.verify(reader_url(two.owner_url))
    assert (report.ok, report.filed, report.unchecked) == (True, 0, done.texts)
    empty = EvidenceFiles(tmp_path / "other")
    whole = chain.verify(reader_url(two.owner_url), files=empty, complete=True)
    assert {p.kind for p in whole.problems} == {"evidence"} and whole.unchecked == 0
    bare = PostgresAudit(two.engine)
    evidence = next(
        e.event.observed.gathered.after
        for e in bare.entries(two.ended)
        if isinstance(e.event, Decided) and e.event.observed.gathered
    )
    with pytest.raises(TextLost, match=f"it was archived in {done.files[0]}, which is not in"):
        bare.text(evidence)


def test_a_text_that_was_only_said_to_be_archived_is_not_proven_by_that(two: Two) -> None:
    two.retire()
    (gone,) = list(two.stored())[:1]
    as_owner(
        two.owner_url,
        SILENCED,
        f"INSERT INTO penstock.archived_evidence (digest, archive) VALUES ('{gone}', 'evidence-x.zip')",
        f"DELETE FROM penstock.audit_evidence WHERE digest = '{gone}'",
    )
    assert chain.verify(reader_url(two.owner_url), files=two.files).unchecked == 1
    found = chain.verify(reader_url(two.owner_url), files=two.files, complete=True)
    assert {p.kind for p in found.problems} == {"evidence"}


def test_a_file_that_was_changed_is_found_and_not_read(two: Two) -> None:
    done = two.retire()
    path = two.files.folder / done.files[0]
    with zipfile.ZipFile(path) as file:
        texts = {name: file.read(name) for name in file.namelist()}
    odd = next(iter(texts))
    with zipfile.ZipFile(path, "w") as file:
        for name, text in texts.items():
            file.writestr(name, text + b" " if name == odd else text)
    found = chain.verify(reader_url(two.owner_url), files=two.files)
    assert {p.kind for p in found.problems} == {"evidence"} and any(odd[:12] in p.text for p in found.problems)
    with pytest.raises(BadEvidenceFiles, match="it was changed"):
        EvidenceFiles(two.files.folder).get(odd)
    path.write_bytes(b"no zip")
    with pytest.raises(BadEvidenceFiles, match=path.name):
        chain.verify(reader_url(two.owner_url), files=EvidenceFiles(two.files.folder))


def test_whoever_may_only_append_moves_nothing(two: Two) -> None:
    stored = two.stored()
    with pytest.raises(AuditUnavailable, match="only the owner of the tables may archive, and penstock_app is not"):
        retire.retire(app_url(two.owner_url), [two.ended], PostgresAudit(two.engine).now(), two.files)
    assert two.stored() == stored and not two.files.folder.exists()


def test_after_a_crash_between_file_and_database_it_goes_on_and_writes_no_text_twice(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    stored = two.stored()
    with monkeypatch.context() as patched:
        patched.setattr(retire, "_forget", crash)
        with pytest.raises(KeyboardInterrupt):
            two.retire()
    assert two.stored() == stored and len(list(two.files.folder.iterdir())) == 1
    done = two.retire()
    assert done.files == () and done.texts == len(stored) - len(two.stored()) > 0
    assert chain.verify(reader_url(two.owner_url), files=two.files, complete=True).ok


def test_what_a_row_of_meanwhile_rests_on_stays(two: Two) -> None:
    stored = two.stored()
    two.files.add([(sha256(b"x").hexdigest(), b"x")], PostgresAudit(two.engine).now())
    retire._forget(two.owner_url, sorted(stored), 0, _Everywhere(two.files.folder))
    assert two.stored() == stored


class _Everywhere(EvidenceFiles):
    """Files that have every text."""

    def place(self, digest: str) -> Path | None:
        return self.folder / "evidence-all.zip"


def test_a_file_that_cannot_be_written_leaves_everything_where_it_is(two: Two) -> None:
    stored = two.stored()
    two.files.folder.write_text("a file where the folder should be")
    with pytest.raises(BadEvidenceFiles, match="evidence"):
        two.retire()
    assert two.stored() == stored


def test_an_export_takes_moved_answers_from_their_files_or_says_that_it_cannot(two: Two, tmp_path: Path) -> None:
    done = two.retire()
    url, sign = reader_url(two.owner_url), HeadSigner(None).sign
    with new_archive(tmp_path / "out", "jsonl") as to:
        export(url, to, Wanted(answers=True), sign=sign, files=two.files)
    report = verify_export(tmp_path / "out", [])
    assert report.ok and report.answers == done.texts + len(two.stored()), report.problems
    with pytest.raises(AuditUnavailable, match="was moved to a file"), new_archive(tmp_path / "no", "jsonl") as to:
        export(url, to, Wanted(answers=True), sign=sign)
    assert not (tmp_path / "no").exists()


def test_renewals_of_leases_are_removed_and_no_other_row_of_a_flags_history(two: Two) -> None:
    flag = "UPDATE penstock.flags SET lease = now() + interval '1 hour', version = version + 1"
    with connect(two.owner_url) as connection:
        for _ in range(3):
            connection.execute(flag.encode())
        actions = [r[0] for r in connection.execute(b"SELECT action FROM penstock.flag_history ORDER BY revision")]
    done = two.retire()
    with connect(two.owner_url) as connection:
        left = [r[0] for r in connection.execute(b"SELECT action FROM penstock.flag_history ORDER BY revision")]
    assert done.renewals == len(actions) - len(left)
    assert [a for a in left if a != "renew"] == [a for a in actions if a != "renew"]
    assert chain.verify(reader_url(two.owner_url), files=two.files).ok
