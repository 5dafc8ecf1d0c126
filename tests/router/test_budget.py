"""What an environment may spend in a day, and who answers when it has."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from flagspec import Variant
from router.budget import Budget
from router.config import Budget as Spec
from router.config import Flags, read_config
from router.errors import ApiError
from router.selection import Plan, Step
from router.usage import Rates
from tests.router.harness import Upstream, config, eventually, flag, put, serve_flags, serve_router, status

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
RATES = {name: Rates(input=1e-6, output=out, cached=1e-6) for name, out in (("cheap", 1e-6), ("down", 4e-6), ("dear", 9e-6))}


def budget(*more: dict[str, Any], **changes: Any) -> Budget:
    spec = {"environment": "production", "per_day": "1 USD", "downgrade_to": "down", **changes}
    return Budget([Spec.model_validate(one) for one in (spec, *more)], "production", RATES)


def plan(*models: str, mirror: str | None = None, **more: Any) -> Plan:
    steps = tuple(Step(model=name) for name in models)
    copy = None if mirror is None else Step(model=mirror)
    return Plan(route="chat", flag="f", arm="candidate", steps=steps, mirror=copy, reason="split", **more)


def test_it_is_spent_when_the_limit_is_reached_and_anew_at_midnight_utc() -> None:
    one = budget()
    one.spend(0.99, NOON)
    assert not one.exceeded(NOON)
    one.spend(0.01, NOON)
    assert one.exceeded(NOON) and one.exceeded(NOON + timedelta(hours=11, minutes=59))
    assert not one.exceeded(NOON + timedelta(hours=12))
    assert one.spent_usd(NOON + timedelta(hours=12)) == 0.0


def test_of_several_the_smallest_holds_and_only_this_environments() -> None:
    staging = {"environment": "staging", "per_day": "0.01 USD", "on_exceed": "refuse"}
    small = {"environment": "production", "per_day": "0.5 USD", "on_exceed": "refuse"}
    assert (budget(staging).limit_usd, budget(staging, small).limit_usd) == (1.0, 0.5)
    none = Budget([], "production", RATES)
    none.spend(1e9, NOON)
    assert not none.exceeded(NOON)


@pytest.mark.parametrize(
    ("before", "after", "flagged"),
    [
        (["cheap", "down"], ["cheap", "down"], True),
        (["down", "dear", "cheap"], ["down", "cheap"], True),
        (["dear", "down", "cheap"], ["down", "cheap"], False),
        (["unpriced", "dear"], ["down"], False),
    ],
)
def test_goes_down_to_what_costs_no_more(before: list[str], after: list[str], flagged: bool) -> None:
    got = budget().allowed(plan(*before, mirror="dear", refusal_checked=True), NOON)
    assert isinstance(got, Plan)
    assert ([step.model for step in got.steps], got.flag) == (after, "f" if flagged else "")
    assert got.mirror is None, "a copy costs money too"
    assert got.refusal_checked == (flagged and before[:2] == after[:2])


def test_refuses_until_midnight() -> None:
    got = budget(on_exceed="refuse").allowed(plan("cheap"), NOON)
    assert isinstance(got, ApiError)
    assert (got.status, got.code, got.retry_after) == (429, "budget_exceeded", str(12 * 3600 + 1))


def spending(upstream: Upstream, **changes: Any) -> Any:
    """An answer of `old` costs 0.0036 USD, of `new` ten times as much."""
    dear = {"input_per_mtok": "20 USD", "output_per_mtok": "80 USD"}
    price = {"input_per_mtok": "2 USD", "output_per_mtok": "8 USD"}
    models = [{"name": n, "provider": "p", "price": dear if n == "new" else price} for n in ("old", "new", "spare")]
    budget = {"environment": "production", "per_day": "0.05 USD", "downgrade_to": "old", **changes}
    return config(upstream.url, models=models, budgets=[budget])


async def test_users_go_down_to_the_cheaper_model_when_the_day_is_spent(upstream: Upstream) -> None:
    async with serve_router(spending(upstream)) as router:
        put(router, flag(100_000))
        served = [(await router.ask()).headers["x-penstock-model"] for _ in range(4)]
        assert served == ["new", "new", "old", "old"], "0.036, 0.072: beyond 0.05"
        assert router.metric("penstock_budget_usd") == 0.05
        assert router.metric("penstock_budget_spent_usd") == pytest.approx(2 * 0.036 + 2 * 0.0036)
        candidate = {"arm": "candidate", "model": "new"}
        assert router.arm("penstock_requests_total", candidate, outcome="ok") == 2, "nobody is held against it"
        assert (await router.ask("new")).headers["x-penstock-model"] == "old", "nor by asking for it by name"


async def test_mirrored_and_failed_attempts_are_spent_too_and_then_nothing_is_mirrored(upstream: Upstream) -> None:
    async with serve_router(spending(upstream)) as router:
        put(router, flag(0, shadow_weight=100_000))
        for _ in range(4):
            await router.ask()
            await router.app.engine._mirror.close()  # type: ignore[union-attr]
        assert upstream.models().count("new") == 2


async def test_where_the_file_says_so_requests_are_refused(upstream: Upstream) -> None:
    async with serve_router(spending(upstream, on_exceed="refuse", per_day="0.001 USD")) as router:
        assert (await router.ask()).status == 200
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=2) as client:
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(model="chat", messages=[])
        assert (refused.value.code, refused.value.type) == ("budget_exceeded", "insufficient_quota")
        assert len(upstream.calls) == 1, "and the SDK does not try again"


async def test_the_documented_example_works_whole(upstream: Upstream) -> None:
    """Every part of docs/examples/router.yaml at once, with its provider and flag source put here."""
    example = read_config(Path(__file__).parents[2] / "docs/examples/router.yaml")
    providers = [example.providers[0].model_copy(update={"base_url": upstream.url})]
    async with serve_flags() as flags:
        flags.write(flag(100_000, control=Variant(model="gpt-4.1"), candidate=Variant(model="gpt-5")))
        source = Flags(source=flags.url)
        spec = example.model_copy(update={"providers": providers, "flags": source})
        async with serve_router(spec, environ={"OPENAI_API_KEY": "k"}) as router:
            await eventually(lambda: router.app.flags.revision == 1)
            got = await router.ask("auto", max_tokens=100_000)
            assert (got.status, got.headers["x-penstock-model"], got.headers["x-penstock-arm"]) == (200, "gpt-5", "candidate")
            assert upstream.calls[0].body["max_tokens"] == 16_000, "caps.output_tokens"
            assert (await router.ask("gpt-4.1", stream=True)).events[-1] == "[DONE]"
            assert router.metric("penstock_budget_usd") == 250
            assert router.metric("penstock_breaker_state", model="gpt-5", state="closed") == 1


async def test_a_fallback_that_costs_too_much_is_left_out(upstream: Upstream) -> None:
    spec = spending(upstream, per_day="0.001 USD")
    route = spec.routes[0].model_copy(update={"fallbacks": ["new", "spare"]})
    async with serve_router(spec.model_copy(update={"routes": [route]})) as router:
        await router.ask()
        upstream.script["old"] = status(500)
        got = await router.ask()
        assert (got.headers["x-penstock-model"], upstream.models()) == ("spare", ["old", "old", "spare"])
