"""
Pages of rollouts and of rows.

Its one rule: a page costs what it shows; a search through thousands of rollouts stops after `SCAN_MAX` and goes on with the next page.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection
from typing import Any

from controller import describe
from controller.console.api.problems import of_field
from controller.core.rollout import LogError, replay
from controller.ports import Ports

LIMIT_MAX = 200
SCAN_MAX = 500
"""Rollouts that one page replays at most."""

KNOWN_MAX = 100_000
EVIDENCE_MAX = 20
"""Rows with their raw answers, which may have megabytes."""


def page_of(ports: Ports, states: Collection[str], search: str, limit: int, cursor: str | None) -> dict[str, Any]:
    """
    Rollouts, newest first.

    Args:
        ports: Where.
        states: Only these (`describe.state_name`, or ``broken``); empty for all.
        search: Only those that have this text in id, flag, environment, a model or the requester; "" for all.
        limit: How many at most.
        cursor: `next` of the page before; None for the first.

    Raises:
        Refused: the cursor is not one.
    """
    ids = ports.index.known(KNOWN_MAX)
    begin = 0
    if cursor is not None:
        after = decoded(cursor)
        if after not in ids:
            raise of_field("query.cursor", cursor, "is not the `next` of a page")
        begin = ids.index(after) + 1
    found: list[dict[str, Any]] = []
    last = begin
    wanted = search.strip().lower()
    for last in range(begin, min(begin + SCAN_MAX, len(ids))):
        row = summary_of(ports, ids[last])
        if (not states or row["state"] in states) and (not wanted or wanted in _searched(row)):
            found.append(row)
            if len(found) == limit:
                break
    more = bool(ids) and last + 1 < len(ids) and begin < len(ids)
    return {"rollouts": found, "next": encoded(ids[last]) if more else None}


def summary_of(ports: Ports, rollout_id: str) -> dict[str, Any]:
    """One rollout's summary; a log that cannot be read is said in its place."""
    try:
        return describe.summary(replay(ports.audit.entries(rollout_id)))
    except LogError as exc:
        return {"rollout_id": rollout_id, "state": "broken", "standing": f"the log contradicts itself: {exc}"}


def rows_of(ports: Ports, rollout_id: str, *, after: int, limit: int, evidence: bool) -> dict[str, Any]:
    """Rows of one rollout from `after` on, oldest first; with `evidence` whole, raw answers included."""
    entries = ports.audit.entries(rollout_id)
    part = entries[after : after + (min(limit, EVIDENCE_MAX) if evidence else limit)]
    plan = describe.plan_of(entries)
    rows = [
        describe.history_json(ports.audit.entry(rollout_id, e.seq), plan) if evidence else describe.history_row(e, plan)
        for e in part
    ]
    end = after + len(part)
    return {"rollout_id": rollout_id, "rows": rows, "next": end if part and end < len(entries) else None}


def _searched(row: dict[str, Any]) -> str:
    keys = ("rollout_id", "flag", "environment", "baseline", "candidate", "opened_by", "standing")
    return " ".join(str(row.get(k) or "") for k in keys).lower()


def encoded(text: str) -> str:
    """For a cursor, or a path within an address."""
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decoded(text: str) -> str:
    """What `encoded` was given; "" of what it did not make."""
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:
        return ""
