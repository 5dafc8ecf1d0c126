"""
The contract between the control plane and the data plane: what a flag is and whom it sends where.

Both planes import this package and nothing of each other. It uses the standard library only, so that any Python program can
carry it; `route-flag.v1.schema.json` and `vectors.json` beside it say the same to programs in other languages.
"""

from flagspec.bucket import WEIGHT_MAX, bucket, in_share
from flagspec.flag import Assignment, FlagSpecError, RouteFlag, Variant, assign
from flagspec.wire import SNAPSHOT_SCHEMA, Snapshot, flag_from_json, flag_to_json

__all__ = [
    "SNAPSHOT_SCHEMA",
    "WEIGHT_MAX",
    "Assignment",
    "FlagSpecError",
    "RouteFlag",
    "Snapshot",
    "Variant",
    "assign",
    "bucket",
    "flag_from_json",
    "flag_to_json",
    "in_share",
]
