"""
The traffic driver: sends chat completions at the times of a trace (or at random), whether or not answers come back.

    python -m bench.traffic http://127.0.0.1:8421/v1 --trace trace.csv --speed 20 --duration 120 --model auto --users 500 -o json

Its one rule: open loop. An arrival never waits for an answer; when too many are in flight it is dropped and counted, never delayed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson

from bench.arrivals import Arrival, TraceError, Users, poisson_arrivals, read_trace, trace_arrivals, trace_rate
from bench.cli import emit, say
from bench.openai_wire import PROMPT_TOKENS_METADATA
from bench.serving import uvloop_runner
from bench.tally import Result, Tally

ARM_HEADER = "x-penstock-arm"
MODEL_HEADER = "x-penstock-model"
_WORDS = "please say how much water passed the gate today and yesterday "
_YIELD_EVERY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPlan:
    """
    What to send where.

    Args:
        base_url: OpenAI base address, with `/v1`.
        model: Model to ask for.
        arrivals: When, and how large; may be endless. Times count from the start of the run, in seconds.
        duration_s: No arrival after this; None lasts as long as `arrivals`.
        stream_share: Share of requests that ask for a stream, 0..1.
        users: Whom to send as (`user` of the request); None sends none.
        max_in_flight: Arrivals beyond it are dropped.
        timeout_s: Time limit of one request.
        drain_s: After the last arrival, how long to wait for answers that are still under way.
        full_prompts: Send prompts of the full size, for a real provider. Otherwise a short prompt says in `metadata` how many
            tokens it stands for, which the simulator understands; it costs next to no CPU.
        max_output_tokens: Upper limit for `max_tokens` of a request.
        headers: Sent with every request.
        seed: Of all draws.
    """

    base_url: str
    model: str
    arrivals: Iterator[Arrival] = field(compare=False)
    duration_s: float | None = None
    stream_share: float = 0.0
    users: Users | None = None
    max_in_flight: int = 1000
    timeout_s: float = 60.0
    drain_s: float = 30.0
    full_prompts: bool = False
    max_output_tokens: int = 4096
    headers: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


async def drive(plan: TrafficPlan, *, stop: asyncio.Event | None = None, tally: Tally | None = None) -> Tally:
    """
    Run the plan to its end.

    Args:
        plan: What to send.
        stop: Set it to end early: no further arrivals, and no waiting for answers.
        tally: Where to count; pass one to watch the run.

    Returns:
        The tally; its `to_json` is the report. Requests that are still under way at the end count as `cancelled`.
    """
    stop = stop or asyncio.Event()
    tally = tally or Tally()
    rng = Random(f"stream:{plan.seed}")
    running: set[asyncio.Task[None]] = set()
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
    timeout = aiohttp.ClientTimeout(total=None)  # each request has its own deadline
    url = plan.base_url.rstrip("/") + "/chat/completions"
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=dict(plan.headers), trust_env=False
    ) as session:
        begun = time.monotonic()
        try:
            for count, arrival in enumerate(plan.arrivals):
                if plan.duration_s is not None and arrival.at_s >= plan.duration_s:
                    break
                due = begun + arrival.at_s
                if (ahead := due - time.monotonic()) > 0:
                    if await _stopped_within(stop, ahead):
                        break
                elif stop.is_set():
                    break
                elif count % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)  # a burst must not starve the answers
                tally.offered += 1
                tally.elapsed_s = time.monotonic() - begun
                body = _body(plan, arrival, stream=rng.random() < plan.stream_share)
                if tally.in_flight >= plan.max_in_flight:
                    tally.dropped += 1
                    continue
                tally.start_one(lag_s=max(0.0, time.monotonic() - due))
                task = asyncio.create_task(_one(session, url, body, due, plan.timeout_s, tally))
                running.add(task)
                task.add_done_callback(running.discard)
            if plan.duration_s is not None and (rest := begun + plan.duration_s - time.monotonic()) > 0:
                await _stopped_within(stop, rest)
            tally.elapsed_s = time.monotonic() - begun
            await _drain(running, stop, plan.drain_s)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return tally


async def _one(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], due: float, timeout_s: float, tally: Tally
) -> None:
    result = Result(outcome="cancelled")
    try:
        async with asyncio.timeout(timeout_s):
            result = await _ask(session, url, body, due)
    except TimeoutError:
        result = Result(outcome="timeout", stream=body["stream"])
    except (aiohttp.ClientError, OSError):
        result = Result(outcome="connection", stream=body["stream"])
    finally:
        tally.finish_one(result)


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], due: float) -> Result:
    stream = bool(body["stream"])
    headers = {"content-type": "application/json"}
    async with session.post(url, data=orjson.dumps(body), headers=headers, allow_redirects=False) as answer:
        about: dict[str, Any] = {
            "status": answer.status,
            "stream": stream,
            "arm": answer.headers.get(ARM_HEADER, ""),
            "model": answer.headers.get(MODEL_HEADER, ""),
        }
        try:
            if answer.status != 200:
                await answer.read()
                outcome = "rate_limited" if answer.status == 429 else "client_error" if answer.status < 500 else "server_error"
                return Result(outcome=outcome, duration_s=time.monotonic() - due, **about)
            if stream:
                return await _read_stream(answer, due, about)
            content = await answer.read()
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError):
            # The answer had begun, and the connection ended before it did.
            return Result(outcome="cut", duration_s=time.monotonic() - due, **about)
    return _judge(content, time.monotonic() - due, about)


def _judge(content: bytes, duration_s: float, about: dict[str, Any]) -> Result:
    try:
        data = orjson.loads(content)
        reason, usage = data["choices"][0]["finish_reason"], data.get("usage") or {}
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return Result(outcome="malformed", duration_s=duration_s, **about)
    about["model"] = about["model"] or str(data.get("model", ""))
    return Result(outcome="ok" if reason else "cut", duration_s=duration_s, **about, **_usage(usage))


async def _read_stream(answer: aiohttp.ClientResponse, due: float, about: dict[str, Any]) -> Result:
    """Reads the events; only the first with content and the last with usage are parsed, the rest would cost too much CPU."""
    ttft_s, finished, done, events, usage = None, False, False, 0, {}
    async for line in answer.content:
        if not line.startswith(b"data:"):
            continue
        events += 1
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            continue
        finished = finished or (b'"finish_reason":"' in data or b'"finish_reason": "' in data)
        if ttft_s is None and _has_content(data):
            ttft_s = time.monotonic() - due
            about["model"] = about["model"] or _loads(data).get("model", "")
        if b'"usage":{' in data or b'"usage": {' in data:
            usage = _usage(_loads(data).get("usage") or {})
    outcome = "ok" if finished and done else "cut" if events else "malformed"
    return Result(outcome=outcome, duration_s=time.monotonic() - due, ttft_s=ttft_s, **about, **usage)


def _has_content(data: bytes) -> bool:
    choices = _loads(data).get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return bool(delta.get("content") or delta.get("tool_calls"))


def _loads(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}


def _body(plan: TrafficPlan, arrival: Arrival, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": plan.model,
        "stream": stream,
        "max_tokens": max(1, min(arrival.output_tokens, plan.max_output_tokens)),
    }
    if plan.full_prompts:
        text = (_WORDS * (arrival.prompt_tokens * 4 // len(_WORDS) + 1))[: arrival.prompt_tokens * 4]
    else:
        text = _WORDS
        body["metadata"] = {PROMPT_TOKENS_METADATA: str(arrival.prompt_tokens)}
    body["messages"] = [{"role": "user", "content": text}]
    if stream:
        body["stream_options"] = {"include_usage": True}
    if plan.users is not None:
        body["user"] = plan.users.draw()
    return body


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def _drain(running: set[asyncio.Task[None]], stop: asyncio.Event, drain_s: float) -> None:
    if not running or stop.is_set():
        return
    waiter: asyncio.Future[Any] = asyncio.create_task(stop.wait())
    answers: asyncio.Future[Any] = asyncio.gather(*running, return_exceptions=True)
    await asyncio.wait({waiter, answers}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    answers.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await answers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.traffic", description="Send chat completions open-loop.")
    parser.add_argument("base_url", metavar="URL", help="OpenAI base address, such as http://127.0.0.1:8421/v1")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help=f"CSV with {','.join(('TIMESTAMP', 'ContextTokens', 'GeneratedTokens'))}"
    )
    parser.add_argument("--speed", type=float, help="replay the trace N times as fast (default 1)")
    parser.add_argument("--rps", type=float, help="without a trace: Poisson rate; with one: mean rate to scale it to")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds of arrivals; a shorter trace is repeated")
    parser.add_argument("--requests", type=int, metavar="N", help="end after N arrivals")
    parser.add_argument("--model", default="auto", help="default: %(default)s")
    parser.add_argument("--stream-share", type=float, default=0.2, metavar="0..1", help="default: %(default)s")
    parser.add_argument(
        "--users", type=int, default=1000, metavar="N", help="users to send as; 0 sends none (default %(default)s)"
    )
    parser.add_argument(
        "--zipf", type=float, default=0.0, help="how unequal the users are: 0 all alike, 1 the web (default %(default)s)"
    )
    parser.add_argument("--max-in-flight", type=int, default=1000, metavar="N", help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of one request (default %(default)s)")
    parser.add_argument("--full-prompts", action="store_true", help="send prompts of full size, for real providers")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable with the API key")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status (2: wrong usage or trace, 1: no request was answered, 130: interrupted)."""
    parser = _parser()
    args = parser.parse_args(argv)
    problem = _usage_problem(args)
    if problem:
        parser.error(problem)
    try:
        plan = _plan(args)
    except TraceError as exc:
        say(f"bench.traffic: {exc}")
        return 2
    tally = Tally()
    interrupted = False
    try:
        with uvloop_runner() as runner:
            runner.run(drive(plan, tally=tally))
    except KeyboardInterrupt:
        interrupted = True
    report = tally.to_json()
    emit(json.dumps(report) if args.output == "json" else _as_text(report))
    if interrupted:
        return 130
    return 0 if tally.outcomes["ok"] or not tally.sent else 1


