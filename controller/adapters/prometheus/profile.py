"""
What an exporter calls its counters, and how the arms are told apart: a metric profile, loaded from `profiles/<name>.toml`.

It stands between a question and PromQL: names go in, selectors of one arm come out. Its one rule: no text of a user reaches
PromQL unchecked. Names must look like names, values are escaped, a filter is an exact match and never a regular expression, and
selectors that a person wrote are taken apart and put together anew (`selector`).
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib import resources
from string import Template
from typing import Any

from controller.core.ledger import BASELINE, CANDIDATE, PARTS
from controller.core.selector import SelectorError, Term, parse
from controller.core.traffic import REQUESTS, Kind, Question
from controller.ports import Scope

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
ARMS = ("candidate", "shadow")
_EXACT = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

VALUE_MAX = 256
"""Characters in a filter's value; longer ones are no label value of ours and would only bloat the address of the request."""

RESERVED = frozenset({"le", "__name__", "penstock"})
"""Labels that no filter may set; `penstock` is the tag that tells the series of an answer apart."""

KINDS = {
    REQUESTS: Kind.RATE,
    "error_ratio": Kind.RATE,
    "timeout_ratio": Kind.RATE,
    "availability": Kind.RATE,
    "fallback_success": Kind.RATE,
    "latency": Kind.HISTOGRAM,
    "ttft": Kind.HISTOGRAM,
    "cost_per_request": Kind.MEAN,
}
"""What a profile must have selectors for, or say why not. `fallbacks` is the one event among its indicators."""
EVENT = "fallbacks"
INDICATORS = frozenset({*KINDS, EVENT})

CUSTOM = "custom"
CUSTOM_PARTS = {"value": "amount", "weight": "count"}
"""What people call the parts of a mean."""

UNITS = {"s": 1.0, "ms": 1e-3}


class ProfileError(ValueError):
    """There is no such profile, or its file is not one; names the profile and the part."""


