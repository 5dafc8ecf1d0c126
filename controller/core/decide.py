"""
Why traffic moves: the one function that turns verdicts into a decision.

It stands between the gates (what the numbers are worth) and the commit (what is written and done). The checks come in a fixed order,
from the most urgent to the least, and the order is the policy:

 1. killed           a person has killed the flag                        -> roll back
 2. unrecorded       we lowered the flag while the log was down          -> roll back (record it)
 3. lease            nobody looked, and routers went to the baseline     -> pause, or roll back if the plan says so
 4. breach           an enforced gate is breached                        -> roll back, or pause if the plan says so
 5. drift            the flag carries what nobody decided                -> pause, or roll back if the plan says so
 6. dead man         the guard finds that gate checks do not come        -> alarm, or roll back if the plan says so
 7. paused           a person or we paused                               -> hold
 8. guard            whoever looks may only lower                        -> hold
 9. failed metrics   a query failed or cannot be trusted                 -> hold
10. evidence         an enforced gate has not earned its pass, and no
                     time box lets the step be accepted without it       -> hold (called baking while it bakes and data come in)
11. bake             the phase has not lasted long enough                -> hold
12. freeze           the calendar says no                                -> hold
13. approval         people have not said yes to the next phase          -> hold
14. nothing left                                                         -> advance, or promote after the last phase

Break-glass (`Overridden`) lets one step pass bake, freeze or approval without what they ask for, and none of the others.
Its one rule: traffic is raised in the last line and nowhere else, so each check above it is provably passed.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import assert_never

from controller.core.converge import Convergence, Drift, Killed, Lapsed, UnrecordedLowering
from controller.core.decision import NOTHING, Advance, Decision, Hold, Pause, Promote, RollBack, Why
from controller.core.freeze import frozen_until
from controller.core.gates import GateResult, Verdict, breaches, span, unproven
from controller.core.plan import Approval, AtLeast, DeadManAction, GateMode, OnBreach, OnDrift, OnUnproven, Plan
from controller.core.question import override_in_force, votes_that_count
from controller.core.rollout import AwaitingApproval, Baking, Check, Override, Paused, Pending, Rollout, Settled


def decide(
    rollout: Rollout, convergence: Convergence, results: tuple[GateResult, ...], now: datetime, *, may_raise: bool
) -> Decision:
    """
    Args:
        rollout: Neither ended nor moving.
        convergence: How flag and log stand to each other.
        results: The verdicts of the gates of the current phase, fresh.
        now: The database's clock.
        may_raise: True for the gate check, False for the guard.

    Returns:
        The decision with its reason.
    """
    plan, policy = rollout.plan, rollout.plan.policy
    match convergence:
        case Killed():
            return RollBack(why=Why.KILLED, text="a person killed the flag")
        case UnrecordedLowering(decision_id=lowered_by):
            return RollBack(
                why=Why.UNRECORDED_LOWERING, text=f"{lowered_by} lowered the flag while the audit log could not be written"
            )
        case Lapsed(ended=ended):
            text = f"nobody renewed the flag's lease: at {ended:%Y-%m-%d %H:%M:%S} UTC it ended, and routers went back to the baseline"
            if policy.dead_man_action is DeadManAction.ROLLBACK:
                return RollBack(why=Why.LEASE_LAPSED, text=text)
            if not _paused_for(rollout, Why.LEASE_LAPSED):
                return Pause(why=Why.LEASE_LAPSED, text=text)
        case _:
            pass
    if isinstance(rollout.state, Paused) and rollout.state.why is Why.LEASE_LAPSED and not isinstance(convergence, Drift):
        # No user reaches the candidate: nothing that it does or does not report can be held against it.
        return Hold(why=Why.PAUSED, text=f"paused: {rollout.state.text}")

    if breached := breaches(results):
        text = "; ".join(f"{r.gate}: {r.reason}" for r in breached)
        if any(r.on_breach is OnBreach.ROLLBACK for r in breached):
            return RollBack(why=Why.BREACH, text=text)
        # Somebody's own pause does not answer a breach: it is told, and a resume is then an answer to it.
        if not _paused_for(rollout, Why.BREACH):
            return Pause(why=Why.BREACH, text=text)

    if isinstance(convergence, Drift):
        if policy.on_drift is OnDrift.ROLLBACK:
            return RollBack(why=Why.DRIFT, text=convergence.text)
        if not _paused_for(rollout, Why.DRIFT):
            return Pause(why=Why.DRIFT, text=convergence.text)

    if not may_raise and policy.dead_man_after is not None and (missed := unchecked(rollout, now)) >= policy.dead_man_after:
        text = (
            f"no gate check for {span(missed.total_seconds())}, the plan asks for one each {span(policy.every.total_seconds())}"
        )
        if policy.dead_man_action is DeadManAction.ROLLBACK and rollout.weights != NOTHING:
            return RollBack(why=Why.DEAD_MAN, text=text)
        if not rollout.unwatched:
            return Hold(why=Why.DEAD_MAN, text=text)

    settled = rollout.state
    if isinstance(settled, Paused):
        return Hold(why=Why.PAUSED, text=f"paused: {settled.text}")
    assert isinstance(settled, Pending | Baking | AwaitingApproval), settled
    if not may_raise:
        return Hold(why=Why.GUARD_ONLY, text="the guard found no reason to lower")

    if failed := [r for r in results if r.verdict is Verdict.ERROR and r.mode is GateMode.ENFORCE]:
        return Hold(why=Why.METRICS_FAILED, text=_first_of(failed), next_look=now + policy.every)
    if not results and _phase_or_none(settled) is not None:
        return Hold(why=Why.NOT_ENOUGH_EVIDENCE, text="no gate was judged", next_look=now + policy.every)
    missing = unproven(results)
    override = override_in_force(rollout, now)
    waived = set() if override is None else set(override.event.checks)
    used: list[Check] = []
    baked = _baked_at(plan, settled)
    baking = (
        "" if baked is None or now >= baked else f"{plan.phases[_phase(settled)].name} bakes until {baked:%Y-%m-%d %H:%M:%S} UTC"
    )
    if baking and Check.BAKE in waived:
        used, baking = [Check.BAKE], ""
    if missing and not _may_be_accepted(plan, settled, missing, now):
        if baking and all(_under_way(plan, r) for r in missing):
            # Proofs take their time: while the phase bakes that is no news.
            return Hold(why=Why.BAKING, text=f"{baking}; {_first_of(missing)}", next_look=baked)
        return Hold(why=Why.NOT_ENOUGH_EVIDENCE, text=_first_of(missing), next_look=now + policy.every)
    if baking:
        return Hold(why=Why.BAKING, text=baking, next_look=baked)

    entering = 0 if (phase_index := _phase_or_none(settled)) is None else phase_index + 1
    if entering == len(plan.phases):
        text = f"{plan.candidate.model} has passed every gate of the last phase, {plan.phases[-1].name}"
        return Promote(why=Why.OVERRIDDEN if used else Why.GATES_PASSED, text=text + _overridden(override, used))

    if (freeze := frozen_until(plan.freezes, now)) is not None and Check.FREEZE in waived:
        used.append(Check.FREEZE)
    elif freeze is not None:
        name, ends = freeze
        return Hold(why=Why.FROZEN, text=f"freeze {name!r} until {ends:%Y-%m-%d %H:%M} UTC", next_look=ends)

    phase = plan.phases[entering]
    for asked in plan.approvals_of(entering, unproven=bool(missing)):
        if (lacking := _lacking(asked, settled, rollout.requester, now, missing)) and _may_override_approval(
            asked, override, rollout.requester
        ):
            used.append(Check.APPROVAL)
        elif lacking:
            proof = f"; not proven: {_first_of(missing)}" if missing else ""
            return Hold(why=Why.AWAITING_APPROVAL, text=f"entering {phase.name} needs {lacking}{proof}")

    broken = _overridden(override, used)
    if entering == 0:
        text = f"start with {phase.name} at {phase.weight / 1000:g}%{broken}"
        return Advance(phase=0, why=Why.OVERRIDDEN if used else Why.STARTED, text=text)
    left, to = plan.phases[entering - 1].name, f"{phase.name} at {phase.weight / 1000:g}%"
    if missing:
        return Advance(
            phase=entering,
            why=Why.OVERRIDDEN if used else Why.ACCEPTED,
            text=f"accepted, not proven: {_first_of(missing)}; {to}{broken}",
        )
    why = Why.OVERRIDDEN if used else Why.GATES_PASSED
    return Advance(phase=entering, why=why, text=f"all gates of {left} passed; {to}{broken}")


def _may_override_approval(asked: Approval, override: Override | None, requester: str) -> bool:
    """Whether break-glass stands for this approval: never the requester's own where somebody else is asked for."""
    if override is None or Check.APPROVAL not in override.event.checks:
        return False
    return not (asked.not_requester and override.actor == requester)


