"""
The metric source on Prometheus: gates and questions become PromQL, answers become measurements and traffic.

It stands between a look, which asks, and the client, which asks Prometheus. `measure` is for the gates that are no statistics
(events, alerts, silence); everything that is counted for both arms comes from `traffic`, which lies in `counting`. Its one rule:
all of a call is measured at one time, and each distinct question is asked once, so that gates never contradict each other because
of when they looked.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, assert_never

from controller.adapters.prometheus import promql
from controller.adapters.prometheus.answer import Series, Untrusted
from controller.adapters.prometheus.client import Answer, Ask, ClientError, PrometheusClient
from controller.adapters.prometheus.counting import SCRAPES_MIN, Clock, Counting
from controller.adapters.prometheus.existence import Missing, missing_of, needs_of, scope_at
from controller.adapters.prometheus.joint import Form, JointClient, Wish, joint
from controller.adapters.prometheus.profile import (
    EVENT,
    Counted,
    NotAskable,
    Profile,
    ProfileError,
    duration,
    load_profile,
)
from controller.adapters.prometheus.readable import alerts, own_query
from controller.core.ledger import BASELINE, CANDIDATE
from controller.core.measurement import Counts, Evidence, Measurement, NoData, QueryFailed, Sampled
from controller.core.plan import (
    AtLeast,
    AtMost,
    Gate,
    MeanIncrease,
    Plan,
    QuantileIncrease,
    QuantileLimit,
    RateLimit,
    SampleRatio,
    Silence,
)
from controller.core.traffic import Question, TrafficRead
from controller.ports import Planned, Scope, Unavailable

STALE_SCRAPES = 3
STALE_MIN = timedelta(seconds=5)
"""An arm without a sample in the last three scrapes (and at least 5 s) is not fresh."""

TOGETHER_MAX = 32 * 1024 * 1024
"""Bytes of the answers, as far as can be told, of the looks that are asked for together. A process holds two to three times as much while
it takes them apart."""

TOGETHER_TIMES = 2.0
"""Deadlines of the client that all joint queries together may take."""

Reader = Callable[[Sequence[tuple[Series, ...]]], Measurement]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a gate asks, how the answers, in the order of the questions, become its measurement, and what of it can be asked jointly."""

    queries: tuple[str, ...]
    read: Reader
    wishes: tuple[Wish, ...] = ()


