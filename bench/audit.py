"""
How fast the audit log is verified: rows a second, beside a bare read of the same rows that hashes them, in the same run.

The rows are those of real looks: one rollout of a plan with nine gates is driven for a day in memory, and its rows are written over and
over under new ids, with a right chain, through COPY. Its one rule: what is verified is what the controller would have written.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from controller import codec, commands
from controller.adapters.memory import Behaviour, MemoryAudit, MemoryFlags, MemoryMetrics
from controller.adapters.postgres import chain, reader_url
from controller.adapters.postgres.connect import connect
from controller.adapters.postgres.migrate import upgrade
from controller.adapters.postgres.rows import Packed, columns, pack, row_hash
from controller.core.chain import GENESIS, HASHED
from controller.core.measurement import Counts, Evidence, Measurement, Sampled
from controller.core.rollout import Abandoned, Applied, AwaitingApproval, Decided, Entry, replay
from controller.core.traffic import Question, TrafficRead
from controller.ports import Ports, Scope
from controller.spec import read as read_spec
from controller.tick import tick
from services.postgres import EmbeddedPostgres

ROW = (*HASHED, "prev_hash", "hash")
QUERY = (
    'sum by (le, instance) (penstock_request_duration_seconds_bucket{arm="candidate",environment="production",flag="chat-model"} '
    "@ 1767600000)[900s:15s]"
)
ANSWER = json.dumps(
    {"status": "success", "data": {"resultType": "matrix", "result": [[1767600000 + 15 * k, str(k)] for k in range(60)]}}
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--gates", type=int, default=9, help="of the plan: what makes a row long")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each figure; the best is told")
    parser.add_argument("--processes", type=int, help="that verify; default as many as the log is worth")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder,
        EmbeddedPostgres(Path(folder) / "data", durable=False) as server,
    ):
        figures = _measured(server.url, options.rows, options.gates, options.repeat, options.processes)
    if options.output == "json":
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        for name, value in figures.items():
            sys.stdout.write(f"{name:<28}{value:>14,.1f}\n")
    return 0


def _measured(owner_url: str, rows: int, gates: int, repeat: int, processes: int | None) -> dict[str, float]:
    upgrade(owner_url)
    bytes_of_event, answers, answer_bytes = fill(owner_url, rows, gates)
    url = reader_url(owner_url)
    bare = min(_timed(lambda: _bare(url)) for _ in range(repeat))
    spent = _cpu_s()
    verified = min(_timed(lambda: _verified(url, rows, processes)) for _ in range(repeat))
    cpu = (_cpu_s() - spent) / repeat
    return {
        "rows": rows,
        "event_bytes_a_row": bytes_of_event,
        "answers": answers,
        "answer_mb": answer_bytes / 1e6,
        "bare_rows_per_s": rows / bare,
        "verify_rows_per_s": rows / verified,
        "verify_over_bare": bare / verified,
        "verify_cpu_us_a_row": cpu / rows * 1e6,
        "load": os.getloadavg()[0],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _cpu_s() -> float:
    """Of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _timed(act: Any) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _bare(url: str) -> None:
    """Read what is hashed and hash it, in no form and without comparing anything: what verifying cannot go below."""
    with connect(url, autocommit=False) as connection, connection.cursor("bare") as cursor:
        cursor.itersize = 2000
        for row in cursor.execute(f"SELECT {', '.join(f'{c}::text' for c in ROW)} FROM penstock.audit ORDER BY id".encode()):
            sha256("".join(v for v in row if v is not None).encode()).hexdigest()


def _verified(url: str, rows: int, processes: int | None) -> None:
    report = chain.verify(url, processes=processes)
    assert report.ok and report.rows == rows, report


