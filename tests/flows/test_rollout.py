from uuid import UUID

import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectHTTPStatusError

from controller.core.rollout import Opened
from tests.flows.conftest import World, spec


def test_a_started_rollout_leaves_its_run_paused_under_the_name_of_the_phase(world: World) -> None:
    run, rollout_id = world.start("chat-a")
    assert run.name == "chat-a: gpt-4.1 → gpt-5"
    assert (run.state_type, run.state_name) == (StateType.PAUSED, "canary-5 5%")
    assert {f"rollout:{rollout_id}", "model:gpt-5"} <= set(run.tags)
    (artifact,) = world.artifacts(rollout_id)
    assert artifact.flow_run_id == run.id
    assert "Advance to canary-5 5%" in str(artifact.data)


def test_the_rollout_is_opened_under_the_id_of_the_run_and_the_name_of_who_asked(world: World) -> None:
    run, rollout_id = world.start()
    first = world.audit.rows[rollout_id][0]
    assert isinstance(first.event, Opened)
    assert UUID(first.event.key) == run.id
    assert first.actor == "alice"


def test_resuming_the_run_finds_the_rollout_that_it_opened_and_pauses_again(world: World) -> None:
    run, rollout_id = world.start()
    rows = len(world.audit.rows[rollout_id])
    world.client.resume_flow_run(run.id)
    assert world.again(run).state_type is StateType.SCHEDULED
    resumed = world.rerun(run.id)
    assert (resumed.state_type, resumed.state_name) == (StateType.PAUSED, "canary-5 5%")
    assert list(world.ports.index.active()) == [rollout_id]
    assert len(world.audit.rows[rollout_id]) == rows
    assert len(world.artifacts(rollout_id)) == 1


def test_a_start_that_is_refused_ends_failed_and_says_who_holds_the_flag(world: World) -> None:
    _, rollout_id = world.start("holder")
    refused = world.run("rollout", spec=spec("second") | {"flag": "flag-holder"})
    assert (refused.state_type, refused.state_name) == (StateType.FAILED, "Refused")
    assert refused.state is not None and refused.state.message is not None
    assert "flag-holder" in refused.state.message
    assert list(world.ports.index.active()) == [rollout_id]


def test_a_form_that_does_not_fit_is_refused_by_the_server_before_anything_runs(world: World) -> None:
    wrong = spec()
    wrong["phases"][0]["traffic"] = "lots"
    with pytest.raises(PrefectHTTPStatusError, match="traffic"):
        world.run("rollout", spec=wrong)


def test_a_plan_that_contradicts_itself_ends_failed_and_opens_nothing(world: World) -> None:
    downwards = spec()
    downwards["phases"].reverse()
    run = world.run("rollout", spec=downwards)
    assert run.state_type is StateType.FAILED
    assert not world.audit.rows


def test_rollback_brings_the_candidate_to_nothing_and_ends_the_record(world: World) -> None:
    run, rollout_id = world.start("bring-back")
    done = world.run("rollback", rollout=rollout_id, reason="users complain", requested_by="carol")
    assert (done.name, done.state_name) == (f"roll back {rollout_id}", "Rolled back")
    flag = world.ports.flags.read("production", "flag-bring-back")
    assert flag is not None and flag.weight == 0
    record = world.again(run)
    assert (record.state_type, record.state_name) == (StateType.COMPLETED, "Rolled back")
    assert "users complain" in str(world.artifacts(rollout_id)[-1].data)


def test_rollback_of_an_unknown_rollout_fails_and_names_it(world: World) -> None:
    failed = world.run("rollback", rollout="nothing-00000000", reason="because")
    assert failed.state_type is StateType.FAILED
    assert failed.state is not None and "nothing-00000000" in (failed.state.message or "")


def test_approve_counts_for_the_group_and_refuses_the_requester(world: World) -> None:
    run, rollout_id = world.start(approval=True)
    world.later(hours=1).run("gate-check")
    assert world.again(run).state_name == "canary-5 5%, approve full?"
    own = world.later(minutes=1).run("approve", rollout=rollout_id, approver="alice", group="release-managers")
    assert own.state_type is StateType.FAILED
    assert own.state is not None and "alice started" in (own.state.message or "")
    yes = world.run("approve", rollout=rollout_id, approver="dave", group="release-managers")
    assert (yes.name, yes.state_name) == (f"dave approves {rollout_id}", "Approved")
    world.later(seconds=1).run("gate-check")
    assert world.again(run).state_name == "full 100%"


def test_decisions_are_among_the_logs_of_the_record(world: World) -> None:
    run, _ = world.start()
    from prefect.logging.handlers import APILogWorker

    APILogWorker.instance().drain()
    logs = world.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    assert any(line.message == "Advance to canary-5 5%: start with canary-5 at 5%" for line in logs)
