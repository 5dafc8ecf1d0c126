"""What a release contains: everything that is read at run time and is no Python."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from controller.cli import stack

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def test_a_wheel_has_every_file_that_a_checkout_reads(names: set[str]) -> None:
    packages = ("flagspec", "specfile", "services", "controller", "flows", "router", "bench", "migrations")
    listed = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert len(listed) > 200 and set(listed) - names == set()


def test_a_wheel_has_the_alert_rules_where_up_looks_for_them(
    names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {f"controller/rules/{name}" for name in stack.RULES} <= names
    assert all(path.is_file() for path in stack.rule_files())
    (tmp_path / "controller" / "rules").mkdir(parents=True)
    monkeypatch.setattr(stack, "_root", lambda: tmp_path)
    assert {p.parent for p in stack.rule_files()} == {tmp_path / "controller" / "rules"}
