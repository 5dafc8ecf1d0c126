"""
How an attempt can end, as values that everything after the network shares.

Its one rule: a failure says what became of the call, never what was in it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Outcome = Literal["ok", "error", "timeout", "rate_limited", "client_error", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Unasked = Literal["breaker", "limit", "unfit", "unable", "cost", "deadline"]
"""Why a model was passed over without a call."""

CLIENT_FAULTS = frozenset({400, 413, 422})
"""Statuses by which a provider says that the request itself is at fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """
    An attempt that brought no usable answer.

    Args:
        detail: For logs and for the client's error message: no content, no key.
        status: The provider's, if it answered.
        body: What the provider says about the client's own fault, in OpenAI's shape.
        retry_after: Value of the header of that name: the provider's, or the router's own estimate.
        unasked: The model was not called, and why not.
    """

    outcome: Outcome
    detail: str
    status: int | None = None
    body: bytes | None = None
    retry_after: str | None = None
    unasked: Unasked | None = None
