"""The command line with a people.yaml: groups and rights come from it; nothing of it stands in the way of lowering."""

import json
from pathlib import Path

import pytest

from controller.core.people import token_digest
from tests.cli.conftest import Cli
from tests.people.test_people_file import GOOD

pytestmark = pytest.mark.services


@pytest.fixture
def people_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "people.yaml"
    path.write_text(GOOD.replace("name: release-managers", "name: managers").replace(", slack: S0MANAGERS", ""))
    monkeypatch.setenv("PENSTOCK_PEOPLE_FILE", str(path))
    return path


def start(cli: Cli, rollout_yaml: Path) -> str:
    answer = cli("start", str(rollout_yaml), "-o", "json", "--actor", "dana")
    assert answer.code == 1 and "needs 1 approval from managers, but nobody could (dana may not)" in answer.err
    text = rollout_yaml.read_text().replace("from: [managers]", "from: [managers], not_requester: false")
    rollout_yaml.write_text(text)
    answer = cli("start", str(rollout_yaml), "-o", "json", "--actor", "dana")
    assert answer.code == 0, answer.err
    return str(json.loads(answer.out)["rollout_id"])


def test_who_may_not_is_refused_and_who_lowers_is_not_stopped_by_the_file(
    cli: Cli, rollout_yaml: Path, people_yaml: Path
) -> None:
    assert "'rita' is not among the people" in cli("start", str(rollout_yaml)).err
    assert "amy is in audit and may not start" in cli("start", str(rollout_yaml), "--actor", "amy").err
    rollout_id = start(cli, rollout_yaml)
    assert cli("resume", rollout_id, "--reason", "x", "--actor", "eve").code == 1
    assert "amy is in audit and may not roll back" in cli("rollback", rollout_id, "--reason", "x", "--actor", "amy").err
    people_yaml.write_text("kind: [")
    assert "people.yaml:1:" in cli("resume", rollout_id, "--reason", "x", "--actor", "dana").err
    assert cli("rollback", rollout_id, "--reason", "customers complain", "--actor", "eve").code == 0


def test_break_glass_and_no_on_the_command_line(cli: Cli, rollout_yaml: Path, people_yaml: Path) -> None:
    rollout_id = start(cli, rollout_yaml)
    cli("tick")
    assert cli("reject", rollout_id, "--reason", "no", "--actor", "dana").err.endswith("it is Baking\n")
    told = cli("override", rollout_id, "--check", "bake", "--ticket", "INC-7", "--reason", "noon", "--actor", "sam", "-o", "json")
    assert told.code == 0 and json.loads(told.out)["override"]["checks"] == ["bake"]
    rows = [json.loads(line) for line in cli("history", rollout_id, "-o", "json").out.splitlines()]
    assert rows[-1]["kind"] == "overridden" and rows[-1]["actor"] == "sam" and rows[-1]["event"]["ticket"] == "INC-7"
    assert cli("override", rollout_id, "--check", "breach", "--ticket", "T", "--reason", "r").code == 2
    held = cli("promote", rollout_id, "--actor", "dana")
    assert held.code == 6 and held.err.startswith("hold: ")


def test_lint_takes_a_people_file_and_says_what_is_wrong_with_it(bare: Cli, people_yaml: Path) -> None:
    assert bare("lint", str(people_yaml)).out.endswith("people.yaml: ok, 3 people in 3 groups\n")
    people_yaml.write_text(GOOD.replace("members: [sam]", "members: [bob]"))
    answer = bare("lint", str(people_yaml))
    assert answer.code == 1 and "people.yaml:16:51: groups.1.members.0: 'bob' is not under people" in answer.err


def test_a_new_token_is_printed_once_and_its_hash_goes_into_the_file(bare: Cli) -> None:
    made = json.loads(bare("token", "new", "ci", "--role", "viewer", "--expires", "2027-01-31", "-o", "json").out)
    assert made["entry"] == {
        "id": "ci",
        "hash": f"sha256:{token_digest(made['token'])}",
        "roles": ["viewer"],
        "expires": "2027-01-31",
    }
    shown = bare("token", "new", "ci")
    assert shown.out.startswith("pst_") and shown.out.strip() not in shown.err and "sha256:" in shown.err
