"""
The notifier without a chat: one log line for each notice that is worth reading.

It stands where Slack does when none is configured. Its one rule: it never fails, so that a missing chat never holds up the outbox.
"""

from typing import Any

import structlog

from controller.core.notice import Level
from controller.ports import Letter


class LogNotifier:
    """
    Implements `controller.ports.Notifier`.

    Args:
        logger: A structlog logger; default is the one that is configured for the process.
    """

    def __init__(self, logger: Any = None) -> None:
        self._log = structlog.get_logger("penstock.notice") if logger is None else logger

    def deliver(self, letter: Letter) -> None:
        notice = letter.notice
        if notice.level is Level.INFO:
            return
        say = self._log.warning if notice.level is Level.ALARM else self._log.info
        worst = notice.lines[0] if notice.lines else None
        say(
            "notice",
            rollout_id=notice.rollout_id,
            seq=notice.seq,
            level=notice.level.value,
            environment=notice.environment,
            title=notice.title,
            standing=notice.standing,
            text=notice.text,
            worst_gate="" if worst is None else f"{worst.gate}: {worst.verdict.value}: {worst.text}",
            exposure=notice.exposure,
        )
