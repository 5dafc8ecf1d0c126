"""When a gate check makes the candidate fail on purpose: each test breaks one condition of a rollout that lacks nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.adapters.memory import Behaviour, MemoryAudit, MemoryFlags, MemoryMetrics
from controller.codec import plan_digest
from controller.commands import start
from controller.core.converge import Convergence, Drift, InStep, Killed
from controller.core.decision import Advance, Hold, Weights, Why
from controller.core.exercise import Exercise, exercises
from controller.core.gates import GateResult, Verdict
from controller.core.measurement import Counts, NoData, Sampled
from controller.core.plan import (
    Approval,
    AtLeast,
    FreezeSpan,
    GateMode,
    Mode,
    Phase,
    Plan,
    Policy,
    RateLimit,
)
from controller.core.rollout import AwaitingApproval, Baking, Decided, Paused, Pending, Rollout, State
from controller.ports import Drilled, DrillRefused, Ports, Unavailable
from controller.spec import RolloutSpec
from controller.tick import DRILLS_MAX, Outcome, Tick, tick
from flagspec import Variant
from specfile import SpecError, parse_text

BEGAN = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
NOW = BEGAN + timedelta(hours=2)
HOUR = timedelta(hours=1)
FALLBACK = AtLeast(name="fallback", indicator="fallbacks", times=1, by_phase="canary", exercise=True)
PLAN = Plan(
    name="chat",
    environment="production",
    flag="chat",
    baseline=Variant(model="old"),
    candidate=Variant(model="new"),
    phases=(
        Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=HOUR),
        Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=HOUR),
    ),
    gates=(RateLimit(name="errors", indicator="error_ratio", limit=0.01), FALLBACK),
    policy=Policy(),
)
ERRORS = GateResult(gate="errors", verdict=Verdict.PASS, reason="fine")
LACKING = GateResult(gate="fallback", verdict=Verdict.INSUFFICIENT, observed=0.0, limit=1.0, reason="seen 0 times, needed 1")
ONE = Exercise(gate="fallback", route="", streaming=False, times=1)


def plan_with(*events: AtLeast, **changes: object) -> Plan:
    return replace(PLAN, gates=(PLAN.gates[0], *events), **changes)  # type: ignore[arg-type]


def rollout(state: State | None = None, plan: Plan = PLAN) -> Rollout:
    state = state or Baking(phase=0, since=BEGAN)
    return Rollout(id="chat-1", plan=plan, plan_digest="d", requester="rita", opened_at=BEGAN, state=state, seq=5)


def due(
    *results: GateResult,
    state: State | None = None,
    plan: Plan = PLAN,
    convergence: Convergence | None = None,
    now: datetime = NOW,
) -> tuple[Exercise, ...]:
    return exercises(rollout(state, plan), convergence or InStep(), results or (ERRORS, LACKING), now)


def test_an_event_that_alone_is_lacking_is_exercised() -> None:
    assert due() == (ONE,)


def test_it_is_not_without_the_plans_word() -> None:
    assert due(plan=plan_with(replace(FALLBACK, exercise=False))) == ()


@pytest.mark.parametrize(
    "fallback",
    [
        replace(LACKING, verdict=Verdict.PASS, observed=1.0),
        replace(LACKING, verdict=Verdict.ERROR, observed=None, reason="the query failed"),
        replace(LACKING, observed=None, reason="no data: no such series"),
        replace(LACKING, mode=GateMode.WARN),
    ],
    ids=["seen", "failed", "no-series", "warning"],
)
def test_nothing_is_exercised_that_does_not_hold_the_rollout_or_that_nobody_could_see(fallback: GateResult) -> None:
    assert due(ERRORS, fallback) == ()


@pytest.mark.parametrize("verdict", [Verdict.INSUFFICIENT, Verdict.ERROR, Verdict.BREACH])
def test_nothing_is_exercised_while_another_gate_lacks_its_pass(verdict: Verdict) -> None:
    assert due(replace(ERRORS, verdict=verdict), LACKING) == ()


def test_traffic_has_the_whole_bake_to_bring_it_about_by_itself() -> None:
    assert due(now=BEGAN + HOUR - timedelta(seconds=1)) == ()
    assert due(now=BEGAN + HOUR) == (ONE,)


@pytest.mark.parametrize(
    ("state", "convergence"),
    [
        (Paused(settled=Baking(phase=0, since=BEGAN), why=Why.BY_PERSON, text="wait", since=BEGAN), InStep()),
        (None, Killed()),
        (None, Drift(expected=Weights(live=5_000), text="the flag is at 7%")),
    ],
    ids=["paused", "killed", "drift"],
)
def test_nothing_is_exercised_in_a_rollout_that_does_not_go_on(state: State | None, convergence: Convergence) -> None:
    assert due(state=state, convergence=convergence) == ()


def test_nothing_fails_on_purpose_in_a_freeze() -> None:
    starts = BEGAN.replace(tzinfo=None)  # wall-clock time of the freeze's own zone
    freeze = FreezeSpan(name="fair", starts=starts, ends=starts + timedelta(days=1), timezone="UTC")
    assert due(plan=replace(PLAN, freezes=(freeze,))) == ()
    assert due(plan=replace(PLAN, freezes=(freeze,)), now=BEGAN + timedelta(days=2)) == (ONE,)


def test_an_approval_is_not_waited_for_because_people_are_asked_afterwards() -> None:
    canary, full = PLAN.phases
    plan = replace(PLAN, phases=(canary, replace(full, approval=Approval(groups=("managers",)))))
    assert due(plan=plan) == (ONE,)
    assert due(plan=plan, state=AwaitingApproval(phase=0, since=BEGAN, entering=1, asked_at=BEGAN)) == (ONE,)


def test_before_the_start_there_is_nothing_to_exercise() -> None:
    assert exercises(rollout(Pending()), InStep(), (), NOW) == ()


def test_it_says_how_often_by_which_route_and_whether_as_a_stream() -> None:
    often = replace(FALLBACK, times=5, where={"route": "chat", "streaming": "true", "outcome": "ok"})
    assert due(ERRORS, replace(LACKING, observed=1.97), plan=plan_with(often)) == (
        Exercise(gate="fallback", route="chat", streaming=True, times=3),
    )


def test_gates_that_one_drill_serves_are_one() -> None:
    plain, twice = FALLBACK, replace(FALLBACK, name="twice", times=2)
    streamed = replace(FALLBACK, name="streamed", where={"streaming": "true"})
    lacking = tuple(replace(LACKING, gate=g.name) for g in (plain, twice, streamed))
    assert due(ERRORS, *lacking, plan=plan_with(plain, twice, streamed)) == (
        Exercise(gate="twice", route="", streaming=False, times=2),
        Exercise(gate="streamed", route="", streaming=True, times=1),
    )


def test_an_event_that_may_not_be_exercised_keeps_the_others_from_it() -> None:
    by_hand = replace(FALLBACK, name="by-hand", exercise=False)
    assert due(ERRORS, LACKING, replace(LACKING, gate="by-hand"), plan=plan_with(FALLBACK, by_hand)) == ()


# --- in rollout.yaml --------------------------------------------------------------------------------------------------------------

SPEC = """\
apiVersion: penstock/v1
kind: Rollout
metadata: {name: chat}
flag: chat-model
baseline: {model: old}
candidate: {model: new}
slos: [{name: errors, indicator: error_ratio, max: 1%}]
events: [{name: tried, EVENT, by_phase: full}]
phases: [{name: full, traffic: 100%, bake: 1h}]
"""


@pytest.mark.parametrize(
    "event",
    [
        "indicator: fallbacks, at_least: 1, exercise: true",
        "indicator: fallbacks, at_least: 1, exercise: true, where: {reason: drill, outcome: ok, streaming: 'true'}",
    ],
)
def test_a_plan_says_that_its_event_may_be_exercised(event: str) -> None:
    (gate,) = [g for g in parse_text(RolloutSpec, SPEC.replace("EVENT", event)).to_plan().gates if isinstance(g, AtLeast)]
    assert gate.exercise


def test_by_default_an_event_is_not_exercised() -> None:
    spec = parse_text(RolloutSpec, SPEC.replace("EVENT", "indicator: fallbacks, at_least: 1"))
    assert [g.exercise for g in spec.to_plan().gates if isinstance(g, AtLeast)] == [False]


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ("indicator: custom, at_least: 1, promql: {value: x}, exercise: true", "custom cannot be exercised; fallbacks can"),
        ("indicator: fallbacks, at_least: 1, exercise: true, where: {reason: failure}", "a drill never counts where"),
        ("indicator: fallbacks, at_least: 1, exercise: true, where: {outcome: failed}", "a drill never counts where"),
    ],
)
def test_what_no_drill_can_bring_about_is_refused_at_its_place(event: str, problem: str) -> None:
    with pytest.raises(SpecError, match=rf"events\.0\.exercise: {problem}"):
        parse_text(RolloutSpec, SPEC.replace("EVENT", event))


# --- in a look --------------------------------------------------------------------------------------------------------------------


@dataclass
class Planes:
    """A rollout in its canary, whose fallbacks are counted by `metrics` as the drills come; `answer` is what a drill meets."""

    plan: Plan = PLAN
    answer: Callable[[], Drilled] = lambda: Drilled(answered_by="old", took=timedelta(seconds=0.5))
    sent: list[tuple[str, str, str, bool]] = field(default_factory=list)
    with_drills: bool = True
    now: datetime = BEGAN

    def __post_init__(self) -> None:
        good = Behaviour(rps=20.0, bad={"error_ratio": 0.001})
        self.audit, self.flags = MemoryAudit(clock=lambda: self.now), MemoryFlags(clock=lambda: self.now)
        self.metrics = MemoryMetrics(candidate=good, baseline=good)
        self.count(0)
        self.ports = Ports(
            audit=self.audit,
            index=self.audit,
            flags=self.flags,
            metrics=self.metrics,
            drills=self if self.with_drills else None,
        )
        self.rollout_id = start(self.plan, plan_digest(self.plan), self.ports, actor="rita", key="k").id
        assert isinstance(self.look().decision, Advance)
        self.now += HOUR + timedelta(minutes=15)

    def fallback(self, environment: str, flag: str, *, route: str = "", streaming: bool = False) -> Drilled:
        self.sent.append((environment, flag, route, streaming))
        seen = self.answer()
        self.count(len(self.sent))
        return seen

    def count(self, seen: float) -> None:
        self.metrics.says["fallback"] = Sampled(candidate=Counts(bad=0.0, total=seen))

    def look(self, *, may_raise: bool = True, dry_run: bool = False) -> Tick:
        return tick(self.rollout_id, self.ports, self.now, may_raise=may_raise, dry_run=dry_run)


def test_the_gate_check_holds_sends_the_drill_and_advances_at_the_next_one() -> None:
    planes = Planes()
    held = planes.look()
    assert isinstance(held.decision, Hold) and held.decision.why is Why.NOT_ENOUGH_EVIDENCE
    assert held.drilled == ("fallback: drill, old answered in place of new after 0.50 s",)
    assert planes.sent == [("production", "chat", "", False)]
    planes.now += timedelta(minutes=15)
    advanced = planes.look()
    assert isinstance(advanced.decision, Advance) and advanced.drilled == ()
    assert len(planes.sent) == 1


def test_the_decision_stands_in_the_log_before_the_drill_is_sent() -> None:
    planes = Planes()
    seen: list[str] = []

    def answer() -> Drilled:
        event = planes.audit.entries(planes.rollout_id)[-1].event
        seen.append(event.decision.kind if isinstance(event, Decided) else event.kind)
        return Drilled(answered_by="old", took=timedelta(seconds=1))

    planes.answer = answer
    planes.look()
    assert seen == ["hold"]


def test_a_drill_leaves_no_row() -> None:
    planes = Planes()
    before = len(planes.audit.entries(planes.rollout_id))
    planes.look()
    assert len(planes.audit.entries(planes.rollout_id)) == before + 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DrillRefused("the flag is killed"), "fallback: no drill, the flag is killed"),
        (Unavailable("the router is down"), "fallback: no drill, the router is down"),
    ],
)
def test_a_router_that_takes_no_drill_changes_no_decision(error: Exception, says: str) -> None:
    def answer() -> Drilled:
        raise error

    planes = Planes(plan=plan_with(replace(FALLBACK, times=3)), answer=answer)
    held = planes.look()
    assert held.outcome is Outcome.DECIDED and isinstance(held.decision, Hold)
    assert held.drilled == (says,)
    assert len(planes.sent) == 1


def test_a_fallback_that_does_not_answer_is_told_and_not_tried_again_in_this_look() -> None:
    failed = Drilled(answered_by="", took=timedelta(seconds=1), text="502: No model answered")
    planes = Planes(plan=plan_with(replace(FALLBACK, times=3)), answer=lambda: failed)
    assert planes.look().drilled == ("fallback: drill, nobody answered in place of new: 502: No model answered",)
    assert len(planes.sent) == 1


def test_as_many_are_sent_as_are_lacking_and_at_most_ten_in_a_look() -> None:
    planes = Planes(plan=plan_with(replace(FALLBACK, times=3)))
    planes.look()
    assert len(planes.sent) == 3
    planes = Planes(plan=plan_with(replace(FALLBACK, times=25)))
    planes.look()
    assert len(planes.sent) == DRILLS_MAX == 10


def test_without_a_router_or_a_token_the_look_says_what_to_set() -> None:
    planes = Planes(with_drills=False)
    (said,) = planes.look().drilled
    assert said.startswith("fallback: no drill, PENSTOCK_ROUTER_URL or PENSTOCK_DRILL_TOKEN is not set")


def test_guard_and_dry_run_send_nothing() -> None:
    planes = Planes()
    assert planes.look(may_raise=False).outcome is Outcome.QUIET
    assert isinstance(planes.look(dry_run=True).decision, Hold)
    assert planes.sent == []


def test_who_loses_the_race_for_the_row_leaves_the_drill_to_the_winner() -> None:
    planes = Planes()
    audit, raced = planes.audit, list[Tick]()

    class Late:
        """The log of a controller that another one overtakes just before it writes."""

        def append(self, *args: object) -> object:
            if not raced:
                raced.append(planes.look())
            return audit.append(*args)  # type: ignore[arg-type]  # as they came

        def __getattr__(self, name: str) -> object:
            return getattr(audit, name)

    ports = replace(planes.ports, audit=Late())  # type: ignore[arg-type]  # it has the methods of the one behind it
    lost = tick(planes.rollout_id, ports, planes.now, may_raise=True)
    assert (lost.outcome, lost.drilled) == (Outcome.LOST_RACE, ())
    assert raced[0].outcome is Outcome.DECIDED and len(planes.sent) == 1


def test_no_data_of_the_event_is_never_drilled_for() -> None:
    planes = Planes()
    planes.metrics.says["fallback"] = NoData(reason="no such series")
    assert planes.look().drilled == ()
    assert planes.sent == []
