"""
Which of several models is best for a request, by the model table and by what was measured lately.

    Recent                means of one model's last minutes
    rank(cards, ...)      the models, best first

Its one rule: a number that was not measured is no reason. A model that nobody knows yet is tried before it is judged, and one whose
breaker is open comes last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from router.caps import Card, Weight
from router.options import Goal
from router.outcome import Outcome

HALF_LIFE_S = 120.0
"""After so long a call counts half: a model that was slow is given another try within minutes."""

ENOUGH = 5.0
"""Calls from which on a mean is more than chance."""

OUTPUT_GUESS = 256
"""Tokens of an answer, until enough of a model's own answers are known."""

_SURE = 0.99
"""No model is so bad that it is infinitely slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    What is known of one model now.

    Args:
        calls: How many calls this rests on, older ones counting less.
        failed: Share of them that failed, 0..1.
        whole_s, first_s: Mean time of a whole answer, and of the first token of a stream; None if there was none.
        output: Mean tokens of an answer; None if there was none.
    """

    calls: float = 0.0
    failed: float = 0.0
    whole_s: float | None = None
    first_s: float | None = None
    output: float | None = None


class _Mean:
    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.count = self.total = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value

    def fade(self, factor: float) -> None:
        self.count *= factor
        self.total *= factor

    def read(self) -> float | None:
        return self.total / self.count if self.count > 1e-3 else None


class Recent:
    """Means of one model's calls, fading with time."""

    __slots__ = ("_at", "_failed", "_first", "_output", "_whole")

    def __init__(self) -> None:
        self._at = 0.0
        self._failed, self._whole, self._first, self._output = _Mean(), _Mean(), _Mean(), _Mean()

    def ended(self, outcome: Outcome, took_s: float, output: int | None, now: float) -> None:
        """A refused request and a client that left say nothing of the model."""
        if outcome in ("client_error", "cancelled"):
            return
        self._fade(now)
        self._failed.add(outcome != "ok")
        if outcome == "ok":
            self._whole.add(took_s)
            self._output.add(output or 0)

    def first_token(self, took_s: float, now: float) -> None:
        self._fade(now)
        self._first.add(took_s)

    def read(self, now: float) -> Reading:
        self._fade(now)
        return Reading(
            calls=self._failed.count,
            failed=self._failed.read() or 0.0,
            whole_s=self._whole.read(),
            first_s=self._first.read(),
            output=self._output.read(),
        )

    def _fade(self, now: float) -> None:
        if now > self._at:
            factor = 0.5 ** ((now - self._at) / HALF_LIFE_S)
            for mean in (self._failed, self._whole, self._first, self._output):
                mean.fade(factor)
            self._at = now


def rank(
    cards: Sequence[Card], weight: Weight, readings: Mapping[str, Reading], closed: Mapping[str, bool], goal: Goal
) -> list[str]:
    """
    Args:
        cards: The models that may answer, in the order in which the table or the route names them: equals keep it.
        readings: What is known of them.
        closed: Whether their breakers are closed.

    Returns:
        Their names, best first.
    """

    def badness(card: Card) -> tuple[bool, float]:
        reading = readings.get(card.model, Reading())
        answers = 1 - min(reading.failed, _SURE) if reading.calls >= ENOUGH else 1.0
        match goal:
            case "quality":
                value = -(card.quality or 0.0) * answers
            case "speed":
                value = _seconds(weight, reading) / answers
            case "cost":
                value = expected_usd(card, weight, reading) / answers
        return not closed.get(card.model, True), value

    return [card.model for card in sorted(cards, key=badness)]


def expected_usd(card: Card, weight: Weight, reading: Reading) -> float:
    """What the request will probably cost there; infinite without a price."""
    if card.rates is None:
        return inf
    known = reading.output is not None and reading.calls >= ENOUGH
    output = reading.output if known and reading.output is not None else OUTPUT_GUESS
    if weight.endpoint == "embeddings":
        output = 0
    elif weight.output is not None:
        output = min(output, weight.output)
    return weight.input * card.rates.input + output * weight.choices * card.rates.output


def _seconds(weight: Weight, reading: Reading) -> float:
    """What the client waits for: a stream's first token, or the whole answer. 0 as long as it was not measured."""
    if reading.calls < ENOUGH:
        return 0.0
    seconds = reading.first_s if weight.stream and reading.first_s is not None else reading.whole_s
    # Nothing but failures: the slowest there is.
    return inf if seconds is None else seconds
