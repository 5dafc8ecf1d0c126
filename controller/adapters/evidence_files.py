"""
Texts of the audit log in files: what ended rollouts rested on, out of the database.

Each file is a zip whose members are named by the SHA-256 of what they hold, so that anybody can check it with ``unzip`` and ``sha256sum``. Its one
rule: a file is complete, read back and on disk before its name exists, and is never written again.
"""

import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from controller.ports import PortError


class BadEvidenceFiles(PortError):
    """The folder of archived texts cannot be read or written; says which file, and why."""


class EvidenceFiles:
    """
    Args:
        folder: Where the files are; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, Path] | None = None

    def digests(self) -> frozenset[str]:
        """All that the files say they hold. Raises BadEvidenceFiles."""
        return frozenset(self._index())

    def place(self, digest: str) -> Path | None:
        """The file that has a text. Raises BadEvidenceFiles."""
        return self._index().get(digest)

    def get(self, digest: str) -> bytes | None:
        """A text as it was hashed; None where no file has it. Raises BadEvidenceFiles: it is not what its name says."""
        path = self._index().get(digest)
        if path is None:
            return None
        with _told(path), zipfile.ZipFile(path) as file:
            found = file.read(digest)
        if sha256(found).hexdigest() != digest:
            raise BadEvidenceFiles(f"{path}: {digest[:12]} is not what its name says: it was changed")
        return found

    def each(self) -> Iterator[tuple[str, bytes, Path]]:
        """Every text with its name and its file. Raises BadEvidenceFiles for a file that cannot be read."""
        for path in self._paths():
            with _told(path), zipfile.ZipFile(path) as file:
                for name in file.namelist():
                    yield name, file.read(name), path

    def add(self, texts: Iterable[tuple[str, bytes]], at: datetime) -> Path | None:
        """
        Write one more file.

        Args:
            texts: Digest and text.
            at: For its name.

        Returns:
            The file; None where there was nothing to write.

        Raises:
            BadEvidenceFiles: it cannot be written, or does not read back as it was written. Nothing is left of it then.
        """
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        made = self.folder / f".{os.getpid()}.part"
        names: list[str] = []
        try:
            with _told(made), made.open("w+b") as raw:
                with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
                    for digest, text in texts:
                        file.writestr(zipfile.ZipInfo(digest, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
                        names.append(digest)
                raw.flush()
                os.fsync(raw.fileno())
            if not names:
                return None
            with _told(made), zipfile.ZipFile(made) as file:
                for name in names:
                    if sha256(file.read(name)).hexdigest() != name:
                        raise BadEvidenceFiles(f"{made}: {name[:12]} does not read back as it was written")
            short = sha256("".join(sorted(names)).encode()).hexdigest()[:12]
            path = self.folder / f"evidence-{at:%Y%m%dT%H%M%SZ}-{short}.zip"
            with _told(path):
                made.rename(path)
                _on_disk(self.folder)
        finally:
            with suppress(OSError):
                made.unlink(missing_ok=True)
        self._where = None
        return path

    def _index(self) -> dict[str, Path]:
        if self._where is None:
            found: dict[str, Path] = {}
            for path in self._paths():
                with _told(path), zipfile.ZipFile(path) as file:
                    found |= dict.fromkeys(file.namelist(), path)
            self._where = found
        return self._where

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("evidence-*.zip")) if self.folder.is_dir() else []


class _told:
    """What a file does, as this module's error."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _trace: object) -> None:
        if isinstance(exc, OSError | zipfile.BadZipFile | KeyError | EOFError):
            raise BadEvidenceFiles(f"{self._path}: {exc}") from exc


def _on_disk(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
