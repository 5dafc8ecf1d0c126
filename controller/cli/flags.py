"""The flags themselves: list, kill, unkill, and what to say after a restore. The kill switch needs nothing but the flag store."""

from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from controller.cli.output import Format, Output, print_object, print_rows
from controller.settings import load
from flagspec import flag_to_json

flags = App(name="flags", help="The flags themselves: list, kill, unkill, restored.")

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


@flags.command
def restored(
    *,
    reason: str,
    seen: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    environment: Environment = "production",
    actor: str | None = None,
    output: Output = "table",
) -> int:
    """
    Say that the flag store was restored from a backup. Flags that are part-way are lowered to 0, since the store may have forgotten who
    lowered them, and routers, which ignore what is older than what they have seen, hear the store again.

    Parameters
    ----------
    seen
        The highest revision that a router has (its metric penstock_flag_revision_applied); by default far above what any can have.
    """
    from controller.act import restored as say_restored
    from controller.wiring import caller_of, open_flags

    settings = load()
    caller = caller_of(settings, actor or settings.actor, lowering=True)
    with open_flags(settings) as store:
        done = say_restored(store, environment, caller, reason=reason, seen=seen)
    row = {**asdict(done), "lowered": list(done.lowered), "kept": list(done.kept)}
    if output != "table":
        print_object(row, output)
    else:
        print_rows([{**row, "lowered": ", ".join(done.lowered), "kept": ", ".join(done.kept)}], tuple(row), "table")
    return 0


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
