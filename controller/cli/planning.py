"""
The commands before a rollout: what a plan can do on today's traffic, whole rollouts of it on invented traffic, its gates on
recorded traffic.

None of them needs a database. Their one rule: exit code 0 says that the question was answered, whatever the answer; a file that
cannot be read or an option that makes no sense is exit code 2.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from controller.cli.output import Output, errors
from controller.settings import load
from specfile import SpecError, parse_duration, parse_ratio

if TYPE_CHECKING:
    from controller.core.plan import Plan
    from controller.core.rollout import Rollout
    from controller.forecast.baseline import Baseline

EXIT_USAGE = 2

TODAY = timedelta(hours=6)
"""How much of the past a query looks at that people paste."""


class Usage(Exception):
    """Something on the command line that makes no sense; says what to write."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Traffic:
    """
    Whose traffic: given in numbers (with --rps), or today's of the baseline in Prometheus.

    Args:
        rps: Requests a second of the whole service; all other numbers below count only with it.
        prometheus: Read the last six hours of the baseline instead (the default where a Prometheus is named).
        error_rate: Share of requests that fail.
        timeout_rate: Share that times out.
        unavailable_rate: Share that gets no answer.
        p50: Median duration.
        p95: Duration that 5% exceed.
        ttft_p50: Median time to the first token.
        ttft_p95: Time to the first token that 5% exceed.
        streaming: Share of requests that stream.
        fallback_rate: Fallbacks per request.
        cost_cv: Coefficient of variation of the cost of a request.
    """

    rps: float | None = None
    prometheus: Annotated[bool, Parameter(negative="")] = False
    error_rate: str = "0.3%"
    timeout_rate: str = "0.1%"
    unavailable_rate: str = "0.03%"
    p50: str = "0.7s"
    p95: str = "2.0s"
    ttft_p50: str = "0.35s"
    ttft_p95: str = "0.9s"
    streaming: str = "60%"
    fallback_rate: str = "1.5%"
    cost_cv: float = 1.0


def plan(
    file: Path,
    *,
    traffic: Traffic | None = None,
    promql: Annotated[bool, Parameter(negative="")] = False,
    output: Output = "table",
) -> int:
    """
    What a plan can prove and catch on today's traffic, how long it takes, where it cannot work, and what would help; and what it changes from
    the last rollout of its flag, where a log is at hand.

    Nothing is simulated: the times are computed from the formulas of the gates, for a candidate that is like the baseline.

    Args:
        file: The rollout.yaml.
        promql: Also print each gate's number as a query to paste into Prometheus.
    """

    def answer() -> int:
        from controller.cli import planned
        from controller.forecast.outlook import outlook

        wanted = _read(file)
        baseline = _baseline(wanted, traffic or Traffic())
        try:
            found = outlook(wanted, baseline)
        except ValueError as exc:
            raise Usage(f"{file}: {exc}") from exc
        now = datetime.now(UTC)
        asked = planned.Asked(queries=_queries(wanted, now), shown=promql, before=_last_rollout(wanted))
        planned.show_outlook(wanted, baseline, found, now, asked, output)
        return 0

    return _answered(answer)


