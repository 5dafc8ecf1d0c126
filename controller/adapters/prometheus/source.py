"""
The metric source on Prometheus: gates become questions, questions answers, answers measurements.

It stands between `tick`, which asks for measurements, and the client, which asks Prometheus. Its one rule: every gate of a call is
measured at one time over one window, and each distinct question is asked once, so that gates never contradict each other because of
when they looked.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

from controller.adapters.prometheus.answer import Series, Untrusted, by_arm, histogram, moments, single
from controller.adapters.prometheus.client import Answer, ClientError, PrometheusClient
from controller.adapters.prometheus.profile import BASELINE, NotAskable, Profile, load_profile
from controller.core.measurement import Counts, Evidence, Measurement, NoData, QueryFailed, Sampled, Value
from controller.core.plan import AtLeast, AtMost, Gate, MeanIncrease, QuantileIncrease, QuantileLimit, RateLimit, Silence
from controller.ports import Measured, Scope, Unavailable

SCRAPES_MIN = 4
"""A window of fewer scrapes says more about when it was looked at than about the requests."""

STALE_SCRAPES = 3
STALE_MIN = timedelta(seconds=5)
"""An arm without a sample in the last three scrapes (and at least 5 s) is not fresh."""

Reader = Callable[[Sequence[tuple[Series, ...]]], Measurement]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a gate asks, and how the answers, in the order of the questions, become its measurement."""

    queries: tuple[str, ...]
    read: Reader


