"""
From the list of deployments to Prefect: as objects to register, and as deployments/prefect.yaml.

Its one rule: both say the same, because both are made here.
"""

import importlib
import sys
from datetime import timedelta
from typing import Any

from prefect import Flow
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Interval, Schedule
from prefect.types.entrypoint import EntrypointType
from ruamel.yaml import YAML

from flows.registry import DEPLOYMENTS, GATE_CHECK, Deployed

WORK_POOL = "penstock"


def load_flow(deployed: Deployed) -> Flow[..., Any]:
    module, _, name = deployed.entrypoint.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, Flow), f"{deployed.entrypoint} is not a flow"
    return found


def runner_deployments(gate_every: timedelta | None = None) -> list[RunnerDeployment]:
    """
    Args:
        gate_every: Check gates at this interval instead of the quarter of an hour.
    """
    return [
        RunnerDeployment.from_flow(
            load_flow(d),
            name=d.name,
            description=d.description,
            parameters=dict(d.parameters),
            tags=list(d.tags),
            schedules=[schedule] if (schedule := _schedule(d, gate_every)) else [],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for d in DEPLOYMENTS
    ]


def _schedule(deployed: Deployed, gate_every: timedelta | None) -> Schedule | None:
    if not deployed.cron:
        return None
    if gate_every is None or deployed.name != GATE_CHECK:
        return Cron(deployed.cron, timezone="UTC", slug=deployed.slug)
    return Interval(gate_every, slug=deployed.slug)


def prefect_yaml() -> dict[str, Any]:
    """The content of deployments/prefect.yaml, for `prefect deploy --all --prefect-file deployments/prefect.yaml`."""
    # Workers have penstock installed; without this step `prefect deploy` writes the folder that it was called in.
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
    return {"name": "penstock", "pull": pull, "deployments": [_yaml_of(d) for d in DEPLOYMENTS]}


def _yaml_of(deployed: Deployed) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": deployed.name,
        "entrypoint": deployed.entrypoint,
        "description": deployed.description,
        "tags": list(deployed.tags),
        "parameters": dict(deployed.parameters),
        "work_pool": {"name": WORK_POOL},
    }
    if deployed.cron:
        entry["schedules"] = [{"cron": deployed.cron, "timezone": "UTC", "slug": deployed.slug, "active": True}]
    return entry


def main() -> None:
    """Write deployments/prefect.yaml to stdout."""
    sys.stdout.write("# Generated: python -m flows.deploy > deployments/prefect.yaml\n")
    yaml = YAML()
    yaml.width = 130
    yaml.dump(prefect_yaml(), sys.stdout)


if __name__ == "__main__":
    main()
