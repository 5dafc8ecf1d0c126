"""One run of the demo for all that look at it: its report, and the addresses of what it keeps running."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCENARIOS = 4


@dataclass(frozen=True, slots=True)
class Demo:
    """`rows` by scenario; `addresses` by name, as the demo printed them."""

    rows: dict[str, dict[str, Any]]
    addresses: dict[str, str]
    home: Path


@pytest.fixture(scope="package")
def demo() -> Iterator[Demo]:
    argv = [sys.executable, "-m", "controller.cli.app", "demo", "--scenario", "all", "--seed", "11", "-o", "json", "--keep"]
    root = Path(__file__).parents[2]
    # Not below pytest's own folder, which the account of the embedded Postgres cannot enter.
    with (
        tempfile.TemporaryDirectory(prefix="penstock-demo-", ignore_cleanup_errors=True) as folder,
        Path(folder, "said").open("w") as said,
    ):
        home = Path(folder) / "home"
        process = subprocess.Popen(
            [*argv, "--home", str(home)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
            # Whoever runs these tests in the background of a script ignores Ctrl-C, and what is ignored is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(SCENARIOS)]

        def told() -> str:
            # Read while it is written: what is there may end within a letter.
            return Path(said.name).read_text(encoding="utf-8", errors="replace")

        assert all(lines), told()[-4000:]
        rows = {row["scenario"]: row for row in map(json.loads, lines)}
        while "everything keeps running" not in told():
            assert process.poll() is None, told()[-4000:]
            time.sleep(0.2)
        addresses = {name.strip(): url for name, url in re.findall(r"^\s*([A-Z][\w -]*?)\s{2,}(http\S+)", told(), re.MULTILINE)}
        yield Demo(rows=rows, addresses=addresses, home=home)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, told()[-4000:]


@pytest.fixture(scope="package")
def rows(demo: Demo) -> dict[str, dict[str, Any]]:
    return demo.rows
