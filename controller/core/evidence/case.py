"""
The evidence of one live rollout: traffic in, what each gate is worth out, all of it as text between two looks.

It stands between `controller.core.traffic` (what was counted) and the engines (what it proves). Gates that act differently have an engine
each, and so have histogram gates whose bucket edges become known later than the others': the error budget is shared between engines by the
weights of their gates. Its one rule: whoever has the text of a case and the traffic since gets the same numbers, bit for bit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence import state as engine_state
from controller.core.evidence.engine import Engine
from controller.core.evidence.increments import Step
from controller.core.evidence.terms import Action, configs_of
from controller.core.gates import Weighed
from controller.core.plan import Plan
from controller.core.traffic import REQUESTS, Beat, Kind, Question, Reading, Traffic, columns_of, question_of, questions_of

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A breach: the gate that contributed most, at which severity, and the beat that completed the evidence."""

    gate: str
    rung: str
    at: datetime


@dataclass(slots=True, kw_only=True)
class _Desk:
    """One engine, the questions that it counts, and where their columns lie in a row of traffic."""

    name: str
    generation: int
    engine: Engine
    pick: NDArray[np.intp]
    struck: Struck | None = None


class Case:
    """Mutable, owned by whoever feeds it. `of` opens or restores one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.questions: tuple[Question, ...] = questions_of(plan)
        self.phase = -1
        self.since: datetime | None = None
        self.at: datetime | None = None
        self.ledger: Mapping[str, Any] = {}
        self.requests = (0.0, 0.0)
        """Of candidate and baseline in this phase."""
        self._generations: list[dict[str, tuple[float, ...]]] = []
        self._desks: list[_Desk] = []
        self._problems: Mapping[str, str] = {}
        self._absent: Mapping[str, tuple[str, ...]] = {}

    @classmethod
    def of(cls, plan: Plan, text: str) -> "Case":
        """
        Args:
            plan: The rollout's plan.
            text: From `text` of an earlier look; "" to begin.

        Raises:
            ValueError: It was written by a release that this one does not know, or for other gates.
        """
        case = cls(plan)
        if text:
            case._restore(json.loads(text))
        return case

    def take(self, reading: Reading) -> None:
        """
        Add what happened since the last look.

        Args:
            reading: All beats after the last one taken; none from before its phase began. Another phase or beginning than in the reading before
                means that the phase begins (anew).
        """
        traffic = reading.traffic
        self._learn_edges(traffic)
        if (reading.phase, reading.since) != (self.phase, self.since):
            self._enter(reading.phase, reading.since)
        self._problems, self._absent = dict(traffic.problems), dict(traffic.absent)
        before = traffic.since
        for beat in traffic.beats:
            self._feed(beat, (beat.at - before) / traffic.step)
            before = beat.at
        self.at = before

    def struck(self) -> Struck | None:
        """The first breach of an engine whose gates act, if there is one."""
        found = [d.struck for d in self._desks if d.struck is not None and not d.name.startswith(Action.TELL)]
        return min(found, key=lambda s: s.at, default=None)

    def weighed(self) -> dict[str, Weighed]:
        """What the evidence says of each statistical gate; gates whose buckets are not known yet are left out."""
        keys = {g.name: q.key for g in self.plan.gates if (q := question_of(g)) is not None}
        found = {}
        for desk in self._desks:
            hindrance = desk.engine.hindrance
            for finding in desk.engine.findings():
                key = keys[finding.gate]
                found[finding.gate] = Weighed(
                    finding=finding,
                    breached=desk.struck is not None and desk.struck.gate == finding.gate,
                    hindrance=hindrance,
                    requests=self.requests[0],
                    problem=self._problems.get(key, ""),
                    absent=self._absent.get(key, ()),
                )
        return found

    def counts(self, gate: str) -> bool:
        """Whether an engine judges this gate already: for a histogram, whether its buckets are known."""
        return any(g.name == gate for d in self._desks for g in d.engine.config.gates)

    def text(self) -> str:
        """Everything, as JSON; what `of` reads."""
        return json.dumps(
            {
                "v": VERSION,
                "phase": self.phase,
                "since": _iso(self.since),
                "at": _iso(self.at),
                "requests": self.requests,
                "generations": self._generations,
                "engines": [
                    {
                        "name": d.name,
                        "generation": d.generation,
                        "state": engine_state.dump(d.engine),
                        "struck": None
                        if d.struck is None
                        else {"gate": d.struck.gate, "rung": d.struck.rung, "at": _iso(d.struck.at)},
                    }
                    for d in self._desks
                ],
                "problems": dict(self._problems),
                "absent": dict(self._absent),
                "ledger": dict(self.ledger),
            },
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )

    # -----------------------------------------------------------------------------------------------------------------------------

    def _enter(self, phase: int, since: datetime) -> None:
        self.phase, self.since, self.requests = phase, since, (0.0, 0.0)
        for desk in self._desks:
            if desk.struck is not None:
                # A person went on in spite of it: what spoke against the candidate has been answered. The watch begins anew in this phase, as
                # an engine that had never entered one, and with a budget of its own: whoever goes on once more is asked once more.
                fresh = Engine(desk.engine.config)
                fresh.reference = desk.engine.reference
                desk.engine, desk.struck = fresh, None
            desk.engine.enter(phase)

    def _feed(self, beat: Beat, scrapes: float) -> None:
        if scrapes <= 0:
            return
        cand, base = np.array(beat.candidate), np.array(beat.baseline)
        at = self._column(f"{REQUESTS}:total")
        self.requests = (self.requests[0] + float(cand[at]), self.requests[1] + float(base[at]))
        for desk in self._desks:
            found = desk.engine.feed(Step(cand=cand[desk.pick], base=base[desk.pick], scrapes=scrapes))
            if found is not None and desk.struck is None:
                desk.struck = Struck(gate=found.gate, rung=found.rung, at=beat.at)

    def _learn_edges(self, traffic: Traffic) -> None:
        """Engines for what can be counted from now on: at the first look almost always everything."""
        known = self._edges()
        new = {k: tuple(v) for k, v in traffic.edges.items() if k not in known}
        if not self._generations or new:
            self._generations.append(new)
            self._build(len(self._generations) - 1)
            self._place()
            if traffic.history:
                table = np.array(traffic.history, dtype=np.float64).reshape(len(traffic.history), -1)
                for desk in self._desks:
                    desk.engine.learn_increments(table[:, desk.pick].tolist(), traffic.history_step / traffic.step)

    def _build(self, generation: int, states: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """The engines of one generation; entered into the current phase, or as `states` has them."""
        edges = self._generations[generation]
        earlier = {k for g in self._generations[:generation] for k in g}
        questions = tuple(
            q
            for q in self.questions
            if (q.key in edges if q.kind is Kind.HISTOGRAM else generation == 0) and q.key not in earlier
        )
        for name, config in configs_of(self.plan, questions, edges).items():
            engine = Engine(config) if states is None else engine_state.load(config, dict(states[name]))
            if states is None and self.phase >= 0:
                engine.enter(self.phase)
            self._desks.append(_Desk(name=name, generation=generation, engine=engine, pick=np.zeros(0, dtype=np.intp)))

    def _place(self) -> None:
        """Where each engine's columns lie in a row: rows grow when edges become known."""
        row = {c: i for i, c in enumerate(columns_of(self.questions, self._edges()))}
        for desk in self._desks:
            desk.pick = np.array([row[c] for c in desk.engine.config.columns], dtype=np.intp)

    def _edges(self) -> dict[str, tuple[float, ...]]:
        return {k: v for g in self._generations for k, v in g.items()}

    def _column(self, name: str) -> int:
        return columns_of(self.questions[:1], {}).index(name)  # the requests come first

    def _restore(self, data: Mapping[str, Any]) -> None:
        if data.get("v") != VERSION:
            raise ValueError(f"evidence of version {data.get('v')!r}, this release reads {VERSION}")
        self.phase, self.since, self.at = data["phase"], _time(data["since"]), _time(data["at"])
        self.requests = (data["requests"][0], data["requests"][1])
        self.ledger = data["ledger"]
        self._problems = data["problems"]
        self._absent = {k: tuple(v) for k, v in data["absent"].items()}
        for generation, edges in enumerate(data["generations"]):
            self._generations.append({k: tuple(v) for k, v in edges.items()})
            states = {e["name"]: e["state"] for e in data["engines"] if e["generation"] == generation}
            self._build(generation, states)
        struck = {(e["name"], e["generation"]): e["struck"] for e in data["engines"]}
        for desk in self._desks:
            if (s := struck[desk.name, desk.generation]) is not None:
                at = _time(s["at"])
                assert at is not None
                desk.struck = Struck(gate=s["gate"], rung=s["rung"], at=at)
        self._place()


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
