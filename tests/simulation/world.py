"""
A small world for the controller: an invented clock, ports that fail on command, other controllers, and a witness at the flag.

Every port call passes through `World.call`, where the next of the planned faults may strike: before the effect, after it, as a crash
of the process, or as something that another party does at exactly that moment.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from controller import codec, commands
from controller.adapters.memory import CAPABILITIES, Behaviour, MemoryAudit, MemoryFlags, MemoryMetrics
from controller.core.decision import Advance, Promote, Resume
from controller.core.gates import Verdict
from controller.core.measurement import Counted, Counts, Evidence, Measurement, NoData, QueryFailed, Sampled
from controller.core.notice import Notice
from controller.core.plan import (
    Approval,
    DeadManAction,
    Gate,
    GateMode,
    Mode,
    OnDrift,
    Phase,
    Plan,
    Policy,
    QuantileIncrease,
    RateLimit,
    Silence,
)
from controller.core.rollout import Applied, Approved, Decided, Entry, replay
from controller.core.traffic import Question, TrafficRead
from controller.ports import AuditUnavailable, FlagChange, FlagUnavailable, NewEntry, News, Planned, PortError, Ports, Scope
from controller.shelf import CaseShelf, Mark, StandingShelf
from controller.tick import tick
from flagspec import RouteFlag, Variant
from tests.recheck import assert_replays

T = TypeVar("T")
START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
EVERY = timedelta(minutes=15)
BEAT = timedelta(minutes=5)
"""Of the traffic: coarse, so that days of it are judged quickly."""
BAKE = timedelta(minutes=40)
BASELINE = Behaviour(bad={"error_ratio": 0.001})


WORLDS: deque["World"] = deque(maxlen=5)
"""The last ones of the test that runs: a property has hundreds."""


class Crash(BaseException):
    """The process died here. Not an Exception: nothing in the controller may catch it."""


class Fault(StrEnum):
    NONE = "none"
    FAIL_BEFORE = "fail_before"
    FAIL_AFTER = "fail_after"
    CRASH_BEFORE = "crash_before"
    CRASH_AFTER = "crash_after"
    OTHER_GATE_CHECK = "other_gate_check"
    OTHER_GUARD = "other_guard"
    FROZEN_FOR_AN_HOUR = "frozen_for_an_hour"
    STRANGER_RAISES = "stranger_raises"
    STRANGER_LOWERS = "stranger_lowers"
    KILL = "kill"


class Truth(StrEnum):
    """What the candidate is like at the moment, as the metric source would show it."""

    GOOD = "good"
    BAD = "bad"
    SILENT = "silent"
    FEW = "few"
    NOTHING = "nothing"
    DOWN = "down"


def a_plan(*, on_drift: OnDrift = OnDrift.PAUSE, lease: timedelta | None = None, dead_man: DeadManAction | None = None) -> Plan:
    return Plan(
        name="sim",
        environment="production",
        flag="chat",
        baseline=Variant(model="old"),
        candidate=Variant(model="new"),
        phases=(
            Phase(name="shadow", mode=Mode.SHADOW, weight=10_000, bake=BAKE),
            Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=BAKE),
            Phase(
                name="half",
                mode=Mode.LIVE,
                weight=50_000,
                bake=BAKE,
                approval=Approval(groups=("managers",), count=2, expires=timedelta(hours=4)),
            ),
            Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=BAKE),
        ),
        gates=(
            RateLimit(name="errors", indicator="error_ratio", limit=0.01),
            QuantileIncrease(name="p95", indicator="latency", quantile=0.95, max_increase=0.15),
            RateLimit(name="watched", indicator="timeout_ratio", limit=0.005, mode=GateMode.WARN),
            Silence(),
        ),
        policy=Policy(
            every=EVERY,
            guard_every=BEAT,
            block=BEAT,
            on_drift=on_drift,
            lease=lease,
            dead_man_after=None if dead_man is None else 4 * EVERY,
            dead_man_action=dead_man or DeadManAction.HOLD,
        ),
    )


@dataclass
class World:
    """Everything outside the controller, and the controllers."""

    now: datetime = START
    truth: Truth = Truth.GOOD
    faults: list[Fault] = field(default_factory=list)
    audit: MemoryAudit = field(init=False)
    flags: MemoryFlags = field(init=False)
    rollout_id: str = ""
    depth: int = 0
    strangers: int = 0
    seen: list[str] = field(default_factory=list)
    shelf: CaseShelf = field(default_factory=CaseShelf)
    standings: StandingShelf = field(default_factory=StandingShelf)
    """Both of the one process that most looks are made in; a crash empties them."""

    def __post_init__(self) -> None:
        WORLDS.append(self)
        self.audit = MemoryAudit(clock=lambda: self.now)
        self.flags = MemoryFlags(clock=lambda: self.now)

    # --- the ports, with faults ---

    def ports(self) -> Ports:
        audit = _Audit(self)
        return Ports(
            audit=audit, index=self.audit, flags=_Flags(self), metrics=_Metrics(self), shelf=self.shelf, standings=self.standings
        )

    def call(self, effect: Callable[[], T], unavailable: Callable[[str], Exception]) -> T:
        fault = self.faults.pop(0) if self.faults else Fault.NONE
        match fault:
            case Fault.FAIL_BEFORE:
                raise unavailable("the port is down")
            case Fault.CRASH_BEFORE:
                raise Crash
            case Fault.OTHER_GATE_CHECK:
                self.nested(may_raise=True)
            case Fault.OTHER_GUARD:
                self.nested(may_raise=False)
            case Fault.FROZEN_FOR_AN_HOUR:
                self.now += timedelta(hours=1)
            case Fault.STRANGER_RAISES:
                self.stranger(90_000)
            case Fault.STRANGER_LOWERS:
                self.stranger(0)
            case Fault.KILL:
                self.kill()
            case _:
                pass
        result = effect()
        if fault is Fault.FAIL_AFTER:
            raise unavailable("the port answered nothing, but did it")
        if fault is Fault.CRASH_AFTER:
            raise Crash
        return result

    def nested(self, *, may_raise: bool) -> None:
        """Another controller does a whole look while the first one stands still."""
        if self.depth < 2:
            self.depth += 1
            try:
                self.look(may_raise=may_raise)
            finally:
                self.depth -= 1

    def stranger(self, weight: int) -> None:
        flag = self.flags.read("production", "chat")
        if flag is not None and not flag.killed:
            self.strangers += 1
            change = FlagChange(
                environment="production",
                key="chat",
                control=flag.control,
                candidate=flag.candidate,
                salt=flag.salt,
                unit=flag.unit,
                weight=weight,
                shadow_weight=0,
                decision_id=f"stranger:{self.strangers}",
            )
            self.flags.write(change, flag.version)

    def turns_bad(self) -> None:
        """The candidate begins to fail, and a beat later it can be seen."""
        self.truth = Truth.BAD
        self.now += BEAT

    def kill(self) -> None:
        if self.flags.read("production", "chat") is not None:
            self.flags.set_killed("production", "chat", True, actor="oncall", reason="alarm")

    # --- what controllers and people do ---

    def open(self, plan: Plan) -> None:
        self.rollout_id = commands.start(plan, codec.plan_digest(plan), self.ports(), actor="rita", key="k").id

    def look(self, *, may_raise: bool) -> str:
        """One look by one controller; returns how it ended."""
        try:
            return tick(self.rollout_id, self.ports(), self.now, may_raise=may_raise).outcome.value
        except PortError:
            return "failed"
        except Crash:
            self.shelf, self.standings = CaseShelf(), StandingShelf()
            return "crashed"

    def quarters(self, count: int, *, guarded: bool = False) -> None:
        """The schedule goes on: so many quarters of an hour, each with a gate check at its end, and with the guard's looks in it if asked."""
        for _ in range(count):
            for _ in range(EVERY // BEAT):
                self.now += BEAT
                if guarded:
                    self.look(may_raise=False)
            self.look(may_raise=True)

    def command(self, what: Callable[[Ports], object]) -> str:
        try:
            what(self.ports())
        except commands.CommandRefused:
            return "refused"
        except PortError:
            return "failed"
        except Crash:
            return "crashed"
        return "done"

    def flag(self) -> RouteFlag | None:
        return self.flags.read("production", "chat")

    def flag_weight(self) -> int:
        flag = self.flag()
        return 0 if flag is None else flag.weight

    def in_force(self, flag: RouteFlag | None) -> int:
        """The weight that routers obey."""
        return 0 if flag is None or (flag.lease is not None and self.now >= flag.lease) else flag.weight

    def assert_replays(self) -> Counter[str]:
        """Every decision comes out of its row again."""
        return assert_replays(self.audit, list(self.audit.rows))

    # --- the witness ---

    def witness(self, before: RouteFlag | None, after: RouteFlag) -> None:
        """Called at every write that reached the store: no raise without its row, its evidence, its bake and its approval."""
        old, new = self.in_force(before), self.in_force(after)
        if after.decision_id.startswith(("stranger:", "person:")) or new <= old:
            return
        rows = self.audit.rows[self.rollout_id]
        if before is not None and before.weight > old:
            event = rows[-1].event
            assert isinstance(event, Decided) and isinstance(event.decision, Resume), "a lapsed lease came back without a person"
        decided = [e for e in rows if isinstance(e.event, Decided) and e.event.decision_id == after.decision_id]
        assert len(decided) == 1, f"raised from {old} to {new} without an audit row for {after.decision_id}"
        event = decided[0].event
        assert isinstance(event, Decided)
        # A person's resume sets the flag again whatever stands in it; everybody else stops at a foreign value.
        if before is not None and (applied := replay(rows).applied) and not isinstance(event.decision, Resume):
            assert before.decision_id == applied, f"raised over {before.decision_id}, which the log does not know"
        assert decided[0].actor != "guard", "the guard raised"
        self.check_raise(rows, decided[0])

    def check_raise(self, rows: Sequence[Entry], entry: Entry) -> None:
        event = entry.event
        assert isinstance(event, Decided)
        assert not replay(rows[: entry.seq]).ended, "raised after the end"
        assert self.now - entry.at <= timedelta(seconds=30), f"raised {self.now - entry.at} after the decision"
        plan = replay(rows[:1]).plan
        match event.decision:
            case Advance(phase=0) | Resume():
                return
            case Advance(phase=phase):
                pass
            case Promote():
                phase = len(plan.phases)
            case other:
                raise AssertionError(f"a {other.kind} raised the flag")
        gates = {g.name for g in plan.gates_of(phase - 1) if g.mode is GateMode.ENFORCE}
        passed = {r.gate for r in event.observed.results if r.verdict is Verdict.PASS}
        assert gates and gates <= passed, f"raised although {gates - passed} had not passed"
        for _, measurement in event.observed.measurements:
            assert isinstance(measurement, Sampled | Counted)
            assert all(e.at == entry.at for e in measurement.evidence), "the evidence is not of this look"
        assert event.observed.gathered is not None, "raised without evidence"
        readings = codec.readings_from_text(event.observed.gathered.traffic)
        last = readings[-1].traffic
        read_to = last.beats[-1].at if last.beats else last.since
        assert entry.at - read_to <= BEAT, f"raised on traffic of {entry.at - read_to} ago"
        begun = max(e.at for e in rows[: entry.seq - 1] if isinstance(e.event, Applied))
        assert entry.at - begun >= plan.phases[phase - 1].bake, "raised before the bake had ended"
        if phase < len(plan.phases) and (approval := plan.phases[phase].approval) is not None:
            people = {
                e.actor
                for e in rows[: entry.seq - 1]
                if isinstance(e.event, Approved) and e.event.entering == phase and entry.at < e.at + approval.expires
            } - {"rita"}
            assert len(people) >= approval.count, f"raised with {len(people)} of {approval.count} approvals"


@dataclass(slots=True)
class _Audit:
    world: World

    def now(self) -> datetime:
        return self.world.now

    def entries(self, rollout_id: str) -> Sequence[Entry]:
        return self.world.call(lambda: self.world.audit.entries(rollout_id), AuditUnavailable)

    def news(self, known: Mapping[str, Mark]) -> Mapping[str, News]:
        return self.world.call(lambda: self.world.audit.news(known), AuditUnavailable)

    def entry(self, rollout_id: str, seq: int) -> Entry:
        return self.world.audit.entry(rollout_id, seq)

    def text(self, reference: str) -> str:
        return self.world.call(lambda: self.world.audit.text(reference), AuditUnavailable)

    def append(self, new: NewEntry, notice: Notice | None) -> Entry:
        return self.world.call(lambda: self.world.audit.append(new, notice), AuditUnavailable)


@dataclass(slots=True)
class _Flags:
    world: World
    capabilities = CAPABILITIES

    def read(self, environment: str, key: str) -> RouteFlag | None:
        return self.world.call(lambda: self.world.flags.read(environment, key), FlagUnavailable)

    def read_all(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], RouteFlag]:
        return self.world.call(lambda: self.world.flags.read_all(wanted), FlagUnavailable)

    def write(self, change: FlagChange, expected_version: int) -> RouteFlag:
        def effect() -> RouteFlag:
            before = self.world.flag()
            after = self.world.flags.write(change, expected_version)
            self.world.witness(before, after)
            return after

        return self.world.call(effect, FlagUnavailable)

    def now(self) -> datetime:
        return self.world.now

    def renew(self, environment: str, key: str, lease: timedelta, expected_version: int) -> RouteFlag:
        def effect() -> RouteFlag:
            before = self.world.flag()
            after = self.world.flags.renew(environment, key, lease, expected_version)
            self.world.witness(before, after)
            return after

        return self.world.call(effect, FlagUnavailable)

    def set_killed(self, environment: str, key: str, killed: bool, *, actor: str, reason: str) -> RouteFlag:
        return self.world.flags.set_killed(environment, key, killed, actor=actor, reason=reason)


