"""
What a broken, hostile or half-dead Prometheus can do to what is counted: delay it, and nothing else.

A question whose answer cannot be trusted consumes nothing, and the others go on; what it missed comes in one piece as soon as it
can be read.
"""

import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controller.adapters.prometheus import PrometheusSource
from controller.core.traffic import Kind, Question, Traffic, TrafficRead, columns_of
from controller.ports import Scope
from tests.adapters.http_faults import Asked, FaultServer, Reply, always, fault_server, http

pytestmark = pytest.mark.timeout(30)

SINCE = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
STEP = timedelta(seconds=15)
REQUESTS = Question(key="requests", kind=Kind.RATE, indicator="requests")
ERRORS = Question(key="errors", kind=Kind.RATE, indicator="error_ratio")
LATENCY = Question(key="latency", kind=Kind.HISTOGRAM, indicator="latency")
COST = Question(key="cost", kind=Kind.MEAN, indicator="cost_per_request")
QUESTIONS = (REQUESTS, ERRORS, LATENCY, COST)

TAG = re.compile(r'"penstock", "((?:candidate|baseline):(\w+):\d+)"')
SUBQUERY = re.compile(r"\)\[(\d+)(m?s):(\d+)(m?s)\]$")
EDGES = ("0.5", "1.0", "+Inf")

Change = Callable[[Asked], bytes]


def scope(after_s: float, **changed: Any) -> Scope:
    plain = Scope(
        environment="production",
        flag="chat-model",
        arm="candidate",
        recent=timedelta(minutes=15),
        since=SINCE,
        opened_at=SINCE,
        at=SINCE + timedelta(seconds=after_s),
        step=STEP,
        history=timedelta(0),
        models={"baseline": "gpt-4.1", "candidate": "gpt-5"},
    )
    return replace(plain, **changed)


def times(asked: Asked) -> list[float]:
    """The beats that a query asks for, as Prometheus reads it."""
    found = SUBQUERY.search(asked["query"])
    assert found is not None, asked["query"]
    span, step = (int(n) / (1000 if unit == "ms" else 1) for n, unit in (found.group(1, 2), found.group(3, 4)))
    end = float(asked["time"])
    first = (end - span) // step * step
    return [first + k * step for k in range(round((end - first) / step) + 1) if first + k * step >= end - span]


def value(part: str, t: float) -> float:
    """A request a second, one in ten of them bad."""
    seconds = t - SINCE.timestamp() + 1000
    return {"bad": seconds // 10, "amount": seconds / 4}.get(part, seconds)


def good(asked: Asked) -> bytes:
    query = asked["query"]
    tags = TAG.findall(query)
    if SUBQUERY.search(query):
        series = [
            ({"penstock": tag, **le}, [(t, value(part, t)) for t in times(asked)]) for tag, part in tags for le in les(part)
        ]
        return matrix(*series)
    at = float(asked["time"])
    if "resets(" in query:
        return vector_of(asked, *(({"penstock": tag, **le}, 0.0) for tag, part in tags for le in les(part)))
    if tags:
        return vector_of(asked, *(({"penstock": tag, **le}, value(part, at)) for tag, part in tags for le in les(part)))
    return vector_of(asked, ({}, 4.0))


def les(part: str) -> list[dict[str, str]]:
    return [{"le": le} for le in EDGES] if part == "buckets" else [{}]


def matrix(*series: tuple[dict[str, str], list[tuple[float, Any]]], **more: Any) -> bytes:
    result = [{"metric": m, "values": [[t, v if isinstance(v, str) else repr(v)] for t, v in points]} for m, points in series]
    return http("200 OK", json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}, **more}))


def vector_of(asked: Asked, *series: tuple[dict[str, str], float]) -> bytes:
    result = [{"metric": m, "value": [float(asked["time"]), repr(v)]} for m, v in series]
    return http("200 OK", json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}))


