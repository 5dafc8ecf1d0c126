"""
A request and its answer, as everything between HTTP and the providers sees them.

Its one rule: neither is changed on its way; what differs from model to model is made anew for each attempt.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.caps import Weight
from router.errors import ApiError
from router.options import NO_OPTIONS, Options

if TYPE_CHECKING:
    from router.booking import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    One request, already checked for its types.

    Args:
        body: As the client sent it; never changed.
        size: Of the body as sent, in bytes.
        weight: What it brings and asks for.
        stream: Whether the client asked for events.
        request_id: Goes upstream as ``x-request-id``.
        unit_header: The header ``x-penstock-unit``.
        authorization: The header of that name.
        options: What it says about how it is routed.
        drill: A synthetic request: the candidate fails without being asked.
        retry: The client's library sends it again by itself, after an answer or none.
    """

    body: Mapping[str, Any]
    size: int
    weight: Weight
    stream: bool
    request_id: str
    unit_header: str | None = None
    authorization: str | None = None
    options: Options = NO_OPTIONS
    drill: bool = False
    retry: bool = False

    @property
    def client(self) -> str:
        """Whose turn it is where requests wait: the user, then the unit, then the key."""
        return self.body.get("user") or self.unit_header or self.authorization or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """
    What the client gets: `body`, or `events` when it asked for a stream and one began, or `error`.

    Args:
        model: Who answered; "" if nobody did.
        arm: Whose result this request is.
        fallback: True when another than the assigned model answered.
        events: Must be closed (``aclosing``), read to the end or not.
        drill: It answers a drill that took place.
        attempt: The one that answered; its books are closed with the answer's last byte.
    """

    status: int
    model: str
    arm: str
    fallback: bool
    body: bytes = b""
    events: AsyncGenerator[bytes, None] | None = None
    error: ApiError | None = None
    drill: bool = False
    attempt: "Attempt | None" = None
