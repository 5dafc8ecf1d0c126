"""The flags themselves: list, kill, unkill. The kill switch needs nothing but the flag store."""

from typing import Annotated

from cyclopts import App, Parameter

from controller.cli.output import Format, Output, print_object, print_rows
from controller.settings import load
from flagspec import flag_to_json

flags = App(name="flags", help="The flags themselves: list, kill, unkill.")

Environment = Annotated[str, Parameter(name=["--environment", "-e"])]


@flags.command(name="list")
def list_(*, environment: Environment = "production", output: Output = "table") -> int:
    """The flags of an environment and what they carry."""
    from controller.wiring import open_flags

    with open_flags(load()) as store:
        snapshot = store.snapshot(environment)
    rows = [flag_to_json(f) for f in snapshot.flags]
    if output == "table":
        rows = [{**r, "control": r["control"]["model"], "candidate": r["candidate"]["model"]} for r in rows]
    columns = ("key", "weight", "shadow_weight", "killed", "control", "candidate", "version", "revision", "decision_id")
    print_rows(rows, columns, output)
    return 0


@flags.command
def kill(
    key: str, *, reason: str, environment: Environment = "production", actor: str | None = None, output: Output = "table"
) -> int:
    """Send everybody to the control at once, whatever any rollout says; stays until un-killed."""
    return _switch(key, True, reason, environment, actor, output)


@flags.command
def unkill(
    key: str, *, reason: str, environment: Environment = "production", actor: str | None = None, output: Output = "table"
) -> int:
    """Take a kill back. The weights stay 0: no traffic comes back by itself."""
    return _switch(key, False, reason, environment, actor, output)


def _switch(key: str, killed: bool, reason: str, environment: str, actor: str | None, output: Format) -> int:
    from controller.act import switch
    from controller.wiring import caller_of, open_flags

    settings = load()
    caller = caller_of(settings, actor or settings.actor, lowering=killed)
    with open_flags(settings) as store:
        flag = switch(store, environment, key, killed, caller, reason=reason)
    if output != "table":
        print_object(flag_to_json(flag), output)
    else:
        print_rows([flag_to_json(flag)], ("key", "killed", "weight", "shadow_weight", "version", "revision"), "table")
    return 0
