"""people.yaml: every problem at its place; who may do what, by name, token and Slack id."""

from datetime import UTC, datetime
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

from controller.core.people import RIGHTS, NotAllowed, People, Right, Role, claimed, require
from controller.people import SCHEMA_FILE, PeopleFile, PeopleSpec, new_token, schema_text
from specfile import SpecError, parse_text

NOW = datetime(2026, 11, 26, 8, 0, tzinfo=UTC)
SECRET, HASH = new_token()
NARROW, NARROW_HASH = new_token()
OLD, OLD_HASH = new_token()
GOOD = f"""\
apiVersion: penstock/v1
kind: People
slack: {{workspaces: [T0123ABCD]}}
people:
  - name: dana
    email: dana@example.com
    slack: U0123ABCD
    tokens:
      - {{id: laptop, hash: "{HASH}"}}
      - {{id: dashboard, hash: "{NARROW_HASH}", roles: [viewer]}}
      - {{id: old, hash: "{OLD_HASH}", expires: 2026-11-25}}
  - {{name: sam, slack: U0SAM}}
  - {{name: amy}}
groups:
  - {{name: release-managers, roles: [release-manager], members: [dana], slack: S0MANAGERS}}
  - {{name: oncall, roles: [sre-oncall], members: [sam]}}
  - {{name: audit, roles: [auditor], members: [amy]}}
"""


def people(text: str = GOOD) -> People:
    return parse_text(PeopleSpec, text, "people.yaml").to_people()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("name: sam", "name: Dana", "people.yaml:12:12: people.1.name: another person is called 'dana'"),
        ("U0SAM", "U0123ABCD", "people.yaml:12:24: people.1.slack: another person is the Slack user 'U0123ABCD'"),
        ("name: amy", "name: guard", "people.yaml:13:12: people.2.name: 'guard' is how the controller signs its own decisions"),
        ("members: [sam]", "members: [sam, bob]", "people.yaml:16:56: groups.1.members.1: 'bob' is not under people"),
        (HASH, NARROW_HASH, "people.yaml:10:31: people.0.tokens.1.hash: another token has this hash"),
        ("id: old", "id: laptop", "people.yaml:11:14: people.0.tokens.2.id: this person has another token of this id"),
        ("[auditor]", "[boss]", "people.yaml:17:27: groups.2.roles.0: 'boss' should be 'viewer', 'auditor', 'release-manager' or 'sre-oncall'"),
        ("email:", "e-mail:", "people.yaml:6:5: people.0.e-mail: unknown key (did you mean 'email'?)"),
        ("name: amy", "name: amy, login: sam", "people.yaml:13:24: people.2.login: another person logs in as 'sam'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_line_and_column(old: str, new: str, line: str) -> None:
    text = GOOD.replace(old, new, 1)
    with pytest.raises(SpecError) as refused:
        people(text)
    assert line in str(refused.value).splitlines()


def test_the_groups_of_a_person_and_their_rights_come_from_the_file() -> None:
    dana = people().called("dana")
    assert dana.groups == ("release-managers",) and dana.rights == RIGHTS[Role.RELEASE_MANAGER]
    with pytest.raises(NotAllowed, match="'eve' is not among the people"):
        people().called("eve")


def test_a_token_stands_for_its_person_no_further_than_its_roles_and_no_longer_than_it_lasts() -> None:
    everybody = people()
    full, narrow = everybody.with_token(SECRET, NOW), everybody.with_token(NARROW, NOW)
    assert full is not None and full.name == "dana" and Right.START in full.rights
    assert narrow is not None and narrow.name == "dana" and narrow.rights == {Right.READ}
    assert everybody.with_token(OLD, NOW) is None
    assert everybody.with_token(OLD, datetime(2026, 11, 25, 23, 59, tzinfo=UTC)) is not None
    assert everybody.with_token("pst_guess", NOW) is None
    assert everybody.with_token("", NOW) is None


def test_clicks_count_from_known_workspaces_and_people_and_usergroups_bring_their_roles() -> None:
    everybody = people()
    assert everybody.in_slack("T0123ABCD", "U0SAM").groups == ("oncall",)
    assert everybody.in_slack("T0123ABCD", "U0SAM", {"S0MANAGERS"}).groups == ("release-managers", "oncall")
    with pytest.raises(NotAllowed, match="workspace 'T0EVIL'"):
        everybody.in_slack("T0EVIL", "U0SAM")
    for stranger in ("U0NOBODY", ""):
        with pytest.raises(NotAllowed, match="is not among the people"):
            everybody.in_slack("T0123ABCD", stranger, {"S0MANAGERS"})


def test_a_missing_right_is_refused_with_the_roles_that_have_it() -> None:
    with pytest.raises(
        NotAllowed, match=r"amy is in audit and may not roll back; that takes the role release-manager or sre-oncall"
    ):
        require(people().called("amy"), Right.ROLL_BACK)
    require(claimed("anybody"), Right.OVERRIDE)


def test_every_right_belongs_to_some_role_and_nobody_both_starts_and_breaks_the_glass() -> None:
    assert frozenset().union(*RIGHTS.values()) == frozenset(Right)
    assert not any({Right.START, Right.OVERRIDE} <= rights for rights in RIGHTS.values())


def test_a_token_that_is_taken_out_of_the_file_counts_no_more_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "people.yaml"
    path.write_text(GOOD)
    file = PeopleFile(path)
    assert file.people().with_token(SECRET, NOW) is not None
    path.write_text("kind: [")
    assert file.people().with_token(SECRET, NOW) is not None
    path.write_text(GOOD.replace(f'      - {{id: laptop, hash: "{HASH}"}}\n', ""))
    assert file.people().with_token(SECRET, NOW) is None


def test_the_schema_is_current_and_accepts_what_the_reader_accepts() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run: python -m controller.people"
    import json

    checker = jsonschema.Draft202012Validator(json.loads(schema_text()))
    plain = YAML(typ="safe", pure=True).load(GOOD)
    plain["people"][0]["tokens"][2]["expires"] = "2026-11-25"
    checker.validate(plain)
    with pytest.raises(jsonschema.ValidationError):
        checker.validate(plain | {"groups": [{"name": "x", "roles": ["boss"]}]})


def test_no_text_of_a_token_shows_its_hash() -> None:
    assert HASH.removeprefix("sha256:") not in repr(people())
