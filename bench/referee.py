"""
The evidence engine before the referee: whole rollouts on generated traffic, each a line of JSON, and a table of them.

    python -m bench.referee PATH --reps 100 --seed 20 --rows rows.jsonl

PATH is the referee's folder; it is no part of this repository. Rows that the file holds already are not run again, so a run that was cut short
goes on, and several runs may share a file. Its one rule: it only counts; every decision is the engine's or the peer's.
"""

import argparse
import importlib
import json
import math
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PENSTOCK = {
    "penstock": "py:tests.evidence.referee_rule:Penstock:15",
    "penstock_strict": "py:tests.evidence.referee_rule:PenstockStrict:15",
}
Key = tuple[str, str, int, int, str]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.referee")
    parser.add_argument("path", type=Path, help="the referee's folder")
    parser.add_argument("--scenarios", type=Path, default=None, help="a JSON file; the referee's own otherwise")
    parser.add_argument("--only", default="", help="names of scenarios, separated by commas")
    parser.add_argument("--rules", default="penstock", help="penstock, penstock_strict, or rules that the referee knows")
    parser.add_argument("--reps", type=int, default=100)
    parser.add_argument("--slow-reps", type=int, default=0, help="of scenarios with at most 1 request/s; 0: as many")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--buckets", default="log")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rows", type=Path, required=True, help="file of results, one rollout a line")
    args = parser.parse_args(argv)
    referee = _referee(args.path)
    scenarios = referee.load_scenarios(args.scenarios or args.path / "scenarios.json")
    names = args.only.split(",") if args.only else list(scenarios)
    done = {_key(r) for r in _rows(args.rows)}
    jobs = [
        (args.path, name, scenarios[name], rule, args.seed, rep, args.buckets)
        for rep in range(args.reps)
        for name in names
        if rep < (args.slow_reps or args.reps) or scenarios[name].get("rps", 20) > 1
        for rule in args.rules.split(",")
        if (name, rule, args.seed, rep, args.buckets) not in done
    ]
    with args.rows.open("a") as out, multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        for row in pool.imap_unordered(_run, jobs):
            out.write(json.dumps(row) + "\n")
            out.flush()
    sys.stdout.write("\n".join(table([r for r in _rows(args.rows) if r["scenario"] in names], names)) + "\n")
    return 0


def table(rows: Sequence[dict[str, Any]], names: Iterable[str]) -> list[str]:
    """
    Args:
        rows: Results of `_run`.
        names: Of the scenarios, in order.

    Returns:
        Lines of Markdown: shares in percent, times in minutes.
    """
    lines = [
        "| scenario | rule | n | rollback % | reach 100 % | too early % | detect min med / p95 | exposed med / p95 | to 100% min med / p95 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        for rule in dict.fromkeys(r["rule"] for r in rows):
            some = [r for r in rows if r["scenario"] == name and r["rule"] == rule]
            if not some:
                continue
            back = [r for r in some if r["outcome"] == "rollback"]
            through = [r["t_s"] / 60 for r in some if r["outcome"] == "promoted"]
            found = [r["detect_s"] / 60 for r in back if r["detect_s"] is not None]
            exposed = [float(r["exposed_bad_total"]) for r in some]
            n = len(some)
            lines.append(
                f"| {name} ({some[0]['label']}) | {rule} | {n} | {100 * len(back) / n:.1f} | {100 * len(through) / n:.1f} "
                f"| {100 * sum(r['before_fault'] for r in some) / n:.1f} | {_pair(found, 1)} | {_pair(exposed, 0)} | {_pair(through, 0)} |"
            )
    return lines


def _pair(values: Sequence[float], digits: int) -> str:
    if not values:
        return "- / -"
    return f"{_quantile(values, 0.5):.{digits}f} / {_quantile(values, 0.95):.{digits}f}"


def _quantile(values: Sequence[float], q: float) -> float:
    """Linear between order statistics, as numpy's default."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _referee(path: Path) -> Any:
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    return importlib.import_module("referee")


def _run(job: tuple[Path, str, dict[str, Any], str, int, int, str]) -> dict[str, Any]:
    path, name, scenario, rule, seed, rep, buckets = job
    referee = _referee(path)
    made = referee.make_rule(PENSTOCK.get(rule, rule))
    found: dict[str, Any] = referee.run_one(made, name, scenario, seed, rep, referee.make_bounds(buckets))
    return found | {"rule": rule, "seed": seed, "buckets": buckets}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _key(row: dict[str, Any]) -> Key:
    return row["scenario"], row["rule"], row["seed"], row["rep"], row["buckets"]


if __name__ == "__main__":
    raise SystemExit(main())
