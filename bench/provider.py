"""
The provider simulator: an OpenAI-compatible upstream whose models are as slow, faulty and changeable as a scenario says.

    python -m bench.provider --listen 127.0.0.1:9100 --config scenario.yaml

* `POST /v1/chat/completions` and `POST /v1/responses` (JSON and SSE), `POST /v1/embeddings`, `GET /v1/models`: as OpenAI has them. The `authorization` header is
  not looked at.
* `GET /control/models`, `GET /control/models/{name}`: what each model does and has done.
* `POST /control/models/{name}` with a part of a behaviour (`{"latency_mult": 1.6}`): changes it now; a new name makes a new model.

A request may say how many tokens it stands for, so that a trace can be replayed without sending its text: `metadata` with
`sim_prompt_tokens` and `sim_completion_tokens` (strings, as OpenAI wants them), or the header `x-sim-prompt-tokens`.

Its one rule: all waiting is here, all chance in `bench.simulation`.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson

from bench.behaviour import BehaviourError, ModelBehaviour, updated
from bench.cli import say
from bench.openai_wire import (
    PROMPT_TOKENS_HEADER,
    ChatRequest,
    Completion,
    RequestRefused,
    embeddings_body,
    error_body,
    models_body,
    read_chat_request,
    read_response_request,
)
from bench.scenario import Scenario, ScenarioError, load_scenario
from bench.serving import (
    AddressError,
    Receive,
    Scope,
    Send,
    close_connection,
    parse_address,
    reset_connection,
    run_app,
    running_app,
)
from bench.simulation import Answer, Outcome, SimulatedModel, simulated_models

_JSON = (b"content-type", b"application/json")
_SHORT_S = 0.1
_BODY_MAX = 64 * 1024 * 1024


class Provider:
    """
    The simulator as an ASGI application.

    Args:
        behaviours: Models by name.
        seed: Of all draws.
        speed: How many times faster than real the simulator's clock runs: latencies and `at_s` are divided by it.
    """

    def __init__(self, behaviours: Mapping[str, ModelBehaviour], *, seed: int = 0, speed: float = 1.0) -> None:
        if not speed > 0:
            raise ValueError(f"speed: {speed!r} is not above 0")
        self.models = simulated_models(behaviours, seed=seed)
        self.cancelled = 0
        self._seed = seed
        self._speed = speed
        self._started = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        try:
            if method == "POST" and path in _GENERATING:
                await self._generate(scope, receive, send)
            elif method == "POST" and path == "/v1/embeddings":
                await self._embeddings(receive, send)
            elif method == "GET" and path == "/v1/models":
                await _answer(send, 200, models_body(list(self.models)))
            elif path == "/control/models" or path.startswith("/control/models/"):
                await self._control(method, unquote(path[len("/control/models/") :]), receive, send)
            elif method == "GET" and path == "/health":
                await _answer(send, 200, b'{"status":"ok"}')
            else:
                message = f"Unknown request URL: {method} {path}."
                await _answer(send, 404, error_body(message, kind="invalid_request_error", code="unknown_url"))
        except RequestRefused as exc:
            await _answer(send, 400, error_body(str(exc), kind="invalid_request_error", param=exc.param))
        except _ClientGone:
            self.cancelled += 1

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        header = next((v for k, v in scope["headers"] if k == PROMPT_TOKENS_HEADER), None)
        request = _GENERATING[scope["path"]](body, prompt_tokens_header=None if header is None else header.decode("latin-1"))
        model = self.models.get(request.model)
        if model is None:
            await _answer(send, 404, _no_such_model(request.model))
            return
        now_s = (time.monotonic() - self._started) * self._speed
        limit = request.completion_tokens or request.max_tokens
        answer = model.answer(now_s=now_s, max_tokens=limit, tools=request.tool is not None)
        client = _Client(receive)
        try:
            await self._give(answer, request, scope, client, send)
        finally:
            client.forget()

    async def _give(self, answer: Answer, request: ChatRequest, scope: Scope, client: "_Client", send: Send) -> None:
        """Act out one answer; every path ends the response or the connection."""
        errors = self.models[request.model].behaviour.errors
        match answer.outcome:
            case Outcome.RATE_LIMITED:
                message = f"Rate limit reached for {request.model}. Please try again in {errors.retry_after_s}s."
                body = error_body(message, kind="requests", code="rate_limit_exceeded")
                await _answer(send, 429, body, (b"retry-after", str(errors.retry_after_s).encode()))
            case Outcome.TIMEOUT:
                await client.wait(errors.hang_s / self._speed)
                close_connection(scope)
                await client.wait(None)
            case Outcome.SERVER_ERROR:
                await client.wait(answer.ttft_s / self._speed)
                await _answer(
                    send, 500, error_body("The server had an error while processing your request.", kind="server_error")
                )
            case Outcome.RESET:
                await client.wait(answer.ttft_s / self._speed)
                reset_connection(scope)
                await client.wait(None)
            case Outcome.GARBAGE:
                await client.wait(answer.ttft_s / self._speed)
                await _answer(send, 200, b"<html><body>upstream connect error</body></html>")
            case Outcome.OK | Outcome.CUT:
                completion = _completion(request, answer)
                if request.stream:
                    await self._stream(completion, answer, request, scope, client, send)
                else:
                    await self._whole(completion, answer, scope, client, send)

    async def _whole(self, completion: Completion, answer: Answer, scope: Scope, client: "_Client", send: Send) -> None:
        await client.wait((answer.ttft_s + answer.generation_s) / self._speed)
        body = orjson.dumps(completion.to_response()) if _is_response(scope) else completion.to_body()
        if answer.outcome is not Outcome.CUT:
            await _answer(send, 200, body, _request_id(completion))
            return
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON, length]})
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        close_connection(scope)
        await client.wait(None)

    async def _stream(
        self, completion: Completion, answer: Answer, request: ChatRequest, scope: Scope, client: "_Client", send: Send
    ) -> None:
        await client.wait(answer.ttft_s / self._speed)
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            _request_id(completion),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        begun = time.monotonic()
        for share, event in completion.response_events() if _is_response(scope) else completion.chunks():
            # Due times count from the first token, so that slow sends do not add up.
            await client.wait(begun + share * answer.generation_s / self._speed - time.monotonic())
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if answer.outcome is Outcome.CUT and share >= 0.4:
                close_connection(scope)
                await client.wait(None)
        if _is_response(scope):
            last = completion.last_response_events()
        else:
            last = completion.last_chunks(include_usage=request.include_usage)
        await send({"type": "http.response.body", "body": last})

    async def _embeddings(self, receive: Receive, send: Send) -> None:
        name, body = embeddings_body(await _body(receive))
        if name not in self.models:
            await _answer(send, 404, _no_such_model(name))
            return
        await _answer(send, 200, body)

    async def _control(self, method: str, name: str, receive: Receive, send: Send) -> None:
        if method == "GET" and not name:
            state = {"cancelled": self.cancelled, "models": [m.to_json() for m in self.models.values()]}
            await _answer(send, 200, orjson.dumps(state))
        elif method == "GET" and name in self.models:
            await _answer(send, 200, orjson.dumps(self.models[name].to_json()))
        elif method == "POST" and name:
            try:
                patch = orjson.loads(await _body(receive))
                self._change(name, patch)
            except (BehaviourError, orjson.JSONDecodeError) as exc:
                await _answer(send, 400, orjson.dumps({"error": f"model {name}: {exc}"}))
                return
            await _answer(send, 200, orjson.dumps(self.models[name].to_json()))
        else:
            status = 404 if method == "GET" else 405
            await _answer(send, status, orjson.dumps({"error": f"no model {name!r}; known: {', '.join(self.models)}"}))

    def _change(self, name: str, patch: Any) -> None:
        if name in self.models:
            self.models[name].change(patch)
        else:
            self.models[name] = SimulatedModel(name, updated(ModelBehaviour(), patch), seed=self._seed)


@asynccontextmanager
async def running_provider(
    behaviours: Mapping[str, ModelBehaviour] | Provider,
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    seed: int = 0,
    speed: float = 1.0,
) -> AsyncIterator[str]:
    """
    A simulator in this process while the block runs.

    Args:
        behaviours: Models by name; or a `Provider`, to look into it or change it meanwhile.

    Yields:
        Base address without `/v1`.
    """
    app = behaviours if isinstance(behaviours, Provider) else Provider(behaviours, seed=seed, speed=speed)
    async with running_app(app, host=host, port=port) as url:
        yield url


def serve(behaviours: Mapping[str, ModelBehaviour], *, host: str, port: int, seed: int = 0, speed: float = 1.0) -> None:
    """Serve until SIGINT or SIGTERM. Raises AddressError when the address cannot be used."""
    names = ", ".join(behaviours)
    run_app(
        Provider(behaviours, seed=seed, speed=speed),
        host=host,
        port=port,
        announce=lambda url: f"provider simulator on {url}/v1, models: {names}; behaviour: {url}/control/models",
    )


_GENERATING = {"/v1/chat/completions": read_chat_request, "/v1/responses": read_response_request}


def _is_response(scope: Scope) -> bool:
    return bool(scope["path"] == "/v1/responses")


class _ClientGone(Exception):
    """The client left, or the connection was closed under it."""


class _Client:
    """Waits, and notices meanwhile when the client goes away."""

    def __init__(self, receive: Receive) -> None:
        self._gone = asyncio.ensure_future(receive())

    async def wait(self, seconds: float | None) -> None:
        """Raises _ClientGone as soon as the client leaves; None waits for just that."""
        if seconds is not None and seconds <= _SHORT_S:
            # Between the events of a stream: a plain sleep costs a fifth of a wait on two things.
            if seconds > 0:
                await asyncio.sleep(seconds)
        else:
            await asyncio.wait((self._gone,), timeout=seconds)
        if self._gone.done():
            raise _ClientGone

    def forget(self) -> None:
        self._gone.cancel()


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _BODY_MAX:
            raise RequestRefused(f"The body of the request is over {_BODY_MAX} bytes.")
        if not message.get("more_body", False):
            return b"".join(parts)


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


def _completion(request: ChatRequest, answer: Answer) -> Completion:
    return Completion(
        id=f"chatcmpl-sim{answer.index:021d}",
        created=int(time.time()),
        model=request.model,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=answer.tokens,
        # A length that metadata asks for is the natural end of the answer.
        length_limited=answer.length_limited and request.completion_tokens is None,
        tool=request.tool if answer.tool_call or request.forced else None,
        arguments=request.arguments,
        answer=request.answer,
    )


def _request_id(completion: Completion) -> tuple[bytes, bytes]:
    return b"x-request-id", f"req_{completion.id[-16:]}".encode()


def _no_such_model(name: str) -> bytes:
    message = f"The model `{name}` does not exist or you do not have access to it."
    return error_body(message, kind="invalid_request_error", code="model_not_found")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status (2: wrong usage or scenario, 1: the address cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.provider", description="An OpenAI-compatible upstream with scripted behaviour."
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:9100", metavar="HOST:PORT", help="default: %(default)s; port 0 chooses one"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="scenario of models (YAML or JSON)")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="a model with default behaviour; may be repeated"
    )
    parser.add_argument("--seed", type=int, help="of all draws; default: that of the scenario, or 0")
    parser.add_argument("--speed", type=float, default=1.0, help="run the simulator's clock N times faster; default: real time")
    args = parser.parse_args(argv)
    try:
        host, port = parse_address(args.listen)
        scenario = load_scenario(args.config) if args.config else Scenario(models={})
    except (AddressError, ScenarioError) as exc:
        say(f"bench.provider: {exc}")
        return 2
    behaviours = {**{name: ModelBehaviour() for name in args.model}, **scenario.models}
    if not behaviours:
        parser.error("name at least one model: --config FILE or --model NAME")
    if not args.speed > 0:
        parser.error(f"--speed {args.speed:g} is not above 0")
    try:
        seed = scenario.seed if args.seed is None else args.seed
        serve(behaviours, host=host, port=port, seed=seed, speed=args.speed)
    except AddressError as exc:
        say(f"bench.provider: {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
