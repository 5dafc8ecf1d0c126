"""
How the command line prints: a table for people, JSON for programs.

Its one rule: what goes to stdout is the answer and nothing else; colours only where a terminal reads them.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

_SECONDS = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+(?=Z$)")
"""Times in tables are read by people, to the second; JSON keeps the microseconds."""

Format = Literal["table", "json"]
Output = Annotated[Format, Parameter(name=["--output", "-o"], help="table for people, json for programs")]

# Into a file or a pipe there is no width to fit into; 80 columns would fold every table.
console = Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on one line."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], output: Format, *, title: str | None = None) -> None:
    """Rows as a table, or as one JSON object a line."""
    if output == "json":
        for row in rows:
            print_json(row)
        return
    table = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in columns:
        # Ids and names are copied by hand: they stay on one line.
        table.add_column(
            column.replace("_", " "), overflow="fold", no_wrap=column in ("rollout_id", "gate", "key", "opened_at", "at")
        )
    for row in rows:
        table.add_row(*(_text(row.get(c)) for c in columns))
    console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return _SECONDS.sub(r"\1", value) if isinstance(value, str) else str(value)
