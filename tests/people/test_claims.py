"""Doors that ask for no proof: what a people file changes there, and what it never stands in the way of."""

from pathlib import Path

import pytest

from controller.core.people import NotAllowed, Right
from controller.settings import Settings
from controller.wiring import caller_of
from specfile import SpecError
from tests.people.test_people_file import GOOD


def test_without_a_file_a_name_is_a_claim_and_may_do_everything(tmp_path: Path) -> None:
    caller = caller_of(Settings(home=tmp_path), "eve", ("managers",))
    assert (caller.groups, caller.claimed, caller.rights) == (("managers",), True, frozenset(Right))


def test_with_a_file_claimed_groups_count_for_nothing(tmp_path: Path) -> None:
    (path := tmp_path / "people.yaml").write_text(GOOD)
    caller = caller_of(Settings(home=tmp_path, people_file=path), "sam", ("release-managers",))
    assert (caller.groups, caller.claimed) == (("oncall",), False)


@pytest.mark.parametrize(("text", "error"), [(GOOD, NotAllowed), ("kind: [", SpecError), (None, SpecError)])
def test_a_stranger_or_a_broken_file_stops_what_raises_and_never_what_lowers(
    tmp_path: Path, text: str | None, error: type[Exception]
) -> None:
    path = tmp_path / "people.yaml"
    if text is not None:
        path.write_text(text)
    settings = Settings(home=tmp_path, people_file=path)
    with pytest.raises(error):
        caller_of(settings, "eve")
    assert Right.ROLL_BACK in caller_of(settings, "eve", lowering=True).rights
