"""
How the command line prints: a table for people, JSON or CSV for programs.

Its one rule: what goes to stdout is the answer and nothing else; colours only where a terminal reads them.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

_SECONDS = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+(?=Z$)")
"""Times in tables are read by people, to the second; JSON keeps the microseconds."""

Format = Literal["table", "json", "jsonl", "csv"]
Output = Annotated[
    Format,
    Parameter(
        name=["--output", "-o"],
        help="table for people; json or jsonl for programs, one object a line; csv with a header, nested values as JSON",
    ),
]


class _Console(Console):
    """Leaves it to `controller.cli.app` how a command ends whose reader has left; rich would end the process with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


# Into a file or a pipe there is no width to fit into; 80 columns would fold every table.
console = _Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on one line."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_object(data: Mapping[str, Any], output: Format) -> None:
    """One object for programs: one line of JSON, or a header and one row of CSV."""
    if output == "csv":
        _print_csv([data], tuple(data))
    else:
        print_json(data)


def print_rows(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], output: Format, *, title: str | None = None, header: bool = True
) -> None:
    """
    Rows as a table, as one JSON object a line, or as CSV with all that they hold, `columns` first.

    Args:
        header: False for what goes on where CSV was begun before.
    """
    if output == "csv":
        _print_csv(list(rows), columns, header=header)
        return
    if output != "table":
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
        # Text and no markup: what stands in brackets is somebody's words.
        table.add_row(*(Text(_text(row.get(c))) for c in columns))
    console.print(table)


def _print_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, header: bool = True) -> None:
    keys = [*columns, *dict.fromkeys(key for row in rows for key in row if key not in columns)]
    out = csv.writer(sys.stdout)
    if header:
        out.writerow(keys)
    out.writerows([_cell(row.get(key)) for key in keys] for row in rows)
    sys.stdout.flush()


def _cell(value: Any) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, bool | dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value if isinstance(value, int | float) else str(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return _SECONDS.sub(r"\1", value) if isinstance(value, str) else str(value)