class PrometheusSource:
    """
    Implements `controller.ports.MetricSource`; safe to share between threads.

    Args:
        base_url: ``http://host:9090``, with a path where Prometheus has one; ``user:password@`` is taken out and sent as basic auth.
        profile: Which metric names the routers have: a profile, or the name of one in `profiles/`.
        timeout_s: Deadline of one `measure`, all its questions together.
        scrape_interval: How often Prometheus scrapes the routers.
        stale_after: How old the newest sample of an arm may be; default three scrapes, at least 5 s.

    Raises:
        ValueError: an address, time or profile that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        profile: Profile | str = "router",
        *,
        timeout_s: float = 10.0,
        scrape_interval: timedelta = timedelta(seconds=15),
        stale_after: timedelta | None = None,
    ) -> None:
        if scrape_interval <= timedelta(0):
            raise ValueError(f"scrape_interval: {scrape_interval} is not above 0")
        self._client = PrometheusClient(base_url, timeout_s=timeout_s)
        self._profile = load_profile(profile) if isinstance(profile, str) else profile
        self._scrape_ms = _ms(scrape_interval)
        self._stale_ms = _ms(stale_after or max(STALE_SCRAPES * scrape_interval, STALE_MIN))

    def measure(self, gates: Sequence[Gate], scope: Scope) -> Measured:
        asked = [self._ask(gate, scope) for gate in gates]
        exposure = self._exposure(scope)
        queries = dict.fromkeys(q for a in asked if isinstance(a, _Asked) for q in a.queries)
        if exposure is not None:
            queries[exposure] = None
        try:
            answers: Mapping[str, Answer] = self._client.ask(list(queries), scope.at)
        except Exception as exc:  # no thread to be had, no memory: still a measurement and not the end of the look
            failed = QueryFailed(reason=f"the questions could not be asked: {type(exc).__name__}: {exc}")
            return Measured(measurements=tuple(failed if isinstance(a, _Asked) else a for a in asked), exposure=None)
        return Measured(
            measurements=tuple(_answered(a, answers) if isinstance(a, _Asked) else a for a in asked),
            exposure=None if exposure is None else _number(answers[exposure]),
        )

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
            data = self._client.get_json("status/buildinfo")
            version = data["data"]["version"]
        except (ClientError, KeyError, TypeError):
            return "unknown version"
        return str(version)

    # --- gates to questions -----------------------------------------------------------------------------------------------------

    def _ask(self, gate: Gate, scope: Scope) -> _Asked | NoData | QueryFailed:
        since = scope.opened_at if isinstance(gate, AtLeast) else scope.since
        window_ms = 0 if isinstance(gate, AtMost) else self._window_ms(since, scope.at)
        try:
            asked = self._questions(gate, scope, window_ms or 0)
        except NotAskable as exc:
            return QueryFailed(reason=str(exc))
        if window_ms is None:
            length_s, least_s = (scope.at - since).total_seconds(), SCRAPES_MIN * self._scrape_ms / 1000
            return NoData(reason=f"window shorter than four scrapes ({length_s:.1f} s of {least_s:g} s)")
        return asked

    def _questions(self, gate: Gate, scope: Scope, window_ms: int) -> _Asked:
        def of(query: str) -> str:
            return self._profile.promql(query, scope, window_ms=window_ms, where=gate.where)

        def fresh() -> str:
            return self._profile.promql("fresh", scope, window_ms=self._stale_ms)

        arms = _Arms(scope=scope, stale_after_s=self._stale_ms / 1000)
        match gate:
            case RateLimit(indicator="availability"):
                return _Asked(queries=(of("requests"), of("unavailable"), fresh()), read=lambda a: self._availability(a, arms))
            case RateLimit():
                bad = self._profile.bad[gate.indicator]
                return _Asked(queries=(of("requests"), fresh()), read=lambda a: self._ratio(a, bad, arms))
            case QuantileLimit() | QuantileIncrease():
                compares = isinstance(gate, QuantileIncrease)
                return _Asked(queries=(of(gate.indicator), fresh()), read=lambda a: _durations(a, arms, compares=compares))
            case MeanIncrease():
                return _Asked(queries=(of(gate.indicator), fresh()), read=lambda a: _means(a, arms))
            case AtLeast() | AtMost():
                return _Asked(queries=(of(gate.indicator),), read=_occurrences)
            case Silence():
                recent = min(window_ms, max(_ms(scope.recent), SCRAPES_MIN * self._scrape_ms))
                asked = self._profile.promql("requests", scope, window_ms=recent, where=gate.where)
                return _Asked(queries=(asked, fresh()), read=lambda a: _reports(a, arms))
            case _:
                assert_never(gate)

    def _exposure(self, scope: Scope) -> str | None:
        window_ms = self._window_ms(scope.opened_at, scope.at)
        try:
            return None if window_ms is None else self._profile.promql("exposure", scope, window_ms=window_ms)
        except NotAskable:
            return None

    def _window_ms(self, since: datetime, at: datetime) -> int | None:
        """Whole seconds from `since` to `at`, in milliseconds; None if that is less than four scrapes."""
        window_ms = math.floor((at - since).total_seconds()) * 1000
        return window_ms if window_ms >= max(SCRAPES_MIN * self._scrape_ms, 1000) else None

    # --- answers to measurements ------------------------------------------------------------------------------------------------

    def _ratio(self, answers: Sequence[tuple[Series, ...]], bad: frozenset[str], arms: "_Arms") -> Measurement:
        requests, fresh = answers
        outcomes = by_arm(requests, arms.names, "outcome")
        counts = {arm: _counts(found, bad, self._profile.ignored) for arm, found in outcomes.items()}
        return arms.sampled(counts, fresh)

    def _availability(self, answers: Sequence[tuple[Series, ...]], arms: "_Arms") -> Measurement:
        requests, unavailable, fresh = answers
        failed = by_arm(unavailable, arms.names)
        counts = {}
        for arm, found in by_arm(requests, arms.names, "outcome").items():
            if arm not in failed:
                raise Untrusted(f"requests of the {arm}, but no series that counts the unanswered ones")
            total = _counts(found, frozenset(), self._profile.ignored).total
            counts[arm] = Counts(bad=_at_most(failed[arm][""], total, arm), total=total)
        return arms.sampled(counts, fresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arms:
    """The two arms of a look, and what may be said about them."""

    scope: Scope
    stale_after_s: float

    @property
    def names(self) -> tuple[str, str]:
        return self.scope.arm, BASELINE

    def sampled(self, values: Mapping[str, Value], fresh: tuple[Series, ...], *, compares: bool = False) -> Measurement:
        """Both arms as a measurement, unless the candidate (or what it is compared with) is absent or no longer scraped."""
        scraped = self.fresh(fresh)
        if self.scope.arm not in values:
            return NoData(reason=f"no series of the {self.scope.arm} in the window")
        if self.scope.arm not in scraped:
            return self.stale(self.scope.arm)
        baseline = values.get(BASELINE)
        if compares and baseline is not None and BASELINE not in scraped:
            return self.stale(BASELINE)
        return Sampled(candidate=values[self.scope.arm], baseline=baseline if BASELINE in scraped else None)

    def fresh(self, series: tuple[Series, ...]) -> set[str]:
        return {arm for arm, samples in by_arm(series, self.names).items() if samples[""] > 0}

    def stale(self, arm: str) -> NoData:
        return NoData(
            reason=f"no sample of the {arm} in the last {self.stale_after_s:g} s: is it still scraped, and do the clocks agree?"
        )


def _durations(answers: Sequence[tuple[Series, ...]], arms: _Arms, *, compares: bool) -> Measurement:
    buckets, fresh = answers
    values = {arm: histogram(found) for arm, found in by_arm(buckets, arms.names, "le").items()}
    return arms.sampled(values, fresh, compares=compares)


def _means(answers: Sequence[tuple[Series, ...]], arms: _Arms) -> Measurement:
    costs, fresh = answers
    values = {arm: moments(found) for arm, found in by_arm(costs, arms.names, "moment").items()}
    return arms.sampled(values, fresh, compares=True)


def _occurrences(answers: Sequence[tuple[Series, ...]]) -> Measurement:
    seen = single(answers[0])
    return NoData(reason="no such series") if seen is None else Sampled(candidate=Counts(bad=0.0, total=seen))


def _reports(answers: Sequence[tuple[Series, ...]], arms: _Arms) -> Measurement:
    """Requests of both arms. Here, and only here, a candidate without any series beside a baseline with fresh ones is a count of 0."""
    requests, fresh = answers
    totals = {
        arm: Counts(bad=0.0, total=math.fsum(found.values())) for arm, found in by_arm(requests, arms.names, "outcome").items()
    }
    scraped, candidate = arms.fresh(fresh), arms.scope.arm
    if candidate in totals or candidate in scraped:
        return arms.sampled(totals, fresh)
    if BASELINE not in totals:
        return NoData(reason="no series of either arm in the window")
    if BASELINE not in scraped:
        return arms.stale(BASELINE)
    return Sampled(candidate=Counts(bad=0.0, total=0.0), baseline=totals[BASELINE])


def _counts(outcomes: Mapping[str, float], bad: frozenset[str], ignored: frozenset[str]) -> Counts:
    # fsum does not depend on the order, in which Prometheus is free.
    return Counts(
        bad=math.fsum(n for outcome, n in outcomes.items() if outcome in bad),
        total=math.fsum(n for outcome, n in outcomes.items() if outcome not in ignored),
    )


def _at_most(bad: float, total: float, arm: str) -> float:
    """
    `increase` extrapolates each counter by itself, by up to one scrape of at least four: so far two counters of the same requests
    may lie apart, and no further.
    """
    if bad > total + total / (SCRAPES_MIN - 1) + 1:
        raise Untrusted(f"{bad:g} unanswered of {total:g} requests of the {arm}: the counters contradict each other")
    return min(bad, total)


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


def _number(answer: Answer) -> float | None:
    try:
        return None if answer.failure else single(answer.series)
    except Untrusted:
        return None


def _ms(span: timedelta) -> int:
    return max(1, round(span.total_seconds() * 1000))
