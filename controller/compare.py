"""
Two plans side by side: what differs, in the words of the people who wrote them.

It stands beside `describe`. Its one rule: order is no difference. Gates, phases and freezes are told apart by their names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controller.codec import plan_to_json
from controller.core.gates import pct
from controller.core.plan import Plan
from controller.core.rollout import Opened, Rollout
from controller.ports import Ports, UnknownRollout
from controller.standing import standing
from specfile import format_duration, parse_duration

LOOKED_AT = 500
"""Latest rollouts among which the one before is looked for."""

_SHARES = frozenset({"limit", "max_increase", "tolerance", "confidence"})
"""Values that people write in percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A value that differs: where it is (``gates[errors].limit``), and what it was and is, "" where it was or is not there."""

    path: str
    before: str
    after: str


def differences(before: Plan, after: Plan) -> tuple[Difference, ...]:
    """
    Returns:
        In the order of `before`; what is new comes after what was there beside it. A gate or phase that one side lacks is one difference.
    """
    return tuple(_between("", plan_to_json(before), plan_to_json(after)))


def last_of(flag: str, environment: str, ports: Ports, *, before: str | None = None) -> Rollout | None:
    """
    The latest rollout of a flag.

    Args:
        flag, environment: Whose.
        ports: The log.
        before: Not this one, and none that began after it.

    Returns:
        None where there is none among the latest `LOOKED_AT`.
    """
    ids = list(ports.index.known(LOOKED_AT))
    for rollout_id in ids if before is None else ids[ids.index(before) + 1 :] if before in ids else []:
        try:
            first = ports.audit.entry(rollout_id, 1).event
        except UnknownRollout:
            continue
        if isinstance(first, Opened) and (first.plan.flag, first.plan.environment) == (flag, environment):
            return standing(rollout_id, ports.audit, ports.standings)
    return None


def _between(path: str, one: Any, two: Any) -> Iterator[Difference]:
    match one, two:
        case Mapping(), Mapping():
            for key in (*one, *(k for k in two if k not in one)):
                yield from _between(f"{path}.{key}" if path else str(key), one.get(key), two.get(key))
        case list(), list() if any(isinstance(member, Mapping) for member in (*one, *two)):
            ours, theirs = _named(one), _named(two)
            for name in (*ours, *(n for n in theirs if n not in ours)):
                if name in ours and name in theirs:
                    yield from _between(f"{path}[{name}]", ours[name], theirs[name])
                else:
                    yield Difference(path=f"{path}[{name}]", before=_whole(ours.get(name)), after=_whole(theirs.get(name)))
        case _ if one != two:
            name = path.rpartition(".")[2]
            yield Difference(path=path, before=_text(name, one), after=_text(name, two))


def _named(members: list[Any]) -> dict[str, Any]:
    return {str(m["name"]) if isinstance(m, Mapping) and "name" in m else str(i): m for i, m in enumerate(members)}


def _whole(member: Any) -> str:
    """A gate or a phase on one line: what it says beside its name, without what it leaves open."""
    if not isinstance(member, Mapping):
        return _text("", member)
    told = {k: v for k, v in member.items() if k != "name" and v not in (None, {}, [], "")}
    return ", ".join(f"{k} {_text(k, v)}" for k, v in told.items())


def _text(name: str, value: Any) -> str:
    match value:
        case None:
            return ""
        case int() if name in ("weight", "shadow_weight"):
            return f"{value / 1000:g}%"
        case float() if name in _SHARES:
            return pct(value)
        case float() if name.endswith("_s"):
            return f"{value:g}s"
        case Mapping():
            return " ".join(f"{k}={_text(k, v)}" for k, v in value.items())
        case list():
            return ", ".join(str(v) for v in value)
        case str() if value[:1] == "P":
            try:
                return format_duration(parse_duration(value))
            except ValueError:
                return value
        case _:
            return str(value)
