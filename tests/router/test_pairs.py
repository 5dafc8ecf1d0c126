"""Shadow pairs: both answers to one request, numbers always and texts on request, and a user who never notices."""

import asyncio
import base64
import json
import stat
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema  # type: ignore[import-untyped]
import pytest
from aiohttp import web

import router.pairs
from bench.behaviour import ModelBehaviour
from bench.provider import running_provider
from router.config import RouterConfig
from router.pairs import READING_MAX, read_answer
from specfile import SpecError, parse_text
from tests.router.harness import (
    DONE,
    Router,
    Upstream,
    answer,
    chunk,
    config,
    cut,
    eventually,
    flag,
    put,
    serve_router,
    serve_web,
    status,
)
from tests.router.test_config import GOOD

SCHEMA = json.loads(Path(router.pairs.__file__).with_name("shadow-pair.v1.schema.json").read_text(encoding="utf-8"))
CHECK = jsonschema.Draft202012Validator(SCHEMA)
SECRETS = {"email": "ann@example.org", "api_key": "sk-abcdefghijklmnop", "card": "4111 1111 1111 1111"}
MIRRORED = {"flag": "chat-model", "route": "chat", "arm": "shadow", "model": "new"}

made: list["Held"] = []


@dataclass
class Held:
    """A sink of one's own, as router.yaml names it."""

    options: Mapping[str, Any]
    pairs: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False

    def offer(self, pair: Mapping[str, Any]) -> bool:
        if self.options.get("bug"):
            raise RuntimeError("no")
        if self.options.get("full"):
            return False
        self.pairs.append(dict(pair))
        return True

    async def close(self) -> None:
        self.closed = True


def held(options: Mapping[str, Any]) -> Held:
    made.append(Held(options))
    return made[-1]


def own(**changes: Any) -> dict[str, Any]:
    return {"pairs": {"python": f"{__name__}:held", **changes}}


def pairs_of(router: Router, outcome: str = "delivered", sink: str = "python") -> float | None:
    return router.metric("penstock_shadow_pairs_total", sink=sink, outcome=outcome)


async def one_pair(spec: RouterConfig, body: dict[str, Any], path: str = "chat/completions", *, dropped: bool = False) -> Any:
    async with serve_router(spec) as router:
        put(router, flag(0, shadow_weight=50_000, salt="s", decision_id="d-1"))
        async with router.http.post(f"{router.url}/v1/{path}", json={"model": "chat", "user": MIRRORED_UNIT, **body}) as got:
            text = await got.text()
        await eventually(lambda: pairs_of(router) == 1)
    assert made[-1].closed
    (pair,) = made[-1].pairs
    CHECK.validate(pair)
    return pair, text


def _mirrored_unit() -> str:
    from flagspec import in_share

    return next(unit for i in range(100) if in_share("s/shadow", unit := f"u-{i}", 50_000))


