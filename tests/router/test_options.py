"""What a request may say about its own routing: how it is read, and who answers then."""

from typing import Any

import openai
import pytest

from bench.behaviour import Errors, Latency, ModelBehaviour
from bench.provider import Provider, running_provider
from flagspec import Variant
from router.caps import Card, weigh
from router.choose import ENOUGH, HALF_LIFE_S, OUTPUT_GUESS, Reading, Recent, expected_usd, rank
from router.config import Model
from router.errors import ApiError
from router.options import NO_OPTIONS, Options, read_options
from router.reasoning import reasoned
from tests.router.harness import Router, Upstream, config, flag, put, serve_router, status

# -- reading ------------------------------------------------------------------------------------------------------------------


def test_a_request_without_options_has_none() -> None:
    assert read_options({"model": "m"}, {}) is NO_OPTIONS


def test_reads_every_option_from_the_body_and_from_headers() -> None:
    said = {
        "optimize_for": "cost", "preferred_model": "a", "fallback_models": ["b", "c"], "max_cost_per_request": 0.05,
        "reasoning_effort": "high", "deadline": 20,
    }  # fmt: skip
    headers = {
        b"x-penstock-optimize-for": b"cost", b"x-penstock-preferred-model": b"a", b"x-penstock-fallback-models": b"b, c",
        b"x-penstock-max-cost-per-request": b"0.05 USD", b"x-penstock-reasoning-effort": b"high", b"x-penstock-deadline": b"20s",
    }  # fmt: skip
    expected = Options(
        optimize_for="cost", preferred_model="a", fallback_models=("b", "c"), max_cost_usd=0.05, effort="high", deadline_s=20.0
    )
    assert read_options({"penstock": said}, {}) == expected == read_options({}, headers)
    both = read_options({"penstock": {"optimize_for": "speed"}}, headers)
    assert isinstance(both, Options) and both.optimize_for == "speed", "the body's counts"


@pytest.mark.parametrize(("mode", "effort"), [({"reasoning_mode": "off"}, "off"), ({"reasoning_mode": "on"}, "medium"),
    ({"reasoning_mode": "on", "reasoning_effort": "low"}, "low"), ({"reasoning_mode": "off", "reasoning_effort": "low"}, "off")])  # fmt: skip
def test_a_mode_is_an_effort(mode: dict[str, str], effort: str) -> None:
    assert read_options({"penstock": mode}, {}) == Options(effort=effort)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("cost", "penstock"),
        ({"optimise_for": "cost"}, "penstock.optimise_for"),
        ({"optimize_for": "luck"}, "penstock.optimize_for"),
        ({"optimize_for": ["cost"]}, "penstock.optimize_for"),
        ({"preferred_model": ""}, "penstock.preferred_model"),
        ({"fallback_models": [1]}, "penstock.fallback_models"),
        ({"max_cost_per_request": 0}, "penstock.max_cost_per_request"),
        ({"max_cost_per_request": "1 EUR"}, "penstock.max_cost_per_request"),
        ({"max_cost_per_request": True}, "penstock.max_cost_per_request"),
        ({"max_cost_per_request": "nan"}, "penstock.max_cost_per_request"),
        ({"deadline": {}}, "penstock.deadline"),
    ],
)
def test_what_is_misspelt_is_refused(given: Any, param: str) -> None:
    got = read_options({"penstock": given}, {})
    assert isinstance(got, ApiError) and (got.status, got.param) == (400, param)


# -- choosing -----------------------------------------------------------------------------------------------------------------


def card(name: str, out_usd: str = "8 USD", **more: Any) -> Card:
    price = {"input_per_mtok": "2 USD", "output_per_mtok": out_usd}
    return Card.of(Model.model_validate({"name": name, "provider": "p", "price": price, **more}))


def ranked(cards: list[Card], readings: dict[str, Reading], goal: Any, **body: Any) -> list[str]:
    return rank(cards, weigh(body, 4000, "chat"), readings, {}, goal)


def test_quality_is_what_the_table_says_times_how_often_it_answers() -> None:
    cards = [card("plain"), card("fine", quality=80), card("best", quality=90)]
    assert ranked(cards, {}, "quality") == ["best", "fine", "plain"]
    failing = {"best": Reading(calls=100, failed=0.2)}  # 72
    assert ranked(cards, failing, "quality") == ["fine", "best", "plain"]


def test_without_any_quality_the_order_of_the_table_counts() -> None:
    assert ranked([card("b"), card("a")], {}, "quality") == ["b", "a"]


