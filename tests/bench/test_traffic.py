"""Traces, and the traffic driver against the provider simulator."""

import asyncio
import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench import sample_trace, traffic
from bench.arrivals import Arrival, TraceError, Users, poisson_arrivals, read_trace, trace_arrivals, trace_rate
from bench.behaviour import Errors, Latency, ModelBehaviour
from bench.provider import Provider, running_provider
from bench.sample_trace import make_trace, write_trace
from bench.tally import Tally, quantiles
from bench.traffic import TrafficPlan, drive

QUICK = ModelBehaviour(ttft=Latency(median_s=0.001, sigma=0), tokens_per_s=100_000)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"


def burst(count: int, *, output_tokens: int = 5) -> list[Arrival]:
    return [Arrival(0.0, 100, output_tokens) for _ in range(count)]


def test_the_azure_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    assert read_trace(path) == (Arrival(0.0, 374, 44), Arrival(4.314579, 396, 109))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: empty file; the first line names the columns TIMESTAMP,ContextTokens,GeneratedTokens"),
        ("TIMESTAMP,ContextTokens\n", ":1: no column GeneratedTokens; found TIMESTAMP,ContextTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", ":2: no rows after the header"),
        (AZURE + "2023-11-16 18:15:51,1\n", ":4: 2 columns, expected 3"),
        (AZURE + "2023-11-16 18:15:51,many,1\n", ":4: ContextTokens: 'many' is not a whole number of tokens"),
        (AZURE + "2023-11-16 18:15:51,1,-1\n", ":4: GeneratedTokens: '-1' is not a whole number of tokens"),
        (AZURE + "yesterday,1,1\n", ":4: TIMESTAMP: 'yesterday' is not a time such as"),
        (AZURE + "2023-11-16 18:15:40,1,1\n", ":4: TIMESTAMP: '2023-11-16 18:15:40' lies before the row above"),
        (AZURE + "2023-11-16 18:15:51+00:00,1,1\n", ":4: TIMESTAMP: some times have a zone and some have none"),
    ],
)
def test_a_wrong_trace_is_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_trace_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not a text file"):
        read_trace(tmp_path / "binary.csv")


def test_a_trace_repeats_after_one_mean_gap_and_runs_faster_on_request() -> None:
    trace = (Arrival(0.0, 1, 1), Arrival(1.0, 2, 2), Arrival(4.0, 3, 3))
    # Mean gap 2 s, so the second round starts at 6 s; at twice the speed at 3 s.
    assert [a.at_s for a in islice(trace_arrivals(trace, speed=2), 5)] == [0.0, 0.5, 2.0, 3.0, 3.5]
    assert trace_rate(trace) == 0.75


def test_a_trace_of_one_row_repeats_each_second() -> None:
    assert [a.at_s for a in islice(trace_arrivals((Arrival(0.0, 1, 1),), speed=1), 3)] == [0.0, 1.0, 2.0]


def test_poisson_arrivals_have_their_rate_and_their_seed() -> None:
    arrivals = list(islice(poisson_arrivals(50.0, seed=4), 5000))
    assert arrivals == list(islice(poisson_arrivals(50.0, seed=4), 5000))
    # Standard deviation of the sum of 5000 exponential gaps: 1.4%.
    assert arrivals[-1].at_s == pytest.approx(100.0, rel=0.06)


def test_users_are_alike_or_unequal_as_asked() -> None:
    alike, unequal = Users(10, zipf=0, seed=1), Users(10, zipf=1, seed=1)
    # Harmonic number H(10) = 2.929: the first of ten users makes 34% of the requests under Zipf.
    assert sum(alike.draw() == "user-000000" for _ in range(4000)) / 4000 == pytest.approx(0.1, abs=0.03)
    assert sum(unequal.draw() == "user-000000" for _ in range(4000)) / 4000 == pytest.approx(0.3414, abs=0.04)
    assert {Users(3, seed=2).draw() for _ in range(1)} <= {"user-000000", "user-000001", "user-000002"}


