"""
YAML text to a validated model; on failure, one line for each problem with its place in the file.

    router.yaml:12:7: models.0.timeout.request: '30 parsecs' is not a duration (write 30s, 15m, 2h)

Its one rule: a file is accepted whole or refused with all its problems at once; nothing is guessed, dropped or taken twice.

    SpecError
     +-- problems     each a Problem(line, column, path, text); str() is one line for each
    Inconsistent      raised inside a model's validator: problems between fields, each at its own place
"""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from specfile.units import FROM_FILE

Loc = tuple[str | int, ...]
"""Where a value stands: the keys and indexes that lead to it."""

M = TypeVar("M", bound=BaseModel)

NODES_MAX = 100_000
"""Aliases can make a small file unfold into billions of values; nobody writes this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """
    One thing that is wrong.

    Args:
        text: What is wrong and, where it is known, what to write instead.
        path: Keys and indexes joined by dots, "" for the file itself.
        line: 1-based; None when the file could not be read.
        column: 1-based; None when the file could not be read.
    """

    text: str
    path: str = ""
    line: int | None = None
    column: int | None = None

    def within(self, name: str) -> str:
        place = name if self.line is None else f"{name}:{self.line}:{self.column}"
        return f"{place}: {self.path}: {self.text}" if self.path else f"{place}: {self.text}"


class SpecError(ValueError):
    """A file that cannot be used. The text is one line for each problem."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(p.within(name) for p in problems))
        self.name = name
        self.problems = tuple(problems)


