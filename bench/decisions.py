"""
How many looks a second the decision loop makes: `tick` with in-memory ports, replay and evidence included, on one core.

Two figures: a look that finds nothing new (between two scrapes), and a look that takes one more beat of traffic into the evidence of nine
gates, which is what a guard does all day; each 60th look is a gate check. Both are given beside a bare SHA-256 of 1 kB in the same run, so that figures of different
machines can be compared. What the metric source costs is not in them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

BEATS = 2_000
"""Looks that each take a beat, at most."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.decisions", description=__doc__)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--seconds", type=float, default=1.0, help="of CPU for each figure")
    options = parser.parse_args()
    same, fresh = _looker(moving=False), _looker(moving=True)
    block = b"x" * 1024
    figures = {
        "looks_per_s_nothing_new": _rate(same, options.seconds),
        "looks_per_s_one_beat_each": _rate(fresh, options.seconds, at_most=BEATS - 40),
        "sha256_1kb_per_s": _rate(lambda: sha256(block).digest(), options.seconds),
    }
    if options.output == "json":
        sys.stdout.write(json.dumps({k: round(v) for k, v in figures.items()}) + "\n")
    else:
        for name, value in figures.items():
            sys.stdout.write(f"{name:<26}{value:>12,.0f}\n")
    return 0


def _rate(act: Callable[[], object], seconds: float, at_most: int = 10**9) -> float:
    """Calls a second of this process's CPU, after a warm-up."""
    for _ in range(20):
        act()
    done, begun = 0, time.process_time()
    while (spent := time.process_time() - begun) < seconds and done < at_most:
        for _ in range(20):
            act()
        done += 20
    return done / spent


def _looker(*, moving: bool) -> Callable[[], object]:
    """A guard's look at a rollout in its third phase, with nine gates."""
    # bench stands outside the controller and drives it only here, to measure it.
    from controller import codec, commands
    from controller.adapters.memory import Behaviour, MemoryAudit, MemoryFlags, MemoryMetrics
    from controller.core.measurement import Counts, Measurement, Sampled
    from controller.core.plan import (
        Gate,
        MeanIncrease,
        Mode,
        Phase,
        Plan,
        Policy,
        QuantileIncrease,
        QuantileLimit,
        RateLimit,
        Silence,
    )
    from controller.core.traffic import Question, TrafficRead, questions_of
    from controller.ports import Planned, Ports, Scope
    from controller.tick import Outcome, tick
    from flagspec import Variant

    hour, beat = timedelta(hours=1), timedelta(seconds=15)

    class Made:
        """Answers that were made beforehand, where there are any."""

        def __init__(self) -> None:
            arm = Behaviour(rps=20.0)
            silence = Sampled(candidate=Counts(bad=0.0, total=1000.0), baseline=Counts(bad=0.0, total=1000.0))
            self.source = MemoryMetrics(says={"candidate-reports": silence}, candidate=arm, baseline=arm)
            self.made: list[TrafficRead] = []

        def measure(self, gates: Sequence[Gate], scope: Scope) -> tuple[Measurement, ...]:
            return self.source.measure(gates, scope)

        def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
            return self.made.pop() if self.made else self.source.traffic(questions, scope, ledger)

        def together(self, planned: Sequence[Planned]) -> "tuple[Made, int]":
            return self, len(planned)

    now = [datetime(2026, 1, 5, tzinfo=UTC)]
    plan = Plan(
        name="bench",
        environment="production",
        flag="chat",
        baseline=Variant(model="old"),
        candidate=Variant(model="new"),
        phases=tuple(
            Phase(name=f"p{w}", mode=Mode.LIVE, weight=w, bake=bake)
            for w, bake in ((1_000, hour), (5_000, hour), (25_000, 1000 * hour), (100_000, hour))
        ),
        gates=(
            RateLimit(name="errors", indicator="error_ratio", limit=0.01),
            RateLimit(name="timeouts", indicator="timeout_ratio", limit=0.005),
            RateLimit(name="availability", indicator="availability", limit=0.001),
            QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=3.0),
            QuantileLimit(name="ttft", indicator="ttft", quantile=0.95, limit_s=1.5),
            QuantileIncrease(name="p50-rel", indicator="latency", quantile=0.5, max_increase=0.1),
            QuantileIncrease(name="p95-rel", indicator="latency", quantile=0.95, max_increase=0.15),
            MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.1),
            Silence(),
        ),
        policy=Policy(min_requests=100, guard_every=beat),
    )
    audit, flags, metrics = MemoryAudit(clock=lambda: now[0]), MemoryFlags(clock=lambda: now[0]), Made()
    ports = Ports(audit=audit, index=audit, flags=flags, metrics=metrics)
    rollout = commands.start(plan, codec.plan_digest(plan), ports, actor="bench", key="bench")
    phase = None
    while phase != 2:
        now[0] += hour
        phase = tick(rollout.id, ports, now[0], may_raise=True).rollout.phase
    tick(rollout.id, ports, now[0], may_raise=False)
    if moving:
        opened, ledger = tick(rollout.id, ports, now[0], may_raise=False).rollout, {"at": now[0].timestamp()}
        since = opened.settled.since  # type: ignore[union-attr]  # it bakes
        for k in range(BEATS):
            at = now[0] + (k + 1) * beat
            scope = Scope(environment="", flag="", arm="candidate", since=since, recent=hour, opened_at=since, at=at, step=beat)
            metrics.made.append(metrics.source.traffic(questions_of(plan), scope, ledger))
            ledger = dict(metrics.made[-1].ledger)
        metrics.made.reverse()

    looks = [0]

    def look() -> object:
        """A guard's; each 60th is a gate check, which judges every gate and writes its row."""
        looks[0] += 1
        if moving:
            now[0] += beat
        checks = looks[0] % 60 == 0
        looked = tick(rollout.id, ports, now[0], may_raise=checks, force=True)
        assert looked.outcome is (Outcome.DECIDED if checks else Outcome.QUIET), looked
        return looked

    return look


if __name__ == "__main__":
    sys.exit(main())
