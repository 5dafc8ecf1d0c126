"""
The data plane: an OpenAI-compatible model router that obeys flags.

One request passes in this direction, and nothing calls back:

    app          HTTP: bytes to a Request, a Reply to bytes
    engine       a request through its attempts: plan, fallbacks
    selection    pure: route, unit, flag -> the models to try
    caps         pure: what a request brings and asks for, and whether a model can take it
    options, choose, reasoning  what a request says about its own routing, and who is best then
    environment  flags from environment variables, for a router without a controller
    drills       which requests are synthetic failures, and who may send them
    mirror       copies to the candidate, whose answers no user sees
    pairs, sinks both answers of a mirrored request, and where they go
    client, answers, client_errors   the same in the application's own process: ``from router import Router``
    caller       one attempt, from the gate before its model to its place in the books
    admission    that gate: breaker and limits (both pure), and who waits
    attempt      the call itself: its outcome, tokens and times
    dialect, chat, responses, embeddings  how an answer of each endpoint is judged, and its stream read
    connections  to the providers, kept open between calls
    booking      the books of each attempt
    budget       what an environment may spend in a day
    shared, workers  several processes: what they count together, and who starts and watches them
    exchange, tracing, conventions, collector  who watches: overhead, spans, their names, and where they go
    redact       what looks like somebody's, taken out of logs and error texts
    request, outcome, sse, usage, errors, metrics, flags, config, logs: what these stand on

Its one rule: no database, no Prefect, nothing of the controller. Whatever happens to the control plane, requests are answered.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.client import AsyncRouter, AsyncStream, Router, Stream
    from router.client_errors import (
        APIError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        ConflictError,
        InternalServerError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RouterError,
        UnprocessableEntityError,
    )

__all__ = [
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncRouter",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "ConflictError",
    "InternalServerError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "Router",
    "RouterError",
    "Stream",
    "UnprocessableEntityError",
]


def __getattr__(name: str) -> Any:
    # Looked for when asked for: the whole router takes a while to import, and most modules here need little of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from router import client, client_errors

    return getattr(client if hasattr(client, name) else client_errors, name)
