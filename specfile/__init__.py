"""
Reading the files that people write: YAML to pydantic models, with every problem at its line and column.

Both planes read their files through this package; it knows nothing of either.
"""

from specfile.loader import Inconsistent, Loc, Located, Problem, SpecError, load, parse, parse_text
from specfile.units import (
    FROM_FILE,
    Duration,
    Increase,
    Money,
    PositiveDuration,
    Ratio,
    format_duration,
    format_ratio,
    parse_duration,
    parse_increase,
    parse_ratio,
)

__all__ = [
    "FROM_FILE",
    "Duration",
    "Inconsistent",
    "Increase",
    "Loc",
    "Located",
    "Money",
    "PositiveDuration",
    "Problem",
    "Ratio",
    "SpecError",
    "format_duration",
    "format_ratio",
    "load",
    "parse",
    "parse_duration",
    "parse_increase",
    "parse_ratio",
    "parse_text",
]
