"""
The demo's users: one open-loop stream of requests for each scenario, on an event loop of their own.

Its one rule: nothing that the demo watches or draws can delay an arrival; what comes back is read from the tallies.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from bench.arrivals import Arrival, TraceError, Users, read_trace, trace_arrivals, trace_rate
from bench.sample_trace import make_trace, write_trace
from bench.serving import uvloop_runner
from bench.tally import Tally
from bench.traffic import TrafficPlan, drive
from controller.cli.demo.scenarios import Scenario

SAMPLE_ROWS = 1500
SAMPLE_RATE = 6.0
USERS = 5000
"""So many that 5% of them make close to 5% of the requests: the share's deviation is 0.3 percentage points."""

STREAM_SHARE = 0.1
RATE_MIN = 20.0
"""Below it, 5% of the requests are too few for a gate to pass in the time that the demo has."""


class Traffic:
    """
    Args:
        base_url: OpenAI base address of the router, with `/v1`.
        scenarios: Whose routes to use.
        trace: Arrivals as recorded.
        speed: Times as fast as recorded; None fits the trace to each scenario's rate.
        seed: Of all draws.
    """

    def __init__(
        self, base_url: str, scenarios: Sequence[Scenario], trace: Sequence[Arrival], *, speed: float | None, seed: int
    ) -> None:
        self.tallies: Mapping[str, Tally] = {s.name: Tally() for s in scenarios}
        self.failure: BaseException | None = None
        self._plans = {s.name: _plan(base_url, s, trace, speed, seed + i) for i, s in enumerate(scenarios)}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stops: dict[str, asyncio.Event] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def end(self, scenario: Scenario) -> None:
        """Nobody asks for this scenario's route any more; the others have the machine for themselves."""
        if self._loop is not None and self._thread.is_alive() and (stop := self._stops.get(scenario.name)) is not None:
            self._loop.call_soon_threadsafe(stop.set)

    def stop(self) -> None:
        """End it without waiting for answers; safe to call again, and before `start`."""
        if self._loop is not None and self._thread.is_alive():
            for stop in self._stops.values():
                self._loop.call_soon_threadsafe(stop.set)
            self._thread.join(10)

    def answered(self, scenario: Scenario, model: str, arm: str) -> int:
        """User requests that a model answered in an arm, as the router told the user."""
        served = self.tallies[scenario.name].to_json()["served"]
        return sum(int(row["requests"]) for row in served if row["arm"] == arm and row["model"] == model)

    def _run(self) -> None:
        try:
            with uvloop_runner() as runner:
                runner.run(self._drive())
        except BaseException as exc:
            self.failure = exc
        finally:
            self._ready.set()

    async def _drive(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stops = {name: asyncio.Event() for name in self._plans}
        self._ready.set()
        runs = (drive(plan, stop=self._stops[name], tally=self.tallies[name]) for name, plan in self._plans.items())
        await asyncio.gather(*runs)


def sample_trace(path: Path, seed: int) -> tuple[Arrival, ...]:
    """A trace of our own making, written beside the demo's other files so that people can look at the format."""
    trace = make_trace(rows=SAMPLE_ROWS, rate=SAMPLE_RATE, seed=seed)
    write_trace(path, trace)
    return trace


def load_trace(path: Path, speed: float | None) -> tuple[Arrival, ...]:
    """
    Raises:
        TraceError: it cannot be read, or is too slow for the demo.
    """
    trace = read_trace(path)
    if speed is not None and (rate := trace_rate(trace) * speed) < RATE_MIN:
        needed = RATE_MIN / trace_rate(trace)
        raise TraceError(
            f"{path}: {rate:.1f} requests a second at --speed {speed:g}; the demo needs {RATE_MIN:g} (--speed {needed:.0f})"
        )
    return trace


def _plan(base_url: str, scenario: Scenario, trace: Sequence[Arrival], speed: float | None, seed: int) -> TrafficPlan:
    fitting = scenario.rate / trace_rate(trace)
    return TrafficPlan(
        base_url=base_url,
        model=scenario.flag,
        arrivals=islice(trace_arrivals(trace, speed=speed or fitting), 10_000_000),
        stream_share=STREAM_SHARE,
        users=Users(USERS, zipf=0.0, seed=seed),
        max_in_flight=2000,
        timeout_s=30.0,
        max_output_tokens=1024,
        seed=seed,
    )