def simulate(
    file: Path,
    *,
    scenario: Annotated[list[str] | None, Parameter(negative="")] = None,
    traffic: Traffic | None = None,
    replicates: int = 10,
    seed: int = 1,
    approvals: bool = True,
    freezes: Annotated[bool, Parameter(negative="")] = False,
    patience: str = "24h",
    workers: int | None = None,
    plot: Path | None = None,
    output: Output = "table",
) -> int:
    """
    Whole rollouts of a plan on invented traffic, judged and decided by the code that runs live.

    Args:
        file: The rollout.yaml.
        scenario: A built-in name or `key=value` pairs such as latency=1.3,errors=2%,after=2h; may be repeated. `list` names all;
            default all.
        replicates: Rollouts of each scenario.
        seed: The same seed gives the same rollouts.
        approvals: People say yes at once; --no-approvals stops where they are asked.
        freezes: Keep the plan's calendars, as from now.
        patience: A rollout that stays in a phase for so long beyond its bake counts as waiting.
        workers: Processes; default one for each processor.
        plot: Also draw it, as .png or .svg.
    """

    def answer() -> int:
        from controller.cli import planned
        from controller.forecast.replicates import run
        from controller.forecast.scenarios import UnknownScenario, built_in, listed, named
        from controller.forecast.simulate import BEGIN, Conditions

        wanted = _read(file)
        if scenario == ["list"]:
            planned.show_scenarios(listed(wanted), output)
            return 0
        if replicates < 1 or (workers is not None and workers < 1):
            raise Usage("--replicates and --workers must be at least 1")
        if plot is not None and (plot.suffix not in (".png", ".svg") or not plot.absolute().parent.is_dir()):
            raise Usage(f"--plot {plot}: write a path that ends in .png or .svg, in a folder that exists")
        try:
            chosen = [named(wanted, name) for name in scenario] if scenario else list(built_in(wanted).values())
        except UnknownScenario as exc:
            raise Usage(str(exc)) from exc
        conditions = Conditions(
            patience=_duration("--patience", patience),
            approvals=approvals,
            freezes=freezes,
            begin=datetime.now(UTC) if freezes else BEGIN,
        )
        baseline = _baseline(wanted, traffic or Traffic())
        with _progress("rollouts") as progress:
            results = run(
                wanted,
                baseline,
                chosen,
                replicates=replicates,
                seed=seed,
                conditions=conditions,
                workers=workers or os.cpu_count() or 1,
                progress=progress,
            )
        if plot is not None:
            from controller.forecast.plot import draw

            draw(wanted, results, plot)
        planned.show_results(wanted, baseline, results, conditions, seed, output)
        if plot is not None:
            errors.print(f"drawn: {plot}", soft_wrap=True, markup=False)
        return 0

    return _answered(answer)


def backtest(
    file: Path,
    *,
    from_: Annotated[str, Parameter(name="--from", allow_leading_hyphen=True)],
    to: Annotated[str, Parameter(allow_leading_hyphen=True)] = "now",
    arm: Annotated[list[str] | None, Parameter(negative="")] = None,
    output: Output = "table",
) -> int:
    """
    What the gates of a plan would have said of traffic that Prometheus has recorded; each phase's gates as if it had lasted all
    the time.

    Args:
        file: The rollout.yaml.
        from_: Beginning: 2026-11-20T08:00 (UTC unless it says otherwise), or 2h or -3d: so long ago.
        to: End, written alike.
        arm: Labels of an arm's series instead of the plan's: baseline=model:gpt-4.1 (several: model:gpt-4.1,region:eu); may be
            repeated.
    """

    def answer() -> int:
        from controller.cli import planned
        from controller.forecast.backtest import NothingRecorded
        from controller.forecast.backtest import backtest as test
        from controller.wiring import make_metrics

        wanted = _read(file)
        now = datetime.now(UTC)
        since, until = _time("--from", from_, now), _time("--to", to, now)
        if not since < until <= now:
            raise Usage(
                f"--from {since:%Y-%m-%d %H:%M} must lie before --to {until:%Y-%m-%d %H:%M}, and that not in the future (UTC)"
            )
        arms = dict(_arm(text) for text in arm or [])
        metrics = make_metrics(load())
        try:
            with _progress("pieces of traffic") as progress:
                found = test(wanted, metrics, since, until, arms=arms, progress=progress)
        except NothingRecorded as exc:
            errors.print(f"penstock: {exc}", soft_wrap=True, markup=False)
            return 1
        planned.show_backtest(wanted, found, output)
        return 0

    return _answered(answer)


def _queries(plan: "Plan", now: datetime) -> dict[str, dict[str, str]]:
    """Each gate's queries by arm; what cannot be asked is said in their place."""
    from controller.adapters.prometheus.profile import NotAskable, load_profile
    from controller.adapters.prometheus.readable import queries

    profile, found = load_profile(plan.profile), {}
    for gate in plan.gates:
        try:
            asked = queries(plan, gate, profile, TODAY, now)
        except NotAskable as exc:
            asked = {"problem": str(exc)}
        if asked:
            found[gate.name] = asked
    return found