def healthy(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    write(good(asked))


def only(word: str, change: Change, *, when: Callable[[Asked], bool] = lambda a: True) -> Reply:
    """Healthy, but for the queries about beats that contain a word."""

    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        hit = word in asked["query"] and SUBQUERY.search(asked["query"]) and when(asked)
        write(change(asked) if hit else good(asked))

    return reply


def read(server: FaultServer, after_s: float = 61, ledger: Mapping[str, Any] | None = None, **changed: Any) -> TrafficRead:
    return PrometheusSource(server.url, timeout_s=5.0).traffic(QUESTIONS, scope(after_s, **changed), ledger or {})


def traffic(seen: TrafficRead) -> Traffic:
    assert seen.traffic is not None, seen.failure
    return seen.traffic


def column(seen: TrafficRead, name: str) -> list[float]:
    at = columns_of(QUESTIONS, traffic(seen).edges).index(name)
    return [b.candidate[at] for b in traffic(seen).beats]


# --- as it should be ------------------------------------------------------------------------------------------------------------


def test_a_healthy_server_is_asked_once_for_each_question_at_a_look() -> None:
    with fault_server(healthy) as server:
        first = read(server)
        before = len(server.asked)
        second = read(server, 91, first.ledger)
    assert column(first, "requests:total") == [15, 15, 15, 15]
    assert column(second, "requests:total") == [15, 15]
    assert column(second, "errors:bad") == [1, 2]
    assert column(second, "cost:amount") == [3.75, 3.75]
    assert traffic(second).edges == {"latency": (0.5, 1.0)}
    # A base and the beats of each at the first look, the beats at the second.
    assert (before, len(server.asked) - before) == (8, 4)
    assert {a["time"] for a in server.asked[before:]} == {f"{(SINCE + timedelta(seconds=90)).timestamp():.3f}"}


def test_the_query_unites_all_counters_of_both_arms_and_asks_for_their_values_at_the_beats() -> None:
    with fault_server(healthy) as server:
        first = read(server)
        second = PrometheusSource(server.url).traffic((COST,), scope(91), {**first.ledger})
    base = 'environment="production",flag="chat-model",arm='
    assert second.evidence["cost"][0].query == (
        f'(label_replace(penstock_cost_usd_total{{{base}"candidate"}}, "penstock", "candidate:amount:0", "", "")'
        f' or label_replace(penstock_cost_requests_total{{{base}"candidate"}}, "penstock", "candidate:count:1", "", "")'
        f' or label_replace(penstock_cost_usd_total{{{base}"baseline"}}, "penstock", "baseline:amount:2", "", "")'
        f' or label_replace(penstock_cost_requests_total{{{base}"baseline"}}, "penstock", "baseline:count:3", "", ""))[22500ms:15s]'
    )


# --- no answer at all -----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_a_failure_and_the_ledger_stays() -> None:
    with fault_server(healthy) as server:
        first = read(server)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    seen = PrometheusSource(f"http://127.0.0.1:{port}").traffic(QUESTIONS, scope(91), first.ledger)
    assert seen.traffic is None
    assert "cannot be reached" in seen.failure and str(port) in seen.failure
    assert "penstock_requests_total{" in seen.failure
    assert seen.ledger == first.ledger
    assert {key: len(asked) for key, asked in seen.evidence.items()} == {q.key: 1 for q in QUESTIONS}


def test_after_an_outage_everything_is_counted_in_the_beats_where_it_happened() -> None:
    with fault_server(healthy) as server:
        first = read(server)
        hung = PrometheusSource(server.url, timeout_s=5.0)
        with fault_server(always(http("503 Service Unavailable", "starting"))) as broken:
            failed = read(broken, 91, first.ledger)
        again = hung.traffic(QUESTIONS, scope(121), failed.ledger)
    assert failed.traffic is None and "HTTP status 503" in failed.failure
    assert column(again, "requests:total") == [15, 15, 15, 15]


def hang(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    over.wait(60)


def drip(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while not over.wait(0.02):
        write(b" ")


@pytest.mark.parametrize("slow", [hang, drip])
def test_a_server_without_end_is_given_up_at_the_deadline(slow: Reply) -> None:
    with fault_server(slow) as server:
        seen = PrometheusSource(server.url, timeout_s=0.3).traffic(QUESTIONS, scope(61), {})
    assert seen.traffic is None
    assert "no complete answer within 0.3 s" in seen.failure
    # The values that counting begins with did not come, so nothing else was asked.
    assert all(SUBQUERY.search(a["query"]) is None for a in server.asked)


def test_a_server_that_begins_to_hang_in_the_middle_of_a_reading_costs_no_more_than_two_deadlines() -> None:
    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        hang(asked, write, over) if SUBQUERY.search(asked["query"]) else write(good(asked))

    with fault_server(reply) as server:
        seen = PrometheusSource(server.url, timeout_s=0.4).traffic(QUESTIONS, scope(61), {})
    assert seen.traffic is None
    assert "no complete answer within 0.4 s" in seen.failure
    # Each was asked for its base and its beats, and then nothing more.
    assert len(server.asked) == 8


PARSE_ERROR = json.dumps({"status": "error", "errorType": "bad_data", "error": "parse error"})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http("422 Unprocessable Entity", json.dumps({"status": "error", "errorType": "execution", "error": "too many samples"})),
         "HTTP status 422: 'execution': 'too many samples'"),
        (http("429 Too Many Requests", "slow down", "Retry-After: 86400"), "HTTP status 429, Retry-After '86400'"),
        (http("503 Service Unavailable", "starting up"), "HTTP status 503: 'starting up'"),
        (http("200 OK", PARSE_ERROR), "status 'error': 'bad_data': 'parse error'"),
        (http("200 OK", "<html>Log in</html>", kind="text/html"), "not JSON: '<html>Log in</html>'"),
        (http("302 Found", "", "Location: http://elsewhere/"), "a redirect to 'http://elsewhere/', which is not followed"),
        (http("200 OK", '{"status": "success", "data": {"resultType": "vector", "result": []}}'), "resultType 'vector' where a matrix"),
        (http("200 OK", '{"status": "succ', length=400), "broke off"),
        (b"", "cannot be reached"),
    ],
)  # fmt: skip
def test_one_question_that_is_refused_names_why_and_the_others_go_on(answer: bytes, reason: str) -> None:
    with fault_server(only("_bucket", lambda a: answer)) as server:
        seen = read(server)
    assert reason in traffic(seen).problems["latency"]
    assert "penstock_request_duration_seconds_bucket{" in traffic(seen).problems["latency"]
    assert set(traffic(seen).problems) == {"latency"}
    assert column(seen, "requests:total") == [15, 15, 15, 15]
    assert traffic(seen).edges == {}
    assert any(e.note for e in seen.evidence["latency"])