@dataclass(slots=True)
class _Metrics:
    world: World

    def measure(self, gates: Sequence[Gate], scope: Scope) -> tuple[Measurement, ...]:
        return tuple(says(self.world.truth, scope) for _ in gates)

    def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        return ARMS[self.world.truth].traffic(questions, scope, ledger)

    def together(self, planned: Sequence[Planned]) -> tuple["_Metrics", int]:
        return self, len(planned)


def _arms(candidate: Behaviour | None, baseline: Behaviour | None = BASELINE) -> MemoryMetrics:
    return MemoryMetrics(candidate=candidate, baseline=baseline)


ARMS = {
    Truth.GOOD: _arms(Behaviour(bad={"error_ratio": 0.001})),
    Truth.BAD: _arms(Behaviour(bad={"error_ratio": 0.3})),
    Truth.SILENT: _arms(Behaviour(rps=0.0)),
    Truth.FEW: _arms(Behaviour(rps=0.005, bad={"error_ratio": 0.001})),
    Truth.NOTHING: _arms(None, None),
    Truth.DOWN: MemoryMetrics(failure="connection refused"),
}


def says(truth: Truth, scope: Scope) -> Measurement:
    """What the silence gate sees."""
    evidence = (Evidence(query="q(candidate-reports)", at=scope.at, answer="{}", digest=""),)
    match truth:
        case Truth.DOWN:
            return QueryFailed(reason="connection refused", evidence=evidence)
        case Truth.NOTHING:
            return NoData(reason="empty answer", evidence=evidence)
    n = {Truth.FEW: 30.0, Truth.SILENT: 0.0}.get(truth, 2000.0)
    return Sampled(candidate=Counts(bad=0, total=n), baseline=Counts(bad=0, total=2000.0), evidence=evidence)
