"""Plans written out, and beside each other: on files alone, and against a real log."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from controller.core.plan import Plan
from controller.spec import RolloutSpec, read
from specfile import parse_text
from tests.cli.conftest import ROLLOUT, Cli

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "rollout.yaml"


def plan_of(text: str) -> Plan:
    return parse_text(RolloutSpec, text).to_plan()


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE.read_text(encoding="utf-8"),
        ROLLOUT,
        ROLLOUT.replace("gates: {", "gates: {dead_man: null, "),
        ROLLOUT.replace("max: 1%", 'max: 1%, where: {model: "a}: #b"}'),
    ],
    ids=["example", "short", "no dead man", "odd label"],
)
def test_what_is_rendered_is_the_same_plan_and_says_its_defaults(bare: Cli, tmp_path: Path, text: str) -> None:
    file = tmp_path / "rollout.yaml"
    file.write_text(text)
    shown = bare("render", str(file))
    assert shown.code == 0 and "on_drift: pause" in shown.out and "unit: user" in shown.out
    assert parse_text(RolloutSpec, shown.out) == read(file)
    assert json.loads(bare("render", str(file), "-o", "json").out)["gates"]["on_drift"] == "pause"
    file.write_text(shown.out)
    assert bare("render", str(file)).out == shown.out


def test_a_file_that_cannot_be_read_is_not_rendered(bare: Cli, tmp_path: Path) -> None:
    file = tmp_path / "rollout.yaml"
    file.write_text(ROLLOUT.replace("flag: chat-model", "flag: Chat Model"))
    shown = bare("render", str(file))
    assert (shown.code, shown.out) == (1, "") and "rollout.yaml:4:7" in shown.err
    assert bare("render", str(EXAMPLE), "-o", "toml").code == 2


def test_the_differences_of_two_files_are_named_by_gate_and_phase(bare: Cli, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(ROLLOUT)
    changed = ROLLOUT.replace("max: 1%", "max: 2%").replace("every: 15m", "every: 10m").replace("traffic: 5%", "traffic: 4%")
    two.write_text(
        changed.replace("slos: [", "slos: [{name: slow, indicator: latency, quantile: 0.95, max: 3s}, ").replace(
            "name: canary", "name: one"
        )
    )
    rows = [json.loads(line) for line in bare("diff", str(two), str(one), "-o", "jsonl").out.splitlines()]
    assert [(r["what"], r["was"], r["is"]) for r in rows] == [
        ("phases[canary]", "mode live, weight 5%, bake 1h", ""),
        ("phases[one]", "", "mode live, weight 4%, bake 1h"),
        ("gates[errors].limit", "1%", "2%"),
        ("gates[slow]", "", "indicator latency, quantile 0.95, limit_s 3s, mode enforce, need proof, kind quantile_limit"),
        ("policy.every", "15m", "10m"),
        ("policy.dead_man_after", "1h", "40m"),
    ]
    assert "gates[errors].limit" in bare("diff", str(two), str(one)).out
    same = bare("diff", str(one), str(one))
    assert (same.code, same.out.strip()) == (0, f"no difference from {one}".replace("\n", ""))


@pytest.mark.services
def test_a_file_is_compared_with_the_latest_rollout_of_its_flag(cli: Cli, rollout_yaml: Path) -> None:
    first = cli("diff", str(rollout_yaml))
    assert (first.code, first.out) == (0, "") and "no rollout of flag chat-model in production" in first.err
    rollout_id = json.loads(cli("start", str(rollout_yaml), "-o", "json").out)["rollout_id"]
    assert cli("diff", str(rollout_yaml)).out.strip() == f"no difference from {rollout_id}"
    rollout_yaml.write_text(ROLLOUT.replace("max: 1%", "max: 2%"))
    [row] = map(json.loads, cli("diff", str(rollout_yaml), rollout_id[:8], "-o", "jsonl").out.splitlines())
    assert row == {"what": "gates[errors].limit", "was": "1%", "is": "2%"}
    planned = json.loads(cli("plan", str(rollout_yaml), "--rps", "100", "-o", "json").out)
    assert (planned["last_rollout"], planned["changes"]) == (rollout_id, [row])
    assert f"Changed from {rollout_id}:" in cli("plan", str(rollout_yaml), "--rps", "100").out
    alone = cli("diff", rollout_id)
    assert alone.code == 0 and "no rollout of flag" in alone.err, "there is none before it"
    strange = cli("diff", str(rollout_yaml), "nowhere.yaml")
    assert strange.code == 1 and "neither such a file nor such a rollout" in strange.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_every_command(bare: Cli, shell: str) -> None:
    script = bare("completion", shell).out
    assert all(re.search(rf"\b{word}\b", script) for word in ("rollback", "audit", "verify", "reason"))
    if found := shutil.which(shell):
        assert subprocess.run([found, "-n"], input=script, text=True, check=False, capture_output=True).returncode == 0


def test_a_shell_that_is_unknown_is_refused(bare: Cli) -> None:
    assert bare("completion", "tcsh").code == 2
