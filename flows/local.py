"""
``python -m flows.local``: register the deployments and run what is scheduled inside this one process.

`flows.serve` starts a process for every run, and importing prefect costs seconds of CPU each time. Here prefect is imported once and the
controller's connections stay open, so that a gate check costs tenths of a second: fit for one machine and for compressed demos. The
runs belong to the same deployments and look the same in the UI. Its one rule: it takes a run only after Prefect gave it to this
process (PENDING accepted), so that it may stand beside workers.
"""

import argparse
import contextvars
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.exceptions import Abort, Pause, PrefectException
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Pending
from prometheus_client import start_http_server

from controller import metrics
from controller.core.rollout import LogError
from controller.ports import PortError
from controller.settings import Settings, load
from controller.sweep import anybody_due
from controller.wiring import open_controller
from flows import context
from flows.deploy import load_flow, runner_deployments
from flows.registry import DEPLOYMENTS, GATE_CHECK
from flows.serve import every

POLL = timedelta(seconds=1)
"""How often scheduled runs are asked for; a form that is sent off starts after half of it on average."""
DUE_PAUSE = timedelta(seconds=5)
"""Between two checks of our own: a rollout that stays due because it cannot be looked at does not fill the history with failures."""
WORKERS = 4

_log = logging.getLogger("penstock.flows.local")


class LocalRunner:
    """
    Runs the deployments' runs on threads of this process.

    Args:
        gate_every: Make a gate-check run of its own at this interval. None: whenever a rollout is due by its own plan's `every`, or a
            new approval waits to be acted on.
        workers: Runs at the same time.
    """

    def __init__(self, *, gate_every: timedelta | None = None, workers: int = WORKERS) -> None:
        self._gate_every = gate_every
        self._workers = workers
        self._flows: dict[UUID, Flow[..., Any]] = {}
        self._gate_check: UUID | None = None
        self._own_check: UUID | None = None
        # Runs that wait for a thread or run. Asked for by the loop's thread alone, discarded by the others.
        self._in_hand: set[UUID | None] = set()
        self._stop = threading.Event()

    def register(self) -> None:
        """Create or update the deployments. Raises PrefectException or httpx.HTTPError when the server cannot be reached."""
        for deployed, runner_deployment in zip(DEPLOYMENTS, runner_deployments(), strict=True):
            deployment_id = runner_deployment.apply()
            assert isinstance(deployment_id, UUID)
            self._flows[deployment_id] = load_flow(deployed)
            if deployed.name == GATE_CHECK:
                self._gate_check = deployment_id

    def stop(self) -> None:
        """Let the runs in hand end and start no more; safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Until `stop`. A server that is away is waited for."""
        next_check = time.monotonic()
        with get_client(sync_client=True) as client, ThreadPoolExecutor(self._workers, thread_name_prefix="run") as pool:
            while not self._stop.is_set():
                with _server_may_be_away():
                    if time.monotonic() >= next_check and (self._gate_every is not None or self._somebody_is_due()):
                        # A check that takes longer than the interval skips turns; they do not queue up.
                        next_check = max(next_check + (self._gate_every or DUE_PAUSE).total_seconds(), time.monotonic())
                        if (run_id := self.new_gate_check(client)) is not None:
                            self._submit(pool, client, run_id)
                    for run_id in self.due(client):
                        self._submit(pool, client, run_id)
                wait = POLL.total_seconds()
                if self._gate_every is not None:
                    wait = min(wait, max(0.0, next_check - time.monotonic()))
                self._stop.wait(wait)

    @staticmethod
    def _somebody_is_due() -> bool:
        try:
            with context.controller() as opened:
                return anybody_due(opened.ports)
        except (PortError, LogError) as exc:
            _log.warning("cannot tell who is due, the schedule goes on: %s: %s", type(exc).__name__, exc)
            return False

    def new_gate_check(self, client: SyncPrefectClient) -> UUID | None:
        """Make a gate-check run, unless the one made before is still busy."""
        assert self._gate_check is not None, "register() comes first"
        if self._own_check in self._in_hand:
            return None
        self._own_check = client.create_flow_run_from_deployment(self._gate_check).id
        return self._own_check

    def due(self, client: SyncPrefectClient) -> list[UUID]:
        """Scheduled runs whose time has come and that are not in hand yet."""
        runs = client.get_scheduled_flow_runs_for_deployments(list(self._flows), scheduled_before=datetime.now(UTC))
        return [run.id for run in runs if run.id not in self._in_hand]

    def take(self, client: SyncPrefectClient, run_id: UUID) -> None:
        """Run it here, if Prefect gives it to this process."""
        given: OrchestrationResult[Any] = client.set_flow_run_state(run_id, Pending())
        if given.status is not SetStateStatus.ACCEPT or given.state is None or given.state.type is not StateType.PENDING:
            return  # somebody else has it, or it was cancelled
        run = client.read_flow_run(run_id)
        assert run.deployment_id is not None, "it was found by its deployment"
        # An error inside the flow is the run's Failed state, and no exception here.
        with suppress(Abort, Pause):
            run_flow(self._flows[run.deployment_id], flow_run=run, return_type="state")

    def _submit(self, pool: ThreadPoolExecutor, client: SyncPrefectClient, run_id: UUID) -> None:
        self._in_hand.add(run_id)
        # Settings and the open controller are context variables, which threads do not inherit.
        pool.submit(contextvars.copy_context().run, self._work, client, run_id)

    def _work(self, client: SyncPrefectClient, run_id: UUID) -> None:
        try:
            self.take(client, run_id)
        except Exception:
            _log.exception("run %s was not carried out", run_id)
        finally:
            self._in_hand.discard(run_id)


@contextmanager
def _server_may_be_away() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, PrefectException) as exc:
        _log.warning("Prefect cannot be reached, trying again: %s: %s", type(exc).__name__, exc)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.local", description="Run the deployments inside this one process.")
    parser.add_argument(
        "--every", type=every, metavar="5s", help="check gates so often; default: when a rollout is due by its own plan"
    )
    options = parser.parse_args(argv)
    runner = LocalRunner(gate_every=options.every)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop())
    # Nobody watches heartbeats here (stuck.py looks at times), and each run would wait up to a second for its heartbeat to end.
    settings = load()
    _export(settings)
    with (
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        open_controller(settings) as opened,
        context.using(opened),
    ):
        runner.register()
        runner.run()


def _export(settings: Settings) -> None:
    """Serve the metrics of the gate checks that are made here, where the settings say so; without them checks go on."""
    if settings.flows_listen is None:
        return
    host, _, port = settings.flows_listen.rpartition(":")
    try:
        start_http_server(int(port), addr=host, registry=metrics.REGISTRY)
    except (OSError, ValueError) as exc:
        _log.error("PENSTOCK_FLOWS_LISTEN=%s: no metrics: %s", settings.flows_listen, exc)


if __name__ == "__main__":
    main()
