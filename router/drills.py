"""
Drills: requests that fail on purpose at the candidate, so that the fallback is exercised when traffic does not do it.

It stands beside `app`, which asks here whether a request is one. What a drill does stands in `selection` (its plan), `engine` (the one
attempt that is not made) and `booking` (what is counted). Its one rule: only who has the token makes anything fail, and a request
without the header ``x-penstock-drill`` is no drill, whatever else it carries.
"""

from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest

from router import config
from router.errors import ApiError

DRILL_HEADER = b"x-penstock-drill"
TOKEN_HEADER = b"x-penstock-drill-token"
FALLBACK = b"fallback"


class DrillDoor:
    """
    Who may send drills.

    Args:
        drills: Of router.yaml; None refuses all.
        environ: Where the token is looked up.
    """

    def __init__(self, drills: config.Drills | None, environ: Mapping[str, str]) -> None:
        self._token_env = "" if drills is None else drills.token_env
        token = environ.get(self._token_env, "").strip() if self._token_env else ""
        self._digest = sha256(token.encode()).digest() if token else b""

    def asked(self, headers: Mapping[bytes, bytes]) -> bool | ApiError:
        """
        Whether a request is a drill.

        Returns:
            False for a user's request; an error for a drill whose sender may not, or of an unknown kind.
        """
        kind = headers.get(DRILL_HEADER)
        if kind is None:
            return False
        if not self._digest:
            why = f"{self._token_env} is empty" if self._token_env else "router.yaml has no `drills`"
            return _refused(f"This router takes no drills: {why}.", "drills_disabled")
        # Digests have one length, so that the time of the comparison tells nothing of the token's either.
        if not compare_digest(sha256(headers.get(TOKEN_HEADER, b"")).digest(), self._digest):
            return _refused(f"A drill needs the router's token in the header {TOKEN_HEADER.decode()}.", "drill_token_wrong")
        if kind != FALLBACK:
            message = f"Unknown drill {kind.decode('latin-1')[:64]!r}; this router knows {FALLBACK.decode()!r}."
            return ApiError(status=400, message=message, code="drill_unknown", retryable=False)
        return True


def _refused(message: str, code: str) -> ApiError:
    return ApiError(status=403, message=message, code=code, retryable=False)
