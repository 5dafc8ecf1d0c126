"""The circuit breaker: its window against a naive count, its states step by step, and what it does for users over HTTP."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.breaker import TICKS_PER_S, Breaker, Ticket, verdict_of
from router.config import Breaker as Spec
from router.outcome import Failed
from tests.router.harness import Router, Upstream, config, flag, put, serve_router, status

TWO_MINUTES = 120


def breaker(**changes: Any) -> Breaker:
    return Breaker(Spec.model_validate({"window": "2m", "min_requests": 4, "open_for": "30s", **changes}))


def answers(one: Breaker, verdicts: str, at: float = 0.0) -> None:
    """g: good, b: bad, u: unclear."""
    for letter in verdicts:
        ticket = one.admit(at)
        assert ticket is not None
        one.report(ticket, {"g": "good", "b": "bad", "u": "unclear"}[letter], at)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 40 * TICKS_PER_S), st.floats(0, 0.99), st.booleans()), max_size=80),
    st.integers(1, 8),
    st.sampled_from([0.2, 0.5, 0.75, 1.0]),
)
def test_counts_exactly_the_answers_of_the_window_that_ends_now(
    steps: list[tuple[int, float, bool]], min_requests: int, ratio: float
) -> None:
    """Against a list of all answers. Times are ticks and parts of them; the window is 2 minutes, the steps up to 40 s apart."""
    one = Breaker(Spec(failure_ratio=ratio, window=timedelta(minutes=2), min_requests=min_requests))
    tick, seen = 0, list[tuple[int, bool]]()
    for gap, part, bad in steps:
        tick += gap
        now = (tick + part) / TICKS_PER_S
        one.report(Ticket(0, None), "bad" if bad else "good", now)
        seen.append((tick, bad))
        inside = [b for t, b in seen if t > tick - TWO_MINUTES * TICKS_PER_S]
        if bad and len(inside) >= min_requests and sum(inside) >= ratio * len(inside):
            assert one.state(now) == "open"
            return
        assert one.state(now) == "closed"
        assert one.window(now) == (len(inside), sum(inside))


def test_half_of_the_answers_open_it_and_less_do_not() -> None:
    one = breaker(min_requests=10)
    answers(one, "ggggg" + "bbbb")
    assert one.state(0) == "closed"
    answers(one, "b")
    assert one.state(0) == "open"


def test_few_answers_open_nothing() -> None:
    one = breaker(min_requests=4)
    answers(one, "bbb")
    assert one.state(0) == "closed"


def test_an_answer_two_minutes_old_is_forgotten_and_one_a_tick_younger_is_not() -> None:
    young, old = breaker(min_requests=2), breaker(min_requests=2)
    for one, age in ((young, 120 - 1 / TICKS_PER_S), (old, 120.0)):
        answers(one, "b", at=1.0)
        answers(one, "b", at=1.0 + age)
    assert (young.state(121), old.state(121)) == ("open", "closed")


def test_unclear_answers_count_for_nothing() -> None:
    one = breaker(min_requests=1, failure_ratio="100%")
    answers(one, "uuuu")
    assert one.window(0) == (0, 0)


def test_lets_one_probe_through_after_open_for_and_closes_when_it_is_good() -> None:
    one = breaker()
    answers(one, "bbbb")
    assert (one.admit(29.9), one.wait_s(10.0)) == (None, 20.0)
    probe = one.admit(30.0)
    assert probe is not None and one.admit(30.0) is None and one.state(30.0) == "half_open"
    one.report(probe, "good", 31.0)
    assert one.state(31.0) == "closed"
    assert one.window(31.0) == (0, 0), "what led to the opening is not held against it again"


def test_a_bad_probe_opens_it_for_as_long_again() -> None:
    one = breaker()
    answers(one, "bbbb")
    probe = one.admit(30.0)
    assert probe is not None
    one.report(probe, "bad", 40.0)
    assert (one.admit(69.9), one.state(69.9)) == (None, "open")
    assert one.admit(70.0) is not None


def test_a_probe_that_never_reports_holds_nobody_up_for_longer_than_its_lease() -> None:
    one = breaker()
    answers(one, "bbbb")
    lost = one.admit(30.0)
    assert one.admit(59.9) is None
    second = one.admit(60.0)
    assert second is not None
    assert lost is not None
    one.report(lost, "good", 61.0)
    assert one.state(61.0) == "closed", "late news of a model that answers are news all the same"


def test_an_unclear_probe_lets_the_next_request_try() -> None:
    one = breaker()
    answers(one, "bbbb")
    probe = one.admit(30.0)
    assert probe is not None
    one.report(probe, "unclear", 31.0)
    assert one.state(31.0) == "half_open" and one.admit(31.0) is not None


def test_answers_from_before_the_opening_say_nothing_about_now() -> None:
    one = breaker()
    late = one.admit(0.0)
    answers(one, "bbbb")
    assert late is not None
    one.report(late, "good", 1.0)
    assert one.state(1.0) == "open"


def test_a_forced_call_is_made_while_open_and_closes_it_when_good() -> None:
    one = breaker()
    answers(one, "bbbb")
    bad, good = one.admit(1.0, forced=True), one.admit(1.0, forced=True)
    assert bad is not None and good is not None
    one.report(bad, "bad", 2.0)
    assert one.wait_s(2.0) == 28.0, "it was open before, and stays so for no longer"
    one.report(good, "good", 3.0)
    assert one.state(3.0) == "closed"


@pytest.mark.parametrize(
    ("failed", "own_key", "verdict"),
    [
        (None, True, "good"),
        (Failed(outcome="timeout", detail=""), True, "bad"),
        (Failed(outcome="error", detail="", status=500), True, "bad"),
        (Failed(outcome="error", detail="cannot connect"), True, "bad"),
        (Failed(outcome="error", detail="an answer that is not JSON", status=200), True, "bad"),
        (Failed(outcome="error", detail="", status=401), True, "bad"),
        (Failed(outcome="error", detail="", status=401), False, "unclear"),
        (Failed(outcome="error", detail="", status=404), False, "unclear"),
        (Failed(outcome="error", detail="", status=422), True, "unclear"),
        (Failed(outcome="client_error", detail="", status=400), True, "unclear"),
        (Failed(outcome="rate_limited", detail="", status=429), True, "unclear"),
    ],
)
def test_only_what_speaks_of_the_model_counts(failed: Failed | None, own_key: bool, verdict: str) -> None:
    assert verdict_of(failed, own_key=own_key, whole_time=True) == verdict


def test_a_timeout_of_the_rest_of_a_deadline_is_not_held_against_the_model() -> None:
    assert verdict_of(Failed(outcome="timeout", detail=""), own_key=True, whole_time=False) == "unclear"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def guarded(upstream: Upstream, *names: str, **route: Any) -> Any:
    brake = {"min_requests": 2, "window": "2m", "open_for": "30s"}
    models = [{"name": n, "provider": "p", **({"breaker": brake} if n in names else {})} for n in ("old", "new", "spare")]
    base = {"name": "chat", "match": {"model": ["chat"]}, "flag": "chat-model", "default": "old", "fallbacks": ["old", "spare"]}
    providers = [{"name": "p", "base_url": upstream.url, "api_key_env": "KEY"}]
    return config(upstream.url, models=models, routes=[{**base, **route}], providers=providers)


def state(router: Router, model: str) -> str:
    (one,) = [s for s in ("closed", "open", "half_open") if router.metric("penstock_breaker_state", model=model, state=s)]
    return one


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_model_is_left_alone_until_a_probe_finds_it_well(upstream: Upstream, stream: bool) -> None:
    clock = Clock()
    async with serve_router(guarded(upstream, "new"), clock=clock) as router:
        put(router, flag(100_000))
        upstream.script["new"] = status(500)
        for _ in range(4):
            assert (await router.ask(stream=stream)).headers["x-penstock-model"] == "old"
        assert upstream.models() == ["new", "old", "new", "old", "old", "old"]
        assert state(router, "new") == "open"
        assert router.metric("penstock_breaker_opened_total", model="new") == 1
        assert router.metric("penstock_breaker_skipped_total", model="new") == 2
        candidate = {"arm": "candidate", "model": "new"}
        assert router.arm("penstock_requests_total", candidate, streaming=stream, outcome="error") == 4, "nobody is left out"
        assert router.metric("mcp_model_errors_total", model="new", error_type="error") == 2, "only calls that were made"
        clock.now += 30
        assert state(router, "new") == "half_open"
        upstream.script.clear()
        assert (await router.ask(stream=stream)).headers["x-penstock-model"] == "new"
        assert state(router, "new") == "closed"


async def test_mirrored_copies_neither_open_a_breaker_nor_obey_it(upstream: Upstream) -> None:
    async with serve_router(guarded(upstream, "new")) as router:
        put(router, flag(0, shadow_weight=100_000))
        upstream.script["new"] = status(500)
        for _ in range(3):
            await router.ask()
        await router.app.engine.close()  # type: ignore[union-attr]
        assert (state(router, "new"), upstream.models().count("new")) == ("closed", 3)


async def test_when_all_are_open_the_answer_says_when_to_come_back(upstream: Upstream) -> None:
    clock = Clock()
    async with serve_router(guarded(upstream, "old", "spare"), clock=clock) as router:
        upstream.script = {"old": status(500), "spare": status(500)}
        for _ in range(2):
            assert (await router.ask()).status == 502
        clock.now += 12
        before = len(upstream.calls)
        got = await router.ask()
        assert (got.status, got.headers["retry-after"], got.json["error"]["code"]) == (503, "18", "breaker_open")
        assert len(upstream.calls) == before
        assert router.arm("penstock_unavailable_total") == 3


@pytest.mark.parametrize(("last", "served"), [("new", "new"), ("spare", "spare")])
async def test_the_last_resort_is_asked_when_all_others_are_open(upstream: Upstream, last: str, served: str) -> None:
    clock = Clock()
    async with serve_router(guarded(upstream, "old", "new", "spare", last_resort=last), clock=clock) as router:
        upstream.script = dict.fromkeys(("old", "new", "spare"), status(500))
        for _ in range(2):
            await router.ask()
        assert [m for m in upstream.models() if m == last] == [last, last], "never twice for one request"
        upstream.script.clear()
        got = await router.ask()
        assert (got.status, got.headers["x-penstock-model"]) == (200, served)
        assert state(router, last) == "closed", "what it answered counts"
        assert router.arm("penstock_fallbacks_total", to_model=last, outcome="ok", reason="failure") == 1


async def test_a_client_with_a_bad_key_of_its_own_opens_nothing_for_others(upstream: Upstream) -> None:
    spec = guarded(upstream, "old").model_dump(mode="json", by_alias=True)
    del spec["providers"][0]["api_key_env"]
    async with serve_router(type(config(upstream.url)).model_validate(spec)) as router:
        upstream.script["old"] = status(401)
        for _ in range(3):
            await router.ask()
        assert state(router, "old") == "closed"
