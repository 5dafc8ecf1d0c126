"""The commands about one rollout, and the list of all."""

import math
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.live import Live

from controller import act, codec, commands, describe
from controller.cli.at_rest import readable
from controller.cli.output import Output, console, errors, print_json, print_rows
from controller.cli.screen import screen
from controller.core.rollout import LogError, Rollout, replay
from controller.ports import Ports, UnknownRollout
from controller.settings import Settings, load
from controller.spec import read
from controller.wiring import Controller, caller_of, check_models, open_controller, open_people

Id = Annotated[str, Parameter(help="The rollout's id, or the beginning of it")]
Actor = Annotated[str | None, Parameter(help="Who acts; default: PENSTOCK_ACTOR or the login name")]

EXIT_ROLLED_BACK, EXIT_WAITS, EXIT_TIMEOUT = 3, 4, 5


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


def start(file: Path, *, key: str | None = None, actor: Actor = None, dry_run: bool = False, output: Output = "table") -> int:
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
        say(rollout, controller.ports, output)
    for part in spec.kept_for_later():
        errors.print(f"note: {part} is kept in the audit log, but this release does not act on it yet")
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


def _listed(ports: Ports, rollout_id: str) -> dict[str, Any]:
    """One rollout's summary; a log that cannot be read is said in its place, and the others are still listed."""
    try:
        return describe.summary(replay(ports.audit.entries(rollout_id)))
    except LogError as exc:
        return {"rollout_id": rollout_id, "state": "broken", "standing": f"the log contradicts itself: {exc}"}


def get(
    rollout_id: Id,
    *,
    watch: Annotated[bool, Parameter(name=["--watch", "-w"], help="Go on until it ends")] = False,
    timeout_s: Annotated[float | None, Parameter(name="--timeout", help="Seconds to watch at the longest")] = None,
    output: Output = "table",
) -> int:
    """Where a rollout stands, what was decided last and what comes next."""
    with log_opened() as ports:
        name = resolve(ports, rollout_id)
        if not watch:
            entries = ports.audit.entries(name)
            rollout = replay(entries)
            if output == "json":
                print_json(describe.detail(rollout, entries))
            else:
                console.print(screen(describe.detail(rollout, entries)))
            return _code(rollout)
        return _watch(ports, name, timeout_s, output)


def _watch(ports: Ports, name: str, timeout_s: float | None, output: str) -> int:
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
                live.update(screen(describe.detail(rollout, entries)), refresh=True)
            else:
                for entry in entries[seen:]:
                    row = describe.history_row(entry)
                    if output == "json":
                        print_json(row)
                    else:
                        console.print(f"{row['at']}  {row['actor']:<12} {row['kind']:<18} {row['text']}", soft_wrap=True)
            seen = len(entries)
            if rollout.ended:
                return _code(rollout)
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
    told = describe.explanation(replay(entries), entries)
    if output == "json":
        print_json(told)
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
        if output == "json":
            entries = [ports.audit.entry(name, e.seq) for e in entries]
    rows = (describe.history_json(e) if output == "json" else describe.history_row(e) for e in entries)
    print_rows(rows, ("seq", "at", "actor", "kind", "text"), output)
    return 0


def say(rollout: Rollout, ports: Ports, output: str) -> None:
    if output == "json":
        print_json(describe.detail(rollout, ports.audit.entries(rollout.id)))
    else:
        console.print(f"{rollout.id}: {describe.summary(rollout)['standing']}", soft_wrap=True)


def _code(rollout: Rollout) -> int:
    return {"rolled_back": EXIT_ROLLED_BACK, "aborted": EXIT_ROLLED_BACK, "awaiting_approval": EXIT_WAITS}.get(
        describe.state_name(rollout), 0
    )


def _proof(have: float | None, needed: float | None) -> str:
    """How much of the proof there is, as e-values: ``8.5 of 20``; "" where a gate needs none."""
    if have is None or needed is None or needed <= 0:
        return ""
    return f"{math.exp(min(have, 20.0)):,.3g} of {math.exp(needed):,.3g}"