def test_a_sample_trace_is_reproducible_and_readable(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    assert sample_trace.main([str(first), "--rows", "300", "--seed", "5"]) == 0
    write_trace(second, make_trace(rows=300, seed=5))
    assert first.read_bytes() == second.read_bytes()
    trace = read_trace(first)
    assert len(trace) == 300
    assert trace_rate(trace) == pytest.approx(6.0, rel=0.25)


def test_quantiles_are_times_that_occurred() -> None:
    assert quantiles([float(n) for n in range(1, 21)]) == {"p50": 10.0, "p90": 18.0, "p95": 19.0, "p99": 20.0, "max": 20.0}
    assert quantiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert quantiles([]) is None


async def test_every_kind_of_outcome_is_counted_as_what_it_is() -> None:
    models = {
        "ok": QUICK,
        "rate_limited": ModelBehaviour(errors=Errors(rate_limited=1)),
        "server_error": ModelBehaviour(ttft=QUICK.ttft, errors=Errors(server_error=1)),
        "connection": ModelBehaviour(ttft=QUICK.ttft, errors=Errors(reset=1)),
        "cut": ModelBehaviour(ttft=QUICK.ttft, tokens_per_s=100_000, errors=Errors(cut=1)),
        "malformed": ModelBehaviour(ttft=QUICK.ttft, errors=Errors(garbage=1)),
        "timeout": ModelBehaviour(errors=Errors(timeout=1)),
    }
    async with running_provider(models) as url:
        for outcome in (*models, "client_error"):
            for share in (0.0, 1.0):
                plan = TrafficPlan(
                    base_url=f"{url}/v1",
                    model=outcome,
                    arrivals=iter(burst(2)),
                    stream_share=share,
                    timeout_s=0.1 if outcome == "timeout" else 20,
                )
                tally = await drive(plan)
                assert {k: v for k, v in tally.outcomes.items() if v} == {outcome: 2}, (outcome, share)
    gone = await drive(TrafficPlan(base_url=url, model="ok", arrivals=iter(burst(1))))
    assert gone.outcomes["connection"] == 1


async def test_the_request_carries_tokens_user_and_length_and_the_answers_arm_is_counted() -> None:
    bodies: list[dict[str, Any]] = []

    async def route(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        arm = "candidate" if len(bodies) == 1 else "baseline"
        choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        headers = {"x-penstock-arm": arm, "x-penstock-model": f"{arm}-model"}
        return web.json_response({"model": "other", "choices": [choice], "usage": usage}, headers=headers)

    application = web.Application()
    application.router.add_post("/v1/chat/completions", route)
    async with TestServer(application) as server:
        arrivals = iter([Arrival(0.0, 374, 44), Arrival(0.05, 20, 99_999)])
        tally = await drive(TrafficPlan(base_url=str(server.make_url("/v1/")), model="auto", arrivals=arrivals, users=Users(1)))
    assert bodies[0]["metadata"] == {"sim_prompt_tokens": "374"}
    assert (bodies[0]["model"], bodies[0]["max_tokens"], bodies[0]["user"]) == ("auto", 44, "user-000000")
    assert bodies[1]["max_tokens"] == 4096
    assert tally.by_arm() == {"candidate": 1, "baseline": 1}
    served = [(row["arm"], row["model"], row["ok"]) for row in tally.to_json()["served"]]
    assert served == [("baseline", "baseline-model", 1), ("candidate", "candidate-model", 1)]
    assert tally.to_json()["tokens"] == {"prompt": 14, "completion": 6}


async def test_full_prompts_are_as_long_as_the_trace_says_and_carry_no_metadata() -> None:
    async with running_provider({"m": QUICK}) as url:
        plan = TrafficPlan(base_url=f"{url}/v1", model="m", arrivals=iter([Arrival(0.0, 1000, 5)]), full_prompts=True)
        tally = await drive(plan)
    # The simulator's estimate: four characters a token, and four tokens for the message.
    assert tally.prompt_tokens == 1004


async def test_arrivals_never_wait_for_answers_and_are_dropped_at_the_cap() -> None:
    provider = Provider({"slow": ModelBehaviour(ttft=Latency(median_s=60, sigma=0))})
    async with running_provider(provider) as url:
        plan = TrafficPlan(base_url=f"{url}/v1", model="slow", arrivals=iter(burst(10)), max_in_flight=4, drain_s=0.05)
        tally = await drive(plan)
    assert (tally.offered, tally.sent, tally.dropped, tally.in_flight_max) == (10, 4, 6, 4)
    assert tally.outcomes["cancelled"] == 4
    assert tally.in_flight == 0


async def test_a_stop_ends_an_endless_run_and_counters_are_live() -> None:
    stop, tally = asyncio.Event(), Tally()
    async with running_provider({"m": QUICK}) as url:
        plan = TrafficPlan(base_url=f"{url}/v1", model="m", arrivals=poisson_arrivals(200, seed=1), stream_share=0.5)
        running = asyncio.create_task(drive(plan, stop=stop, tally=tally))
        async with asyncio.timeout(20):
            while tally.outcomes["ok"] < 20:
                await asyncio.sleep(0.01)
        assert not running.done()
        stop.set()
        async with asyncio.timeout(20):
            assert await running is tally
    assert tally.to_json()["ttft_s"] is not None


async def test_latency_counts_from_when_a_request_was_due() -> None:
    async with running_provider({"m": QUICK}) as url:
        late = iter([Arrival(-5.0, 10, 1)])  # due five seconds before the run began
        tally = await drive(TrafficPlan(base_url=f"{url}/v1", model="m", arrivals=late))
    report = tally.to_json()
    assert report["duration_s"]["json"]["p50"] >= 5.0
    assert report["schedule_lag_s"]["p50"] >= 5.0


def run(*args: str) -> int:
    try:
        return traffic.main(args)
    except SystemExit as exc:
        assert isinstance(exc.code, int)
        return exc.code


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["http://127.0.0.1:9/v1"], "say when to send: --trace FILE or --rps R"),
        (["127.0.0.1:9", "--rps", "1"], "'127.0.0.1:9' is not an http:// or https:// address"),
        (["http://127.0.0.1:9/v1", "--rps", "1"], "--rps never ends by itself"),
        (["http://127.0.0.1:9/v1", "--rps", "-1", "--duration", "1"], "--rps -1 is not above 0"),
        (["http://127.0.0.1:9/v1", "--rps", "nan", "--duration", "1"], "--rps nan is not above 0"),
        (["http://127.0.0.1:9/v1", "--rps", "1", "--speed", "2"], "--speed goes with --trace, and not with --rps"),
        (["http://127.0.0.1:9/v1", "--rps", "1", "--duration", "1", "--stream-share", "2"], "--stream-share lies within 0..1"),
        (["http://127.0.0.1:9/v1", "--trace", "nowhere.csv"], "nowhere.csv: cannot be read: No such file or directory"),
    ],
)
def test_wrong_usage_is_named_and_exits_2(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*args) == 2
    assert message in capsys.readouterr().err


def test_the_command_line_reports_json_and_exits_1_when_nobody_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    write_trace(path, make_trace(rows=5, rate=100))
    assert run("http://127.0.0.1:9/v1", "--trace", str(path), "--speed", "100", "-o", "json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["sent"], report["outcomes"]["connection"]) == (5, 5)
    assert run("http://127.0.0.1:9/v1", "--trace", str(path), "--rps", "500", "--requests", "3") == 1
    assert "outcomes: connection 3" in capsys.readouterr().out


def test_gaps_of_a_sample_trace_are_never_negative() -> None:
    assert all(b.at_s >= a.at_s for a, b in pairwise(make_trace(rows=200)))
