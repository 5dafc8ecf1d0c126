"""rollout.yaml: what is accepted, and how each mistake is told."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from controller.codec import event_from_json, event_to_json, plan_digest
from controller.core.plan import (
    AtLeast,
    AtMost,
    DeadManAction,
    GateMode,
    MeanIncrease,
    OnBreach,
    OnDrift,
    OnUnproven,
    Plan,
    Policy,
    QuantileIncrease,
    QuantileLimit,
    RateLimit,
    SampleRatio,
    Silence,
)
from controller.core.rollout import Opened
from controller.spec import RolloutSpec
from specfile import SpecError, parse_text

GOOD = """\
apiVersion: penstock/v1
kind: Rollout
metadata: {name: chat, owner: team}
flag: chat-model
baseline: {model: gpt-4.1}
candidate: {model: gpt-5, params: {reasoning_effort: low}}
slos:
  - {name: p95, indicator: latency, where: {streaming: "false"}, quantile: 0.95, max: 3.0s}
  - {name: errors, indicator: error_ratio, max: 1%}
  - {name: up, indicator: availability, min: 99.9%}
comparisons:
  - {name: p95-rel, indicator: latency, quantile: 0.95, max_increase: 15%}
  - {name: cost, indicator: cost_per_request, max_increase: 10%}
events:
  - {name: tried, indicator: fallbacks, at_least: 1, by_phase: canary}
  - {name: sev1, indicator: firing_alerts, where: {severity: sev1}, at_most: 0}
gates: {every: 15m, guard_every: 15s, min_requests: 100}
phases:
  - {name: shadow, mode: shadow, traffic: 10%, bake: 1h}
  - {name: canary, traffic: 0.5%, bake: 1h}
  - {name: full, traffic: 100%, bake: 1h, approval: {from: [managers], count: 2}}
