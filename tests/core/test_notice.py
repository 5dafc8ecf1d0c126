"""What people are told: the account of a decision, and how loud."""

from datetime import UTC, datetime, timedelta

from controller.adapters.memory import Behaviour, MemoryAudit, MemoryFlags, MemoryMetrics
from controller.codec import plan_digest
from controller.commands import roll_back, start
from controller.core.measurement import Counts, Sampled
from controller.core.notice import Level, Notice, account_of
from controller.core.plan import GateMode, Mode, Phase, Plan, Policy, RateLimit, Silence
from controller.core.rollout import Decided, replay
from controller.ports import Ports
from controller.tick import tick
from flagspec import Variant

BEGAN = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
BASELINE = Behaviour(rps=100.0, bad={"error_ratio": 0.001})


class Story:
    """A rollout of two phases on invented traffic."""

    def __init__(self, *, mode: GateMode = GateMode.ENFORCE) -> None:
        self.now = BEGAN
        self.audit = MemoryAudit(clock=lambda: self.now)
        flags = MemoryFlags(clock=lambda: self.now)
        reports = Sampled(candidate=Counts(bad=0, total=500), baseline=Counts(bad=0, total=9500))
        self.metrics = MemoryMetrics(says={"candidate-reports": reports}, baseline=BASELINE)
        self.ports = Ports(audit=self.audit, index=self.audit, flags=flags, metrics=self.metrics)
        plan = Plan(
            name="chat",
            environment="production",
            flag="chat",
            baseline=Variant(model="old"),
            candidate=Variant(model="new"),
            phases=(
                Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta(hours=1)),
                Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(hours=1)),
            ),
            gates=(
                RateLimit(name="errors", indicator="error_ratio", limit=0.01),
                RateLimit(name="timeouts", indicator="timeout_ratio", limit=0.005, mode=mode),
                Silence(),
            ),
            policy=Policy(every=timedelta(minutes=15)),
        )
        self.id = start(plan, plan_digest(plan), self.ports, actor="rita", key="k").id
        self.look(timedelta(0))

    def behaves(self, **bad: float) -> None:
        self.metrics.candidate = Behaviour(rps=5.0, bad=bad)

    def look(self, later: timedelta, *, may_raise: bool = True) -> None:
        self.now += later
        tick(self.id, self.ports, self.now, may_raise=may_raise)

    @property
    def told(self) -> list[Notice]:
        return [letter.notice for letter in self.audit.letters]


def test_a_rollback_is_told_in_one_sentence_with_numbers_time_and_exposure() -> None:
    story = Story()
    story.behaves(error_ratio=0.4)
    for _ in range(4):
        story.look(timedelta(seconds=15), may_raise=False)
    last = story.told[-1]
    assert last.level is Level.ALARM
    assert last.text.startswith("errors: 40% of ")
    assert last.text.endswith(", limit 1%; rolled back to 0% after 15 s in canary, 75 requests exposed")
    rows = story.audit.rows[story.id]
    decided = [e for e in rows if isinstance(e.event, Decided)][-1]
    assert account_of(decided, rows) == last.text


def test_a_phase_that_bakes_while_proofs_grow_is_told_to_nobody() -> None:
    story = Story()
    story.behaves(error_ratio=0.001)
    before = len([n for n in story.told if n.level is not Level.INFO])
    for _ in range(3):
        story.look(timedelta(minutes=15))
    assert len([n for n in story.told if n.level is not Level.INFO]) == before
    assert replay(story.audit.rows[story.id]).troubled == 0


def test_a_gate_that_warns_is_told_once_when_its_breach_begins_and_does_not_act() -> None:
    story = Story(mode=GateMode.WARN)
    story.behaves(error_ratio=0.001, timeout_ratio=0.2)
    for _ in range(3):
        story.look(timedelta(minutes=15))
    warnings = [n for n in story.told if n.text.startswith("warning: timeouts: 20% of ")]
    assert [n.level for n in warnings] == [Level.NEWS]
    assert not replay(story.audit.rows[story.id]).ended


def test_a_gate_in_dry_run_is_recorded_and_told_to_nobody() -> None:
    story = Story(mode=GateMode.DRY_RUN)
    story.behaves(error_ratio=0.001, timeout_ratio=0.2)
    story.look(timedelta(minutes=15))
    assert not [n for n in story.told if "warning" in n.text]
    last = story.audit.rows[story.id][-1].event
    assert isinstance(last, Decided)
    assert {r.gate: r.verdict.value for r in last.observed.results}["timeouts"] == "breach"


def test_a_rollback_by_itself_calls_whoever_is_on_call_and_one_by_a_person_does_not() -> None:
    story = Story()
    story.behaves(error_ratio=0.4)
    for _ in range(4):
        story.look(timedelta(seconds=15), may_raise=False)
    assert (story.told[-1].on_call, story.told[-1].next_look) == (True, None)
    assert [n.on_call for n in story.told if n.level is not Level.ALARM] == [False] * (len(story.told) - 1)

    other = Story()
    roll_back(other.id, other.ports, actor="rita", reason="enough")
    assert (other.told[-1].level, other.told[-1].on_call) == (Level.ALARM, False)


def test_a_notice_says_when_the_next_gate_check_is_due() -> None:
    story = Story()
    story.behaves(error_ratio=0.001)
    story.look(timedelta(minutes=15))
    assert story.told[-1].next_look == story.now + timedelta(minutes=15)
