"""
Invented traffic: increments of both arms, beat by beat, as a metric source would read them.

Arrivals are Poisson under a rate that wanders, durations follow the baseline's shape while load and noise stretch it, failures
come in clusters and bursts. Its one rule: a seed is one world. What both arms share (load, bursts) is drawn from one stream of
random numbers, what an arm has for itself from its own, so that a scenario changes the candidate and nothing else.

Sizes of the noise: the rate varies by a fifth beyond Poisson over a minute in the Azure LLM inference trace 2023 (Patel et al.,
"Splitwise", ISCA 2024; conversation, one hour); bursts and clusters as in the traffic that the engine was measured on
(docs/explanation/evidence.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from controller.core.traffic import Question, columns_of_one
from controller.forecast.baseline import Amounts, Baseline, Durations, Part, Rate

Array = NDArray[np.float64]

CLUSTER_S = 15.0
"""Failures of one such span share a multiplier."""

FIRST_HOUR = 9.0
"""Local hour at which a rollout begins: traffic is at its mean then and rises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Spans in which failures are `factor` times as frequent: one begins every `every_s` on average and lasts `mean_s` on
    average."""

    every_s: float
    mean_s: float
    factor: float

    @property
    def mean_factor(self) -> float:
        return 1 + (self.factor - 1) * self.mean_s / (self.every_s + self.mean_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """
    What happens to both arms, and the noise of each.

    Args:
        diurnal: Amplitude of a day's wave in the volume, 0..1.
        volume_sd: Standard deviation of the logarithm of the volume, wandering over `volume_tau_s`.
        coupling: Durations grow with this power of the volume.
        shared_sd, private_sd: Standard deviations of the logarithm of durations: of both arms together, and of each by itself.
        cluster_shape: Of the gamma law of the failures' multiplier per quarter of a minute; smaller is more clustered.
        shared_bursts, private_bursts: Of failures.
        incident: Start and end (seconds after the beginning) of a time in which `incident_bad` of the requests of both arms fail.
    """

    diurnal: float = 0.0
    volume_sd: float = 0.2
    volume_tau_s: float = 600.0
    coupling: float = 0.15
    shared_sd: float = 0.06
    shared_tau_s: float = 300.0
    private_sd: float = 0.02
    private_tau_s: float = 120.0
    cluster_shape: float = 4.0
    shared_bursts: Bursts = Bursts(every_s=2700, mean_s=90, factor=6)
    private_bursts: Bursts = Bursts(every_s=3600, mean_s=45, factor=6)
    incident: tuple[float, float] | None = None
    incident_bad: float = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """
    How the candidate differs from the baseline.

    Args:
        latency: Factor of all durations.
        ttft: Factor of the time to the first token; None for `latency`.
        tail_share, tail: Share of requests that take `tail` times as long on top.
        bad: Share of bad events by indicator, instead of the baseline's.
        cost: Factor.
        silent: It reports nothing.
    """

    latency: float = 1.0
    ttft: float | None = None
    tail_share: float = 0.0
    tail: float = 1.0
    bad: dict[str, float] = field(default_factory=dict)
    cost: float = 1.0
    silent: bool = False

    def stretch(self, indicator: str) -> float:
        return self.ttft if indicator == "ttft" and self.ttft is not None else self.latency


NO_EFFECT = Effect()


class World:
    """
    One replicate. Mutable: `draw` goes forward in time.

    Args:
        baseline: What the baseline does, over a day.
        weather: See there.
        seed: Whole numbers that name the replicate.
    """

    def __init__(self, baseline: Baseline, weather: Weather, seed: Sequence[int]) -> None:
        self._baseline = baseline
        self._weather = weather
        shared, candidate, base = (np.random.default_rng([*seed, stream]) for stream in range(3))
        self._volume = _Wander(shared, weather.volume_sd, weather.volume_tau_s)
        self._load = _Wander(shared, weather.shared_sd, weather.shared_tau_s)
        self._bursts = _Spans(shared, weather.shared_bursts)
        self._arms = tuple(_Arm(rng, weather) for rng in (candidate, base))
        self.now_s = 0.0

    def draw(
        self, beats: int, beat_s: float, shares: tuple[float, float], effect: Effect = NO_EFFECT, strength: Array | None = None
    ) -> tuple[Array, Array]:
        """
        Args:
            beats: How many.
            beat_s: Length of one.
            shares: Of all requests: the candidate's (mirrored ones too) and the baseline's, 0..1.
            effect: Of the candidate.
            strength: How much of the effect there is in each beat, 0..1; None for all of it.

        Returns:
            Increments of candidate and baseline, shape (beats, columns of the questions).
        """
        w = self._weather
        starts: Array = self.now_s + beat_s * np.arange(beats, dtype=np.float64)
        hour = FIRST_HOUR + (starts + beat_s / 2) / 3600
        wave = 1 + w.diurnal * np.sin(2 * np.pi * (hour - FIRST_HOUR) / 24)
        # a log-normal factor of mean 1
        volume = wave * np.exp(self._volume.draw(beats, beat_s) - w.volume_sd**2 / 2)
        shared = w.coupling * np.log(np.maximum(volume, 0.05)) + self._load.draw(beats, beat_s)
        weather = _Beats(
            starts=starts,
            length_s=beat_s,
            requests=self._baseline.rps * beat_s * volume,
            stretch=shared,
            burst=self._bursts.factor(starts, beat_s),
            incident=self._incident(starts, beat_s),
        )
        full = np.ones(beats) if strength is None else strength
        rows = (
            self._arms[0].draw(self._baseline, weather, shares[0], effect, full),
            self._arms[1].draw(self._baseline, weather, shares[1], NO_EFFECT, full),
        )
        self.now_s += beats * beat_s
        return rows

    def history(self, beats: int, beat_s: float) -> Array:
        """Increments of the baseline alone, before anything begins; draws from 0 follow it."""
        self.now_s = -beats * beat_s
        return self.draw(beats, beat_s, (0.0, 1.0))[1]

    def _incident(self, starts: Array, beat_s: float) -> Array:
        if self._weather.incident is None:
            return np.zeros(len(starts))
        begin, end = self._weather.incident
        return _overlap(starts, beat_s, begin, end) * self._weather.incident_bad


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beats:
    """What both arms meet, one entry per beat: expected requests, stretch of the logarithm of durations, factor of failures,
    extra failures."""

    starts: Array
    length_s: float
    requests: Array
    stretch: Array
    burst: Array
    incident: Array


class _Arm:
    """The draws of one arm."""

    def __init__(self, rng: np.random.Generator, weather: Weather) -> None:
        self._rng = rng
        self._weather = weather
        self._noise = _Wander(rng, weather.private_sd, weather.private_tau_s)
        self._bursts = _Spans(rng, weather.private_bursts)

    def draw(self, baseline: Baseline, beats: _Beats, share: float, effect: Effect, strength: Array) -> Array:
        w, rng, k = self._weather, self._rng, len(beats.starts)
        n = rng.poisson(beats.requests * share)
        if effect.silent:
            n = np.where(strength > 0, 0, n)
        stretch = beats.stretch + self._noise.draw(k, beats.length_s)
        spans = max(beats.length_s / CLUSTER_S, 1e-3) * w.cluster_shape
        factor = beats.burst * self._bursts.factor(beats.starts, beats.length_s) * rng.gamma(spans, 1 / spans, k)
        # the rates that people give are long-run means, bursts included
        factor /= w.shared_bursts.mean_factor * w.private_bursts.mean_factor
        found: list[Array] = []
        for question in baseline.questions:
            part, edges = baseline.parts.get(question.key), baseline.edges.get(question.key, ())
            if part is None:
                found.append(np.zeros((k, len(columns_of_one(question, edges)))))
                continue
            trials = n if part.portion >= 1 else rng.binomial(n, part.portion)
            found.append(self._columns(question, part, edges, trials, beats, stretch, factor, effect, strength))
        return np.concatenate(found, axis=1)

    def _columns(
        self,
        question: Question,
        part: Part,
        edges: tuple[float, ...],
        trials: NDArray[np.int64],
        beats: _Beats,
        stretch: Array,
        factor: Array,
        effect: Effect,
        strength: Array,
    ) -> Array:
        rng = self._rng
        match part:
            case Rate():
                rate = part.bad + (effect.bad.get(question.indicator, part.bad) - part.bad) * strength
                failing = beats.incident * INCIDENT_PART.get(question.indicator, 0.0)
                bad = rng.binomial(trials, np.clip(rate * factor + failing, 0, 1))
                return np.stack([bad, trials], axis=1).astype(np.float64)
            case Amounts():
                mean = part.mean * (1 + (effect.cost - 1) * strength)
                cv2 = max(part.cv, 1e-3) ** 2
                amount = rng.gamma(np.maximum(trials, 1) / cv2, mean * cv2)
                return np.stack([np.where(trials > 0, amount, 0.0), trials], axis=1)
            case Durations():
                slower = np.log1p((effect.stretch(question.indicator) - 1) * strength)
                below = shares_below(part, edges, stretch + slower)
                if effect.tail_share > 0:
                    tail = shares_below(part, edges, stretch + slower + math.log(effect.tail))
                    below = below + effect.tail_share * strength[:, None] * (tail - below)
                cells = np.diff(below, axis=1, prepend=0.0, append=1.0)
                counts: Array = np.cumsum(rng.multinomial(trials, np.maximum(cells, 0.0)), axis=1).astype(np.float64)
                return counts


INCIDENT_PART = {"error_ratio": 1.0, "timeout_ratio": 0.3, "availability": 0.3}
"""How an incident divides over the kinds of failure."""


def shares_below(part: Durations, edges: tuple[float, ...], stretch: Array) -> Array:
    """
    Shares at or below each edge when durations are stretched.

    Args:
        part: The durations.
        edges: Seconds.
        stretch: Added to the logarithm of durations, one for each row.
    """
    z = part.shape.z_at((np.log(np.array(edges))[None, :] - stretch[:, None]).ravel())
    return normal_cdf(z).reshape(len(stretch), len(edges))


def normal_cdf(z: Array) -> Array:
    """
    The normal distribution function, without scipy.

    Source:
        Abramowitz and Stegun 1964, 26.2.17 (absolute error below 7.5e-8).
    """
    t = 1 / (1 + 0.2316419 * np.abs(z))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    upper = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * poly
    found: Array = np.where(z >= 0, 1 - upper, upper)
    return found


class _Wander:
    """A stationary first-order autoregression, averaged over beats of any length."""

    def __init__(self, rng: np.random.Generator, sd: float, tau_s: float) -> None:
        self._rng, self._sd, self._tau_s = rng, sd, tau_s
        self._last = float(rng.normal())

    def draw(self, beats: int, beat_s: float) -> Array:
        x = beat_s / self._tau_s
        a = math.exp(-x)
        steps = self._rng.normal(0.0, math.sqrt(1 - a * a), beats)
        path = list(accumulate(steps.tolist(), lambda last, step: a * last + step, initial=self._last))
        self._last = path[-1]
        # variance of the mean over a beat of a process with correlation exp(-t / tau)
        averaged = 2 * (x - 1 + a) / (x * x) if x > 1e-6 else 1.0
        return np.array(path[1:]) * (self._sd * math.sqrt(averaged))


class _Spans:
    """Bursts as spans of time, drawn as far ahead as they are needed."""

    def __init__(self, rng: np.random.Generator, bursts: Bursts) -> None:
        self._rng, self._bursts = rng, bursts
        self._spans: list[tuple[float, float]] = []
        self._drawn_s: float | None = None

    def factor(self, starts: Array, beat_s: float) -> Array:
        """Mean factor of failures in each beat."""
        found = np.ones(len(starts))
        if self._bursts.factor == 1 or not len(starts):
            return found
        begin, end = float(starts[0]), float(starts[-1]) + beat_s
        if self._drawn_s is None:
            self._drawn_s = begin
        while self._drawn_s < end:
            start = self._drawn_s + self._rng.exponential(self._bursts.every_s)
            self._drawn_s = start + self._rng.exponential(self._bursts.mean_s)
            self._spans.append((start, self._drawn_s))
        self._spans = [s for s in self._spans if s[1] > begin]
        for span in self._spans:
            found += (self._bursts.factor - 1) * _overlap(starts, beat_s, *span)
        return found


def _overlap(starts: Array, beat_s: float, begin: float, end: float) -> Array:
    """Which part of each beat lies between two times."""
    found: Array = np.clip(np.minimum(starts + beat_s, end) - np.maximum(starts, begin), 0, None) / beat_s
    return found