def test_speed_is_what_was_measured_and_who_is_unknown_is_tried_first() -> None:
    cards = [card("slow"), card("fast"), card("unknown"), card("dead")]
    readings = {
        "slow": Reading(calls=50, whole_s=4.0, first_s=0.3), "fast": Reading(calls=50, whole_s=1.0, first_s=0.6),
        "unknown": Reading(calls=ENOUGH - 1, whole_s=9.0), "dead": Reading(calls=50, failed=1.0),
    }  # fmt: skip
    assert ranked(cards, readings, "speed") == ["unknown", "fast", "slow", "dead"]
    assert ranked(cards, readings, "speed", stream=True) == ["unknown", "slow", "fast", "dead"], (
        "a stream waits for its first token"
    )


def test_speed_counts_the_tries_that_failures_cost() -> None:
    readings = {"a": Reading(calls=50, whole_s=1.0, failed=0.6), "b": Reading(calls=50, whole_s=2.0)}  # 2.5 s a success
    assert ranked([card("a"), card("b")], readings, "speed") == ["b", "a"]


def test_cost_is_that_of_the_answers_a_model_really_gives() -> None:
    cards = [card("cheap", "8 USD"), card("dear", "10 USD"), card("free-of-price", price=None)]
    assert ranked(cards, {}, "cost") == ["cheap", "dear", "free-of-price"]
    talkative = {"cheap": Reading(calls=50, output=1000.0), "dear": Reading(calls=50, output=100.0)}
    assert ranked(cards, talkative, "cost") == ["dear", "cheap", "free-of-price"]
    weight = weigh({"max_tokens": 50, "n": 2}, 4000, "chat")
    assert expected_usd(cards[0], weight, Reading()) == pytest.approx(1000 * 2e-6 + 2 * 50 * 8e-6)
    assert expected_usd(cards[0], weigh({}, 4000, "chat"), Reading()) == pytest.approx(0.002 + OUTPUT_GUESS * 8e-6)


def test_an_open_breaker_comes_last_whatever_it_costs() -> None:
    cards = [card("a", "1 USD"), card("b")]
    assert rank(cards, weigh({}, 40, "chat"), {}, {"a": False, "b": True}, "cost") == ["b", "a"]


def test_what_was_measured_fades_until_a_model_is_tried_again() -> None:
    recent = Recent()
    for i in range(10):
        recent.ended("ok" if i else "timeout", 2.0, 100, 0.0)
    recent.ended("client_error", 0.1, None, 0.0)
    assert recent.read(0.0) == Reading(calls=10, failed=0.1, whole_s=2.0, first_s=None, output=100.0)
    later = recent.read(2 * HALF_LIFE_S)
    assert (later.calls, later.whole_s, later.failed) == (2.5, pytest.approx(2.0), pytest.approx(0.1))