def test_a_question_that_failed_is_counted_in_one_piece_and_stays_in_step() -> None:
    at_fault = {f"{(SINCE + timedelta(seconds=s)).timestamp():.3f}" for s in (90, 120)}
    flaky = only("_cost_", lambda a: http("500 Internal Server Error", "oops"), when=lambda a: a["time"] in at_fault)
    ledger: Mapping[str, Any] = {}
    rows = []
    with fault_server(flaky) as server:
        for after_s in (61, 91, 121, 151):
            seen = read(server, after_s, ledger)
            ledger = json.loads(json.dumps(dict(seen.ledger)))
            rows.append((column(seen, "requests:total"), column(seen, "cost:count"), "cost" in traffic(seen).problems))
    assert rows == [
        ([15, 15, 15, 15], [15, 15, 15, 15], False),
        ([15, 15], [0, 0], True),
        ([15, 15], [0, 0], True),
        ([15, 15], [75, 15], False),
    ]


def test_a_question_without_its_base_counts_from_it_once_it_is_there() -> None:
    fails = threading.Event()

    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        failing = not fails.is_set() and "last_over_time" in asked["query"] and "_cost_" in asked["query"]
        write(http("503 Service Unavailable", "busy") if failing else good(asked))

    with fault_server(reply) as server:
        first = read(server)
        fails.set()
        second = read(server, 91, first.ledger)
        third = read(server, 121, second.ledger)
    assert "HTTP status 503" in traffic(first).problems["cost"]
    assert column(first, "cost:count") == [0, 0, 0, 0]
    # Everything since the phase began, and nothing from before it.
    assert column(second, "cost:count") == [75, 15]
    assert column(third, "cost:count") == [15, 15]
    assert len(third.evidence["cost"]) == 1


# --- answers that cannot be
# ------------------------------------------------------------------------------------------------------


def changed(
    tag: str, values: Callable[[float], Any] = lambda t: 1.0, labels: dict[str, str] | None = None, **more: Any
) -> Change:
    """Healthy, but for one series."""

    def change(asked: Asked) -> bytes:
        body = json.loads(good(asked).split(b"\r\n\r\n", 1)[1])
        for series in body["data"]["result"]:
            if series["metric"]["penstock"].startswith(tag):
                series["values"] = [[t, v if isinstance(v := values(t), str) else repr(v)] for t, _ in series["values"]]
                series["metric"] |= labels or {}
        return http("200 OK", json.dumps({**body, **more}))

    return change


