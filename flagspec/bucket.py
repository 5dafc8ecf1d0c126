"""
The bucket rule: the same unit lands in the same bucket in every process, language and release.

Its one rule: the rule never changes. A change would move users between models in the middle of a rollout.
"""

from hashlib import sha256

WEIGHT_MAX = 100_000
"""A weight of 100 %: weights count thousandths of a percent."""

SHADOW_SUFFIX = "/shadow"
"""Appended to the salt for mirrored traffic, so that who is mirrored says nothing about who is exposed."""


def bucket(salt: str, unit: str) -> int:
    """
    Where a unit falls on the scale that weights are measured on.

    Args:
        salt: The flag's salt; flags with different salts split the same units independently.
        unit: What is bucketed: a user, tenant, session or request id. Compared byte for byte as UTF-8.

    Returns:
        0..99999, uniform over units: the first 32 bits of SHA-256, big-endian, scaled down.
    """
    digest = sha256(f"{salt}:{unit}".encode()).digest()
    return int.from_bytes(digest[:4], "big") * WEIGHT_MAX >> 32


def in_share(salt: str, unit: str, weight: int) -> bool:
    """
    Whether a unit belongs to the first `weight` thousandths of a percent.

    0 holds nobody and 100000 everybody, exactly; raising the weight never takes out a unit that was in.
    """
    return bucket(salt, unit) < weight