def _last_rollout(plan: "Plan") -> "Rollout | None":
    """The last rollout of the flag; None where there is none, or no log to ask: a plan can be looked at anywhere."""
    from controller.adapters.postgres.errors import DatabaseProblem
    from controller.compare import last_of
    from controller.ports import PortError
    from controller.wiring import open_controller

    settings = load()
    if settings.database_url is None:
        return None
    try:
        with open_controller(settings, reading=True) as opened:
            return last_of(plan.flag, plan.environment, opened.ports)
    except (PortError, DatabaseProblem) as exc:
        errors.print(f"note: the last rollout of {plan.flag} is not known: {exc}", soft_wrap=True, markup=False)
        return None


def _answered(answer: Callable[[], int]) -> int:
    from controller.forecast.baseline import NothingMeasured

    try:
        return answer()
    except (SpecError, Usage) as exc:
        errors.print(str(exc) if isinstance(exc, SpecError) else f"penstock: {exc}", soft_wrap=True, markup=False)
        return EXIT_USAGE
    except NothingMeasured as exc:
        errors.print(f"penstock: {exc}", soft_wrap=True, markup=False)
        return 1


def _read(file: Path) -> "Plan":
    from controller.spec import read

    return read(file).to_plan()


def _baseline(plan: "Plan", traffic: Traffic) -> "Baseline":
    from controller.forecast.baseline import Given, assumed, read
    from controller.wiring import make_metrics

    if traffic.rps is not None and traffic.prometheus:
        raise Usage("--rps and --prometheus: the traffic is either given or read")
    if traffic.rps is None:
        settings = load()
        if settings.prometheus_url is None and not traffic.prometheus:
            raise Usage(
                "how much traffic is there? Write --rps N (requests a second), or set PENSTOCK_PROMETHEUS_URL to read today's"
            )
        return read(plan, make_metrics(settings), datetime.now(UTC))
    try:
        given = Given(
            rps=traffic.rps,
            errors=_ratio("--error-rate", traffic.error_rate),
            timeouts=_ratio("--timeout-rate", traffic.timeout_rate),
            unavailable=_ratio("--unavailable-rate", traffic.unavailable_rate),
            p50_s=_duration("--p50", traffic.p50).total_seconds(),
            p95_s=_duration("--p95", traffic.p95).total_seconds(),
            ttft_p50_s=_duration("--ttft-p50", traffic.ttft_p50).total_seconds(),
            ttft_p95_s=_duration("--ttft-p95", traffic.ttft_p95).total_seconds(),
            streaming=_ratio("--streaming", traffic.streaming),
            fallbacks=_ratio("--fallback-rate", traffic.fallback_rate),
            cost_cv=traffic.cost_cv,
        )
    except ValueError as exc:
        raise Usage(str(exc)) from exc
    return assumed(plan, given)


def _ratio(option: str, text: str) -> float:
    try:
        return parse_ratio(text)
    except ValueError as exc:
        raise Usage(f"{option}: {exc}") from exc


def _duration(option: str, text: str) -> Any:
    try:
        return parse_duration(text)
    except ValueError as exc:
        raise Usage(f"{option}: {exc}") from exc


def _time(option: str, text: str, now: datetime) -> datetime:
    """A moment: ISO 8601, ``now``, or a duration ago."""
    if text == "now":
        return now
    try:
        return now - parse_duration(text.removeprefix("-"))
    except (ValueError, OverflowError):
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Usage(f"{option}: {text!r} is no time (write 2026-11-20T08:00, or 2h for two hours ago)") from None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _arm(text: str) -> tuple[str, dict[str, str]]:
    name, _, labels = text.partition("=")
    pairs = [p.partition(":") for p in labels.split(",")]
    if name not in ("baseline", "candidate") or not all(key and value for key, _, value in pairs):
        raise Usage(
            f"--arm {text!r}: write baseline=label:value or candidate=label:value, several labels with commas between them"
        )
    return name, {key: value for key, _, value in pairs}


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; silence elsewhere."""
    if not errors.is_terminal:
        yield lambda done, of: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
