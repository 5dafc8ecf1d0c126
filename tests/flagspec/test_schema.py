"""The JSON Schema says the same as the codec: what one emits the other accepts, what one refuses the other refuses."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from flagspec import FlagSpecError, RouteFlag, Snapshot, Variant, flag_from_json, flag_to_json
from tests.flagspec.generate import FLAGSPEC, files, flag

SCHEMA = json.loads((FLAGSPEC / "route-flag.v1.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
SNAPSHOT = Draft202012Validator({**SCHEMA, "$ref": "#/$defs/snapshot"})

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
variants = st.builds(Variant, model=words, params=st.dictionaries(words, json_values, max_size=2))
flags = st.builds(
    RouteFlag,
    environment=words,
    key=words,
    version=st.integers(0, 2**53),
    revision=st.integers(0, 2**53),
    control=variants,
    candidate=variants,
    salt=words,
    unit=words,
    killed=st.booleans(),
    weight=st.integers(0, 100_000),
    shadow_weight=st.integers(0, 100_000),
    decision_id=st.text(max_size=8),
    lease=st.none() | st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - bounds of the strategy are naive
)


def test_the_files_are_what_the_generator_writes() -> None:
    assert {name: (FLAGSPEC / name).read_text(encoding="utf-8") for name in files()} == files()


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@given(flags)
def test_every_flag_that_is_sent_fits_the_schema_and_comes_back(sent: RouteFlag) -> None:
    data = json.loads(json.dumps(flag_to_json(sent)))
    VALIDATOR.validate(data)
    assert flag_from_json(data) == sent


@given(st.lists(flags, max_size=3))
def test_every_snapshot_fits_the_schema_and_comes_back(members: list[RouteFlag]) -> None:
    sent = Snapshot(environment="production", revision=4, flags=tuple(members))
    data = json.loads(json.dumps(sent.to_json()))
    SNAPSHOT.validate(data)
    assert Snapshot.from_json(data) == sent


PATHS = [(name,) for name in flag()] + [("control", "model"), ("candidate", "params"), ("something", "new")]


def edited(path: tuple[str, ...], value: Any, remove: bool) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(flag()))
    inner = data
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    if remove:
        inner.pop(path[-1], None)
    else:
        inner[path[-1]] = value
    return data


@given(path=st.sampled_from(PATHS), value=json_values, remove=st.booleans())
@example(path=("weight",), value=100_001, remove=False)
@example(path=("weight",), value=-1, remove=False)
@example(path=("weight",), value=True, remove=False)
@example(path=("version",), value=-1, remove=False)
@example(path=("killed",), value=0, remove=False)
@example(path=("salt",), value="", remove=False)
@example(path=("lease",), value="2026-02-30T00:00:00Z", remove=False)
@example(path=("lease",), value="2026-02-29T00:00:00Z", remove=False)
@example(path=("lease",), value="2026-03-01T24:01:00Z", remove=False)
@example(path=("lease",), value="2026-03-01T12:00:00", remove=False)
@example(path=("lease",), value="2026-03-01", remove=False)
@example(path=("lease",), value=1_767_225_600, remove=False)
@example(path=("control",), value="gpt-4.1", remove=False)
@example(path=("control",), value={"model": ""}, remove=False)
@example(path=("candidate", "params"), value=None, remove=False)
def test_what_the_codec_refuses_the_schema_refuses(path: tuple[str, ...], value: Any, remove: bool) -> None:
    data = edited(path, value, remove)
    try:
        flag_from_json(data)
    except FlagSpecError:
        # JSON Schema knows no difference between 1.0 and 1; the codec reads only the latter as a whole number.
        whole = isinstance(value, float) and value.is_integer() and path[-1] in ("weight", "shadow_weight", "version", "revision")
        assert whole or not VALIDATOR.is_valid(data)
    else:
        # The schema may be stricter in one thing: it wants a lease as RFC 3339 writes it.
        assert VALIDATOR.is_valid(data) or path == ("lease",)


@pytest.mark.parametrize("missing", sorted(set(flag()) - {"lease"}))
def test_a_missing_field_is_refused_by_both_and_named(missing: str) -> None:
    data = edited((missing,), None, remove=True)
    assert not VALIDATOR.is_valid(data)
    with pytest.raises(FlagSpecError, match=missing):
        flag_from_json(data)


def test_a_newer_store_may_add_fields() -> None:
    data = {**flag(), "something": {"new": 1}}
    assert VALIDATOR.is_valid(data)
    assert flag_from_json(data) == flag_from_json(flag())


@pytest.mark.parametrize("lease", ["2026-03-01T12:00:00+00:00", "2028-02-29T23:59:59.123456-05:30", "2026-12-31T00:00:00Z"])
def test_a_lease_with_a_zone_is_accepted_by_both(lease: str) -> None:
    assert VALIDATOR.is_valid({**flag(), "lease": lease})
    assert flag_from_json({**flag(), "lease": lease}).lease == datetime.fromisoformat(lease)
