"""
Exports of the audit log: a folder of rows just as they were hashed, and a manifest; written, and verified without a database.

It stands between the stream of rows and files. Its one rule: nothing is lost and nothing half-written: a folder appears under its name when it
is complete, and what a spreadsheet must not take for a formula is marked so that the mark can be taken off again.
"""

import csv
import json
import os
import secrets
import shutil
import sys
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

from controller.codec import canonical
from controller.core.chain import (
    HASHED,
    NUMBERS,
    ChainReport,
    Findings,
    Head,
    Link,
    Stretch,
    absent,
    follow,
    join,
    known_heads,
    references,
    report,
)
from controller.core.digests import Digests
from controller.ports import PortError

Format = Literal["jsonl", "csv"]

VERSION = 1
COLUMNS = (*HASHED, "prev_hash", "hash")
MANIFEST = "manifest.json"
ANSWERS = "answers.jsonl"
HEADS = "heads.jsonl"

FORMULA = frozenset("=+-@\t\r\n＝＋－＠")
"""What spreadsheets begin a formula with (owasp.org, CSV Injection), full-width forms included."""

MARK = "'"
"""In front of a text that would begin a formula, and of one that begins with this mark or is empty. Whoever reads takes one off."""


class BadArchive(PortError):
    """An export that cannot be written or read; names the file."""


@dataclass(slots=True)
class _File:
    """A file that is being written, with what the manifest says of it."""

    to: BinaryIO
    name: str
    digest: Any = field(default_factory=sha256)
    size: int = 0
    count: int = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.to.write(data)

    def told(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.digest.hexdigest(), "bytes": self.size, "count": self.count}


