"""
Every port in memory: for tests, simulations and `--dry-run`, with the same promises as the real ones.

Its one rule: what the real adapter refuses, this one refuses too; both pass the tests in tests/ports.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from statistics import NormalDist
from typing import Any

from controller.core.chain import Head
from controller.core.measurement import Evidence, Measurement, NoData
from controller.core.notice import Level, Notice
from controller.core.plan import Gate
from controller.core.rollout import Applied, Entry, Opened, replay
from controller.core.traffic import Beat, Kind, Question, Traffic, TrafficRead
from controller.ports import (
    CaughtUp,
    FlagCapabilities,
    FlagChange,
    FlagConflict,
    FlagHeld,
    FlagKilled,
    Letter,
    NewEntry,
    News,
    Planned,
    Scope,
    SeqTaken,
    Taken,
    UnknownFlag,
    UnknownRollout,
)
from controller.shelf import Mark
from flagspec import WEIGHT_MAX, RouteFlag

Clock = Callable[[], datetime]

RETRY_S = 1.0
"""Pause before a letter is tried again when nobody named one."""


def wall_clock() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class MemoryAudit:
    """Audit log, rollout index and outbox in one, as they share transactions."""

    clock: Clock = wall_clock
    rows: dict[str, list[Entry]] = field(default_factory=dict)
    held: dict[tuple[str, str], str] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    delivered: list[Letter] = field(default_factory=list)
    waits: dict[int, datetime] = field(default_factory=dict)

    def now(self) -> datetime:
        return self.clock()

    def entries(self, rollout_id: str) -> Sequence[Entry]:
        if rollout_id not in self.rows:
            raise UnknownRollout(f"no rollout {rollout_id!r}")
        return self.rows[rollout_id]

    def news(self, known: Mapping[str, Mark]) -> Mapping[str, News]:
        found = {}
        for rollout_id, mark in known.items():
            if not (rows := self.rows.get(rollout_id)):
                continue
            whole = mark.seq == 0 or mark.seq > len(rows) or str(rows[mark.seq - 1].at) != mark.token
            last = Mark(seq=len(rows), token=str(rows[-1].at))
            found[rollout_id] = News(entries=tuple(rows if whole else rows[mark.seq :]), whole=whole, mark=last)
        return found

    def entry(self, rollout_id: str, seq: int) -> Entry:
        rows = self.entries(rollout_id)
        if not 1 <= seq <= len(rows):
            raise UnknownRollout(f"no row {rollout_id}/{seq}")
        return rows[seq - 1]

    def text(self, reference: str) -> str:
        return reference

    def append(self, new: NewEntry, notice: Notice | None) -> Entry:
        rows = self.rows.get(new.rollout_id, [])
        if new.seq != len(rows) + 1:
            raise SeqTaken(f"row {new.rollout_id}/{new.seq}: the log is at {len(rows)}")
        entry = Entry(rollout_id=new.rollout_id, seq=new.seq, at=self.clock(), actor=new.actor, event=new.event)
        if isinstance(new.event, Opened):
            self._hold(new.event.plan.environment, new.event.plan.flag, new.rollout_id)
        self.rows[new.rollout_id] = [*rows, entry]
        if isinstance(new.event, Applied) and (rollout := replay(self.rows[new.rollout_id])).ended:
            self.held.pop((rollout.plan.environment, rollout.plan.flag), None)
        if notice is not None:
            self.letters.append(Letter(id=len(self.letters) + len(self.delivered) + 1, notice=notice))
        return entry

    def _hold(self, environment: str, flag: str, rollout_id: str) -> None:
        holder = self.held.setdefault((environment, flag), rollout_id)
        if holder != rollout_id:
            raise FlagHeld(f"flag {flag!r} in {environment} is held by rollout {holder}")

    def head(self, audit_id: int | None = None) -> Head | None:
        ordered = sorted((e for rows in self.rows.values() for e in rows), key=lambda e: (e.at, e.rollout_id, e.seq))
        last = len(ordered) if audit_id is None else audit_id
        if not 1 <= last <= len(ordered):
            return None
        return Head(id=last, hash=sha256(repr(ordered[:last]).encode("utf-8", "replace")).hexdigest(), at=ordered[last - 1].at)

    def announce(self, notice: Notice) -> None:
        known = {(x.notice.rollout_id, x.notice.seq) for x in (*self.letters, *self.delivered)}
        if (notice.rollout_id, notice.seq) not in known:
            self.letters.append(Letter(id=len(self.letters) + len(self.delivered) + 1, notice=notice))

    def active(self) -> Sequence[str]:
        return sorted(self.held.values(), key=lambda i: self.rows[i][0].at)

    def known(self, limit: int) -> Sequence[str]:
        return list(reversed(self.rows))[:limit]

    def due(self, limit: int) -> Sequence[Letter]:
        newest = {letter.notice.rollout_id: letter for letter in self.letters}
        for letter in [x for x in self.letters if x.notice.level is Level.INFO and newest[x.notice.rollout_id] is not x]:
            if self._is_due(letter):
                self.done(letter)
        oldest: dict[str, Letter] = {}
        for letter in self.letters:
            oldest.setdefault(letter.notice.rollout_id, letter)
        found = sorted(filter(self._is_due, oldest.values()), key=lambda x: (x.notice.level is Level.INFO, x.id))
        return found[:limit]

    def _is_due(self, letter: Letter) -> bool:
        return self.waits.get(letter.id, self.clock()) <= self.clock()

    def done(self, letter: Letter) -> None:
        self.letters.remove(letter)
        self.delivered.append(letter)

    def failed(self, letter: Letter, reason: str, retry_after_s: float | None, *, final: bool) -> None:
        if final:
            self.letters.remove(letter)
        else:
            self.waits[letter.id] = self.clock() + timedelta(seconds=retry_after_s or RETRY_S)

    def back(self, letter: Letter) -> None:
        self.waits.pop(letter.id, None)


@dataclass(slots=True)
class MemoryHeartbeats:
    """When those who look did so last."""

    clock: Clock = wall_clock
    beats: dict[tuple[str, str], datetime] = field(default_factory=dict)

    def beat(self, who: str, rollouts: Sequence[str] = ()) -> None:
        self.beats |= {(who, i): self.clock() for i in ("", *rollouts)}

    def last_beat(self, who: str, rollout_id: str = "") -> datetime | None:
        return self.beats.get((who, rollout_id))


CAPABILITIES = FlagCapabilities(cas="native", granularity=1, propagation_bound_s=0.0)


@dataclass(slots=True)
class MemoryFlags:
    """The flag store."""

    flags: dict[tuple[str, str], RouteFlag] = field(default_factory=dict)
    revision: int = 0
    clock: Clock = wall_clock
    capabilities: FlagCapabilities = CAPABILITIES

    def now(self) -> datetime:
        return self.clock()

    def read(self, environment: str, key: str) -> RouteFlag | None:
        return self.flags.get((environment, key))

    def read_all(self, wanted: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], RouteFlag]:
        return {of: self.flags[of] for of in wanted if of in self.flags}

    def write(self, change: FlagChange, expected_version: int) -> RouteFlag:
        current = self.flags.get((change.environment, change.key))
        version = 0 if current is None else current.version
        if version != expected_version:
            raise FlagConflict(f"flag {change.key!r} is at version {version}, not {expected_version}")
        if change.not_after is not None and self.clock() > change.not_after:
            raise FlagConflict(f"flag {change.key!r}: {change.decision_id} came after {change.not_after.isoformat()}")
        killed = current is not None and current.killed
        if killed and (change.weight or change.shadow_weight):
            raise FlagKilled(f"flag {change.key!r} is killed")
        return self._put(
            RouteFlag(
                environment=change.environment,
                key=change.key,
                version=version + 1,
                revision=self.revision + 1,
                killed=killed,
                weight=change.weight,
                shadow_weight=change.shadow_weight,
                salt=change.salt,
                unit=change.unit,
                control=change.control,
                candidate=change.candidate,
                decision_id=change.decision_id,
                lease=self._lease(change, current),
            )
        )

    def _lease(self, change: FlagChange, current: RouteFlag | None) -> datetime | None:
        if change.keeps_lease:
            return None if current is None else current.lease
        return None if change.lease is None else self.clock() + change.lease

    def renew(self, environment: str, key: str, lease: timedelta, expected_version: int) -> RouteFlag:
        current = self.flags.get((environment, key))
        if current is None or current.version != expected_version or current.killed:
            raise FlagConflict(f"flag {key!r} is not at version {expected_version}, or is killed")
        if current.lease is None or current.lease <= self.clock():
            raise FlagConflict(f"flag {key!r} has no lease that could be renewed")
        return self._put(replace(current, revision=self.revision + 1, lease=self.clock() + lease))

    def set_killed(self, environment: str, key: str, killed: bool, *, actor: str, reason: str) -> RouteFlag:
        current = self.flags.get((environment, key))
        if current is None:
            raise UnknownFlag(f"no flag {key!r} in {environment}")
        by = replace(
            current, version=current.version + 1, revision=self.revision + 1, killed=killed, decision_id=f"person:{actor}"
        )
        # Un-killing never brings traffic back by itself.
        return self._put(by if killed else replace(by, weight=0, shadow_weight=0))

    def catch_up(self, environment: str, seen: int, *, actor: str, reason: str) -> CaughtUp | None:
        if self.revision >= seen:
            return None
        was, self.revision = self.revision, seen + 1_000_000
        lowered: list[str] = []
        kept: list[str] = []
        for flag in sorted((f for f in self.flags.values() if f.environment == environment), key=lambda f: f.key):
            part_way = flag.shadow_weight > 0 or 0 < flag.weight < WEIGHT_MAX
            again = replace(flag, version=flag.version + 1, revision=self.revision + 1)
            self._put(replace(again, weight=0, shadow_weight=0, decision_id=f"catch_up:{seen}") if part_way else again)
            (lowered if part_way else kept if flag.weight and not flag.killed else []).append(flag.key)
        return CaughtUp(environment=environment, was=was, revision=self.revision, lowered=tuple(lowered), kept=tuple(kept))

    def _put(self, flag: RouteFlag) -> RouteFlag:
        self.revision = flag.revision
        self.flags[flag.environment, flag.key] = flag
        return flag


EDGES_S = tuple(round(1.1 ** (k / 2), 6) for k in range(-40, 50))
"""Bucket edges of the invented traffic, 5 % apart; 1.0 is one of them."""

BEATS_MAX = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """
    What one arm does, every beat alike: expected counts and no chance, so that a story told with it has one ending.

    Args:
        rps: Requests a second.
        bad: Share of bad ones by indicator (0 where it is not named).
        median_s, sigma: Log-normal durations.
        amount: Mean per request; it swings by a tenth from beat to beat, as a mean without variance would be no measurement.
    """

    rps: float = 20.0
    bad: Mapping[str, float] = field(default_factory=dict)
    median_s: float = 0.6
    sigma: float = 0.5
    amount: float = 0.01

    def row(self, questions: Sequence[Question], seconds: float, beat: int) -> tuple[float, ...]:
        """Increments of one beat, in the order of `columns_of`."""
        n = self.rps * seconds
        values: list[float] = []
        for question in questions:
            match question.kind:
                case Kind.RATE:
                    values += [n * self.bad.get(question.indicator, 0.0), n]
                case Kind.MEAN:
                    values += [n * self.amount * (1.1 if beat % 2 else 0.9), n]
                case Kind.HISTOGRAM:
                    values += [n * share for share in _below(self.median_s, self.sigma)]
                    values.append(n)
        return tuple(values)


@cache
def _below(median_s: float, sigma: float) -> tuple[float, ...]:
    """Share of log-normal durations at or below each edge."""
    return tuple(NormalDist().cdf(math.log(edge / median_s) / sigma) for edge in EDGES_S)


@dataclass(slots=True)
class MemoryRequests:
    """The request log, with the same lease."""

    clock: Clock = wall_clock
    lease: timedelta = timedelta(seconds=60)
    kept: dict[tuple[str, str], tuple[str, datetime, Taken]] = field(default_factory=dict)

    def take(self, caller: str, key: str, fingerprint: str) -> Taken:
        found = self.kept.get((caller, key))
        stale = found is not None and found[2].status is None and found[1] < self.clock() - self.lease and found[0] == fingerprint
        if found is None or stale:
            self.kept[caller, key] = (fingerprint, self.clock(), Taken())
            return Taken(ours=True)
        return replace(found[2], same=found[0] == fingerprint)

    def answer(self, caller: str, key: str, status: int, answer: str) -> None:
        fingerprint, at, taken = self.kept[caller, key]
        if taken.status is None:
            self.kept[caller, key] = (fingerprint, at, Taken(status=status, answer=answer))

    def give_back(self, caller: str, key: str) -> None:
        if self.kept[caller, key][2].status is None:
            del self.kept[caller, key]


@dataclass(slots=True)
class MemoryMetrics:
    """
    A metric source that says what it was told to.

    Args:
        says: Measurements by gate name, by default nothing.
        candidate, baseline: What the arms do; None for an arm without any series.
        failure: Why no traffic can be read; "" if it can.
    """

    says: dict[str, Measurement] = field(default_factory=dict)
    candidate: Behaviour | None = None
    baseline: Behaviour | None = None
    failure: str = ""

    def measure(self, gates: Sequence[Gate], scope: Scope) -> tuple[Measurement, ...]:
        silent = NoData(reason="nothing was put into the in-memory source")
        return tuple(self.says.get(g.name, silent) for g in gates)

    def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        evidence = {q.key: (Evidence(query=f"memory({q.key})", at=scope.at, answer="", digest=""),) for q in questions}
        if self.failure:
            return TrafficRead(traffic=None, failure=self.failure, evidence=evidence)
        step_s = scope.step.total_seconds()
        first = math.floor(max(ledger.get("at", 0.0), scope.since.timestamp()) / step_s)
        last = math.floor(scope.at.timestamp() / step_s)
        stride = max(1, math.ceil((last - first) / BEATS_MAX))
        idle = Behaviour(rps=0.0)
        candidate, baseline = self.candidate or idle, self.baseline or idle
        ends = range(first + stride, last + 1, stride)
        beats = tuple(
            Beat(
                at=datetime.fromtimestamp(k * step_s, UTC),
                candidate=candidate.row(questions, step_s * stride, k),
                baseline=baseline.row(questions, step_s * stride, k),
            )
            for k in ends
        )
        past = () if ledger or self.baseline is None else range(math.floor(scope.history / scope.history_step))
        traffic = Traffic(
            since=datetime.fromtimestamp(first * step_s, UTC),
            step=scope.step,
            edges={q.key: EDGES_S for q in questions if q.kind is Kind.HISTOGRAM},
            beats=beats,
            history=tuple(baseline.row(questions, scope.history_step.total_seconds(), k) for k in past),
            history_step=scope.history_step,
            absent=self._absent(questions),
        )
        return TrafficRead(traffic=traffic, ledger={"at": (ends[-1] if ends else first) * step_s}, evidence=evidence)

    def together(self, planned: Sequence[Planned]) -> tuple["MemoryMetrics", int]:
        return self, len(planned)

    def _absent(self, questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
        arms = tuple(n for n, arm in (("candidate", self.candidate), ("baseline", self.baseline)) if arm is None)
        return {q.key: arms for q in questions} if arms else {}