class NotAskable(ValueError):
    """A question whose names, filters or selectors cannot be put into PromQL, or that no exporter of this profile can answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indicator:
    """
    Args:
        parts: Selectors by part: ``bad``, ``good``, ``total``, ``amount``, ``count`` or ``buckets``. An event has ``total``.
        unit_s: Seconds in one unit of ``le``.
        late: Parts that the exporter shows no series of before the first event that they count, so that none at all means none
            happened.
    """

    parts: Mapping[str, tuple[Term, ...]]
    unit_s: float = 1.0
    late: frozenset[str] = frozenset()

    @property
    def labels(self) -> frozenset[str]:
        """Labels that the selectors themselves set."""
        return frozenset(label for terms in self.parts.values() for term in terms for label in term.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """
    One counter of one arm, as PromQL.

    Args:
        arm: ``candidate`` or ``baseline``: the side of the comparison, whatever label the arm has.
        part: As in `Indicator`.
        selector: Of its series.
        term: What it was made of.
        arm_labels: Names of the labels that tell the arm.
        arm_values: And the values they have.
        filters: Further matchers in `selector`, beside those of the arm and of the term.
    """

    arm: str
    part: str
    selector: str
    term: Term
    arm_labels: frozenset[str]
    arm_values: tuple[tuple[str, str], ...] = ()
    filters: tuple[str, ...] = ()

    def promql(self, function: str = "", window: str = "") -> str:
        """
        Its series, or a function of each over a window.

        Args:
            function: Such as ``increase``; "" for the values themselves.
            window: As PromQL writes it, with a function.
        """

        def of(selector: str) -> str:
            return f"{function}({selector}[{window}])" if function else selector

        text = "".join((of(self.selector), *(f" unless on (job, instance) {of(m)}" for m in self.term.after)))
        if self.term.factor == 1.0:
            return text
        return f"({text}) * {self.term.factor!r}" if self.term.after else f"{text} * {self.term.factor!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """
    Args:
        name: As in ``metrics.profile``.
        arm: Matchers of an arm as a template of ``$environment``, ``$flag``, ``$arm`` and ``$model``; "" if only `Scope.arms` can
            tell.
        past: Further matchers for the baseline's past; a template of ``$model``.
        indicators: By name.
        missing: Why there is none of an indicator, and what to write instead, by name.
    """

    name: str
    arm: Template
    past: Template
    indicators: Mapping[str, Indicator]
    missing: Mapping[str, str] = field(default_factory=dict)

    def of(self, question: Question, scope: Scope) -> Indicator:
        """
        What answers a question.

        Raises:
            NotAskable: nothing of this profile does; says what to write instead.
        """
        if question.indicator == CUSTOM:
            return _custom(question)
        return self.requests(scope) if question.indicator == REQUESTS else self.indicator(question.indicator)

    def requests(self, scope: Scope) -> Indicator:
        """
        What counts every request: of the plan, or else of the profile.

        Raises:
            NotAskable: neither says it.
        """
        if not scope.requests:
            return self.indicator(REQUESTS)
        try:
            return Indicator(parts={"total": parse(scope.requests)})
        except SelectorError as exc:
            raise NotAskable(f"metrics.requests: {exc}") from exc

    def indicator(self, name: str) -> Indicator:
        """
        Raises:
            NotAskable: the profile has none of this name; says what to write instead.
        """
        found = self.indicators.get(name)
        if found is None:
            raise NotAskable(
                f"the metric profile {self.name!r} has no {name}: {self.missing.get(name, 'write indicator: custom with promql')}"
            )
        return found

    def counted(self, indicator: Indicator, scope: Scope, where: Mapping[str, str], *, past: bool = False) -> tuple[Counted, ...]:
        """
        Each counter of both arms.

        Args:
            indicator: What is counted.
            scope: Whose traffic.
            where: Labels and the exact values they must have.
            past: Only the baseline, as it was before the rollout.

        Raises:
            NotAskable: a name is not one, the arms cannot be told apart, or the filter names a label that is not its own.
        """
        arms = self.arms(scope)
        found = []
        for arm, (matchers, labels) in arms.items():
            if past and arm != BASELINE:
                continue
            filters = _filter(where, RESERVED | labels | indicator.labels)
            extra = (self._past(scope) if past else "", filters)
            values = _values(matchers)
            for part, terms in indicator.parts.items():
                for term in terms:
                    found.append(
                        Counted(
                            arm=arm,
                            part=part,
                            selector=term.selector(matchers, *extra),
                            term=term,
                            arm_labels=labels,
                            arm_values=values,
                            filters=extra,
                        )
                    )
        return tuple(found)

    def arms(self, scope: Scope) -> dict[str, tuple[str, frozenset[str]]]:
        """
        Matchers of each side, and the names of their labels.

        Raises:
            NotAskable: a name is not one, or both sides have the same labels.
        """
        candidate = _arm(scope.arm)
        found = {CANDIDATE: self._arm(candidate, scope), BASELINE: self._arm(BASELINE, scope)}
        if found[CANDIDATE] == found[BASELINE]:
            raise NotAskable(
                f"metrics: the series of candidate and baseline have the same labels ({found[BASELINE][0]}) in the profile {self.name!r}; "
                "write under metrics.arms what tells them apart"
            )
        return found

    def _arm(self, arm: str, scope: Scope) -> tuple[str, frozenset[str]]:
        own = scope.arms.get(arm)
        if own is None and arm == "shadow":
            # Mirrored requests have the candidate's model, and nothing else that would tell them apart.
            own = scope.arms.get(CANDIDATE)
        if own:
            return ",".join(_match("metrics.arms", label, value) for label, value in sorted(own.items())), frozenset(own)
        names, labels = _told_by(self.arm.template)
        if not names:
            raise NotAskable(
                f"metrics.arms: the profile {self.name!r} needs the labels that tell the {arm}'s series, such as model: gpt-5"
            )
        values = {"arm": arm}
        if "environment" in names:
            values["environment"] = _name("environment", scope.environment)
        if "flag" in names:
            values["flag"] = _name("flag", scope.flag)
        if "model" in names:
            values["model"] = escape(self._model(scope, BASELINE if arm == BASELINE else CANDIDATE))
        text = self.arm.substitute(values)
        return text, labels

    def _past(self, scope: Scope) -> str:
        if BASELINE in scope.arms or not scope.models.get(BASELINE):
            return ""
        return self.past.substitute(model=escape(self._model(scope, BASELINE)))

    def _model(self, scope: Scope, arm: str) -> str:
        model = scope.models.get(arm, "")
        if not model or len(model) > VALUE_MAX or not model.isprintable():
            raise NotAskable(f"{arm}: {model[:80]!r} is no name of a model, which the profile {self.name!r} tells the arms by")
        return model


@cache
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
        indicators = {key: _indicator(name, key, table) for key, table in data.get("indicators", {}).items()}
        profile = Profile(
            name=data["name"],
            arm=_template(name, data["arm"], {"environment", "flag", "arm", "model"}),
            past=_template(name, data.get("past", ""), {"model"}),
            indicators=indicators,
            missing=dict(data.get("missing", {})),
        )
    except (tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError) as exc:
        raise ProfileError(f"profile {name!r}: not a profile: {exc!r}") from exc
    said = profile.indicators.keys() | profile.missing.keys()
    if said != INDICATORS or len(said) != len(profile.indicators) + len(profile.missing):
        odd = ", ".join(sorted((said ^ INDICATORS) | (profile.indicators.keys() & profile.missing.keys())))
        raise ProfileError(f"profile {name!r}: each indicator is either there or among the missing ones; look at {odd}")
    return profile


def selectors_of(promql: Mapping[str, str]) -> dict[str, tuple[Term, ...]]:
    """
    What a person wrote as selectors, by part; for `lint` too.

    Raises:
        NotAskable: names the part and what is wrong.
    """
    parts: dict[str, tuple[Term, ...]] = {}
    for name, text in promql.items():
        try:
            parts[CUSTOM_PARTS.get(name, name)] = parse(text)
        except SelectorError as exc:
            raise NotAskable(f"promql.{name}: {exc}") from exc
    return parts


def where_text(where: Mapping[str, str], reserved: frozenset[str] = frozenset()) -> str:
    """
    A filter as matchers of PromQL; "" for none.

    Raises:
        NotAskable: it names a label that is none or is reserved, or a value that cannot be one.
    """
    return _filter(where, RESERVED | reserved)


def duration(ms: int) -> str:
    """A length of time as PromQL writes it: whole seconds as ``60s``, anything else as ``1500ms``."""
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def escape(value: str) -> str:
    """A value within the double quotes of PromQL."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@lru_cache(maxsize=64)
