"""
`./dev chaos`: runs the faults, prints what they came to, and fails if anything did not hold.

Its one rule: a violation is never lost. Its trial is named with the command that runs it again, and everything it left behind is kept.
"""

import argparse
import json
import shlex
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

from bench.chaos.fault import Fault, Skipped, Trial, Violation, known_faults
from bench.chaos.report import HEADER, Row, line, publish
from bench.chaos.stage import Stage
from bench.chaos.world import World
from bench.cli import emit, say

KEPT = Path(".penstock/chaos")
BESIDE = 6
"""Trials that run side by side: most of a trial is waiting."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    chosen = _chosen(args.only)
    if args.list:
        for one in chosen:
            emit(f"{one.group:10} {one.name}")
        return 0
    begun_s = time.monotonic()
    rows = list(
        run(
            chosen,
            full=args.full,
            seed=args.seed,
            only=args.trial,
            trials=args.trials,
            report=_printer(args.output),
            keep=args.keep,
        )
    )
    took_s = time.monotonic() - begun_s
    if args.write is not None:
        publish(args.write, rows, seed=args.seed, took_s=took_s)
    bad = sum(bool(r.violations) for r in rows)
    total = sum(len(r.trials) for r in rows)
    say(f"{len(rows)} faults, {total} trials, {bad} faults with violations, {took_s:.0f} s, seed {args.seed}")
    return 1 if bad else 0


def run(
    faults: Sequence[Fault],
    *,
    full: bool,
    seed: int,
    only: int | None = None,
    trials: int | None = None,
    report: Callable[[Row], None] | None = None,
    keep: bool = False,
) -> Iterator[Row]:
    """
    Run the faults.

    Args:
        faults: Which.
        full: As many trials as the published figure has.
        seed: Of everything that is left to chance.
        only: Number of the only trial.
        trials: Instead of the faults' own numbers.
        report: Called with each Row as it is complete.
        keep: What trials without violations leave behind, too.

    Yields:
        One Row a fault, in order.
    """
    wanted = [(f, _numbers(f, full, only, trials)) for f in faults]
    wanted = [(f, numbers) for f, numbers in wanted if numbers]
    with Stage() as stage, _pool() as pool:
        beside: dict[str, list[Future[Trial]]] = {
            f.name: [pool.submit(one_trial, stage, f, seed, n, keep=keep) for n in numbers]
            for f, numbers in wanted
            if not f.alone
        }
        # Those that must be alone come last, when nothing else runs any more.
        for f, numbers in sorted(wanted, key=lambda w: w[0].alone):
            done = (
                [t.result() for t in beside[f.name]]
                if not f.alone
                else [one_trial(stage, f, seed, n, keep=keep) for n in numbers]
            )
            row = Row(fault=f, trials=done)
            if report is not None:
                report(row)
            yield row


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Whoever stops the run waits for the trials that run, not for all."""
    pool = ThreadPoolExecutor(BESIDE, thread_name_prefix="trial")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def one_trial(stage: Stage, fault: Fault, seed: int, number: int, *, keep: bool = False) -> Trial:
    """One trial; whatever goes wrong with it is a violation, never an end of the run."""
    rng = Random(f"{seed}/{fault.name}/{number}")
    folder = KEPT / f"{fault.name.replace(' ', '-').replace('/', '-')}-{seed}-{number}"
    with tempfile.TemporaryDirectory(prefix="penstock-chaos-trial-", ignore_cleanup_errors=True) as scratch:
        world: World | None = None
        try:
            with World(stage, fault, folder=Path(scratch)) as world:
                try:
                    trial = fault.run(world, rng)
                except Skipped as exc:
                    return Trial(skipped=str(exc))
                except Exception:
                    text = traceback.format_exc()
                    trial = Trial(violations=(Violation(invariant="the trial itself", text=text),))
                if trial.violations or keep:
                    _keep(world, folder, trial, Path(scratch))
        except Exception:
            trial = Trial(violations=(Violation(invariant="the trial itself", text=traceback.format_exc()),))
    if trial.violations:
        again = f"./dev chaos --seed {seed} --only {shlex.quote(fault.name)} --trial {number}"
        say(f"{fault.name}: " + "; ".join(f"{v.invariant}: {v.text}" for v in trial.violations[:5]))
        say(f"  again: {again}\n  kept:  {folder}")
    return trial


def _keep(world: World, folder: Path, trial: Trial, scratch: Path) -> None:
    try:
        world.bundle(folder, trial)
        log = scratch / "controllers.log"
        if log.exists():
            (folder / "controllers.log").write_text(log.read_text())
    except Exception as exc:  # the database may be what is broken
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "notes.txt").write_text("\n".join((*world.notes, f"not all could be kept: {exc}", "")))


def _numbers(fault: Fault, full: bool, only: int | None, trials: int | None) -> Sequence[int]:
    if only is not None:
        return [only]
    return range(1, (trials if trials is not None else fault.full if full else fault.quick) + 1)


def _chosen(names: Sequence[str]) -> list[Fault]:
    faults = known_faults()
    known = {f.name for f in faults.values()} | {f.group for f in faults.values()}
    if unknown := [n for n in names if n not in known]:
        raise SystemExit(f"no fault or group {unknown[0]!r}; ./dev chaos --list shows them")
    return [f for f in faults.values() if not names or f.name in names or f.group in names]


def _printer(output: str) -> Callable[[Row], None]:
    if output == "json":
        return lambda row: emit(json.dumps(row.to_json()))
    emit(line(HEADER))
    return lambda row: emit(line(row.cells()))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev chaos", description="Break everything, and see what still holds.")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a few trials of each fault, under five minutes (the default)")
    how.add_argument("--full", action="store_true", help="as many as docs/reliability.md has")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is left to chance")
    parser.add_argument("--only", nargs="+", default=[], metavar="FAULT", help="faults or groups")
    parser.add_argument("--trial", type=int, help="only the trial of this number")
    parser.add_argument("--trials", type=int, help="so many of each fault")
    parser.add_argument("--keep", action="store_true", help="what trials without violations leave behind, too")
    parser.add_argument("--list", action="store_true", help="the faults and their groups")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the figures in their place on a page (docs/reliability.md)"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser.parse_args(argv)
