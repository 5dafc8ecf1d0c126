"""
`penstock`: every command, and how each ends.

Exit codes: 0 done; 1 an error, said in one line on stderr; 2 wrong usage; 3 the rollout was rolled back or aborted; 4 it waits for an
approval; 5 time ran out; 6 it holds for another reason. Its one rule: a command's module is imported when the command runs, so `--help` stays quick.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from cyclopts import App, CycloptsError

app = App(
    name="penstock",
    help="Progressive delivery for LLM models: shadow, canary, 25, 50, 100% on measured evidence, and back by itself.",
    version_flags=["--version"],
    help_flags=["--help", "-h"],
    help_format="plaintext",
    help_epilogue="Exit codes: 0 done, 1 error, 2 usage, 3 rolled back or aborted, 4 waits for approval, 5 time ran out, 6 holds.",
)

_COMMANDS = {
    "up": ("controller.cli.run:up", "Start everything on this machine: Postgres, Prometheus, Prefect, console, guard."),
    "demo": ("controller.cli.run:demo", "Watch rollouts end to end: a good candidate, a slow one, a failing one, a silent one."),
    "init": ("controller.cli.init:init", "Write a first rollout.yaml from what Prometheus has of today's traffic."),
    "start": ("controller.cli.rollouts:start", "Start a rollout from a rollout.yaml."),
    "list": ("controller.cli.rollouts:list_", "Rollouts, newest first."),
    "get": ("controller.cli.rollouts:get", "Where a rollout stands; -w goes on watching."),
    "why": ("controller.cli.rollouts:why", "Why traffic moved, or did not: the sentence, the numbers, the queries."),
    "history": ("controller.cli.rollouts:history", "Every row of a rollout's audit log."),
    "report": ("controller.cli.rollouts:report", "A rollout told whole, for a ticket or a post-mortem: Markdown, HTML or JSON."),
    "approve": ("controller.cli.acting:approve", "Say yes to the phase a rollout waits to enter."),
    "reject": ("controller.cli.acting:reject", "Say no to it: the rollout is paused and everybody is told."),
    "override": ("controller.cli.acting:override", "Break-glass: the next step without approval, freeze or bake."),
    "promote": ("controller.cli.acting:promote", "Go on now, if nothing stands against it; skips no check."),
    "pause": ("controller.cli.acting:pause", "Raise nothing until resumed; lowering stays armed."),
    "resume": ("controller.cli.acting:resume", "Let a paused rollout go on; its phase bakes anew."),
    "rollback": ("controller.cli.acting:rollback", "Bring the candidate back to 0% now."),
    "abort": ("controller.cli.acting:abort", "Call a rollout off, whatever the candidate is like; 0% now."),
    "drill": ("controller.cli.drill:drill", "Let something fail on purpose, for no user: fallback."),
    "flags": ("controller.cli.flags:flags", "The flags themselves: list, kill, unkill, restored."),
    "token": ("controller.cli.acting:token", "Tokens of the HTTP API: new."),
    "people": ("controller.cli.acting:people", "People of people.yaml: password."),
    "digest": (
        "controller.cli.rollouts:digest",
        "What is under way, waits for people, or ended since yesterday; --post to Slack.",
    ),
    "audit": ("controller.cli.audit:audit", "The audit log as a whole: verify, export, replay, head, archive, keygen."),
    "plan": (
        "controller.cli.planning:plan",
        "What a rollout.yaml can prove and catch on today's traffic, how long it takes, what to change.",
    ),
    "render": ("controller.cli.plans:render", "A rollout.yaml with every default written out."),
    "diff": ("controller.cli.plans:diff", "What differs between two plans: files, or rollouts."),
    "simulate": (
        "controller.cli.planning:simulate",
        "Whole rollouts of a rollout.yaml on invented traffic: good candidates and bad ones.",
    ),
    "backtest": ("controller.cli.planning:backtest", "What the gates of a rollout.yaml would have said of recorded traffic."),
    "lint": ("controller.cli.checks:lint", "Check a rollout.yaml or people.yaml: every problem with file, line and column."),
    "tick": ("controller.cli.checks:tick", "One gate check, without Prefect."),
    "judge": ("controller.cli.judging:judge", "Judge recorded or generated traffic: JSON lines in, a decision a line out."),
    "guard": ("controller.cli.run:guard", "The loop that looks every few seconds and only lowers; delivers notices."),
    "serve": ("controller.cli.run:serve", "The HTTP door: flags for routers at /flags/v1, health."),
    "router": ("controller.cli.run:router", "The model router, the data plane."),
    "migrate": ("controller.cli.checks:migrate", "Bring the database to this release's schema."),
    "completion": ("controller.cli.plans:completion", "A script that completes commands and options in bash, zsh or fish."),
    "doctor": ("controller.cli.checks:doctor", "Try every connection and say what is wrong and where."),
}
for _name, (_path, _help) in _COMMANDS.items():
    if _name in ("drill", "flags", "token", "people", "audit"):  # apps of their own, with their own help
        app.command(_path, name=_name)
    else:
        app.command(_path, name=_name, help=_help)


def main(argv: Sequence[str] | None = None) -> None:
    # Bytes that are no UTF-8 reach Python as lone surrogates, which nothing behind could store.
    words = [a.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for a in (sys.argv[1:] if argv is None else argv)]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this: no reason not to roll back
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # until the process ends
    sys.exit(run(words))


def run(argv: list[str]) -> int:
    """One command; returns its exit code and never lets a traceback through for anything that a user can cause."""
    try:
        result = app(argv, exit_on_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError:
        return 2  # cyclopts has said what is wrong
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has heard enough
        _say_no_more(sys.stdout)
        return 0
    except Exception as exc:
        return _failed(exc)
    return result if isinstance(result, int) else 0


def _say_no_more(*streams: TextIO) -> None:
    """Lets Python's own last flush of them succeed; it would change the exit code."""
    for stream in streams:
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def _failed(exc: Exception) -> int:
    from controller.adapters.postgres.errors import BadDatabaseUrl, DatabaseProblem
    from controller.commands import CommandRefused
    from controller.core.people import NotAllowed
    from controller.core.rollout import LogError
    from controller.ports import PortError
    from controller.settings import SettingsError
    from services.errors import ServiceError
    from specfile import SpecError

    if not isinstance(
        exc,
        BadDatabaseUrl
        | DatabaseProblem
        | CommandRefused
        | NotAllowed
        | LogError
        | PortError
        | SettingsError
        | ServiceError
        | SpecError
        | OSError,
    ):
        raise exc
    said = str(exc) if isinstance(exc, SpecError) else f"penstock: {exc}"
    if isinstance(exc, OSError) and exc.filename is None:
        _say_no_more(sys.stdout)
        said += " (if that was the output: commands speak after they have acted, so what there was to do is done)"
    try:
        print(said, file=sys.stderr, flush=True)  # noqa: T201  # the command line's voice
    except OSError:
        _say_no_more(sys.stderr)
    return 1


if __name__ == "__main__":
    main()
