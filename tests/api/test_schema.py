"""Every operation against its own OpenAPI document, with inputs that nobody would think of (schemathesis)."""

import re
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.applications import Starlette
from starlette.routing import Mount

from controller.console.api import shield
from controller.console.api.app import PREFIX, create_api
from controller.console.api.models import ROLLOUT_ID
from controller.settings import load
from controller.wiring import open_api
from tests.api.conftest import TOKENS, serving
from tests.ports.databases import Databases

pytestmark = pytest.mark.services


def document() -> Starlette:
    """An application that only answers what it could answer: nothing is connected to."""
    settings = load({"PENSTOCK_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"})
    with open_api(settings) as api:
        assert api is not None
        return Starlette(routes=[Mount(PREFIX, create_api(api))])


schema = schemathesis.openapi.from_asgi(f"{PREFIX}/openapi.json", document())


@pytest.fixture(scope="module")
def standing(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Starlette, str]]:
    """One application for all examples, and the rollout that they meet."""
    # The examples try more wrong tokens in a minute than an address may.
    with pytest.MonkeyPatch.context() as patched, serving(databases, tmp_path_factory.mktemp("api")) as made:
        patched.setattr(shield, "BAD_TOKENS", 1_000_000)
        rollout_id, _ = made.asked()
        yield Starlette(routes=[Mount(PREFIX, create_api(made.api))]), rollout_id


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    ignored_auth,
]


@schema.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_no_request_breaks_an_operation_or_its_document(case: schemathesis.Case, standing: tuple[Starlette, str]) -> None:
    app, rollout_id = standing
    if re.fullmatch(ROLLOUT_ID, str(case.path_parameters.get("rollout_id", ""))):
        case.path_parameters["rollout_id"] = rollout_id
    # Saying what is wrong with a plan is what this operation is there for.
    checks = [c for c in CHECKS if not (c is negative_data_rejection and case.path == "/plans/check")]
    case.call_and_validate(app=app, headers={"Authorization": f"Bearer {TOKENS['max'][0]}"}, checks=checks)