# -- reasoning ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effort", "style", "body", "expected"),
    [
        (None, None, {"reasoning_effort": "xyz"}, {"reasoning_effort": "xyz"}),
        (None, "openai", {"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "low"}}),
        ("off", None, {}, {"reasoning_effort": "minimal"}),
        ("max", "openai", {"reasoning_effort": "low"}, {"reasoning_effort": "high"}),
        ("off", "gemini", {}, {"reasoning_effort": "none"}),
        (None, "gemini", {"reasoning_effort": "minimal"}, {"reasoning_effort": "low"}),
        ("low", "openrouter", {}, {"reasoning": {"effort": "low"}}),
        ("off", "openrouter", {}, {"reasoning": {"enabled": False}}),
        (None, "anthropic", {"reasoning_effort": "high"}, {"thinking": {"type": "enabled", "budget_tokens": 24576}}),
        ("medium", "anthropic", {"max_tokens": 4096}, {"max_tokens": 4096, "thinking": {"type": "enabled", "budget_tokens": 4095}}),
        ("medium", "anthropic", {"max_tokens": 500}, {"max_tokens": 500, "thinking": {"type": "disabled"}}),
        ("off", "anthropic", {}, {"thinking": {"type": "disabled"}}),
        (None, "anthropic", {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ("high", "none", {"reasoning_effort": "low", "x": 1}, {"x": 1}),
        (None, "none", {"reasoning_effort": "low"}, {}),
    ],
)  # fmt: skip
def test_each_provider_is_told_in_its_own_words(effort: Any, style: Any, body: dict[str, Any], expected: dict[str, Any]) -> None:
    before = dict(body)
    assert reasoned(body, effort, style) == expected
    assert body == before


def test_the_responses_endpoint_has_the_effort_elsewhere() -> None:
    assert reasoned({"reasoning": {"summary": "auto"}}, "low", None, responses=True) == {
        "reasoning": {"summary": "auto", "effort": "low"}
    }


# -- over HTTP ----------------------------------------------------------------------------------------------------------------


def table(upstream: Upstream, **changes: Any) -> Any:
    """`old` is fine and dear, `new` good and cheap, `spare` neither known nor priced."""
    models = [
        {"name": "old", "provider": "p", "quality": 90, "price": {"input_per_mtok": "5 USD", "output_per_mtok": "20 USD"}},
        {"name": "new", "provider": "p", "quality": 70, "price": {"input_per_mtok": "1 USD", "output_per_mtok": "4 USD"}},
        {"name": "spare", "provider": "p", "tools": False, "streaming": False},
    ]
    return config(upstream.url, models=models, **changes)


async def served(router: Router, model: str = "chat", **options: Any) -> str:
    got = await router.ask(model, penstock=options)
    assert got.status == 200, got.text
    return str(got.headers["x-penstock-model"])


async def test_the_options_never_go_upstream(upstream: Upstream) -> None:
    async with serve_router(table(upstream)) as router:
        await router.ask(penstock={"optimize_for": "cost"})
        await router.ask(stream=True, penstock={"max_cost_per_request": 1})
    assert all("penstock" not in call.body for call in upstream.calls) and len(upstream.calls) == 2
    assert not any(name.lower().startswith("x-penstock") for call in upstream.calls for name in call.headers)


async def test_auto_is_the_best_of_all_models(upstream: Upstream) -> None:
    async with serve_router(table(upstream)) as router:
        assert await served(router, "auto") == "old"
        assert await served(router, "auto", optimize_for="cost") == "new"
        assert (await router.ask("auto", penstock={"optimize_for": "quality"})).headers["x-penstock-arm"] == "baseline"


async def test_nobody_gets_round_a_flag_by_asking_for_the_best(upstream: Upstream) -> None:
    async with serve_router(table(upstream)) as router:
        put(router, flag(0, shadow_weight=100_000))
        assert await served(router, "auto", optimize_for="cost") == "old", "new is cheaper, and under evaluation"
        upstream.calls.clear()
        assert await served(router, optimize_for="cost") == "old", "spare has no price"
        assert upstream.models() == ["old"], "and nothing of it is mirrored"
        put(router, flag(100_000, revision=2))
        assert await served(router, optimize_for="cost") == "new"
        assert await served(router, "auto", optimize_for="cost") == "new"


async def test_who_chooses_takes_no_part_in_the_comparison(upstream: Upstream) -> None:
    async with serve_router(table(upstream)) as router:
        put(router, flag(50_000))
        for option in ({"optimize_for": "quality"}, {"preferred_model": "new"}):
            await served(router, **option)
        for arm, model in (("baseline", "old"), ("candidate", "new")):
            assert router.arm("penstock_requests_total", arm=arm, model=model, outcome="ok") == 0
        apart = {"flag": "", "route": "chat", "streaming": "false", "arm": "baseline", "outcome": "ok"}
        assert router.metric("penstock_requests_total", **apart, model="new") == 1


async def test_a_preferred_model_is_asked_first_then_the_fallbacks_of_the_request(upstream: Upstream) -> None:
    async with serve_router(table(upstream)) as router:
        put(router, flag(0))
        assert await served(router, preferred_model="new") == "new"
        upstream.script = {"new": status(500), "old": status(500)}
        upstream.calls.clear()
        got = await router.ask(penstock={"preferred_model": "new", "fallback_models": ["spare"]})
        assert (got.headers["x-penstock-model"], upstream.models()) == ("spare", ["new", "old", "spare"])
        assert got.headers["x-penstock-fallback"] == "true"


async def test_a_killed_candidate_is_nobodys_to_prefer(upstream: Upstream) -> None:
    async with serve_router(table(upstream)) as router:
        put(router, flag(100_000, killed=True))
        assert await served(router, preferred_model="new") == "old"


async def test_a_model_asked_for_by_name_can_have_fallbacks(upstream: Upstream) -> None:
    upstream.script["new"] = status(503)
    async with serve_router(table(upstream)) as router:
        assert await served(router, "new", fallback_models=["spare", "old"]) == "spare"


@pytest.mark.parametrize("option", [{"preferred_model": "nope"}, {"fallback_models": ["old", "nope"]}])
async def test_a_model_that_does_not_exist_is_named(upstream: Upstream, option: dict[str, Any]) -> None:
    async with serve_router(table(upstream)) as router:
        got = await router.ask(penstock=option)
    assert (got.status, got.json["error"]["code"]) == (400, "model_not_found")
    assert got.json["error"]["param"] == f"penstock.{next(iter(option))}" and "`nope`" in got.json["error"]["message"]


async def test_a_request_that_needs_tools_or_a_stream_goes_to_who_can(upstream: Upstream) -> None:
    routes = [{"name": "chat", "match": {"model": ["chat"]}, "default": "spare", "fallbacks": ["new"]}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with serve_router(table(upstream, routes=routes)) as router:
        assert (await router.ask()).headers["x-penstock-model"] == "spare"
        assert (await router.ask(tools=tools)).headers["x-penstock-model"] == "new"
        assert (await router.ask(stream=True)).headers["x-penstock-model"] == "new"
        got = await router.ask("spare", tools=tools)
        assert (got.status, got.json["error"]["code"]) == (400, "unsupported")


async def test_a_cost_limit_of_the_request_limits_the_answer_and_passes_over_who_is_too_dear(upstream: Upstream) -> None:
    async with serve_router(table(upstream)) as router:
        # 25,000 tokens in: 0.125 USD at old, 0.025 at new; of 0.10 USD new has 0.075 left, 18,7xx tokens at 4 USD a million.
        text = [{"role": "user", "content": "x" * 100_000}]
        got = await router.ask(messages=text, penstock={"max_cost_per_request": 0.10, "fallback_models": ["new"]})
        assert (got.headers["x-penstock-model"], upstream.models()) == ("new", ["new"])
        assert 18_600 < upstream.calls[0].body["max_completion_tokens"] < 18_750
        got = await router.ask(messages=text, penstock={"max_cost_per_request": 0.01})
        assert (got.status, got.json["error"]["code"]) == (400, "cost_limit_exceeded")


async def test_a_deadline_of_the_request_only_shortens_the_routers_own(upstream: Upstream) -> None:
    upstream.script["old"] = upstream.script["spare"] = upstream.hang
    async with serve_router(table(upstream, deadline={"request": "300ms"})) as router:
        for seconds in (0.2, 50):
            got = await router.ask(penstock={"deadline": seconds})
            assert (got.status, got.json["error"]["code"]) == (504, "timeout")
        assert router.arm("penstock_request_duration_seconds_sum") == pytest.approx(0.1 + 0.15, abs=0.1)


async def test_the_effort_reaches_each_model_in_its_own_words(upstream: Upstream) -> None:
    models = [{"name": "old", "provider": "p", "reasoning": "none"}, {"name": "new", "provider": "p"}]
    routes = [{"name": "chat", "match": {"model": ["chat"]}, "flag": "chat-model", "default": "old"}]
    async with serve_router(config(upstream.url, models=models, routes=routes)) as router:
        put(router, flag(100_000, candidate=Variant(model="new", params={"reasoning_effort": "low"})))
        await router.ask(penstock={"reasoning_effort": "high"})
        upstream.script["new"] = status(500)
        await router.ask(reasoning_effort="medium")
    sent = [(call.model, call.body.get("reasoning_effort")) for call in upstream.calls]
    assert sent == [("new", "high"), ("new", "medium"), ("old", None)]


async def test_the_openai_sdk_gets_the_faster_of_two_simulated_models() -> None:
    fast = ModelBehaviour(ttft=Latency(median_s=0.005, sigma=0), tokens_per_s=1e6)
    slow = ModelBehaviour(ttft=Latency(median_s=0.08, sigma=0), tokens_per_s=1e6)
    provider = Provider({"slow": slow, "fast": fast, "broken": ModelBehaviour(errors=Errors(server_error=1.0))})
    async with running_provider(provider) as url:
        models = [{"name": name, "provider": "p"} for name in provider.models]
        async with (
            serve_router(config(f"{url}/v1", models=models, routes=[])) as router,
            openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client,
        ):
            seen = []
            for _ in range(30):
                got = await client.chat.completions.create(
                    model="auto",
                    messages=[{"role": "user", "content": "Hi"}],
                    extra_body={"penstock": {"optimize_for": "speed"}},
                )
                seen.append(got.model)
        assert set(seen[:10]) == {"slow", "fast"}, "each is tried before it is judged"
        assert seen[-10:] == ["fast"] * 10
