"""The audit log as a whole: that nothing in it was changed, that it follows from itself, and how to show that to others."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter, validators

from controller.cli.at_rest import readable
from controller.cli.output import Format, Output, console, errors, print_object
from controller.settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from controller.core.chain import ChainReport, Problem
    from controller.core.chain import Head as KnownHead
    from controller.ports import SignedHead

audit = App(name="audit", help="The audit log as a whole: verify, export, replay, head, archive, keygen.")

Head = Annotated[str | None, Parameter(help="A head that was written down elsewhere, ID:HASH; the log must contain it")]
Since = Annotated[str | None, Parameter(help="Check only from this head on, ID:HASH: what is before it was verified before")]
Heads = Annotated[Path | None, Parameter(help="A file of published heads; the log must contain each")]
PublicKey = Annotated[Path | None, Parameter(help="The key (PEM) that all heads of --heads must be signed with")]
Export = Annotated[Path | None, Parameter(help="Verify an export instead of the database")]
EvidenceFolder = Annotated[
    Path | None,
    Parameter(
        help="Where archived texts are; each that was moved must be there. Default: PENSTOCK_EVIDENCE_FOLDER, and what is not there is counted"
    ),
]
Processes = Annotated[
    int | None,
    Parameter(
        validator=validators.Number(gte=1, lte=64),
        help="To read with; default: for much to read, half as many as there are processors",
    ),
]
Form = Annotated[Literal["jsonl", "csv"], Parameter(help="Of the rows")]
Out = Annotated[str, Parameter(help="The folder to make, or - for rows alone on stdout", allow_leading_hyphen=True)]
Time = Annotated[str | None, Parameter(help="ISO 8601 (UTC unless it says otherwise)")]


@audit.command
def verify(
    *,
    head: Head = None,
    since: Since = None,
    heads: Heads = None,
    public_key: PublicKey = None,
    export: Export = None,
    evidence: EvidenceFolder = None,
    processes: Processes = None,
    output: Output = "table",
) -> int:
    """Follow the hash chain through every row and every raw answer; exit code 1 and the places if anything does not fit."""
    from controller.adapters.evidence_files import EvidenceFiles
    from controller.adapters.postgres import chain
    from controller.core.chain import Head as Known

    published, problems = _published(heads if export is None else heads or _if_there(export / "heads.jsonl"), public_key)
    known = [*(Known(id=h.id, hash=h.hash) for h in published), *([_head("--head", head)] if head is not None else [])]
    if export is not None:
        if since is not None:
            raise SettingsError("--since: an export is verified from its first row on")
        from controller.adapters.archive import verify_export

        with _progress("rows") as progress:
            found = verify_export(export, known, progress)
    else:
        begin = None if since is None else _head("--since", since)
        with readable(load()) as settings, _progress("rows") as progress:
            found = chain.verify(
                _database(settings),
                known,
                since=begin,
                progress=progress,
                processes=processes,
                files=EvidenceFiles(evidence or settings.evidence_folder),
                complete=evidence is not None,
            )
            if found.ok and not problems:
                _say_so(_database(settings))
    return _tell(found, problems, heads is not None and public_key is None, output)


@audit.command
def export(
    *,
    out: Out,
    format: Form = "jsonl",
    rollout: Annotated[str | None, Parameter(help="Only this rollout's rows")] = None,
    since: Time = None,
    until: Time = None,
    answers: Annotated[bool, Parameter(help="With the raw answers and the evidence that the rows refer to", negative="")] = False,
    output: Output = "table",
) -> int:
    """Write rows as they were hashed, with a manifest and the published heads, for somebody who trusts neither us nor the database."""
    from controller.adapters.archive import Archive
    from controller.adapters.archive import archive as new_archive
    from controller.adapters.evidence_files import EvidenceFiles
    from controller.adapters.heads import HeadSigner
    from controller.adapters.postgres.export import Wanted
    from controller.adapters.postgres.export import export as write

    bounds = {name: None if text is None else _time(f"--{name}", text) for name, text in (("since", since), ("until", until))}
    wanted = Wanted(rollout_id=rollout, answers=answers, **bounds)
    with readable(load()) as settings, _progress("rows") as progress:
        url, signer = _database(settings), HeadSigner(settings.audit_key_file)
        if out == "-":
            if answers:
                raise SettingsError("--answers: a stream holds rows alone; name a folder with --out")
            manifest = write(
                url, Archive(None, format, sys.stdout.buffer), wanted, sign=signer.sign, alone=True, progress=progress
            )
            errors.print(f"{manifest['count']} rows", soft_wrap=True)
            return 0
        published, _ = _published(_if_there(settings.audit_heads_file), None)
        with new_archive(Path(out), format) as to:
            files = EvidenceFiles(settings.evidence_folder)
            manifest = write(url, to, wanted, sign=signer.sign, published=published, progress=progress, files=files)
    if output != "table":
        print_object(manifest, output)
    else:
        last = "none" if manifest["last"] is None else f"{manifest['last']['id']}:{manifest['last']['hash']}"
        console.print(f"{manifest['count']} rows in {out}; the last is {last}", soft_wrap=True, markup=False)
    return 0


@audit.command
def replay(
    rollout: Annotated[str | None, Parameter(help="Its id")] = None,
    *,
    all_: Annotated[bool, Parameter(name=["--all", "-a"], help="Every rollout that the log knows", negative="")] = False,
    output: Output = "table",
) -> int:
    """Compute every verdict and decision again from its stored row alone; exit code 1 and the differences if any does not come out."""
    from collections import Counter

    from controller.codec import CodecError
    from controller.ports import AuditUnavailable
    from controller.recheck import KINDS, Difference, recheck
    from controller.wiring import open_log

    if (rollout is None) is not all_:
        raise SettingsError("name one rollout, or say --all")
    counts: Counter[str] = Counter()
    found: list[Difference] = []
    with readable(load()) as settings, open_log(settings) as log, _progress("rows") as progress:
        ids = [rollout] if rollout is not None else list(reversed(log.known(sys.maxsize)))
        for each in ids:
            try:
                for row in recheck(each, log):
                    counts[row.kind] += 1
                    found += row.differences
                    progress("rows", 1)
            except AuditUnavailable as exc:
                if not isinstance(exc.__cause__, CodecError):
                    raise
                # One rollout with a row that nobody can read must not hide what the others are like.
                found.append(Difference(rollout_id=each, seq=0, what="row", stored="", again=str(exc)))
                continue
            columns = (
                Difference(rollout_id=each, seq=q, what=f"column {n}", stored=s, again=a) for q, n, s, a in log.odd_columns(each)
            )
            found += columns
    if output != "table":
        told = [{"rollout_id": d.rollout_id, "seq": d.seq, "what": d.what, "stored": d.stored, "again": d.again} for d in found]
        kinds = {kind: counts[kind] for kind in KINDS}
        print_object({"ok": not found, "rollouts": len(ids), "rows": counts.total(), **kinds, "differences": told}, output)
    else:
        agreed = "all agree" if not found else f"{len(found)} differences"
        console.print(f"{counts.total()} rows of {len(ids)} rollouts: {agreed}", soft_wrap=True)
        for kind, words in KINDS.items():
            if counts[kind]:
                console.print(f"  {counts[kind]} {words}", soft_wrap=True)
        for d in found:
            text = f"  {d.rollout_id}/{d.seq} {d.what}: the row says {d.stored}; out of it comes {d.again}"
            console.print(text, soft_wrap=True, markup=False)
    return 1 if found else 0


@audit.command
def head(
    *,
    publish: Annotated[bool, Parameter(help="To the file of heads, and to Slack", negative="")] = False,
    output: Output = "table",
) -> int:
    """The last row now, signed if there is a key; exit code 1 if the log no longer holds what was published last."""
    from controller.adapters.heads import HeadFile, HeadSigner, line
    from controller.publish import Published, broken_since
    from controller.wiring import open_controller, open_log, publish_head

    if publish:
        with open_controller(load(), reading=True) as opened:
            where, done = opened.settings.audit_heads_file, publish_head(opened)
    else:
        with readable(load()) as settings, open_log(settings) as log:
            where, now, last = settings.audit_heads_file, log.head(), HeadFile(settings.audit_heads_file).last()
            signed = None if now is None else HeadSigner(settings.audit_key_file).sign(now, log.now())
            done = Published(head=signed, broken="" if last is None else broken_since(log, last))
    if output != "table":
        import json

        shown = None if done.head is None else json.loads(line(done.head))
        print_object(
            {
                "ok": not done.broken,
                "head": shown,
                "published": publish and not done.broken,
                "fresh": done.fresh,
                "broken": done.broken,
            },
            output,
        )
    elif done.broken:
        console.print(f"broken: {done.broken}", soft_wrap=True, markup=False)
    elif done.head is None:
        console.print("the audit log has no rows yet")
    else:
        signed_by = f"signed by key {done.head.key}" if done.head.key else "not signed (PENSTOCK_AUDIT_KEY_FILE names no key)"
        console.print(f"head {done.head.id}:{done.head.hash}, {signed_by}", soft_wrap=True, markup=False)
        if publish:
            console.print(f"{'published in' if done.fresh else 'was published before in'} {where}", soft_wrap=True, markup=False)
    return 1 if done.broken else 0


@audit.command
def archive(
    *,
    older_than: Annotated[str, Parameter(help="Of rollouts that ended so long ago: 90d, 26w")] = "90d",
    database: Annotated[
        str | None, Parameter(help="Address of the tables' owner; default: PENSTOCK_DATABASE_URL, the embedded one as its owner")
    ] = None,
    dry_run: Annotated[bool, Parameter(help="Only say what would be moved", negative="")] = False,
    output: Output = "table",
) -> int:
    """
    Move the raw answers and the evidence of ended rollouts out of the database, into PENSTOCK_EVIDENCE_FOLDER.

    Rows stay where they are, and so does the chain. A text goes only when it was read back from its file. Renewals of leases that are older are
    removed. Run it as the owner of the tables: the application may take nothing out of the log.
    """
    from controller.adapters.evidence_files import EvidenceFiles
    from controller.adapters.postgres.retire import ended_before, retire
    from controller.wiring import open_log
    from specfile import parse_duration

    try:
        age = parse_duration(older_than)
    except ValueError as exc:
        raise SettingsError(f"--older-than: {exc}") from exc
    with readable(load(), owner=True) as settings, open_log(settings) as log, _progress("answers") as progress:
        before = log.now() - age
        ended = ended_before(log, log, before, sys.maxsize)
        files = EvidenceFiles(settings.evidence_folder)
        done = retire(database or _owner(settings), ended, before, files, dry_run=dry_run, progress=progress)
    if output != "table":
        told = {"rollouts": done.rollouts, "texts": done.texts, "characters": done.size, "files": list(done.files)}
        print_object({**told, "renewals": done.renewals, "folder": str(files.folder), "dry_run": dry_run}, output)
        return 0
    verb = "would be moved" if dry_run else "moved"
    console.print(
        f"{done.texts} texts of {done.rollouts} ended rollouts ({done.size / 1e6:,.1f} MB) {verb} to {files.folder}",
        soft_wrap=True,
        markup=False,
    )
    if done.renewals:
        console.print(f"{done.renewals} renewals of leases removed", soft_wrap=True)
    return 0


def _owner(settings: Settings) -> str:
    """The database as its owner: the embedded one's is known, of another it is what is named."""
    from psycopg.conninfo import conninfo_to_dict

    from controller.adapters.postgres.connect import owner_url

    url = _database(settings)
    host = str(conninfo_to_dict(url).get("host") or "")
    return owner_url(url) if host.startswith("/") and Path(host).is_relative_to(settings.home.absolute()) else url


