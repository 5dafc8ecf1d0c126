"""
What looks like somebody's, taken out of texts that people or programs will keep: log lines and error messages.

    Redactor(spec).text("mail a@b.example")  ->  "mail [email]"

Its one rule: a text is replaced, never refused. It is the second line of defence: prompts, completions, keys and header values are not
logged at all (`logs`); what other people's error texts quote of them is what this is for.
"""

import importlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from router import config

DEPTH_MAX = 50

_SEPARATED = r"[ .-]"

PATTERNS: Mapping[str, re.Pattern[str]] = {
    "api_key": re.compile(
        r"""\b(?:sk|pk|rk)-[A-Za-z0-9_-]{12,}            # OpenAI, Anthropic, OpenRouter, Stripe
        | \b(?:gh[pousr]|github_pat|glpat|gsk|hf|xai)[_-][A-Za-z0-9_-]{16,}
        | \bxox[abeprs]-[A-Za-z0-9-]{10,}                # Slack
        | \bA(?:KIA|SIA)[0-9A-Z]{16}\b                   # AWS
        | \bAIza[0-9A-Za-z_-]{30,}                       # Google
        | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*   # a JSON web token
        | (?<=\bBearer\ )[A-Za-z0-9._~+/=-]{8,}
        """,
        re.VERBOSE,
    ),
    "email": re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"),
    "card": re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"),
    "ip": re.compile(
        r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)|(?<![\w:.])[0-9A-Fa-f:]{2,39}(?:\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])"
    ),
    "phone": re.compile(
        rf"""(?<![\w.+-])(?:
          \+\d(?:{_SEPARATED}?\(?\d\)?){{7,14}}                             # +49 30 123456
        | \(\d{{2,5}}\)\ ?\d(?:{_SEPARATED}?\d){{4,9}}                        # (030) 123456
        | \d{{3}}{_SEPARATED}\d{{3}}{_SEPARATED}\d{{4}}                        # 555-123-4567
        | 0\d{{1,4}}[ /-]\d(?:[ -]?\d){{4,9}}                               # 030 123456
        )(?![\w-])""",
        re.VERBOSE,
    ),
}
"""In the order in which they are looked for: a key is taken out before a number in it looks like a phone's."""


def luhn(digits: str) -> bool:
    """
    Whether the check digit of a card number is right.

    Source:
        ISO/IEC 7812-1, annex B.
    """
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + i % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _card(found: str) -> bool:
    return luhn(re.sub(r"[ -]", "", found))


def _ip(found: str) -> bool:
    try:
        ipaddress.ip_address(found)
    except ValueError:
        return False
    return True


_CHECKS: Mapping[str, Callable[[str], bool]] = {"card": _card, "ip": _ip}


UNREADABLE = "[unredactable]"
"""In place of a text that somebody else's code has failed on: what it may hold nobody knows."""


class Redactor:
    """
    Args:
        spec: From router.yaml.

    Raises:
        ValueError: what it names beside the built-in patterns is not there.
    """

    def __init__(self, spec: config.Redact) -> None:
        custom = {name: re.compile(pattern) for name, pattern in spec.custom.items()}
        self._more = list(_more(spec))
        self._patterns = [*custom.items(), *((name, p) for name, p in PATTERNS.items() if name in spec.patterns)]

    def text(self, text: str) -> str:
        for name, pattern in self._patterns:
            check = _CHECKS.get(name)
            if check is None:
                text = pattern.sub(f"[{name}]", text)
            else:
                text = pattern.sub(lambda m, name=name, check=check: f"[{name}]" if check(m[0]) else m[0], text)  # type: ignore[misc]
        for more in self._more:
            try:
                text = more(text)
            except Exception:
                return UNREADABLE
            if not isinstance(text, str):
                return UNREADABLE
        return text

    def tree(self, value: Any, depth: int = 0) -> Any:
        """All texts in lists and mappings; keys stay, and what lies deeper than anybody looks goes."""
        match value:
            case str():
                return self.text(value)
            case list() | tuple() | Mapping() if depth > DEPTH_MAX:
                return "[deep]"
            case list() | tuple():
                return [self.tree(one, depth + 1) for one in value]
            case Mapping():
                return {name: self.tree(one, depth + 1) for name, one in value.items()}
            case _:
                return value

    def json(self, body: bytes) -> bytes:
        """A JSON text that somebody else has written."""
        return orjson.dumps(self.tree(orjson.loads(body)))


def _more(spec: config.Redact) -> Iterator[Callable[[str], Any]]:
    """What looks after the built-in patterns."""
    if spec.engine == "presidio":
        from router.presidio import recognisers

        yield recognisers(tuple(spec.countries), spec.score)
    if spec.use is not None:
        module, _, name = spec.use.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as exc:
            raise ValueError(f"redact.use: {spec.use!r} cannot be imported: {exc}") from exc
        if not callable(found):
            raise ValueError(f"redact.use: {spec.use!r} is no function")
        yield found
