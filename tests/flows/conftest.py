"""
One temporary Prefect server for all tests of the flows, and a controller in memory.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from controller.adapters.memory import Behaviour, MemoryAudit, MemoryFlags, MemoryMetrics
from controller.core.measurement import Counts, Evidence, Sampled
from controller.ports import Notifier, Ports
from controller.settings import Settings
from controller.wiring import Controller
from flows import context
from flows.evidence import artifact_key
from flows.local import LocalRunner
from tests.recheck import assert_replays

QUERY = 'sum(increase(mcp_model_errors_total{model=~"a|b"}[5m]))'


class Silent(Notifier):
    def deliver(self, letter: object) -> None:
        pass


class World:
    """A controller in memory with a clock that is moved by hand, and the runs of its flows in Prefect."""

    def __init__(self, client: SyncPrefectClient, runner: LocalRunner) -> None:
        self.client, self.runner = client, runner
        self.now = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
        self.audit = MemoryAudit(clock=lambda: self.now)
        self.metrics = MemoryMetrics()
        self.ports = Ports(audit=self.audit, index=self.audit, flags=MemoryFlags(clock=lambda: self.now), metrics=self.metrics)
        settings = Settings(home=Path("unused"))
        self.controller = Controller(settings=settings, ports=self.ports, outbox=self.audit, notifier=Silent())
        self.broken: set[str] = set()
        """Rollouts whose log a test has broken."""
        self.errors(bad=1, total=2000)

    def errors(self, *, bad: float, total: float) -> None:
        """What the candidate does from now on, with 5 % of the traffic."""
        evidence = (Evidence(query=QUERY, at=self.now, answer="{}", digest="0" * 64),)
        seen = Sampled(candidate=Counts(bad=bad, total=total), baseline=Counts(bad=2, total=20000), evidence=evidence)
        self.metrics.says = {"candidate-reports": seen}
        self.metrics.candidate = Behaviour(rps=1.0, bad={"error_ratio": bad / total})
        self.metrics.baseline = Behaviour(rps=19.0, bad={"error_ratio": 0.0001})

    def silence(self) -> None:
        self.metrics.says = {}
        self.metrics.candidate = self.metrics.baseline = None

    def run(self, deployment: str, **parameters: Any) -> FlowRun:
        """One run of a deployment, carried out here; as Prefect tells it afterwards."""
        found = self.client.read_deployment_by_name(f"{deployment}/{deployment}")
        return self.rerun(self.client.create_flow_run_from_deployment(found.id, parameters=parameters).id)

    def rerun(self, run_id: UUID) -> FlowRun:
        with context.using(self.controller):
            self.runner.take(self.client, run_id)
        return self.client.read_flow_run(run_id)

    def start(self, name: str | None = None, **changes: Any) -> tuple[FlowRun, str]:
        """Start a rollout by its flow: the record run and the rollout's id."""
        run = self.run("rollout", spec=spec(name, **changes), requested_by="alice")
        (rollout_id,) = [t.removeprefix("rollout:") for t in run.tags if t.startswith("rollout:")]
        return run, rollout_id

    def later(self, **span: float) -> "World":
        self.now += timedelta(**span)
        return self

    def again(self, run: FlowRun) -> FlowRun:
        return self.client.read_flow_run(run.id)

    def artifacts(self, rollout_id: str) -> list[Artifact]:
        """Oldest first."""
        key = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(rollout_id)]))
        return sorted(
            self.client.read_artifacts(artifact_filter=key), key=lambda a: a.created or datetime.min.replace(tzinfo=UTC)
        )


def spec(name: str | None = None, *, approval: bool = False) -> dict[str, Any]:
    """A rollout in two phases, judged by its error rate, on a flag of its own."""
    name = name or f"r{uuid4().hex[:8]}"
    full: dict[str, Any] = {"name": "full", "traffic": "100%", "bake": "1h"}
    if approval:
        full["approval"] = {"from": ["release-managers"]}
    return {
        "metadata": {"name": name},
        "flag": f"flag-{name}",
        "baseline": {"model": "gpt-4.1"},
        "candidate": {"model": "gpt-5"},
        "slos": [{"name": "error-rate", "indicator": "error_ratio", "max": "1%"}],
        "phases": [{"name": "canary-5", "traffic": "5%", "bake": "1h"}, full],
    }


@pytest.fixture(scope="session")
def client() -> Iterator[SyncPrefectClient]:
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        get_client(sync_client=True) as opened,
    ):
        yield opened


@pytest.fixture(scope="session")
def runner(client: SyncPrefectClient) -> LocalRunner:
    registered = LocalRunner()
    registered.register()
    return registered


@pytest.fixture
def world(client: SyncPrefectClient, runner: LocalRunner) -> Iterator[World]:
    """Its rows must come out of themselves again."""
    made = World(client, runner)
    yield made
    assert_replays(made.audit, [i for i in made.audit.rows if i not in made.broken])