def late(t: float) -> bool:
    return t > SINCE.timestamp() + 40


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed("candidate:amount", lambda t: "NaN" if late(t) else value("amount", t)), "the value nan of {}"),
        (changed("candidate:amount", lambda t: "+Inf" if late(t) else value("amount", t)), "the value inf of {}"),
        (changed("candidate:amount", lambda t: "-1" if late(t) else value("amount", t)), "the value -1 of {}"),
    ],
)
def test_what_came_before_a_value_that_is_none_is_counted(change: Change, reason: str) -> None:
    with fault_server(only("_cost_", change)) as server:
        seen = read(server)
    assert reason in traffic(seen).problems["cost"]
    assert column(seen, "cost:count") == [15, 15, 0, 0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed("candidate:amount", lambda t: "one"), "samples that are none"),
        (changed("candidate:amount", labels={"penstock": "shadow:amount:9"}), "a series that was not asked for"),
        (changed("baseline:amount", labels={"penstock": "candidate:amount:0"}), "the series {} is there twice"),
        (changed("none", warnings=["one store did not answer"]), "carries warnings, so it may be partial"),
        (changed("none", infos=["partial response"]), "infos that say it is partial"),
        (changed("none", isPartial=True), "isPartial"),
        (lambda a: matrix(({"penstock": "candidate:amount:0"}, [(float(a["time"]) - 7, 1.0)])), "which was not asked for"),
        (lambda a: matrix(({"penstock": "candidate:amount:0"}, [(float(a["time"]) + 15, 1.0)])), "of a time after the one"),
        (lambda a: matrix(({"penstock": "candidate:amount:0"}, [(float(a["time"]), 1.0)] * 2)), "a sample that is there twice"),
        (lambda a: http("200 OK", '{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "histograms": []}]}}'),
         "native histograms where counters were expected"),
        (lambda a: http("200 OK", '{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}}]}}'), "no series"),
        (lambda a: http("200 OK", '{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": [[1, 2]]}]}}'),
         "no text"),
        (lambda a: http("200 OK", '{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": [7]}]}}'),
         "samples that are none"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_trusted_counts_nothing_of_its_question(change: Change, reason: str) -> None:
    with fault_server(healthy) as server:
        first = read(server)
    with fault_server(only("_cost_", change)) as server:
        seen = read(server, 91, first.ledger)
    assert reason in traffic(seen).problems["cost"]
    assert column(seen, "cost:count") == [0, 0]
    assert column(seen, "requests:total") == [15, 15]
    assert seen.ledger["questions"]["cost"] == first.ledger["questions"]["cost"]
    with fault_server(healthy) as server:
        after = read(server, 121, json.loads(json.dumps(dict(seen.ledger))))
    assert sum(column(after, "cost:count")) == 60


@pytest.mark.parametrize(
    ("labels", "reason"),
    [({"le": "0.5"}, "twice"), ({"le": "wide"}, "is no number"), ({"le": ""}, "is no number")],
)
def test_buckets_that_are_no_histogram_are_a_problem_that_names_them(labels: dict[str, str], reason: str) -> None:
    with fault_server(only("_bucket", changed("candidate:buckets", lambda t: 1.0, labels))) as server:
        seen = read(server)
    assert reason in traffic(seen).problems["latency"]
    assert "penstock_request_duration_seconds_bucket{" in traffic(seen).problems["latency"]


def test_more_bad_than_all_is_a_contradiction_and_not_a_share_above_one() -> None:
    with fault_server(only("outcome=~", changed("candidate:bad", lambda t: 5 * value("total", t)))) as server:
        seen = read(server)
    assert "the counters contradict each other" in traffic(seen).problems["errors"]
    assert column(seen, "errors:total") == [0, 0, 0, 0]


# --- falls ----------------------------------------------------------------------------------------------------------------------


def fallen(restarted: float, asked_about: Callable[[Asked], bytes] | None = None) -> Reply:
    """The candidate's requests fall by 40 in the third beat; `resets` says how often they restarted."""

    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        if "resets(" in asked["query"]:
            tags = TAG.findall(asked["query"])
            write(asked_about(asked) if asked_about else vector_of(asked, *(({"penstock": tag}, restarted) for tag, _ in tags)))
        elif SUBQUERY.search(asked["query"]) and "penstock_requests_total" in asked["query"] and "outcome" not in asked["query"]:
            third = SINCE.timestamp() + 45
            write(changed("candidate:total", lambda t: value("total", t) - 40 * (t == third))(asked))
        else:
            write(good(asked))

    return reply


def test_a_counter_that_falls_without_a_restart_was_read_from_a_replica_that_is_behind() -> None:
    with fault_server(fallen(0.0)) as server:
        seen = read(server)
    assert column(seen, "requests:total") == [15, 15, 0, 30]
    assert traffic(seen).problems == {}


def test_a_counter_that_falls_and_restarted_counts_from_nought() -> None:
    with fault_server(fallen(1.0)) as server:
        seen = read(server)
    # 1045 - 40 requests since the restart, and 55 more until the last beat.
    assert column(seen, "requests:total") == [15, 15, 1005, 55]


def test_a_fall_that_cannot_be_explained_counts_nothing() -> None:
    with fault_server(fallen(0.0, lambda a: http("500 Internal Server Error", "oops"))) as server:
        seen = read(server)
    assert "HTTP status 500" in traffic(seen).problems["requests"]
    assert column(seen, "requests:total") == [0, 0, 0, 0]
    assert column(seen, "cost:count") == [15, 15, 15, 15]


# --- the past -------------------------------------------------------------------------------------------------------------------


def past(change: Change) -> Reply:
    """Healthy, but for what is asked about the past."""

    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        if "increase(" in asked["query"]:
            write(change(asked))
        else:
            write(good(asked))

    return reply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: http("422 Unprocessable Entity", "too many samples"), "the baseline's history could not be read"),
        (
            lambda a: matrix(({"penstock": "baseline:total:0"}, [(float(a["time"]), "NaN")])),
            "the value nan at 2026-05-04T11:00:00",
        ),
        (lambda a: matrix(({"penstock": "baseline:total:0"}, [(float(a["time"]) - 1, 1.0)])), "which was not asked for"),
        (lambda a: matrix(({"penstock": "candidate:total:0"}, [(float(a["time"]), 1.0)])), "a series that was not asked for"),
    ],
)
def test_a_past_that_cannot_be_read_is_a_failure_of_the_reading(change: Change, reason: str) -> None:
    with fault_server(past(change)) as server:
        seen = PrometheusSource(server.url).traffic((REQUESTS,), scope(61, history=timedelta(hours=2)), {})
    assert seen.traffic is None
    assert reason in seen.failure
    assert seen.ledger == {}


