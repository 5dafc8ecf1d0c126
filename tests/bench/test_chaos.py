"""The fault matrix itself: that its faults happen, and that each of its invariants can fail."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from bench.chaos import faults_clock, faults_prefect, faults_prometheus, faults_slack
from bench.chaos.cli import main, one_trial
from bench.chaos.fault import Fault, Skipped, Trial, Violation, known_faults
from bench.chaos.faults_crash import story
from bench.chaos.invariants import INVARIANTS, one_check_a_slot
from bench.chaos.process import Died
from bench.chaos.report import BEGINS, ENDS, Row, publish
from bench.chaos.stage import Stage
from bench.chaos.world import World
from controller import crash
from controller.crash import Point

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

IMPATIENT_S = 2.0
"""Controllers that are wrong on purpose may never settle: nobody waits for them as long as for ones that are right."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as made:
        yield made


def a_fault(recover_s_max: float = 15.0) -> Fault:
    return Fault(name="self-test", group="crash", quick=1, full=1, run=lambda world, rng: Trial(), recover_s_max=recover_s_max)


@pytest.fixture
def world(stage: Stage, tmp_path: Path) -> Iterator[World]:
    with World(stage, a_fault(2.0), folder=tmp_path) as made:
        yield made


def broken_by(trial: Trial) -> set[str]:
    return {v.invariant for v in trial.violations}


# --- the faults -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [Point.RAISED, Point.SLACK_SENT])
def test_a_controller_that_dies_at_a_point_is_gone_on_with(stage: Stage, point: Point) -> None:
    trial = one_trial(stage, known_faults()[f"kill -9 at {point}"], seed=7, number=1)
    assert trial.violations == ()
    assert trial.recover_s is not None and point in trial.passed


def test_every_crash_point_is_on_the_way_of_a_story_or_of_its_recovery(stage: Stage, tmp_path: Path) -> None:
    passed: set[str] = set()
    with World(stage, a_fault(), folder=tmp_path) as world:
        crash_at_recorded(world)
        world.slack_fails_once()
        worker = world.controller("count")
        story(world, worker)
        world.lapse()
        world.deliver(worker)
        passed = set(worker.call("passed"))
        assert world.finish(None).violations == ()
    assert set(Point) - passed == set()
    assert {f"kill -9 at {p}" for p in Point} - set(known_faults()) == set()


def crash_at_recorded(world: World) -> None:
    worker = world.controller(f"{Point.RECORDED}:1")
    with pytest.raises(Died):
        story(world, worker)
    world.restarted()


def test_a_story_without_a_fault_breaks_nothing(world: World) -> None:
    worker = world.controller()
    story(world, worker)
    assert world.finish(world.recover(worker)).violations == ()


# --- every invariant can fail ---------------------------------------------------------------------------------------------------


def sabotaged(world: World, how: str, crash_point: str = "") -> Trial:
    """A story, cut at a point if one is named, and gone on with by a controller that is wrong."""
    prelude = f"bench.chaos.sabotage:{how}"
    worker = world.controller(crash_point, prelude="" if crash_point else prelude)
    try:
        story(world, worker)
        recover_s = world.recover(worker)
    except Died:
        world.rollouts = world.opened()
        world.restarted()
        recover_s = world.recover(world.controller(prelude=prelude))
    return world.finish(recover_s)


@pytest.mark.parametrize(
    ("how", "crash_point", "invariant"),
    [
        ("flag_before_row", "", "authorised"),
        ("phase_twice", "", "one_decision"),
        ("write_twice", "", "one_flag_write"),
        ("resume_raises", "recorded:1", "fresh_evidence"),
        ("forget_notices", "", "notice_at_least_once"),
        ("never_look_before_posting", "slack_sent:1", "no_visible_duplicate"),
        ("never_confirm", "", "log_agrees_with_flag"),
        ("say_something_else", "", "replay_agrees"),
        ("never_lower", "", "lowered"),
        ("never_lower", "", "recovers"),
    ],
)
def test_a_controller_that_is_wrong_breaks_its_invariant(world: World, how: str, crash_point: str, invariant: str) -> None:
    assert invariant in broken_by(sabotaged(world, how, crash_point))


