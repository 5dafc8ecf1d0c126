"""router.v1.schema.json: current, and of one mind with the reader of the file."""

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

from router.config import RouterConfig
from router.schema import FILE, router_schema, text
from specfile import parse_text
from tests.router.test_config import GOOD

EXAMPLE = """\
# yaml-language-server: $schema=router.v1.schema.json
apiVersion: penstock/v1
kind: Router
listen: 127.0.0.1:8421
environment: production
flags: {source: "http://127.0.0.1:8420/flags/v1", stale_after: 60s}
providers:
  - {name: openai, base_url: "https://api.openai.com/v1", api_key_env: OPENAI_API_KEY}
models:
  - name: gpt-5
    provider: openai
    timeout: {request: 30s, stream: 1m30s, first_token: 10s}
    limits: {requests_per_s: 50, concurrency: 200, tokens_per_min: 2000000}
    price: {input_per_mtok: 1.25 USD, output_per_mtok: 10 USD}
    breaker: {failure_ratio: 50%, window: 2m, min_requests: 10, open_for: 30s}
  - {name: gpt-4.1, provider: openai}
routes:
  - name: chat
    match: {model: [auto, chat]}
    flag: chat-model
    default: gpt-4.1
    fallbacks: [gpt-4.1]
    unit: user
caps: {input_tokens: 200000, cost_per_request: 0.50 USD}
budgets: [{environment: production, per_day: 250 USD, on_exceed: downgrade, downgrade_to: gpt-4.1}]
redact: {logs: true, patterns: [email, phone]}
"""

VALIDATOR = jsonschema.Draft202012Validator(json.loads(FILE.read_text(encoding="utf-8")))


def read(source: str) -> Any:
    return YAML(typ="safe").load(source)


def test_the_file_is_what_python_m_router_schema_writes() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run python -m router.schema"
    assert EXAMPLE.startswith(f"# yaml-language-server: $schema={FILE.name}\n")


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(router_schema())


@pytest.mark.parametrize("source", [GOOD, EXAMPLE], ids=["small", "full"])
def test_what_the_router_reads_fits_the_schema(source: str) -> None:
    parse_text(RouterConfig, source)
    assert list(VALIDATOR.iter_errors(read(source))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: Router", "kind: Rooter"),
        ("kind: Router", "kind: Router\nlisen: 127.0.0.1:1"),
        ("{name: a, provider: p}", "{name: a, provider: p, timeout: {request: 30}}"),
        ("{name: a, provider: p}", "{name: a}"),
        ("match: {model: [chat]}", "match: {model: []}"),
        ("default: a", "default: a\n    flag: Chat Model"),
    ],
)
def test_an_editor_marks_what_the_router_refuses(old: str, new: str) -> None:
    assert old in GOOD
    assert list(VALIDATOR.iter_errors(read(GOOD.replace(old, new, 1)))) != []


def test_defaults_are_written_as_a_person_writes_them_and_fit_their_own_schema() -> None:
    parts = VALIDATOR.schema["$defs"]
    assert parts["Flags"]["properties"]["stale_after"]["default"] == "1m"
    assert parts["Breaker"]["properties"]["failure_ratio"]["default"] == "50%"
    checked = 0
    for part in [VALIDATOR.schema, *parts.values()]:
        for described in part["properties"].values():
            if "default" in described:
                assert list(VALIDATOR.evolve(schema={**described, "$defs": parts}).iter_errors(described["default"])) == []
                checked += 1
    assert checked > 20


def test_each_field_carries_its_line_of_the_docstring() -> None:
    flags = VALIDATOR.schema["$defs"]["Flags"]
    assert flags["description"] == "Where flags come from."
    assert flags["properties"]["stale_after"]["description"].startswith("Silence of the source after which")
