"""
The questions of many rollouts asked together bring each of them what it would have read by itself.

The stories are those of `test_prometheus_traffic`, all in one real Prometheus; a proxy in front of it counts what is asked and spoils answers.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import pytest

from controller.adapters.prometheus import PrometheusSource, joint
from controller.core.measurement import Evidence, QueryFailed, Sampled
from controller.core.plan import AtMost, Gate, Silence
from controller.core.traffic import Kind, Question, TrafficRead
from controller.ports import Planned, Scope
from services.prometheus import PrometheusServer
from tests.adapters.backfill import Samples, filled
from tests.adapters.http_faults import Asked, FaultServer, fault_server, http
from tests.adapters.test_prometheus_traffic import COST, ERRORS, LATENCY, REQUESTS, STEADY, Writer, scope, scraped, stored, write

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

STORIES = (
    "exact",
    "restart",
    "gaps",
    "long-gap",
    "scaled",
    "edges",
    "wrong-nan",
    "wrong-inf",
    "wrong-negative",
    "lone",
    "day",
    "fresh",
)
OK_ONLY = Question(key="errors{outcome=ok}", kind=Kind.RATE, indicator="requests", where={"outcome": "ok"})
QUESTIONS = (REQUESTS, ERRORS, COST, LATENCY, OK_ONLY)
GATES: tuple[Gate, ...] = (Silence(), AtMost(name="no-sev1", indicator="firing_alerts", times=0, where={"severity": "sev1"}))
MANY = tuple(f"many-{i}.{i % 3}" for i in range(40))
BESIDE = timedelta(seconds=15)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    samples = Samples()
    write(samples)
    for n, flag in enumerate(MANY):
        for arm in ("baseline", "candidate"):
            Writer(samples, flag).requests(arm, scraped([float(n + k % 3) for k in range(22)], -1))
            Writer(samples, flag).cost(arm, scraped(STEADY, -1), scraped(STEADY, -1))
    with filled(tmp_path_factory.mktemp("together"), samples) as running:
        yield running


Spoil = Callable[[Asked, bytes], bytes]
"""What becomes of an answer of Prometheus; bytes of a whole HTTP answer."""


@contextmanager
def proxy(server: PrometheusServer, spoil: Spoil = lambda asked, body: http("200 OK", body)) -> Iterator[FaultServer]:
    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        from urllib.parse import urlencode

        query = urlencode({k: v for k, v in asked.items() if k in ("query", "time", "timeout")})
        with urlopen(f"{server.url}{asked['path']}?{query}") as answer:
            write(spoil(asked, answer.read()))

    with fault_server(reply) as running:
        yield running


def planned(flags: Sequence[str], after: timedelta, ledgers: Mapping[str, Mapping[str, object]]) -> list[Planned]:
    return [Planned(gates=GATES, questions=QUESTIONS, scope=scope(f, after), ledger=ledgers[f]) for f in flags]


def begun(
    source: PrometheusSource, flags: Sequence[str], after: timedelta, late: Sequence[int] = (0, 1, 3)
) -> dict[str, Mapping[str, object]]:
    """Ledgers of first looks; some lie a few beats further back."""
    looks = {f: scope(f, after - BESIDE * late[n % len(late)]) for n, f in enumerate(flags)}
    return {f: stored(source.traffic(QUESTIONS, look, {}).ledger) for f, look in looks.items()}


def same_evidence(one: Sequence[Evidence], other: Sequence[Evidence]) -> bool:
    """The same queries with the same series in their answers, in whatever order."""

    def plain(evidence: Evidence) -> tuple[Any, ...]:
        data = json.loads(evidence.answer)
        data["data"]["result"].sort(key=lambda e: json.dumps(e["metric"], sort_keys=True))
        return evidence.query, evidence.at, evidence.note, json.dumps(data, sort_keys=True)

    return [plain(e) for e in one] == [plain(e) for e in other]


def agree(one: TrafficRead, other: TrafficRead, flag: str) -> None:
    assert one.failure == other.failure, flag
    # Written out, as a ledger is stored: NaN and the order of keys are no difference.
    assert repr(one.traffic) == repr(other.traffic), flag
    assert json.dumps(dict(one.ledger), sort_keys=True) == json.dumps(dict(other.ledger), sort_keys=True), flag
    assert one.evidence.keys() == other.evidence.keys()
    for key in one.evidence:
        assert same_evidence(one.evidence[key], other.evidence[key]), (flag, key)


@pytest.mark.parametrize("after_s", [46.0, 62.0, 104.0, 135.0, 250.0, 301.0])
def test_each_rollout_reads_together_what_it_reads_alone(server: PrometheusServer, after_s: float) -> None:
    source = PrometheusSource(server.url)
    flags = (*STORIES, *MANY[:5])
    ledgers = begun(source, flags, timedelta(seconds=after_s))
    for later in (BESIDE, 2 * BESIDE, 5 * BESIDE):
        at = timedelta(seconds=after_s) + later
        with proxy(server) as asked:
            together, count = PrometheusSource(asked.url).together(planned(flags, at, ledgers))
            assert count == len(flags)
            prefetched = len(asked.asked)
            read = {flag: together.traffic(QUESTIONS, scope(flag, at), ledgers[flag]) for flag in flags}
            steady = sum(" resets(" not in a["query"] and "[" in a["query"] for a in asked.asked[prefetched:])
        alone = {flag: source.traffic(QUESTIONS, scope(flag, at), ledgers[flag]) for flag in flags}
        for flag in flags:
            agree(alone[flag], read[flag], flag)
        # What was not asked together is what depends on the answers, and the rollouts that must fix where they begin.
        assert prefetched > 0 and steady < len(flags) * len(QUESTIONS) / 2


def test_measurements_are_the_same_together_and_alone(server: PrometheusServer) -> None:
    source, flags, at = PrometheusSource(server.url), (*STORIES, *MANY), timedelta(minutes=3)
    together, _ = source.together(planned(flags, at, {f: {} for f in flags}))
    for flag in flags:
        alone, read = (s.measure(GATES, scope(flag, at)) for s in (source, together))
        for one, other in zip(alone, read, strict=True):
            assert replace(one, evidence=()) == replace(other, evidence=()), flag
            assert same_evidence(one.evidence, other.evidence)


def queries(server: PrometheusServer, flags: Sequence[str]) -> int:
    """Questions of one pass over so many rollouts."""
    at, source = timedelta(minutes=3), PrometheusSource(server.url)
    ledgers = begun(source, flags, at - BESIDE)
    with proxy(server) as asked:
        together, _ = PrometheusSource(asked.url).together(planned(flags, at, ledgers))
        for flag in flags:
            together.measure(GATES, scope(flag, at))
            read = together.traffic((REQUESTS, COST), scope(flag, at), ledgers[flag])
            assert read.traffic is not None and read.traffic.beats
        return len(asked.asked)


def test_the_number_of_queries_does_not_grow_with_the_number_of_rollouts(server: PrometheusServer) -> None:
    assert queries(server, MANY[:8]) == queries(server, MANY)


def test_phases_of_a_few_seconds_apart_ask_the_same_about_silence(server: PrometheusServer) -> None:
    source = PrometheusSource(server.url)
    seen = [
        source.measure((Silence(),), replace(scope("exact", timedelta(minutes=3)), since=scope("exact", BESIDE).since + shift))[0]
        for shift in (timedelta(0), timedelta(seconds=3))
    ]
    assert len({e.query for m in seen for e in m.evidence}) == 2  # each asks for requests and for samples
    assert all(isinstance(m, Sampled) for m in seen)


def test_one_takes_no_more_looks_than_can_be_held(server: PrometheusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source, at = PrometheusSource(server.url), timedelta(minutes=3)
    ledgers = begun(source, MANY, at, (0,))
    wanted = planned(MANY, at + BESIDE, ledgers)
    each = sum(w.volume for w in source._planned(wanted[0])[0])
    monkeypatch.setattr("controller.adapters.prometheus.source.TOGETHER_MAX", 10 * each + 1)
    assert source.together(wanted)[1] == 10
    monkeypatch.setattr("controller.adapters.prometheus.source.TOGETHER_MAX", 1)
    assert source.together(wanted)[1] == 1


# --- answers that are none --------------------------------------------------------------------------------------------------------


def spoiled(
    server: PrometheusServer, spoil: Spoil, flags: Sequence[str] = MANY[:6]
) -> tuple[dict[str, TrafficRead], list[Asked]]:
    """What rollouts read through a proxy that spoils the answers about beats of more than one of them."""
    at = timedelta(minutes=3)
    ledgers = begun(PrometheusSource(server.url), flags, at - BESIDE)
    at_last = {f: replace(scope(f, at)) for f in flags}

    def only_joint(asked: Asked, body: bytes) -> bytes:
        return spoil(asked, body) if is_joint(asked) else http("200 OK", body)

    with proxy(server, only_joint) as running:
        source = PrometheusSource(running.url, timeout_s=2.0)
        together, _ = source.together(planned(flags, at, ledgers))
        return {f: together.traffic(QUESTIONS[:3], at_last[f], ledgers[f]) for f in flags}, list(running.asked)


def is_joint(asked: Asked) -> bool:
    return 'flag=~"' in asked["query"] or 'flag!=""' in asked["query"]


def alone(server: PrometheusServer, flags: Sequence[str] = MANY[:6]) -> dict[str, TrafficRead]:
    at = timedelta(minutes=3)
    source = PrometheusSource(server.url)
    ledgers = begun(source, flags, at - BESIDE)
    return {f: source.traffic(QUESTIONS[:3], scope(f, at), ledgers[f]) for f in flags}


WARNED = b'"warnings":["partial response"],'


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda asked, body: http("503 Service Unavailable", "starting up"), "HTTP status 503"),
        (lambda asked, body: http("429 Too Many Requests", "slow down", "Retry-After: 86400"), "HTTP status 429"),
        (lambda asked, body: http("200 OK", "<html>Log in</html>", kind="text/html"), "not JSON"),
        (lambda asked, body: http("200 OK", b"{" + WARNED + body[1:]), "warnings"),
        (lambda asked, body: http("200 OK", body[: len(body) // 2], length=len(body)), "broke off"),
        (lambda asked, body: http("302 Found", b"", "Location: http://127.0.0.1:1/"), "redirect"),
        (lambda asked, body: b"", "cannot be reached"),
    ],
)
def test_a_joint_query_that_fails_fails_each_rollout_and_nothing_is_asked_again(
    server: PrometheusServer, spoil: Spoil, reason: str
) -> None:
    read, asked = spoiled(server, spoil)
    for flag, one in read.items():
        assert one.traffic is None and reason in one.failure, flag
        # Nothing is consumed: the next look finds all of it.
        assert all(e.note for evidence in one.evidence.values() for e in evidence)
    assert not [a for a in asked if not is_joint(a) and "[" in a["query"]]


def test_a_server_that_hangs_costs_all_of_them_one_deadline(server: PrometheusServer) -> None:
    def hang(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        over.wait(30)

    at = timedelta(minutes=3)
    ledgers = begun(PrometheusSource(server.url), MANY, at - BESIDE)
    with fault_server(hang) as running:
        together, _ = PrometheusSource(running.url, timeout_s=0.2).together(planned(MANY, at, ledgers))
        before = len(running.asked)
        read = [together.traffic((REQUESTS, COST), scope(f, at), ledgers[f]) for f in MANY]
        measured = [together.measure((Silence(),), scope(f, at))[0] for f in MANY]
        assert len(running.asked) == before
    assert all("no complete answer within 0.4 s" in r.failure for r in read)
    assert all(isinstance(m, QueryFailed) for m in measured)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda asked, body: http(
            "422 Unprocessable Entity", '{"status":"error","errorType":"execution","error":"too many samples"}'
        ),
        lambda asked, body: http("414 URI Too Long", "too long"),
        lambda asked, body: http("200 OK", json.dumps(json.loads(body), indent=1)),
        lambda asked, body: http("200 OK", body.replace(b'"flag":', b'"flug":')),
        lambda asked, body: http("200 OK", body.replace(b'},"values":', b'},"histograms":[],"values":')),
    ],
    ids=["too many samples", "address too long", "written otherwise", "labels that are not there", "something between"],
)
def test_where_only_the_joint_query_is_at_fault_each_rollout_asks_for_itself(server: PrometheusServer, spoil: Spoil) -> None:
    read, _ = spoiled(server, spoil)
    for flag, one in alone(server).items():
        agree(one, read[flag], flag)


def test_a_joint_answer_that_is_too_long_is_asked_for_one_by_one(
    server: PrometheusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.adapters.prometheus.client.JOINT_MAX", 1_000)
    read, _ = spoiled(server, lambda asked, body: http("200 OK", body))
    for flag, one in alone(server).items():
        agree(one, read[flag], flag)


@pytest.mark.parametrize(
    ("find", "put", "reason"),
    [
        (rb'("flag":"many-2\.2"[^{}]*},"values":\[[^{}]*)}', rb'\1,"histograms":[]}', "native histograms"),
        (rb'("flag":"many-2\.2"[^{}]*},"values":\[\[[0-9.]+,")[^"]*"', rb'\1NaN"', "nan"),
        (rb'("flag":"many-2\.2"[^{}]*},"values":\[\[[0-9.]+,)"[^"]*"', rb"\g<1>12", "no text"),
    ],
)
def test_one_rollouts_odd_series_is_its_own_affair(server: PrometheusServer, find: bytes, put: bytes, reason: str) -> None:
    read, _ = spoiled(server, lambda asked, body: http("200 OK", re.sub(find, put, body)))
    for flag, one in alone(server).items():
        if flag != "many-2.2":
            agree(one, read[flag], flag)
    odd = read["many-2.2"]
    said = odd.failure if odd.traffic is None else " ".join(odd.traffic.problems.values())
    assert reason in said


def test_two_rollouts_of_one_baseline_model_both_get_its_series(tmp_path_factory: pytest.TempPathFactory) -> None:
    samples = Samples()
    for k in range(-2, 30):
        samples.add("up", {"job": "litellm", "instance": "l1"}, [(scraped([1.0], k)[0][0], 1.0)])
    for n, model in enumerate(("old", "one", 'new "x" \\ y', "two")):
        labels = {"requested_model": model, "job": "litellm", "instance": "l1"}
        samples.add("litellm_proxy_total_requests_metric_total", {**labels, "status_code": "200"}, scraped([n + 1.0] * 22, -1))
    question = Question(key="requests", kind=Kind.RATE, indicator="requests")

    def look(candidate: str, after: timedelta) -> Scope:
        return replace(scope("any", after), profile="litellm", models={"baseline": "old", "candidate": candidate})

    candidates = ("one", 'new "x" \\ y', "two")
    with filled(tmp_path_factory.mktemp("shared"), samples) as running:
        source, at = PrometheusSource(running.url), timedelta(minutes=2)
        ledgers = {c: stored(source.traffic((question,), look(c, at - BESIDE), {}).ledger) for c in candidates}
        wanted = [Planned(gates=(), questions=(question,), scope=look(c, at), ledger=ledgers[c]) for c in candidates]
        with proxy(running) as asked:
            together, _ = PrometheusSource(asked.url).together(wanted)
            read = {c: together.traffic((question,), look(c, at), ledgers[c]) for c in candidates}
            assert len(asked.asked) == 1
        for c in candidates:
            agree(source.traffic((question,), look(c, at), ledgers[c]), read[c], c)
            assert read[c].traffic is not None and read[c].traffic.beats[-1].baseline[1] == 1.0


def test_a_value_that_is_no_plain_word_is_never_part_of_a_pattern() -> None:
    assert joint._matcher("flag", {"a.b", "c"}) == r'flag=~"a\\.b|c"'
    assert joint._matcher("flag", {"a.*", "c"}) == 'flag!=""'
    assert joint._matcher("flag", {'x"} or vector(1) #'}) == r'flag="x\"} or vector(1) #"'
    assert joint._matcher("flag", {f"flag-{i:06d}" for i in range(2_000)}) == 'flag!=""'
