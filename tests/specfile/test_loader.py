"""YAML with every problem at its line and column."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, model_validator

from specfile import Duration, Inconsistent, SpecError, load, parse, parse_text


class Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    bake: Duration | None = None


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: list[Step]
    named: dict[str, Step] = {}

    @model_validator(mode="after")
    def _unique(self) -> "Plan":
        names = [s.name for s in self.steps]
        twice = [(("steps", i, "name"), f"{n!r} appears twice") for i, n in enumerate(names) if n in names[:i]]
        if twice:
            raise Inconsistent(twice)
        return self


def said(text: str) -> list[str]:
    with pytest.raises(SpecError) as refused:
        parse_text(Plan, text, "f.yaml")
    return str(refused.value).splitlines()


def test_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("\ufeffsteps:\n  - &a {name: x, bake: 5m}\nnamed: {y: {<<: *a, name: y}}\n")
    plan = parse(Plan, path)
    assert [s.name for s in plan.steps] == ["x"]
    assert plan.named["y"].bake == plan.steps[0].bake


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "steps:\n  - {name: x, bake: 30 parsecs}\n",
            "f.yaml:2:21: steps.0.bake: '30 parsecs' is not a duration (write 30s, 15m, 2h)",
        ),
        ("steps:\n  - {name: x, bke: 5m}\n", "f.yaml:2:15: steps.0.bke: unknown key (did you mean 'bake'?)"),
        ("steps: []\nnamed:\n  y: {nme: z}\n", "f.yaml:3:7: named.y.nme: unknown key (did you mean 'name'?)"),
        ("steps: []\nzzz: 1\n", "f.yaml:2:1: zzz: unknown key (known here: named, steps)"),
        ("steps:\n  - bake: 5m\n", "f.yaml:2:5: steps.0.name: this key is required and missing"),
        ("named: {}\n", "f.yaml:1:1: steps: this key is required and missing"),
        ("steps: 3\n", "f.yaml:1:8: steps: 3 should be a valid list"),
        ("steps:\n  - {name: x}\n  - {name: x}\n", "f.yaml:3:12: steps.1.name: 'x' appears twice"),
        ("steps: []\nsteps: []\n", 'f.yaml:2:1: duplicate key "steps": each key may be written once'),
        ("steps: []\n---\nsteps: []\n", "f.yaml:2:1: a second document starts here: write one document in a file"),
        ("", "f.yaml:1:1: the file is empty"),
        ("# only words\n", "f.yaml:1:1: the file is empty"),
        ("- 1\n", "f.yaml:1:1: a mapping of keys to values is needed, got a list"),
        ("just words\n", "f.yaml:1:1: a mapping of keys to values is needed, got text"),
        ("1: x\n", "f.yaml:1:1: 1: the key 1 is a number; write it as text in quotes"),
        ("steps: !!python/object:os.system x\n", "f.yaml:1:8: steps: a tag that is not known here: TaggedScalar"),
        ("a\x00: 1\n", "f.yaml:1:2: not YAML: special characters are not allowed"),
    ],
)
def test_says_what_is_wrong_and_where(text: str, line: str) -> None:
    assert line in said(text)


def test_says_all_problems_at_once_in_the_order_of_the_file() -> None:
    lines = said("steps:\n  - {bake: 1}\n  - {name: 3}\nother: 1\n")
    assert [line.split(": ")[0] for line in lines] == ["f.yaml:2:5", "f.yaml:2:12", "f.yaml:3:12", "f.yaml:4:1"]


def test_broken_yaml_is_shown_where_it_breaks() -> None:
    assert said("steps: [\n  - x: }\n")[0].startswith("f.yaml:2:")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"steps: []\nname: caf\xe9\n")
    for path, problem in (
        (latin, ":2:10: not UTF-8: byte 0xe9"),
        (tmp_path / "none", ": no such file"),
        (tmp_path, ": cannot be read"),
    ):
        with pytest.raises(SpecError) as refused:
            parse(Plan, path)
        assert str(refused.value).startswith(f"{path}{problem}")


def test_aliases_cannot_unfold_without_end() -> None:
    doubling = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
    )
    with pytest.raises(SpecError, match="aliases unfold to more than"):
        load(doubling, name="bomb.yaml")


def test_nesting_cannot_exhaust_the_stack() -> None:
    with pytest.raises(SpecError, match="nested too deeply"):
        load("[" * 500, name="deep.yaml")
