"""
Controllers that are wrong on purpose, one for each invariant: what shows that the invariants can fail.

Each function changes the product in the process that calls it (`World.controller(prelude="bench.chaos.sabotage:...")`). Its one rule: it is a
mistake that somebody could make.
"""

import json
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from controller import commit as controller_commit
from controller import guard as controller_guard
from controller import tick as controller_tick
from controller.adapters.postgres import PostgresAudit, PostgresFlags
from controller.adapters.prometheus import PrometheusSource
from controller.adapters.prometheus import answer as prometheus_answer
from controller.adapters.prometheus.client import PrometheusClient
from controller.adapters.slack import SlackNotifier
from controller.commit import Committed
from controller.core.converge import InStep
from controller.core.decision import Advance, Hold, Resume, RollBack, Why
from controller.core.notice import Level
from controller.core.rollout import AwaitingApproval, Baking, Decided

commit: Any = controller_commit
tick: Any = controller_tick
flags: Any = PostgresFlags
slack: Any = SlackNotifier
audit: Any = PostgresAudit
answer: Any = prometheus_answer
client: Any = PrometheusClient
metrics: Any = PrometheusSource
guard: Any = controller_guard


def flag_before_row() -> None:
    """The flag is written first and the decision is recorded afterwards."""
    record = commit.record

    def flag_first(rollout: Any, event: Any, ports: Any, actor: str) -> Any:
        if isinstance(event, Decided) and event.weights_after != event.weights_before:
            flag = ports.flags.read(rollout.plan.environment, rollout.plan.flag)
            change = commit._change(rollout, event.weights_after, event.decision_id)
            ports.flags.write(change, 0 if flag is None else flag.version)
        return record(rollout, event, ports, actor)

    commit.record = flag_first


def phase_twice() -> None:
    """A phase is entered again instead of being judged."""
    decide = tick.decide

    def again(rollout: Any, *args: Any, **options: Any) -> Any:
        decision = decide(rollout, *args, **options)
        if isinstance(decision, Hold) and options["may_raise"] and isinstance(rollout.state, Baking | AwaitingApproval):
            return Advance(phase=rollout.phase, why=Why.GATES_PASSED, text="once more")
        return decision

    tick.decide = again


def always_due() -> None:
    """Gate checks do not ask whether the slot was theirs."""
    tick.due = lambda *_: True


def write_twice() -> None:
    """A flag write is repeated, to be sure."""
    write = flags.write

    def twice(self: Any, change: Any, expected_version: int) -> Any:
        flag = write(self, change, expected_version)
        return write(self, change, flag.version)

    flags.write = twice


def resume_raises() -> None:
    """A raise that was interrupted is finished, on the evidence of the controller that died."""

    def finish(rollout: Any, flag: Any, ports: Any, actor: str, *, fenced: bool) -> Any:
        done = commit._apply(rollout, flag, ports, actor)
        return done.rollout, done.flag

    commit._give_up = finish


def forget_notices() -> None:
    """Letters count as delivered and nobody gets them."""
    slack.deliver = lambda self, letter: None


def never_look_before_posting() -> None:
    """Slack is not asked whether the message stands there already."""
    slack._find = lambda self, *args, **options: None


def never_confirm() -> None:
    """The flag is written and no row says so."""
    commit._confirm = lambda rollout, flag, ports, actor: rollout


def say_something_else() -> None:
    """What is recorded is not what the evidence says."""
    decide = tick.decide

    def other(*args: Any, **options: Any) -> Any:
        decision = decide(*args, **options)
        return replace(decision, text=f"{decision.text}, surely")

    tick.decide = other


def never_lower() -> None:
    """A breach is held."""
    decide = tick.decide

    def hold(*args: Any, **options: Any) -> Any:
        decision = decide(*args, **options)
        return Hold(why=Why.BAKING, text=decision.text) if isinstance(decision, RollBack) else decision

    tick.decide = hold


