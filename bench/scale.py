"""
What many rollouts at a time cost: a full gate check and a guard's pass over all of them, on a real Postgres and a real Prometheus.

    python -m bench.scale [--rollouts 1000] [--step 10] [--backlog 60] [--skip-first] [-o json]

It opens that many rollouts with eight objectives each, lets Prometheus scrape the counters that routers would show for their flags
(the router profile's names, 95 buckets a histogram), and measures each kind of look in a process of its own: time, CPU, the largest
resident set, questions to Prometheus and statements to Postgres. The same for a few rollouts stands beside it, so that what grows is
seen. Its one rule: nothing is stood in for but the routers; what is measured is the code that `penstock tick --all` and
`penstock guard` run.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

from bench.cli import emit, say
from flagspec.latency import LATENCY_EDGES_S

FEW = 10
"""Rollouts of the run that the large one is compared with."""

REQUESTS_PER_S = 20.0
"""Of each flag, half of them the candidate's."""

ENVIRONMENT = "production"


# --- what routers would show ----------------------------------------------------------------------------------------------------


class Routers:
    """A page with the counters of many flags, all alike, which grow with the time of day."""

    def __init__(self, flags: int) -> None:
        self._flags = [flag_of(i) for i in range(flags)]
        self._begun = time.time()
        below = [NormalDist().cdf(math.log(edge / 0.6) / 0.5) for edge in LATENCY_EDGES_S]
        shares = [b - a for a, b in pairwise((0.0, *below, 1.0))]
        self._shares = [*zip((*(f"{e:g}" for e in LATENCY_EDGES_S), "+Inf"), shares, strict=True)]

    def page(self) -> bytes:
        block = "".join(self._lines(REQUESTS_PER_S / 4 * (time.time() - self._begun)))
        return "".join(block.replace("@", flag) for flag in self._flags).encode()

    def _lines(self, n: float) -> Iterator[str]:
        """Of one flag: `n` requests of each arm that stream, and as many that do not."""
        for arm, model in (("baseline", "gpt-4.1"), ("candidate", "gpt-5")):
            for streaming in ("false", "true"):
                of = f'environment="{ENVIRONMENT}",flag="@",route="chat",arm="{arm}",model="{model}",streaming="{streaming}"'
                errors, timeouts = math.floor(n * 0.002), math.floor(n * 0.001)
                outcomes = {"ok": math.floor(n) - errors - timeouts, "error": errors, "timeout": timeouts}
                for outcome in ("ok", "error", "timeout", "rate_limited", "client_error", "cancelled"):
                    yield f'penstock_requests_total{{{of},outcome="{outcome}"}} {outcomes.get(outcome, 0)}\n'
                yield f"penstock_unavailable_total{{{of}}} {math.floor(n * 0.0001)}\n"
                yield f"penstock_cost_usd_total{{{of}}} {n * 0.01:.6f}\npenstock_cost_requests_total{{{of}}} {math.floor(n)}\n"
                for to, outcome in (("gpt-4.1", "ok"), ("gpt-4.1", "failed")):
                    count = errors if outcome == "ok" else 0
                    yield f'penstock_fallbacks_total{{{of},to_model="{to}",outcome="{outcome}",reason="failure"}} {count}\n'
                names = ["penstock_request_duration_seconds"] + (["penstock_ttft_seconds"] if streaming == "true" else [])
                for name in names:
                    count = 0
                    for le, share in self._shares:
                        count += math.floor(n * share)
                        yield f'{name}_bucket{{{of},le="{le}"}} {count}\n'


