"""Whom a message calls, by people.yaml alone."""

from pathlib import Path
from typing import Any

import pytest

from controller.adapters.slack import mentions
from controller.core.notice import Level, Notice
from controller.core.people import People
from controller.people import read_people

PEOPLE = """\
apiVersion: penstock/v1
kind: People
people:
  - {name: alice, slack: U0ALICE}
  - {name: bob}
  - {name: carol, slack: U0CAROL}
groups:
  - {name: release-managers, roles: [release-manager], members: [alice], slack: S0RELEASE}
  - {name: oncall, roles: [sre-oncall, viewer], members: [bob, carol]}
  - {name: lookers, roles: [viewer], members: [alice, bob]}
"""


@pytest.fixture
def people(tmp_path: Path) -> People:
    path = tmp_path / "people.yaml"
    path.write_text(PEOPLE)
    return read_people(path)


def notice(**changed: Any) -> Notice:
    values: dict[str, Any] = {"title": "chat", "text": "t", "standing": "s", "phases": ("a 5%",), "phase": 0}
    return Notice(**{"rollout_id": "chat-1", "seq": 1, "level": Level.ALARM, **values, **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"on_call": True}, "<@U0CAROL>"),
        ({"asks": ("release-managers",)}, "<!subteam^S0RELEASE>"),
        ({"asks": ("release-managers", "lookers")}, "<!subteam^S0RELEASE> <@U0ALICE>"),
        ({"asks": ("strangers", "<!channel>")}, ""),
    ],
)
def test_on_call_is_a_role_and_those_who_are_asked_are_groups(people: People, changed: dict[str, Any], said: str) -> None:
    assert mentions(notice(**changed), people) == said
