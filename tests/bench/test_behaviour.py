"""Scenario files, behaviours and the seeded simulation behind the provider."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.behaviour import (
    BehaviourError,
    Change,
    Errors,
    Latency,
    ModelBehaviour,
    OutputTokens,
    Tail,
    behaviour_to_json,
    updated,
)
from bench.scenario import ScenarioError, load_scenario, parse_scenario
from bench.simulation import Answer, Outcome, SimulatedModel

STEADY = ModelBehaviour(ttft=Latency(median_s=0.5, sigma=0), tokens_per_s=100, output_tokens=OutputTokens(median=51, sigma=0))


def ask(model: SimulatedModel, count: int = 1, *, now_s: float = 0.0, max_tokens: int | None = None) -> list[Answer]:
    return [model.answer(now_s=now_s, max_tokens=max_tokens, tools=False) for _ in range(count)]


def test_times_follow_from_the_behaviour() -> None:
    (answer,) = ask(SimulatedModel("m", STEADY, seed=1))
    # 51 tokens: the first at 0.5 s, fifty more at 100 a second.
    assert (answer.ttft_s, answer.generation_s, answer.tokens, answer.length_limited) == (0.5, 0.5, 51, False)


def test_slower_means_every_time_is_multiplied() -> None:
    (answer,) = ask(SimulatedModel("m", updated(STEADY, {"latency_mult": 1.6, "tail": {"frac": 1, "mult": 2}}), seed=1))
    assert answer.ttft_s == pytest.approx(1.6)
    assert answer.generation_s == pytest.approx(1.6)


def test_a_small_max_tokens_is_the_length_and_a_large_one_only_a_limit() -> None:
    model = SimulatedModel("m", STEADY, seed=1)
    lengths = [ask(model, max_tokens=n)[0] for n in (7, 2048, 2049)]
    assert [(a.tokens, a.length_limited) for a in lengths] == [(7, True), (2048, True), (51, False)]


def test_the_same_seed_and_order_give_the_same_answers() -> None:
    busy = ModelBehaviour(tail=Tail(frac=0.1, mult=5), errors=Errors(rate_limited=0.1, cut=0.1))
    first, second, other = (ask(SimulatedModel("m", busy, seed=s), 200) for s in (1, 1, 2))
    assert first == second
    assert first != other


def test_a_change_does_not_shift_the_draws_of_later_requests() -> None:
    plain, changed = SimulatedModel("m", ModelBehaviour(), seed=1), SimulatedModel("m", ModelBehaviour(), seed=1)
    changed.change({"latency_mult": 2})
    for before, after in zip(ask(plain, 50), ask(changed, 50), strict=True):
        assert after.ttft_s == pytest.approx(2 * before.ttft_s)


def test_shares_of_failures_are_met() -> None:
    model = SimulatedModel("m", ModelBehaviour(errors=Errors(server_error=0.2, reset=0.1)), seed=3)
    ask(model, 5000)
    # Binomial standard deviations: 0.0057 and 0.0042.
    assert model.outcomes["server_error"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert model.outcomes["reset"] / 5000 == pytest.approx(0.1, abs=0.02)
    assert set(model.outcomes) == {"ok", "server_error", "reset"}


def test_scripted_changes_come_by_time_and_by_count() -> None:
    script = (Change(at_s=10, set={"latency_mult": 2}), Change(after_requests=3, set={"errors": {"server_error": 1}}))
    model = SimulatedModel("m", updated(STEADY, {"changes": script}), seed=1)
    assert [a.ttft_s for a in ask(model, now_s=9.9)] == [0.5]
    late = ask(model, 3, now_s=10.0)
    assert [a.ttft_s for a in late] == [1.0, 1.0, 1.0]
    assert [a.outcome for a in late] == [Outcome.OK, Outcome.OK, Outcome.SERVER_ERROR]
    assert model.changes_applied == 2


def test_a_change_keeps_what_it_does_not_mention() -> None:
    changed = updated(ModelBehaviour(errors=Errors(cut=0.1), ttft=Latency(median_s=2)), {"errors": {"timeout": "5%"}})
    assert (changed.errors.cut, changed.errors.timeout, changed.ttft.median_s) == (0.1, 0.05, 2)


def test_a_behaviour_survives_json() -> None:
    behaviour = ModelBehaviour(errors=Errors(cut=0.1), changes=(Change(at_s=1.0, set={"latency_mult": 2}),))
    assert updated(ModelBehaviour(), json.loads(json.dumps(behaviour_to_json(behaviour)))) == behaviour


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"latency": 2}, "latency: unknown field; known: changes, errors,"),
        ({"latency_mult": "fast"}, "latency_mult: expected a number, got 'fast'"),
        ({"latency_mult": True}, "latency_mult: expected a number, got True"),
        ({"latency_mult": -1}, "latency_mult: -1 is not a finite number of at least 0"),
        ({"latency_mult": float("nan")}, "latency_mult: nan is not a finite number"),
        ({"tokens_per_s": 0}, "tokens_per_s: 0 would never end"),
        ({"tail": {"frac": "120%"}}, "tail.frac: 1.2 is over 1"),
        ({"errors": {"cut": 0.6, "reset": 0.6}}, "errors: the shares of failing requests add up to 1.2"),
        ({"errors": {"retry_after_s": 1.5}}, "errors.retry_after_s: expected a whole number, got 1.5"),
        ({"errors": 3}, "errors: expected an object, got 3"),
        ({"changes": [{"set": {}}]}, "changes.0: a change needs either at_s or after_requests"),
        ({"changes": [{"at_s": 1, "set": {"latency_mutl": 2}}]}, "changes.0.set.latency_mutl: unknown field"),
        ({"changes": [{"at_s": 1, "if": 1, "set": {}}]}, "changes.0.if: unknown field"),
    ],
)
def test_a_wrong_behaviour_is_refused_by_its_path(patch: dict[str, Any], message: str) -> None:
    with pytest.raises(BehaviourError) as caught:
        updated(ModelBehaviour(), patch)
    assert str(caught.value).startswith(message)


SCENARIO = """\
apiVersion: penstock/v1
kind: ProviderScenario
seed: 7
models:
  gpt-4.1: {ttft: {median_s: 0.3, sigma: 0.4}, tokens_per_s: 90}
  gpt-5:
    tail: {frac: 1%, mult: 6}
    changes:
      - {at_s: 60, set: {latency_mult: 1.6}}
      - {after_requests: 5000, set: {errors: {server_error: 20%}}}
