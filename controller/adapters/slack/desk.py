"""
What is asked of Slack while somebody clicks: a modal is opened, a person is told something, a usergroup is read.

It stands beside the notifier and shares nothing with it: a click is answered within three seconds or not at all. Its one rule: whatever Slack does
here, the audit log is not touched by it.
"""

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import structlog
from slack_sdk import WebClient

from controller.adapters.slack.errors import RAISED

log = structlog.get_logger("penstock.slack")

GROUPS_FOR_S = 300.0
"""Who is in a usergroup is asked again after so long."""


class SlackDesk:
    """
    Args:
        token: Bot token; scopes ``chat:write``, and ``usergroups:read`` where people.yaml names usergroups.
        base_url: Another Slack API, for a stand-in.
        timeout_s: For each call.
    """

    def __init__(self, token: str, *, base_url: str | None = None, timeout_s: int = 3) -> None:
        silent = logging.Logger("penstock.slack", level=logging.CRITICAL + 1)
        self._web = WebClient(token, base_url=base_url or WebClient.BASE_URL, timeout=timeout_s, retry_handlers=[], logger=silent)
        self._members: dict[str, tuple[float, frozenset[str]]] = {}
        self._lock = threading.Lock()

    @property
    def web(self) -> WebClient:
        return self._web

    def open(self, trigger: str, view: dict[str, Any]) -> str:
        """Open a modal; why it could not be opened, or ""."""
        try:
            self._web.views_open(trigger_id=trigger, view=view)
        except RAISED as exc:
            log.warning("modal_not_opened", error=str(exc)[:200])
            return "Slack did not open the form; click again"
        return ""

    def tell(self, channel: str, user: str, text: str) -> None:
        """Something that only one person sees. Lost if Slack does not take it, which is logged."""
        if not channel:
            return
        try:
            self._web.chat_postEphemeral(channel=channel, user=user, text=text)
        except RAISED as exc:
            log.warning("answer_not_told", user=user, error=str(exc)[:200])

    def groups_of(self, user: str, usergroups: Iterable[str]) -> frozenset[str]:
        """Which of these usergroups a person is in. One that cannot be read counts as without members, which is logged."""
        return frozenset(g for g in usergroups if g and user in self._of(g))

    def _of(self, usergroup: str) -> frozenset[str]:
        with self._lock:
            known = self._members.get(usergroup)
        if known is not None and time.monotonic() - known[0] < GROUPS_FOR_S:
            return known[1]
        try:
            answer = self._web.usergroups_users_list(usergroup=usergroup)
            found = frozenset(str(u) for u in answer.get("users") or ())
        except RAISED as exc:
            log.warning("usergroup_not_read", usergroup=usergroup, error=str(exc)[:200])
            return frozenset()
        with self._lock:
            self._members[usergroup] = (time.monotonic(), found)
        return found
