"""
How the command line prints: a table for people, JSON for programs.

Its one rule: what goes to stdout is the answer and nothing else; colours only where a terminal reads them.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

Format = Literal["table", "json"]
Output = Annotated[Format, Parameter(name=["--output", "-o"], help="table for people, json for programs")]

console = Console(highlight=False, soft_wrap=False)
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
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(c)) for c in columns))
    console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
