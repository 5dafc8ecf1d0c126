"""
What the router raises in the application's own process: the classes of OpenAI's Python library, by name and by attributes.

    RouterError
      APIError                    message, code, param, type, body; alone: a stream that broke off
        APITimeoutError           the caller's own `timeout` has passed
        APIStatusError            status_code, request_id, headers
          BadRequestError 400, AuthenticationError 401, PermissionDeniedError 403, NotFoundError 404, ConflictError 409,
          UnprocessableEntityError 422, RateLimitError 429, InternalServerError 500 and above

They are not OpenAI's own, also where that library is installed: its classes hold requests and responses of its HTTP client, which there are
none of here, and what an application has to catch must not depend on what else is installed.
"""

from collections.abc import Mapping
from typing import Any


class RouterError(Exception):
    """Whatever the router raises on purpose."""


class APIError(RouterError):
    """
    Args:
        body: The answer's ``error``.
    """

    def __init__(self, message: str, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.body = body
        said = body or {}
        self.code, self.param, self.type = said.get("code"), said.get("param"), said.get("type")


class APITimeoutError(APIError):
    pass


class APIStatusError(APIError):
    """
    Args:
        headers: Of the answer, in lower case; ``retry-after`` and ``x-should-retry`` among them where there is one.
    """

    def __init__(self, message: str, body: Mapping[str, Any] | None, *, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(message, body)
        self.status_code = status
        self.headers = headers
        self.request_id = headers.get("x-request-id")


class BadRequestError(APIStatusError):
    pass


class AuthenticationError(APIStatusError):
    pass


class PermissionDeniedError(APIStatusError):
    pass


class NotFoundError(APIStatusError):
    pass


class ConflictError(APIStatusError):
    pass


class UnprocessableEntityError(APIStatusError):
    pass


class RateLimitError(APIStatusError):
    pass


class InternalServerError(APIStatusError):
    pass


_BY_STATUS: Mapping[int, type[APIStatusError]] = {
    400: BadRequestError, 401: AuthenticationError, 403: PermissionDeniedError, 404: NotFoundError, 409: ConflictError,
    422: UnprocessableEntityError, 429: RateLimitError,
}  # fmt: skip


def status_error(status: int, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> APIStatusError:
    """
    Args:
        body: The answer's ``error``, if it has one.
    """
    kind = InternalServerError if status >= 500 else _BY_STATUS.get(status, APIStatusError)
    said = (body or {}).get("message") or f"status {status}"
    return kind(str(said), body, status=status, headers=headers)