def _told_by(template: str) -> tuple[frozenset[str], frozenset[str]]:
    """Placeholders and labels of an arm's matchers."""
    return frozenset(Template(template).get_identifiers()), frozenset(re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="', template))


@lru_cache(maxsize=8_192)
def _values(matchers: str) -> tuple[tuple[str, str], ...]:
    """What exact matchers ask for, by label."""
    return tuple((label, re.sub(r"\\(.)", _unescaped, value)) for label, value in _EXACT.findall(matchers))


def _unescaped(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


def _custom(question: Question) -> Indicator:
    parts = selectors_of(question.promql)
    if tuple(sorted(parts)) not in {tuple(sorted(p)) for p in PARTS[question.kind]}:
        wanted = " or ".join(" and ".join(p) for p in PARTS[question.kind])
        raise NotAskable(f"promql: a {question.kind.value} needs {wanted}, got {', '.join(sorted(question.promql)) or 'nothing'}")
    return Indicator(parts=parts)


def _folder() -> Any:
    return resources.files("controller.adapters.prometheus") / "profiles"


def _template(profile: str, text: str, known: set[str]) -> Template:
    template = Template(text)
    if not template.is_valid() or not set(template.get_identifiers()) <= known:
        raise ProfileError(f"profile {profile!r}: {text!r} has a placeholder other than {', '.join(sorted(known))}")
    return template


def _indicator(profile: str, key: str, table: Mapping[str, Any]) -> Indicator:
    kind, what = KINDS.get(key, Kind.RATE), f"profile {profile!r}: indicator {key!r}"
    texts = {part: text for part, text in table.items() if part not in ("unit", "late")}
    if tuple(sorted(texts)) not in {tuple(sorted(p)) for p in PARTS[kind]}:
        raise ProfileError(f"{what}: {', '.join(sorted(texts)) or 'nothing'} is no set of parts of a {kind.value}")
    try:
        parts = {part: _alternatives(text) for part, text in texts.items()}
        unit_s = UNITS[table.get("unit", "s")]
    except SelectorError as exc:
        raise ProfileError(f"{what}: {exc}") from exc
    return Indicator(parts=parts, unit_s=unit_s, late=frozenset(table.get("late", ())))


def _alternatives(texts: str | list[str]) -> tuple[Term, ...]:
    """Terms of a text, or of several of which each takes the place of those after it."""
    found: list[Term] = []
    for text in [texts] if isinstance(texts, str) else texts:
        before = tuple(dict.fromkeys(t.metric for t in found))
        found += [replace(term, after=before) for term in parse(text)]
    return tuple(found)


def _name(what: str, value: str) -> str:
    if not NAME.fullmatch(value):
        raise NotAskable(f"{what}: {value[:80]!r} is not a name (small letters, digits and . _ -, at most 63)")
    return value


def _arm(value: str) -> str:
    if value not in ARMS:
        raise NotAskable(f"arm: {value[:80]!r} is neither {' nor '.join(ARMS)}")
    return value


def _filter(where: Mapping[str, str], reserved: frozenset[str]) -> str:
    for label in where:
        if label in reserved:
            raise NotAskable(f"where: the label {label!r} is set by the query itself")
    return ",".join(_match("where", label, value) for label, value in sorted(where.items()))


def _match(what: str, label: str, value: str) -> str:
    if not LABEL.fullmatch(label) or label == "__name__":
        raise NotAskable(f"{what}: {label[:80]!r} is not the name of a label")
    if len(value) > VALUE_MAX or not value.isprintable():
        raise NotAskable(f"{what}: the value of {label!r} is longer than {VALUE_MAX} characters or not printable: {value[:80]!r}")
    return f'{label}="{escape(value)}"'
