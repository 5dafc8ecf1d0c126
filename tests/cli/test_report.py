"""A rollout told whole: what stands in the report, that it breaks in no format, and that a program can read it."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from controller.core.rollout import Approved, Check, Entry, Event, Overridden, Rejected
from controller.describe import history_row
from tests.cli.conftest import ROLLOUT, Cli
from tests.core.test_decide import BEGAN, PLAN

pytestmark = pytest.mark.services

ODD = "<script>alert(1)</script> | a `b` [c](http://x) & d"


@pytest.fixture
def rollout_id(cli: Cli, rollout_yaml: Path) -> str:
    """Started, held twice for lack of metrics, rolled back by a person whose reason tries to break things."""
    rollout_yaml.write_text(
        ROLLOUT.replace("metadata: {name: chat, owner: team}", "metadata: {name: chat, owner: 'a|b', labels: {ticket: CHG-1}}")
    )
    made = str(json.loads(cli("start", str(rollout_yaml), "-o", "json").out)["rollout_id"])
    cli("tick")
    for _ in range(2):
        cli("tick", "--force")
    assert cli("rollback", made, "--reason", ODD).code == 0
    return made


def test_everything_that_moved_traffic_is_told_and_holds_are_counted(cli: Cli, rollout_id: str) -> None:
    found = json.loads(cli("report", rollout_id, "-o", "json").out)
    assert (found["state"], found["labels"], found["opened_by"], found["changes"]) == (
        "rolled_back",
        {"ticket": "CHG-1"},
        "rita",
        None,
    )
    assert ODD in found["sentence"] and "rolled back to 0% by rita after" in found["sentence"]
    assert [t["kind"] for t in found["timeline"]] == [
        "opened",
        "decided advance",
        "applied",
        "held at 2 looks",
        "decided roll_back",
        "applied",
    ]
    held = found["timeline"][3]
    assert held["at"] < held["until"] and "no series of penstock_requests_total" in held["text"]
    assert [(p["name"], p["started_at"] is not None) for p in found["phases"]] == [("canary", True), ("full", False)]
    assert found["audit_rows"] == 7


def test_markdown_keeps_its_tables_whatever_people_wrote(cli: Cli, rollout_id: str) -> None:
    text = cli("report", rollout_id[:9]).out
    lines = text.splitlines()
    assert lines[0] == "# chat: rolled back, 0%" and "owned by a\\|b" in text and "| ticket | CHG-1 |" in text
    for title, columns in (("## Phases", 5), ("## What happened", 4)):
        table = lines[lines.index(title) + 2 :]
        rows = table[: table.index("")]
        assert len(rows) > 2
        assert {row.replace("\\|", "").count("|") for row in rows} == {columns + 1}
    assert "<script>" not in text and "\\<script\\>" in text


def test_html_stands_alone_and_runs_nothing(cli: Cli, rollout_id: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    done = cli("report", rollout_id, "-o", "html", "--out", str(file))
    assert (done.code, done.out) == (0, "") and f"written: {file}" in done.err

    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []
            self.text = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append(tag)
            assert not {name for name, _ in attrs} & {"src", "href", "onclick"}

        def handle_data(self, data: str) -> None:
            self.text += data

    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    assert "script" not in page.tags and ODD in page.text and "held at 2 looks" in page.text


def test_a_second_rollout_is_told_with_what_changed_from_the_first(cli: Cli, rollout_id: str, rollout_yaml: Path) -> None:
    rollout_yaml.write_text(ROLLOUT.replace("max: 1%", "max: 2%"))
    second = json.loads(cli("start", str(rollout_yaml), "-o", "json").out)["rollout_id"]
    changes = json.loads(cli("report", second, "-o", "json").out)["changes"]
    assert changes["from"] == rollout_id
    assert {"what": "gates[errors].limit", "was": "1%", "is": "2%"} in changes["values"]
    assert "gates\\[errors\\].limit | 1% | 2%" in cli("report", second).out
    assert "nothing has been decided yet" in cli("report", second, "-o", "html").out


def test_a_report_that_cannot_be_made_says_why(cli: Cli, rollout_id: str) -> None:
    assert cli("report", rollout_id, "-o", "pdf").code == 2
    nowhere = cli("report", rollout_id, "--out", "/nowhere/at/all.md")
    assert nowhere.code == 1 and "No such file or directory" in nowhere.err
    assert cli("report", "nobody").code == 1


def test_of_a_rollout_under_way_gates_and_queries_are_those_of_the_same_row(cli: Cli, rollout_yaml: Path) -> None:
    made = str(json.loads(cli("start", str(rollout_yaml), "-o", "json").out)["rollout_id"])
    cli("tick")
    cli("tick", "--force")
    found = json.loads(cli("report", made, "-o", "json").out)
    assert found["sentence"].startswith("start with canary"), "the hold after it moved nothing"
    asked = {gate for q in found["queries"] for gate in q["gates"]}
    assert [g["gate"] for g in found["gates"]] == ["no-sev1"] and asked == {"no-sev1"}


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Approved(entering=1, groups=("managers",)), "entering half as managers"),
        (Rejected(entering=0, groups=("managers",), reason="no"), "entering canary: no"),
        (
            Overridden(entering=3, checks=(Check.BAKE,), groups=("sre",), reason="why", ticket="INC-7"),
            "bake of entering the promotion (INC-7: why)",
        ),
    ],
)
def test_people_answer_for_phases_by_name(event: Event, said: str) -> None:
    row = history_row(Entry(rollout_id="chat-1", seq=5, at=BEGAN, actor="amir", event=event), PLAN)
    assert row["text"] == said