def believe_warnings() -> None:
    """An answer that says that it is partial is taken for whole."""
    result = answer._result

    def whole(body: bytes, kind: str) -> Any:
        return result(json.dumps({k: v for k, v in json.loads(body).items() if k != "warnings"}).encode(), kind)

    answer._result = whole


def let_errors_out() -> None:
    """Traffic that cannot be read ends the look."""
    traffic = metrics.traffic

    def fails(self: Any, *args: Any) -> Any:
        read = traffic(self, *args)
        if read.traffic is None:
            raise RuntimeError(read.failure)
        return read

    metrics.traffic = fails


def tell_nobody() -> None:
    """Whatever happens is only a refreshed message."""
    notice_of = commit.notice_of
    commit.notice_of = lambda *args: replace(notice_of(*args), level=Level.INFO)


def never_ask_again() -> None:
    """Prometheus failed once, so it is taken to be down for good."""
    ask_all = client.ask_all
    failed: list[Any] = []

    def once(self: Any, asks: Any, **options: Any) -> Any:
        answers = ask_all(self, asks, **options)
        failed.extend(a for a in answers.values() if a.failure)
        return dict.fromkeys(asks, failed[0]) if failed else answers

    client.ask_all = once


def ignore_drift() -> None:
    """What stands in the flag is not compared with the log."""
    decide = tick.decide
    tick.decide = lambda rollout, found, *args, **options: decide(rollout, InStep(), *args, **options)


def overwrite() -> None:
    """The flag is written at whatever version it is."""
    write = flags.write

    def anyhow(self: Any, change: Any, expected_version: int) -> Any:
        flag = self.read(change.environment, change.key)
        return write(self, change, 0 if flag is None else flag.version)

    flags.write = anyhow


def own_clock() -> None:
    """The time is that of the machine."""
    audit.now = lambda self: datetime.now(UTC)


def log_nothing() -> None:
    """Trouble with letters is not worth a line."""

    def nothing(*args: Any, **more: Any) -> None:
        pass

    guard.log = SimpleNamespace(warning=nothing, error=nothing, exception=nothing)


def ask_until_answered() -> None:
    """A question that fails is asked again for as long as some people have patience."""
    ask_all = client.ask_all

    def patiently(self: Any, asks: Any, **options: Any) -> Any:
        for _ in range(2):
            answers = ask_all(self, asks, **options)
            if not any(a.failure for a in answers.values()):
                break
            time.sleep(1.0)
        return answers

    client.ask_all = patiently


def ask_prefect_first() -> None:
    """A guard looks only where Prefect answers."""
    observe = tick.observe

    def asks(*args: Any) -> Any:
        with socket.create_connection(("127.0.0.1", 9), timeout=1.0):
            return observe(*args)

    tick.observe = asks


def tell_before_acting() -> None:
    """A row is only written once people have read the last notice."""
    append = audit.append

    def patiently(self: Any, entry: Any, notice: Any) -> Any:
        for _ in range(30):
            with self._engine.connect() as connection:
                unread = connection.exec_driver_sql("SELECT 1 FROM penstock.outbox WHERE delivered_at IS NULL").first()
            if unread is None:
                break
            time.sleep(0.1)
        return append(self, entry, notice)

    audit.append = patiently


def resume_in_words() -> None:
    """A resumed rollout goes on with the flag as it is."""
    apply = commit._apply

    def leaves(rollout: Any, flag: Any, ports: Any, actor: str, **options: Any) -> Any:
        if isinstance(rollout.state.decision, Resume) and flag is not None:
            return Committed(rollout=commit._confirm(rollout, flag, ports, actor), flag=flag)
        return apply(rollout, flag, ports, actor, **options)

    commit._apply = leaves


def distrust_clocks() -> None:
    """Nothing is raised where the machine's clock is not the database's."""
    decide = tick.decide

    def careful(rollout: Any, found: Any, results: Any, now: datetime, **options: Any) -> Any:
        if abs(datetime.now(UTC) - now) > timedelta(minutes=1):
            return Hold(why=Why.METRICS_FAILED, text="the clocks disagree")
        return decide(rollout, found, results, now, **options)

    tick.decide = careful
