"""
Very many digests, in as little memory as they take: 40 bytes each.

It stands beside `core.chain`; whoever reads rows asks which of those that rows refer to are there. Its one rule: a digest is there only if all of its 32 bytes are.
"""

from collections.abc import Collection, Iterator


class Digests:
    """
    Args:
        packed: SHA-256 digests, 32 bytes each, one after the other in any order.
    """

    def __init__(self, packed: bytes | bytearray) -> None:
        import numpy as np  # a tenth of a second that no other command needs

        found = np.frombuffer(packed, dtype=">u8").reshape(-1, 4)
        self._all = found[np.argsort(found[:, 0], kind="stable")]
        self._first = self._all[:, 0].astype("u8")

    def __len__(self) -> int:
        return len(self._all)

    def missing(self, wanted: Collection[bytes]) -> Iterator[bytes]:
        """Those of `wanted` (hexadecimal) that are not here."""
        import numpy as np

        try:
            packed = bytes.fromhex(b"".join(wanted).decode())
        except ValueError:
            packed = b""
        if len(packed) != 32 * len(wanted):
            # An edited row may refer to what is no digest at all.
            odd = {w for w in wanted if not _is_digest(w)}
            yield from sorted(odd)
            yield from self.missing([w for w in wanted if w not in odd]) if len(odd) < len(wanted) else ()
            return
        asked = np.frombuffer(packed, dtype=">u8").reshape(-1, 4)
        at = np.searchsorted(self._first, asked[:, 0].astype("u8"))
        there = np.zeros(len(asked), dtype=bool)
        within = at < len(self._all)
        there[within] = (self._all[at[within]] == asked[within]).all(axis=1)
        for k, digest in enumerate(wanted):
            # Digests that begin alike are next to each other; in an honest log there are none.
            if not there[k] and not self._further(int(at[k]), asked[k]):
                yield digest

    def _further(self, at: int, asked: object) -> bool:
        first = asked[0]  # type: ignore[index]
        while at < len(self._all) and self._all[at][0] == first:
            if (self._all[at] == asked).all():
                return True
            at += 1
        return False


def _is_digest(text: bytes) -> bool:
    try:
        return len(text) == 64 and len(bytes.fromhex(text.decode())) == 32
    except ValueError:
        return False
