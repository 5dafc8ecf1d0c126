"""
What a router knows (the models it could send a candidate's traffic to), and the drills that it takes.

Its one rule: a router that cannot be asked is an error that names its address, never an empty list, and nothing is asked twice: a drill
that brought no answer may have been one.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx

from controller.ports import Drilled, DrillRefused, Unavailable

TIMEOUT_S = 5.0

DRILL_TIMEOUT_S = 40.0
"""More than one attempt may last in a router with default timeouts (30 s): it then says itself that its fallback does not answer."""

ANSWER_MAX = 1024 * 1024
"""Bytes of an answer to `PROMPT` after which it is none."""

PROMPT = "Reply with the one word: ready"

DRILL_HEADER, TOKEN_HEADER = "x-penstock-drill", "x-penstock-drill-token"
FALLBACK = "fallback"


def known_models(url: str) -> frozenset[str]:
    """
    Names of the models behind a router.

    Args:
        url: The router's base address, ``http://127.0.0.1:8421``.

    Raises:
        Unavailable: it does not answer, or not as an OpenAI-compatible router does.
    """
    with _client(url, TIMEOUT_S) as client:
        return frozenset(m["id"] for m in _models(client))


class RouterDrills:
    """
    Implements `controller.ports.Drills` on one router; safe to share between threads.

    Args:
        url: The router's base address.
        token: Of its drills.
        api_key: Sent as a user's key, for providers without a key of the router's; "" for none.
        timeout_s: How long a drill may take, from the request to the end of the answer.

    Raises:
        ValueError: a token or key that no HTTP header can carry; it is not shown.
    """

    def __init__(self, url: str, token: str, *, api_key: str = "", timeout_s: float = DRILL_TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {DRILL_HEADER: FALLBACK, TOKEN_HEADER: _visible(token, "the token of drills")}
        if api_key:
            self._headers["authorization"] = f"Bearer {_visible(api_key, 'the key sent with drills')}"

    def fallback(self, environment: str, flag: str, *, route: str = "", streaming: bool = False) -> Drilled:
        with _client(self._url, self._timeout_s) as client:
            model = _name_of(client, environment, flag, route)
            body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": PROMPT}]}
            begun = time.monotonic()
            status, headers, text = self._post(client, body | ({"stream": True} if streaming else {}))
            took = timedelta(seconds=time.monotonic() - begun)
        return self._read(status, headers, text, took, streaming=streaming)

    def _post(self, client: httpx.Client, body: Mapping[str, Any]) -> tuple[int, httpx.Headers, str]:
        deadline = time.monotonic() + self._timeout_s
        parts, size = [], 0
        with client.stream("POST", "/v1/chat/completions", json=body, headers=self._headers) as answer:
            for part in answer.iter_bytes():
                parts.append(part)
                size += len(part)
                # The client's own timeout is for each read: an answer in drops would never end.
                if time.monotonic() > deadline or size > ANSWER_MAX:
                    raise httpx.ReadTimeout(f"no end after {self._timeout_s:g} s or {ANSWER_MAX} bytes")
            return answer.status_code, answer.headers, b"".join(parts).decode("utf-8", "replace")

    def _read(self, status: int, headers: httpx.Headers, text: str, took: timedelta, *, streaming: bool) -> Drilled:
        if headers.get(DRILL_HEADER) != FALLBACK:
            if status == 200:
                raise DrillRefused(f"the router at {self._url} took the drill for a user's request: it knows no drills")
            if status < 500:
                raise DrillRefused(f"the router at {self._url} refuses the drill ({status}): {_error(text)}")
            raise Unavailable(f"the router at {self._url} answered the drill with {status}: {_error(text)}")
        if status != 200:
            return Drilled(answered_by="", took=took, text=f"{status}: {_error(text)}")
        if streaming and not text.rstrip().endswith("data: [DONE]"):
            return Drilled(answered_by="", took=took, text="the stream broke off before its end")
        return Drilled(answered_by=headers.get("x-penstock-model", ""), took=took)


def _name_of(client: httpx.Client, environment: str, flag: str, route: str) -> str:
    """
    What a user asks the router for to come to this flag.

    Raises:
        DrillRefused: nothing leads there; says what does.
    """
    found: list[str] = []
    for model in _models(client):
        about = model.get("penstock")
        if not isinstance(about, dict):
            continue
        if (about.get("environment"), about.get("flag")) == (environment, flag) and route in ("", about.get("route")):
            return str(model["id"])
        found.append(f"{about.get('flag')} of {about.get('environment')} (route {about.get('route')})")
    asked = f"the flag {flag} of {environment}" + (f" by route {route}" if route else "")
    known = "; ".join(dict.fromkeys(found)) or "none, or it is older than drills"
    raise DrillRefused(f"the router at {str(client.base_url).rstrip('/')} does not decide by {asked}; its flags: {known}")


def _models(client: httpx.Client) -> list[dict[str, Any]]:
    answer = client.get("/v1/models", timeout=TIMEOUT_S).raise_for_status()
    try:
        found = [m for m in answer.json()["data"] if isinstance(m["id"], str)]
    except (ValueError, KeyError, TypeError) as exc:
        raise Unavailable(f"the router at {answer.url} answered something else than a list of models") from exc
    return found


@contextmanager
def _client(url: str, timeout_s: float) -> Iterator[httpx.Client]:
    """No proxy, no redirect (a token must not follow one), no second try."""
    try:
        with httpx.Client(base_url=url, timeout=httpx.Timeout(timeout_s, connect=TIMEOUT_S), trust_env=False) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise Unavailable(f"the router at {url.rstrip('/')} cannot be asked: {str(exc) or type(exc).__name__}") from exc


def _error(text: str) -> str:
    """The message of an error in OpenAI's shape, or the beginning of what came instead."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200] or "nothing"


def _visible(value: str, what: str) -> str:
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise ValueError(f"{what} has characters that no HTTP header can carry")
    return value
