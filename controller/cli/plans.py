"""
The commands about files: a rollout.yaml written out whole, and what differs between two plans.

Neither changes anything. Their one rule: what is named is either a file or a rollout, and whichever it is, it is said which was looked for.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from controller.cli.output import Output, console, errors, print_json, print_rows
from controller.spec import read

LINE = 115
"""Characters of a mapping that stands on one line."""

if TYPE_CHECKING:
    from controller.core.plan import Plan
    from controller.ports import Ports


def render(file: Path, *, output: Annotated[str, Parameter(name=["--output", "-o"], help="yaml or json")] = "yaml") -> int:
    """
    A rollout.yaml with every default written out, in the order of the reference.

    Args:
        file: The rollout.yaml.
    """
    if output not in ("yaml", "json"):
        errors.print(f"penstock: -o {output}: write yaml or json", markup=False)
        return 2
    whole = read(file).written()
    if output == "json":
        print_json(whole)
    else:
        console.out(as_yaml(whole), end="", highlight=False)
    return 0


def as_yaml(data: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """
    YAML as people write a rollout.yaml: what fits on a line stands on one.

    Args:
        data: JSON values.
        comments: By top-level key, what stands behind it.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    yaml = YAML()
    yaml.width = 130
    yaml.indent(mapping=2, sequence=4, offset=2)
    whole = CommentedMap({key: _laid_out(value) for key, value in data.items()})
    for key, text in (comments or {}).items():
        whole.yaml_set_comment_before_after_key(key, before=text)
    out = io.StringIO()
    yaml.dump(whole, out)
    return out.getvalue()


def _laid_out(value: Any) -> Any:
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    match value:
        case Mapping():
            made = CommentedMap({k: _laid_out(v) for k, v in value.items()})
            if len(json.dumps(value).replace('"', "")) < LINE:
                made.fa.set_flow_style()
            return made
        case list():
            listed = CommentedSeq([_laid_out(v) for v in value])
            if not any(isinstance(v, Mapping) for v in value):
                listed.fa.set_flow_style()
            return listed
        case _:
            return value


def diff(
    first: Annotated[str, Parameter(help="A rollout.yaml, or a rollout")],
    second: Annotated[str | None, Parameter(help="Another; default: the latest rollout of the same flag")] = None,
    *,
    output: Output = "table",
) -> int:
    """What changes from the second plan to the first: each gate, phase and setting that differs."""
    from controller.compare import differences, last_of

    if second is not None and Path(first).exists() and Path(second).exists():
        after, before, beside = read(Path(first)).to_plan(), read(Path(second)).to_plan(), second
    else:
        from controller.cli.rollouts import log_opened

        with log_opened() as ports:
            after = _plan(first, ports)
            if second is not None:
                before, beside = _plan(second, ports), second
            else:
                earlier = last_of(
                    after.flag, after.environment, ports, before=None if Path(first).exists() else _id(first, ports)
                )
                if earlier is None:
                    errors.print(
                        f"no rollout of flag {after.flag} in {after.environment} to compare with", soft_wrap=True, markup=False
                    )
                    return 0
                before, beside = earlier.plan, earlier.id
    found = differences(before, after)
    if not found and output == "table":
        console.print(f"no difference from {beside}", soft_wrap=True, markup=False)
        return 0
    rows = [{"what": d.path, "was": d.before, "is": d.after} for d in found]
    print_rows(rows, ("what", "was", "is"), output, title=f"Changed from {beside}" if output == "table" else None)
    return 0


def _plan(named: str, ports: "Ports") -> "Plan":
    """Raises UnknownRollout, SpecError."""
    if Path(named).exists():
        return read(Path(named)).to_plan()
    from controller.standing import standing

    return standing(_id(named, ports), ports.audit, ports.standings).plan


def _id(named: str, ports: "Ports") -> str:
    from controller.cli.rollouts import resolve
    from controller.ports import UnknownRollout

    try:
        return resolve(ports, named)
    except UnknownRollout as exc:
        raise UnknownRollout(f"{named}: there is neither such a file nor such a rollout ({exc})") from exc


def completion(shell: Annotated[str, Parameter(help="bash, zsh or fish")]) -> int:
    """
    A script that completes this command line: penstock completion bash > ~/.local/share/bash-completion/completions/penstock
    """
    from controller.cli.app import app

    if shell not in ("bash", "zsh", "fish"):
        errors.print(f"penstock: {shell}: write bash, zsh or fish", markup=False)
        return 2
    console.out(app.generate_completion(prog_name="penstock", shell=shell), highlight=False)  # type: ignore[arg-type]
    return 0
