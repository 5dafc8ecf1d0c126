"""
The documentation keeps up with the code: links resolve, and the reference names every command, variable and field.

What a sentence says is not checked here; that a thing has no sentence at all is.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from controller import settings
from controller.cli.app import app
from controller.cli.flags import flags
from controller.core.decision import Why
from controller.core.people import RIGHTS, Right, Role
from controller.core.rollout import Abandoned, Applied, Approved, Decided, Opened, Overridden, Rejected
from controller.people import PeopleSpec
from controller.spec import RolloutSpec, read
from router.config import RouterConfig, read_config
from specfile import parse_text

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Targets inside the repository, without their anchors."""
    found = _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    return [target.partition("#")[0] for target in found if not re.match(r"[a-z]+:|#", target)]


def words(page: str) -> set[str]:
    """What stands in backticks on a reference page."""
    return set(re.findall(r"`([^`\n]+)`", (REFERENCE / page).read_text(encoding="utf-8")))


def variables() -> list[str]:
    """The first column of the table in the docstring of `controller.settings`."""
    return re.findall(r"^\| ([A-Z][A-Z_]+) \|", settings.__doc__ or "", re.MULTILINE)


def commands(of: Any, prefix: str) -> Iterator[str]:
    for name in of:
        if not name.startswith("-"):
            yield f"{prefix} {name}"


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each value that a file can hold, without the indexes of lists."""
    for name, info in model.model_fields.items():
        here = (*path, info.alias or name)
        inner = list(models(info.annotation))
        if not inner:
            yield here
        for part in inner:
            yield from fields(part, here)


def sections(page: str) -> dict[str, set[str]]:
    """Heading to what stands in backticks in the first cells of the section's table."""
    parts = re.split(r"^## (.+)$", (REFERENCE / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    cells = {title: re.findall(r"^\|([^|]+)\|", text, re.MULTILINE) for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    return {title: {word for cell in found for word in re.findall(r"`([^`]+)`", cell)} for title, found in cells.items()}


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from models(get_args(annotation)[0])
    else:
        for part in get_args(annotation):
            yield from models(part)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    missing = [t for t in links(page) if not (page.parent / t).resolve().exists()]
    assert missing == []


def test_every_page_can_be_reached_from_the_index() -> None:
    seen: set[Path] = set()
    waiting = [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            waiting += [to for t in links(page) if (to := (page.parent / t).resolve()).suffix == ".md" and to.exists()]
    assert set(DOCS.rglob("*.md")) - seen == set()


def test_every_environment_variable_of_the_settings_is_in_the_reference() -> None:
    assert len(variables()) >= 12
    assert set(variables()) - words("settings.md") == set()


def test_every_command_is_in_the_reference() -> None:
    named = [*commands(app, "penstock"), *commands(flags, "penstock flags")]
    assert "penstock start" in named and "penstock flags kill" in named
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert [c for c in named if c != "penstock flags" and not re.search(rf"`{re.escape(c)}[ `]", text)] == []


def undescribed(model: type[BaseModel], page: str) -> list[str]:
    """The fields that a reference page leaves out of their section."""
    found, described = list(fields(model)), sections(page)
    assert len(found) > 20
    missing = []
    for top, *rest in found:
        # `slos` has a section of its own; `metadata` has not, and stands at the top level with its whole path.
        section, name = (top, ".".join(rest)) if rest and top in described else ("Top level", ".".join((top, *rest)))
        if name not in described[section]:
            missing.append(f"{section}: {name}")
    return missing


@pytest.mark.parametrize(("model", "page"), [(RolloutSpec, "rollout-yaml.md"), (RouterConfig, "router-yaml.md")])
def test_every_field_of_a_file_is_in_its_section_of_the_reference(model: type[BaseModel], page: str) -> None:
    assert undescribed(model, page) == []


def test_every_field_of_a_people_file_is_in_its_section_of_the_reference() -> None:
    described = sections("people-yaml.md")
    missing = []
    for top, *rest in fields(PeopleSpec):
        section, name = (top, ".".join(rest)) if rest and top in described else ("Top level", ".".join((top, *rest)))
        if name not in described[section]:
            missing.append(f"{section}: {name}")
    assert missing == []


def test_the_table_of_roles_is_the_one_in_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", (REFERENCE / "people-yaml.md").read_text(encoding="utf-8"), re.MULTILINE)
    cells = {right: [c.strip() == "yes" for c in rest.split("|")] for right, rest in rows if right in set(Right)}
    assert cells == {right.value: [right in RIGHTS[role] for role in Role] for right in Right}


def test_the_example_of_a_people_file_can_be_used() -> None:
    text = (REFERENCE / "people-yaml.md").read_text(encoding="utf-8")
    example = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    assert parse_text(PeopleSpec, example).to_people().called("dana").groups == ("release-managers",)


def test_every_reason_and_every_event_is_in_the_reference() -> None:
    events = (Opened, Decided, Applied, Abandoned, Approved, Rejected, Overridden)
    kinds = {event.__dataclass_fields__["kind"].default for event in events}
    assert (kinds | {why.value for why in Why}) - words("events-and-decisions.md") == set()


@pytest.mark.parametrize("name", ["rollout.yaml", "tutorial/rollout.yaml"])
def test_the_example_rollouts_can_run(name: str) -> None:
    assert read(DOCS / "examples" / name).to_plan().phases[-1].live_weight == 100_000


@pytest.mark.parametrize("name", ["router.yaml", "tutorial/router.yaml"])
def test_the_example_routers_can_run(name: str) -> None:
    assert [route.flag for route in read_config(DOCS / "examples" / name).routes] == ["chat-model"]
