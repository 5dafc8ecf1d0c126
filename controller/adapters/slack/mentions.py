"""
Whom a message calls: the usergroup of whoever is on call, or of the groups that are asked.

It stands between a notice and people.yaml. Its one rule: only ids that the people file holds are ever mentioned, never a text.
"""

from collections.abc import Iterator

from controller.core.notice import Notice
from controller.core.people import Group, People, Role

MENTIONS_MAX = 20
"""More people than that are not called one by one: a usergroup is made for that."""


def mentions(notice: Notice, people: People) -> str:
    """
    Args:
        notice: Whose `on_call` and `asks` say who is meant.
        people: Which usergroups and Slack users that is.

    Returns:
        Slack's markup (``<!subteam^S0123ABCD> <@U0123ABCD>``); "" where nobody is meant, or nobody has an id.
    """
    groups = [g for g in people.groups if (notice.on_call and Role.SRE_ONCALL in g.roles) or g.name in notice.asks]
    return " ".join(dict.fromkeys(mention for group in groups for mention in _of(group, people)))


def _of(group: Group, people: People) -> Iterator[str]:
    if group.slack:
        yield f"<!subteam^{group.slack}>"
        return
    users = [p.slack for p in people.people if p.slack and p.name in group.members]
    yield from (f"<@{user}>" for user in users[:MENTIONS_MAX])
