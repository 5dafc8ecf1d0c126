"""
The provider simulator with the manners of others: how Anthropic's and Google's OpenAI-compatible endpoints differ from OpenAI's, as far as they
are documented or were reported.

    python -m bench.personas --persona google --listen 127.0.0.1:9102 --model gemini-2.5-flash

Its one rule: a persona only refuses, earlier than `bench.provider` would answer; what it lets pass is answered as by OpenAI.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import orjson

from bench.behaviour import ModelBehaviour
from bench.cli import say
from bench.openai_wire import error_body
from bench.provider import Provider
from bench.serving import AddressError, Receive, Scope, Send, parse_address, run_app

PersonaName = Literal["anthropic", "google"]

PREFIX: Mapping[PersonaName, str] = {"anthropic": "/v1", "google": "/v1beta/openai"}

PATHS: Mapping[PersonaName, tuple[str, ...]] = {
    "anthropic": ("/chat/completions", "/models"), "google": ("/chat/completions", "/embeddings", "/models"),
}  # fmt: skip

_GOOGLE_REFUSES = ("metadata", "store", "frequency_penalty", "thinking", "reasoning", "safety_identifier", "prompt_cache_key")
"""Reported: ed-donner/agents#45, MinLL/SkyrimNet-GamePlugin#77, bytedance/deer-flow#1515; the last two are OpenAI's accounts' alone."""

_EFFORTS = ("none", "minimal", "low", "medium", "high")


class Persona:
    """
    Args:
        key: What the bearer token must be.

    Attributes:
        seen: The bodies that were let pass.
    """

    def __init__(self, name: PersonaName, provider: Provider, key: str = "key") -> None:
        self._name, self._provider, self._key = name, provider, key
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, prefix = scope["path"], PREFIX[self._name]
        if path.startswith("/control/"):
            return await self._provider(scope, receive, send)
        inner = path.removeprefix(prefix)
        if not path.startswith(prefix) or inner not in PATHS[self._name]:
            return await self._refuse(send, 404, "Not found.", "NOT_FOUND")
        if dict(scope["headers"]).get(b"authorization") != b"Bearer " + self._key.encode():
            return await self._refuse(send, 401, "Invalid key.", "UNAUTHENTICATED")
        raw = b""
        if scope["method"] == "POST":
            while True:
                message = await receive()
                raw += message.get("body", b"")
                if not message.get("more_body"):
                    break
            body = orjson.loads(raw)
            if (problem := self._problem(body)) is not None:
                return await self._refuse(send, 400, problem, "INVALID_ARGUMENT")
            self.seen.append(body)
        sent = False

        async def again() -> Any:
            nonlocal sent
            if sent or not raw:
                return await receive()
            sent = True
            return {"type": "http.request", "body": raw, "more_body": False}

        await self._provider({**scope, "path": "/v1" + inner}, again, send)

    def _problem(self, body: Mapping[str, Any]) -> str | None:
        if self._name == "google":
            unknown = [name for name in _GOOGLE_REFUSES if name in body]
            if unknown:
                return "\n".join(f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.' for name in unknown)
            effort = body.get("reasoning_effort")
            return None if effort is None or effort in _EFFORTS else f"Invalid reasoning_effort: {effort}"
        if body.get("n", 1) != 1:
            return "n: must be 1"
        thinking, limit = body.get("thinking"), body.get("max_completion_tokens", body.get("max_tokens"))
        if isinstance(thinking, dict) and thinking.get("type") == "enabled":
            budget = thinking.get("budget_tokens", 0)
            if budget < 1024 or (limit is not None and budget >= limit):
                return "thinking.budget_tokens: at least 1024, and less than max_tokens"
        return None

    async def _refuse(self, send: Send, status: int, message: str, kind: str) -> None:
        if self._name == "google":
            # Google's error is a list of one, also here.
            body = orjson.dumps([{"error": {"code": status, "message": message, "status": kind}}])
        else:
            body = error_body(message, kind="invalid_request_error")
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.personas", description="The provider simulator with another's manners."
    )
    parser.add_argument("--persona", choices=get_args(PersonaName), required=True)
    parser.add_argument("--listen", default="127.0.0.1:9102", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--model", action="append", required=True, metavar="NAME", help="may be repeated")
    parser.add_argument("--key", default="key", help="the bearer token that it takes; default: %(default)s")
    args = parser.parse_args(argv)
    persona = Persona(args.persona, Provider({name: ModelBehaviour() for name in args.model}), args.key)
    try:
        host, port = parse_address(args.listen)
        run_app(persona, host=host, port=port, announce=lambda url: f"{args.persona} on {url}{PREFIX[args.persona]}")
    except AddressError as exc:
        say(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
