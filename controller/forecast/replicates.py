"""
Many rollouts of a plan, scenario by scenario, and what came of them.

It stands between `simulate`, which plays one, and the command line. Its one rule: the same seed gives the same table, however
many processes played.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context

import numpy as np

from controller.core.plan import Plan
from controller.forecast.baseline import Baseline
from controller.forecast.scenarios import Scenario, beyond
from controller.forecast.simulate import Conditions, End, Story, play


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    The rollouts of a scenario that ended in one way.

    Args:
        end: How.
        count: How many.
        phases: In which phases, by name.
        took: Median and 90 % of the time: since the fault began for what was rolled back or paused, else since the beginning.
        exposed: Median and 90 % of the users' requests that the candidate answered, since the fault began where there is one.
        gates: What decided, by name.
        text: The sentence of the first of them.
    """

    end: End
    count: int
    phases: Counter[str]
    took: tuple[timedelta, timedelta]
    exposed: tuple[float, float]
    gates: Counter[str]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """
    One scenario.

    Args:
        scenario: What was played.
        beyond: The gates whose limits its candidate does not keep; () for a candidate that should get through.
        replicates: How many rollouts.
        outcomes: Most frequent first.
        stories: All of them.
    """

    scenario: Scenario
    beyond: tuple[str, ...]
    replicates: int
    outcomes: tuple[Outcome, ...]
    stories: tuple[Story, ...]

    @property
    def wrong(self) -> int:
        """Good candidates that were rolled back or paused, or bad ones that were promoted."""
        bad = (End.PROMOTED,) if self.beyond else (End.ROLLED_BACK, End.PAUSED)
        return sum(o.count for o in self.outcomes if o.end in bad)


def run(
    plan: Plan,
    baseline: Baseline,
    scenarios: Sequence[Scenario],
    *,
    replicates: int,
    seed: int,
    conditions: Conditions,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Result, ...]:
    """
    Args:
        plan: The rollout's plan.
        baseline: What the baseline does today.
        scenarios: Played in the same worlds: replicate 3 of each has the same load and the same bursts.
        replicates: Rollouts of each.
        seed: Names the worlds.
        conditions: Of all rollouts.
        workers: Processes; 1 plays in this one.
        progress: Told how many of all are done.
    """
    tasks = [(s, r) for s in range(len(scenarios)) for r in range(replicates)]
    stories: dict[tuple[int, int], Story] = {}
    for task, story in _played(_Job(plan, baseline, tuple(scenarios), seed, conditions), tasks, min(workers, len(tasks))):
        stories[task] = story
        progress(len(stories), len(tasks))
    return tuple(
        _result(plan, baseline, scenario, tuple(stories[s, r] for r in range(replicates))) for s, scenario in enumerate(scenarios)
    )


@dataclass(frozen=True, slots=True)
class _Job:
    plan: Plan
    baseline: Baseline
    scenarios: tuple[Scenario, ...]
    seed: int
    conditions: Conditions

    def __call__(self, task: tuple[int, int]) -> Story:
        return play(self.plan, self.baseline, self.scenarios[task[0]], (self.seed, task[1]), self.conditions)


def _played(job: _Job, tasks: Sequence[tuple[int, int]], workers: int) -> Iterator[tuple[tuple[int, int], Story]]:
    if workers <= 1:
        for task in tasks:
            yield task, job(task)
        return
    # Spawned and not forked: whoever calls may have threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_keep, initargs=(job,)) as pool:
        waiting = {pool.submit(_one, task): task for task in tasks}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


_job: _Job | None = None


def _keep(job: _Job) -> None:
    """The job is sent to a process once and not with every task."""
    global _job
    _job = job


def _one(task: tuple[int, int]) -> Story:
    assert _job is not None
    return _job(task)


def _result(plan: Plan, baseline: Baseline, scenario: Scenario, stories: tuple[Story, ...]) -> Result:
    ends = Counter(s.end for s in stories)
    return Result(
        scenario=scenario,
        beyond=beyond(plan, baseline, scenario.effect),
        replicates=len(stories),
        outcomes=tuple(_outcome(plan, end, [s for s in stories if s.end is end]) for end, _ in ends.most_common()),
        stories=stories,
    )


def _outcome(plan: Plan, end: End, stories: Sequence[Story]) -> Outcome:
    stopped = end in (End.ROLLED_BACK, End.PAUSED)
    took = [(s.took - s.fault if stopped and s.fault is not None else s.took).total_seconds() for s in stories]
    median, most = np.quantile(took, [0.5, 0.9], method="higher").tolist()
    exposed = np.quantile([s.exposed for s in stories], [0.5, 0.9], method="higher").tolist()
    return Outcome(
        end=end,
        count=len(stories),
        phases=Counter(plan.phases[s.phase].name for s in stories),
        took=(timedelta(seconds=median), timedelta(seconds=most)),
        exposed=(exposed[0], exposed[1]),
        gates=Counter(s.gate for s in stories if s.gate),
        text=stories[0].text,
    )