def _usage_problem(args: argparse.Namespace) -> str | None:
    if not args.base_url.startswith(("http://", "https://")):
        return f"{args.base_url!r} is not an http:// or https:// address"
    if args.trace is None and args.rps is None:
        return "say when to send: --trace FILE or --rps R"
    if args.speed is not None and (args.rps is not None or args.trace is None):
        return "--speed goes with --trace, and not with --rps"
    for name in ("speed", "rps", "duration", "requests", "timeout", "max_in_flight"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            return f"--{name.replace('_', '-')} {value:g} is not above 0"
    if args.users < 0 or args.zipf < 0 or not 0 <= args.stream_share <= 1:
        return "--users and --zipf are at least 0, --stream-share lies within 0..1"
    if args.trace is None and args.duration is None and args.requests is None:
        return "--rps never ends by itself: give --duration or --requests"
    if args.api_key_env and not os.environ.get(args.api_key_env):
        return f"--api-key-env: {args.api_key_env} is not set"
    return None


def _plan(args: argparse.Namespace) -> TrafficPlan:
    if args.trace is not None:
        trace = read_trace(args.trace)
        speed = args.rps / trace_rate(trace) if args.rps else args.speed or 1.0
        arrivals = trace_arrivals(trace, speed=speed)
        if args.duration is None and args.requests is None:
            arrivals = islice(arrivals, len(trace))
    else:
        arrivals = poisson_arrivals(args.rps, seed=args.seed)
    return TrafficPlan(
        base_url=args.base_url,
        model=args.model,
        arrivals=islice(arrivals, args.requests) if args.requests else arrivals,
        duration_s=args.duration,
        stream_share=args.stream_share,
        users=Users(args.users, zipf=args.zipf, seed=args.seed) if args.users else None,
        max_in_flight=args.max_in_flight,
        timeout_s=args.timeout,
        drain_s=args.timeout,
        full_prompts=args.full_prompts,
        headers={"authorization": f"Bearer {os.environ[args.api_key_env]}"} if args.api_key_env else {},
        seed=args.seed,
    )


def _as_text(report: Mapping[str, Any]) -> str:
    lines = [
        f"offered {report['offered']} ({report['offered_per_s']:g}/s), sent {report['sent']}, dropped {report['dropped_at_cap']}, "
        f"in {report['elapsed_s']:g} s, at most {report['in_flight_max']} in flight",
        "outcomes: " + (", ".join(f"{k} {v}" for k, v in report["outcomes"].items() if v) or "none"),
        f"tokens: prompt {report['tokens']['prompt']}, completion {report['tokens']['completion']}",
    ]
    times = {"json": report["duration_s"]["json"], "stream": report["duration_s"]["stream"]}
    times |= {"first token": report["ttft_s"], "schedule lag": report["schedule_lag_s"]}
    lines += [f"{name:<13} {_quantile_text(found)}" for name, found in times.items() if found]
    for row in report["served"]:
        name = f"{row['arm'] or 'no arm'}/{row['model'] or 'no model'}"
        lines.append(f"{name:<32} {row['requests']:>7} requests, {row['ok']:>7} ok  {_quantile_text(row['duration_s'] or {})}")
    return "\n".join(lines)


def _quantile_text(found: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f} s" for name, value in found.items())


if __name__ == "__main__":
    sys.exit(main())
