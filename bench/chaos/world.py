"""
One trial's world: a database, a flag with traffic, a Slack, controllers as processes, and what must hold in the end.

It stands between the stage, which all trials share, and a fault, which breaks something in here. Its one rule: the driver reads as the owner of
the database and writes nothing that a controller would have to write, but for the passing of time: a lease of an outbox letter (a minute)
whose holder is dead is let lapse at once.
"""

import itertools
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode
from urllib.request import urlopen

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from bench.chaos.fault import Fault, Trial, Violation
from bench.chaos.invariants import Facts, FlagWrite, Shown, Told, check
from bench.chaos.process import Died, Refused, Unanswered, Worker
from bench.chaos.stage import DATABASE, SCRAPE, Stage
from bench.chaos.target import ENVIRONMENT, Flow, Truth
from bench.slack_limits import Fault as SlackFault
from bench.slack_limits import FaultKind
from controller.adapters.postgres import PostgresAudit, app_url, reader_url
from controller.adapters.postgres.chain import verify
from controller.adapters.postgres.connect import APP_ROLE, connect
from controller.codec import notice_from_json
from controller.core.decision import Weights
from controller.core.plan import AtMost, Mode, Need, Phase, Plan, Policy, RateLimit, Silence
from controller.core.rollout import Entry, Moving, Rollout, replay
from flagspec import Variant
from services.postgres import EmbeddedPostgres

PAUSE_S = 0.05
BEAT_S = 0.2
RAISE_S = 60.0
CHECK_S = 0.4
"""Between two gate checks: each leaves a row and a letter."""

_NUMBERS = itertools.count(1)


