"""
`penstock demo`: one command, real parts, four candidates, and an ending for each.

`scenarios` says what happens, `run` starts and drives it, `watch` follows each rollout, `report` turns it into numbers, `view` into
pictures. Its one rule: nothing in here decides about traffic.
"""

from controller.cli.demo.run import run_demo

__all__ = ["run_demo"]