class Inconsistent(ValueError):
    """
    Fields that contradict each other; raise it in a ``model_validator(mode="after")``.

    Args:
        problems: Pairs of place (relative to the model that raises) and text.
    """

    def __init__(self, problems: Iterable[tuple[Loc, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{_dotted(loc)}: {text}" if loc else text for loc, text in self.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """
    Plain data, and where each part of it was written.

    Args:
        name: What messages call the file.
        data: Mappings, lists, strings, numbers, booleans, dates and None.
        values: 0-based (line, column) of each value.
        keys: 0-based (line, column) of each key of a mapping.
    """

    name: str
    data: dict[str, Any]
    values: Mapping[Loc, tuple[int, int]] = field(repr=False)
    keys: Mapping[Loc, tuple[int, int]] = field(repr=False)

    def problem(self, loc: Loc, text: str, *, at_key: bool = False) -> Problem:
        """The problem at a place; a place that does not exist (a missing key) is shown at the nearest one around it."""
        position = self.keys.get(loc) if at_key else None
        around = loc
        while position is None:
            position = self.values.get(around)
            if position is None and not around:
                position = (0, 0)
            around = around[:-1]
        return Problem(text=text, path=_dotted(loc), line=position[0] + 1, column=position[1] + 1)

    def validate(self, model: type[M]) -> M:
        """
        Raises:
            SpecError: the data does not fit the model.
        """
        try:
            return model.model_validate(self.data, context=FROM_FILE)
        except ValidationError as exc:
            found = [p for error in exc.errors(include_url=False) for p in _problems(self, model, error)]
            found.sort(key=lambda p: (p.line or 0, p.column or 0))
            raise SpecError(self.name, found) from exc


def parse(model: type[M], path: Path) -> M:
    """
    Read and validate a file.

    Raises:
        SpecError: the file cannot be read, is not YAML, or does not fit the model.
    """
    return load(path, name=str(path)).validate(model)


def parse_text(model: type[M], text: str, name: str = "<text>") -> M:
    """As `parse`, for text that is already in memory; `name` is what messages call it."""
    return load(text, name=name).validate(model)


def load(path_or_text: Path | str, *, name: str) -> Located:
    """
    Read YAML without judging what it says.

    Args:
        path_or_text: A path to read, or (as str) the text itself.
        name: What messages call the file.

    Raises:
        SpecError: missing or unreadable file, not UTF-8, not YAML, a key twice, several documents, empty, not a mapping.
    """
    text = path_or_text if isinstance(path_or_text, str) else _read(path_or_text, name)
    yaml = YAML(typ="rt", pure=True)
    try:
        raw = yaml.load(text)
    except DuplicateKeyError as exc:
        first = (exc.problem or "").split(" with value")[0].removeprefix("found ")
        raise _refused(name, exc, f"{first}: each key may be written once") from exc
    except MarkedYAMLError as exc:
        if "single document" in (exc.context or ""):
            raise _refused(name, exc, "a second document starts here: write one document in a file") from exc
        parts = [p for p in (exc.context, exc.problem) if p]
        raise _refused(name, exc, f"not YAML: {', '.join(parts)}") from exc
    except ReaderError as exc:
        before = text[: exc.position] if isinstance(exc.position, int) else ""
        place = Problem(text=f"not YAML: {exc.reason}", line=before.count("\n") + 1, column=len(before) - before.rfind("\n"))
        raise SpecError(name, [place]) from exc
    except (YAMLError, ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc).splitlines()[0]
        raise SpecError(name, [Problem(text=f"not YAML: {reason}", line=1, column=1)]) from exc
    if raw is None:
        raise SpecError(name, [Problem(text="the file is empty", line=1, column=1)])
    if not isinstance(raw, CommentedMap):
        raise SpecError(name, [Problem(text=f"a mapping of keys to values is needed, got {_kind(raw)}", line=1, column=1)])
    unfolded = _Unfold(name)
    data = unfolded.plain(raw, (), (raw.lc.line, raw.lc.col))
    return Located(name=name, data=data, values=unfolded.values, keys=unfolded.keys)


def _read(path: Path, name: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = exc.object[: exc.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        text = f"not UTF-8: byte 0x{exc.object[exc.start]:02x}"
        raise SpecError(name, [Problem(text=text, line=line, column=column)]) from exc
    except FileNotFoundError as exc:
        raise SpecError(name, [Problem(text="no such file")]) from exc
    except OSError as exc:
        raise SpecError(name, [Problem(text=f"cannot be read: {exc.strerror or exc}")]) from exc


def _refused(name: str, exc: MarkedYAMLError, text: str) -> SpecError:
    mark = exc.problem_mark or exc.context_mark
    line, column = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
    return SpecError(name, [Problem(text=text, line=line, column=column)])


class _Unfold:
    """ruamel's commented tree to plain data, noting positions on the way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[Loc, tuple[int, int]] = {}
        self.keys: dict[Loc, tuple[int, int]] = {}

    def plain(self, node: Any, loc: Loc, at: tuple[int, int]) -> Any:
        self.values[loc] = at
        if len(self.values) > NODES_MAX:
            raise self._refuse(loc, at, f"aliases unfold to more than {NODES_MAX} values")
        if isinstance(node, CommentedMap):
            mapping: dict[str, Any] = {}
            for key, value in node.items():
                # A merged key (<<) has no place of its own.
                here = tuple(node.lc.key(key)) if key in (node.lc.data or {}) else at
                if not isinstance(key, str):
                    raise self._refuse((*loc, str(key)), here, f"the key {key!r} is {_kind(key)}; write it as text in quotes")
                self.keys[(*loc, key)] = here
                there = tuple(node.lc.value(key)) if key in (node.lc.data or {}) else at
                mapping[str(key)] = self.plain(value, (*loc, str(key)), there)
            return mapping
        if isinstance(node, CommentedSeq):
            return [self.plain(v, (*loc, i), tuple(node.lc.item(i))) for i, v in enumerate(node)]
        if node is None or isinstance(node, bool | date):
            return node
        for kind in (str, int, float):
            if isinstance(node, kind):
                return kind(node)
        raise self._refuse(loc, at, f"a tag that is not known here: {_kind(node)}")

    def _refuse(self, loc: Loc, at: tuple[int, int], text: str) -> SpecError:
        return SpecError(self.name, [Problem(text=text, path=_dotted(loc), line=at[0] + 1, column=at[1] + 1)])


def _problems(located: Located, model: type[BaseModel], error: ErrorDetails) -> Iterator[Problem]:
    """What pydantic found, in our words and at its place."""
    loc = _in_data(located.data, error["loc"])
    cause = error.get("ctx", {}).get("error")
    match error["type"]:
        case "extra_forbidden":
            key = str(loc[-1])
            known = sorted(set(_known_keys(model, loc[:-1])))
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}" if known else "remove it"
            yield located.problem(loc, f"unknown key ({hint})", at_key=True)
        case "missing":
            yield located.problem(loc, "this key is required and missing")
        case "value_error" if isinstance(cause, Inconsistent):
            for inner, text in cause.problems:
                yield located.problem((*loc, *inner), text)
        case "value_error":
            yield located.problem(loc, str(cause) if cause else error["msg"])
        case _:
            message = error["msg"].replace("Input should be", "should be", 1).replace("Assertion failed, ", "")
            yield located.problem(loc, f"{_shown(error['input'])} {message}" if message.startswith("should be") else message)


def _in_data(data: Any, loc: Sequence[str | int]) -> Loc:
    """Drops the parts of a pydantic location that are no keys of the data (tags of unions, names of validators)."""
    kept: list[str | int] = []
    for i, part in enumerate(loc):
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, Mapping) and part in data):
            data = data[part]
        elif not (isinstance(part, str) and i == len(loc) - 1 and isinstance(data, Mapping)):
            continue
        kept.append(part)
    return tuple(kept)


def _known_keys(annotation: Any, loc: Loc) -> Iterator[str]:
    """The names that a model has at a place inside it; those of every member where a union stands."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _known_keys(args[0], loc)
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield from _known_keys(arg, loc)
    elif loc and isinstance(loc[0], int) and args:
        yield from _known_keys(args[0], loc[1:])
    elif loc and origin is not None and len(args) == 2:
        yield from _known_keys(args[1], loc[1:])
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            if not loc:
                yield info.alias or name
            elif loc[0] in (name, info.alias):
                yield from _known_keys(info.annotation, loc[1:])


def _kind(value: Any) -> str:
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number", CommentedSeq: "a list", type(None): "nothing"}
    return next((text for kind, text in names.items() if isinstance(value, kind)), type(value).__name__)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)