def test_gate_checks_that_do_not_ask_for_their_slot_are_found(world: World) -> None:
    worker = world.controller(prelude="bench.chaos.sabotage:always_due")
    rollout_id = world.start(worker, world.plan(every=timedelta(hours=1)))
    for _ in range(3):
        world.look(worker, rollout_id, may_raise=True, force=False)
    assert "one_check_a_slot" in broken_by(world.finish(None, one_check_a_slot))


@pytest.mark.parametrize(
    ("fault", "how", "invariant"),
    [
        ("Prometheus: partial, with warnings", "believe_warnings", "no_data_is_no_pass"),
        ("Prometheus: partial, with warnings", "believe_warnings", "holds"),
        ("Prometheus: 503", "let_errors_out", "never_raises"),
        ("Prometheus: 503", "tell_nobody", "tells"),
        ("Prometheus: 503", "never_ask_again", "goes_on"),
        ("a stranger raises it", "ignore_drift", "stops_raising"),
        ("flag store: somebody writes between decision and raise", "overwrite", "conflict"),
        ("Slack: channel_not_found", "log_nothing", "told_elsewhere"),
        ("clock: ten minutes fast", "own_clock", "database_clock"),
    ],
)
def test_a_controller_that_is_wrong_breaks_what_its_fault_is_about(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, how: str, invariant: str
) -> None:
    monkeypatch.setattr(faults_slack, "DRAINED_S", IMPATIENT_S)
    found = known_faults()[fault]
    with World(stage, replace(found, recover_s_max=IMPATIENT_S), folder=tmp_path) as world:
        world.prelude = f"bench.chaos.sabotage:{how}"
        assert invariant in broken_by(found.run(world, Random(GOOD)))


def test_a_look_that_asks_again_and_again_is_found(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults_prometheus, "LOOK_S_MAX", 1.0)
    found = known_faults()["Prometheus: 503"]
    with World(stage, found, folder=tmp_path) as world:
        world.prelude = "bench.chaos.sabotage:ask_until_answered"
        assert "bounded" in broken_by(found.run(world, Random(GOOD)))


def test_a_controller_whose_clock_makes_a_difference_is_found(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults_clock, "TRIES", 4)
    found = replace(known_faults()["clock: ten minutes fast"], recover_s_max=IMPATIENT_S)
    with World(stage, found, folder=tmp_path) as world:
        world.prelude = "bench.chaos.sabotage:distrust_clocks"
        assert "same_rows" in broken_by(found.run(world, Random(GOOD)))


def test_a_resume_that_leaves_the_flag_as_it_is_is_found(stage: Stage, tmp_path: Path) -> None:
    found = known_faults()["a stranger raises it"]
    with World(stage, found, folder=tmp_path) as world:
        world.prelude = "bench.chaos.sabotage:resume_in_words"
        assert "sets_it_right" in broken_by(found.run(world, Random(RESUMED)))


def test_letters_that_nobody_reads_must_not_keep_the_gates_waiting(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults_slack, "GATES_S", 2.0)
    monkeypatch.setattr(faults_slack, "DRAINED_S", IMPATIENT_S)
    found = known_faults()["Slack: channel_not_found"]
    with World(stage, found, folder=tmp_path) as world:
        world.prelude = "bench.chaos.sabotage:tell_before_acting"
        assert "gates_unaffected" in broken_by(found.run(world, Random(GOOD)))


def test_a_guard_that_needs_prefect_is_found(world: World) -> None:
    worker = world.controller(prelude="bench.chaos.sabotage:ask_prefect_first")
    rollout_id = world.start(worker)
    world.look(world.controller(), rollout_id, may_raise=True)
    assert {v.invariant for v in faults_prefect.unaffected(world, worker, rollout_id, looks=1)} == {"guard_unaffected"}


