import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.adapters.postgres import app_url
from services.ports import free_port
from services.process import ChildProcess, http_ready
from tests.ports.databases import Databases

Start = Callable[[str], str]


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with Databases() as made:
        yield made


@contextmanager
def commands(databases: Databases, tmp_path: Path) -> Iterator[Start]:
    """Starts a command that serves and gives its address."""
    running: list[ChildProcess] = []
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "PREFECT_"))}
    env |= {
        "PENSTOCK_HOME": str(tmp_path),
        "PENSTOCK_DATABASE_URL": app_url(databases.migrated()),
        "PENSTOCK_PROMETHEUS_URL": "http://127.0.0.1:9",
    }

    def run(command: str) -> str:
        url = f"http://127.0.0.1:{free_port()}"
        argv = [sys.executable, "-m", "controller.cli.app", command, "--listen", url.removeprefix("http://")]
        child = ChildProcess(argv, log_path=tmp_path / f"{command}.log", name=command, env=env)
        running.append(child)
        child.wait_ready(http_ready(f"{url}/healthz"), timeout_s=60)
        return url

    try:
        yield run
    finally:
        for child in running:
            child.stop()


@pytest.fixture
def start(databases: Databases, tmp_path: Path) -> Iterator[Start]:
    with commands(databases, tmp_path) as run:
        yield run
