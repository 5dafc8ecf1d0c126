"""
What can be decided, and what each decision does to the flag.

Its one rule: a decision says everything about itself (kind, reason, phase it leads to), so that the audit row needs no context.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from controller.core.plan import Plan
from flagspec import WEIGHT_MAX


class Why(StrEnum):
    """The reason of a decision, one word that programs can count by; the sentence for people stands beside it."""

    STARTED = "started"
    GATES_PASSED = "gates_passed"
    ACCEPTED = "accepted"
    BREACH = "breach"
    KILLED = "killed"
    DRIFT = "drift"
    UNRECORDED_LOWERING = "unrecorded_lowering"
    LEASE_LAPSED = "lease_lapsed"
    DEAD_MAN = "dead_man"
    METRICS_FAILED = "metrics_failed"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"
    BAKING = "baking"
    FROZEN = "frozen"
    AWAITING_APPROVAL = "awaiting_approval"
    PAUSED = "paused"
    GUARD_ONLY = "guard_only"
    SETTLING = "settling"
    BY_PERSON = "by_person"
    REJECTED = "rejected"
    OVERRIDDEN = "overridden"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Raise the flag to the weight of phase `phase` (index)."""

    phase: int
    why: Why
    text: str
    kind: Literal["advance"] = "advance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """The last phase has baked: the candidate is the new standard."""

    why: Why
    text: str
    kind: Literal["promote"] = "promote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Stay at this weight. `next_look` is when something can change by itself, None if only a person can change it."""

    why: Why
    text: str
    next_look: datetime | None = None
    kind: Literal["hold"] = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Stay at this weight until a person resumes; lowering goes on being watched for."""

    why: Why
    text: str
    kind: Literal["pause"] = "pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A person lets a paused rollout go on: its weight is set again and its phase bakes anew."""

    why: Why
    text: str
    kind: Literal["resume"] = "resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack:
    """The controller ends the rollout at weight 0."""

    why: Why
    text: str
    kind: Literal["roll_back"] = "roll_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """A person ends the rollout at weight 0."""

    why: Why
    text: str
    kind: Literal["abort"] = "abort"


Decision = Advance | Promote | Hold | Pause | Resume | RollBack | Abort


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The two weights of a flag, 0..100000 thousandths of a percent."""

    live: int = 0
    shadow: int = 0


NOTHING = Weights()


def weights_of(plan: Plan, phase: int) -> Weights:
    return Weights(live=plan.phases[phase].live_weight, shadow=plan.phases[phase].shadow_weight)


def target(plan: Plan, decision: Decision, settled_phase: int | None) -> Weights | None:
    """
    The weights that a decision asks for; None when it leaves the flag alone.

    Args:
        plan: The rollout's plan.
        decision: What was decided.
        settled_phase: Index of the phase that the rollout is in; None before the first.
    """
    match decision:
        case Advance(phase=phase):
            return weights_of(plan, phase)
        case Promote():
            return Weights(live=WEIGHT_MAX)
        case Resume():
            return NOTHING if settled_phase is None else weights_of(plan, settled_phase)
        case RollBack() | Abort():
            return NOTHING
        case Hold() | Pause():
            return None


def lowers(decision: Decision) -> bool:
    """Whether the decision may be finished without asking again: lowering is always finished, raising is never resumed."""
    return isinstance(decision, RollBack | Abort)
