"""
How a simulated model behaves, as values: the vocabulary of scenario files, the control endpoint and tests.

Its one rule: a behaviour is checked when it is made, and a wrong field is refused by its path, so that a game day never runs on a
misspelt scenario.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import isfinite
from typing import Any, TypeVar

_T = TypeVar("_T")


class BehaviourError(ValueError):
    """
    A behaviour that makes no sense.

    Args:
        path: Keys from the model down to the value that is wrong.
        problem: What is wrong with it.
    """

    def __init__(self, path: tuple[str | int, ...], problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{'.'.join(str(p) for p in path)}: {problem}" if path else problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A log-normal time: half of the draws lie below `median_s`; `sigma` is the deviation of its logarithm (0: constant)."""

    median_s: float = 0.3
    sigma: float = 0.3

    def __post_init__(self) -> None:
        _not_negative(self, "median_s", "sigma")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTokens:
    """A log-normal number of answer tokens, for requests that do not set one."""

    median: float = 120.0
    sigma: float = 0.5

    def __post_init__(self) -> None:
        _not_negative(self, "median", "sigma")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """A share `frac` of the requests takes `mult` times as long."""

    frac: float = 0.0
    mult: float = 1.0

    def __post_init__(self) -> None:
        _not_negative(self, "frac", "mult")
        if self.frac > 1:
            raise BehaviourError(("frac",), f"{self.frac:g} is over 1; a share lies in 0..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """
    Shares of the requests that fail, each 0..1 and together at most 1.

    Args:
        rate_limited: 429 with `Retry-After`.
        server_error: 500 with OpenAI's error object.
        timeout: No answer at all; the connection is held for `hang_s`, then closed.
        reset: The connection is reset (RST) after the latency, before any answer.
        cut: The answer stops in the middle: no `finish_reason`, no `[DONE]`, the connection is closed.
        garbage: Status 200 with a body that is not an answer.
        retry_after_s: What `Retry-After` says (whole seconds).
        hang_s: How long a `timeout` holds the connection.
    """

    rate_limited: float = 0.0
    server_error: float = 0.0
    timeout: float = 0.0
    reset: float = 0.0
    cut: float = 0.0
    garbage: float = 0.0
    retry_after_s: int = 1
    hang_s: float = 600.0

    def __post_init__(self) -> None:
        _not_negative(self, "rate_limited", "server_error", "timeout", "reset", "cut", "garbage", "retry_after_s", "hang_s")
        total = self.rate_limited + self.server_error + self.timeout + self.reset + self.cut + self.garbage
        if total > 1 + 1e-9:
            raise BehaviourError((), f"the shares of failing requests add up to {total:g}; at most 1 can fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """
    A scripted change: `set` is merged into the behaviour once, when the first of its conditions holds.

    Args:
        set: Part of a behaviour, in the shape of a scenario file.
        at_s: Seconds since the simulator started.
        after_requests: Requests that this model has had.
    """

    set: Mapping[str, Any]
    at_s: float | None = None
    after_requests: int | None = None

    def __post_init__(self) -> None:
        if (self.at_s is None) == (self.after_requests is None):
            raise BehaviourError((), "a change needs either at_s or after_requests")
        _not_negative(self, *(n for n in ("at_s", "after_requests") if getattr(self, n) is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBehaviour:
    """
    What one model does.

    Args:
        ttft: Time to the first token.
        tokens_per_s: Speed after the first token.
        output_tokens: Length of answers, when the request does not say.
        follow_max_tokens: A request whose `max_tokens` is at most this gets exactly so many tokens (which is how a trace is
            replayed); a larger one is only a limit, because clients send the model's maximum.
        latency_mult: Multiplies every time; 1.6 is 60% slower.
        tail: Requests that take much longer.
        errors: Requests that fail.
        tool_calls: Share of requests offering `tools` that are answered by a tool call.
        changes: Scripted changes, applied in the order in which they fall due.
    """

    ttft: Latency = field(default_factory=Latency)
    tokens_per_s: float = 80.0
    output_tokens: OutputTokens = field(default_factory=OutputTokens)
    follow_max_tokens: int = 2048
    latency_mult: float = 1.0
    tail: Tail = field(default_factory=Tail)
    errors: Errors = field(default_factory=Errors)
    tool_calls: float = 1.0
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        _not_negative(self, "tokens_per_s", "follow_max_tokens", "latency_mult", "tool_calls")
        if self.tokens_per_s == 0:
            raise BehaviourError(("tokens_per_s",), "0 would never end; use errors.timeout for a model that hangs")
        if self.tool_calls > 1:
            raise BehaviourError(("tool_calls",), f"{self.tool_calls:g} is over 1; a share lies in 0..1")
        for i, change in enumerate(self.changes):
            try:  # a scripted change that cannot be applied must fail now, not in the middle of the game day
                updated(self if not self.changes else replace(self, changes=()), change.set)
            except BehaviourError as exc:
                raise BehaviourError(("changes", i, "set", *exc.path), exc.problem) from None


def updated(behaviour: ModelBehaviour, patch: Mapping[str, Any]) -> ModelBehaviour:
    """
    The behaviour with a part of it replaced.

    Args:
        behaviour: What holds now.
        patch: Part of a behaviour in the shape of a scenario file: nested objects are merged, numbers replaced; shares may
            be written as `2%`.

    Raises:
        BehaviourError: an unknown field, a value of the wrong kind, or a result that makes no sense.
    """
    return _merged(behaviour, patch)


def behaviour_to_json(behaviour: ModelBehaviour) -> dict[str, Any]:
    """The behaviour in the shape of a scenario file, every field written out."""
    plain: dict[str, Any] = _plain(behaviour)
    return plain


def _merged(value: _T, patch: Mapping[str, Any]) -> _T:
    if not isinstance(patch, Mapping):
        raise BehaviourError((), f"expected an object, got {patch!r}")
    assert is_dataclass(value) and not isinstance(value, type)
    known = {f.name for f in fields(value)}
    new: dict[str, Any] = {}
    for key, given in patch.items():
        if key not in known:
            raise BehaviourError((key,), f"unknown field; known: {', '.join(sorted(known))}")
        try:
            new[key] = _converted(getattr(value, key), given, key)
        except BehaviourError as exc:
            raise BehaviourError((key, *exc.path), exc.problem) from None
    return replace(value, **new)


def _converted(old: Any, given: Any, key: str) -> Any:
    if key == "changes":
        if not isinstance(given, list | tuple):
            raise BehaviourError((), f"expected a list, got {given!r}")
        return tuple(_change(c, i) for i, c in enumerate(given))
    if is_dataclass(old):
        return _merged(old, given)
    return _number(given, whole=isinstance(old, int))


def _change(given: Any, index: int) -> Change:
    if isinstance(given, Change):
        return given
    if not isinstance(given, Mapping):
        raise BehaviourError((index,), f"expected an object, got {given!r}")
    if unknown := set(given) - {"at_s", "after_requests", "set"}:
        raise BehaviourError((index, min(unknown)), "unknown field; known: after_requests, at_s, set")
    if not isinstance(given.get("set"), Mapping):
        raise BehaviourError((index,), "a change needs `set`, an object")
    if "changes" in given["set"]:
        raise BehaviourError((index, "set", "changes"), "a change cannot script further changes")
    at_s, after = given.get("at_s"), given.get("after_requests")
    try:
        return Change(
            set=given["set"],
            at_s=None if at_s is None else float(_number(at_s, whole=False)),
            after_requests=None if after is None else int(_number(after, whole=True)),
        )
    except BehaviourError as exc:
        raise BehaviourError((index, *exc.path), exc.problem) from None


def _number(given: Any, *, whole: bool) -> float | int:
    if isinstance(given, str) and given.endswith("%") and not whole:
        try:
            return float(given[:-1]) / 100
        except ValueError:
            raise BehaviourError((), f"{given!r} is not a percentage") from None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise BehaviourError((), f"expected a number, got {given!r}")
    if not whole:
        return float(given)
    if given != int(given):
        raise BehaviourError((), f"expected a whole number, got {given!r}")
    return int(given)


def _not_negative(value: Any, *names: str) -> None:
    for name in names:
        number = getattr(value, name)
        if not isfinite(number) or number < 0:
            raise BehaviourError((name,), f"{number:g} is not a finite number of at least 0")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) is not None}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return dict(value) if isinstance(value, Mapping) else value