@contextmanager
def served(routers: Routers) -> Iterator[str]:
    """Yields ``host:port`` of the page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = routers.page()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# --- the rollouts ---------------------------------------------------------------------------------------------------------------


def flag_of(index: int) -> str:
    return f"model-{index:05d}"


def plan_of(index: int, step: timedelta) -> Any:
    """Eight objectives, in a phase that lasts."""
    from controller.core.plan import MeanIncrease, Mode, Phase, Plan, Policy, QuantileLimit, RateLimit, SampleRatio, Silence
    from flagspec import Variant

    plain, streamed = {"streaming": "false"}, {"streaming": "true"}
    return Plan(
        name=f"scale-{index:05d}",
        environment=ENVIRONMENT,
        flag=flag_of(index),
        baseline=Variant(model="gpt-4.1"),
        candidate=Variant(model="gpt-5"),
        phases=(
            Phase(name="half", mode=Mode.LIVE, weight=50_000, bake=timedelta(hours=12)),
            Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(hours=72)),
        ),
        gates=(
            QuantileLimit(name="latency-p50", indicator="latency", quantile=0.5, limit_s=1.0, where=plain),
            QuantileLimit(name="latency-p95", indicator="latency", quantile=0.95, limit_s=3.0, where=plain),
            QuantileLimit(name="ttft-p95", indicator="ttft", quantile=0.95, limit_s=3.0, where=streamed),
            RateLimit(name="error-rate", indicator="error_ratio", limit=0.01),
            RateLimit(name="timeout-rate", indicator="timeout_ratio", limit=0.005),
            RateLimit(name="availability", indicator="availability", limit=0.001),
            RateLimit(name="fallback-success", indicator="fallback_success", limit=0.1),
            MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.1),
            Silence(),
            SampleRatio(),
        ),
        policy=Policy(every=60 * step, guard_every=step, block=max(timedelta(seconds=60), step)),
    )


def open_all(url: str, count: int, step: timedelta) -> None:
    """Open the rollouts and bring each to its first phase; their gate checks have made no row yet."""
    from controller.adapters.postgres import PostgresAudit, PostgresFlags, open_engine
    from controller.codec import plan_digest
    from controller.commands import rollout_id_of
    from controller.commit import commit
    from controller.core.decision import Advance, Why
    from controller.core.rollout import Observed, Opened, replay
    from controller.ports import NewEntry, Ports
    from controller.wiring import NoMetrics

    engine = open_engine(url)
    audit = PostgresAudit(engine)
    ports = Ports(audit=audit, index=audit, flags=PostgresFlags(engine), metrics=NoMetrics())
    for index in range(count):
        plan = plan_of(index, step)
        opened = Opened(plan=plan, plan_digest=plan_digest(plan), key="bench")
        rollout = replay(
            [audit.append(NewEntry(rollout_id=rollout_id_of(plan, "bench"), seq=1, actor="bench", event=opened), None)]
        )
        raised = Advance(phase=0, why=Why.STARTED, text="bench")
        commit(rollout, None, raised, ports, actor="bench", source="gate_check", observed=Observed(), at=audit.now())
    engine.dispose()


# --- one look at all of them, in a process of its own ---------------------------------------------------------------------------


@dataclass(slots=True)
class Counter:
    """What a process asked of others."""

    prometheus: int = 0
    received: int = 0
    statements: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def watch(self, engine: Any) -> None:
        from sqlalchemy import event

        from controller.adapters.prometheus import client

        ask = client._Session.request

        def counted(session: Any, *args: Any, **kwargs: Any) -> Any:
            response = ask(session, *args, **kwargs)
            with self.lock:
                self.prometheus += 1
                self.received += len(session.seen().body)
            return response

        client._Session.request = counted  # type: ignore[method-assign, assignment]  # every question goes through here

        @event.listens_for(engine, "before_cursor_execute")
        def _count(*_args: Any) -> None:
            self.statements += 1


def measure(kind: str, url: str, prometheus: str, step: timedelta, *, passes: int, profile: str = "") -> list[dict[str, Any]]:
    """
    Args:
        kind: ``gate_check`` or ``guard``.
        passes: Passes of this process, each one step after the other; the first finds nothing at hand.
        profile: Where the last pass's profile (cProfile) is written.
    """
    import cProfile

    import structlog

    from controller.adapters.postgres import PostgresAudit, PostgresFlags, open_engine
    from controller.adapters.prometheus import PrometheusSource
    from controller.ports import Ports
    from controller.sweep import sweep

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    engine = open_engine(url)
    audit = PostgresAudit(engine)
    source = PrometheusSource(prometheus, scrape_interval=step, timeout_s=30.0)
    ports = Ports(audit=audit, index=audit, flags=PostgresFlags(engine), metrics=source)
    counter = Counter()
    counter.watch(engine)
    found: list[dict[str, Any]] = []
    for number in range(passes):
        if number:
            time.sleep(max(0.0, step.total_seconds() - found[-1]["wall_s"] % step.total_seconds()))
        before = (counter.prometheus, counter.received, counter.statements)
        cpu, begun = time.process_time(), time.monotonic()
        profiler = cProfile.Profile() if profile and number == passes - 1 else None
        if profiler:
            profiler.enable()
        swept = list(sweep(ports, may_raise=kind == "gate_check", force=True))
        if profiler:
            profiler.disable()
            profiler.dump_stats(profile)
        outcomes: dict[str, int] = {}
        for s in swept:
            text = (
                s.error[:160]
                if s.tick is None
                else f"{s.tick.outcome.value}: {s.tick.decision.text[:80] if s.tick.decision else ''}"
            )
            outcomes[text] = outcomes.get(text, 0) + 1
        found.append(
            {
                "kind": kind,
                "pass": number + 1,
                "rollouts": len(swept),
                "wall_s": round(time.monotonic() - begun, 3),
                "cpu_s": round(time.process_time() - cpu, 3),
                "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                "prometheus_queries": counter.prometheus - before[0],
                "prometheus_mb": round((counter.received - before[1]) / 1e6, 2),
                "sql_statements": counter.statements - before[2],
                "errors": sum(s.tick is None for s in swept),
                "outcomes": dict(sorted(outcomes.items(), key=lambda kv: -kv[1])[:3]),
            }
        )
    engine.dispose()
    return found


def in_a_process(kind: str, url: str, prometheus: str, step: timedelta, *, passes: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "bench.scale", "--child", kind, "--database", url, "--prometheus", prometheus]
    command += ["--step", str(step.total_seconds()), "--passes", str(passes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stderr[-2000:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


# --- the world ------------------------------------------------------------------------------------------------------------------


@contextmanager
def world(count: int, step: timedelta) -> Iterator[tuple[str, str, str]]:
    """Yields the application's and the owner's address of the database, and that of Prometheus."""
    from controller.adapters.postgres import app_url, create_database
    from controller.adapters.postgres.migrate import upgrade
    from services.postgres import EmbeddedPostgres
    from services.prometheus import PrometheusServer

    with (
        tempfile.TemporaryDirectory(prefix="penstock-scale-", ignore_cleanup_errors=True) as folder,
        EmbeddedPostgres(Path(folder) / "postgres") as server,
        served(Routers(count)) as target,
    ):
        admin = create_database(server.url, "penstock")
        upgrade(admin)
        with PrometheusServer(Path(folder) / "prometheus", {"router": [target]}, scrape_interval=step) as prometheus:
            time.sleep(3 * step.total_seconds())
            say(f"opening {count} rollouts")
            open_all(app_url(admin), count, step)
            yield app_url(admin), admin, prometheus.url


def growth(admin: str, rollouts: int) -> dict[str, float]:
    """Rows and bytes of the log, a rollout: what was written, and what it takes on disk with indexes and compression."""
    from controller.adapters.postgres.connect import connect

    with connect(admin) as connection:

        def one(query: str) -> float:
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            return float(row[0] or 0)

        return {
            "audit_rows": one("SELECT count(*) FROM penstock.audit") / rollouts,
            "audit_bytes": one("SELECT pg_total_relation_size('penstock.audit')") / rollouts,
            "evidence_rows": one("SELECT count(*) FROM penstock.audit_evidence") / rollouts,
            "evidence_bytes": one("SELECT pg_total_relation_size('penstock.audit_evidence')") / rollouts,
            "evidence_chars": one("SELECT sum(length(answer)) FROM penstock.audit_evidence") / rollouts,
        }


def run(count: int, step: timedelta, backlog: int) -> list[dict[str, Any]]:
    """First looks, a guard at work, and a gate check that finds a quarter of an hour's beats, over so many rollouts."""
    with world(count, step) as (url, admin, prometheus):
        time.sleep(4 * step.total_seconds())
        found = []

        def one(name: str, kind: str, passes: int = 1) -> None:
            say(f"{count} rollouts: {name}")
            found.append({"what": name, **in_a_process(kind, url, prometheus, step, passes=passes)[-1]})

        one("gate check, first look", "gate_check")
        before = growth(admin, count)
        begun = time.monotonic()
        one("guard, one beat", "guard", passes=3)
        time.sleep(max(0.0, backlog * step.total_seconds() - (time.monotonic() - begun)))
        one(f"gate check, {backlog} beats", "gate_check")
        after = growth(admin, count)
        found[-1]["growth"] = {name: round(after[name] - before[name], 1) for name in after}
        one("gate check, one beat", "gate_check", passes=2)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--few", type=int, default=FEW, help="rollouts of the run beside it; 0 for none")
    parser.add_argument("--step", type=float, default=10.0, help="seconds between scrapes, and of a beat")
    parser.add_argument("--backlog", type=int, default=60, help="beats that a gate check finds")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--child", choices=("gate_check", "guard"), help=argparse.SUPPRESS)
    parser.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--database", help=argparse.SUPPRESS)
    parser.add_argument("--prometheus", help=argparse.SUPPRESS)
    parser.add_argument("--passes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--profile", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    step = timedelta(seconds=options.step)
    if options.child:
        emit(
            json.dumps(
                measure(options.child, options.database, options.prometheus, step, passes=options.passes, profile=options.profile)
            )
        )
        return 0
    if options.hold:
        with world(options.rollouts, step) as (url, admin, prometheus):
            emit(json.dumps({"url": url, "admin": admin, "prometheus": prometheus}))
            threading.Event().wait()
    few = run(options.few, step, options.backlog) if options.few else []
    many = run(options.rollouts, step, options.backlog)
    if options.output == "json":
        emit(json.dumps({"few": few, "many": many}))
        return 0
    for row in (*few, *many):
        emit(_line(row))
    return 0


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['rollouts']:>5} {row['what']:<24} {row['wall_s']:>7.1f} s  cpu {row['cpu_s']:>6.1f} s  {row['rss_mb']:>6.0f} MB"
        f"  {row['prometheus_queries']:>6} queries {row['prometheus_mb']:>7.1f} MB  {row['sql_statements']:>6} statements"
        f"  {row['errors']} errors"
    )


if __name__ == "__main__":
    sys.exit(main())
