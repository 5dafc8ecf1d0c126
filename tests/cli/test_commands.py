"""The commands on a real database and Prometheus: what they do, print and exit with."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.services


def start(cli: Cli, rollout_yaml: Path, *more: str) -> str:
    answer = cli("start", str(rollout_yaml), "-o", "json", *more)
    assert answer.code == 0, answer.err
    return str(json.loads(answer.out)["rollout_id"])


def got(cli: Cli, rollout_id: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(cli("get", rollout_id, "-o", "json").out)
    return data


def test_a_rollout_starts_at_zero_and_its_first_check_raises_it(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    assert (got(cli, rollout_id)["state"], got(cli, rollout_id)["weight"]) == ("pending", 0)
    ticked = json.loads(cli("tick", "-o", "json").out)
    assert (ticked["outcome"], ticked["decision"]) == ("decided", "advance")
    assert (got(cli, rollout_id)["state"], got(cli, rollout_id)["weight"]) == ("baking", 0.05)


def test_where_nothing_is_scraped_a_forced_check_holds_and_names_the_metric(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    cli("tick")
    ticked = json.loads(cli("tick", "--force", "-o", "json").out)
    assert (ticked["decision"], ticked["why"]) == ("hold", "metrics_failed")
    told = json.loads(cli("why", rollout_id, "-o", "json").out)
    assert "held" in told["sentence"] and "no series of penstock_requests_total" in told["sentence"]
    assert {g["gate"]: g["verdict"] for g in told["gates"]} == {
        "errors": "error",
        "no-sev1": "pass",
        "candidate-reports": "insufficient",
        "traffic-split": "error",
    }


def test_doctor_names_the_metrics_that_a_plan_needs_and_nobody_exports(cli: Cli, rollout_yaml: Path) -> None:
    answer = cli("doctor", str(rollout_yaml), "-o", "json")
    rows = {r["what"]: r for r in map(json.loads, answer.out.splitlines())}
    assert answer.code == 1
    assert rows["prometheus"]["ok"] and not rows["metrics"]["ok"]
    assert "errors" in rows["metrics"]["seen"] and "penstock_requests_total" in rows["metrics"]["seen"]


def test_a_dry_run_prints_the_decision_and_writes_nothing(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    before = got(cli, rollout_id)["audit_rows"]
    assert json.loads(cli("tick", "--dry-run", "-o", "json").out)["decision"] == "advance"
    assert got(cli, rollout_id)["audit_rows"] == before


def test_the_same_key_starts_one_rollout(cli: Cli, rollout_yaml: Path) -> None:
    assert start(cli, rollout_yaml, "--key", "ci-7") == start(cli, rollout_yaml, "--key", "ci-7")


def test_the_same_key_with_an_edited_plan_is_refused(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml, "--key", "ci-7")
    rollout_yaml.write_text(rollout_yaml.read_text().replace("traffic: 5%", "traffic: 6%"))
    again = cli("start", str(rollout_yaml), "--key", "ci-7")
    assert again.code == 1
    assert f"{rollout_id} was started with the key 'ci-7' and another plan" in again.err


def test_a_flag_is_held_by_one_rollout(cli: Cli, rollout_yaml: Path) -> None:
    first = start(cli, rollout_yaml)
    second = cli("start", str(rollout_yaml))
    assert second.code == 1
    assert f"flag 'chat-model' in production is held by rollout {first}" in second.err
    assert len(cli("list", "--all", "-o", "json").out.splitlines()) == 1


def test_rolling_back_ends_at_zero_with_the_reason_in_the_log(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    cli("tick")
    assert cli("rollback", rollout_id, "--reason", "customers complain").code == 0
    detail = got(cli, rollout_id)
    assert (detail["state"], detail["weight"]) == ("rolled_back", 0)
    assert cli("get", rollout_id).code == 3
    flag = json.loads(cli("flags", "list", "-o", "json").out)
    assert (flag["weight"], flag["shadow_weight"]) == (0, 0)
    assert "customers complain" in cli("why", rollout_id).out
    again = cli("rollback", rollout_id, "--reason", "again")
    assert again.code == 1 and "has ended" in again.err


def test_after_a_rollback_the_flag_is_free_for_the_next_rollout(cli: Cli, rollout_yaml: Path) -> None:
    first = start(cli, rollout_yaml)
    cli("tick")
    cli("abort", first, "--reason", "wrong ticket")
    assert start(cli, rollout_yaml) != first


def test_pausing_and_resuming_say_who_and_keep_the_weight(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    cli("tick")
    assert cli("pause", rollout_id, "--reason", "incident elsewhere", "--actor", "amir").code == 0
    assert (got(cli, rollout_id)["state"], got(cli, rollout_id)["weight"]) == ("paused", 0.05)
    assert cli("resume", rollout_id, "--reason", "over").code == 0
    assert got(cli, rollout_id)["state"] == "baking"
    assert "amir" in cli("history", rollout_id).out


def test_approving_what_nobody_asked_for_is_refused(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    answer = cli("approve", rollout_id, "--group", "managers")
    assert answer.code == 1 and "does not wait for an approval" in answer.err


def test_killing_a_flag_ends_its_rollout_at_the_next_look_and_stays(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    cli("tick")
    assert cli("flags", "kill", "chat-model", "--reason", "alarm").code == 0
    cli("tick", "--force")
    assert got(cli, rollout_id)["state"] == "rolled_back"
    refused = cli("start", str(rollout_yaml))
    assert refused.code == 1 and "is killed" in refused.err
    assert cli("flags", "unkill", "chat-model", "--reason", "false alarm").code == 0
    assert start(cli, rollout_yaml)


def test_the_beginning_of_an_id_is_enough(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    assert got(cli, rollout_id[:6])["rollout_id"] == rollout_id


def test_history_as_json_carries_the_evidence_of_every_row(cli: Cli, rollout_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    cli("tick")
    rows = [json.loads(line) for line in cli("history", rollout_id, "-o", "json").out.splitlines()]
    assert [r["kind"] for r in rows] == ["opened", "decided advance", "applied"]
    measured = rows[1]["event"]["observed"]["measurements"]
    assert measured[0][0] == "no-sev1" and "ALERTS" in measured[0][1]["evidence"][0]["query"]


def test_the_digest_tells_of_rollouts_and_posts_what_is_due_once(cli: Cli, rollout_yaml: Path) -> None:
    rollout_yaml.write_text(rollout_yaml.read_text() + 'notify: {slack: {channel: "#llm", digest: "00:00"}}\n')
    start(cli, rollout_yaml)
    shown = cli("digest")
    assert shown.code == 0 and "1 under way" in shown.out and "• chat (gpt-4.1 to gpt-5): not started" in shown.out
    [row] = map(json.loads, cli("digest", "-o", "jsonl").out.splitlines())
    assert row["standing"] == "1 under way"
    posted = cli("digest", "--post")
    assert (posted.code, posted.out, posted.err.strip()) == (0, "", "no digest is due"), "it began after its time of today"