@audit.command
def keygen(file: Annotated[Path, Parameter(help="The private key; the public one is FILE.pub")]) -> int:
    """Make the key pair that heads are signed with (Ed25519)."""
    from controller.adapters.heads import keygen as make
    from controller.adapters.heads import public_path

    fingerprint = make(file)
    console.print(f"{file}: private key {fingerprint}, for PENSTOCK_AUDIT_KEY_FILE", soft_wrap=True, markup=False)
    console.print(f"{public_path(file)}: public key, for whoever verifies", soft_wrap=True, markup=False)
    return 0


def _tell(found: "ChainReport", more: "Sequence[Problem]", unchecked: bool, output: Format) -> int:
    problems, count = [*more, *found.problems], len(more) + found.problem_count
    last = None if found.head is None else str(found.head)
    if output != "table":
        told = [{"audit_id": p.audit_id, "kind": p.kind, "text": p.text} for p in problems]
        counts = {"rows": found.rows, "rollouts": found.rollouts, "answers": found.answers, "heads": found.heads}
        counts |= {"filed": found.filed, "unchecked": found.unchecked}
        counts |= {"signatures_checked": bool(found.heads) and not unchecked}
        print_object({"ok": not count, **counts, "head": last, "problem_count": count, "problems": told}, output)
    else:
        state = f"{count} problems" if count else "intact"
        console.print(f"{found.rows} rows of {found.rollouts} rollouts, {found.answers} raw answers: {state}", soft_wrap=True)
        for problem in problems:
            where = "" if problem.audit_id is None else f"row {problem.audit_id}: "
            console.print(f"  {problem.kind}: {where}{problem.text}", soft_wrap=True, markup=False)
        if found.filed or found.unchecked:
            away = f", {found.unchecked} more are not there and were not checked" if found.unchecked else ""
            console.print(f"{found.filed} answers were checked in the files of the archive{away}", soft_wrap=True)
        if found.heads:
            unsigned = "; their signatures were not checked (--public-key)" if unchecked else ""
            console.print(f"{found.heads} published heads were looked for{unsigned}", soft_wrap=True)
        if last is not None:
            console.print(f"head {last}", soft_wrap=True, markup=False)
    return 1 if count else 0


