"""The real application on a real Postgres: everything `penstock serve` answers, without a socket."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from starlette.applications import Starlette
from starlette.testclient import TestClient

from controller.adapters.memory import MemoryMetrics
from controller.adapters.postgres import app_url
from controller.console.app import create_app
from controller.console.flags_hub import FlagHub
from controller.core.measurement import Counts, Sampled
from controller.people import new_token
from controller.ports import Ports
from controller.settings import load
from controller.sweep import sweep
from controller.wiring import Api, open_api, open_flag_source, open_people
from tests.cli.conftest import ROLLOUT
from tests.ports.databases import Databases

ALERTMANAGER = "am-secret"
TOKENS = {name: new_token() for name in ("dana", "dana-viewer", "sam", "amy", "max")}
PEOPLE = f"""\
apiVersion: penstock/v1
kind: People
people:
  - name: dana
    tokens:
      - {{id: laptop, hash: "{TOKENS["dana"][1]}"}}
      - {{id: dashboard, hash: "{TOKENS["dana-viewer"][1]}", roles: [viewer]}}
  - {{name: sam, tokens: [{{id: laptop, hash: "{TOKENS["sam"][1]}"}}]}}
  - {{name: amy, tokens: [{{id: laptop, hash: "{TOKENS["amy"][1]}"}}]}}
  - {{name: max, tokens: [{{id: laptop, hash: "{TOKENS["max"][1]}"}}]}}
groups:
  - {{name: managers, roles: [release-manager], members: [dana, max]}}
  - {{name: oncall, roles: [sre-oncall], members: [sam, max]}}
  - {{name: audit, roles: [auditor], members: [amy, max]}}
"""
PLAN = ROLLOUT.replace("{name: canary,", "{name: canary, approval: {from: [oncall]},").replace("[managers]", "[oncall]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The application, and ways to ask it. `api` and `ports` are what it works on."""

    app: Starlette
    client: TestClient
    api: Api
    people_file: Path

    @property
    def ports(self) -> Ports:
        return self.api.ports

    def ask(self, method: str, path: str, who: str | None = "dana", **more: Any) -> Response:
        headers = dict(more.pop("headers", {}))
        if who is not None:
            headers["Authorization"] = f"Bearer {TOKENS[who][0] if who in TOKENS else who}"
        return self.client.request(method, f"/api/v1{path}", headers=headers, **more)

    def get(self, path: str, who: str | None = "dana", **more: Any) -> Response:
        return self.ask("GET", path, who, **more)

    def post(self, path: str, who: str | None = "dana", **more: Any) -> Response:
        return self.ask("POST", path, who, **more)

    def start(self, text: str = PLAN, who: str = "dana", **headers: str) -> Response:
        return self.post("/rollouts", who, content=text, headers={"Content-Type": "application/yaml", **headers})

    def asked(self) -> tuple[str, str]:
        """A rollout that waits for its first approval: its id and the digest of the question."""
        rollout_id = self.start().json()["rollout_id"]
        list(sweep(self.ports, may_raise=True, only=[rollout_id], force=True))
        return rollout_id, self.get(f"/rollouts/{rollout_id}").json()["question"]["digest"]


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    with Databases() as made:
        yield made


@pytest.fixture
def served(databases: Databases, tmp_path: Path) -> Iterator[Served]:
    with serving(databases, tmp_path) as made:
        yield made


@contextmanager
def serving(databases: Databases, folder: Path, people: str | None = PEOPLE, **more: str) -> Iterator[Served]:
    people_file = folder / "people.yaml"
    people_file.write_text(people or "")
    settings = load(
        {
            **more,
            "PENSTOCK_HOME": str(folder),
            "PENSTOCK_DATABASE_URL": app_url(databases.migrated()),
            "PENSTOCK_PROMETHEUS_URL": "http://127.0.0.1:9",
            "PENSTOCK_PEOPLE_FILE": "" if people is None else str(people_file),
            "PENSTOCK_ALERTMANAGER_TOKEN": ALERTMANAGER,
        }
    )
    with open_flag_source(settings) as (source, switch), open_api(settings) as opened:
        assert opened is not None
        # No Prometheus: these tests are about who may ask for what, not about what a gate says.
        api = replace(
            opened, ports=replace(opened.ports, metrics=MemoryMetrics({"no-sev1": Sampled(candidate=Counts(bad=0.0, total=0.0))}))
        )
        app = create_app(FlagHub(source, switch), api=api, people=open_people(settings))
        with TestClient(app, raise_server_exceptions=True) as client:
            yield Served(app=app, client=client, api=api, people_file=people_file)
