"""
What people are asked: the next step of a rollout, who may say yes to it, and the digest that an answer is bound to.

It stands beside `decide`, which asks; commands, messages and pages show it and answer it. Its one rule: an answer is to one question. When
the plan, the phase, the moment it was asked, or the gates without a proof are others, the digest is another, and an old answer is refused.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from controller.core.plan import Approval
from controller.core.rollout import AwaitingApproval, Baking, Override, Pending, Rollout, Vote, entering_of

OVERRIDE_LASTS = timedelta(hours=1)
"""A broken glass that nothing came of must not be found broken a day later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    One approval that is asked for.

    Args:
        approval: Whose.
        votes: Those that count now.
    """

    approval: Approval
    votes: tuple[Vote, ...]

    @property
    def lacking(self) -> int:
        return max(0, self.approval.count - len(self.votes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """
    A rollout that waits for people.

    Args:
        digest: SHA-256, hexadecimal; an answer names it.
        entering: Index of the phase.
        asked_at: When it was asked.
        unproven: Gates without a proof, which a yes accepts.
        asked: Who must say yes.
    """

    digest: str
    entering: int
    asked_at: datetime
    unproven: tuple[str, ...]
    asked: tuple[Asked, ...]


def step_digest(rollout: Rollout) -> str:
    """The step that comes next, as a digest; "" where none does (paused, moving, ended)."""
    state = rollout.state
    if not isinstance(state, Pending | Baking | AwaitingApproval):
        return ""
    asked = state if isinstance(state, AwaitingApproval) else None
    step = {
        "rollout": rollout.id,
        "plan": rollout.plan_digest,
        "entering": entering_of(state),
        "since": None if isinstance(state, Pending) else state.since.isoformat(),
        "asked_at": None if asked is None else asked.asked_at.isoformat(),
        "unproven": [] if asked is None else sorted(asked.unproven),
    }
    return sha256(json.dumps(step, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def question_of(rollout: Rollout, now: datetime) -> Question | None:
    """What a rollout waits for; None where it waits for nobody."""
    state = rollout.state
    if not isinstance(state, AwaitingApproval):
        return None
    needed = rollout.plan.approvals_of(state.entering, unproven=bool(state.unproven))
    return Question(
        digest=step_digest(rollout),
        entering=state.entering,
        asked_at=state.asked_at,
        unproven=state.unproven,
        asked=tuple(Asked(approval=a, votes=votes_that_count(a, state.votes, rollout.requester, now)) for a in needed),
    )


def override_in_force(rollout: Rollout, now: datetime) -> Override | None:
    """The break-glass that the next step may use."""
    override, settled = rollout.override, rollout.settled
    if override is None or settled is None or now >= override.at + OVERRIDE_LASTS:
        return None
    return override if override.event.entering == entering_of(settled) else None


def votes_that_count(approval: Approval, votes: tuple[Vote, ...], requester: str, now: datetime) -> tuple[Vote, ...]:
    """Votes of distinct people who belong to a named group, have not expired, and (if asked for) did not start the rollout."""
    return tuple(
        v
        for v in votes
        if set(v.groups) & set(approval.groups)
        and now < v.at + approval.expires
        and not (approval.not_requester and v.actor == requester)
    )