def test_no_past_at_all_is_a_history_of_nothing() -> None:
    with fault_server(past(lambda a: matrix())) as server:
        seen = PrometheusSource(server.url).traffic((REQUESTS,), scope(61, history=timedelta(hours=2)), {})
    assert traffic(seen).history == ()
    # One query an hour, for the model that is the baseline now.
    asked = [a["query"] for a in server.asked if "increase(" in a["query"]]
    assert len(asked) == 2
    assert all('arm="baseline",model="gpt-4.1"}[60s]))' in query and query.endswith("[3570s:60s]") for query in asked)


def test_a_past_in_which_buckets_dip_and_failures_exceed_requests_is_levelled() -> None:
    def change(asked: Asked) -> bytes:
        t = float(asked["time"])
        if "_bucket" in asked["query"]:
            counts = {"0.5": 3.0, "1.0": 2.5, "+Inf": 4.0}
            return matrix(*(({"penstock": "baseline:buckets:0", "le": le}, [(t, n)]) for le, n in counts.items()))
        return matrix(({"penstock": "baseline:bad:0"}, [(t, 1.34)]), ({"penstock": "baseline:total:1"}, [(t, 1.33)]))

    with fault_server(past(change)) as server:
        seen = PrometheusSource(server.url).traffic((ERRORS, LATENCY), scope(61, history=timedelta(hours=1)), {})
    assert traffic(seen).history == ((1.33, 1.33, 3.0, 3.0, 4.0),)


