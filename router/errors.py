"""
Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}`` and a status.

Its one rule: a client learns what it can do about it, and nothing of keys, prompts or tracebacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from router.outcome import Failed


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

    def fields(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        return orjson.dumps({"error": self.fields()})


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


def input_too_long(tokens: int, limit: int) -> ApiError:
    message = f"The request has about {tokens} tokens of input; this router takes {limit}."
    return ApiError(status=400, message=message, param="messages", code="input_tokens_exceeded", retryable=False)


def nobody_answered(failures: Sequence[tuple[str, Failed]]) -> ApiError:
    """
    The answer when every attempt failed: what kind of failure it was, and who was tried.

    Args:
        failures: Model and failure, in the order of the attempts; at least one.
    """
    message = f"No model answered ({'; '.join(f'{model}: {failed.detail}' for model, failed in failures)})."
    # Who was asked says more about what is wrong than who was not.
    asked = [failed for _, failed in failures if not failed.unasked]
    last = asked[-1] if asked else max((failed for _, failed in failures), key=_promise)
    match last:
        case Failed(unasked="unfit"):
            return ApiError(status=400, message=message, param="messages", code="context_length_exceeded", retryable=False)
        case Failed(unasked="unable"):
            return ApiError(status=400, message=message, code="unsupported", retryable=False)
        case Failed(unasked="cost"):
            return ApiError(status=400, message=message, code="cost_limit_exceeded", retryable=False)
        case Failed(unasked="breaker"):
            return ApiError(status=503, message=message, type="server_error", code="breaker_open", retry_after=last.retry_after)
        case Failed(outcome="timeout"):
            return ApiError(status=504, message=message, type="timeout_error", code="timeout", retryable=False)
        case Failed(outcome="rate_limited"):
            kind, code = "rate_limit_error", "rate_limit_exceeded"
            return ApiError(status=429, message=message, type=kind, code=code, retry_after=last.retry_after)
        case _:
            return ApiError(status=502, message=message, type="server_error", code="upstream_error", retryable=False)


def broken_off(model: str, failed: Failed) -> ApiError:
    """For a stream that had begun."""
    message = f"The answer of {model} broke off: {failed.detail}."
    return ApiError(status=502, message=message, type="server_error", code=f"stream_{failed.outcome}")


def _promise(failed: Failed) -> tuple[int, float]:
    """Of failures without a call: the one that soonest lets a client come back."""
    order = ("deadline", "unable", "cost", "unfit", "breaker", "limit")
    return order.index(failed.unasked or "deadline"), -float(failed.retry_after or 0)