"""


def plan_of(text: str) -> Plan:
    return parse_text(RolloutSpec, text, "rollout.yaml").to_plan()


def test_every_part_reaches_the_plan() -> None:
    plan = plan_of(GOOD)
    assert [type(g) for g in plan.gates] == [
        QuantileLimit,
        RateLimit,
        RateLimit,
        QuantileIncrease,
        MeanIncrease,
        AtLeast,
        AtMost,
        Silence,
        SampleRatio,
    ]
    assert [(p.weight, p.live_weight, p.shadow_weight) for p in plan.phases] == [
        (10_000, 0, 10_000),
        (500, 500, 0),
        (100_000, 100_000, 0),
    ]
    up = plan.gates[2]
    assert isinstance(up, RateLimit) and up.limit == 0.001
    assert plan.candidate.params == {"reasoning_effort": "low"}


def test_a_plan_survives_the_audit_log_unchanged() -> None:
    plan = plan_of(GOOD)
    opened = Opened(plan=plan, plan_digest=plan_digest(plan), key="k")
    assert event_from_json(event_to_json(opened)) == opened


def test_a_form_that_prefect_sends_as_json_gives_the_same_plan() -> None:
    spec = parse_text(RolloutSpec, GOOD, "rollout.yaml")
    again = RolloutSpec.model_validate_json(spec.model_dump_json(by_alias=True))
    assert plan_digest(again.to_plan()) == plan_digest(spec.to_plan())


def test_comparisons_end_where_no_baseline_is_left_and_silence_does_not() -> None:
    names = [g.name for g in plan_of(GOOD).gates_of(2)]
    assert names == ["p95", "errors", "up", "tried", "sev1", "candidate-reports"]


@pytest.mark.parametrize(
    ("old", "new", "points_at", "says"),
    [
        ("max: 3.0s", "max: 3.05s", "3.05s", "not a bucket edge"),
        ("max: 3.0s", "max: 3%", "3%}", "not a duration"),
        ("max: 1%", "max: 101%", "101%", "over 100%"),
        ("max: 1%", "max: 0%", "0%}", "allows no failure at all"),
        ("min: 99.9%", "min: 100%", "100%}", "allows no failure at all"),
        ("max_increase: 15%", "max_increase: 0%", "0%}", "not even a little worse"),
        ("max: 1%", "max: 100%", "100%}", "could never say no"),
        ("max: 1%", "min: 1%", "1%}", "has a max, not a min"),
        ("min: 99.9%", "min: 0%", "0%}", "could never say no"),
        ("quantile: 0.95, max: 3.0s", "max: 3.0s", "{name: p95, ind", "needs a quantile"),
        ("quantile: 0.95, max: 3.0s", "quantil: 0.95, max: 3.0s", "quantil:", "did you mean 'quantile'"),
        ("by_phase: canary", "by_phase: cannary", "- {name: tried", "not a phase of this plan"),
        ("traffic: 0.5%", "traffic: 0%", "0%, bake: 1h}", "above 0"),
        ("traffic: 0.5%", "traffic: 120%", "120%", "over 100%"),
        ("traffic: 0.5%", "traffic: 5", "5, bake", "not a percentage"),
        ("traffic: 0.5%", "traffic: 100%", "100%, bake: 1h, app", "does not rise"),
        ("traffic: 100%", "traffic: 50%", "50%", "ends at 100%"),
        ("mode: shadow", "mode: shady", "shady", "'shadow' or 'live'"),
        ("count: 2", "count: 0", "0}}", "at least 1"),
        ("model: gpt-5, params: {reasoning_effort: low}", "model: gpt-4.1", "{model: gpt-4.1}\nslos", "same as the baseline"),
        ("flag: chat-model", 'flag: "Chat Model!"', '"Chat Model!"', "match"),
        ("name: errors", "name: p95", "- {name: p95, indicator: latency, where", "used twice"),
        ("guard_every: 15s", "guard_every: 1h", "1h, min", "longer than gates.every"),
        ("max_increase: 15%", "max_increase: -15%", "-15%", "negative"),
        ("kind: Rollout", "kind: Rolout", "Rolout", "Rollout"),
        ("bake: 1h}\n  - {name: canary", "bake: 3000000d}\n  - {name: canary", "3000000d", "longer than a rollout can last"),
        ("every: 15m", "every: 400d", "400d", "longer than a rollout can last"),
        ("kind: Rollout", "kind: Rollout\nnotify: {slack: {digest: 9 o'clock}}", "9 o'clock", "not a time of day"),
        ("kind: Rollout", "kind: Rollout\nnotify: {slack: {digest: 09:00 Mars/Olympus}}", "09:00 Mars", "not a time zone"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_column(old: str, new: str, points_at: str, says: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert old in GOOD and points_at in text
    before = text[: text.rindex(points_at)] if points_at == "0%, bake: 1h}" else text[: text.index(points_at)]
    place = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    with pytest.raises(SpecError) as caught:
        plan_of(text)
    assert any(line.startswith(f"rollout.yaml:{place}: ") and says in line for line in str(caught.value).splitlines()), str(
        caught.value
    )


def test_a_plan_without_any_gate_on_the_candidate_is_refused() -> None:
    text = GOOD.replace(GOOD[GOOD.index("slos:") : GOOD.index("comparisons:")], "")
    with pytest.raises(SpecError, match="comparisons need a baseline, and at 100% none runs"):
        plan_of(text)


def test_two_mistakes_are_told_at_once() -> None:
    text = GOOD.replace("max: 3.0s", "max: fast").replace("bake: 1h", "bake: soon", 1)
    with pytest.raises(SpecError) as caught:
        plan_of(text)
    assert len(str(caught.value).splitlines()) == 2


def test_the_yaml_of_the_documentation_is_accepted() -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "rollout.yaml"
    spec = parse_text(RolloutSpec, example.read_text(), example.name)
    assert len(spec.to_plan().phases) == 6


# --- what is done when something is missing --------------------------------------------------------------------------------------------


def with_gates(gates: str) -> Policy:
    return plan_of(re.sub(r"^gates:.*$", f"gates: {{{gates}}}", GOOD, flags=re.MULTILINE)).policy


def test_the_defaults_are_the_safe_ones() -> None:
    plan = plan_of(re.sub(r"^gates:.*\n", "", GOOD, flags=re.MULTILINE))
    policy = plan.policy
    assert (policy.tell_after, policy.escalate_after) == (1, 2)
    assert (policy.on_breach, policy.on_drift, policy.on_unproven) == (OnBreach.ROLLBACK, OnDrift.PAUSE, OnUnproven.HOLD)
    # Four checks that are missed: an alarm, and no routers that go back by themselves.
    assert (policy.dead_man_after, policy.dead_man_action) == (timedelta(hours=1), DeadManAction.HOLD)
    assert policy.lease is None
    silence = [g for g in plan.gates if isinstance(g, Silence)]
    assert [(g.mode, g.on_breach) for g in silence] == [(GateMode.ENFORCE, None)]  # None: as the plan says, a rollback


@pytest.mark.parametrize(
    ("gates", "after", "action", "lease"),
    [
        ("every: 15m, dead_man: {after: 1h, action: hold}", timedelta(hours=1), "hold", None),
        ("every: 15m, dead_man: {after: 30m, action: rollback}", timedelta(minutes=30), "rollback", None),
        ("every: 10m, dead_man: {missed: 3}", timedelta(minutes=30), "hold", None),
        ("every: 10m, dead_man: {lease: 5m}", timedelta(minutes=40), "hold", timedelta(minutes=5)),
        ("every: 10s, guard_every: 2s", timedelta(minutes=5), "hold", None),  # never sooner, where the plan does not say
        ("every: 15m, dead_man: null", None, "hold", None),
    ],
)
def test_a_dead_man_waits_as_the_plan_says(gates: str, after: timedelta | None, action: str, lease: timedelta | None) -> None:
    policy = with_gates(gates)
    assert (policy.dead_man_after, policy.dead_man_action.value, policy.lease) == (after, action, lease)


def test_a_dead_man_is_acted_on_and_not_only_kept() -> None:
    assert "gates.dead_man" not in plan_of(re.sub(r"^gates:.*$", "gates: {dead_man: {missed: 3}}", GOOD, flags=re.MULTILINE)).kept


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ("every: 15m, dead_man: {after: 15m}", "longer than gates.every"),
        ("dead_man: {after: 1h, missed: 3}", "either for a time"),
        ("dead_man: {missed: 1}", "greater than or equal to 2"),
        ("guard_every: 15s, dead_man: {lease: 30s}", "shorter than 4 looks of the guard"),
        ("tell_after: 0", "greater than or equal to 1"),
        ("tell_after: 3, escalate_after: 2", "comes before gates.tell_after"),
    ],
)
def test_a_dead_man_that_cannot_work_is_refused(gates: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        with_gates(gates)


def test_who_is_told_later_is_not_woken_earlier() -> None:
    assert with_gates("tell_after: 5").escalate_after == 5