GOOD = 5
"""A seed with which the candidate stays good through the fault."""

RESUMED = 4
"""A seed with which a person resumes."""

OWNERS_EDITS: dict[str, Callable[[World], None]] = {
    "chain_intact": lambda w: w.owner_edits("audit", "UPDATE penstock.audit SET actor = 'somebody else' WHERE seq = 2"),
    "in_order": lambda w: w.owner_edits("flag_history", "DELETE FROM penstock.flag_history WHERE version = 2"),
}


@pytest.mark.parametrize("invariant", OWNERS_EDITS)
def test_what_the_owner_of_the_database_edits_is_found(world: World, invariant: str) -> None:
    worker = world.controller()
    story(world, worker)
    recover_s = world.recover(worker)
    OWNERS_EDITS[invariant](world)
    assert invariant in broken_by(world.finish(recover_s))


def test_no_invariant_is_without_a_test_that_breaks_it() -> None:
    (marks,) = (m for m in test_a_controller_that_is_wrong_breaks_its_invariant.pytestmark if m.name == "parametrize")
    assert {case[2] for case in marks.args[1]} | set(OWNERS_EDITS) == set(INVARIANTS)


# --- the report -----------------------------------------------------------------------------------------------------------------


def test_the_report_counts_trials_that_broke_an_invariant_and_says_what_was_skipped() -> None:
    fault = a_fault()
    trials = [Trial(recover_s=1.0), Trial(recover_s=3.0), Trial(skipped="no root")]
    row = Row(fault=fault, trials=trials).to_json()
    assert row == {
        "fault": "self-test",
        "group": "crash",
        "trials": 2,
        "violations": {},
        "recover_s": {"median": 2.0, "max": 3.0},
        "skipped": "no root",
    }


def test_figures_take_the_place_of_the_old_ones_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGINS}\nold\n{ENDS}\nafter\n")
    bad = Trial(violations=(Violation(invariant="recovers", text="-"),))
    for _ in range(2):
        publish(page, [Row(fault=a_fault(), trials=[Trial(recover_s=1.0), bad])], seed=3, took_s=60)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGINS}\n") and text.endswith(f"{ENDS}\nafter\n") and "old" not in text
    assert "seed 3: 1 faults, 2 trials, 1 with a violation" in text
    assert text.count("| self-test | 2 | recovers 1 | 1.0 s, 1.0 s |") == 1
    page.write_text("no place")
    with pytest.raises(ValueError, match="no place for the figures"):
        publish(page, [], seed=3, took_s=60)


def test_a_fault_that_cannot_be_had_is_skipped_and_a_bug_in_one_is_a_violation(stage: Stage) -> None:
    def skips(world: World, rng: object) -> Trial:
        raise Skipped("not here")

    def breaks(world: World, rng: object) -> Trial:
        raise ZeroDivisionError

    made = {f.__name__: Fault(name=f.__name__, group="crash", quick=1, full=1, run=f) for f in (skips, breaks)}
    assert one_trial(stage, made["skips"], 1, 1).skipped == "not here"
    assert broken_by(one_trial(stage, made["breaks"], 1, 1)) == {"the trial itself"}


def test_unknown_faults_are_refused_and_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no fault or group 'x'"):
        main(["--only", "x"])
    assert main(["--list", "--only", "crash"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(Point) + 2  # and people, and any line


def test_a_run_prints_one_json_line_a_fault_and_fails_on_a_violation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--only", "kill -9 at log_read", "--trials", "1", "-o", "json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["violations"] == {}


# --- crash points ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nowhere", "raised:0", "raised:x", "raised:1:gently"])
def test_an_unknown_crash_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="point"):
        crash.arm(text)
    assert crash.passed() == {}


def test_points_are_counted_and_do_nothing_else_unless_armed() -> None:
    crash.reached(Point.RAISED)
    assert crash.passed() == {}
    crash.arm("count")
    try:
        crash.reached(Point.RAISED)
        assert crash.passed() == {Point.RAISED: 1}
    finally:
        crash.arm("")
