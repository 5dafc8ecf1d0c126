"""What the command line must not import before it needs it: each of these costs a tenth of a second to several seconds."""

import subprocess
import sys

import pytest

HEAVY = ("numpy", "scipy", "pandas", "matplotlib", "prefect")


@pytest.mark.parametrize("command", [("--help",), ("lint", "docs/examples/rollout.yaml"), ("list",)], ids=lambda c: c[0])
def test_commands_that_judge_nothing_import_no_numerics_and_no_orchestrator(command: tuple[str, ...]) -> None:
    code = f"import sys; sys.argv = ['penstock', *{command!r}]\nfrom controller.cli.app import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    code += f"print('imported:', [m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("imported: []"), done.stdout