"""


def test_a_scenario_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    scenario = load_scenario(path)
    assert scenario.seed == 7
    assert scenario.models["gpt-4.1"].ttft == Latency(median_s=0.3, sigma=0.4)
    assert scenario.models["gpt-5"].tail == Tail(frac=0.01, mult=6)
    assert scenario.models["gpt-5"].changes[1].after_requests == 5000


def test_a_scenario_may_be_json() -> None:
    assert parse_scenario('{"models": {"m": {"latency_mult": 2}}}').models["m"].latency_mult == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latency_mult: 1.6", "latency_mutl: 1.6", "s.yaml:9:26: models.gpt-5.changes.0.set.latency_mutl: unknown field"),
        ("mult: 6}", "mult: six}", "s.yaml:7:22: models.gpt-5.tail.mult: expected a number, got 'six'"),
        ("seed: 7", "seeds: 7", "s.yaml:3:1: seeds: unknown field; known: apiVersion, kind, seed, models"),
        ("seed: 7", "seed: x", "s.yaml:3:1: seed: expected a whole number, got 'x'"),
        ("penstock/v1", "penstock/v9", "s.yaml:1:1: apiVersion: expected penstock/v1, got 'penstock/v9'"),
        ("kind: ProviderScenario", "kind: Rollout", "s.yaml:2:1: kind: expected ProviderScenario, got 'Rollout'"),
        ("90}", "90", "s.yaml:6:8: not YAML: "),
        (SCENARIO, "models: {}", "s.yaml:1:1: models: expected an object of at least one model"),
        (SCENARIO, "- a", "s.yaml:1:1: a scenario is an object with"),
        (SCENARIO, "", "s.yaml:1:1: a scenario is an object with"),
    ],
)
def test_a_wrong_scenario_is_refused_with_its_place(old: str, new: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(SCENARIO.replace(old, new), name="s.yaml")
    assert str(caught.value).startswith(message)


def test_a_missing_scenario_file_is_named() -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_scenario(Path("nowhere.yaml"))