def fill(owner_url: str, rows: int, gates: int) -> tuple[float, int, int]:
    """
    Write `rows` audit rows with their answers.

    Returns:
        Mean size of an event (bytes), the number of answers and their size (bytes).
    """
    day = [(entry, pack(entry.event)) for entry in a_day(gates)]
    sizes = written = 0
    answers = {a.digest: a for _, packed in day for a in packed.answers}
    with connect(owner_url) as connection, connection.cursor() as cursor:
        connection.execute(b"SET statement_timeout = 0")
        with cursor.copy(f"COPY penstock.audit ({', '.join(ROW)}) FROM STDIN".encode()) as copy:
            for row in _rows(day, rows):
                copy.write_row([row[name] for name in ROW])
                sizes += len(row["event"])
                written += 1
        with cursor.copy(b"COPY penstock.audit_evidence (digest, answer, encoding) FROM STDIN") as copy:
            for a in answers.values():
                copy.write_row((a.digest, a.answer, a.encoding))
        connection.execute(b"VACUUM ANALYZE penstock.audit")
    return sizes / written, len(answers), sum(len(a.answer) for a in answers.values())


def _rows(day: list[tuple[Entry, Packed]], count: int) -> Iterator[dict[str, Any]]:
    last, audit_id = GENESIS, 0
    old = day[0][0].rollout_id
    decided: dict[str, dict[str, Any]] = {}
    while True:
        rollout_id = f"{old}-{audit_id:09d}"
        for entry, packed in day:
            if audit_id == count:
                return
            audit_id += 1
            event = entry.event
            settled = decided.get(event.decision_id) if isinstance(event, Applied | Abandoned) else None
            row = {"id": audit_id, **columns(entry, "0" * 64, packed.event.replace(old, rollout_id), settled)}
            row |= {"rollout_id": rollout_id, "prev_hash": last}
            row["hash"] = last = row_hash(last, row)
            if isinstance(event, Decided):
                decided[event.decision_id] = row
            yield row


def a_day(gates: int) -> list[Entry]:
    """The rows of one rollout's day: a gate check each quarter of an hour, a candidate as good as the baseline."""
    now = [datetime(2026, 1, 5, tzinfo=UTC)]
    plan = read_spec(Path(__file__).parents[1] / "docs" / "examples" / "rollout.yaml").to_plan()
    plan = replace(plan, gates=plan.gates[:gates])
    audit, flags = MemoryAudit(clock=lambda: now[0]), MemoryFlags(clock=lambda: now[0])
    arm = Behaviour(rps=20.0)
    told = {"no-sev1": 0.0, "fallback-exercised": 1.0, "candidate-reports": 1000.0}
    says: dict[str, Measurement] = {name: _sampled(total, now[0]) for name, total in told.items()}
    metrics = _Asked(says=says, candidate=arm, baseline=arm)
    ports = Ports(audit=audit, index=audit, flags=flags, metrics=metrics)
    rollout = commands.start(plan, codec.plan_digest(plan), ports, actor="bench", key="bench")
    for _ in range(96):
        now[0] += timedelta(minutes=15)
        tick(rollout.id, ports, now[0], may_raise=True)
        if isinstance(replay(audit.entries(rollout.id)).state, AwaitingApproval):
            for person in ("amir", "bea"):
                commands.approve(rollout.id, ports, actor=person, groups=("release-managers",))
    return list(audit.entries(rollout.id))


def _sampled(total: float, at: datetime) -> Sampled:
    counts = Counts(bad=0.0, total=total)
    return Sampled(candidate=counts, baseline=counts, evidence=(Evidence(query=QUERY, at=at, answer=ANSWER, digest="0" * 64),))


class _Asked(MemoryMetrics):
    """Names queries and answers as long as Prometheus' are."""

    def traffic(self, questions: Sequence[Question], scope: Scope, ledger: Mapping[str, Any]) -> TrafficRead:
        read = super().traffic(questions, scope, ledger)
        asked = {
            key: tuple(
                replace(e, query=f"{QUERY} # {key}", answer=f"{ANSWER} {key} {scope.at}", digest=sha256(key.encode()).hexdigest())
                for e in found
            )
            for key, found in read.evidence.items()
        }
        return replace(read, evidence=asked)


if __name__ == "__main__":
    sys.exit(main())
