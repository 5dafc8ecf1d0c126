"""
Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}`` and a status.

Its one rule: a client learns what it can do about it, and nothing of keys, prompts or tracebacks.
"""

from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiError:
    """
    One answer that is an error.

    Args:
        status: HTTP status.
        message: For a person.
        type: OpenAI's classes: ``invalid_request_error``, ``rate_limit_error``, ``server_error``, ``timeout_error``.
        param: The field at fault.
        code: For a program.
        retry_after: Value of the header of that name, as the provider sent it.
        retryable: False tells OpenAI's SDK not to retry by itself: the router has already tried everybody.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after: str | None = None
    retryable: bool = True

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def event(self) -> bytes:
        """The same as a server-sent event, for a stream that has already begun."""
        return b"data: " + self.body() + b"\n\n"


def model_not_found(model: str) -> ApiError:
    # The name is the client's own text: shown back, but not at any length.
    shown = model if len(model) <= 128 else model[:125] + "..."
    message = f"The model `{shown}` does not exist or you do not have access to it."
    return ApiError(status=404, message=message, param="model", code="model_not_found")


def wrong_type(param: str, expected: str) -> ApiError:
    return ApiError(status=400, message=f"Invalid type for '{param}': expected {expected}.", param=param, code="invalid_type")


def missing(param: str) -> ApiError:
    message = f"Missing required parameter: '{param}'."
    return ApiError(status=400, message=message, param=param, code="missing_required_parameter")
