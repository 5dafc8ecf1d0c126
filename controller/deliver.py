"""
The outbox, emptied: each due notice to the notifier, in order, and what became of it back to the outbox.

It stands beside `tick`: decisions write notices, this sends them, and neither waits for the other. Its one rule: at least once and in
order within a rollout. A letter is marked done only after the notifier took it, and none overtakes an earlier one of its rollout.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.crash import Point, reached
from controller.ports import Notifier, NotifierRefused, NotifierUnavailable, Outbox

PAUSE_S = 1.2
"""Between two letters to one channel: Slack takes about one message a second (docs.slack.dev/apis/web-api/rate-limits)."""

FAILURES_MAX = 3
"""After so many failures in one round the notifier is taken to be down; the rest waits instead of for its timeouts."""

DOWN_S = 10.0
"""So long a notifier that is taken to be down is left alone."""

ROUND_MAX_S = 30.0
"""A round ends after that, whatever is left: letters are leased for a minute, and a lapsed lease hands them to somebody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """
    What one round came to, in letters.

    Args:
        sent: Taken by the notifier.
        failed: To be tried again.
        refused: Never to be tried again.
        reason, refusal: Why the last one of each failed or was refused.
    """

    sent: int = 0
    failed: int = 0
    refused: int = 0
    reason: str = ""
    refusal: str = ""


@dataclass(slots=True)
class Pace:
    """
    Keeps letters to one channel apart; keep one of these over all rounds of a process.

    Args:
        pause_s: Least time between two letters.
        clock: Monotonic seconds.
        sleep: Waits for so many seconds.
    """

    pause_s: float = PAUSE_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _last_s: dict[str, float] = field(default_factory=dict)
    _quiet_until_s: float = -math.inf

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be sent now."""
        return self.clock() < self._quiet_until_s

    def hush(self, pause_s: float) -> None:
        """Nothing is to be sent for so long."""
        self._quiet_until_s = self.clock() + pause_s

    def wait(self, channel: str) -> None:
        last_s = self._last_s.get(channel)
        if last_s is not None and (left_s := last_s + self.pause_s - self.clock()) > 0:
            self.sleep(left_s)
        self._last_s[channel] = self.clock()


def deliver(outbox: Outbox, notifier: Notifier, limit: int = 20, *, pace: Pace | None = None) -> Delivered:
    """
    One round: what is due now, at most `limit` letters.

    Args:
        outbox: Where letters come from.
        notifier: Where they go.
        limit: Letters of one round.
        pace: Spacing; a new one for each call keeps no distance to the round before.

    Raises:
        AuditUnavailable: the outbox cannot be read or written. What was sent but not marked comes again; notifiers know it by its id.
    """
    pace = pace or Pace()
    if pace.quiet:
        return Delivered()
    sent = failed = refused = 0
    reason = refusal = ""
    waiting: set[str] = set()
    began_s = pace.clock()
    for letter in outbox.due(limit):
        if pace.quiet or pace.clock() - began_s > ROUND_MAX_S or letter.notice.rollout_id in waiting:
            outbox.back(letter)
            continue
        pace.wait(letter.notice.channel)
        try:
            notifier.deliver(letter)
        except NotifierRefused as exc:
            refusal = str(exc)
            outbox.failed(letter, refusal, None, final=True)
            refused += 1
        except (
            Exception
        ) as exc:  # a bug that one letter meets must not hold up all others: it waits like one that Slack did not take
            retry_after_s = exc.retry_after_s if isinstance(exc, NotifierUnavailable) else None
            reason = str(exc) if isinstance(exc, NotifierUnavailable) else f"{type(exc).__name__}: {exc}"
            outbox.failed(letter, reason, retry_after_s, final=False)
            waiting.add(letter.notice.rollout_id)
            failed += 1
            # A pause that the other side named is meant for all that comes from us.
            if retry_after_s is not None or failed >= FAILURES_MAX:
                pace.hush(DOWN_S if retry_after_s is None else retry_after_s)
        else:
            reached(Point.LETTER_DELIVERED)
            outbox.done(letter)
            sent += 1
    return Delivered(sent=sent, failed=failed, refused=refused, reason=reason, refusal=refusal)
