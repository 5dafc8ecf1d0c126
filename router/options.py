"""
What a request may say about how it is routed: the body's ``penstock`` object, or headers ``x-penstock-*``.

Its one rule: the providers never see any of it, and what is misspelt is refused: a cost limit that nobody obeys is worse than none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from router.errors import ApiError

KEY = "penstock"

Goal = Literal["quality", "speed", "cost"]
Effort = Literal["off", "minimal", "low", "medium", "high", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    Args:
        optimize_for: The best of the models that may answer, by what is known of them now.
        preferred_model: Asked first.
        fallback_models: In place of the route's own.
        max_cost_usd: What the request may cost at most on one model.
        effort: How much a model reasons.
        deadline_s: Until when it is answered at all, in seconds; never later than the router's own deadline.
    """

    optimize_for: Goal | None = None
    preferred_model: str | None = None
    fallback_models: tuple[str, ...] | None = None
    max_cost_usd: float | None = None
    effort: Effort | None = None
    deadline_s: float | None = None

    @property
    def models(self) -> dict[str, tuple[str, ...]]:
        """The models it names, by the option that names them."""
        preferred = () if self.preferred_model is None else (self.preferred_model,)
        return {"preferred_model": preferred, "fallback_models": self.fallback_models or ()}


NO_OPTIONS = Options()


def read_options(body: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> Options | ApiError:
    """What the request says; of an option that stands in both, the body's counts."""
    said: dict[str, Any] = {}
    for name, option in _HEADERS.items():
        if (value := headers.get(name)) is not None:
            said[option] = value.decode("latin-1").strip()
    given = body.get(KEY)
    if given is None and not said:
        return NO_OPTIONS
    if given is not None:
        if not isinstance(given, dict):
            return _wrong(None, "an object")
        if unknown := [str(name) for name in given if name not in _READ]:
            known = ", ".join(sorted(_READ))
            message = f"Unknown option '{KEY}.{unknown[0][:64]}' (known: {known})."
            return ApiError(status=400, message=message, param=f"{KEY}.{unknown[0][:64]}", code="unknown_option")
        said |= {name: value for name, value in given.items() if value is not None}
    read: dict[str, Any] = {}
    for option, value in said.items():
        field, reader, expected = _READ[option]
        try:
            read[field] = reader(value)
        except (ValueError, TypeError, OverflowError):
            return _wrong(option, expected)
    mode = read.pop("mode", None)
    if mode == "off":
        read["effort"] = "off"
    elif mode == "on" and read.get("effort") in (None, "off"):
        read["effort"] = "medium"
    return Options(**read)


def _one_of(kinds: Any) -> Callable[[Any], str]:
    known = get_args(kinds)

    def read(value: Any) -> str:
        if value not in known:
            raise ValueError(value)
        return str(value)

    return read


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list):
        raise ValueError(value)
    return tuple(dict.fromkeys(_name(name) for name in names if name != ""))


def _above_zero(value: Any) -> float:
    if isinstance(value, str):
        value = value.strip().removesuffix("USD").removesuffix("s").strip()
    number = float(value)
    if isinstance(value, bool) or not 0 < number < 1e9:
        raise ValueError(value)
    return number


_READ: Mapping[str, tuple[str, Callable[[Any], Any], str]] = {
    "optimize_for": ("optimize_for", _one_of(Goal), "quality, speed or cost"),
    "preferred_model": ("preferred_model", _name, "a model's name"),
    "fallback_models": ("fallback_models", _names, "a list of models' names"),
    "max_cost_per_request": ("max_cost_usd", _above_zero, "an amount in USD above 0"),
    "reasoning_effort": ("effort", _one_of(Effort), "off, minimal, low, medium, high or max"),
    "reasoning_mode": ("mode", _one_of(Literal["on", "off"]), "on or off"),
    "deadline": ("deadline_s", _above_zero, "seconds above 0"),
}
"""Option to its field, what reads it, and what it should have been."""

_HEADERS = {f"x-penstock-{option.replace('_', '-')}".encode(): option for option in _READ}


def _wrong(option: str | None, expected: str) -> ApiError:
    param = KEY if option is None else f"{KEY}.{option}"
    return ApiError(status=400, message=f"Invalid value for '{param}': expected {expected}.", param=param, code="invalid_option")