class PrometheusSource:
    """
    Implements `controller.ports.MetricSource`; safe to share between threads.

    Args:
        base_url: ``http://host:9090``, with a path where Prometheus has one; ``user:password@`` is taken out and sent as basic
            auth.
        profile: Instead of the one that a scope names.
        timeout_s: Deadline of `measure`; `traffic` takes at most twice, and at the very first look five times as long.
        scrape_interval: How often Prometheus scrapes the routers.
        stale_after: How old the newest sample of an arm may be; default three scrapes, at least 5 s.

    Raises:
        ValueError: an address, time or profile that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        profile: Profile | str | None = None,
        *,
        timeout_s: float = 10.0,
        scrape_interval: timedelta = timedelta(seconds=15),
        stale_after: timedelta | None = None,
    ) -> None:
        if scrape_interval <= timedelta(0):
            raise ValueError(f"scrape_interval: {scrape_interval} is not above 0")
        self._own_client = PrometheusClient(base_url, timeout_s=timeout_s)
        self._client: PrometheusClient | JointClient = self._own_client
        self._own = load_profile(profile) if isinstance(profile, str) else profile
        self._scrape_ms = _ms(scrape_interval)
        self._stale_ms = _ms(stale_after or max(STALE_SCRAPES * scrape_interval, STALE_MIN))
        self._clock = Clock(scrape_ms=self._scrape_ms, stale_ms=self._stale_ms)

    def measure(self, gates: Sequence[Gate], scope: Scope) -> tuple[Measurement, ...]:
        asked = [self._ask(gate, scope) for gate in gates]
        queries = dict.fromkeys(q for a in asked if isinstance(a, _Asked) for q in a.queries)
        try:
            answers: Mapping[str, Answer] = self._client.ask(list(queries), scope.at)
        except Exception as exc:  # no thread to be had, no memory: still a measurement and not the end of the look
            failed = QueryFailed(reason=f"the questions could not be asked: {type(exc).__name__}: {exc}")
            return tuple(failed if isinstance(a, _Asked) else a for a in asked)
        return tuple(_answered(a, answers) if isinstance(a, _Asked) else a for a in asked)

    def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        try:
            profile = self._profile(scope)
        except ProfileError as exc:
            return TrafficRead(traffic=None, failure=str(exc), ledger=ledger)
        return Counting(self._client, self._clock).read(profile, questions, scope, ledger)

    def together(self, planned: Sequence[Planned]) -> tuple["PrometheusSource", int]:
        wishes: list[Wish] = []
        plain: list[Ask] = []
        count = volume = 0
        for look in planned:
            own, others = self._planned(look)
            volume += sum(w.volume for w in own)
            if count and volume > TOGETHER_MAX:
                break
            count += 1
            wishes += own
            plain += others
        source = copy(self)
        source._client = joint(self._own_client, wishes, plain, timeout_s=TOGETHER_TIMES * self._own_client.timeout_s)
        return source, count

    def _planned(self, look: Planned) -> tuple[list[Wish], list[Ask]]:
        """What a look is going to ask, that others may ask as well: as its own, and word for word."""
        asked = [a for gate in look.gates if isinstance(a := self._ask(gate, look.scope), _Asked)]
        wishes = [w for a in asked for w in a.wishes]
        plain = [Ask(query=q, at=look.scope.at) for a in asked if not a.wishes for q in a.queries]
        with suppress(ProfileError):
            counting = Counting(self._client, self._clock)
            wishes += counting.wishes(self._profile(look.scope), look.questions, look.scope, look.ledger)
        return wishes, plain

    def probe(self) -> str:
        """
        Whether Prometheus can be asked, for `doctor`.

        Returns:
            Its version; "unknown version" from a server that speaks Prometheus' language but does not say.

        Raises:
            Unavailable: it cannot; says what was seen.
        """
        at = datetime.now().astimezone()
        answer = self._client.ask(["vector(1)"], at)["vector(1)"]
        if answer.failure:
            raise Unavailable(answer.failure)
        try:
            data = self._own_client.get_json("status/buildinfo")
            version = data["data"]["version"]
        except (ClientError, KeyError, TypeError):
            return "unknown version"
        return str(version)

    def missing(self, plan: Plan, at: datetime) -> tuple[Missing, ...]:
        """
        What a plan's gates need and Prometheus does not have: for `doctor`, before the plan is started.

        Metrics that nobody exports, or that lack the labels which tell the arms apart; indicators that the profile does not have;
        a baseline without series. Nothing is said of the candidate, which need not have any yet.

        Args:
            plan: The rollout's plan.
            at: When Prometheus is asked about; the hour before it counts.

        Raises:
            Unavailable: Prometheus cannot be asked; says what was seen.
        """
        try:
            profile = self._own or load_profile(plan.profile)
        except ProfileError as exc:
            return (Missing(gates=(), text=str(exc)),)
        needs = needs_of(profile, plan, at)
        queries = dict.fromkeys(promql.exists(c) for n in needs for terms in n.parts.values() for c in terms)
        queries |= dict.fromkeys(promql.count(c) for n in needs for c in n.baseline)
        answers = self._client.ask(list(queries), at)
        if failed := next((a.failure for a in answers.values() if a.failure), ""):
            raise Unavailable(failed)
        missing = missing_of(needs, {query: answer.series for query, answer in answers.items()})
        return (*missing, *self._unreadable(plan, at))

    def _unreadable(self, plan: Plan, at: datetime) -> tuple[Missing, ...]:
        """Queries of a person's own that cannot be answered. That they have no series may be as it should be."""
        asked = [
            (g.name, self._ask(g, scope_at(plan, at))) for g in plan.gates if isinstance(g, AtMost) and g.indicator == "custom"
        ]
        queries = dict.fromkeys(q for _, a in asked if isinstance(a, _Asked) for q in a.queries)
        answers = self._client.ask(list(queries), at)
        seen = [(name, _answered(a, answers) if isinstance(a, _Asked) else a) for name, a in asked]
        return tuple(Missing(gates=(name,), text=m.reason) for name, m in seen if isinstance(m, QueryFailed))

    # --- gates to questions -----------------------------------------------------------------------------------------------------

    def _profile(self, scope: Scope) -> Profile:
        return self._own or load_profile(scope.profile)

    def _ask(self, gate: Gate, scope: Scope) -> _Asked | NoData | QueryFailed:
        since = scope.opened_at if isinstance(gate, AtLeast) else scope.since
        window_ms = 0 if isinstance(gate, AtMost) else self._window_ms(since, scope.at)
        try:
            asked = self._questions(gate, scope, window_ms or 0)
        except (NotAskable, ProfileError) as exc:
            return QueryFailed(reason=str(exc))
        if window_ms is None:
            length_s, least_s = (scope.at - since).total_seconds(), SCRAPES_MIN * self._scrape_ms / 1000
            return NoData(reason=f"window shorter than four scrapes ({length_s:.1f} s of {least_s:g} s)")
        return asked

    def _questions(self, gate: Gate, scope: Scope, window_ms: int) -> _Asked:
        match gate:
            case AtLeast(indicator="custom") | AtMost(indicator="custom"):
                window = duration(window_ms) if window_ms else ""
                return _Asked(queries=(own_query(gate, scope, self._profile(scope), window),), read=_one)
            case AtLeast():
                profile = self._profile(scope)
                asked = _of(profile.counted(profile.indicator(EVENT), replace(scope, arm=CANDIDATE), gate.where), CANDIDATE)
                return _Asked(queries=(promql.happened(asked, window_ms),), read=lambda a: _occurrences(asked, a))
            case AtMost():
                return _Asked(queries=(alerts(gate),), read=_one)
            case Silence():
                profile = self._profile(scope)
                both = profile.counted(profile.requests(scope), scope, gate.where)
                recent = self._recent_ms(scope, window_ms)
                queries = promql.happened(both, recent), promql.samples(both, self._stale_ms)
                arms = _Arms(counted=both, stale_after_s=self._stale_ms / 1000)
                asks = [Ask(query=q, at=scope.at) for q in queries]
                wishes = (
                    Wish(ask=asks[0], counted=both, form=Form.HAPPENED, window_ms=recent),
                    Wish(ask=asks[1], counted=both, form=Form.SAMPLES, window_ms=self._stale_ms),
                )
                return _Asked(queries=queries, read=arms.reports, wishes=wishes)
            case RateLimit() | QuantileLimit() | QuantileIncrease() | MeanIncrease() | SampleRatio():
                raise NotAskable(f"a {gate.kind} is judged from counted traffic, not from a measurement")
            case _:
                assert_never(gate)

    def _recent_ms(self, scope: Scope, window_ms: int) -> int:
        """
        The window in which a candidate may not be silent.

        While a phase is younger, it is as long as the phase, in whole steps: rollouts that began a few seconds apart ask the same question.
        """
        recent = min(window_ms, max(_ms(scope.recent), SCRAPES_MIN * self._scrape_ms))
        whole = recent // _ms(scope.step) * _ms(scope.step)
        return whole if recent == window_ms and whole >= SCRAPES_MIN * self._scrape_ms else recent

    def _window_ms(self, since: datetime, at: datetime) -> int | None:
        """Whole seconds from `since` to `at`, in milliseconds; None if that is less than four scrapes."""
        window_ms = math.floor((at - since).total_seconds()) * 1000
        return window_ms if window_ms >= max(SCRAPES_MIN * self._scrape_ms, 1000) else None


