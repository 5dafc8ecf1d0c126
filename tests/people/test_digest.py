"""The daily digest: what it tells, when, and that it comes once."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.adapters.memory import MemoryAudit, MemoryFlags, MemoryMetrics
from controller.codec import plan_digest
from controller.commands import start
from controller.core.decision import Why
from controller.core.notice import Level
from controller.core.rollout import Baking, Paused, Promoted, Rollout
from controller.digest import DIGEST_AT, announce_due, digest, due
from controller.ports import Ports
from tests.core.test_decide import PLAN, rollout, waiting, with_approval

NINE = datetime(2026, 5, 5, 7, 0, tzinfo=UTC)
"""09:00 in Berlin."""


def asked(name: str = "chat", at: str = "09:00 Europe/Berlin", channel: str = "#llm", **changes: object) -> Rollout:
    plan = replace(PLAN, name=name, slack_channel=channel, kept={DIGEST_AT: at})
    return replace(rollout(plan=plan), id=f"{name}-1", **changes)  # type: ignore[arg-type]


def test_what_needs_people_comes_first_and_what_has_ended_last() -> None:
    since = NINE - timedelta(hours=3)
    paused = Paused(settled=Baking(phase=0, since=since), why=Why.DRIFT, text="", since=since)
    told = digest(
        [
            replace(asked("ended"), state=Promoted(at=NINE - timedelta(hours=1))),
            replace(asked("baking"), state=Baking(phase=1, since=since), exposure=1234.0, troubled=1),
            replace(asked("asking"), plan=replace(with_approval(), name="asking"), state=waiting()),
            replace(asked("paused"), state=paused),
        ],
        NINE,
        "#llm",
    )
    assert told.standing == "1 needs a look, 1 waits for approval, 1 under way, 1 ended"
    assert told.text.splitlines() == [
        "",
        "• paused (old to new): paused in canary at 5%, for 3 h",
        "• asking (old to new): canary at 5%, waiting for approval of half, for 22 h",
        "• baking (old to new): half at 50%, for 3 h, 1,234 requests exposed, 1 gate check without usable evidence",
        "• ended (old to new): promoted, 100%, Tue 06:00 UTC",
    ]
    assert (told.level, told.phases, told.channel) == (Level.INFO, (), "#llm")


def test_several_are_counted_in_the_plural() -> None:
    asking = [replace(asked(f"r{i}"), plan=replace(with_approval(), name=f"r{i}"), state=waiting()) for i in range(2)]
    assert digest(asking, NINE).standing == "2 wait for approval"


def test_a_long_list_is_cut_and_says_so() -> None:
    told = digest([asked(f"r{i}") for i in range(40)], NINE)
    assert told.text.splitlines()[-1] == "and 15 more" and "r24 " in told.text and "r25 " not in told.text


@pytest.mark.parametrize(
    ("now", "count"),
    [(NINE - timedelta(minutes=1), 0), (NINE, 1), (NINE + timedelta(hours=5), 1), (NINE + timedelta(hours=7), 0)],
)
def test_it_is_due_at_its_time_and_a_while_later(now: datetime, count: int) -> None:
    assert len(due([asked()], now)) == count


def test_each_channel_and_time_has_its_own() -> None:
    found = due([asked("a"), asked("b"), asked("c", channel="#other"), asked("d", at="08:00 Europe/Berlin")], NINE)
    assert [(n.channel, n.rollout_id) for n in found] == [
        ("#llm", "digest:#llm:2026-05-05T06:00Z"),
        ("#llm", "digest:#llm:2026-05-05T07:00Z"),
        ("#other", "digest:#other:2026-05-05T07:00Z"),
    ]


def test_the_day_is_that_of_the_plans_own_clock() -> None:
    [told] = due([asked(at="08:00 Asia/Tokyo")], datetime(2026, 5, 4, 23, 5, tzinfo=UTC))
    assert told.title == "Daily digest, Tue 05 May 2026"


def test_who_asks_for_none_who_began_later_and_who_ended_long_ago_is_left_out() -> None:
    long_ago = Promoted(at=NINE - timedelta(hours=25))
    assert due([rollout(), asked(opened_at=NINE + timedelta(minutes=1)), asked(state=long_ago), asked(at="whenever")], NINE) == []


def test_however_often_it_is_called_a_day_has_one() -> None:
    now = NINE - timedelta(hours=1)
    audit = MemoryAudit(clock=lambda: now)
    ports = Ports(audit=audit, index=audit, flags=MemoryFlags(clock=lambda: now), metrics=MemoryMetrics())
    plan = asked().plan
    start(plan, plan_digest(plan), ports, actor="rita", key="k")
    for minutes in (60, 75, 90, 24 * 60 + 60):
        now = NINE + timedelta(minutes=minutes - 60)
        announce_due(ports, audit)
    digests = [x.notice.rollout_id for x in audit.letters if x.notice.rollout_id.startswith("digest:")]
    assert digests == ["digest:#llm:2026-05-05T07:00Z", "digest:#llm:2026-05-06T07:00Z"]