class Archive:
    """
    An export that is being written.

    Args:
        folder: Where; None for rows on `stream` alone.
        format: Of the rows.
        stream: Instead of a folder.
    """

    def __init__(self, folder: Path | None, format: Format, stream: BinaryIO | None = None) -> None:
        self._folder, self._format, self._stream = folder, format, stream
        self._files: list[_File] = []

    def rows(self, rows: Iterable[tuple[bytes, str, str]]) -> None:
        """Write rows: each its canonical JSON, `prev_hash` and `hash`."""
        with self._file(f"rows.{self._format}") as file:
            if self._format == "csv":
                text = csv.writer(_Text(file), quoting=csv.QUOTE_ALL, lineterminator="\r\n")
                text.writerow(COLUMNS)
                for document, prev_hash, stored in rows:
                    row = json.loads(document) | {"prev_hash": prev_hash, "hash": stored}
                    text.writerow([cell(row[name]) for name in COLUMNS])
                    file.count += 1
                return
            for document, prev_hash, stored in rows:
                links = json.dumps({"prev_hash": prev_hash, "hash": stored}, ensure_ascii=False, separators=(",", ":"))
                file.write(document[:-1] + b"," + links[1:].encode() + b"\n")
                file.count += 1

    def lines(self, name: str, documents: Iterable[str]) -> None:
        """Write a file of JSON lines."""
        with self._file(name) as file:
            for each in documents:
                file.write(each.encode() + b"\n")
                file.count += 1

    def manifest(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """The last thing that is written. Returns it."""
        whole = {"v": VERSION, "format": self._format, **told, "files": [f.told() for f in self._files]}
        if self._folder is not None:
            with (self._folder / MANIFEST).open("w", encoding="utf-8") as file:
                file.write(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return whole

    @contextmanager
    def _file(self, name: str) -> Iterator[_File]:
        if self._folder is None:
            assert self._stream is not None, "a folder or a stream"
            made = _File(to=self._stream, name=name)
            yield made
            self._stream.flush()
        else:
            with (self._folder / name).open("wb") as to:
                made = _File(to=to, name=name)
                yield made
                to.flush()
                os.fsync(to.fileno())
        self._files.append(made)


@contextmanager
def archive(folder: Path, format: Format) -> Iterator[Archive]:
    """
    A folder that appears when it is complete.

    Raises:
        BadArchive: it is there already, or cannot be written.
    """
    if folder.exists():
        raise BadArchive(f"{folder}: is there already; an export is never written over")
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        try:
            yield Archive(unfinished, format)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    except OSError as exc:
        raise BadArchive(f"{exc.filename or folder}: the export cannot be written: {exc.strerror or exc}") from exc


def cell(value: Any) -> str:
    """A value in CSV: nothing for null, digits for a number, and a text with `MARK` where it needs one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value)
    begins = value.lstrip()[:1]
    return MARK + value if not value or value[0] in FORMULA or value[0] == MARK or begins in FORMULA else value


def value_of(name: str, text: str) -> Any:
    """What `cell` was made of. Raises ValueError: a number that is none."""
    if text == "":
        return None
    if name in NUMBERS:
        return int(text)
    return text[1:] if text.startswith(MARK) else text


# --- verifying ------------------------------------------------------------------------------------------------------------------


def verify_export(
    folder: Path, heads: Sequence[Head] = (), progress: Callable[[str, int], None] = lambda what, more: None
) -> ChainReport:
    """
    Check an export: its files against the manifest, its rows against their hashes and each other, its answers against their digests.

    Args:
        folder: That `audit export` made.
        heads: Heads known from elsewhere. Those beyond the last row count only for an export of the whole log.
        progress: Told how far it is.

    Raises:
        BadArchive: it cannot be read as an export.
    """
    findings = Findings()
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["v"] != VERSION:
            raise BadArchive(f"{folder / MANIFEST}: version {manifest['v']!r}; this release reads version {VERSION}")
        files = {f["name"]: f for f in manifest["files"]}
        for name, told in files.items():
            with (folder / Path(name).name).open("rb") as file:
                found = file_digest(file, "sha256").hexdigest()
            if found != told["sha256"]:
                findings.add(None, "file", f"{name} hashes to {found[:12]}, the manifest says {told['sha256'][:12]}")
        known, whole = known_heads(heads), not any(manifest["filter"].values())
        answers = _sound(folder / ANSWERS, findings) if ANSWERS in files else None
        rows = _read(folder / f"rows.{manifest['format']}", manifest["format"])
        found_rows = follow(_links(rows, answers, findings, progress), known, findings, sparse=not whole)
        if whole:
            found_rows = join(Stretch(), found_rows, findings)
            absent(known, found_rows.last, findings)
        told_rows = {"count": found_rows.rows, "last": _place(found_rows.last, found_rows.hash)}
        for name, value in told_rows.items():
            if manifest[name] != value:
                findings.add(None, "file", f"the rows end with {name} {value}, the manifest says {manifest[name]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as exc:
        raise BadArchive(f"{folder}: cannot be read as an export: {type(exc).__name__}: {exc}") from exc
    return report(found_rows, findings, answers=0 if answers is None else len(answers), heads=len(known))


def _place(audit_id: int, digest: str) -> Any:
    return {"id": audit_id, "hash": digest} if audit_id else None


def _links(
    rows: Iterable[Mapping[str, Any]], answers: Digests | None, findings: Findings, progress: Callable[[str, int], None]
) -> Iterator[Link]:
    for number, row in enumerate(rows, 1):
        document = canonical({name: row[name] for name in HASHED})
        computed = sha256(row["prev_hash"].encode() + document).hexdigest()
        yield row["id"], row["seq"], row["rollout_id"], row["prev_hash"], row["hash"], computed
        if answers is not None:
            for digest in answers.missing(dict.fromkeys(references(row["event"].encode()))):
                text = f"row {row['id']} rests on the answer {digest.decode()[:12]}, which is missing or was changed"
                findings.add(row["id"], "evidence", text)
        if number % 1000 == 0:
            progress("rows", 1000)


def _read(path: Path, format: str) -> Iterator[Mapping[str, Any]]:
    if format == "jsonl":
        with path.open("rb") as file:
            yield from (json.loads(each) for each in file)
        return
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            yield {name: value_of(name, each) for name, each in row.items()}


def _sound(path: Path, findings: Findings) -> Digests:
    packed = bytearray()
    with path.open("rb") as file:
        for each in file:
            told = json.loads(each)
            found = sha256(b64decode(told["answer"]) if told["encoding"] == "base64" else told["answer"].encode())
            if found.hexdigest() == told["digest"]:
                packed += found.digest()
            else:
                text = f"the answer {told['digest'][:12]} hashes to {found.hexdigest()[:12]}: it was changed"
                findings.add(None, "evidence", text)
    return Digests(packed)


class _Text:
    """What the csv module writes to, as bytes."""

    def __init__(self, to: _File) -> None:
        self._to = to

    def write(self, text: str, /) -> int:
        return self._to.write(text.encode())


__all__ = ["ANSWERS", "HEADS", "Archive", "BadArchive", "Format", "archive", "cell", "value_of", "verify_export"]
