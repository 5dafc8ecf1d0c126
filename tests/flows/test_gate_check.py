from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.states import Cancelling, Running

from controller.adapters.memory import MemoryHeartbeats
from controller.codec import plan_digest
from controller.commands import start
from controller.core.rollout import Entry, Opened
from controller.spec import RolloutSpec
from controller.sweep import look
from flows import record, stuck
from flows.gate_check import gate_check
from tests.flows.conftest import QUERY, World, spec


def _tasks(world: World, run: FlowRun) -> list[TaskRun]:
    return world.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))


def test_ends_nothing_due_where_nothing_is(world: World) -> None:
    run = world.run("gate-check")
    assert (run.state_type, run.state_name) == (StateType.COMPLETED, "Nothing due")
    assert run.name.startswith("gate-check ") and run.name.endswith(" · nothing due")


def test_takes_a_good_candidate_to_the_end_and_its_record_with_it(world: World) -> None:
    run, rollout_id = world.start()
    check = world.later(hours=1).run("gate-check")
    assert check.state_type is StateType.COMPLETED
    assert check.name.endswith(" · 1 rollout")
    assert world.again(run).state_name == "full 100%"
    world.later(hours=1).run("gate-check")
    shown = world.again(run)
    assert (shown.state_type, shown.state_name) == (StateType.COMPLETED, "Promoted")
    latest = world.artifacts(rollout_id)[-1]
    assert latest.flow_run_id == run.id
    assert QUERY in str(latest.data)


def test_names_the_task_by_phase_and_model_and_never_caches_or_retries_it(world: World) -> None:
    world.start()
    first = world.later(minutes=15).run("gate-check")
    second = world.later(minutes=15).run("gate-check")
    for check in (first, second):
        (task,) = _tasks(world, check)
        assert task.name == "gate canary-5 gpt-5"
        assert task.state_name == "Completed"
    assert gate_check.retries == 0


def test_shows_a_hold_once_and_not_at_every_look(world: World) -> None:
    _, rollout_id = world.start()
    world.silence()
    for _ in range(3):
        world.later(minutes=15).run("gate-check")
    assert [a.description for a in world.artifacts(rollout_id)] == [
        "Advance to canary-5 5%: start with canary-5 at 5%",
        "Hold (not enough evidence): error-rate: no data: no series of the candidate and baseline (and 2 more);"
        " held after 15 min in canary-5",
    ]


def test_rolls_a_bad_candidate_back_and_says_why_on_the_record(world: World) -> None:
    run, _ = world.start()
    world.errors(bad=400, total=2000)
    world.later(minutes=15).run("gate-check")
    shown = world.again(run)
    assert (shown.state_type, shown.state_name) == (StateType.COMPLETED, "Rolled back")
    assert shown.state is not None and "20%" in (shown.state.message or "")


def test_cancelling_the_record_aborts_the_rollout_although_nothing_is_due(world: World) -> None:
    run, rollout_id = world.start("call-off")
    world.client.set_flow_run_state(run.id, Cancelling())
    world.later(seconds=1).run("gate-check")
    shown = world.again(run)
    assert (shown.state_type, shown.state_name) == (StateType.CANCELLED, "Aborted")
    flag = world.ports.flags.read("production", "flag-call-off")
    assert flag is not None and flag.weight == 0
    assert list(world.ports.index.active()) == []
    assert "cancelled in Prefect" in str(world.artifacts(rollout_id)[-1].data)


def test_gives_a_rollout_that_was_started_elsewhere_a_record_of_its_own_and_only_one(world: World) -> None:
    plan = RolloutSpec.model_validate(spec()).to_plan()
    opened = start(plan, plan_digest(plan), world.ports, actor="bob", key="from the command line")
    world.run("gate-check")
    world.later(hours=1).run("gate-check")
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"rollout:{opened.id}"]))
    (shown,) = world.client.read_flow_runs(flow_run_filter=tagged)
    assert shown.name == f"{plan.name}: gpt-4.1 → gpt-5"
    assert shown.state_name == "full 100%"


