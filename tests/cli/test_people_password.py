"""`penstock people password`: a line for people.yaml that the console's login takes."""

import io

import pytest

from controller.people import is_password
from tests.cli.conftest import Cli


def test_a_password_from_a_pipe_becomes_a_line_for_people_yaml(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse battery\n"))
    answer = bare("people", "password")
    assert answer.code == 0
    name, _, hashed = answer.out.strip().partition(": ")
    assert name == "password"
    assert is_password("correct horse battery", hashed.strip('"'))
    assert "correct horse" not in answer.out + answer.err


def test_a_short_password_is_refused(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    answer = bare("people", "password")
    assert answer.code == 1
    assert "at least 12 characters, got 5" in answer.err
