"""The commands about one rollout, and the list of all."""

import math
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.live import Live

from controller import act, codec, commands, describe
from controller.cli.at_rest import readable
from controller.cli.output import Format, Output, console, errors, print_object, print_rows
from controller.cli.screen import screen
from controller.core.decision import Hold, Why
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Decided,
    Entry,
    LogError,
    Paused,
    Promoted,
    RolledBack,
    Rollout,
    replay,
)
from controller.ports import Ports, UnknownRollout
from controller.settings import Settings, load
from controller.spec import read
from controller.wiring import Controller, caller_of, check_models, open_controller, open_people

Id = Annotated[str, Parameter(help="The rollout's id, or the beginning of it")]
Actor = Annotated[str | None, Parameter(help="Who acts; default: PENSTOCK_ACTOR or the login name")]

Wait = Annotated[bool, Parameter(negative="", help="Go on until it ends or a person is needed; the exit code says which")]
Timeout = Annotated[float | None, Parameter(name="--timeout", help="Seconds to go on at the longest; exit code 5 then")]

EXIT_ROLLED_BACK, EXIT_WAITS, EXIT_TIMEOUT, EXIT_HELD = 3, 4, 5, 6

HISTORY = ("seq", "at", "actor", "kind", "text")
RECENT = 6
"""Rows of the log that the live screen shows."""

_HELD = frozenset({Why.FROZEN, Why.NOT_ENOUGH_EVIDENCE, Why.METRICS_FAILED, Why.DEAD_MAN, Why.PAUSED})
"""Holds that are no part of a rollout that goes well."""


@contextmanager
def opened() -> Iterator[tuple[Controller, Settings]]:
    """The controller that runs here, for commands that act."""
    settings = load()
    with open_controller(settings) as controller:
        yield controller, settings


@contextmanager
def log_opened() -> Iterator[Ports]:
    """The ports for commands that only read the log; also of a database that is at rest."""
    with readable(load()) as settings, open_controller(settings, reading=True) as controller:
        yield controller.ports


def resolve(ports: Ports, rollout_id: str) -> str:
    """The one rollout whose id is, or begins with, what was typed. Raises UnknownRollout."""
    try:
        ports.audit.entries(rollout_id)
        return rollout_id
    except UnknownRollout:
        pass
    found = sorted({i for i in (*ports.index.active(), *ports.index.known(1000)) if i.startswith(rollout_id)})
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownRollout(f"no rollout {rollout_id!r}; `penstock list` shows them")
    raise UnknownRollout(f"{rollout_id!r} begins {len(found)} rollouts: {', '.join(found[:5])}")


def start(
    file: Path,
    *,
    key: str | None = None,
    actor: Actor = None,
    dry_run: bool = False,
    wait: Wait = False,
    timeout_s: Timeout = None,
    output: Output = "table",
) -> int:
    """
    Start a rollout from a rollout.yaml.

    Args:
        file: The rollout.yaml.
        key: The same key finds the rollout that it started before, so a script may be run twice.
        dry_run: Check everything, start nothing.
    """
    spec = read(file)
    plan = spec.to_plan()
    with opened() as (controller, settings):
        who, file_of = caller_of(settings, actor or settings.actor, settings.groups), open_people(settings)
        if dry_run:
            if file_of is not None:
                act.check_approvers(plan, file_of.people(), who.name)
            check_models(settings, plan)
            commands.check_start(plan, controller.ports)
            errors.print(f"{file}: could start now")
            return 0
        rollout = act.start(
            plan,
            codec.plan_digest(plan),
            who,
            controller.ports,
            key=key or str(uuid.uuid4()),
            people=None if file_of is None else file_of.people(),
            check=lambda: check_models(settings, plan),
        )
        for part in spec.kept_for_later():
            errors.print(f"note: {part} is kept in the audit log, but this release does not act on it yet")
        if wait:
            return follow(controller.ports, rollout.id, timeout_s, output, until_people=True)
        say(rollout, controller.ports, output)
    return 0


def list_(
    *, all_: Annotated[bool, Parameter(name=["--all", "-a"], help="Ended rollouts too")] = False, output: Output = "table"
) -> int:
    """Rollouts, newest first."""
    with log_opened() as ports:
        ids = ports.index.known(100) if all_ else list(reversed(ports.index.active()))
        rows = [_listed(ports, i) for i in ids]
    if not rows and output == "table":
        errors.print("no rollouts" if all_ else "no active rollouts; --all shows those that have ended")
        return 0
    print_rows(
        rows, ("rollout_id", "standing", "candidate", "environment", "flag", "exposed_requests", "opened_at", "opened_by"), output
    )
    return 0


