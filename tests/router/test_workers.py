"""Several processes of one router: what they count together, what happens when one dies, and their metrics as one page."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from router.breaker import TICKS_PER_S, Breaker, SharedWindow, Window
from router.budget import Allowance, Budget
from router.config import Breaker as BreakerSpec
from router.config import Budget as BudgetSpec
from router.config import Limits, ShadowBudget
from router.limits import Meter
from router.shared import Shared
from router.workers import merged
from tests.router.harness import Upstream, answer, events, serve_upstream, status

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 5, 4, 9, 30, tzinfo=UTC)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Shared, Shared]:
    Shared.make(str(tmp_path / "counts"))
    return Shared(str(tmp_path / "counts"), 0, 2), Shared(str(tmp_path / "counts"), 1, 2)


# --- what is counted together ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.sampled_from(["add", "forget", "clear"])), max_size=60),
    st.integers(1, 300),
)
def test_a_window_that_is_shared_counts_as_one_that_is_not(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool, str]], length: int
) -> None:
    path = str(tmp_path_factory.mktemp("shared") / "counts")
    Shared.make(path)
    own = Window(length)
    both = [SharedWindow(length, Shared(path, worker, 2)) for worker in (0, 1)]
    tick = 1000
    for number, (gap, bad, what) in enumerate(steps):
        tick += gap
        one = both[number % 2]
        if what == "clear":
            own.clear(), one.clear()
        else:
            own.forget(tick), one.forget(tick)
            if what == "add":
                own.add(bad, tick), one.add(bad, tick)
        assert {(w.total, w.bad) for w in both} == {(own.total, own.bad)}


def test_answers_of_both_open_the_breaker_of_both_and_one_probe_closes_it(stores: tuple[Shared, Shared]) -> None:
    one, two = (Breaker(BreakerSpec.model_validate({"window": "2m", "min_requests": 4, "open_for": "30s"}), s) for s in stores)
    for asked in (one, two, one, two):
        ticket = asked.admit(1.0)
        assert ticket is not None and ticket.lease is None
        asked.report(ticket, "bad", 1.0)
    assert (one.state(2.0), two.state(2.0), two.admit(2.0), two.wait_s(2.0)) == ("open", "open", None, 29.0)
    probe = two.admit(31.0)
    assert probe is not None and one.admit(31.0) is None, "one probe for all"
    two.report(probe, "good", 32.0)
    assert (one.state(32.0), one.window(32.0)) == ("closed", (0, 0))


def test_answers_from_before_it_opened_count_for_nobody(stores: tuple[Shared, Shared]) -> None:
    one, two = (Breaker(BreakerSpec.model_validate({"window": "2m", "min_requests": 1, "open_for": "30s"}), s) for s in stores)
    late = two.admit(1.0)
    ticket = one.admit(1.0)
    assert late is not None and ticket is not None
    one.report(ticket, "bad", 1.0)
    probe = one.admit(31.0)
    assert probe is not None
    one.report(probe, "good", 31.0)
    two.report(late, "bad", 31.0)
    assert two.state(31.0) == "closed"


def test_limits_are_those_of_all_together_and_a_dead_workers_calls_are_free_again(
    tmp_path: Path, stores: tuple[Shared, Shared]
) -> None:
    spec = Limits(requests_per_s=3, tokens_per_min=600, concurrency=2)
    one, two = (Meter(spec, s) for s in stores)
    assert (one.try_begin(100, 5.0), two.try_begin(100, 5.0)) == (0, 0)
    assert two.wait_s(0, 5.0)[1] == "2 calls at once" and one.under_way == two.under_way == 2
    one.end(100, 500, 5.0)
    assert one.try_begin(1, 5.0) == pytest.approx(0.1), "600 tokens are used up"
    again = Meter(spec, Shared(str(tmp_path / "counts"), 1, 2))
    assert again.under_way == 0 and one.under_way == 0, "its predecessor's call has died with it"


def test_budgets_are_spent_together_and_begin_anew_together(stores: tuple[Shared, Shared]) -> None:
    specs = [BudgetSpec.model_validate({"environment": "e", "per_day": "10 USD", "on_exceed": "refuse"})]
    one, two = (Budget(specs, "e", {}, s) for s in stores)
    one.spend(6, NOW), two.spend(5, NOW)
    assert one.exceeded(NOW) and two.spent_usd(NOW) == 11 and one.spent_usd(NOW + timedelta(days=1)) == 0
    copies = [Allowance(ShadowBudget.model_validate({"tokens_per_minute": 100, "per_day": "1 USD"}), s) for s in stores]
    copies[0].use(0.5, 100, NOW)
    assert copies[1].exhausted(NOW) and not copies[1].exhausted(NOW + timedelta(minutes=1))
    assert copies[1].used("day", "usd", NOW + timedelta(minutes=1)) == 0.5


def test_ticks_are_fine_enough_for_the_ring_to_hold_the_window() -> None:
    assert BreakerSpec().window.total_seconds() * TICKS_PER_S * 8 < 2**20


# --- metrics --------------------------------------------------------------------------------------------------------------------

PAGE = b"""# HELP requests_total All.
# TYPE requests_total counter
requests_total{model="a b"} %d
requests_total %d # {trace_id="1"} 1.0
# HELP up_info Is.
# TYPE up_info gauge
up_info{} 1
"""


def test_series_of_one_name_stand_together_and_say_whose_they_are() -> None:
    page = merged(
        [PAGE % (1, 2), (PAGE % (3, 4)) + b'# HELP late_total Later.\n# TYPE late_total counter\nlate_total{a="}"} 5\n']
    )
    assert page.decode().splitlines() == [
        "# HELP requests_total All.",
        "# TYPE requests_total counter",
        'requests_total{worker="0",model="a b"} 1',
        'requests_total{worker="0"} 2 # {trace_id="1"} 1.0',
        'requests_total{worker="1",model="a b"} 3',
        'requests_total{worker="1"} 4 # {trace_id="1"} 1.0',
        "# HELP up_info Is.",
        "# TYPE up_info gauge",
        'up_info{worker="0"} 1',
        'up_info{worker="1"} 1',
        "# HELP late_total Later.",
        "# TYPE late_total counter",
        'late_total{worker="1",a="}"} 5',
    ]
    assert merged([b"a 1\n# EOF\n", b"a 2\n# EOF\n"]).endswith(b'a{worker="1"} 2\n# EOF\n')


# --- as processes ---------------------------------------------------------------------------------------------------------------


class Fleet:
    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    async def ask(self, model: str = "old", **fields: Any) -> tuple[int, str]:
        """By a connection of its own, so that the workers take turns."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "user": os.urandom(4).hex(), **fields}
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.post(f"{self.url}/v1/chat/completions", json=body) as got,
        ):
            return got.status, await got.text()

    async def hammer(self, seconds: float, clients: int, model: str = "old") -> tuple[Counter[int], float]:
        """Answers by status, and how long it took."""
        seen: Counter[int] = Counter()
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def one() -> None:
            while loop.time() - began < seconds:
                code, _ = await self.ask(model)
                seen[code] += 1
                await asyncio.sleep(0.02)

        await asyncio.gather(*(one() for _ in range(clients)))
        return seen, loop.time() - began

    async def metrics(self) -> dict[tuple[str, str], dict[str, float]]:
        """By name and worker: values by their other labels."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as got:
            assert got.status == 200, await got.text()
            page = await got.text()
        found: dict[tuple[str, str], dict[str, float]] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                labels = dict(sample.labels)
                worker = labels.pop("worker")
                found.setdefault((sample.name, worker), {})[json.dumps(labels, sort_keys=True)] = sample.value
        return found

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in listed]


@asynccontextmanager
async def fleet(tmp_path: Path, upstream: Upstream, workers: int = 3, **old: Any) -> AsyncIterator[Fleet]:
    data = {
        "apiVersion": "penstock/v1",
        "kind": "Router",
        "listen": "127.0.0.1:0",
        "providers": [{"name": "p", "base_url": upstream.url}],
        "models": [{"name": "old", "provider": "p", **old}],
        "routes": [{"name": "chat", "match": {"model": ["chat"]}, "default": "old"}],
    }
    path = tmp_path / "router.yaml"
    path.write_text(json.dumps(data))
    command = [sys.executable, "-m", "router", "--config", str(path), "--workers", str(workers)]
    process = await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stderr is not None
        line = ""
        while "listening on" not in line:
            line = await asyncio.to_thread(process.stderr.readline)
            assert line, "it ended"
        found = re.fullmatch(r"penstock router listening on (http://\S+) \((\d+) workers\)\n", line)
        assert found and int(found[2]) == workers, line
        yield Fleet(process, found[1])
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0
        process.stderr.close()  # type: ignore[union-attr]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with serve_upstream() as one:
        yield one


async def test_three_workers_hold_a_limit_of_requests_together(tmp_path: Path, upstream: Upstream) -> None:
    async with fleet(tmp_path, upstream, limits={"requests_per_s": 30, "queue": 1, "max_wait": "1ms"}) as router:
        seen, took_s = await router.hammer(4.0, 30)
        # A second's worth may come at once.
        allowed = 30 + 30 * took_s
        assert set(seen) == {200, 429}
        assert 0.9 * allowed < seen[200] <= 1.02 * allowed
        served = {w: sum(v.values()) for (name, w), v in (await router.metrics()).items() if name == "penstock_requests_total"}
        assert len(served) == 3 and min(served.values()) > 0, "all of them serve"


async def test_three_workers_hold_a_number_of_calls_at_once_together(tmp_path: Path, upstream: Upstream) -> None:
    under_way = most = 0

    async def slowly(request: Any, body: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.1)
        under_way -= 1
        return await answer(request, body)

    upstream.script["old"] = slowly
    async with fleet(tmp_path, upstream, limits={"concurrency": 4, "queue": 100, "max_wait": "20s"}) as router:
        done = await asyncio.gather(*(router.ask() for _ in range(40)))
        assert Counter(code for code, _ in done) == {200: 40}, "those who wait in one worker hear of calls that end in another"
        assert most == 4


async def test_three_workers_hold_a_limit_of_tokens_together(tmp_path: Path, upstream: Upstream) -> None:
    # Each answer says 1,200 tokens.
    async with fleet(tmp_path, upstream, limits={"tokens_per_min": 120_000, "queue": 1, "max_wait": "1ms"}) as router:
        seen, took_s = await router.hammer(3.0, 12)
        allowed = (120_000 + 2000 * took_s) / 1200
        assert 0.9 * allowed < seen[200] < 1.1 * allowed + 12, "calls under way when it was used up go on"


async def test_what_one_worker_sees_fail_no_other_one_asks(tmp_path: Path, upstream: Upstream) -> None:
    upstream.script["old"] = status(500)
    async with fleet(tmp_path, upstream, breaker={"min_requests": 9, "open_for": "60s"}) as router:
        for _ in range(9):
            await router.ask()
        asked = len(upstream.calls)
        codes = [code for code, _ in await asyncio.gather(*(router.ask() for _ in range(30)))]
        assert len(upstream.calls) == asked and set(codes) == {503}
        states = {w: v for (name, w), v in (await router.metrics()).items() if name == "penstock_breaker_state"}
        assert len(states) == 3
        assert all(value == 1.0 for v in states.values() for labels, value in v.items() if '"state": "open"' in labels)


async def test_a_worker_that_is_killed_is_missed_by_nobody_and_comes_back(tmp_path: Path, upstream: Upstream) -> None:
    async with fleet(tmp_path, upstream, limits={"concurrency": 3, "queue": 50, "max_wait": "20s"}) as router:
        before = set(router.children())
        assert len(before) == 3
        upstream.script["old"] = upstream.hang
        hanging = [asyncio.create_task(router.ask()) for _ in range(3)]
        while len(upstream.calls) < 3:
            await asyncio.sleep(0.01)
        for pid in before:  # with what they hold: all three calls that may be under way
            os.kill(pid, signal.SIGKILL)
        assert all(isinstance(r, aiohttp.ClientError) for r in await asyncio.gather(*hanging, return_exceptions=True))
        upstream.script["old"] = answer
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                code, _ = await router.ask()
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
                continue
            assert code == 200, "their places are free again"
            break
        while len(after := set(router.children())) < 3:
            await asyncio.sleep(0.1)
        assert not before & after


async def test_a_stream_under_way_ends_whole_when_the_router_is_told_to_stop(tmp_path: Path, upstream: Upstream) -> None:
    go = asyncio.Event()

    async def held(request: Any, body: Any) -> Any:
        await go.wait()
        return await events(
            b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n', b"data: [DONE]\n\n"
        )(request, body)

    upstream.script["old"] = held
    async with fleet(tmp_path, upstream, workers=2) as router:
        asked = asyncio.create_task(router.ask(stream=True))
        while not upstream.calls:
            await asyncio.sleep(0.01)
        router.process.terminate()
        await asyncio.sleep(0.3)
        go.set()
        code, text = await asked
        assert code == 200 and text.rstrip().endswith("data: [DONE]")


def test_workers_that_cannot_run_end_it_with_1(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("apiVersion: penstock/v1\nkind: Router\n")
    done = subprocess.run(
        [sys.executable, "-m", "router", "--config", str(path), "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1 and "router.yaml" in done.stderr and "Traceback" not in done.stderr
    wrong = subprocess.run(
        [sys.executable, "-m", "router", "--config", str(path), "--workers", "0"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert wrong.returncode == 2 and "'0' is not a number of processes" in wrong.stderr
