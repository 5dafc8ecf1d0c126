"""What every audit log, index and outbox promises, in memory and in Postgres alike."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from controller.core.notice import Level
from controller.core.rollout import Decided, Entry, Gathered, LogError, replay
from controller.ports import FlagHeld, Letter, NotifierRefused, SeqTaken, UnknownRollout
from controller.shelf import Mark, StandingShelf
from controller.standing import standing, standings
from tests.ports.conftest import World
from tests.ports.events import applied, decided, hold, notice, opened, roll_back


def gathered_of(entry: Entry) -> Gathered:
    assert isinstance(entry.event, Decided) and entry.event.observed.gathered is not None
    return entry.event.observed.gathered


def drain(world: World) -> list[Letter]:
    """Deliver whatever is due until nothing is."""
    delivered: list[Letter] = []
    while due := world.audit.due(10):
        for letter in due:
            world.audit.done(letter)
            delivered.append(letter)
    return delivered


def test_a_row_comes_back_as_it_was_written(world: World) -> None:
    first = world.audit.append(opened("r1"), None)
    assert first.event == opened("r1").event
    read = world.audit.entries("r1")
    assert [(e.rollout_id, e.seq, e.actor, e.event) for e in read] == [("r1", 1, "erin", opened("r1").event)]
    assert read[0].at == first.at
    assert first.at.tzinfo is not None


def test_append_returns_the_event_with_its_raw_answers(world: World) -> None:
    world.audit.append(opened("r1"), None)
    assert world.audit.append(decided("r1", 2), None).event == decided("r1", 2).event


def test_what_a_look_gathered_comes_back_whole_and_a_reference_to_it_stands_for_it(world: World) -> None:
    world.audit.append(opened("r1"), None)
    first = Gathered(before="", traffic='{"beats":[1]}', after='{"case":1}')
    world.audit.append(decided("r1", 2, gathered=first), None)
    recorded = gathered_of(world.audit.entries("r1")[-1]).after
    assert world.audit.text(recorded) == '{"case":1}'
    # The next look goes on from what it read, which may be a reference.
    second = Gathered(before=recorded, traffic='{"beats":[2]}', after='{"case":2}')
    world.audit.append(decided("r1", 3, gathered=second), None)
    assert gathered_of(world.audit.entry("r1", 2)) == first
    assert gathered_of(world.audit.entry("r1", 3)) == Gathered(before='{"case":1}', traffic='{"beats":[2]}', after='{"case":2}')


def test_a_text_that_is_no_reference_is_itself(world: World) -> None:
    assert [world.audit.text(t) for t in ("", "{}", "sha256: of what?")] == ["", "{}", "sha256: of what?"]


def test_rows_come_back_in_order_of_their_sequence(world: World) -> None:
    world.audit.append(opened("r1"), None)
    world.audit.append(opened("r2", "other-flag"), None)
    for seq in (2, 3, 4):
        world.audit.append(hold("r1", seq), None)
        assert [e.seq for e in world.audit.entries("r1")] == list(range(1, seq + 1))


def test_times_of_rows_lie_between_two_looks_at_the_same_clock(world: World) -> None:
    before = world.audit.now()
    at = world.audit.append(opened("r1"), None).at
    assert before <= at <= world.audit.now()


def test_an_unknown_rollout_is_named(world: World) -> None:
    with pytest.raises(UnknownRollout, match="r9"):
        world.audit.entries("r9")


def test_a_row_is_written_once(world: World) -> None:
    world.audit.append(opened("r1"), None)
    world.audit.append(hold("r1", 2), notice("r1", 2, "first"))
    with pytest.raises(SeqTaken, match="r1/2"):
        world.audit.append(hold("r1", 2), notice("r1", 2, "second"))
    assert len(world.audit.entries("r1")) == 2
    assert [x.notice.text for x in drain(world)] == ["first"]


def test_a_row_that_would_leave_a_gap_is_refused(world: World) -> None:
    world.audit.append(opened("r1"), None)
    with pytest.raises(SeqTaken, match="the log is at 1"):
        world.audit.append(hold("r1", 3), None)
    assert len(world.audit.entries("r1")) == 1


def test_a_held_flag_is_refused_and_its_holder_named(world: World) -> None:
    world.audit.append(opened("r1"), None)
    with pytest.raises(FlagHeld, match=r"'chat-model' in production is held by rollout r1"):
        world.audit.append(opened("r2"), notice("r2", 1))
    with pytest.raises(UnknownRollout):
        world.audit.entries("r2")
    assert drain(world) == []


def test_the_same_flag_of_another_environment_is_another_flag(world: World) -> None:
    world.audit.append(opened("r1"), None)
    world.audit.append(opened("r2", environment="staging"), None)
    assert list(world.audit.active()) == ["r1", "r2"]


def end(world: World, rollout_id: str) -> None:
    last = roll_back(rollout_id, 2)
    world.audit.append(last, None)
    assert rollout_id in world.audit.active()
    world.audit.append(applied(rollout_id, 3, last), None)


def test_a_rollout_that_has_ended_gives_its_flag_back(world: World) -> None:
    world.audit.append(opened("r1"), None)
    end(world, "r1")
    assert list(world.audit.active()) == []
    world.audit.append(opened("r2"), None)
    assert list(world.audit.active()) == ["r2"]


def test_a_confirmed_advance_keeps_the_flag(world: World) -> None:
    world.audit.append(opened("r1"), None)
    advance = decided("r1", 2)
    world.audit.append(advance, None)
    world.audit.append(applied("r1", 3, advance), None)
    assert list(world.audit.active()) == ["r1"]


def test_active_rollouts_come_oldest_first_and_known_ones_newest_first(world: World) -> None:
    for number in (3, 1, 2):
        world.audit.append(opened(f"r{number}", f"flag-{number}"), None)
    end(world, "r1")
    assert list(world.audit.active()) == ["r3", "r2"]
    assert list(world.audit.known(10)) == ["r2", "r1", "r3"]
    assert list(world.audit.known(2)) == ["r2", "r1"]


def test_letters_of_a_rollout_go_out_in_their_order_and_once(world: World) -> None:
    world.audit.append(opened("r1"), notice("r1", 1))
    for seq in (2, 3):
        world.audit.append(hold("r1", seq), notice("r1", seq, f"row {seq}"))
    letters = drain(world)
    assert [x.notice for x in letters] == [notice("r1", 1), notice("r1", 2, "row 2"), notice("r1", 3, "row 3")]
    assert len({x.id for x in letters}) == 3
    assert world.audit.due(10) == []


def test_refreshes_come_last_and_only_the_newest_of_a_rollout_is_sent(world: World) -> None:
    world.audit.append(opened("r1"), notice("r1", 1))
    world.audit.append(opened("r2", "other-flag"), notice("r2", 1))
    assert [x.notice.rollout_id for x in drain(world)] == ["r1", "r2"]
    for seq in (2, 3, 4):
        world.audit.append(hold("r1", seq), replace(notice("r1", seq), level=Level.INFO))
    world.audit.append(hold("r2", 2), notice("r2", 2))
    assert [(x.notice.rollout_id, x.notice.seq) for x in drain(world)] == [("r2", 2), ("r1", 4)]
    world.audit.append(hold("r1", 5), replace(notice("r1", 5), level=Level.INFO))
    world.audit.append(hold("r1", 6), notice("r1", 6))
    world.audit.append(hold("r1", 7), replace(notice("r1", 7), level=Level.INFO))
    assert [x.notice.seq for x in drain(world)] == [6, 7], "news are never left out"
    assert world.audit.due(10) == []


def test_a_row_without_a_notice_leaves_nothing_in_the_outbox(world: World) -> None:
    world.audit.append(opened("r1"), None)
    assert world.audit.due(10) == []


def test_an_announcement_comes_once_and_hinders_none_of_another_subject(world: World) -> None:
    for subject in ("digest:a", "digest:b", "digest:a"):
        world.audit.announce(notice(subject, 1))
    world.audit.announce(notice("digest:a", -1))
    assert sorted((x.notice.rollout_id, x.notice.seq) for x in drain(world)) == [
        ("digest:a", -1),
        ("digest:a", 1),
        ("digest:b", 1),
    ]


def test_no_more_letters_are_handed_out_than_asked_for(world: World) -> None:
    for number in range(3):
        world.audit.append(opened(f"r{number}", f"flag-{number}"), notice(f"r{number}", 1))
    assert [x.notice.rollout_id for x in world.audit.due(2)] == ["r0", "r1"]


def test_a_refused_letter_does_not_hold_up_those_behind_it(world: World) -> None:
    world.audit.append(opened("r1"), notice("r1", 1, "bad"))
    world.audit.append(hold("r1", 2), notice("r1", 2, "good"))
    first: Sequence[Letter] = world.audit.due(1)
    world.audit.failed(first[0], str(NotifierRefused("channel_not_found")), None, final=True)
    assert [x.notice.text for x in drain(world)] == ["good"]


def test_a_letter_that_was_not_tried_is_due_again_at_once(world: World) -> None:
    world.audit.append(opened("r1"), notice("r1", 1))
    for _ in range(12):  # more often than failures double the pause
        (letter,) = world.audit.due(1)
        world.audit.back(letter)
    assert len(world.audit.due(1)) == 1


def test_news_are_the_rows_after_the_last_one_known_of_each_rollout(world: World) -> None:
    for rollout_id, flag in (("r1", "chat-model"), ("r2", "other-flag")):
        world.audit.append(opened(rollout_id, flag), None)
    first = world.audit.news({"r1": Mark(), "r2": Mark(), "r9": Mark()})
    assert {i: [e.seq for e in n.entries] for i, n in first.items()} == {"r1": [1], "r2": [1]}
    assert all(n.whole for n in first.values())
    world.audit.append(hold("r1", 2), None)
    world.audit.append(hold("r1", 3), None)
    second = world.audit.news({i: n.mark for i, n in first.items()})
    assert {i: [e.seq for e in n.entries] for i, n in second.items()} == {"r1": [2, 3], "r2": []}
    assert not any(n.whole for n in second.values())
    assert second["r2"].mark == first["r2"].mark and second["r1"].mark.seq == 3
    assert world.audit.news({}) == {}


def test_news_begin_anew_where_the_known_row_is_another_one(world: World) -> None:
    world.audit.append(opened("r1"), None)
    world.audit.append(hold("r1", 2), None)
    mark = world.audit.news({"r1": Mark()})["r1"].mark
    for odd in (Mark(seq=2, token="another"), Mark(seq=7, token=mark.token)):
        news = world.audit.news({"r1": odd})["r1"]
        assert news.whole and [e.seq for e in news.entries] == [1, 2] and news.mark == mark


def test_where_a_rollout_stands_is_the_same_from_the_shelf_and_from_the_whole_log(world: World) -> None:
    shelf = StandingShelf()
    up, down = decided("r1", 2), roll_back("r1", 6)
    rows = [opened("r1"), up, applied("r1", 3, up), hold("r1", 4), hold("r1", 5), down, applied("r1", 7, down)]
    for n, row in enumerate(rows, 1):
        world.audit.append(row, None)  # by whomever: the shelf hears of it at the next reading
        if n not in (2, 5):  # sometimes several rows at once
            assert (
                standing("r1", world.audit, shelf)
                == replay(world.audit.entries("r1"))
                == standing("r1", world.audit, StandingShelf())
            )
    assert standing("r1", world.audit, shelf).ended
    with pytest.raises(UnknownRollout):
        standing("r9", world.audit, shelf)


def test_a_log_that_contradicts_itself_is_left_out_and_says_so_when_it_is_asked_for_alone(world: World) -> None:
    shelf = StandingShelf()
    world.audit.append(opened("r1"), None)
    world.audit.append(opened("r2", "other-flag"), None)
    assert set(standings(["r1", "r2"], world.audit, shelf)) == {"r1", "r2"}
    world.audit.append(decided("r1", 2), None)
    world.audit.append(hold("r1", 3), None)  # while an advance is on its way
    for _ in range(2):
        assert set(standings(["r1", "r2", "r9"], world.audit, shelf)) == {"r2"}
        with pytest.raises(LogError, match="r1/3"):
            standing("r1", world.audit, shelf)
