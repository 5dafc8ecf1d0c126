"""
Log and flag side by side: did an interrupted change land, and does anything stand in the flag that nobody decided?

Its one rule: lowering is always finished, raising is never resumed. A lost raise is first fenced off (the flag is written once more at
its old weights), so that a controller that went to sleep in the middle of it finds a newer version when it wakes.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from controller.core.decision import NOTHING, Weights, lowers
from controller.core.plan import Plan
from controller.core.rollout import Moving, Rollout, fence_id
from flagspec import WEIGHT_MAX, RouteFlag, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class InStep:
    """The flag is as the log explains."""

    kind: Literal["in_step"] = "in_step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """The change on its way has reached the flag; only the row that says so is missing."""

    kind: Literal["landed"] = "landed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishLowering:
    """A rollback or abort has not reached the flag: write it again."""

    kind: Literal["finish_lowering"] = "finish_lowering"


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUpRaise:
    """A raise has not reached the flag: fence it off (unless `fenced` already), then judge again."""

    fenced: bool
    kind: Literal["give_up_raise"] = "give_up_raise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A person has killed the flag."""

    kind: Literal["killed"] = "killed"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrecordedLowering:
    """A decision of this rollout lowered the flag while the audit log could not be written."""

    decision_id: str
    kind: Literal["unrecorded_lowering"] = "unrecorded_lowering"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The flag carries what no decision explains."""

    expected: Weights
    text: str
    kind: Literal["drift"] = "drift"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lapsed:
    """The flag is as the log explains, but its lease ended at `ended`: routers have gone back to the baseline by themselves."""

    ended: datetime
    kind: Literal["lapsed"] = "lapsed"


Convergence = InStep | Landed | FinishLowering | GiveUpRaise | Killed | UnrecordedLowering | Drift | Lapsed


def seen(flag: RouteFlag | None) -> Weights:
    """The weights that a flag carries; no flag is weight 0."""
    return NOTHING if flag is None else Weights(live=flag.weight, shadow=flag.shadow_weight)


def converge(rollout: Rollout, flag: RouteFlag | None) -> Convergence:
    """
    Args:
        rollout: As its log tells it; not ended.
        flag: As the store has it now; None if there is none.

    Returns:
        What to settle before anything is judged.
    """
    carried = "" if flag is None else flag.decision_id
    if isinstance(rollout.state, Moving):
        return _settle(rollout, rollout.state, carried, flag)
    if flag is not None and flag.killed:
        return Killed()
    if rollout.applied == "" and carried != "" and carried.startswith(f"{rollout.id}."):
        pass  # written by this rollout before any row says so: judged below
    elif rollout.applied == "":
        # Not touched yet: it must still be what a rollout of this plan may begin with.
        unfit = unfit_to_begin(rollout.plan, flag)
        return (
            Drift(expected=rollout.weights, text=f"the flag was changed before the rollout began: it {unfit}")
            if unfit
            else InStep()
        )
    if carried == rollout.applied and seen(flag) == rollout.weights:
        return (
            InStep()
            if flag is None or _is_ours(rollout, flag)
            else _drift(rollout, "sends users to something else than the plan's models")
        )
    if _lowered_unrecorded(rollout, carried, flag):
        return UnrecordedLowering(decision_id=carried)
    by = f"decision {carried!r}" if carried else "nobody we know"
    return _drift(rollout, f"is at {_words(seen(flag))} by {by}, the log says {_words(rollout.weights)} by {rollout.applied!r}")


def unfit_to_begin(plan: Plan, flag: RouteFlag | None) -> str:
    """Why a flag that is not killed cannot be the beginning of a rollout, as ``serves ..., but ...``; "" where it can."""
    if flag is None:
        return ""
    if seen(flag) == NOTHING:
        if flag.control == plan.baseline:
            return ""
        return (
            f"serves {variant_words(flag.control)} to everybody, but the plan's baseline is {variant_words(plan.baseline)}; "
            "make the plan's baseline what the flag serves now: who is moved, is moved by gates"
        )
    if flag.weight == WEIGHT_MAX and flag.candidate == plan.baseline:
        return ""
    serves = variant_words(flag.candidate) + ("" if flag.weight == WEIGHT_MAX else f" at {_words(seen(flag))}")
    return (
        f"serves {serves}, but the plan's baseline is {variant_words(plan.baseline)}; "
        "make the plan's baseline what the flag serves now, or set the flag back first"
    )


def variant_words(variant: Variant) -> str:
    return f"{variant.model} with {dict(variant.params)}" if variant.params else variant.model


def leased(found: Convergence, flag: RouteFlag | None, now: datetime) -> Convergence:
    """
    Args:
        found: As `converge` says.
        flag: As it was read.
        now: The flag store's clock.

    Returns:
        `found`, or Lapsed where all is in step but nobody has renewed the flag's lease in time.
    """
    if not isinstance(found, InStep) or flag is None or flag.lease is None or now < flag.lease or seen(flag) == NOTHING:
        return found
    return Lapsed(ended=flag.lease)


def salt_of(rollout: Rollout) -> str:
    """One salt a rollout: the users who went first last time are not the ones who go first this time."""
    return f"{rollout.plan.flag}/{rollout.id}"


def _is_ours(rollout: Rollout, flag: RouteFlag) -> bool:
    plan = rollout.plan
    return (flag.control, flag.candidate, flag.salt, flag.unit) == (plan.baseline, plan.candidate, salt_of(rollout), plan.unit)


def _drift(rollout: Rollout, what: str) -> Drift:
    return Drift(expected=rollout.weights, text=f"the flag {what}")


def _lowered_unrecorded(rollout: Rollout, carried: str, flag: RouteFlag | None) -> bool:
    """A decision of this rollout brought the flag to 0 while no row could be written."""
    return seen(flag) == NOTHING and carried.startswith(f"{rollout.id}.") and carried.endswith((".roll_back", ".abort"))


def _settle(rollout: Rollout, moving: Moving, carried: str, flag: RouteFlag | None) -> Convergence:
    killed = flag is not None and flag.killed
    if carried == moving.decision_id and seen(flag) == moving.weights and not (killed and not lowers(moving.decision)):
        return Landed()
    if lowers(moving.decision):
        return FinishLowering()
    # A lowering that no row tells of has fenced the raise as well; it is recorded after the raise was given up.
    return GiveUpRaise(fenced=carried == fence_id(moving.decision_id) or _lowered_unrecorded(rollout, carried, flag))


def _words(weights: Weights) -> str:
    text = f"{weights.live / 1000:g}%"
    return f"{text} (shadow {weights.shadow / 1000:g}%)" if weights.shadow else text
