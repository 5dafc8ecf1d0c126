"""
How many looks a second the decision loop makes: `tick` with in-memory ports, replay and evidence included, on one core.

Two figures, because intervals are kept: with the same counts at every look (a quiet guard), and with new counts at every look. Both are
given beside a bare SHA-256 of 1 kB in the same run, so that figures of different machines can be compared.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256

NEW_COUNTS = 4_000
"""Looks with counts that were never seen before, so that no interval is at hand."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.decisions", description=__doc__)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--seconds", type=float, default=1.0, help="of CPU for each figure")
    options = parser.parse_args()
    same, fresh = _looker(vary=False), _looker(vary=True)
    block = b"x" * 1024
    figures = {
        "looks_per_s_same_counts": _rate(same, options.seconds),
        "looks_per_s_new_counts": _rate(fresh, options.seconds, at_most=NEW_COUNTS - 40),
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


def _looker(*, vary: bool) -> Callable[[], object]:
    """A guard's look at a rollout in its third phase, with nine gates."""
    # bench stands outside the controller and drives it only here, to measure it.
    from controller import codec, commands
    from controller.adapters.memory import MemoryAudit, MemoryFlags, MemoryMetrics
    from controller.core.measurement import Counts, Histogram, Moments, Sampled
    from controller.core.plan import MeanIncrease, Mode, Phase, Plan, Policy, QuantileIncrease, QuantileLimit, RateLimit, Silence
    from controller.ports import Ports
    from controller.tick import Outcome, tick
    from flagspec import Variant
    from flagspec.latency import LATENCY_EDGES_S

    now = [datetime(2026, 1, 5, tzinfo=UTC)]
    hour = timedelta(hours=1)
    plan = Plan(
        name="bench",
        environment="production",
        flag="chat",
        baseline=Variant(model="old"),
        candidate=Variant(model="new"),
        phases=tuple(Phase(name=f"p{w}", mode=Mode.LIVE, weight=w, bake=hour) for w in (1_000, 5_000, 25_000, 100_000)),
        gates=(
            RateLimit(name="errors", indicator="error_ratio", limit=0.01),
            RateLimit(name="timeouts", indicator="timeout_ratio", limit=0.005),
            RateLimit(name="availability", indicator="availability", limit=0.001),
            QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=3.0),
            QuantileLimit(name="ttft", indicator="ttft", quantile=0.95, limit_s=1.2),
            QuantileIncrease(name="p50-rel", indicator="latency", quantile=0.5, max_increase=0.1),
            QuantileIncrease(name="p95-rel", indicator="latency", quantile=0.95, max_increase=0.15),
            MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.1),
            Silence(),
        ),
        policy=Policy(min_requests=100),
    )
    audit, flags, metrics = MemoryAudit(clock=lambda: now[0]), MemoryFlags(clock=lambda: now[0]), MemoryMetrics(exposure=1.0)
    ports = Ports(audit=audit, index=audit, flags=flags, metrics=metrics)

    def shares(n: float) -> Histogram:
        top = len(LATENCY_EDGES_S)
        return Histogram(
            edges_s=LATENCY_EDGES_S, cumulative=tuple(n * min(1.0, (i + 1) / (top * 0.3)) for i in range(top)), total=n
        )

    def seen(n: float) -> None:
        counts = Sampled(candidate=Counts(bad=0.0, total=n), baseline=Counts(bad=0.0, total=n))
        latency = Sampled(candidate=shares(n), baseline=shares(n))
        cost = Sampled(candidate=Moments(n=n, total=n, squares=n * 1.1), baseline=Moments(n=n, total=n, squares=n * 1.1))
        says = {"p95": latency, "ttft": latency, "p50-rel": latency, "p95-rel": latency, "cost": cost}
        metrics.says = {g.name: says.get(g.name, counts) for g in plan.gates}

    seen(1000.0)
    rollout = commands.start(plan, codec.plan_digest(plan), ports, actor="bench", key="bench")
    for _ in range(3):
        now[0] += 2 * hour
        tick(rollout.id, ports, now[0], may_raise=True)
    # Made beforehand: what the source costs is not the loop's.
    made = []
    for n in range(NEW_COUNTS if vary else 0):
        seen(1001.0 + n)
        made.append(metrics.says)

    def look() -> object:
        if vary:
            metrics.says = made.pop()
        looked = tick(rollout.id, ports, now[0], may_raise=False)
        assert looked.outcome is Outcome.QUIET and len(looked.results) == len(plan.gates), looked
        return looked

    return look


if __name__ == "__main__":
    sys.exit(main())
