"""
Where rollouts stand now: each is replayed once by this process, and from then on only led over the rows that are new.

It stands between the audit log and every look. Its one rule: what is at hand is a replay and nothing else. The log says whether its last row
is still the one that was replayed; if it is not, or if nothing is at hand, everything is replayed.
"""

from collections.abc import Sequence
from functools import reduce

from controller.core.rollout import LogError, Rollout, replay, step
from controller.ports import AuditLog
from controller.shelf import Mark, StandingShelf


def standing(rollout_id: str, audit: AuditLog, shelf: StandingShelf) -> Rollout:
    """
    Raises:
        UnknownRollout, AuditUnavailable: as `AuditLog.entries`.
        LogError: the log contradicts itself.
    """
    found = standings([rollout_id], audit, shelf).get(rollout_id)
    return replay(audit.entries(rollout_id)) if found is None else found


def standings(ids: Sequence[str], audit: AuditLog, shelf: StandingShelf) -> dict[str, Rollout]:
    """
    Returns:
        By id; without those that do not exist, cannot be read, or contradict themselves: `standing` says which.

    Raises:
        AuditUnavailable: none can be read.
    """
    before = shelf.find(ids)
    found: dict[str, tuple[Rollout, Mark]] = {}
    for rollout_id, new in audit.news({i: before[i][1] if i in before else Mark() for i in ids}).items():
        try:
            rollout = replay(new.entries) if new.whole else reduce(step, new.entries, before[rollout_id][0])
        except LogError:
            continue
        found[rollout_id] = (rollout, new.mark)
    shelf.put(found)
    return {i: rollout for i, (rollout, _) in found.items()}
