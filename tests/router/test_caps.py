"""What one request may use: worked examples by hand, then over HTTP."""

import json
from typing import Any

import pytest

from router.caps import Card, Fit, Weight, affordable_tokens, fit, input_tokens, weigh
from router.config import Caps, Model
from router.outcome import Failed
from tests.router.harness import Upstream, config, flag, put, serve_router


def card(**fields: Any) -> Card:
    price = {"input_per_mtok": "2 USD", "output_per_mtok": "8 USD"}
    return Card.of(Model.model_validate({"name": "m", "provider": "p", "price": price, **fields}))


def weight(input: int = 1000, **body: Any) -> Weight:
    return weigh(body, input * 4, "chat")


@pytest.mark.parametrize(
    ("asked", "caps", "about", "expected"),
    [
        ({}, {}, {}, {}),
        ({"max_tokens": 50}, {}, {}, {}),
        ({}, {"output_tokens": 100}, {}, {"max_completion_tokens": 100}),
        ({}, {"output_tokens": 100}, {"output_field": "max_tokens"}, {"max_tokens": 100}),
        ({}, {"output_tokens": 100}, {"max_output_tokens": 80}, {}),
        ({"max_tokens": 50}, {"output_tokens": 100}, {}, {}),
        ({"max_tokens": 500}, {"output_tokens": 100}, {}, {"max_tokens": 100}),
        ({"max_completion_tokens": 500}, {"output_tokens": 100}, {}, {"max_completion_tokens": 100}),
        ({"max_tokens": 500, "max_completion_tokens": 60}, {"output_tokens": 100}, {}, {"max_completion_tokens": 60, "max_tokens": None}),
        ({"max_tokens": 500}, {}, {"max_output_tokens": 80}, {"max_tokens": 80}),
        ({"max_tokens": 50}, {}, {"output_field": "max_completion_tokens"}, {"max_completion_tokens": 50, "max_tokens": None}),
    ],
)  # fmt: skip
def test_the_longest_answer_in_either_spelling(
    asked: dict[str, int], caps: dict[str, int], about: dict[str, Any], expected: dict[str, int | None]
) -> None:
    got = fit(weight(**asked), card(**about), Caps(**caps), None)  # type: ignore[arg-type]
    assert isinstance(got, Fit)
    assert got.fields == expected
    assert (got.lowered == "output") == (
        bool(asked) and bool(expected) and min(asked.values()) > min(v for v in expected.values() if v)
    )


# 1,000 tokens in cost 0.002 USD; each token out costs 0.000008 USD.
@pytest.mark.parametrize(
    ("budget", "body", "affordable"),
    [(0.01, {}, 1000), (0.01, {"n": 2}, 500), (0.002008, {}, 1), (0.002, {}, 0), (0.001, {}, -125)],
)
def test_an_answer_may_be_as_long_as_the_budget_pays_for(budget: float, body: dict[str, int], affordable: int) -> None:
    assert affordable_tokens(weight(**body), card(), budget) == affordable


def test_a_cost_limit_becomes_a_limit_of_the_answer() -> None:
    assert fit(weight(), card(), None, 0.01) == Fit(fields={"max_completion_tokens": 1000})
    assert fit(weight(max_tokens=2000), card(), None, 0.01) == Fit(fields={"max_tokens": 1000}, lowered="cost")
    assert fit(weight(max_tokens=900), card(), None, 0.01) == Fit(fields={})
    assert fit(weight(), card(max_output_tokens=900), None, 0.01) == Fit(fields={})


@pytest.mark.parametrize(("about", "budget"), [({}, 0.002), ({"price": None}, 5.0)])
def test_what_cannot_be_afforded_or_priced_is_not_sent(about: dict[str, Any], budget: float) -> None:
    got = fit(weight(), card(**about), None, budget)
    assert isinstance(got, Failed) and (got.unasked, got.outcome) == ("cost", "client_error")


def test_a_context_holds_question_and_answer() -> None:
    assert fit(weight(900, max_tokens=100), card(context_tokens=1000), None, None) == Fit(fields={})
    got = fit(weight(901, max_tokens=100), card(context_tokens=1000), None, None)
    assert isinstance(got, Failed) and got.unasked == "unfit"


def test_an_image_counts_as_an_image_and_not_as_the_length_of_its_base64() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 4000}, image]}]}
    assert 2_445 <= input_tokens(body, len(json.dumps(body))) <= 2_470
    text = {"model": "m", "messages": [{"role": "user", "content": "x" * 400_000}]}
    assert 100_000 <= input_tokens(text, len(json.dumps(text))) <= 100_020


def capped(upstream: Upstream, caps: dict[str, Any], **about: Any) -> Any:
    price = {"input_per_mtok": "2 USD", "output_per_mtok": "8 USD"}
    models = [{"name": n, "provider": "p", "price": price, **(about if n == "old" else {})} for n in ("old", "new", "spare")]
    return config(upstream.url, caps=caps, models=models)


async def test_too_long_a_request_is_refused_before_anybody_is_asked(upstream: Upstream) -> None:
    async with serve_router(capped(upstream, {"input_tokens": 100})) as router:
        got = await router.ask(x="y" * 400)
        assert (got.status, got.json["error"]["code"], upstream.calls) == (400, "input_tokens_exceeded", [])
        assert got.headers["x-should-retry"] == "false"
        assert router.metric("penstock_capped_total", what="input", action="refused") == 1
        assert (await router.ask()).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_the_cap_on_the_answer_goes_upstream_and_is_counted(upstream: Upstream, stream: bool) -> None:
    async with serve_router(capped(upstream, {"output_tokens": 64})) as router:
        put(router, flag(0, shadow_weight=100_000))
        await router.ask(stream=stream, max_tokens=500)
        await router.app.engine.close()  # type: ignore[union-attr]
        assert [(c.body["max_tokens"], "max_completion_tokens" in c.body) for c in upstream.calls] == [(64, False)] * 2
        assert router.metric("penstock_capped_total", what="output", action="lowered") == 1, "copies are not users"


async def test_a_request_goes_to_the_model_that_can_take_it(upstream: Upstream) -> None:
    async with serve_router(capped(upstream, {}, context_tokens=50)) as router:
        got = await router.ask(max_tokens=100)
        assert (got.status, got.headers["x-penstock-model"], upstream.models()) == (200, "spare", ["spare"])
        assert router.arm("penstock_requests_total", outcome="error") == 1, "its users cannot use it for what others can"


async def test_a_request_that_no_model_can_take_is_nobodys_failure(upstream: Upstream) -> None:
    spec = capped(upstream, {"cost_per_request": "0.0001 USD"})
    async with serve_router(spec) as router:
        got = await router.ask(x="y" * 4000)
        assert (got.status, got.json["error"]["code"], upstream.calls) == (400, "cost_limit_exceeded", [])
        assert router.metric("penstock_capped_total", what="cost", action="refused") == 1
        assert router.arm("penstock_requests_total", outcome="client_error") == 1
        assert router.arm("penstock_unavailable_total") == 0


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "9"])
async def test_a_limit_that_is_none_is_refused(upstream: Upstream, field: str, value: Any) -> None:
    async with serve_router(config(upstream.url)) as router:
        got = await router.ask(**{field: value})
    assert (got.status, got.json["error"]["param"]) == (400, field)
