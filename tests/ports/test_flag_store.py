"""What every flag store promises, in memory and in Postgres alike."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.ports import FlagChange, FlagConflict, FlagKilled, UnknownFlag
from tests.ports.conftest import World
from tests.ports.events import change


def test_a_flag_that_was_never_written_is_not_there(world: World) -> None:
    assert world.flags.read("production", "chat-model") is None


def test_a_flag_comes_back_as_it_was_written(world: World) -> None:
    written = world.flags.write(change(1_000, shadow=500, decision_id="r1.2.advance"), 0)
    assert written == world.flags.read("production", "chat-model")
    assert (written.version, written.revision, written.weight, written.shadow_weight) == (1, 1, 1_000, 500)
    assert written.decision_id == "r1.2.advance"
    assert written.candidate == change(0).candidate
    assert not written.killed
    assert written.lease is None


def test_a_write_at_another_version_is_refused_and_changes_nothing(world: World) -> None:
    world.flags.write(change(1_000), 0)
    world.flags.write(change(2_000), 1)
    for expected in (0, 1, 3):
        with pytest.raises(FlagConflict, match="at version 2"):
            world.flags.write(change(50_000), expected)
    assert world.flags.read("production", "chat-model").weight == 2_000
    with pytest.raises(FlagConflict, match="at version 0"):
        world.flags.write(change(50_000, key="unheard-of"), 3)


def test_a_raise_that_comes_after_its_time_is_refused_by_the_stores_own_clock(world: World) -> None:
    past, future = (datetime.now(UTC) + timedelta(hours=h) for h in (-1, 1))
    with pytest.raises(FlagConflict, match="came after"):
        world.flags.write(replace(change(1_000), not_after=past), 0)
    assert world.flags.read("production", "chat-model") is None
    world.flags.write(replace(change(1_000), not_after=future), 0)
    with pytest.raises(FlagConflict, match="came after"):
        world.flags.write(replace(change(50_000), not_after=past), 1)
    flag = world.flags.read("production", "chat-model")
    assert flag is not None and flag.weight == 1_000


def test_refused_writes_use_up_no_revision(world: World) -> None:
    world.flags.write(change(1_000), 0)
    for expected in (0, 7):
        with pytest.raises(FlagConflict):
            world.flags.write(change(2_000), expected)
    assert world.flags.write(change(2_000), 1).revision == 2


def test_versions_count_each_flag_and_revisions_all_of_them(world: World) -> None:
    world.flags.write(change(1, key="a"), 0)
    world.flags.write(change(1, key="b"), 0)
    last = world.flags.write(change(2, key="a"), 1)
    assert (last.version, last.revision) == (2, 3)


def test_a_kill_needs_no_version_and_keeps_the_weights(world: World) -> None:
    world.flags.write(change(1_000), 0)
    killed = world.flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")
    assert (killed.killed, killed.weight, killed.version) == (True, 1_000, 2)
    assert killed.decision_id == "person:erin"
    assert world.flags.read("production", "chat-model") == killed


def test_a_raise_that_was_read_before_the_kill_loses(world: World) -> None:
    flag = world.flags.write(change(1_000), 0)
    world.flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")
    with pytest.raises(FlagConflict):
        world.flags.write(change(50_000), flag.version)


@pytest.mark.parametrize(("weight", "shadow"), [(1, 0), (0, 1), (100_000, 0)])
def test_a_killed_flag_is_not_raised(world: World, weight: int, shadow: int) -> None:
    world.flags.write(change(1_000), 0)
    killed = world.flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")
    with pytest.raises(FlagKilled, match="chat-model"):
        world.flags.write(change(weight, shadow=shadow), killed.version)


def test_a_killed_flag_can_be_lowered_and_stays_killed(world: World) -> None:
    world.flags.write(change(1_000), 0)
    killed = world.flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")
    lowered = world.flags.write(change(0), killed.version)
    assert (lowered.killed, lowered.weight) == (True, 0)


def test_killing_twice_leaves_it_killed(world: World) -> None:
    world.flags.write(change(1_000), 0)
    world.flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")
    again = world.flags.set_killed("production", "chat-model", True, actor="sam", reason="pager as well")
    assert (again.killed, again.version) == (True, 3)


def test_un_killing_brings_no_traffic_back(world: World) -> None:
    world.flags.write(change(1_000, shadow=500), 0)
    world.flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")
    back = world.flags.set_killed("production", "chat-model", False, actor="erin", reason="fixed")
    assert (back.killed, back.weight, back.shadow_weight) == (False, 0, 0)
    assert world.flags.write(change(1_000), back.version).weight == 1_000


def test_an_unknown_flag_cannot_be_killed(world: World) -> None:
    for killed in (True, False):
        with pytest.raises(UnknownFlag, match="unheard-of"):
            world.flags.set_killed("production", "unheard-of", killed, actor="erin", reason="pager")


def test_flags_of_another_environment_are_left_alone(world: World) -> None:
    world.flags.write(change(1_000), 0)
    world.flags.write(change(2_000, environment="staging"), 0)
    world.flags.set_killed("staging", "chat-model", True, actor="erin", reason="pager")
    assert not world.flags.read("production", "chat-model").killed
    assert world.flags.read("production", "chat-model").weight == 1_000


def test_many_flags_are_read_at_once_and_one_that_is_not_there_is_left_out(world: World) -> None:
    chat = world.flags.write(change(1_000), 0)
    other = world.flags.write(change(2_000, key="other-flag"), 0)
    wanted = [("production", "other-flag"), ("production", "unheard-of"), ("staging", "chat-model"), ("production", "chat-model")]
    assert world.flags.read_all(wanted) == {("production", "chat-model"): chat, ("production", "other-flag"): other}
    assert world.flags.read_all([]) == {}


# --- leases -------------------------------------------------------------------------------------------------------------------------


def leased(weight: int = 1_000, lease_s: float = 600.0) -> FlagChange:
    return replace(change(weight, decision_id="r1.2.advance"), lease=timedelta(seconds=lease_s))


def test_a_lease_is_measured_by_the_stores_own_clock(world: World) -> None:
    before = world.flags.now()
    flag = world.flags.write(leased(), 0)
    assert flag.lease is not None
    assert before + timedelta(seconds=600) <= flag.lease <= world.flags.now() + timedelta(seconds=600)
    assert world.flags.read("production", "chat-model") == flag


def test_a_renewal_is_no_new_version_so_that_a_raise_read_before_it_still_fits(world: World) -> None:
    flag = world.flags.write(leased(), 0)
    renewed = world.flags.renew("production", "chat-model", timedelta(hours=1), flag.version)
    assert flag.lease is not None and renewed.lease is not None and renewed.lease > flag.lease + timedelta(minutes=40)
    assert (renewed.version, renewed.decision_id, renewed.weight) == (flag.version, flag.decision_id, flag.weight)
    assert renewed.revision == flag.revision + 1  # readers hear of it
    raised = world.flags.write(replace(leased(2_000), decision_id="r1.4.advance"), flag.version)
    assert (raised.version, raised.weight) == (flag.version + 1, 2_000)


def test_what_has_lapsed_or_is_killed_or_was_lowered_meanwhile_cannot_be_renewed(world: World) -> None:
    lapsed = world.flags.write(leased(lease_s=-1.0), 0)
    with pytest.raises(FlagConflict):
        world.flags.renew("production", "chat-model", timedelta(hours=1), lapsed.version)
    alive = world.flags.write(leased(), lapsed.version)
    with pytest.raises(FlagConflict):
        world.flags.renew("production", "chat-model", timedelta(hours=1), lapsed.version)
    killed = world.flags.set_killed("production", "chat-model", True, actor="erin", reason="pager")
    for version in (alive.version, killed.version):
        with pytest.raises(FlagConflict):
            world.flags.renew("production", "chat-model", timedelta(hours=1), version)
    with pytest.raises(FlagConflict):
        world.flags.renew("production", "unheard-of", timedelta(hours=1), 1)


def test_a_flag_without_a_lease_gets_none_by_a_renewal(world: World) -> None:
    flag = world.flags.write(change(1_000), 0)
    with pytest.raises(FlagConflict):
        world.flags.renew("production", "chat-model", timedelta(hours=1), flag.version)


def test_a_write_can_leave_the_lease_as_it_is_and_any_other_sets_or_ends_it(world: World) -> None:
    first = world.flags.write(leased(lease_s=-60.0), 0)
    fenced = world.flags.write(replace(leased(), keeps_lease=True, decision_id="r1.4.advance.abandoned"), first.version)
    assert (fenced.version, fenced.lease) == (first.version + 1, first.lease)
    lowered = world.flags.write(change(0, decision_id="r1.5.roll_back"), fenced.version)
    assert lowered.lease is None
