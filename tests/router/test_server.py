"""The router as a process: start, port, signals."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from router.__main__ import main
from router.server import run
from tests.router.test_config import GOOD

ROOT = Path(__file__).parents[2]


def test_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(GOOD)
    command = [sys.executable, "-m", "router", "--config", str(path), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stderr is not None
        line = child.stderr.readline()
        found = re.fullmatch(r"penstock router listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line
        assert httpx.get(f"{found[1]}/healthz").status_code == 200
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait() == 0
        assert child.stderr.read() == ""


def test_a_port_that_is_taken_is_said_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(GOOD)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run(path, listen=address) == 1
    assert capsys.readouterr().err == f"cannot listen on {address}: Address already in use\n"


def test_a_wrong_file_is_said_with_its_place_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(GOOD.replace("default: a", "default: z"))
    assert run(path) == 1
    assert "router.yaml:11:14: routes.0.default: unknown model 'z'" in capsys.readouterr().err
    assert run(tmp_path / "none.yaml") == 1
    assert "none.yaml: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", "router.yaml", "--listen", "8421"], "argument --listen: '8421' is not an address to listen on"),
        (["--config", "router.yaml", "--port", "1"], "unrecognized arguments: --port 1"),
    ],
)
def test_wrong_arguments_are_said_and_end_with_2(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_a_file_that_does_not_exist_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: no such file" in capsys.readouterr().err