def _overridden(override: Override | None, used: Sequence[Check]) -> str:
    """``; approval, freeze overridden by kim (INC-7: the provider withdraws the old model)``; "" where nothing was."""
    if override is None or not used:
        return ""
    checks = ", ".join(dict.fromkeys(c.value for c in used))
    return f"; {checks} overridden by {override.actor} ({override.event.ticket}: {override.event.reason})"


def unchecked(rollout: Rollout, now: datetime) -> timedelta:
    """How long ago the last gate check was, or the start where there was none."""
    return now - (rollout.last_gate_check or rollout.opened_at)


def _paused_for(rollout: Rollout, why: Why) -> bool:
    return isinstance(rollout.state, Paused) and rollout.state.why is why


def _may_be_accepted(plan: Plan, settled: Settled, missing: Sequence[GateResult], now: datetime) -> bool:
    """
    Whether the time box has ended and the plan lets the step be taken without a proof: every gate without a pass has an estimate within
    its limit and would be proven at a margin half a step wider. The last phase has no time box: nothing comes after it.
    """
    index = _phase_or_none(settled)
    if plan.policy.on_unproven is OnUnproven.HOLD or index is None or index + 1 == len(plan.phases):
        return False
    box, since = plan.phases[index].max_bake, getattr(settled, "since", now)
    return box is not None and now >= since + box and all(r.acceptable for r in missing)


