"""
Writes `flagspec/route-flag.v1.schema.json` and `flagspec/vectors.json`: `python -m tests.flagspec.generate`.

The vectors are computed here from the rule's definition and not with `flagspec.bucket`, so that the two can disagree.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

FLAGSPEC = Path(__file__).parents[2] / "flagspec"

_TIME = r"T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$"

_COMMON_DAY = (
    r"^(?!0000)\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)

# 29 February of a leap year that does not end a century.
_LEAP_DAY = r"^\d{2}(?:0[48]|[2468][048]|[13579][26])-02-29"

UNITS = [
    ("chat-model/r1", "user-1"),
    ("chat-model/r1", "user-2"),
    ("chat-model/r1", "user-3"),
    ("chat-model/r2", "user-1"),
    ("chat-model/r1", "42"),
    ("chat-model/r1", "a:b"),
    ("chat-model/r1:a", "b"),
    ("s", " "),
    ("s", "Zoë"),
    ("s", "Zoe\u0308"),
    ("s", "用户-七"),
    ("s", "👩‍🚀"),
    ("s", "0" * 200),
    ("grüße", "user-1"),
]
"""`Zoë` in its two spellings are two units: units are compared byte for byte. The pair around the colon is one input: choose salts so."""


def vector(salt: str, unit: str) -> dict[str, Any]:
    digest = sha256((salt + ":" + unit).encode("utf-8")).hexdigest()
    first = int(digest[:8], 16)
    return {"salt": salt, "unit": unit, "sha256": digest, "uint32": first, "bucket": first * 100_000 // 4_294_967_296}


def flag(**changes: Any) -> dict[str, Any]:
    return {
        "environment": "production",
        "key": "chat-model",
        "version": 3,
        "revision": 7,
        "killed": False,
        "weight": 5_000,
        "shadow_weight": 0,
        "salt": "chat-model/r1",
        "unit": "user",
        "control": {"model": "gpt-4.1", "params": {}},
        "candidate": {"model": "gpt-5", "params": {"reasoning_effort": "low"}},
        "decision_id": "r1.4.advance",
        "lease": None,
        **changes,
    }


def assignments() -> list[dict[str, Any]]:
    at, unit = "2026-03-01T12:00:00+00:00", "user-1"
    live = vector("chat-model/r1", unit)["bucket"]
    shadow = vector("chat-model/r1/shadow", unit)["bucket"]

    def case(
        why: str, changes: dict[str, Any], arm: str, model: str, mirrored: bool, reason: str, of: str | None = unit
    ) -> dict[str, Any]:
        answer = {"arm": arm, "model": model, "mirrored": mirrored, "reason": reason}
        return {"why": why, "flag": flag(**changes), "unit": of, "now": at, **answer}

    control, candidate = ("baseline", "gpt-4.1"), ("candidate", "gpt-5")
    return [
        case("the bucket is below the weight", {"weight": live + 1}, *candidate, False, "split"),
        case("the bucket is not below the weight", {"weight": live}, *control, False, "split"),
        case("weight 0 holds nobody", {"weight": 0}, *control, False, "split"),
        case("weight 100000 holds everybody", {"weight": 100_000}, *candidate, False, "split"),
        case("mirrored by its own salt", {"weight": 0, "shadow_weight": shadow + 1}, *control, True, "split"),
        case("not mirrored", {"weight": 0, "shadow_weight": shadow}, *control, False, "split"),
        case("who is exposed is not mirrored as well", {"weight": 100_000, "shadow_weight": 100_000}, *candidate, False, "split"),
        case(
            "a kill sends everybody to the control",
            {"weight": 100_000, "shadow_weight": 100_000, "killed": True},
            *control,
            False,
            "killed",
        ),
        case("a lapsed lease as well", {"weight": 100_000, "lease": at}, *control, False, "lease_lapsed"),
        case(
            "a lease that lasts changes nothing",
            {"weight": 100_000, "lease": "2026-03-01T12:00:01+00:00"},
            *candidate,
            False,
            "split",
        ),
        case("no unit gets the control", {"weight": 99_999, "shadow_weight": 100_000}, *control, False, "no_unit", None),
        case("an empty unit is no unit", {"weight": 99_999}, *control, False, "no_unit", ""),
        case("no unit at 100 % gets the candidate", {"weight": 100_000}, *candidate, False, "no_unit", None),
    ]


def vectors() -> dict[str, Any]:
    return {
        "about": [
            "What every reader of a flag must compute, in any language.",
            "bucket: SHA-256 of the UTF-8 bytes of salt, a colon and unit; its first 8 hexadecimal digits are uint32; "
            "bucket = floor(uint32 * 100000 / 2^32).",
            "A unit gets the candidate when bucket < weight; it is mirrored by the same rule with salt + '/shadow' and shadow_weight.",
        ],
        "buckets": [vector(salt, unit) for salt, unit in UNITS],
        "assignments": assignments(),
    }


def schema() -> dict[str, Any]:
    weight = {"type": "integer", "minimum": 0, "maximum": 100_000}
    count = {"type": "integer", "minimum": 0}
    word = {"type": "string", "minLength": 1}
    described = {
        "environment": word | {"description": "Where the flag applies."},
        "key": word | {"description": "The flag's name."},
        "version": count | {"description": "Counts the writes of this flag; compare-and-set is on it."},
        "revision": count
        | {"description": "Counts the writes of all flags of the environment; readers order what they see by it."},
        "killed": {"type": "boolean", "description": "Latched: everybody gets the control, whatever the weights say."},
        "weight": weight | {"description": "Share of units that the candidate answers, in thousandths of a percent."},
        "shadow_weight": weight
        | {"description": "Share of units whose requests are mirrored to the candidate, on the same scale."},
        "salt": word | {"description": "Goes into the bucket; frozen while weight > 0."},
        "unit": {"type": "string", "description": "What is bucketed: user, tenant, session or request."},
        "control": {"$ref": "#/$defs/variant", "description": "Who answers otherwise, and whenever anything is unclear."},
        "candidate": {"$ref": "#/$defs/variant", "description": "The model under evaluation."},
        "decision_id": {"type": "string", "description": "The decision that wrote this version."},
    }
    lease = {
        "type": ["string", "null"],
        "format": "date-time",
        "anyOf": [{"type": "null"}, {"pattern": _COMMON_DAY + _TIME}, {"pattern": _LEAP_DAY + _TIME}],
        "description": "Until when the weights hold, with a time zone; afterwards the control answers. Absent or null: no end.",
    }
    variant = {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": word | {"description": "The model's name."},
            "params": {"type": "object", "description": "Request parameters that this side adds."},
        },
    }
    snapshot = {
        "type": "object",
        "description": "All flags of one environment at one revision.",
        "required": ["schema", "environment", "revision", "flags"],
        "properties": {
            "schema": {"const": "penstock.flags/v1"},
            "environment": {"type": "string"},
            "revision": {"type": "integer"},
            "flags": {"type": "array", "items": {"$ref": "#/$defs/flag"}},
        },
    }
    about = (
        "One flag of penstock as readers get it. Unknown fields are ignored; vectors.json says what a reader computes from it."
    )
    flag_schema = {
        "type": "object",
        "description": about,
        "required": list(described),
        "properties": {**described, "lease": lease},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:penstock:route-flag.v1",
        "title": "RouteFlag",
        "$ref": "#/$defs/flag",
        "$defs": {"flag": flag_schema, "variant": variant, "snapshot": snapshot},
    }


def files() -> dict[str, str]:
    made = {"route-flag.v1.schema.json": schema(), "vectors.json": vectors()}
    return {name: json.dumps(data, indent=2, ensure_ascii=False) + "\n" for name, data in made.items()}


if __name__ == "__main__":
    for name, content in files().items():
        (FLAGSPEC / name).write_text(content, encoding="utf-8")
