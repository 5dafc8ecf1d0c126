"""
Which questions can be asked, and how they read in PromQL: a metric profile, loaded from `profiles/<name>.toml`.

It stands between a gate and the server: names go in, PromQL comes out. Its one rule: no text of a user reaches PromQL unchecked.
Names must look like names, values are escaped, and a filter is an exact match, never a regular expression.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

from controller.ports import Scope

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
ARMS = ("candidate", "shadow")
BASELINE = "baseline"

VALUE_MAX = 256
"""Characters in a filter's value; longer ones are no label value of ours and would only bloat the address of the request."""

RESERVED = frozenset({"environment", "flag", "arm", "le", "__name__"})
PLACEHOLDERS = frozenset({"flag", "arms", "where", "window"})

QUERIES = frozenset(
    {"fresh", "requests", "unavailable", "latency", "ttft", "cost_per_request", "fallbacks", "firing_alerts", "exposure"}
)
"""What the source asks; a profile answers all of it."""


class ProfileError(ValueError):
    """There is no such profile, or its file is not one; names the profile and the part."""


class NotAskable(ValueError):
    """A question whose names or filters cannot be put into PromQL; names the part and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A PromQL template and the labels that a filter must leave alone."""

    template: Template
    reserved: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """
    Args:
        name: As in ``metrics.profile``.
        queries: One for each of `QUERIES`.
        ignored: Outcomes that no ratio counts.
        bad: Outcomes that a ratio counts as bad, by indicator.
    """

    name: str
    queries: Mapping[str, Query]
    ignored: frozenset[str]
    bad: Mapping[str, frozenset[str]]

    def promql(self, query: str, scope: Scope, *, window_ms: int = 0, where: Mapping[str, str] | None = None) -> str:
        """
        One question in PromQL.

        Args:
            query: One of `QUERIES`.
            scope: Whose traffic.
            window_ms: Length of the window that ends at the evaluation time, in milliseconds; without meaning where the query has none.
            where: Labels and the exact values they must have.

        Raises:
            NotAskable: a name is not one, or the filter names a label that is not its own.
        """
        asked = self.queries[query]
        return asked.template.substitute(
            flag=f'environment="{_name("environment", scope.environment)}",flag="{_name("flag", scope.flag)}"',
            arms=f'arm=~"{BASELINE}|{_arm(scope.arm)}"',
            where=_filter(where or {}, asked.reserved),
            window=duration(window_ms),
        )


def load_profile(name: str) -> Profile:
    """
    Raises:
        ProfileError: no profile has this name.
    """
    known = sorted(p.name.removesuffix(".toml") for p in _folder().iterdir() if p.name.endswith(".toml"))
    if name not in known:
        raise ProfileError(f"metrics.profile: there is no profile {name!r}; known: {', '.join(known)}")
    return parse_profile(_folder().joinpath(f"{name}.toml").read_text(encoding="utf-8"), name)


def parse_profile(text: str, name: str) -> Profile:
    """
    Args:
        text: TOML, as in `profiles/router.toml`.
        name: Whom to name in errors.

    Raises:
        ProfileError: it is not a profile.
    """
    try:
        data = tomllib.loads(text)
        queries = {key: _query(name, key, table) for key, table in data["queries"].items()}
        outcomes = {key: frozenset(values) for key, values in data["outcomes"].items()}
        profile = Profile(name=data["name"], queries=queries, ignored=outcomes.pop("ignored"), bad=outcomes)
    except (tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError) as exc:
        raise ProfileError(f"profile {name!r}: not a profile: {exc!r}") from exc
    if missing := QUERIES - queries.keys():
        raise ProfileError(f"profile {name!r}: no query for {', '.join(sorted(missing))}")
    if absent := {"error_ratio", "timeout_ratio"} - outcomes.keys():
        raise ProfileError(f"profile {name!r}: no outcomes for {', '.join(sorted(absent))}")
    return profile


def duration(ms: int) -> str:
    """A length of time as PromQL writes it: whole seconds as ``60s``, anything else as ``1500ms``."""
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def escape(value: str) -> str:
    """A value within the double quotes of PromQL."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _folder() -> Any:
    return resources.files("controller.adapters.prometheus") / "profiles"


def _query(profile: str, key: str, table: Mapping[str, Any]) -> Query:
    template = Template(" ".join(line.strip() for line in table["promql"].strip().splitlines()))
    if not template.is_valid() or not set(template.get_identifiers()) <= PLACEHOLDERS:
        raise ProfileError(f"profile {profile!r}: query {key!r} has a placeholder other than {', '.join(sorted(PLACEHOLDERS))}")
    return Query(template=template, reserved=RESERVED | frozenset(table.get("reserved", ())))


def _name(what: str, value: str) -> str:
    if not NAME.fullmatch(value):
        raise NotAskable(f"{what}: {value[:80]!r} is not a name (small letters, digits and . _ -, at most 63)")
    return value


def _arm(value: str) -> str:
    if value not in ARMS:
        raise NotAskable(f"arm: {value[:80]!r} is neither {' nor '.join(ARMS)}")
    return value


def _filter(where: Mapping[str, str], reserved: frozenset[str]) -> str:
    parts = []
    for label, value in sorted(where.items()):
        if not LABEL.fullmatch(label):
            raise NotAskable(f"where: {label[:80]!r} is not the name of a label")
        if label in reserved:
            raise NotAskable(f"where: the label {label!r} is set by the query itself")
        if len(value) > VALUE_MAX or not value.isprintable():
            raise NotAskable(
                f"where: the value of {label!r} is longer than {VALUE_MAX} characters or not printable: {value[:80]!r}"
            )
        parts.append(f',{label}="{escape(value)}"')
    return "".join(parts)
