"""
The simulated models: which behaviour is in force now, and what it makes of the next request. No I/O and no clock of its own.

Its one rule: same seed, same models and same order of requests give the same outcomes, whatever the timing. Each request draws from a
generator of its own, so that a change of behaviour never shifts the draws of later requests.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import exp
from random import Random
from typing import Any

from bench.behaviour import BehaviourError, ModelBehaviour, behaviour_to_json, updated


class Outcome(Enum):
    """What happens to a request."""

    OK = "ok"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    RESET = "reset"
    CUT = "cut"
    GARBAGE = "garbage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    The fate of one request.

    Args:
        index: Number of the request at its model, from 1.
        outcome: What happens.
        ttft_s: Time to the first token (or to the failure).
        generation_s: Time from the first token to the last.
        tokens: Answer tokens.
        length_limited: The answer ends because `max_tokens` is reached.
        tool_call: The answer is a tool call.
    """

    index: int
    outcome: Outcome
    ttft_s: float
    generation_s: float
    tokens: int
    length_limited: bool
    tool_call: bool


class SimulatedModel:
    """One model: its behaviour in force, the scripted changes still to come, and what it has done."""

    def __init__(self, name: str, behaviour: ModelBehaviour, *, seed: int) -> None:
        self.name = name
        self.behaviour = behaviour
        self.requests = 0
        self.outcomes: Counter[str] = Counter()
        self.changes_applied = 0
        self._pending = list(behaviour.changes)
        self._seed = seed

    def answer(self, *, now_s: float, max_tokens: int | None, tools: bool) -> Answer:
        """
        Decide the fate of the next request.

        Args:
            now_s: Seconds since the simulator started.
            max_tokens: What the request sets.
            tools: Whether it offers tools.
        """
        self.requests += 1
        self._apply_due(now_s)
        b = self.behaviour
        rng = Random(f"{self._seed}:{self.name}:{self.requests}")
        # All draws are made in every case, in this order: an outcome must not depend on which features are on.
        fate, tail, tool = rng.random(), rng.random(), rng.random()
        ttft_draw, token_draw = rng.gauss(0.0, 1.0), rng.gauss(0.0, 1.0)
        slow = b.latency_mult * (b.tail.mult if tail < b.tail.frac else 1.0)
        tokens, limited = _tokens(b, max_tokens, token_draw)
        outcome = _outcome(b, fate)
        self.outcomes[outcome.value] += 1
        return Answer(
            index=self.requests,
            outcome=outcome,
            ttft_s=b.ttft.median_s * exp(b.ttft.sigma * ttft_draw) * slow,
            generation_s=max(0, tokens - 1) / b.tokens_per_s * slow,
            tokens=tokens,
            length_limited=limited,
            tool_call=tools and tool < b.tool_calls,
        )

    def change(self, patch: Mapping[str, Any]) -> None:
        """
        Change the behaviour now. Giving `changes` replaces the script that is still to come.

        Raises:
            BehaviourError: the result makes no sense; the old behaviour stays.
        """
        self.behaviour = updated(self.behaviour, patch)
        if "changes" in patch:
            self._pending = list(self.behaviour.changes)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "requests": self.requests,
            "outcomes": dict(self.outcomes),
            "changes_applied": self.changes_applied,
            "changes_pending": len(self._pending),
            "behaviour": behaviour_to_json(self.behaviour),
        }

    def _apply_due(self, now_s: float) -> None:
        while self._pending:
            due = [
                c
                for c in self._pending
                if (c.at_s is not None and now_s >= c.at_s)
                # `after_requests: 100` leaves the first 100 alone.
                or (c.after_requests is not None and self.requests > c.after_requests)
            ]
            if not due:
                return
            first = min(due, key=lambda c: (c.at_s is None, c.at_s or 0.0, c.after_requests or 0))
            self._pending.remove(first)
            try:
                self.behaviour = updated(self.behaviour, first.set)
            except BehaviourError:
                # Alone it was valid; together with a live change it is not (shares over 1). Live changes win.
                continue
            self.changes_applied += 1


def simulated_models(behaviours: Mapping[str, ModelBehaviour], *, seed: int) -> dict[str, SimulatedModel]:
    return {name: SimulatedModel(name, replace(b), seed=seed) for name, b in behaviours.items()}


def _outcome(b: ModelBehaviour, fate: float) -> Outcome:
    for outcome in _FAILURES:
        fate -= getattr(b.errors, outcome.value)
        if fate < 0:
            return outcome
    return Outcome.OK


_FAILURES = tuple(o for o in Outcome if o is not Outcome.OK)


def _tokens(b: ModelBehaviour, max_tokens: int | None, draw: float) -> tuple[int, bool]:
    if max_tokens is not None and max_tokens <= b.follow_max_tokens:
        return max_tokens, True
    wanted = max(1, round(b.output_tokens.median * exp(b.output_tokens.sigma * draw)))
    if max_tokens is not None and wanted >= max_tokens:
        return max_tokens, True
    return wanted, False
