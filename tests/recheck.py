"""What every test that makes real decisions ends with: the rows that it left are lived through again."""

from collections import Counter
from collections.abc import Sequence

from controller.ports import AuditLog
from controller.recheck import COMPUTED, recheck_all


def assert_replays(audit: AuditLog, rollout_ids: Sequence[str]) -> Counter[str]:
    """All rows of these rollouts come out of themselves again; none is of a kind that cannot be computed."""
    counts, differences = recheck_all(rollout_ids, audit)
    assert differences == []
    assert counts["incomplete"] == 0, counts
    return counts


__all__ = ["COMPUTED", "assert_replays"]
