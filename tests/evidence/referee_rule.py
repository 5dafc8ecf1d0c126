"""
The judge as a rule of the referee's Python interface, every 15 s (its pipe protocol ticks once a minute):

    referee.py --rule py:tests.evidence.referee_rule:Penstock:15

`PenstockStrict` asks for a proof of every gate.
"""

from collections.abc import Mapping
from typing import Any

from controller.core.evidence.increments import Problem
from controller.judge import Desk, config_of
from tests.evidence.support import columns


class Penstock:
    period = 15
    evidence_required = False

    def reset(self, bounds: Any, cfg: Mapping[str, Any]) -> None:
        """A new rollout."""
        edges = tuple(float(b) for b in bounds)
        init = {
            "columns": columns(edges),
            "bounds": edges,
            "slo": cfg["slo"],
            "phases": cfg["phases"],
            "scrape_s": cfg["scrape_s"],
        }
        self.desk = Desk(config_of(init, evidence_required=self.evidence_required))
        self.sent = 0
        self.last_reason = ""

    def decide(self, history: Any, ctx: Mapping[str, Any]) -> str:
        """Feed what is new, answer."""
        for i in range(self.sent, history.n):
            found = self.desk.scrape(i * 15.0, int(history.phase[i]), history.cum["cand"][i], history.cum["base"][i])
            if isinstance(found, Problem):
                raise ValueError(found.text)
        self.sent = history.n
        answer = self.desk.answer(is_gate=bool(ctx["is_gate"]))
        self.last_reason = str(answer.get("reason", ""))
        return str(answer["decision"])


class PenstockStrict(Penstock):
    evidence_required = True
