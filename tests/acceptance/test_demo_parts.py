"""What the demo is made of, without running it: its files are files that the product accepts, and its numbers are read right."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from controller.cli.demo.propagation import Propagation, Write
from controller.cli.demo.report import as_expected
from controller.cli.demo.run import DemoError, fresh_home
from controller.cli.demo.scenarios import SCENARIOS, choose, dropped_series, provider_config, rollout_spec, router_config
from controller.cli.demo.traffic import load_trace, sample_trace
from controller.cli.demo.watch import brief
from controller.spec import RolloutSpec, read

AT = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_every_rollout_of_the_demo_passes_lint(scenario, tmp_path: Path):
    file = tmp_path / "rollout.yaml"
    YAML().dump(rollout_spec(scenario), file)

    plan = read(file).to_plan()

    assert plan.flag == f"chat-{scenario.name}"
    assert [(p.name, p.weight) for p in plan.phases] == [
        ("shadow", 40_000), ("canary-5", 5_000), ("quarter", 25_000), ("half", 50_000), ("full", 100_000),
    ]  # fmt: skip


def test_trouble_begins_at_a_weight_that_the_plan_reaches():
    for scenario in SCENARIOS:
        if scenario.trouble is not None:
            plan = RolloutSpec.model_validate(rollout_spec(scenario)).to_plan()
            assert scenario.trouble.weight in {p.live_weight for p in plan.phases}


def test_the_router_accepts_the_demos_router_yaml(tmp_path: Path):
    from router.config import read_config

    file = tmp_path / "router.yaml"
    YAML().dump(
        router_config(SCENARIOS, listen="127.0.0.1:0", flags="http://127.0.0.1:1/flags/v1", provider="http://127.0.0.1:2/v1"),
        file,
    )

    config = read_config(file)

    assert [(r.name, r.flag, r.default) for r in config.routes] == [
        (f"chat-{n}", f"chat-{n}", "gpt-4.1") for n in ("good", "slow", "errors", "silent")
    ]


def test_the_simulator_accepts_its_scenario_and_every_scripted_trouble(tmp_path: Path):
    from bench.behaviour import updated
    from bench.scenario import load_scenario

    file = tmp_path / "provider.yaml"
    YAML().dump(provider_config(SCENARIOS, seed=7), file)

    loaded = load_scenario(file)

    assert loaded.seed == 7
    spoiled = {s.name: updated(loaded.models[s.candidate], s.trouble.change) for s in SCENARIOS if s.trouble is not None}
    assert spoiled["slow"].latency_mult == 1.7
    assert spoiled["errors"].errors.server_error == 0.4


def test_only_the_silent_candidates_series_are_dropped():
    (rule,) = dropped_series(SCENARIOS)

    assert rule == {
        "source_labels": ["flag", "arm"],
        "separator": ";",
        "regex": "chat-silent;(candidate|shadow)",
        "action": "drop",
    }


def test_all_is_every_scenario_and_an_unknown_one_names_the_known():
    assert [s.name for s in choose("all")] == ["good", "slow", "errors", "silent"]
    with pytest.raises(ValueError, match="'better': unknown; known: good, slow, errors, silent, all"):
        choose("better")


def test_a_trace_that_is_too_slow_for_the_demo_is_refused_with_the_speed_that_would_do(tmp_path: Path):
    file = tmp_path / "trace.csv"
    rows = "\n".join(f"2024-01-01 09:00:{second:02d}.0000000,100,10" for second in range(0, 50, 5))
    file.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}\n")

    # Ten arrivals in 45 s are 0.22 a second; 20 a second need 90 times that.
    with pytest.raises(ValueError, match=r"2\.2 requests a second at --speed 10; the demo needs 20 \(--speed 90\)"):
        load_trace(file, 10.0)
    assert len(load_trace(file, None)) == 10


def test_the_sample_trace_is_the_same_for_the_same_seed(tmp_path: Path):
    assert sample_trace(tmp_path / "a.csv", 3) == sample_trace(tmp_path / "b.csv", 3)
    assert sample_trace(tmp_path / "a.csv", 3) != sample_trace(tmp_path / "b.csv", 4)


def test_a_folder_that_no_demo_made_is_never_emptied(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(DemoError, match="is not empty and was not made by a demo"):
        fresh_home(tmp_path)

    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_folder_of_an_earlier_demo_is_emptied(tmp_path: Path):
    home = fresh_home(tmp_path / "demo")
    (home / "logs").mkdir()
    (home / "report.jsonl").write_text("{}")

    fresh_home(home)

    assert {p.name for p in home.iterdir()} == {"demo-home", "lock"}


def test_the_folder_of_a_running_demo_is_left_alone(tmp_path: Path):
    import fcntl

    home = fresh_home(tmp_path / "demo")
    (home / "report.jsonl").write_text("{}")
    with (home / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        with pytest.raises(DemoError, match="another penstock runs on"):
            fresh_home(home)

    assert (home / "report.jsonl").exists()


def _write(revision: int, key: str = "chat-slow", decision: str = "chat-slow-1.2.roll_back") -> Write:
    return Write(revision=revision, at=AT, key=key, decision_id=decision)


def test_propagation_counts_from_the_write_to_the_routers_first_word_of_it():
    applied = (
        ("chat-slow", 3, AT - timedelta(seconds=9)),
        ("chat-slow", 4, AT + timedelta(seconds=0.25)),
        ("chat-slow", 5, AT + timedelta(seconds=2)),
    )
    measured = Propagation(writes={}, applied=applied, in_force=5)

    assert measured.seconds(_write(4)) == 0.25


def test_a_write_that_the_router_never_had_in_force_has_no_propagation_time():
    applied = (("chat-good", 4, AT), ("chat-slow", 3, AT))

    assert Propagation(writes={}, applied=applied, in_force=4).seconds(_write(4)) is None
    assert Propagation(writes={}, applied=(("chat-slow", 4, AT),), in_force=3).seconds(_write(4)) is None
    assert Propagation(writes={}, applied=(("chat-slow", 4, AT),), in_force=None).seconds(_write(4)) is None


def test_the_last_write_of_a_rollout_is_not_that_of_another_with_a_longer_name():
    mine, other = _write(4), _write(9, decision="chat-slow-12.2.roll_back")

    assert Propagation(writes={w.decision_id: w for w in (mine, other)}, applied=(), in_force=9).last_of("chat-slow-1") == mine


def test_a_long_reason_is_told_by_its_first_clause():
    text = (
        "latency-p95: 0% slower than 2 s, limit 5%; 15 of 40 requests; error-rate: 0% bad requests, limit 1%; 16 of 40 requests"
    )

    assert brief(text) == "latency-p95: 0% slower than 2 s, limit 5% (and 1 more)"
    assert brief("entering half needs 1 more approval") == "entering half needs 1 more approval"


def test_held_and_rolled_back_both_count_for_a_silent_candidate_but_promoted_does_not():
    assert as_expected({"outcome": "held", "expected": "held or rolled_back"})
    assert as_expected({"outcome": "rolled_back", "expected": "held or rolled_back"})
    assert not as_expected({"outcome": "promoted", "expected": "held or rolled_back"})
