"""
What an environment may spend in a day, and what happens when it has.

Its one rule: the day is UTC's, and only what was spent counts: a request under way is finished, whatever it costs. Pure: the time is an
argument.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Literal

from router import config
from router.errors import ApiError
from router.selection import Plan, Step, apart
from router.usage import Rates

Unit = Literal["usd", "tokens"]


class Allowance:
    """
    What mirrored copies may use in a minute and in a day, in USD and in tokens. Windows begin with the clock's minute and UTC's day.

    Args:
        spec: None: as much as they like, and booked elsewhere.
    """

    def __init__(self, spec: config.ShadowBudget | None) -> None:
        spec = spec or config.ShadowBudget()
        dollars = {"minute": spec.per_minute, "day": spec.per_day}
        tokens = {"minute": spec.tokens_per_minute, "day": spec.tokens_per_day}
        self.limits: dict[tuple[str, Unit], float] = {}
        for window in ("minute", "day"):
            if (money := dollars[window]) is not None:
                self.limits[window, "usd"] = float(money.amount)
            if (count := tokens[window]) is not None:
                self.limits[window, "tokens"] = float(count)
        self._begun: dict[str, datetime] = {}
        self._used: dict[tuple[str, Unit], float] = {}

    @property
    def of_its_own(self) -> bool:
        """Whether copies have one at all; else they are part of the environment's budget."""
        return bool(self.limits)

    @property
    def priced(self) -> bool:
        return any(unit == "usd" for _, unit in self.limits)

    def used(self, window: str, unit: Unit, now: datetime) -> float:
        self._turn(now)
        return self._used.get((window, unit), 0.0)

    def exhausted(self, now: datetime) -> bool:
        return any(self.used(window, unit, now) >= limit for (window, unit), limit in self.limits.items())

    def use(self, usd: float, tokens: float, now: datetime) -> None:
        """Less than nothing gives back what was held for a copy and not used."""
        self._turn(now)
        for window, unit in self.limits:
            amount = usd if unit == "usd" else tokens
            self._used[window, unit] = max(0.0, self._used.get((window, unit), 0.0) + amount)

    def _turn(self, now: datetime) -> None:
        for window in ("minute", "day"):
            begun = (
                now.replace(second=0, microsecond=0)
                if window == "minute"
                else now.replace(hour=0, minute=0, second=0, microsecond=0)
            )
            if self._begun.get(window) != begun:
                self._begun[window] = begun
                self._used = {key: used for key, used in self._used.items() if key[0] != window}


class Budget:
    """
    The budget of this router's environment; several of them are one, the smallest.

    Args:
        specs: Of router.yaml.
        rates: Prices by model.
    """

    def __init__(self, specs: Iterable[config.Budget], environment: str, rates: Mapping[str, Rates]) -> None:
        mine = [spec for spec in specs if spec.environment == environment]
        self._spec = min(mine, key=lambda spec: spec.per_day.amount, default=None)
        self._rates = rates
        self._day = date.min
        self._spent_usd = 0.0

    @property
    def limit_usd(self) -> float | None:
        return None if self._spec is None else float(self._spec.per_day.amount)

    def spend(self, usd: float, now: datetime) -> None:
        self._turn(now)
        self._spent_usd += usd

    def spent_usd(self, now: datetime) -> float:
        self._turn(now)
        return self._spent_usd

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

    def _turn(self, now: datetime) -> None:
        if now.date() != self._day:
            self._day, self._spent_usd = now.date(), 0.0
