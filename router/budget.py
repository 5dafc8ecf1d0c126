"""
What an environment may spend in a day, and what happens when it has.

Its one rule: the day is UTC's, and only what was spent counts: a request under way is finished, whatever it costs. Pure: the time is an
argument.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal

from router import config
from router.errors import ApiError
from router.selection import Plan, Step, apart
from router.shared import Alone, Store
from router.usage import Rates

Unit = Literal["usd", "tokens"]


class Allowance:
    """
    What mirrored copies may use in a minute and in a day, in USD and in tokens. Windows begin with the clock's minute and UTC's day.

    Args:
        spec: None: as much as they like, and booked elsewhere.
        store: Who else makes copies.
    """

    def __init__(self, spec: config.ShadowBudget | None, store: Store | None = None) -> None:
        spec = spec or config.ShadowBudget()
        dollars = {"minute": spec.per_minute, "day": spec.per_day}
        tokens = {"minute": spec.tokens_per_minute, "day": spec.tokens_per_day}
        self.limits: dict[tuple[str, Unit], float] = {}
        for window in ("minute", "day"):
            if (money := dollars[window]) is not None:
                self.limits[window, "usd"] = float(money.amount)
            if (count := tokens[window]) is not None:
                self.limits[window, "tokens"] = float(count)
        store = store or Alone()
        self._lock = store.lock
        # Of each limit: when its window began, and what was used since.
        self._cells = {key: store.cells(2) for key in self.limits}

    @property
    def of_its_own(self) -> bool:
        """Whether copies have one at all; else they are part of the environment's budget."""
        return bool(self.limits)

    @property
    def priced(self) -> bool:
        return any(unit == "usd" for _, unit in self.limits)

    def used(self, window: str, unit: Unit, now: datetime) -> float:
        began, used = self._cells.get((window, unit), (0.0, 0.0))
        return used if began == _began(window, now) else 0.0

    def exhausted(self, now: datetime) -> bool:
        return any(self.used(window, unit, now) >= limit for (window, unit), limit in self.limits.items())

    def use(self, usd: float, tokens: float, now: datetime) -> None:
        """Less than nothing gives back what was held for a copy and not used."""
        with self._lock:
            for (window, unit), cells in self._cells.items():
                used = self.used(window, unit, now) + (usd if unit == "usd" else tokens)
                cells[0], cells[1] = _began(window, now), max(0.0, used)


def _began(window: str, now: datetime) -> float:
    """When the minute or the day (UTC) under way began, in seconds since the epoch."""
    return now.timestamp() // (60 if window == "minute" else 86_400) * (60 if window == "minute" else 86_400)


class Budget:
    """
    The budget of this router's environment; several of them are one, the smallest.

    Args:
        specs: Of router.yaml.
        rates: Prices by model.
        store: Who else spends it.
    """

    def __init__(
        self, specs: Iterable[config.Budget], environment: str, rates: Mapping[str, Rates], store: Store | None = None
    ) -> None:
        mine = [spec for spec in specs if spec.environment == environment]
        self._spec = min(mine, key=lambda spec: spec.per_day.amount, default=None)
        self._rates = rates
        store = store or Alone()
        self._lock = store.lock
        self._cells = store.cells(2)  # the day, and what was spent on it

    @property
    def limit_usd(self) -> float | None:
        return None if self._spec is None else float(self._spec.per_day.amount)

    def spend(self, usd: float, now: datetime) -> None:
        with self._lock:
            self._cells[1] = self.spent_usd(now) + usd
            self._cells[0] = _began("day", now)

    def spent_usd(self, now: datetime) -> float:
        day, spent = self._cells
        return spent if day == _began("day", now) else 0.0

    def exceeded(self, now: datetime) -> bool:
        return self._spec is not None and self.spent_usd(now) >= float(self._spec.per_day.amount)

    def allowed(self, plan: Plan, now: datetime) -> Plan | ApiError:
        """
        A plan after the budget is spent: models that cost no more than the one to go down to, and that one first where the assigned
        model is dearer. Such a request takes no part in a flag's comparison.

        Returns:
            An error where the file says to refuse.
        """
        spec = self._spec
        assert spec is not None
        if spec.on_exceed == "refuse" or spec.downgrade_to is None:
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            message = f"The budget of {spec.environment} is spent: {spec.per_day} a day. It begins anew at midnight UTC."
            after = str(int((midnight - now).total_seconds()) + 1)
            return ApiError(
                status=429, message=message, type="insufficient_quota", code="budget_exceeded", retry_after=after, retryable=False
            )
        down = spec.downgrade_to
        steps = tuple(step for step in plan.steps if self._price(step.model) <= self._price(down))
        mirror = plan.mirror if plan.mirror is not None and self._price(plan.mirror.model) <= self._price(down) else None
        if plan.steps[0] in steps:
            checked = plan.refusal_checked and steps[1:2] == plan.steps[1:2]
            return replace(plan, steps=steps, mirror=mirror, refusal_checked=checked)
        return apart(plan.route, (Step(model=down), *(step for step in steps if step.model != down or step.forced)), "budget")

    def _price(self, model: str) -> float:
        """Of a token in and one out; infinite without a price."""
        rates = self._rates.get(model)
        return float("inf") if rates is None else rates.input + rates.output
