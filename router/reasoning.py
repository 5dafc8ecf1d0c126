"""
How much a model reasons, in the words of whoever serves it.

Providers ask for the same thing in different fields, and refuse each other's. A model's `reasoning` in router.yaml says which it knows.

| effort    | openai             | gemini | openrouter         | anthropic: thinking, budget in tokens | none |
|-----------|--------------------|--------|--------------------|---------------------------------------|------|
| off       | minimal            | none   | enabled: false     | disabled                              |      |
| minimal   | minimal            | low    | minimal            | 1024                                  |      |
| low       | low                | low    | low                | 1024                                  |      |
| medium    | medium             | medium | medium             | 8192                                  |      |
| high, max | high               | high   | high               | 24576                                 |      |

Its one rule: what a client writes itself, in a field that its model knows, goes through untouched.
"""

from collections.abc import Mapping
from typing import Any, Literal

from router.options import Effort

Style = Literal["openai", "gemini", "openrouter", "anthropic", "none"]

_OPENAI: Mapping[Effort, str] = {
    "off": "minimal", "minimal": "minimal", "low": "low", "medium": "medium", "high": "high", "max": "high",
}  # fmt: skip
_GEMINI: Mapping[Effort, str] = {**_OPENAI, "off": "none", "minimal": "low"}

_BUDGETS: Mapping[Effort, int] = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "max": 24576}
"""Google's own translation of efforts into budgets (ai.google.dev, "OpenAI compatibility"); 1,024 is Anthropic's least."""

_LEAST = 1024

_WRITTEN: Mapping[str, Effort] = {
    "none": "off", "off": "off", "minimal": "minimal", "low": "low", "medium": "medium", "high": "high", "xhigh": "max",
    "max": "max",
}  # fmt: skip


def reasoned(body: dict[str, Any], effort: Effort | None, style: Style | None, *, responses: bool = False) -> dict[str, Any]:
    """
    Args:
        body: As it would go to the model; not changed.
        effort: What the request's options say; they come before the body's own ``reasoning_effort``.
        style: What the model knows; None for OpenAI's, and the client's own fields as they are.
        responses: Of the responses endpoint, which has OpenAI's field elsewhere.
    """
    own = style is None or style == "openai"
    if effort is None and not own:
        written = body.get("reasoning_effort")
        effort = _WRITTEN.get(written) if isinstance(written, str) else None
    if style == "none":
        return {name: value for name, value in body.items() if name not in ("reasoning_effort", "reasoning")}
    if effort is None:
        return body
    made = {name: value for name, value in body.items() if name != "reasoning_effort"}
    if style == "anthropic":
        made["thinking"] = _thinking(effort, made)
    elif style == "openrouter":
        made["reasoning"] = {"enabled": False} if effort == "off" else {"effort": _OPENAI[effort]}
    elif style == "gemini":
        made["reasoning_effort"] = _GEMINI[effort]
    elif responses:
        asked = body.get("reasoning")
        made["reasoning"] = {**(asked if isinstance(asked, dict) else {}), "effort": _OPENAI[effort]}
    else:
        made["reasoning_effort"] = _OPENAI[effort]
    return made


def _thinking(effort: Effort, body: Mapping[str, Any]) -> dict[str, Any]:
    """The budget is a part of the answer's limit and must be below it."""
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    budget = min([_BUDGETS.get(effort, 0), *(limit - 1 for limit in limits)])
    return {"type": "enabled", "budget_tokens": budget} if budget >= _LEAST else {"type": "disabled"}
