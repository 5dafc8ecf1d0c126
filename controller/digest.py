"""
The daily digest: what is under way in a channel, what waits for people, and what ended since the day before.

It stands beside `deliver`: a schedule calls it, with Prefect or without. Its one rule: once a day and channel, however often and by however many
it is called; the day is that of the plan's own clock.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from controller.core.daily import TimeOfDay
from controller.core.gates import span
from controller.core.notice import Level, Notice, standing
from controller.core.rollout import AwaitingApproval, Paused, Rollout
from controller.ports import Outbox, Ports
from controller.standing import standings

DIGEST_AT = "notify.slack.digest"
"""Where a plan keeps its time of day."""

LATE_MAX = timedelta(hours=6)
"""A digest that could not be made for so long is left out: the next one tells the same."""

SINCE = timedelta(days=1)
"""What ended longer ago is not told any more."""

ENDED_READ = 50
"""Latest rollouts that are looked at for ones that have ended."""

SHOWN_MAX = 25


def latest(ports: Ports) -> list[Rollout]:
    """
    Every rollout that is under way, and the latest that have ended.

    Raises:
        AuditUnavailable: the log cannot be read.
    """
    ids = dict.fromkeys((*ports.index.active(), *ports.index.known(ENDED_READ)))
    return list(standings(list(ids), ports.audit, ports.standings).values())


def announce_due(ports: Ports, outbox: Outbox) -> list[Notice]:
    """
    Put every digest that is due into the outbox; those that are there already stay as they are.

    Raises:
        AuditUnavailable: the log cannot be read, or people not be told.
    """
    found = due(latest(ports), ports.audit.now())
    for notice in found:
        outbox.announce(notice)
    return found


def due(rollouts: Iterable[Rollout], now: datetime) -> list[Notice]:
    """
    The digests whose time has come, one for each channel and time that plans ask for.

    Args:
        rollouts: Those that may be told of.
        now: The database's clock.
    """
    asked: dict[tuple[str, TimeOfDay], list[Rollout]] = {}
    for rollout in rollouts:
        if (wanted := _asked_at(rollout)) is not None:
            asked.setdefault((rollout.plan.slack_channel, wanted), []).append(rollout)
    found = []
    for (channel, clock), theirs in sorted(asked.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        at = clock.last(now)
        told = of_the_last_day(theirs, at)
        if told and now - at < LATE_MAX:
            found.append(digest(told, at.astimezone(ZoneInfo(clock.zone)), channel))
    return found


def of_the_last_day(rollouts: Iterable[Rollout], at: datetime) -> list[Rollout]:
    """Those that had begun by then, and had not ended a day before."""
    return [r for r in rollouts if r.opened_at <= at and (r.ended_at is None or r.ended_at > at - SINCE)]


def digest(rollouts: Sequence[Rollout], at: datetime, channel: str = "") -> Notice:
    """
    One digest.

    Args:
        rollouts: What it tells of.
        at: When it is due, by the clock of those who read it; the identity of it, with the channel.
        channel: Where it goes; "" for the default.
    """
    ordered = sorted(rollouts, key=lambda r: (_rank(r), r.opened_at))
    lines = [f"• {_line(r, at)}" for r in ordered[:SHOWN_MAX]]
    if len(ordered) > SHOWN_MAX:
        lines.append(f"and {len(ordered) - SHOWN_MAX} more")
    return Notice(
        rollout_id=f"digest:{channel or 'default'}:{at.astimezone(UTC):%Y-%m-%dT%H:%M}Z",
        seq=1,
        level=Level.INFO,
        title=f"Daily digest, {at:%a %d %b %Y}",
        text="\n" + "\n".join(lines) if lines else "no rollout is under way",
        standing=_counts(ordered),
        phases=(),
        phase=-1,
        channel=channel,
        environment=", ".join(sorted({r.plan.environment for r in rollouts})),
        ask="penstock list",
    )


def _asked_at(rollout: Rollout) -> TimeOfDay | None:
    written = rollout.plan.kept.get(DIGEST_AT)
    try:
        return TimeOfDay.read(str(written)) if written else None
    except ValueError:
        return None  # an earlier release took any text


def _rank(rollout: Rollout) -> int:
    """What needs people comes first, what has ended last."""
    if rollout.ended:
        return 3
    if isinstance(rollout.state, Paused) or rollout.troubled >= rollout.plan.policy.escalate_after:
        return 0
    return 1 if isinstance(rollout.state, AwaitingApproval) else 2


def _line(rollout: Rollout, at: datetime) -> str:
    plan = rollout.plan
    said = [f"{plan.name} ({plan.baseline.model} to {plan.candidate.model}): {standing(rollout)}"]
    settled = rollout.settled
    if (ended := rollout.ended_at) is not None:
        said.append(f"{ended:%a %H:%M} UTC")
    elif (since := getattr(settled, "since", None)) is not None:
        said.append(f"for {span(max((at - since).total_seconds(), 0.0))}")
    if rollout.exposure:
        said.append(f"{rollout.exposure:,.0f} requests exposed")
    if not rollout.ended and rollout.troubled:
        said.append(f"{rollout.troubled} gate check{'s' if rollout.troubled > 1 else ''} without usable evidence")
    return ", ".join(said)


def _counts(rollouts: Sequence[Rollout]) -> str:
    one = ("needs a look", "waits for approval", "under way", "ended")
    more = ("need a look", "wait for approval", "under way", "ended")
    counts = [sum(_rank(r) == rank for r in rollouts) for rank in range(len(one))]
    said = [f"{count} {(one if count == 1 else more)[rank]}" for rank, count in enumerate(counts) if count]
    return ", ".join(said) or "nothing under way"
