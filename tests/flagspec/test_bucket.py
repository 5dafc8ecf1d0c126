"""The bucket rule, against numbers that any SHA-256 program gives, and against what it promises."""

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flagspec import WEIGHT_MAX, assign, bucket, flag_from_json, in_share
from tests.flagspec.generate import FLAGSPEC

VECTORS: dict[str, Any] = json.loads((FLAGSPEC / "vectors.json").read_text(encoding="utf-8"))

salts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
units = st.text(st.characters(codec="utf-8"), min_size=1, max_size=24)


# printf 'chat-model/r1:user-1' | sha256sum, and so on; then echo $((0x<first 8 digits> * 100000 >> 32))
@pytest.mark.parametrize(
    ("salt", "unit", "expected"),
    [
        ("chat-model/r1", "user-1", 14911),
        ("chat-model/r1", "user-2", 38421),
        ("s", "用户-七", 13552),
        ("s", "👩‍🚀", 9560),
        ("chat-model/r1/shadow", "user-1", 18895),
    ],
)
def test_buckets_computed_with_coreutils(salt: str, unit: str, expected: int) -> None:
    assert bucket(salt, unit) == expected


@pytest.mark.parametrize("vector", VECTORS["buckets"], ids=lambda v: f"{v['salt']}:{v['unit'][:12]}")
def test_bucket_vectors_hold(vector: dict[str, Any]) -> None:
    assert bucket(vector["salt"], vector["unit"]) == vector["bucket"]
    assert int(vector["sha256"][:8], 16) == vector["uint32"]


@pytest.mark.parametrize("vector", VECTORS["assignments"], ids=lambda v: v["why"])
def test_assignment_vectors_hold(vector: dict[str, Any]) -> None:
    said = assign(flag_from_json(vector["flag"]), vector["unit"], datetime.fromisoformat(vector["now"]))
    told = (said.arm, said.variant.model, said.mirror is not None, said.reason)
    assert told == (vector["arm"], vector["model"], vector["mirrored"], vector["reason"])


@given(salts, units)
def test_every_unit_has_a_bucket_on_the_scale(salt: str, unit: str) -> None:
    assert 0 <= bucket(salt, unit) < WEIGHT_MAX


@given(salts, units)
def test_weight_0_holds_nobody_and_100000_everybody(salt: str, unit: str) -> None:
    assert not in_share(salt, unit, 0)
    assert in_share(salt, unit, WEIGHT_MAX)


@given(salts, units, st.integers(0, WEIGHT_MAX), st.integers(0, WEIGHT_MAX))
def test_raising_the_weight_takes_nobody_out(salt: str, unit: str, one: int, other: int) -> None:
    lower, higher = sorted((one, other))
    assert in_share(salt, unit, higher) or not in_share(salt, unit, lower)


def test_spellings_of_a_name_are_different_units() -> None:
    assert bucket("s", "Zo\u00eb") != bucket("s", "Zoe\u0308")


# With fixed input the outcome is fixed: 100,000 units are a sample of SHA-256, and no test of chance here can fail by chance.
UNITS = [f"user-{n}" for n in range(100_000)]


@pytest.mark.parametrize("salt", ["chat-model/r1", "chat-model/r2", "s"])
def test_buckets_are_uniform(salt: str) -> None:
    counts = [0] * 100
    for unit in UNITS:
        counts[bucket(salt, unit) * 100 // WEIGHT_MAX] += 1
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("other", ["chat-model/r2", "chat-model/r1/shadow", "chat-model/r10"])
def test_another_salt_splits_the_same_units_independently(other: str) -> None:
    table = [[0, 0], [0, 0]]
    for unit in UNITS[:20_000]:
        table[in_share("chat-model/r1", unit, 20_000)][in_share(other, unit, 50_000)] += 1
    assert stats.chi2_contingency(table).pvalue > 0.001
