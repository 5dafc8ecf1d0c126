"""
What the guard last knew, for the time in which the audit log cannot be read.

It stands between the guard's loop and `tick.without_log`. Its one rule: it only lowers. What it remembers was read from the log in this
process; whatever the log says once it can be read again replaces it.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from controller.core.rollout import Rollout
from controller.ports import AuditUnavailable, FlagUnavailable, Ports
from controller.shelf import CaseShelf
from controller.sweep import Swept
from controller.tick import without_log

T = TypeVar("T")

PATIENCE_S = 15.0
"""A log that has not answered a plain question for so long is taken to be unreadable: a server whose disk stands still accepts and never answers."""

log = structlog.get_logger("penstock.guard")


@dataclass(slots=True)
class Patient:
    """
    Asks the log, and does not wait for ever: neither a frozen server nor a dead disk ends a connection.

    Args:
        patience_s: For one question.
    """

    patience_s: float = PATIENCE_S
    _asked: "Future[object] | None" = None

    def ask(self, question: Callable[[], T]) -> T:
        """
        Raises:
            AuditUnavailable: it is not answered in time, or an earlier one still is not.
        """
        if self._asked is not None and not self._asked.done():
            raise AuditUnavailable("the log's database still does not answer")
        asked = begin(question)
        self._asked = asked  # type: ignore[assignment]  # only whether it is done matters
        return self._within(asked)

    def wait_for(self, work: "Future[T]", probe: Callable[[], object]) -> T:
        """
        Wait for something that may take long, as long as the log answers a `probe` meanwhile.

        Raises:
            AuditUnavailable: it does not answer any more; the work goes on and nobody waits for it.
        """
        while not work.done():
            try:
                return work.result(timeout=self.patience_s)
            except TimeoutError:
                if not work.done():
                    self.ask(probe)
        return work.result()

    def _within(self, asked: "Future[T]") -> T:
        try:
            return asked.result(timeout=self.patience_s)
        except TimeoutError:
            if asked.done():
                raise
            raise AuditUnavailable(f"the log's database has not answered for {self.patience_s:g} s") from None


def begin(work: Callable[[], T]) -> "Future[T]":
    """Do something on a thread that the end of the process does not wait for."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as exc:
            done.set_exception(exc)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="log", daemon=True).start()
    return done


@dataclass(slots=True)
class Known:
    """The active rollouts as this process last saw them; used by one thread."""

    rollouts: dict[str, Rollout] = field(default_factory=dict)
    drifted: set[str] = field(default_factory=set)
    shelf: CaseShelf = field(default_factory=CaseShelf)

    def learn(self, swept: Swept) -> None:
        """Remember what a look found."""
        tick = swept.tick
        if tick is None:
            return
        self.drifted.discard(swept.rollout_id)
        if tick.rollout.ended:
            self.rollouts.pop(swept.rollout_id, None)
            return
        self.rollouts[swept.rollout_id] = tick.rollout
        if tick.drifted:
            self.drifted.add(swept.rollout_id)

    def forget_others(self, active: Collection[str]) -> None:
        """Whatever the log does not call active has ended."""
        for rollout_id in self.rollouts.keys() - set(active):
            del self.rollouts[rollout_id]
            self.drifted.discard(rollout_id)

    def looks(self, ids: Sequence[str], ports: Ports) -> Iterator[Swept]:
        """Looks without the log at those that are known; ends at once when the flag store is away too."""
        for rollout_id in ids:
            rollout = self.rollouts.get(rollout_id)
            if rollout is None:
                continue
            try:
                yield Swept(rollout_id=rollout_id, tick=without_log(rollout, ports, self.shelf))
            except FlagUnavailable as exc:
                yield Swept(rollout_id=rollout_id, error=f"{type(exc).__name__}: {exc}")
                return
            except Exception as exc:  # a bug that one rollout meets must not cost the others their look
                log.exception("look_broke", rollout_id=rollout_id)
                yield Swept(rollout_id=rollout_id, error=f"{type(exc).__name__}: {exc}")
