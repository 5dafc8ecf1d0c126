"""A real Postgres and a real Prometheus for the command line, and the environment that names them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.adapters.postgres import PostgresAudit, app_url, open_engine
from controller.cli import app
from services.prometheus import PrometheusServer
from tests.ports.databases import Databases
from tests.recheck import assert_replays

ROLLOUT = """\
apiVersion: penstock/v1
kind: Rollout
metadata: {name: chat, owner: team}
flag: chat-model
baseline: {model: gpt-4.1}
candidate: {model: gpt-5}
slos: [{name: errors, indicator: error_ratio, max: 1%}]
events: [{name: no-sev1, indicator: firing_alerts, where: {severity: sev1}, at_most: 0}]
gates: {every: 15m, guard_every: 15s, min_requests: 100}
phases:
  - {name: canary, traffic: 5%, bake: 1h}
  - {name: full, traffic: 100%, bake: 1h, approval: {from: [managers]}}
"""


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    with Databases() as running:
        yield running


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    with PrometheusServer(tmp_path_factory.mktemp("prometheus"), {}) as running:
        yield running


@pytest.fixture
def rollout_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "rollout.yaml"
    path.write_text(ROLLOUT)
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line with nothing running."""
    for name in ("DATABASE_URL", "FLAGS_DATABASE_URL", "PROMETHEUS_URL", "ROUTER_URL", "SLACK_TOKEN", "GROUPS", "LISTEN"):
        monkeypatch.delenv(f"PENSTOCK_{name}", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PENSTOCK_ACTOR", "rita")

    def run(*words: str) -> Answer:
        capsys.readouterr()
        code = app.run([str(w) for w in words])
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
def cli(
    request: pytest.FixtureRequest, bare: Cli, databases: Databases, prometheus: PrometheusServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cli]:
    """The command line with a database and Prometheus, both empty. The rows that it left must come out of themselves again."""
    url = app_url(databases.migrated())
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", url)
    monkeypatch.setenv("PENSTOCK_PROMETHEUS_URL", prometheus.url)
    yield bare
    if request.module.__name__.endswith("test_audit"):
        return  # it tampers
    engine = open_engine(url)
    log = PostgresAudit(engine)
    assert_replays(log, log.known(100))
    engine.dispose()
