"""
The guard: a plain loop that looks at every active rollout every few seconds and only ever lowers.

It is why a breach costs seconds and not a quarter of an hour. Its one rule: it never stops by itself, and nothing that is wrong with one
rollout keeps it from the others: each is looked at on its own plan's beat.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import structlog

from controller.deliver import Pace, deliver
from controller.ports import Notifier, Outbox, PortError, Ports
from controller.sweep import Swept, sweep
from controller.tick import Outcome

log = structlog.get_logger("penstock.guard")

IDLE_S = 1.0
"""The longest sleep: a rollout that was just opened must not be unguarded because others have a slower beat."""

AGAIN_S = 1.0
"""Until the next look at a rollout that could not be looked at, and until the next round after one that failed."""

DELIVER_EVERY_S = 1.0
"""Between two looks into the outbox."""


def guard(
    ports: Ports, every: timedelta | None, stop: threading.Event, *, monotonic: Callable[[], float] = time.monotonic
) -> None:
    """
    Look until told to stop.

    Args:
        ports: The world.
        every: Time between the starts of two looks at a rollout; None takes each plan's own `guard_every`.
        stop: Set from elsewhere to end it.
    """
    next_look: dict[str, float] = {}
    while not stop.is_set():
        begun = monotonic()
        try:
            next_look = _round(ports, every, begun, next_look)
            first = min(next_look.values(), default=begun + IDLE_S)
        except PortError as exc:
            log.error("guard_round_failed", error=f"{type(exc).__name__}: {exc}")
            first = begun + AGAIN_S
        except Exception:  # the guard outlives every bug
            log.exception("guard_round_broke")
            first = begun + AGAIN_S
        stop.wait(min(max(first - monotonic(), 0.0), IDLE_S))


def _round(ports: Ports, every: timedelta | None, begun: float, next_look: dict[str, float]) -> dict[str, float]:
    """Look at those whose time has come; returns when each active rollout is looked at next."""
    active = ports.index.active()
    coming = {i: next_look.get(i, begun) for i in active}
    ready = [i for i in active if coming[i] <= begun]
    for swept in sweep(ports, may_raise=False, only=ready) if ready else ():
        _tell(swept)
        pause = every if every is not None or swept.tick is None else swept.tick.rollout.plan.policy.guard_every
        coming[swept.rollout_id] = begun + (AGAIN_S if pause is None or swept.tick is None else pause.total_seconds())
    return coming


def mail(outbox: Outbox, notifier: Notifier, stop: threading.Event) -> None:
    """Deliver what is in the outbox until told to stop; runs beside the guard, so that Slack never slows a look."""
    pace = Pace()
    while not stop.is_set():
        try:
            done = deliver(outbox, notifier, pace=pace)
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