MIRRORED_UNIT = _mirrored_unit()


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_pair_has_both_answers_numbers_and_no_word_of_them(upstream: Upstream, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    pair, _ = await one_pair(config(upstream.url, shadow=own()), body)
    assert pair["flag"] == {"key": "chat-model", "version": 1, "revision": 1, "decision_id": "d-1", "shadow_share": 0.5}
    assert (pair["route"], pair["environment"], pair["request"]["endpoint"]) == ("chat", "production", "chat")
    assert (pair["request"]["stream"], pair["request"]["content"]) == (stream, None)
    for side, model in (("baseline", "old"), ("shadow", "new")):
        said = pair[side]
        assert (said["model"], said["status"], said["outcome"], said["fallback"], said["cut"]) == (model, 200, "ok", False, False)
        assert said["tokens"] == {"input": 1000, "output": 200, "cached": 0, "estimated": False}
        assert said["cost_usd"] == pytest.approx(0.0036)
        assert (said["finish_reasons"], said["text_bytes"], said["content"]) == (["stop"], 5, None)
        assert said["duration_ms"] > 0 and (said["ttft_ms"] is not None) == stream
    assert pair["baseline"]["text_digest"] == pair["shadow"]["text_digest"]
    assert "Hello" not in json.dumps(pair) and "Hi" not in json.dumps(pair)


async def test_the_same_question_has_the_same_digest_whoever_asks_and_however(upstream: Upstream) -> None:
    spec = config(upstream.url, shadow=own())
    messages = [{"role": "user", "content": "Hi"}]
    first, _ = await one_pair(spec, {"messages": messages, "temperature": 0.5, "metadata": {"a": "b"}})
    second, _ = await one_pair(spec, {"temperature": 0.5, "stream": True, "messages": messages})
    other, _ = await one_pair(spec, {"temperature": 0.6, "messages": messages})
    digests = [pair["request"]["digest"] for pair in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]
    assert all(digest.startswith("sha256:") for digest in digests)


async def test_digests_are_keyed_where_the_file_says_so_and_the_start_fails_without_the_key(upstream: Upstream) -> None:
    spec = config(upstream.url, shadow=own(digest_key_env="PAIR_KEY"))
    with pytest.raises(ValueError, match="PAIR_KEY is not set"):
        async with serve_router(spec):
            pass
    seen = []
    for key in ("k1", "k2"):
        async with serve_router(spec, environ={"PAIR_KEY": key}) as router:
            put(router, flag(0, shadow_weight=100_000))
            await router.ask()
            await eventually(lambda: len(made[-1].pairs) == 1)
        seen.append(made[-1].pairs[0]["request"]["digest"])
    assert seen[0] != seen[1] and all(digest.startswith("hmac-sha256:") for digest in seen)


@pytest.mark.parametrize("stream", [False, True])
async def test_texts_go_along_when_asked_for_and_never_unredacted(upstream: Upstream, stream: bool) -> None:
    secret = " ".join(SECRETS.values())

    async def leaky(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": f"It is {secret}"}, "finish_reason": "stop"}
            return web.json_response({"id": "c", "model": body["model"], "choices": [choice]})
        # Cut in the middle of each secret: only the joined text shows them.
        parts = [chunk(body["model"], {"content": f"It is {secret}"[i : i + 7]}) for i in range(0, 6 + len(secret), 7)]
        from tests.router.harness import events

        return await events(*parts, chunk(body["model"], {}, "stop"), DONE)(request, body)

    upstream.script = {"old": leaky, "new": leaky}
    body = {"messages": [{"role": "user", "content": f"Keep {secret}"}], "stream": stream}
    pair, _ = await one_pair(config(upstream.url, shadow=own(content=True)), body)
    written = json.dumps(pair)
    assert [name for name, value in SECRETS.items() if value in written] == []
    assert pair["baseline"]["content"]["texts"] == ["It is [email] [api_key] [card]"]
    assert pair["shadow"]["content"] == pair["baseline"]["content"]
    assert pair["request"]["content"] == {"messages": [{"role": "user", "content": "Keep [email] [api_key] [card]"}]}


async def test_a_long_text_is_cut_and_what_may_be_half_a_secret_goes_with_it(upstream: Upstream) -> None:
    text = "x " * 505 + SECRETS["email"] + " and more" * 400  # the limit of 1,024 falls into the address

    async def long(_request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return web.json_response({"id": "c", "model": body["model"], "choices": [choice]})

    upstream.script = {"old": long, "new": long}
    pair, _ = await one_pair(config(upstream.url, shadow=own(content=True, text_bytes=1024)), {"messages": [{"content": "q"}]})
    (shown,) = pair["shadow"]["content"]["texts"]
    assert 700 < len(shown) <= 1024 - 256 and "ann" not in shown
    assert pair["shadow"]["text_bytes"] == len(text)


async def test_an_answer_beyond_what_is_kept_is_said_to_be_cut_and_reaches_the_user_whole(upstream: Upstream) -> None:
    async def long(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        from tests.router.harness import events

        parts = [chunk(body["model"], {"content": "word " * 20}) for _ in range(200)]
        return await events(*parts, chunk(body["model"], {}, "stop"), DONE)(request, body)

    upstream.script = {"old": long, "new": long}
    spec = config(upstream.url, shadow=own(content=True, text_bytes=1024))
    pair, text = await one_pair(spec, {"messages": [], "stream": True})
    assert text.count("word ") == 4000 and text.endswith("data: [DONE]\n\n")
    assert pair["baseline"]["cut"] and pair["shadow"]["cut"]
    assert 0 < pair["baseline"]["text_bytes"] < 20_000


async def test_both_failures_are_told(upstream: Upstream) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
    upstream.script = {"new": status(500)}
    pair, _ = await one_pair(config(upstream.url, shadow=own()), body)
    assert (pair["shadow"]["status"], pair["shadow"]["outcome"], pair["shadow"]["text_digest"]) == (500, "error", None)
    upstream.script = {"old": status(503)}
    pair, _ = await one_pair(config(upstream.url, shadow=own()), body)
    assert (pair["baseline"]["model"], pair["baseline"]["fallback"], pair["baseline"]["outcome"]) == ("spare", True, "ok")
    upstream.script = {"old": status(503), "spare": status(503)}
    pair, _ = await one_pair(config(upstream.url, shadow=own()), body)
    assert (pair["baseline"]["model"], pair["baseline"]["status"], pair["baseline"]["outcome"]) == (None, 502, None)
    upstream.script = {"old": cut(chunk("old", {"content": "Hel"}))}
    pair, text = await one_pair(config(upstream.url, shadow=own()), {**body, "stream": True})
    assert "[DONE]" not in text
    assert (pair["baseline"]["outcome"], pair["baseline"]["text_bytes"], pair["baseline"]["finish_reasons"]) == ("error", 3, [])


async def test_a_user_who_leaves_makes_a_pair_of_what_there_was(upstream: Upstream) -> None:
    upstream.script = {"old": upstream.hang}
    async with serve_router(config(upstream.url, shadow=own())) as router:
        put(router, flag(0, shadow_weight=100_000))
        asking = asyncio.create_task(router.ask())
        await eventually(lambda: router.metric("penstock_shadow_total", **MIRRORED, outcome="mirrored") == 1)
        assert pairs_of(router) == 0, "the user's own answer is waited for"
        asking.cancel()
        await eventually(lambda: pairs_of(router) == 1)
    (pair,) = made[-1].pairs
    assert (pair["baseline"]["status"], pair["shadow"]["outcome"]) == (None, "ok")


async def test_tool_calls_are_told_and_nobody_calls_them_twice(upstream: Upstream) -> None:
    call = {"id": "t", "type": "function", "function": {"name": "refund", "arguments": '{"to": "ann@example.org"}'}}

    async def calling(_request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": None, "tool_calls": [call]},
            "finish_reason": "tool_calls",
        }
        return web.json_response({"id": "c", "model": body["model"], "choices": [choice]})

    upstream.script = {"old": calling, "new": calling}
    tool = {"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool]}
    pair, text = await one_pair(config(upstream.url, shadow=own(content=True)), body)
    assert text.count('"refund"') == 1, "the client is told of its own answer's call and of no other"
    assert (pair["request"]["tools"], pair["shadow"]["tool_calls"], pair["shadow"]["finish_reasons"]) == (True, 1, ["tool_calls"])
    assert pair["shadow"]["content"]["tool_calls"] == [{"name": "refund", "arguments": '{"to": "[email]"}'}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("responses", {"input": "Say it."}),
        ("responses", {"input": "Say it.", "stream": True}),
        ("embeddings", {"input": ["one", "two"]}),
        ("embeddings", {"input": "one"}),
    ],
    ids=["response", "response-stream", "embeddings", "embedding"],
)
async def test_every_endpoint_is_mirrored_and_paired(path: str, body: dict[str, Any]) -> None:
    behaviours = {name: ModelBehaviour() for name in ("old", "new", "spare")}
    async with running_provider(behaviours, speed=100.0) as url:
        pair, _ = await one_pair(config(f"{url}/v1", shadow=own(content=True)), body, path)
    for side in ("baseline", "shadow"):
        said = pair[side]
        if path == "embeddings":
            count = len(body["input"]) if isinstance(body["input"], list) else 1
            assert said["vectors"] == [16] * count and len(said["content"]["vectors"][0]) == 16
        else:
            assert said["finish_reasons"] == ["completed"]
            assert len(said["content"]["texts"][0].encode()) == said["text_bytes"] > 0
    assert (pair["baseline"]["model"], pair["shadow"]["model"]) == ("old", "new")


def test_a_vector_in_base64_is_read_and_what_is_neither_is_not() -> None:
    def raw(value: Any) -> bytes:
        return json.dumps({"data": [{"embedding": value}]}).encode()

    packed = base64.b64encode(struct.pack("<3f", 1.0, -0.5, 0.25)).decode()
    assert read_answer("embeddings", raw(packed), stream=False).vectors == [[1.0, -0.5, 0.25]]
    for odd in ("not base64!", {"a": 1}, None):
        assert read_answer("embeddings", raw(odd), stream=False).vectors == []


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"choices": 3}', b'{"choices": [null]}', b"data: {}\n\ndata: [1]\n\n", b"\xff\xfe"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_read_says_nothing(raw: bytes, stream: bool) -> None:
    for endpoint in ("chat", "responses"):
        assert read_answer(endpoint, raw, stream=stream).texts == []  # type: ignore[arg-type]


async def test_a_sink_that_is_full_or_broken_is_counted_and_costs_the_user_nothing(upstream: Upstream) -> None:
    for options, outcome in (({"full": True}, "dropped"), ({"bug": True}, "failed")):
        async with serve_router(config(upstream.url, shadow=own(options=options))) as router:
            put(router, flag(0, shadow_weight=100_000))
            assert (await router.ask()).status == 200
            await eventually(lambda: pairs_of(router, outcome) == 1)  # noqa: B023
            assert pairs_of(router, "delivered") == 0


slow = threading.Event()


def slowly(text: str) -> str:
    slow.wait(20)
    return text


async def test_pairs_that_take_long_to_redact_are_dropped_and_users_never_wait_for_them(upstream: Upstream) -> None:
    slow.clear()
    redact = {"use": f"{__name__}:slowly"}
    spec = config(upstream.url, shadow={**own(content=True), "concurrency": 1000}, redact=redact)
    async with serve_router(spec) as router:
        put(router, flag(0, shadow_weight=100_000))
        for _ in range(READING_MAX + 3):
            assert (await router.ask()).status == 200
        try:
            await eventually(lambda: pairs_of(router, "dropped") == 3)
            assert pairs_of(router, "delivered") == 0
        finally:
            slow.set()
        await eventually(lambda: pairs_of(router) == READING_MAX)


async def test_the_file_has_a_line_for_each_pair_is_turned_over_and_only_its_owners(upstream: Upstream, tmp_path: Path) -> None:
    path = tmp_path / "pairs" / "pairs.jsonl"
    path.parent.mkdir()
    spec = config(upstream.url, shadow={"pairs": {"file": {"path": str(path), "max_bytes": 4000, "keep": 2}}})
    async with serve_router(spec) as router:
        put(router, flag(0, shadow_weight=100_000))
        for i in range(12):
            await router.ask()
            await eventually(lambda: pairs_of(router, sink="file") == i + 1)  # noqa: B023
    files = sorted(path.parent.iterdir())
    assert [f.name for f in files] == ["pairs.jsonl", "pairs.jsonl.1", "pairs.jsonl.2"]
    assert all(f.stat().st_size <= 4000 and stat.S_IMODE(f.stat().st_mode) == 0o600 for f in files)
    lines = [json.loads(line) for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    assert 2 < len(lines) < 12
    for line in lines:
        CHECK.validate(line)


async def test_a_file_that_cannot_be_written_is_counted(upstream: Upstream, tmp_path: Path) -> None:
    spec = config(upstream.url, shadow={"pairs": {"file": {"path": str(tmp_path / "none" / "pairs.jsonl")}}})
    async with serve_router(spec) as router:
        put(router, flag(0, shadow_weight=100_000))
        assert (await router.ask()).status == 200
        await eventually(lambda: pairs_of(router, "failed", "file") == 1)


@dataclass
class Receiver:
    """A quality pipeline that answers as it is told, one status a batch, and then 200."""

    statuses: list[int] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def post(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers["Idempotency-Key"])
        self.tokens.append(request.headers.get("Authorization"))
        body = await request.json()
        if self.hold is not None:
            await self.hold.wait()
        code = self.statuses.pop(0) if self.statuses else 200
        if code == 200:
            self.batches.append(body)
        return web.Response(status=code, headers={"Retry-After": "0"} if code == 429 else {})


def receiving(url: str, **changes: Any) -> dict[str, Any]:
    return {"pairs": {"http": {"url": f"{url}/pairs?team=q", "token_env": "T", "max_wait": "20ms", **changes}}, "drain": "1s"}


async def test_pairs_are_posted_in_batches_and_again_under_the_same_key_until_they_are_taken(upstream: Upstream) -> None:
    receiver = Receiver(statuses=[429, 503])
    app = web.Application()
    app.router.add_post("/pairs", receiver.post)
    async with (
        serve_web(app) as base,
        serve_router(config(upstream.url, shadow=receiving(base)), environ={"T": "secret"}) as router,
    ):
        put(router, flag(0, shadow_weight=100_000))
        await asyncio.gather(*(router.ask() for _ in range(6)))
        await eventually(lambda: pairs_of(router, sink="http") == 6)
    assert receiver.batches[0]["schema"] == "penstock/shadow-pair/v1"
    assert sum(len(batch["pairs"]) for batch in receiver.batches) == 6
    assert len(set(receiver.keys[:3])) == 1 and set(receiver.tokens) == {"Bearer secret"}
    for batch in receiver.batches:
        for pair in batch["pairs"]:
            CHECK.validate(pair)


@pytest.mark.parametrize(("code", "tries"), [(400, 1), (302, 1), (500, 2)])
async def test_a_receiver_that_refuses_costs_pairs_and_no_more(upstream: Upstream, code: int, tries: int) -> None:
    receiver = Receiver(statuses=[code] * 9)
    app = web.Application()
    app.router.add_post("/pairs", receiver.post)
    async with (
        serve_web(app) as base,
        serve_router(config(upstream.url, shadow=receiving(base, attempts=2))) as router,
    ):
        put(router, flag(0, shadow_weight=100_000))
        assert (await router.ask()).status == 200
        await eventually(lambda: pairs_of(router, "failed", "http") == 1)
    assert len(receiver.keys) == tries


async def test_a_receiver_that_hangs_fills_the_queue_and_what_is_beyond_it_is_dropped(upstream: Upstream) -> None:
    receiver = Receiver(hold=asyncio.Event())
    app = web.Application()
    app.router.add_post("/pairs", receiver.post)
    shadow = receiving("", batch=1, timeout="1h")
    async with serve_web(app) as base:
        shadow["pairs"]["http"]["url"] = f"{base}/pairs"
        shadow |= {"pairs": {**shadow["pairs"], "queue": 2}, "drain": "10ms"}
        async with serve_router(config(upstream.url, shadow=shadow)) as router:
            put(router, flag(0, shadow_weight=100_000))
            await router.ask()
            await eventually(lambda: len(receiver.keys) == 1)
            for _ in range(5):
                assert (await router.ask()).status == 200
            await eventually(lambda: pairs_of(router, "dropped", "http") == 3)
        assert pairs_of(router, "dropped", "http") == 6, "and a stop gives up what lies there"
        receiver.hold.set()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("budget", "made_copies"),
    [
        ({"per_day": "0.005 USD"}, 2),
        ({"per_minute": "0.005 USD"}, 2),
        ({"tokens_per_day": 1200}, 1),
        ({"tokens_per_minute": 2401}, 3),
        ({"per_day": "1 USD", "tokens_per_day": 1}, 1),
    ],
    ids=str,
)
async def test_copies_end_with_their_own_budget_and_spend_nothing_of_the_users(
    upstream: Upstream, budget: dict[str, Any], made_copies: int
) -> None:
    users = [{"environment": "production", "per_day": "1 USD", "on_exceed": "refuse"}]
    async with serve_router(config(upstream.url, shadow={"budget": budget}, budgets=users)) as router:
        put(router, flag(0, shadow_weight=100_000))
        for i in range(4):
            assert (await router.ask()).status == 200
            done = min(i + 1, made_copies)
            await eventually(lambda: router.metric("penstock_shadow_total", **MIRRORED, outcome="mirrored") == done)  # noqa: B023
        assert upstream.models().count("new") == made_copies
        skipped = router.metric("penstock_shadow_total", **MIRRORED, outcome="skipped_budget")
        assert skipped == 4 - made_copies
        assert router.metric("penstock_budget_spent_usd") == pytest.approx(4 * 0.0036)
        for name, limit in budget.items():
            unit = "tokens" if name.startswith("tokens") else "usd"
            window = "minute" if name.endswith("minute") else "day"
            used = router.metric("penstock_shadow_budget_used", window=window, unit=unit)
            assert used == pytest.approx(made_copies * (1200 if unit == "tokens" else 0.0036))
            assert router.metric("penstock_shadow_budget", window=window, unit=unit) == float(str(limit).split()[0])


async def test_a_budget_in_dollars_has_no_copies_of_a_model_without_a_price(upstream: Upstream) -> None:
    models = [{"name": n, "provider": "p"} for n in ("old", "new", "spare")]
    async with serve_router(config(upstream.url, shadow={"budget": {"per_day": "1 USD"}}, models=models)) as router:
        put(router, flag(0, shadow_weight=100_000))
        await router.ask()
        assert router.metric("penstock_shadow_total", **MIRRORED, outcome="skipped_budget") == 1
    assert upstream.models() == ["old"]


async def test_a_stream_is_not_held_up_by_its_copy_or_its_pair(upstream: Upstream) -> None:
    """The user reads to the end while the copy hangs."""
    upstream.script = {"new": upstream.hang}
    async with serve_router(config(upstream.url, shadow={**own(), "drain": "10ms"})) as router:
        put(router, flag(0, shadow_weight=100_000))
        got = await router.ask(stream=True)
        assert (got.status, got.content) == (200, "Hello")


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ("{}", "shadow.pairs: pairs go nowhere: name file, http or python"),
        ("{file: {path: p}, options: {a: 1}}", "shadow.pairs.options: options are for code of one's own"),
        ("{http: {url: 'ftp://x'}}", "shadow.pairs.http.url: 'ftp://x' is not an address"),
        ("{python: 'no module'}", "shadow.pairs.python: "),
        ("{file: {path: p}, text_bytes: 10}", "shadow.pairs.text_bytes: "),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_place(pairs: str, problem: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_text(RouterConfig, f"{GOOD}shadow:\n  pairs: {pairs}\n", "router.yaml")
    assert "router.yaml:13:" in str(refused.value) or "router.yaml:12:" in str(refused.value)
    assert problem in str(refused.value)


@pytest.mark.parametrize("name", ["no_such_module:make", f"{__name__}:nothing", "json:dumps", f"{__name__}:pairs_of"])
async def test_code_that_makes_no_sink_ends_the_start(upstream: Upstream, name: str) -> None:
    with pytest.raises(ValueError, match=r"shadow\.pairs\.python"):
        async with serve_router(config(upstream.url, shadow={"pairs": {"python": name}})):
            pass


def test_the_designs_example_stays_a_good_file() -> None:
    example = Path(__file__).parents[2] / "docs/examples/router.yaml"
    assert parse_text(
        RouterConfig, example.read_text(encoding="utf-8") + "shadow: {pairs: {file: {path: p.jsonl}}}\n"
    ).shadow.pairs


async def test_bytes_that_the_user_gets_are_the_same_with_and_without_pairs(upstream: Upstream) -> None:
    got = []
    upstream.script = {"old": answer}
    for shadow in ({}, own()):
        async with serve_router(config(upstream.url, shadow=shadow)) as router:
            put(router, flag(0, shadow_weight=100_000))
            async with aiohttp.ClientSession() as http:
                body = {"model": "chat", "user": "u", "messages": [], "stream": True}
                async with http.post(f"{router.url}/v1/chat/completions", json=body) as response:
                    got.append(await response.read())
    assert got[0] == got[1]