def report(
    rollout_id: Id,
    *,
    output: Annotated[str, Parameter(name=["--output", "-o"], help="markdown, html or json")] = "markdown",
    out: Annotated[Path | None, Parameter(name="--out", help="Write it into this file; default: print it")] = None,
) -> int:
    """A rollout told whole, for a change ticket or a post-mortem: what happened when, why, on what numbers, and who said yes."""
    from controller import report as whole
    from controller.compare import last_of
    from controller.ports import PortError
    from controller.settings import SettingsError
    from controller.wiring import spent_on

    made = {
        "markdown": whole.as_markdown,
        "html": whole.as_html,
        "json": whole.as_json,
    }
    if output not in made:
        errors.print(f"penstock: -o {output}: write markdown, html or json", markup=False)
        return 2
    with log_opened() as ports:
        name = resolve(ports, rollout_id)
        entries = ports.audit.entries(name)
        rollout, now = replay(entries), ports.audit.now()
        before = last_of(rollout.plan.flag, rollout.plan.environment, ports, before=name)
        try:
            spent = spent_on(load(), rollout.plan, rollout.opened_at, rollout.ended_at or now)
        except (PortError, SettingsError):
            spent = None
    text = made[output](whole.report(rollout, entries, now, before=before, spent=spent))
    if out is None:
        sys.stdout.write(text)
        return 0
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as exc:
        errors.print(f"penstock: {out}: {exc.strerror}", soft_wrap=True, markup=False)
        return 1
    errors.print(f"written: {out}", soft_wrap=True, markup=False)
    return 0


def digest(
    *,
    post: Annotated[bool, Parameter(negative="", help="Send those that are due, each once a day, as the schedule does")] = False,
    output: Output = "table",
) -> int:
    """What is under way, what waits for people, and what ended in the last 24 hours; what needs people first."""
    from controller import digest as daily

    if post:
        with opened() as (controller, _):
            notices = daily.announce_due(controller.ports, controller.outbox)
    else:
        with log_opened() as ports:
            now = ports.audit.now()
            notices = [daily.digest(daily.of_the_last_day(daily.latest(ports), now), now)]
    if output != "table":
        shown = [{"channel": n.channel, "title": n.title, "standing": n.standing, "text": n.text.strip()} for n in notices]
        print_rows(shown, ("channel", "title", "standing", "text"), output)
        return 0
    if not notices:
        errors.print("no digest is due")
    for notice in notices:
        console.print(f"{notice.title}: {notice.standing}", soft_wrap=True, markup=False, highlight=False)
        console.print(notice.text.strip(), soft_wrap=True, markup=False, highlight=False)
    return 0


def _listed(ports: Ports, rollout_id: str) -> dict[str, Any]:
    """One rollout's summary; a log that cannot be read is said in its place, and the others are still listed."""
    try:
        return describe.summary(replay(ports.audit.entries(rollout_id)))
    except LogError as exc:
        return {"rollout_id": rollout_id, "state": "broken", "standing": f"the log contradicts itself: {exc}"}


def get(
    rollout_id: Id,
    *,
    watch: Annotated[bool, Parameter(name=["--watch", "-w"], negative="", help="Go on until it ends")] = False,
    wait: Wait = False,
    timeout_s: Timeout = None,
    output: Output = "table",
) -> int:
    """
    Where a rollout stands, what was decided last and what comes next.

    Exit code: 0 on its way or promoted, 3 rolled back or aborted, 4 waits for an approval, 5 time ran out, 6 paused, frozen, or held for lack
    of evidence.
    """
    with log_opened() as ports:
        name = resolve(ports, rollout_id)
        if not watch and not wait:
            entries = ports.audit.entries(name)
            rollout = replay(entries)
            detail = describe.detail(rollout, entries, ports.audit.now())
            if output != "table":
                print_object(detail, output)
            else:
                console.print(screen(detail))
            return code_of(rollout, entries)
        return follow(ports, name, timeout_s, output, until_people=wait)


