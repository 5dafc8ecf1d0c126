import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from ruamel.yaml import YAML

from flows import server
from flows.deploy import load_flow, prefect_yaml
from flows.local import LocalRunner
from flows.registry import DEPLOYMENTS, Deployed

ROOT = Path(__file__).resolve().parents[2]


def test_prefect_yaml_says_what_the_registry_says() -> None:
    written = YAML(typ="safe").load((ROOT / "deployments" / "prefect.yaml").read_text())
    assert written == json.loads(json.dumps(prefect_yaml())), "run: python -m flows.deploy > deployments/prefect.yaml"


@pytest.mark.parametrize("deployed", DEPLOYMENTS, ids=lambda d: d.name)
def test_each_entrypoint_is_the_module_path_of_a_flow_of_that_name(deployed: Deployed) -> None:
    assert ":" not in deployed.entrypoint and "/" not in deployed.entrypoint
    assert load_flow(deployed).name == deployed.name


def test_registering_twice_keeps_one_schedule(client: SyncPrefectClient, runner: LocalRunner) -> None:
    before = client.read_deployment_by_name("gate-check/gate-check").schedules
    runner.register()
    after = client.read_deployment_by_name("gate-check/gate-check").schedules
    assert [s.id for s in after] == [s.id for s in before]
    assert [s.slug for s in after] == ["gate-check"]


def test_no_deployment_has_a_concurrency_limit(client: SyncPrefectClient, runner: LocalRunner) -> None:
    for deployed in DEPLOYMENTS:
        found = client.read_deployment_by_name(f"{deployed.name}/{deployed.name}")
        assert found.global_concurrency_limit is None


def test_the_schedule_makes_runs_ahead(client: SyncPrefectClient, runner: LocalRunner) -> None:
    # Prefect 3.8 with SQLAlchemy 2.1 answers 500 here, and its scheduler makes no run, ever: keep sqlalchemy below 2.1.
    found = client.read_deployment_by_name("gate-check/gate-check")
    answer = httpx.post(f"{client.api_url}deployments/{found.id}/schedule", json={"min_runs": 2})
    assert answer.status_code == 200, answer.text
    runs = client.get_scheduled_flow_runs_for_deployments([found.id])
    assert len(runs) >= 2


def test_every_field_of_the_form_keeps_its_place(client: SyncPrefectClient, runner: LocalRunner) -> None:
    schema: Any = client.read_deployment_by_name("rollout/rollout").parameter_openapi_schema
    for name, model in schema["definitions"].items():
        positions = [p.get("position") for p in model.get("properties", {}).values()]
        assert sorted(positions, key=lambda p: -1 if p is None else p) == list(range(len(positions))), name
    assert schema["properties"]["spec"]["description"] == "The rollout, as in rollout.yaml."


def test_every_default_in_the_form_is_accepted_by_its_own_pattern(client: SyncPrefectClient, runner: LocalRunner) -> None:
    import re

    schema: Any = client.read_deployment_by_name("rollout/rollout").parameter_openapi_schema
    checked = 0
    for name, model in schema["definitions"].items():
        for field, p in model.get("properties", {}).items():
            if "pattern" in p and p.get("default") is not None:
                assert re.search(p["pattern"], p["default"]), f"{name}.{field}: {p['default']!r}"
                checked += 1
    assert checked >= 2


def test_the_server_is_described_without_importing_prefect() -> None:
    code = "import sys, flows.server, flows.registry; print('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"


def test_the_server_keeps_its_files_below_our_home_and_no_lost_server_is_replaced() -> None:
    env = server.environment(Path("/srv/penstock"), 4200)
    assert env["PREFECT_HOME"] == "/srv/penstock/prefect"
    assert env["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert env["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"
    assert server.argv(4200)[1:] == ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", "4200"]
