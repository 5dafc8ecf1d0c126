"""What can be wrong around a command: each is one clear sentence naming what and where, with its exit code and nothing half-applied."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from controller.adapters.postgres import app_url
from controller.ports import FlagChange
from controller.settings import load
from controller.wiring import open_flags
from flagspec import Variant
from tests.cli.conftest import ROLLOUT, Cli
from tests.ports.databases import Databases


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_a_database_every_command_says_how_to_get_one(bare: Cli) -> None:
    answer = bare("list")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.strip() == "penstock: no database: start one with `penstock up`, or set PENSTOCK_DATABASE_URL"


def test_an_unreachable_database_is_named(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", f"postgresql://penstock:hunter2@127.0.0.1:{port}/penstock")
    monkeypatch.setenv("PENSTOCK_PROMETHEUS_URL", "http://127.0.0.1:9")
    answer = bare("list")
    assert answer.code == 1 and str(port) in answer.err
    assert "hunter2" not in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize("url", ["mysql://127.0.0.1/x", "sqlite:///x.db", "penstock"])
def test_another_kind_of_database_is_refused(bare: Cli, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", url)
    answer = bare("list")
    assert answer.code == 1 and "is not a postgresql:// address" in answer.err


@pytest.mark.services
def test_a_database_without_tables_says_to_migrate(cli: Cli, databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", databases.empty())
    answer = cli("list")
    assert answer.code == 1 and "run `penstock migrate`" in answer.err


@pytest.mark.services
def test_migrating_twice_does_nothing_the_second_time(cli: Cli, databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", databases.empty())
    assert json.loads(cli("migrate", "-o", "json").out)["applied"]
    assert json.loads(cli("migrate", "-o", "json").out)["applied"] == []


@pytest.mark.services
def test_a_prometheus_that_is_down_holds_the_rollout_and_is_named(
    cli: Cli, rollout_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = closed_port()
    monkeypatch.setenv("PENSTOCK_PROMETHEUS_URL", f"http://127.0.0.1:{port}")
    assert cli("start", str(rollout_yaml)).code == 0
    ticked = json.loads(cli("tick", "-o", "json").out)
    assert (ticked["decision"], ticked["why"]) == ("hold", "metrics_failed")
    assert str(port) in ticked["text"]
    assert json.loads(cli("list", "-o", "json").out)["weight"] == 0


@pytest.mark.services
def test_doctor_names_everything_that_does_not_answer(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{closed_port()}/api")
    monkeypatch.setenv("PENSTOCK_LISTEN", f"127.0.0.1:{closed_port()}")
    answer = cli("doctor", "-o", "json")
    rows = {r["what"]: r for r in map(json.loads, answer.out.splitlines())}
    assert answer.code == 1
    assert {name: row["ok"] for name, row in rows.items()} == {
        "database": True,
        "prometheus": True,
        "prefect": False,
        "flags": False,
        "guard": False,
        "slack": True,
    }
    assert "does not answer" in rows["prefect"]["seen"]
    assert rows["guard"]["seen"] == "the guard has never looked"


@pytest.mark.services
def test_a_model_that_the_router_does_not_know_is_refused_before_anything_is_written(
    cli: Cli, rollout_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Models(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"object": "list", "data": [{"id": "gpt-4.1"}, {"id": "o3"}]}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Models) as router:
        Thread(target=router.serve_forever, daemon=True).start()
        monkeypatch.setenv("PENSTOCK_ROUTER_URL", f"http://127.0.0.1:{router.server_port}")
        answer = cli("start", str(rollout_yaml))
        router.shutdown()
    assert answer.code == 1
    assert "does not know model 'gpt-5'; it knows gpt-4.1, o3" in answer.err
    assert cli("list", "--all", "-o", "json").out == ""


@pytest.mark.services
def test_a_baseline_that_the_flag_does_not_serve_is_refused(cli: Cli, databases: Databases, rollout_yaml: Path) -> None:
    with open_flags(replace(load(), database_url=app_url(databases.migrated()))) as flags:
        change = FlagChange(
            environment="production",
            key="chat-model",
            control=Variant(model="o3"),
            candidate=Variant(model="o4"),
            salt="s",
            unit="user",
            weight=30_000,
            shadow_weight=0,
            decision_id="person:someone",
        )
        flags.write(change, 0)
    answer = cli("start", str(rollout_yaml))
    assert answer.code == 1 and "serves o4 at 30%, but the plan's baseline is gpt-4.1" in answer.err
    assert cli("list", "--all", "-o", "json").out == ""


def test_a_wrong_file_is_told_with_file_line_and_column(bare: Cli, rollout_yaml: Path) -> None:
    rollout_yaml.write_text(ROLLOUT.replace("traffic: 5%", "traffic: 500%"))
    answer = bare("lint", str(rollout_yaml))
    assert answer.code == 1
    assert answer.err.startswith(f"{rollout_yaml}:11:29: phases.0.traffic: '500%' is over 100%")


def test_a_missing_file_is_named(bare: Cli, tmp_path: Path) -> None:
    answer = bare("lint", str(tmp_path / "nothing.yaml"))
    assert answer.code == 1 and "nothing.yaml: no such file" in answer.err


def test_lint_as_json_lists_every_problem_with_its_place(bare: Cli, rollout_yaml: Path) -> None:
    rollout_yaml.write_text(ROLLOUT.replace("max: 1%", "max: fast").replace("bake: 1h", "bake: soon", 1))
    answer = bare("lint", str(rollout_yaml), "-o", "json")
    told = json.loads(answer.out)
    assert answer.code == 1 and not told["ok"]
    assert [(p["path"], p["line"]) for p in told["problems"]] == [("slos.0.max", 7), ("phases.0.bake", 11)]


@pytest.mark.parametrize(
    "words", [["nonsense"], ["lint"], ["rollback", "x"], ["get"], ["start", "a.yaml", "--nope"], ["list", "-o", "xml"]]
)
def test_wrong_usage_exits_with_two(bare: Cli, words: list[str]) -> None:
    assert bare(*words).code == 2


@pytest.mark.services
def test_an_unknown_rollout_is_named(cli: Cli) -> None:
    answer = cli("get", "nowhere")
    assert answer.code == 1 and "no rollout 'nowhere'" in answer.err


@pytest.mark.services
def test_a_taken_port_is_named(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = cli("serve", "--listen", f"127.0.0.1:{port}")
    assert answer.code == 1 and f"cannot listen on 127.0.0.1:{port}" in answer.err


def test_a_broken_run_file_is_named(bare: Cli, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "run.json").write_text("{")
    answer = bare("list")
    assert answer.code == 1 and "run.json" in answer.err


def test_a_run_file_of_a_stack_that_is_gone_is_not_believed(bare: Cli, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "run.json").write_text(json.dumps({"pid": 2**22 + 1, "database_url": "postgresql://127.0.0.1/x"}))
    answer = bare("list")
    assert answer.code == 1 and "no database" in answer.err


@pytest.mark.parametrize(
    ("where", "code", "said", "unbuffered"),
    [
        (">/dev/full", 1, "No space left on device (if that was the output", ""),
        (">/dev/full", 1, "No space left on device (if that was the output", "1"),
        (">/dev/full 2>/dev/full", 1, "", ""),
        (">&- 2>&-", 0, "", ""),
        ("| exec true", 0, "", ""),
        ("| exec true", 0, "", "1"),
    ],
)
def test_output_that_nobody_takes_breaks_no_command(where: str, code: int, said: str, unbuffered: str) -> None:
    command = f'"{sys.executable}" -m controller.cli.app completion bash'
    script = f"({command}; echo $? >&3) {where}" if where.startswith("|") else f"{command} {where}; echo $? >&3"
    ran = subprocess.run(
        ["/bin/sh", "-c", f"exec 3>&1; {script}"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.stdout.strip(), "Traceback" in ran.stderr) == (str(code), False)
    assert said in ran.stderr and (said or not ran.stderr)