def _under_way(plan: Plan, result: GateResult) -> bool:
    """Whether a gate without a pass is on its way to one: it counts requests, or waits for an event."""
    waits = any(isinstance(g, AtLeast) and g.name == result.gate for g in plan.gates)
    return result.verdict is Verdict.INSUFFICIENT and (result.n > 0 or waits)


def _first_of(results: Sequence[GateResult]) -> str:
    """One gate in words and how many more: all of them stand in the same row."""
    more = f" (and {len(results) - 1} more)" if len(results) > 1 else ""
    return f"{results[0].gate}: {results[0].reason}{more}"


def _lacking(approval: Approval, settled: Settled, requester: str, now: datetime, missing: Sequence[GateResult]) -> str:
    votes = settled.votes if isinstance(settled, AwaitingApproval) and {r.gate for r in missing} <= set(settled.unproven) else ()
    given = len(votes_that_count(approval, votes, requester, now))
    if given >= approval.count:
        return ""
    return (
        f"{approval.count - given} more approval{'s' if approval.count - given > 1 else ''} from {' or '.join(approval.groups)}"
    )


def _baked_at(plan: Plan, settled: Settled) -> datetime | None:
    match settled:
        case Pending():
            return None
        case Baking(phase=phase, since=since):
            return since + plan.phases[phase].bake
        case AwaitingApproval(phase=phase, since=since):
            return None if phase is None else since + plan.phases[phase].bake
        case _:
            assert_never(settled)


def _phase_or_none(settled: Settled) -> int | None:
    return None if isinstance(settled, Pending) else settled.phase


def _phase(settled: Settled) -> int:
    index = _phase_or_none(settled)
    assert index is not None, "a pending rollout does not bake"
    return index
