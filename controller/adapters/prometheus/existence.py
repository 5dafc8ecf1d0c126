"""
Whether there is anything to count: metrics that nobody exports, or without the labels that tell the arms apart.

It stands beside `counting`, which asks when a counter has no series, and behind `PrometheusSource.missing`, which asks for a
whole plan before it is started. Its one rule: no series of an arm yet is nothing odd; no series that could ever be an arm's is an
error, and says what was asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.adapters.prometheus import promql
from controller.adapters.prometheus.answer import Series
from controller.adapters.prometheus.profile import EVENT, Counted, Indicator, NotAskable, Profile
from controller.core.ledger import BASELINE, WHOLES
from controller.core.plan import AtLeast, Plan
from controller.core.traffic import question_of, questions_of
from controller.ports import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Existence:
    """
    What there is of the counters of one part.

    Args:
        there: There are series of some arm.
        lack: Why there cannot be any; "" if there could.
    """

    there: bool
    lack: str = ""


def existence(found: Sequence[tuple[Counted, Sequence[Series]]]) -> Existence:
    """
    Args:
        found: Counters of one part, of each metric one, and what `promql.exists` brought for it.
    """
    seen = [(counted, {s.labels.get(promql.TAG, "") for s in series if s.value > 0}) for counted, series in found]
    if any("own labelled" in names for _, names in seen):
        return Existence(there=True)
    for counted, names in seen:
        # Of another arm, or nobody's: where there are such series, none of ours says nothing.
        for name in ("own", "metric"):
            if name in names and f"{name} labelled" not in names:
                labels, query = ", ".join(sorted(counted.arm_labels)), promql.existing(counted)[f"{name} labelled"]
                what = counted.term.selector() if name == "own" else counted.term.metric
                lack = f"no series of {what} has the labels {labels}, which tell the arms apart ({query})"
                return Existence(there=False, lack=lack)
    if all("metric" not in names for _, names in seen):
        metrics = " or ".join(counted.term.metric for counted, _ in seen)
        query = promql.existing(seen[0][0])["metric"]
        lack = f"there is no series of {metrics} in Prometheus: is it scraped and named so? ({query})"
        return Existence(there=False, lack=lack)
    return Existence(there=False)


def by_metric(counted: Sequence[Counted], part: str) -> tuple[Counted, ...]:
    """One counter of each metric of a part."""
    return tuple({c.term.metric: c for c in counted if c.part == part}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """
    Something that a plan needs and Prometheus does not have.

    Args:
        gates: Names of the gates that need it; () for what every plan needs.
        text: What is missing, with the query that showed it.
    """

    gates: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Counters that some gates of a plan need; `problem` says why they cannot be asked for."""

    gates: tuple[str, ...]
    indicator: Indicator | None = None
    counted: tuple[Counted, ...] = ()
    problem: str = ""

    @property
    def parts(self) -> dict[str, tuple[Counted, ...]]:
        """Those that must be there, by part, of each metric one."""
        late = frozenset() if self.indicator is None else self.indicator.late
        return {p: by_metric(self.counted, p) for p in dict.fromkeys(c.part for c in self.counted) if p not in late}

    @property
    def baseline(self) -> tuple[Counted, ...]:
        """What counts the baseline's requests."""
        late = frozenset() if self.indicator is None else self.indicator.late
        return tuple(c for c in self.counted if c.arm == BASELINE and c.part in WHOLES and c.part not in late)


def scope_at(plan: Plan, at: datetime) -> Scope:
    """Of a plan that is not started: its candidate's arm, and no time yet."""
    return Scope(
        environment=plan.environment,
        flag=plan.flag,
        arm="candidate",
        since=at,
        recent=plan.policy.every,
        opened_at=at,
        at=at,
        profile=plan.profile,
        models={"baseline": plan.baseline.model, "candidate": plan.candidate.model},
        arms=plan.arms,
        requests=plan.requests,
    )


def needs_of(profile: Profile, plan: Plan, at: datetime) -> list[Need]:
    """What a plan's gates count, and what every plan does; each once."""
    scope, needs = scope_at(plan, at), []
    for question in questions_of(plan):
        gates = tuple(g.name for g in plan.gates if (q := question_of(g)) is not None and q.key == question.key)
        try:
            indicator = profile.of(question, scope)
            needs.append(Need(gates=gates, indicator=indicator, counted=profile.counted(indicator, scope, question.where)))
        except NotAskable as exc:
            needs.append(Need(gates=gates, problem=str(exc)))
    for gate in plan.gates:
        if isinstance(gate, AtLeast) and gate.indicator == EVENT:
            try:
                indicator = profile.indicator(EVENT)
                counted = tuple(c for c in profile.counted(indicator, scope, gate.where) if c.arm != BASELINE)
                needs.append(Need(gates=(gate.name,), indicator=indicator, counted=counted))
            except NotAskable as exc:
                needs.append(Need(gates=(gate.name,), problem=str(exc)))
    return needs


def missing_of(needs: Sequence[Need], answers: Mapping[str, Sequence[Series]]) -> tuple[Missing, ...]:
    """
    Args:
        needs: Of a plan.
        answers: By query: `promql.exists` of each counter of `Need.parts`, and `promql.count` of each of `Need.baseline`.
    """
    found: dict[str, tuple[str, ...]] = {}
    for need in needs:
        texts = [need.problem] if need.problem else _lacks(need, answers)
        for text in texts:
            found[text] = tuple(dict.fromkeys((*found.get(text, ()), *need.gates)))
    return tuple(Missing(gates=gates, text=text) for text, gates in found.items())


def _lacks(need: Need, answers: Mapping[str, Sequence[Series]]) -> list[str]:
    lacks = [existence([(c, answers[promql.exists(c)]) for c in terms]).lack for terms in need.parts.values()]
    if any(lacks):
        return [text for text in lacks if text]
    if need.baseline and not any(answers[promql.count(c)] for c in need.baseline):
        return [f"the baseline has no series ({' or '.join(promql.count(c) for c in need.baseline)})"]
    return []
