"""
Published heads of the audit log: one JSON object a line in a file that is only ever appended to, signed with Ed25519.

It stands at the end of `controller.publish` and before `audit verify --heads`. Its one rule: a line is whole or it is told of. It is written at
once and synced, and what is signed is everything that stands in it.
"""

import fcntl
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.codec import canonical
from controller.core.chain import Head, Problem
from controller.ports import BadHeads, SignedHead

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

VERSION = 1
CONTEXT = b"penstock audit head\n"
"""Before what is signed, so that a signature made for this serves for nothing else."""


def keygen(path: Path) -> str:
    """
    Make a key pair: the private key at `path` (PEM, mode 0600), the public one beside it with `.pub` after its name.

    Returns:
        The key's fingerprint.

    Raises:
        BadHeads: one of the files is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    try:
        for name, content, mode in ((public_path(path), public, 0o644), (path, private, 0o600)):
            with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
    except OSError as exc:
        raise BadHeads(f"{exc.filename or path}: the key cannot be written: {exc.strerror}") from exc
    return fingerprint(key.public_key())


def public_path(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def fingerprint(key: "Ed25519PublicKey") -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def _private_key(path: Path) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _loaded(path, lambda data: load_pem_private_key(data, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise BadHeads(f"{path}: not an Ed25519 private key, but a {type(key).__name__}")
    return key


def public_key(path: Path) -> "Ed25519PublicKey":
    """Raises BadHeads: the file is none, or holds no Ed25519 public key in PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _loaded(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise BadHeads(f"{path}: not an Ed25519 public key, but a {type(key).__name__}")
    return key


class HeadSigner:
    """
    Implements `controller.ports.Signer`.

    Args:
        path: The private key (PEM); None signs nothing.

    Raises:
        BadHeads: the file is none, or holds no Ed25519 private key in PEM.
    """

    def __init__(self, path: Path | None) -> None:
        self._key = None if path is None else _private_key(path)

    def sign(self, head: Head, published_at: datetime) -> SignedHead:
        at = published_at if head.at is None else head.at
        release = version("penstock")
        bare = SignedHead(id=head.id, hash=head.hash, at=at.astimezone(UTC), published_at=published_at, release=release)
        if self._key is None:
            return bare
        named = replace(bare, key=fingerprint(self._key.public_key()))
        return replace(named, signature=b64encode(self._key.sign(_signed(named))).decode())


class HeadFile:
    """Implements `controller.ports.HeadBook`; several processes may share one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self) -> SignedHead | None:
        heads, _ = read_heads(self._path) if self._path.exists() else ((), ())
        return heads[-1] if heads else None

    def append(self, signed: SignedHead) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                last = self.last()
                if last is not None and (last.id, last.hash) == (signed.id, signed.hash):
                    return False
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(size - 1)
                # Somebody died in the middle of a line: it stays one line, and is told of.
                torn = b"\n" if size and file.read(1) != b"\n" else b""
                os.write(file.fileno(), torn + line(signed).encode() + b"\n")
                os.fsync(file.fileno())
        except OSError as exc:
            raise BadHeads(f"{self._path}: the head cannot be published: {exc.strerror}") from exc
        return True


def line(signed: SignedHead) -> str:
    """A head as it is published, without the line's end."""
    return json.dumps(_document(signed), separators=(",", ":"))


def read_heads(path: Path) -> tuple[Sequence[SignedHead], Sequence[Problem]]:
    """
    The heads of a file in their order, and what in it is none.

    Raises:
        BadHeads: it cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as exc:
        raise BadHeads(f"{path}: the published heads cannot be read: {exc.strerror}") from exc
    heads, problems = [], []
    for number, each in enumerate(text.split("\n"), 1):
        if not each.strip():
            continue
        try:
            heads.append(_head(json.loads(each)))
        except (ValueError, KeyError, TypeError) as exc:
            problems.append(Problem(audit_id=None, kind="head", text=f"{path.name} line {number} is no head: {exc}"))
    return heads, problems


def check_signatures(heads: Iterable[SignedHead], key: "Ed25519PublicKey") -> list[Problem]:
    """Heads that this key has not signed."""
    from cryptography.exceptions import InvalidSignature

    problems = []
    for head in heads:
        try:
            key.verify(b64decode(head.signature, validate=True), _signed(head))
        except (InvalidSignature, ValueError):
            said = f"signed by key {head.key}, and not by {fingerprint(key)}" if head.signature else "not signed"
            problems.append(
                Problem(audit_id=head.id, kind="signature", text=f"the head of row {head.id} is {said}, or was changed")
            )
    return problems


def _signed(head: SignedHead) -> bytes:
    return CONTEXT + canonical({k: v for k, v in _document(head).items() if k != "signature"})


def _document(head: SignedHead) -> dict[str, Any]:
    times = {name: getattr(head, name).astimezone(UTC).isoformat(timespec="microseconds") for name in ("at", "published_at")}
    return {"v": VERSION, **asdict(head), **times}


def _head(data: Any) -> SignedHead:
    if not isinstance(data, dict) or data.get("v") != VERSION:
        raise ValueError(f"not a JSON object of version {VERSION}")
    texts = {name: data[name] for name in ("hash", "release", "key", "signature")}
    at, published_at = (datetime.fromisoformat(data[name]) for name in ("at", "published_at"))
    if not isinstance(data["id"], int) or not all(isinstance(t, str) for t in texts.values()):
        raise TypeError("a value of another type")
    return SignedHead(id=data["id"], at=at, published_at=published_at, **texts)


def _loaded(path: Path, load: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(path.read_bytes())
    except OSError as exc:
        raise BadHeads(f"{path}: the key cannot be read: {exc.strerror}") from exc
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise BadHeads(f"{path}: not a key in PEM without a password: {exc}") from exc


__all__ = ["HeadFile", "HeadSigner", "check_signatures", "keygen", "line", "public_key", "read_heads"]
