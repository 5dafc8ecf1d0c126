"""What `penstock --help` costs in CPU, beside a bare `python -c pass`, medians of several runs in turn."""

import argparse
import json
import resource
import statistics
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.help_time", description=__doc__)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    help_s, bare_s = [], []
    for _ in range(options.runs):
        help_s.append(_cpu_s([sys.executable, "-m", "controller.cli.app", "--help"]))
        bare_s.append(_cpu_s([sys.executable, "-c", "pass"]))
    figures = {"help_cpu_s": round(statistics.median(help_s), 3), "bare_python_cpu_s": round(statistics.median(bare_s), 3)}
    sys.stdout.write(
        json.dumps(figures) + "\n" if options.output == "json" else "".join(f"{k:<26}{v:>12}\n" for k, v in figures.items())
    )
    return 0


def _cpu_s(argv: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


if __name__ == "__main__":
    sys.exit(main())