# --- ledgers and names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ledger",
    [
        {"v": 0},
        {"at": 1},
        {"v": 1},
        {"v": 1, "at": "now", "since": 0, "base": 0, "questions": {}, "problems": {}, "absent": {}},
        {"v": 1, "at": 0, "since": 0, "base": 0, "questions": {"requests": {"last": {}}}, "problems": {}, "absent": {}},
        {"v": 1, "at": 0, "since": 0, "base": 0, "questions": [], "problems": {}, "absent": {}},
    ],
)
def test_an_old_or_odd_ledger_is_a_clear_failure_and_asks_nothing(ledger: Mapping[str, Any]) -> None:
    with fault_server(healthy) as server:
        seen = read(server, 91, ledger)
    assert seen.traffic is None
    assert "what was counted so far cannot be read" in seen.failure
    assert server.asked == []
    assert seen.ledger == ledger


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flag": 'x"} or vector(1) #'}, "flag: "),
        ({"environment": "prod\n"}, "environment: "),
        ({"arm": "candidate|.*"}, "arm: "),
        ({"profile": "langfuse"}, "no profile 'langfuse'"),
        ({"profile": "litellm", "models": {}}, "is no name of a model"),
        ({"profile": "litellm", "models": {"baseline": "a", "candidate": "a"}}, "have the same labels"),
        ({"profile": "custom"}, "metrics.requests"),
        ({"arms": {"candidate": {"x": "1"}, "baseline": {"x": "1"}}}, "have the same labels"),
        ({"arms": {"candidate": {'x"': "1"}, "baseline": {"x": "2"}}}, "metrics.arms: "),
        ({"arms": {"candidate": {"x": "a\nb"}, "baseline": {"x": "2"}}}, "metrics.arms: "),
    ],
)
def test_a_name_that_is_none_is_never_asked_with(change: dict[str, Any], reason: str) -> None:
    with fault_server(healthy) as server:
        seen = PrometheusSource(server.url).traffic((REQUESTS,), scope(61, **change), {})
    assert seen.traffic is None
    assert reason in seen.failure
    assert server.asked == []


def test_labels_of_ones_own_are_escaped() -> None:
    arms = {"candidate": {"model": 'a"} or vector(1) #'}, "baseline": {"model": "b\\"}}
    with fault_server(healthy) as server:
        seen = PrometheusSource(server.url).traffic((REQUESTS,), scope(61, arms=arms), {})
    assert r'{model="a\"} or vector(1) #"}' in seen.evidence["requests"][0].query
    assert r'{model="b\\"}' in seen.evidence["requests"][0].query


@pytest.mark.parametrize("label", ["arm", "environment", "le", "outcome", "penstock", "__name__", 'a="b",c', ""])
def test_a_filter_cannot_name_what_the_query_sets_itself_or_what_is_no_label(label: str) -> None:
    with fault_server(healthy) as server:
        questions = (REQUESTS, replace(ERRORS, where={label: "x"}))
        seen = PrometheusSource(server.url).traffic(questions, scope(61), {})
    assert traffic(seen).problems["errors"].startswith("where: ")
    assert sum(b.candidate[1] for b in traffic(seen).beats) == 60


@pytest.mark.parametrize(
    "text",
    [
        "a_total{$arm}) or vector(1) or (b{$arm}",
        "a_total{$arm} or vector(0)",
        "a_total{$arm} # {",
        "sum(a_total{$arm})",
        "rate(a_total{$arm}[5m])",
        "a_total{$arm}[5m]",
        "a_total{$arm} offset 1h",
        "a_total{$arm} @ 0",
        "a_total{$arm} * -1",
        "a_total{$arm} * 0",
        "a_total{$arm} - b_total{$arm}",
        'a_total{$arm,x="1\n"}',
        "a_total{$arm,x='1}",
        "a_total{$arm,$arm}",
        "a_total",
        "{$arm}",
        '{$arm,__name__=~".+"}',
        "",
    ],
)
def test_a_selector_of_ones_own_that_is_none_is_never_asked_with(text: str) -> None:
    question = Question(key="own", kind=Kind.RATE, indicator="custom", promql={"bad": text, "total": "t_total{$arm}"})
    with fault_server(healthy) as server:
        seen = PrometheusSource(server.url).traffic((REQUESTS, question), scope(61), {})
    assert traffic(seen).problems["own"].startswith("promql.bad: ")
    assert {a["query"] for a in server.asked} == {a["query"] for a in server.asked if "penstock_requests_total" in a["query"]}


def test_an_indicator_that_an_exporter_does_not_have_is_refused_by_name_with_what_to_write_instead() -> None:
    questions = (REQUESTS, Question(key="fallbacks", kind=Kind.RATE, indicator="fallback_success"))
    with fault_server(healthy) as server:
        seen = PrometheusSource(server.url).traffic(questions, scope(61, profile="otel-genai"), {})
    problem = traffic(seen).problems["fallbacks"]
    assert problem.startswith("the metric profile 'otel-genai' has no fallback_success: ")
    assert 'good: my_fallbacks_total{$arm,outcome="ok"}' in problem
