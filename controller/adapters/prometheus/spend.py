"""
What a rollout has cost so far, by arm, as the router priced it.

Beside the metric source, for people to look at; no decision rests on it. Its one rule: what nobody counted is None, never 0.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from controller.adapters.prometheus.client import PrometheusClient
from controller.adapters.prometheus.profile import escape
from controller.core.plan import Plan
from controller.ports import Unavailable

LONGEST = timedelta(days=30)
"""Further back a server has seldom kept anything, and a question costs more than its answer is worth."""


class SpendUnavailable(Unavailable):
    """Prometheus did not say."""


def spent(client: PrometheusClient, plan: Plan, begin: datetime, end: datetime) -> Mapping[str, float] | None:
    """
    Args:
        client: Where.
        plan: Whose flag.
        begin, end: Of the rollout.

    Returns:
        US dollars by arm (`baseline`, `candidate`, `shadow`); None where no such series is: another profile, or nothing yet.

    Raises:
        SpendUnavailable: no answer, or one that cannot be trusted.
    """
    seconds = max(1, int(min(end - begin, LONGEST).total_seconds()))
    where = f'environment="{escape(plan.environment)}",flag="{escape(plan.flag)}"'
    query = f"sum by (arm) (increase(penstock_cost_usd_total{{{where}}}[{seconds}s]))"
    answer = client.ask([query], end)[query]
    if answer.failure:
        raise SpendUnavailable(answer.failure)
    found = {s.labels["arm"]: s.value for s in answer.series if "arm" in s.labels}
    return found or None
