"""
A hundred attempts at once on a real Postgres: double clicks, replays, stale buttons, foreign workspaces, people without the role.

Each leaves one row or none, and an answer in words.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import pytest
from sqlalchemy import Engine

from controller.act import Answer, Ask, Click, act, check_approvers, press, start, switch
from controller.adapters.memory import MemoryMetrics
from controller.adapters.postgres import PostgresAudit, PostgresFlags, app_url, open_engine
from controller.codec import plan_digest
from controller.commands import CommandRefused
from controller.core.people import NotAllowed, Right, claimed
from controller.core.plan import Approval, Mode, Phase, Plan, Policy, RateLimit
from controller.core.question import step_digest
from controller.core.rollout import AwaitingApproval, Baking, Check, Paused, Rollout, replay
from controller.ports import FlagConflict, Ports
from controller.recheck import recheck_all
from controller.tick import tick
from flagspec import Variant
from tests.people.test_people_file import people
from tests.ports.databases import Databases

pytestmark = pytest.mark.services

T = TypeVar("T")
ATTEMPTS = 100
PEOPLE = people()
PLAN = Plan(
    name="chat",
    environment="production",
    flag="chat",
    baseline=Variant(model="old"),
    candidate=Variant(model="new"),
    phases=(
        Phase(name="canary", mode=Mode.LIVE, weight=5_000, bake=timedelta(0), approval=Approval(groups=("oncall", "release-managers"))),
        Phase(name="full", mode=Mode.LIVE, weight=100_000, bake=timedelta(0)),
    ),
    gates=(RateLimit(name="errors", indicator="error_ratio", limit=0.01),),
    policy=Policy(),
)  # fmt: skip


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with Databases() as made:
        yield made


@pytest.fixture
def engines(databases: Databases) -> Iterator[list[Engine]]:
    """Four controllers on one database."""
    url = app_url(databases.migrated())
    made = [open_engine(url) for _ in range(4)]
    yield made
    # Whatever was refused, raced and clicked: each row can be computed again, digests of questions included.
    audit = PostgresAudit(made[0])
    _, differences = recheck_all(audit.known(100), audit)
    for engine in made:
        engine.dispose()
    assert differences == []


@pytest.fixture
def worlds(engines: list[Engine]) -> list[Ports]:
    metrics = MemoryMetrics()
    audits = [PostgresAudit(e) for e in engines]
    return [Ports(audit=a, index=a, flags=PostgresFlags(e), metrics=metrics) for a, e in zip(audits, engines, strict=True)]


@pytest.fixture
def asked(worlds: list[Ports]) -> Rollout:
    """A rollout that dana started and that waits for its first approval."""
    ports = worlds[0]
    opened = start(PLAN, plan_digest(PLAN), PEOPLE.called("dana"), ports, key="k", people=PEOPLE)
    waiting = tick(opened.id, ports, ports.audit.now(), may_raise=True).rollout
    assert isinstance(waiting.state, AwaitingApproval)
    return waiting


def at_once(worlds: list[Ports], work: Callable[[Ports], T]) -> list[T]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(work, (worlds[i % len(worlds)] for i in range(ATTEMPTS))))


def kinds(ports: Ports, rollout_id: str) -> Counter[str]:
    return Counter(e.event.kind for e in ports.audit.entries(rollout_id))


def click(asked: Rollout, verb: str = "approve", **more: object) -> Click:
    seen = Click(team="T0123ABCD", user="U0SAM", verb=verb, rollout_id=asked.id, digest=step_digest(asked), reason="because")
    return replace(seen, **more)  # type: ignore[arg-type]


def refusals(answers: list[Answer]) -> Counter[str]:
    return Counter(a.text for a in answers if not a.done)


@pytest.mark.parametrize(("verb", "row"), [("approve", "approved"), ("override", "overridden")])
def test_a_hundred_clicks_of_one_person_are_one_row_and_a_hundred_yeses(
    worlds: list[Ports], asked: Rollout, verb: str, row: str
) -> None:
    answers = at_once(worlds, lambda ports: press(click(asked, verb, ticket="INC-1", checks=("approval",)), PEOPLE, ports))
    assert [a for a in answers if not a.done] == []
    assert kinds(worlds[0], asked.id)[row] == 1


@pytest.mark.parametrize(
    ("verb", "row"), [("reject", "rejected"), ("pause", "decided"), ("roll_back", "applied"), ("abort", "applied")]
)
def test_a_hundred_noes_are_one_row_and_polite_refusals(worlds: list[Ports], asked: Rollout, verb: str, row: str) -> None:
    before = kinds(worlds[0], asked.id)[row]
    answers = at_once(worlds, lambda ports: press(click(asked, verb), PEOPLE, ports))
    assert kinds(worlds[0], asked.id)[row] == before + 1
    assert sum(a.done for a in answers) >= 1
    assert all(any(w in text for w in ("does not wait", "paused already", "has ended")) for text in refusals(answers))


def test_approve_and_reject_at_once_leave_a_no(worlds: list[Ports], asked: Rollout) -> None:
    verbs = iter(["approve", "reject"] * ATTEMPTS)
    at_once(worlds, lambda ports: press(click(asked, next(verbs)), PEOPLE, ports))
    rows = kinds(worlds[0], asked.id)
    assert rows["rejected"] == 1 and rows["approved"] <= 1
    assert isinstance(replay(worlds[0].audit.entries(asked.id)).state, Paused)


def test_stale_buttons_are_refused_after_the_question_changed(worlds: list[Ports], asked: Rollout) -> None:
    ports = worlds[0]
    sam = PEOPLE.called("sam")
    act(Ask(verb=Right.REJECT, rollout_id=asked.id, reason="not now"), sam, ports)
    act(Ask(verb=Right.RESUME, rollout_id=asked.id, reason="now"), sam, ports)
    again = tick(asked.id, ports, ports.audit.now(), may_raise=True, force=True).rollout
    assert isinstance(again.state, AwaitingApproval) and step_digest(again) != step_digest(asked)
    rows = kinds(ports, asked.id)
    for verb in ("approve", "reject", "override", "promote"):
        stale = at_once(worlds, lambda p, v=verb: press(click(asked, v, ticket="T", checks=("approval",)), PEOPLE, p))  # type: ignore[misc]
        assert not any(a.done for a in stale) and all("another step" in t for t in refusals(stale))
    assert kinds(ports, asked.id) == rows
    assert press(click(again), PEOPLE, ports).done


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"team": "T0EVIL"}, "workspace 'T0EVIL' do not count"),
        ({"user": "U0NOBODY"}, "'U0NOBODY' is not among the people"),
        ({"verb": "approve; drop"}, "is no button of this release"),
        ({"verb": "kill"}, "is no button of this release"),
        ({"rollout_id": "chat-00000000"}, "no rollout 'chat-00000000'"),
        ({"verb": "roll_back", "reason": " "}, "reason: say why"),
        ({"verb": "roll_back", "reason": "x" * 1001}, "got 1001"),
        ({"verb": "override", "checks": ("breach",), "ticket": "T"}, "only approval, freeze, bake can be overridden"),
        ({"verb": "override", "checks": ("bake",)}, "ticket: is needed"),
        ({"user": "U0123ABCD"}, "dana started"),
        ({"user": "U0123ABCD", "verb": "override", "checks": ("approval",), "ticket": "T"}, "dana is in release-managers and may not override"),
    ],
)  # fmt: skip
def test_what_may_not_be_leaves_no_row_however_often_it_comes(
    worlds: list[Ports], asked: Rollout, more: dict[str, object], said: str
) -> None:
    rows = kinds(worlds[0], asked.id)
    answers = at_once(worlds, lambda ports: press(click(asked, **{"verb": "approve", **more}), PEOPLE, ports))
    assert not any(a.done for a in answers)
    assert all(said in text for text in refusals(answers))
    assert kinds(worlds[0], asked.id) == rows


def test_people_without_the_role_are_refused_every_verb(worlds: list[Ports], asked: Rollout) -> None:
    rows, amy = kinds(worlds[0], asked.id), PEOPLE.called("amy")
    for verb in (
        Right.APPROVE,
        Right.REJECT,
        Right.PAUSE,
        Right.RESUME,
        Right.PROMOTE,
        Right.ROLL_BACK,
        Right.ABORT,
        Right.OVERRIDE,
    ):
        with pytest.raises(NotAllowed, match="amy is in audit and may not"):
            act(Ask(verb=verb, rollout_id=asked.id, reason="r", ticket="t", checks=(Check.BAKE,)), amy, worlds[0])
    assert kinds(worlds[0], asked.id) == rows


def test_without_a_people_file_no_click_counts(worlds: list[Ports], asked: Rollout) -> None:
    assert "knows no people" in press(click(asked), None, worlds[0]).text


def test_a_hundred_starts_with_one_key_open_one_rollout(worlds: list[Ports]) -> None:
    dana = PEOPLE.called("dana")
    ids = at_once(worlds, lambda p: start(PLAN, plan_digest(PLAN), dana, p, key="same", people=PEOPLE).id)
    assert len(set(ids)) == 1 and kinds(worlds[0], ids[0]) == {"opened": 1}


def test_break_glass_takes_the_step_at_the_next_check_and_is_used_up_by_it(worlds: list[Ports], asked: Rollout) -> None:
    ports = worlds[0]
    act(
        Ask(verb=Right.OVERRIDE, rollout_id=asked.id, reason="old model ends", ticket="INC-7", checks=(Check.APPROVAL,)),
        PEOPLE.called("sam"),
        ports,
    )
    looked = tick(asked.id, ports, ports.audit.now(), may_raise=True)
    assert looked.decision is not None and looked.decision.why.value == "overridden"
    assert isinstance(looked.rollout.state, Baking) and looked.rollout.override is None
    assert "approval overridden by sam (INC-7: old model ends)" in looked.decision.text


def test_promote_takes_the_check_now_and_skips_none(worlds: list[Ports], asked: Rollout) -> None:
    held = act(Ask(verb=Right.PROMOTE, rollout_id=asked.id), PEOPLE.called("dana"), worlds[0])
    assert held.looked is not None and held.looked.decision is not None
    assert held.looked.decision.why.value == "awaiting_approval"


def test_a_kill_is_latched_and_unkill_wants_the_version_that_was_seen(
    worlds: list[Ports], asked: Rollout, engines: list[Engine]
) -> None:
    flags, sam, dana = PostgresFlags(engines[0]), PEOPLE.called("sam"), PEOPLE.called("dana")
    act(Ask(verb=Right.APPROVE, rollout_id=asked.id), sam, worlds[0])
    tick(asked.id, worlds[0], worlds[0].audit.now(), may_raise=True)
    killed = [switch(flags, "production", "chat", True, dana, reason="odd answers") for _ in range(3)][-1]
    assert killed.killed
    with pytest.raises(NotAllowed, match="may not unkill"):
        switch(flags, "production", "chat", False, dana, reason="fine again", version=killed.version)
    with pytest.raises(FlagConflict):
        switch(flags, "production", "chat", False, sam, reason="fine again", version=killed.version - 1)
    assert not switch(flags, "production", "chat", False, sam, reason="fine again", version=killed.version).killed


def test_a_plan_that_nobody_could_approve_is_not_started(worlds: list[Ports]) -> None:
    canary, full = PLAN.phases
    for approval, said in (
        (
            Approval(groups=("managers",)),
            "there is no group 'managers' among the people; there are release-managers, oncall, audit",
        ),
        (Approval(groups=("audit",)), "but nobody could"),
        (Approval(groups=("oncall",), count=2), "needs 2 approvals from oncall, but sam could"),
    ):
        plan = replace(PLAN, phases=(replace(canary, approval=approval), full))
        with pytest.raises(CommandRefused, match="canary") as refused:
            check_approvers(plan, PEOPLE, "dana")
        assert said in str(refused.value)
    # A usergroup's members are Slack's to know.
    check_approvers(
        replace(PLAN, phases=(replace(canary, approval=Approval(groups=("release-managers",), count=3)), full)), PEOPLE, "dana"
    )


def test_where_names_are_claims_the_groups_are_what_the_caller_says(worlds: list[Ports], asked: Rollout) -> None:
    after = act(Ask(verb=Right.APPROVE, rollout_id=asked.id, groups=("oncall",)), claimed("erin"), worlds[0]).rollout
    assert isinstance(after.state, AwaitingApproval) and [v.actor for v in after.state.votes] == ["erin"]
    with pytest.raises(NotAllowed, match="sam is not in release-managers"):
        act(Ask(verb=Right.APPROVE, rollout_id=asked.id, groups=("release-managers",)), PEOPLE.called("sam"), worlds[0])
