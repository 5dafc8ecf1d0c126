"""
The guard: a plain loop that looks at every active rollout every few seconds and only ever lowers.

It is why a breach costs seconds and not a quarter of an hour. While the log cannot be read, it goes on with what it last knew
(`controller.blind`). Its one rule: it never stops by itself, and nothing that is wrong with one rollout keeps it from the others: each is
looked at on its own plan's beat.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from controller import metrics
from controller.blind import PATIENCE_S, Known, Patient, begin
from controller.deliver import Pace, deliver
from controller.ports import AuditUnavailable, Notifier, Outbox, PortError, Ports
from controller.sweep import Swept, beat, sweep
from controller.tick import Outcome

log = structlog.get_logger("penstock.guard")

IDLE_S = 1.0
"""The longest sleep: a rollout that was just opened must not be unguarded because others have a slower beat."""

AGAIN_S = 1.0
"""Until the next look at a rollout that could not be looked at, and until the next round after one that failed."""

BEAT_S = 5.0
"""Between two heartbeats of the guard."""

DELIVER_EVERY_S = 1.0
"""Between two looks into the outbox."""


def guard(
    ports: Ports,
    every: timedelta | None,
    stop: threading.Event,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    patience_s: float = PATIENCE_S,
) -> None:
    """
    Look until told to stop.

    Args:
        ports: The world.
        every: Time between the starts of two looks at a rollout; None takes each plan's own `guard_every`.
        stop: Set from elsewhere to end it.
        patience_s: How long a question to the log may take before it counts as unreadable.
    """
    rounds = _Rounds(ports=ports, every=every, patient=Patient(patience_s=patience_s))
    while not stop.is_set():
        begun = monotonic()
        try:
            rounds.go(begun)
            first = min(rounds.coming.values(), default=begun + IDLE_S)
        except PortError as exc:
            metrics.round_ended("failed", time.time())
            log.error("guard_round_failed", error=f"{type(exc).__name__}: {exc}")
            first = begun + AGAIN_S
        except Exception:  # the guard outlives every bug
            metrics.round_ended("failed", time.time())
            log.exception("guard_round_broke")
            first = begun + AGAIN_S
        stop.wait(min(max(first - monotonic(), 0.0), IDLE_S))


@dataclass(slots=True)
class _Rounds:
    """
    What the loop keeps between two rounds; losing it costs a round.

    Args:
        coming: When each active rollout is looked at next, monotonic seconds.
        known: The rollouts as last seen.
        looked: Those that were looked at since the last heartbeat.
        beat_at: When the next heartbeat is due, monotonic seconds.
        blind: The log could not be read in the last round.
        patient: Asks the log.
    """

    ports: Ports
    every: timedelta | None
    coming: dict[str, float] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    looked: set[str] = field(default_factory=set)
    beat_at: float = 0.0
    blind: bool = False
    patient: Patient = field(default_factory=Patient)

    def go(self, begun: float) -> None:
        """Look at those whose time has come. Raises PortError where nothing could be looked at."""
        try:
            self._round(begun)
        except AuditUnavailable as exc:
            self._blind_round(begun, f"{type(exc).__name__}: {exc}")

    def _round(self, begun: float) -> None:
        active = self.patient.ask(self.ports.index.active)
        if self.blind:
            log.warning("guard_reads_the_log_again")
            self.blind = False
        self.known.forget_others(active)
        self.coming = {i: self.coming.get(i, begun) for i in active}
        ready = [i for i in active if self.coming[i] <= begun]
        looks = begin(lambda: list(sweep(self.ports, may_raise=False, only=ready)) if ready else [])
        for swept in self.patient.wait_for(looks, self.ports.audit.now):
            self._took(swept, begun)
            if swept.tick is None:
                # Its log may be what cannot be read; a breach is lowered all the same.
                for instead in self.known.looks([swept.rollout_id], self.ports):
                    _tell(instead)
            else:
                self.looked.add(swept.rollout_id)
        if ready and self.known.rollouts:
            metrics.seen(self.known.rollouts.values(), len(self.known.drifted), self.patient.ask(self.ports.audit.now))
        elif not active:
            metrics.seen((), 0, datetime.now(UTC))
        if begun >= self.beat_at:
            self.patient.ask(lambda: beat(self.ports, "guard", sorted(self.looked)))
            self.looked.clear()
            self.beat_at = begun + BEAT_S
        metrics.round_ended("ok", time.time())

    def _blind_round(self, begun: float, error: str) -> None:
        if not self.blind:
            log.error("guard_blind", error=error, known=len(self.known.rollouts))
            self.blind = True
        ready = [i for i in self.known.rollouts if self.coming.get(i, begun) <= begun]
        for swept in self.known.looks(ready, self.ports):
            self._took(swept, begun)
        metrics.round_ended("blind", time.time())

    def _took(self, swept: Swept, begun: float) -> None:
        _tell(swept)
        self.known.learn(swept)
        pause = self.every if self.every is not None or swept.tick is None else swept.tick.rollout.plan.policy.guard_every
        self.coming[swept.rollout_id] = begun + (AGAIN_S if pause is None or swept.tick is None else pause.total_seconds())


def mail(outbox: Outbox, notifier: Notifier, stop: threading.Event) -> None:
    """Deliver what is in the outbox until told to stop; runs beside the guard, so that Slack never slows a look."""
    pace = Pace()
    while not stop.is_set():
        try:
            done = deliver(outbox, notifier, pace=pace)
            metrics.delivered(sent=done.sent, failed=done.failed, refused=done.refused)
            if done.refused:
                log.error("notices_refused", count=done.refused, reason=done.refusal)
            if done.failed:
                log.warning("notices_delayed", count=done.failed, reason=done.reason)
        except PortError as exc:
            log.error("outbox_unreadable", error=f"{type(exc).__name__}: {exc}")
        except Exception:  # as above: notices wait, the loop goes on
            log.exception("delivery_broke")
        stop.wait(DELIVER_EVERY_S)


def _tell(swept: Swept) -> None:
    if swept.error:
        log.error("look_failed", rollout_id=swept.rollout_id, error=swept.error)
    elif (
        swept.tick is not None and swept.tick.outcome in (Outcome.DECIDED, Outcome.UNRECORDED) and swept.tick.decision is not None
    ):
        decision = swept.tick.decision
        log.warning(
            "guard_acted", rollout_id=swept.rollout_id, decision=decision.kind, why=decision.why.value, text=decision.text
        )