# --- answers to measurements ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arms:
    """The two arms of a look, and what may be said about them."""

    counted: Sequence[Counted] = field(default_factory=tuple)
    stale_after_s: float

    def reports(self, answers: Sequence[tuple[Series, ...]]) -> Measurement:
        """Requests of both arms. A candidate without any series beside a baseline with fresh ones is a count of 0."""
        totals = {arm: Counts(bad=0.0, total=n) for arm, n in promql.by_arm(self.counted, answers[0]).items()}
        scraped = {arm for arm, samples in promql.by_arm(self.counted, answers[1]).items() if samples > 0}
        if CANDIDATE in totals or CANDIDATE in scraped:
            if CANDIDATE not in totals:
                return NoData(reason="no series of the candidate in the window")
            if CANDIDATE not in scraped:
                return self._stale(CANDIDATE)
            return Sampled(candidate=totals[CANDIDATE], baseline=totals.get(BASELINE) if BASELINE in scraped else None)
        if BASELINE not in totals:
            return NoData(reason="no series of either arm in the window")
        if BASELINE not in scraped:
            return self._stale(BASELINE)
        return Sampled(candidate=Counts(bad=0.0, total=0.0), baseline=totals[BASELINE])

    def _stale(self, arm: str) -> NoData:
        return NoData(
            reason=f"no sample of the {arm} in the last {self.stale_after_s:g} s: is it still scraped, and do the clocks agree?"
        )


def _of(counted: Sequence[Counted], arm: str) -> tuple[Counted, ...]:
    return tuple(c for c in counted if c.arm == arm)


def _occurrences(counted: Sequence[Counted], answers: Sequence[tuple[Series, ...]]) -> Measurement:
    seen = promql.by_arm(counted, answers[0]).get(CANDIDATE)
    return NoData(reason="no such series") if seen is None else Sampled(candidate=Counts(bad=0.0, total=seen))


def _one(answers: Sequence[tuple[Series, ...]]) -> Measurement:
    """
    The one number of a query, whatever labels it has.

    Raises:
        Untrusted: there are more.
    """
    (series,) = answers
    if len(series) > 1:
        raise Untrusted(f"{len(series)} series where one number was expected, such as {dict(series[0].labels)!r:.200}")
    return Sampled(candidate=Counts(bad=0.0, total=series[0].value)) if series else NoData(reason="no such series")


def _answered(asked: _Asked, answers: Mapping[str, Answer]) -> Measurement:
    given = [answers[q] for q in asked.queries]
    evidence = tuple(a.evidence for a in given)
    if failures := list(dict.fromkeys(a.failure for a in given if a.failure)):
        return QueryFailed(reason="; ".join(failures), evidence=evidence)
    try:
        return replace(asked.read([a.series for a in given]), evidence=evidence)
    except (Untrusted, ValueError, ArithmeticError) as exc:
        return QueryFailed(reason=f"an answer that contradicts itself: {exc}", evidence=_noted(evidence, str(exc)))


def _noted(evidence: tuple[Evidence, ...], note: str) -> tuple[Evidence, ...]:
    return tuple(e if e.note else replace(e, note=note) for e in evidence)


def _ms(span: timedelta) -> int:
    return max(1, round(span.total_seconds() * 1000))