def test_ends_the_record_of_a_rollout_that_the_guard_brought_back(world: World) -> None:
    run, rollout_id = world.start()
    world.errors(bad=400, total=2000)
    look(rollout_id, world.later(minutes=3).ports, may_raise=False)
    world.run("gate-check")
    assert world.again(run).state_name == "Rolled back"
    assert "Roll back" in str(world.artifacts(rollout_id)[-1].data)


def test_a_rollout_that_cannot_be_read_fails_the_run_after_the_others_were_looked_at(world: World) -> None:
    beats = MemoryHeartbeats(clock=lambda: world.now)
    world.controller = replace(world.controller, ports=replace(world.ports, heartbeats=beats))
    good, sound = world.start("sound")
    plan = RolloutSpec.model_validate(spec("broken")).to_plan()
    opened = start(plan, plan_digest(plan), world.ports, actor="bob", key="k")
    gap = Entry(rollout_id=opened.id, seq=9, at=world.now, actor="x", event=Opened(plan=plan, plan_digest="", key="k"))
    world.audit.rows[opened.id].append(gap)
    world.broken.add(opened.id)
    check = world.later(hours=1).run("gate-check")
    assert check.state_type is StateType.FAILED
    assert check.state is not None and (check.state.message or "").startswith(f"{opened.id}: LogError")
    assert world.again(good).state_name == "full 100%"
    # For whoever exports it: this process may be gone by then.
    assert beats.last_beat("gate-check", sound) is not None and beats.last_beat("gate-check", opened.id) is None
    assert beats.last_beat("gate-check-failed", opened.id) is not None and beats.last_beat("gate-check-failed", sound) is None


def test_looks_at_one_rollout_by_name_and_by_force(world: World) -> None:
    run, rollout_id = world.start()
    world.start()
    check = world.later(seconds=1).run("gate-check", rollout=rollout_id, force=True)
    assert check.name.endswith(" · 1 rollout")
    assert check.state is not None and (check.state.message or "").startswith(f"{rollout_id}: hold")
    assert world.again(run).state_name == "canary-5 5%"


def test_a_record_that_is_about_its_own_first_look_is_left_alone_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = world.start()
    world.client.set_flow_run_state(run.id, Running(), force=True)
    world.later(hours=1).run("gate-check")
    assert world.again(run).state_type is StateType.RUNNING
    monkeypatch.setattr(record, "STARTING", timedelta(0))
    world.later(minutes=15).run("gate-check")
    assert world.again(run).state_name == "full 100%"


def test_only_gate_checks_that_run_for_too_long_are_marked_as_crashed(world: World) -> None:
    found = world.client.read_deployment_by_name("gate-check/gate-check")
    dead = world.client.create_flow_run_from_deployment(found.id)
    world.client.set_flow_run_state(dead.id, Running(), force=True)
    asking = UUID(int=0)
    assert stuck.crash_own(world.client, asking) == 0
    assert stuck.crash_own(world.client, asking, datetime.now(UTC) + stuck.LONGEST + timedelta(seconds=5)) == 1
    assert world.client.read_flow_run(dead.id).state_type is StateType.CRASHED


def test_many_rollouts_are_looked_at_by_one_task_and_only_what_moves_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.gate_check.MANY", 1)
    ids = []
    for key in ("one", "two"):
        plan = RolloutSpec.model_validate(spec()).to_plan()
        ids.append(start(plan, plan_digest(plan), world.ports, actor="rita", key=key).id)
    check = world.later(minutes=15).run("gate-check")
    assert check.state_type is StateType.COMPLETED and check.name.endswith(" · 2 rollouts")
    (task,) = _tasks(world, check)
    assert task.name == "2 gates"
    assert all(len(world.artifacts(i)) == 1 for i in ids), "both have advanced"
    world.silence()
    held = world.later(minutes=15).run("gate-check")
    assert "hold" in str(held.state.message if held.state else "")
    assert all(len(world.artifacts(i)) == 1 for i in ids)
