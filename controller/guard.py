"""
The guard: a plain loop that looks at every active rollout every few seconds and only ever lowers.

It is why a breach costs seconds and not a quarter of an hour. Its one rule: it never stops by itself; whatever goes wrong in one round
is said and the next round begins on time.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import structlog

from controller.core.rollout import replay
from controller.deliver import Pace, deliver
from controller.ports import Notifier, Outbox, PortError, Ports
from controller.sweep import Swept, sweep
from controller.tick import Outcome

log = structlog.get_logger("penstock.guard")

IDLE = timedelta(seconds=1)
"""Between two looks for a first rollout: it must not be unguarded for longer because nothing ran before it."""

DELIVER_EVERY_S = 1.0
"""Between two looks into the outbox."""


def guard(
    ports: Ports, every: timedelta | None, stop: threading.Event, *, monotonic: Callable[[], float] = time.monotonic
) -> None:
    """
    Look until told to stop.

    Args:
        ports: The world.
        every: Time between the starts of two rounds; None takes the shortest `guard_every` of the active plans.
        stop: Set from elsewhere to end it.
    """
    while not stop.is_set():
        begun = monotonic()
        pause = every or IDLE
        try:
            active = list(ports.index.active())
            if every is None and active:
                pause = min(replay(ports.audit.entries(i)).plan.policy.guard_every for i in active)
            for swept in sweep(ports, may_raise=False, only=active) if active else ():
                _tell(swept)
        except PortError as exc:
            log.error("guard_round_failed", error=f"{type(exc).__name__}: {exc}")
        except Exception:  # the guard outlives every bug: one broken rollout must not leave the others unguarded
            log.exception("guard_round_broke")
        stop.wait(max(0.0, pause.total_seconds() - (monotonic() - begun)))


def mail(outbox: Outbox, notifier: Notifier, stop: threading.Event) -> None:
    """Deliver what is in the outbox until told to stop; runs beside the guard, so that Slack never slows a look."""
    pace = Pace()
    while not stop.is_set():
        try:
            deliver(outbox, notifier, pace=pace)
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
