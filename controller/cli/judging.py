"""
`penstock judge`, by itself: it needs none of what the other commands load, which would cost more than an hour of scrapes.
"""

import gc
import sys
from typing import Annotated

from cyclopts import Parameter


def judge(
    *,
    evidence_required: Annotated[bool, Parameter(help="Nothing proceeds on evidence that only leans the right way")] = False,
) -> int:
    """
    Judge rollouts from cumulative counters: one JSON object a line on stdin, one decision a line on stdout.

    The statistics stay valid however often one looks; they are those of the live gates.
    """
    from controller.judge import main

    gc.freeze()  # what the command line has loaded need not be walked again while hours of scrapes are read
    return main(sys.stdin, sys.stdout, evidence_required=evidence_required)