def _say_so(url: str) -> None:
    """For the alert that nobody verifies the log. Who may only read cannot say it, and that is no problem of the log."""
    from controller.adapters.postgres import PostgresHeartbeats, open_engine
    from controller.ports import PortError

    with suppress(PortError):
        engine = open_engine(url)
        try:
            PostgresHeartbeats(engine).beat("audit-verify")
        finally:
            engine.dispose()


def _published(path: Path | None, key: Path | None) -> "tuple[list[SignedHead], list[Problem]]":
    """Heads of a file, and what is wrong with it."""
    from controller.adapters import heads as book

    if path is None:
        if key is not None:
            raise SettingsError("--public-key: there are no heads to check with it; name their file with --heads")
        return [], []
    published, problems = book.read_heads(path)
    signatures = [] if key is None else book.check_signatures(published, book.public_key(key))
    return list(published), [*problems, *signatures]


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _database(settings: Settings) -> str:
    from controller.wiring import NO_DATABASE

    if settings.database_url is None:
        raise SettingsError(NO_DATABASE)
    return settings.database_url


def _head(option: str, text: str) -> "KnownHead":
    from controller.core.chain import Head as Known

    number, _, digest = text.partition(":")
    if not number.isascii() or not number.isdigit() or len(digest) != 64:
        raise SettingsError(f"{option}: {text!r} is not ID:HASH as `penstock audit verify` prints it")
    return Known(id=int(number), hash=digest)


def _time(option: str, text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option}: {text!r} is no time (write 2026-11-20T08:00)") from None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str, int], None]]:
    """A counter on a terminal; silence elsewhere."""
    if not errors.is_terminal:
        yield lambda kind, more: None
        return
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), console=errors, transient=True) as bar:
        tasks: dict[str, Any] = {what: bar.add_task(what, total=None)}

        def told(kind: str, more: int) -> None:
            if kind not in tasks:
                tasks[kind] = bar.add_task(kind, total=None)
            bar.advance(tasks[kind], more)

        yield told