def follow(ports: Ports, name: str, timeout_s: float | None, output: Format, *, until_people: bool) -> int:
    """
    Show a rollout until it ends.

    Args:
        ports: Where to look.
        name: Its id.
        timeout_s: Seconds to go on at the longest; None for no limit.
        output: For a terminal a screen that is drawn anew; else a line for each row of the log.
        until_people: End also where it waits for a person: an approval, or somebody who resumes it.

    Returns:
        The exit code.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    seen = 0
    live = Live(console=console, auto_refresh=False) if output == "table" and sys.stdout.isatty() else None
    if live is not None:
        live.start()
    try:
        while True:
            entries = ports.audit.entries(name)
            rollout = replay(entries)
            if live is not None:
                now = ports.audit.now()
                recent = [describe.history_row(e, rollout.plan) for e in entries[-RECENT:]]
                live.update(screen(describe.detail(rollout, entries, now), recent, now), refresh=True)
            else:
                rows = [describe.history_row(e, rollout.plan) for e in entries[seen:]]
                if output != "table":
                    print_rows(rows, HISTORY, output, header=not seen)
                for row in rows if output == "table" else ():
                    console.print(f"{row['at']}  {row['actor']:<12} {row['kind']:<18} {row['text']}", soft_wrap=True)
            seen = len(entries)
            if rollout.ended or (until_people and isinstance(rollout.state, AwaitingApproval | Paused)):
                return code_of(rollout, entries)
            if deadline is not None and time.monotonic() > deadline:
                return EXIT_TIMEOUT
            time.sleep(1.0)
    finally:
        if live is not None:
            live.stop()


def why(rollout_id: Id, *, output: Output = "table") -> int:
    """Why traffic moved, or did not: the sentence, the numbers, the queries."""
    with log_opened() as ports:
        entries = ports.audit.entries(resolve(ports, rollout_id))
        now = ports.audit.now()
    told = describe.explanation(replay(entries), entries, now)
    if output == "csv":
        print_rows(told["gates"], ("gate", "verdict", "observed", "limit"), output)
        return 0
    if output != "table":
        print_object(told, output)
        return 0
    console.print(f"[bold]{told['rollout_id']}[/bold]  {told.get('standing', '')}", soft_wrap=True)
    console.print(told["sentence"], soft_wrap=True, markup=False)
    if told["gates"]:
        console.print()
        rows = [
            {**g, "requests": round(g["n"]), "proof": _proof(g["log_e_proof"], g["log_e_needed"]), "what_was_seen": g["reason"]}
            for g in told["gates"]
        ]
        print_rows(rows, ("gate", "verdict", "requests", "proof", "what_was_seen"), "table")
    for query in told["queries"]:
        console.print(f"\n[dim]{query['at']}  {', '.join(query['gates'])}[/dim]", soft_wrap=True)
        console.print(query["query"], soft_wrap=True, markup=False)
        if query["note"]:
            console.print(f"  {query['note']}", soft_wrap=True, markup=False)
    if "next" in told:
        console.print(f"\nnext: {told['next']}", soft_wrap=True, markup=False)
    return 0


def history(rollout_id: Id, *, output: Output = "table") -> int:
    """Every row of a rollout's audit log; `-o json` with the whole evidence, raw answers included."""
    with log_opened() as ports:
        name = resolve(ports, rollout_id)
        entries = ports.audit.entries(name)
        if output != "table":
            entries = [ports.audit.entry(name, e.seq) for e in entries]
    plan, row = describe.plan_of(entries), describe.history_json if output in ("json", "jsonl") else describe.history_row
    rows = (row(e, plan) for e in entries)
    print_rows(rows, HISTORY, output)
    return 0


def say(rollout: Rollout, ports: Ports, output: Format) -> None:
    if output != "table":
        print_object(describe.detail(rollout, ports.audit.entries(rollout.id), ports.audit.now()), output)
    else:
        console.print(f"{rollout.id}: {describe.summary(rollout)['standing']}", soft_wrap=True)


def code_of(rollout: Rollout, entries: Sequence[Entry]) -> int:
    """The exit code that says where it stands."""
    match rollout.state:
        case RolledBack() | Aborted():
            return EXIT_ROLLED_BACK
        case AwaitingApproval():
            return EXIT_WAITS
        case Paused():
            return EXIT_HELD
        case Promoted():
            return 0
    last = entries[-1].event
    held = isinstance(last, Decided) and isinstance(last.decision, Hold) and last.decision.why in _HELD
    return EXIT_HELD if held else 0


def _proof(have: float | None, needed: float | None) -> str:
    """How much of the proof there is, as e-values: ``8.5 of 20``; "" where a gate needs none."""
    if have is None or needed is None or needed <= 0:
        return ""
    return f"{math.exp(min(have, 20.0)):,.3g} of {math.exp(needed):,.3g}"
