"""
The JSON Schema of router.yaml, for editors and forms: ``python -m router.schema`` writes ``router.v1.schema.json`` beside this file.

A file names it in its first line: ``# yaml-language-server: $schema=router.v1.schema.json``.

Its one rule: it is made from `router.config` and never by hand; a test holds the file against it. It says less than the router
checks: that names fit together (providers, models, routes) only `read_config` sees.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from router.config import RouterConfig

FILE = Path(__file__).with_name("router.v1.schema.json")

_ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", re.M)


def router_schema() -> dict[str, Any]:
    made = RouterConfig.model_json_schema(schema_generator=_Generator)
    head = {"$schema": GenerateJsonSchema.schema_dialect, "$id": FILE.name, "title": "Penstock: router.yaml"}
    return {**head, **{key: value for key, value in made.items() if key not in head}}


def text() -> str:
    return json.dumps(router_schema(), indent=2, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    """Pydantic's own, with defaults as a person writes them, and each field's line of the docstring at the field."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        # Pydantic writes the default of a duration as PT30S and that of a ratio as 0.5; the file says 30s and 50%.
        written: Any = schema["schema"].get("serialization")
        if made.get("default") is not None and written and written["type"] == "function-plain":
            made["default"] = written["function"](schema["default"])
        return made

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        about, _, arguments = made.get("description", "").partition("Args:\n")
        if about:
            made["description"] = " ".join(about.split())
        for names, says in _ARGUMENT.findall(arguments):
            for name in names.split(", "):
                made["properties"][name]["description"] = " ".join(says.split())
        return made


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{FILE.name} written\n")