class World:
    """Use it as a context. `database_url`, `prometheus_url` and `slack_url` may be replaced by a fault before a controller is started."""

    def __init__(self, stage: Stage, fault: Fault, *, folder: Path) -> None:
        self.stage = stage
        self.fault = fault
        self.folder = folder
        self.name = f"t{next(_NUMBERS)}"
        self.stack = ExitStack()
        self.prelude = ""
        """Of controllers for which none is named."""
        self.workers: list[Worker] = []
        self.restarts: list[datetime] = []
        self.bad: dict[str, datetime] = {}
        self.strangers: set[str] = set()
        self.rollouts: list[str] = []
        self.flows: dict[str, Flow] = {}
        self.notes: list[str] = []
        self.passed: set[str] = set()
        self._begun_s = time.monotonic()

    def __enter__(self) -> Self:
        try:
            self.postgres: EmbeddedPostgres | None = None
            if self.fault.own_postgres:
                data = self.stage.cluster()
                self.postgres = EmbeddedPostgres(data)
                self.postgres.start()
                self.stack.callback(lambda: None if self.postgres is None else self.postgres.stop())
                self.owner_url = self.postgres.url_for(DATABASE)
            else:
                self.owner_url = self.stack.enter_context(self.stage.database())
            self.database_url = app_url(self.owner_url)
            self.prometheus_url = self.truth_url = self.stage.prometheus.url
            self.slack = self.stack.enter_context(self.stage.slack())
            self.slack_url = self.slack.api_url
            self.stack.callback(self._end_workers)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stack.close()

    # --- controllers ------------------------------------------------------------------------------------------------------------

    def controller(self, crash_at: str = "", *, prelude: str = "", fresh: bool = False, **environ: str) -> Worker:
        """
        Start a controller process.

        Args:
            crash_at: Where it dies, as `controller.crash.arm` takes it.
            prelude: ``module:function`` that it calls first.
            fresh: A new interpreter instead of a fork, whose environment is there from the start (LD_PRELOAD).
            environ: More of its environment.
        """
        made = {**self.environ(), "PENSTOCK_CRASH_AT": crash_at, **environ}
        context = self.stage.spawned if fresh else self.stage.forked
        self.folder.mkdir(parents=True, exist_ok=True)
        worker = Worker(
            context,
            made,
            prelude=prelude or self.prelude,
            log_path=self.folder / "controllers.log",
            program=self._program(environ) if fresh and environ else None,
        )
        self.workers.append(worker)
        self.note(f"controller {worker.pid} started" + (f", dies at {crash_at}" if crash_at else ""))
        return worker

    def environ(self) -> dict[str, str]:
        """Where this world's services are, as the product's settings say it."""
        return {
            "PENSTOCK_HOME": str(self.folder / "home"),
            "PENSTOCK_DATABASE_URL": self.database_url,
            "PENSTOCK_PROMETHEUS_URL": self.prometheus_url,
            "PENSTOCK_SCRAPE_INTERVAL": f"{int(SCRAPE.total_seconds() * 1000)}ms",
            "PENSTOCK_SLACK_TOKEN": "xoxb-chaos",
            "PENSTOCK_SLACK_API_URL": self.slack_url,
        }

    def _program(self, environ: Mapping[str, str]) -> Path:
        """Python in an environment of its own."""
        path = self.folder / f"python-{len(self.workers)}"
        words = " ".join(shlex.quote(f"{name}={value}") for name, value in environ.items())
        path.write_text(f'#!/bin/sh\nexec env {words} {shlex.quote(sys.executable)} "$@"\n')
        path.chmod(0o700)
        return path

    def restarted(self) -> None:
        """Everybody is dead, and new controllers are started now: no raise may rest on what was seen before."""
        self._end_workers()
        self.restarts.append(self.now())
        self.note("all controllers are dead")

    def _end_workers(self) -> None:
        for worker in self.workers:
            worker.close()
        self.workers.clear()

    # --- rollouts ---------------------------------------------------------------------------------------------------------------

    def plan(self, *, every: timedelta = timedelta(seconds=1), flag: str = "") -> Plan:
        """Three live phases without bake; the first raise needs no evidence, the others about two seconds of traffic."""
        flag = flag or self.name
        if flag not in self.flows:
            self.flows[flag] = self.stage.target.flow(flag)
            self.stack.callback(self.stage.target.drop, flag)
        return Plan(
            name=f"chaos-{flag}",
            environment=ENVIRONMENT,
            flag=flag,
            baseline=Variant(model="old"),
            candidate=Variant(model="new"),
            phases=(
                Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta()),
                Phase(name="half", mode=Mode.LIVE, weight=50_000, bake=timedelta()),
                Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta()),
            ),
            gates=(
                RateLimit(name="errors", indicator="error_ratio", limit=0.05, need=Need.LEANING),
                AtMost(name="no-alarm", indicator="custom", times=0, promql={"value": f'max(chaos_alarm{{flag="{flag}"}})'}),
                Silence(),
            ),
            policy=Policy(every=every, guard_every=timedelta(milliseconds=500), block=timedelta(seconds=1), min_requests=20),
        )

    def start(self, worker: Worker, plan: Plan | None = None, *, key: str = "k") -> str:
        """Open a rollout; starting it again after a crash finds it, another key opens the next one. Raises Died."""
        rollout_id = str(worker.call("start", plan=plan or self.plan(), key=key))
        if rollout_id not in self.rollouts:
            self.rollouts.append(rollout_id)
            # A gate whose series was never scraped holds, and the first check would not raise.
            self.until(lambda: self._prometheus_has(f'chaos_alarm{{flag="{_flag_of(rollout_id)}"}}'))
        return rollout_id

    def turn(self, truth: Truth, *rollouts: str) -> None:
        """What the candidate of these rollouts (of all) is like from now on; waits until Prometheus has seen it."""
        chosen = rollouts or tuple(self.rollouts)
        for flag, flow in self.flows.items():
            if any(_flag_of(i) == flag for i in chosen):
                flow.truth = truth
        self.note(f"the candidate of {', '.join(chosen)} is {truth}")
        if truth is not Truth.ALARM or not self.until(
            lambda: all(self._prometheus_has(f'chaos_alarm{{flag="{_flag_of(i)}"}} == 1') for i in chosen), timeout_s=5
        ):
            time.sleep(2 * SCRAPE.total_seconds())
        if truth is not Truth.GOOD:
            self.bad.update(dict.fromkeys(chosen, self.now()))

    def _prometheus_has(self, query: str) -> bool:
        """Whether Prometheus has anything to answer, asked past whatever stands between it and the controllers."""
        try:
            with urlopen(f"{self.truth_url}/api/v1/query?{urlencode({'query': query})}", timeout=2) as answer:
                return bool(json.load(answer)["data"]["result"])
        except (OSError, ValueError, KeyError):
            return False

    def rollout(self, rollout_id: str) -> Rollout:
        """As the log tells it. Raises PortError while the database is away."""
        return replay(self.entries(rollout_id))

    def entries(self, rollout_id: str) -> Sequence[Entry]:
        """The rows of a rollout. Raises PortError while the database is away."""
        return self._audit().entries(rollout_id)

    def opened(self) -> list[str]:
        """All rollouts that the log has: a controller may have died before it could answer."""
        return [str(r["rollout_id"]) for r in self.sql("SELECT rollout_id FROM penstock.audit WHERE seq = 1 ORDER BY id")]

    def slack_fails_once(self) -> None:
        """The next message is answered with an error of the server."""
        self.slack.faults.faults.append(SlackFault(method="chat.postMessage", kind=FaultKind.STATUS, status=500))

    def look(self, worker: Worker, rollout_id: str, *, may_raise: bool, force: bool = True) -> Mapping[str, Any]:
        """One look; a look that the product could not make is an outcome of its own. Raises Died."""
        try:
            seen: Mapping[str, Any] = worker.call("tick", rollout_id=rollout_id, may_raise=may_raise, force=force)
        except Refused as exc:
            seen = {"outcome": "error", "decision": "", "text": str(exc), "ended": False}
        self.note(f"{'check' if may_raise else 'guard'} {rollout_id}: {seen['outcome']} {seen['decision']} {seen['text']}")
        return seen

    def raise_to(self, worker: Worker, rollout_id: str, weight: int) -> None:
        """Gate checks until the flag is there. Raises Died, TimeoutError."""
        deadline = time.monotonic() + RAISE_S
        while self.weight() < weight:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{rollout_id} is not raised to {weight}")
            self.look(worker, rollout_id, may_raise=True)
            self.deliver(worker)
            time.sleep(BEAT_S)

    def until(self, happened: Callable[[], bool], timeout_s: float = 20.0) -> bool:
        """Whether it happened in time."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > deadline:
                return False
            time.sleep(PAUSE_S)
        return True

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def settled(self) -> bool:
        """Whether flag and log agree, nothing is under way, breaches are at 0, and every letter has arrived."""
        for rollout_id in self.rollouts:
            rollout = self.rollout(rollout_id)
            if isinstance(rollout.state, Moving) or (rollout_id in self.bad and not rollout.ended):
                return False
        return not self.sql("SELECT 1 FROM penstock.outbox WHERE delivered_at IS NULL AND NOT refused LIMIT 1")

    def recover(self, worker: Worker | None = None, *, check_gates: bool = True, force: bool = True) -> float:
        """
        Let a controller go on until everything is settled.

        Args:
            worker: Who; by default all others are ended and a new one is started.
            check_gates: Gate checks too, not only the guard.
            force: Gate checks although none is due.

        Returns:
            Seconds that it took; infinite if it did not happen within twice the fault's limit.
        """
        begun_s = time.monotonic()
        if worker is None:
            self.restarted()
            worker = self.controller()
        next_check_s = begun_s
        while time.monotonic() - begun_s < 2 * self.fault.recover_s_max:
            try:
                for rollout_id in self.rollouts:
                    if check_gates and time.monotonic() >= next_check_s:
                        self.look(worker, rollout_id, may_raise=True, force=force)
                    self.look(worker, rollout_id, may_raise=False)
                next_check_s = max(next_check_s, time.monotonic() + CHECK_S)
                self.lapse()
                self.deliver(worker)
                if self.settled():
                    took_s = time.monotonic() - begun_s
                    self.note(f"settled after {took_s:.2f} s")
                    return took_s
            except (Refused, psycopg.OperationalError):
                pass
            except (Died, Unanswered) as exc:
                self.note(f"the recovering controller: {type(exc).__name__}: {exc}")
                return math.inf
            time.sleep(PAUSE_S)
        self.note("it does not settle")
        return math.inf

    def deliver(self, worker: Worker) -> None:
        """Empty the outbox as far as it goes now. Raises Died, Refused."""
        while worker.call("deliver"):
            pass

    def lapse(self) -> None:
        """A minute passes for letters whose holder is dead: their lease ends."""
        self.sql(
            "UPDATE penstock.outbox SET due_at = clock_timestamp() WHERE delivered_at IS NULL AND due_at > clock_timestamp()"
        )

    def finish(self, recover_s: float | None, *more: Callable[[Facts], Iterator[str]]) -> Trial:
        """Look at everything that the trial left behind."""
        violations = check(self.facts(recover_s), *more)
        return Trial(violations=violations, recover_s=recover_s, passed=frozenset(self.passed))

    def facts(self, recover_s: float | None) -> Facts:
        audit = self._audit()
        logs = {i: [audit.entry(i, seq) for seq in range(1, len(audit.entries(i)) + 1)] for i in audit.known(1000)}
        return Facts(
            logs=logs,
            writes=[
                FlagWrite(
                    key=r["key"],
                    version=r["version"],
                    at=r["at"],
                    action=r["action"],
                    decision_id=r["decision_id"],
                    weights=Weights(live=r["weight"], shadow=r["shadow_weight"]),
                    killed=r["killed"],
                    foreign=r["db_user"] != APP_ROLE,
                )
                for r in self.sql("SELECT * FROM penstock.flag_history ORDER BY revision")
            ],
            letters=[
                Told(
                    rollout_id=r["rollout_id"],
                    seq=r["seq"],
                    level=notice_from_json(r["notice"]).level,
                    delivered=r["delivered_at"] is not None,
                    refused=r["refused"],
                )
                for r in self.sql("SELECT * FROM penstock.outbox ORDER BY id")
            ],
            messages=list(self._shown()),
            chain=verify(reader_url(self.owner_url)),
            restarts=tuple(self.restarts),
            bad=dict(self.bad),
            strangers=frozenset(self.strangers),
            recover_s=recover_s,
            recover_s_max=self.fault.recover_s_max,
        )

    def _shown(self) -> Iterator[Shown]:
        for channel in list(self.slack.workspace.messages.values()):
            for message in list(channel.values()):
                payload = (message.metadata or {}).get("event_payload", {})
                if "rollout_id" in payload:
                    yield Shown(rollout_id=payload["rollout_id"], seq=int(payload["seq"]), part=payload["part"])

    def bundle(self, folder: Path, trial: Trial) -> None:
        """Everything that tells what happened, for whoever looks into a violation."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {
            name: self.sql(f"SELECT * FROM penstock.{name} ORDER BY {order}")
            for name, order in (("audit", "id"), ("flag_history", "revision"), ("flags", "key"), ("outbox", "id"))
        }
        for name, rows in tables.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(r, default=str) + "\n" for r in rows))
        (folder / "slack.json").write_text(json.dumps([asdict(m) for m in self._shown()], indent=1))
        (folder / "notes.txt").write_text("\n".join((*self.notes, *(f"{v.invariant}: {v.text}" for v in trial.violations), "")))

    # --- the database -----------------------------------------------------------------------------------------------------------

    def sql(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Run one statement as the owner. Raises psycopg.Error."""
        with connect(self.owner_url) as connection, connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            cursor.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def now(self) -> datetime:
        """The database's clock."""
        at: datetime = self.sql("SELECT clock_timestamp() AS at")[0]["at"]
        return at

    def weight(self, flag: str = "") -> int:
        """Live weight of a flag; 0 if there is none."""
        rows = self.sql("SELECT weight FROM penstock.flags WHERE key = %s", flag or self.name)
        return int(rows[0]["weight"]) if rows else 0

    def owner_edits(self, table: str, statement: str) -> None:
        """Edit a table that is append-only, as only its owner can."""
        self.sql(f"ALTER TABLE penstock.{table} DISABLE TRIGGER {table}_append_only")
        self.sql(statement)
        self.sql(f"ALTER TABLE penstock.{table} ENABLE ALWAYS TRIGGER {table}_append_only")

    def note(self, text: str) -> None:
        self.notes.append(f"{time.monotonic() - self._begun_s:8.3f} {text}")

    def _audit(self) -> PostgresAudit:
        return PostgresAudit(create_engine("postgresql+psycopg://", creator=lambda: connect(self.owner_url), poolclass=NullPool))


def _flag_of(rollout_id: str) -> str:
    """Of a rollout whose plan is `World.plan`'s."""
    return rollout_id.removeprefix("chaos-").rpartition("-")[0]


def broken(invariant: str, text: str) -> Violation:
    """A violation that a fault finds by itself."""
    return Violation(invariant=invariant, text=text)
