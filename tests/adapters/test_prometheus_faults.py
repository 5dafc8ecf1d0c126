"""
What a broken, hostile or half-dead Prometheus can do to what is measured at a look: make the controller hold, and nothing else.

No test looks at the clock; that the deadline holds is shown by the test ending (each has a limit far above the deadline and far
below what the server would take).
"""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from controller.adapters.prometheus import PrometheusSource
from controller.core.measurement import Counts, Measurement, NoData, QueryFailed, Sampled
from controller.core.plan import AtLeast, AtMost, Gate, RateLimit, Silence
from controller.ports import Scope, Unavailable
from tests.adapters.http_faults import Asked, FaultServer, Reply, always, fault_server, http, vector

pytestmark = pytest.mark.timeout(30)

AT = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
SCOPE = Scope(
    environment="production",
    flag="chat-model",
    arm="candidate",
    recent=timedelta(minutes=15),
    since=AT - timedelta(minutes=10),
    opened_at=AT - timedelta(hours=2),
    at=AT,
)
SEV1 = AtMost(name="no-sev1", indicator="firing_alerts", times=0, where={"severity": "sev1"})
FALLBACK = AtLeast(name="fallback", indicator="fallbacks", times=1, by_phase="canary-5")
OWN = AtMost(name="queue", indicator="custom", times=100, promql={"value": "max(queue_length{$arm})"})
SILENCE = Silence()
EVERY_KIND: tuple[Gate, ...] = (SEV1, FALLBACK, OWN, SILENCE)
ARMS = ("candidate", "baseline")


def ask(server: FaultServer, gate: Gate, scope: Scope = SCOPE, timeout_s: float = 5.0) -> Measurement:
    measured = PrometheusSource(server.url, timeout_s=timeout_s).measure([gate], scope)
    return measured[0]


def failed(measurement: Measurement) -> QueryFailed:
    assert isinstance(measurement, QueryFailed), measurement
    return measurement


def good(asked: Asked) -> bytes:
    """A healthy Prometheus, for every query of the profile: 100 requests of each arm, one fallback, no alert, a queue of 7."""
    query = asked["query"]
    if "ALERTS" in query or "queue" in query:
        return vector(asked, ({}, "0" if "ALERTS" in query else "7"))
    if "vector(0)" in query:
        return vector(asked, ({"penstock": "candidate:total:0"}, "40"), ({"penstock": "none"}, "0"))
    if "fallbacks" in query:
        return vector(asked, ({"penstock": "candidate:total:0"}, "1"))
    return vector(asked, *tagged("12" if "count_over_time" in query else "100"))


def tagged(value: str) -> list[tuple[dict[str, str], str]]:
    return [({"penstock": f"{arm}:total:{i}"}, value) for i, arm in enumerate(ARMS)]


def healthy(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    write(good(asked))


def only(word: str, change: Callable[[Asked], bytes]) -> Reply:
    """Healthy, but for the queries that contain a word."""

    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        write(change(asked) if word in asked["query"] else good(asked))

    return reply


# --- the answers that are as they should be -------------------------------------------------------------------------------------


def test_a_healthy_answer_becomes_counts_with_its_evidence_verbatim() -> None:
    with fault_server(healthy) as server:
        seen = ask(server, SILENCE)
    assert isinstance(seen, Sampled)
    assert (seen.candidate, seen.baseline) == (Counts(bad=0.0, total=100.0), Counts(bad=0.0, total=100.0))
    requests = seen.evidence[0]
    selectors = [f'penstock_requests_total{{environment="production",flag="chat-model",arm="{arm}"}}' for arm in ARMS]
    grown = [f"sum(increase({s}[600s]))" for s in selectors]
    born = [f"sum(min_over_time({s}[600s]) unless last_over_time({s}[3600s] offset 600s))" for s in selectors]
    assert requests.query == " or ".join(
        f'label_replace({part}, "penstock", "{arm}:total:{i}{kind}", "", "")'
        for kind, parts in (("", grown), (" born", born))
        for i, (arm, part) in enumerate(zip(ARMS, parts, strict=True))
    )
    assert requests.at == AT
    assert requests.digest == sha256(requests.answer.encode()).hexdigest()
    assert json.loads(requests.answer)["status"] == "success"


def test_every_distinct_question_is_asked_once_at_one_time() -> None:
    with fault_server(healthy) as server:
        measured = PrometheusSource(server.url).measure([SILENCE, FALLBACK, SEV1, OWN, SILENCE, SEV1], SCOPE)
    assert all(isinstance(m, Sampled) for m in measured)
    # Requests and freshness, fallbacks, alerts, the queue.
    assert len(server.asked) == 5
    assert len({a["query"] for a in server.asked}) == 5
    assert {a["time"] for a in server.asked} == {f"{AT.timestamp():.3f}"}


def test_a_statistical_gate_is_not_measured_here() -> None:
    with fault_server(healthy) as server:
        seen = failed(ask(server, RateLimit(name="e", indicator="error_ratio", limit=0.01)))
    assert "judged from counted traffic" in seen.reason


def test_a_query_of_ones_own_gets_the_labels_of_the_candidate_and_stands_alone() -> None:
    with fault_server(healthy) as server:
        seen = ask(server, OWN)
    assert isinstance(seen, Sampled)
    assert seen.candidate == Counts(bad=0.0, total=7.0)
    assert seen.evidence[0].query == 'max(queue_length{environment="production",flag="chat-model",arm="candidate"})'


def test_a_query_of_ones_own_over_the_whole_rollout_has_its_window() -> None:
    gate = AtLeast(name="b", indicator="custom", times=1, by_phase="p", promql={"value": "sum(increase(backups_total[$window]))"})
    with fault_server(healthy) as server:
        ask(server, gate)
    assert "sum(increase(backups_total[7200s]))" in {a["query"] for a in server.asked}


def test_a_query_with_more_than_one_number_is_no_measurement() -> None:
    answer = lambda a: vector(a, ({"pod": "1"}, "3"), ({"pod": "2"}, "4"))  # noqa: E731
    with fault_server(only("queue", answer)) as server:
        assert "2 series where one number was expected" in failed(ask(server, OWN)).reason


def test_fallbacks_and_exposure_are_counted_since_the_rollout_was_opened() -> None:
    with fault_server(healthy) as server:
        PrometheusSource(server.url).measure([FALLBACK], SCOPE)
    assert all("[7200s]" in a["query"] for a in server.asked)


def test_a_password_in_the_address_goes_into_the_header_and_nowhere_else() -> None:
    with fault_server(always(http("401 Unauthorized", "no"))) as server:
        url = server.url.replace("http://", "http://reader:s3cret@")
        seen = failed(PrometheusSource(url).measure([SILENCE], SCOPE)[0])
    assert server.asked[0]["header:authorization"] == "Basic cmVhZGVyOnMzY3JldA=="
    assert "HTTP status 401" in seen.reason
    assert "s3cret" not in repr(seen)


def test_the_environment_adds_neither_proxy_nor_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with fault_server(healthy) as server:
        assert isinstance(ask(server, SILENCE), Sampled)
    assert "header:authorization" not in server.asked[0]


# --- no answer ------------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_fails_every_gate_and_says_so() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    measured = PrometheusSource(f"http://127.0.0.1:{port}").measure(EVERY_KIND, SCOPE)
    assert all("cannot be reached" in failed(m).reason and str(port) in failed(m).reason for m in measured)


def hang(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    over.wait(60)


def drip_headers(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not over.wait(0.02):
        write(b"z")


def drip_body(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while not over.wait(0.02):
        write(b" ")


@pytest.mark.parametrize("slow", [hang, drip_headers, drip_body])
def test_a_server_without_end_is_given_up_at_the_deadline(slow: Reply) -> None:
    with fault_server(slow) as server:
        before = threading.active_count()
        measured = PrometheusSource(server.url, timeout_s=0.4).measure(EVERY_KIND, SCOPE)
        assert all("no complete answer within 0.4 s" in failed(m).reason for m in measured)
        # The threads that still read have had their sockets shut under them.
        for thread in [t for t in threading.enumerate() if t.name.startswith("prometheus")]:
            thread.join(5)
        assert [t.name for t in threading.enumerate() if t.name.startswith("prometheus")] == [], before


def test_one_question_that_hangs_does_not_take_the_others_with_it() -> None:
    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        hang(asked, write, over) if "ALERTS" in asked["query"] else write(good(asked))

    with fault_server(reply) as server:
        measured = PrometheusSource(server.url, timeout_s=0.6).measure([SEV1, SILENCE], SCOPE)
    assert "no complete answer" in failed(measured[0]).reason
    assert isinstance(measured[1], Sampled)


# --- answers that are refusals --------------------------------------------------------------------------------------------------

PARSE_ERROR = json.dumps({"status": "error", "errorType": "bad_data", "error": "parse error: unexpected character"})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http("422 Unprocessable Entity", json.dumps({"status": "error", "errorType": "execution", "error": "too many samples"})),
         "HTTP status 422: 'execution': 'too many samples'"),
        (http("400 Bad Request", PARSE_ERROR), "HTTP status 400: 'bad_data': 'parse error"),
        (http("429 Too Many Requests", "slow down", "Retry-After: 86400"), "HTTP status 429, Retry-After '86400': 'slow down'"),
        (http("503 Service Unavailable", "starting up", "Retry-After: 3600"), "HTTP status 503, Retry-After '3600': 'starting up'"),
        (http("200 OK", PARSE_ERROR), "status 'error': 'bad_data': 'parse error"),
        (http("200 OK", "<html>Log in</html>", kind="text/html"), "text/html), but not JSON: '<html>Log in</html>'"),
        (http("204 No Content", ""), "HTTP status 204"),
        (http("200 OK", "[1, 2]"), "not a JSON object"),
        (http("200 OK", "{}"), "status None"),
        (http("200 OK", '{"status": "success"}'), "resultType None"),
        (http("200 OK", '{"status": "success", "data": {"resultType": "matrix", "result": []}}'), "resultType 'matrix'"),
        (http("200 OK", '{"status": "success", "data": {"resultType": "scalar", "result": [1, "1"]}}'), "resultType 'scalar'"),
        (http("200 OK", '{"status": "success", "data": {"resultType": "vector", "result": [{}]}}'), "no sample"),
        (http("200 OK", "[" * 100_000), "not JSON"),
        (http("200 OK", '{"status": "succ', length=400), "HTTP status 200, but the answer broke off"),
        (http("200 OK", '{"status": "succ'), "not JSON"),
        (http("200 OK", b"\xff\x00\xfe"), "not JSON"),
        (b"", "cannot be reached"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n", "broke off"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_fails_and_says_what_came_instead(answer: bytes, reason: str) -> None:
    with fault_server(always(answer)) as server:
        seen = failed(ask(server, SILENCE))
    assert reason in seen.reason
    assert seen.evidence[0].note
    assert "\x00" not in seen.evidence[0].answer
    # Asked once: requests by outcome and freshness, no retries.
    assert len(server.asked) == 2


def test_a_redirect_is_not_followed() -> None:
    with fault_server(healthy) as elsewhere:
        with fault_server(always(http("302 Found", "", f"Location: {elsewhere.url}/api/v1/query"))) as server:
            seen = failed(ask(server, SILENCE))
        assert "HTTP status 302, a redirect" in seen.reason
        assert elsewhere.asked == []


def test_a_huge_answer_is_refused_and_not_kept() -> None:
    body = b'{"status": "success", "padding": "' + b"x" * 1_000_000 + b'"}'
    with fault_server(always(http("200 OK", body))) as server:
        seen = failed(ask(server, SILENCE))
    assert "an answer of more than 262144 bytes" in seen.reason
    assert len(seen.evidence[0].answer) == 4096
    assert seen.evidence[0].digest == sha256(body).hexdigest()


def test_an_answer_without_end_is_cut_off() -> None:
    def flood(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.is_set():
            write(b"x" * 65536)

    with fault_server(flood) as server:
        assert "an answer of more than 262144 bytes" in failed(ask(server, SILENCE, timeout_s=20)).reason


# --- answers that contradict themselves -----------------------------------------------------------------------------------------


def totals(*values: tuple[str, str]) -> Callable[[Asked], bytes]:
    return lambda asked: vector(asked, *(({"penstock": tag}, v) for tag, v in values))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (totals(("candidate:total:0", "NaN")), "the value NaN"),
        (totals(("candidate:total:0", "+Inf")), "the value +Inf"),
        (totals(("candidate:total:0", "-1")), "the value -1"),
        (totals(("candidate:total:0", "one")), "'one' is no number"),
        (totals(("candidate:total:0", "1"), ("candidate:total:0", "2")), "two series for"),
        (totals(("shadow:total:0", "1")), "a series that was not asked for"),
        (lambda a: vector(a, ({"penstock": "candidate:total:0", "replica": "1"}, "1")), "a series that was not asked for"),
        (
            lambda a: vector(a, warnings=["one store did not answer"]),
            "carries warnings, so it may be partial: ['one store did not answer']",
        ),
        (lambda a: vector(a, infos=["partial response: 1 of 2 zones"]), "infos that say it is partial"),
        (lambda a: vector(a, isPartial=True), "isPartial"),
        (
            lambda a: vector(a | {"time": "1700000000"}, ({"penstock": "candidate:total:0"}, "1")),
            "for the time 1700000000.0, asked was",
        ),
        (lambda a: vector(a | {"time": "1e999"}, ({"penstock": "candidate:total:0"}, "1")), "for the time inf"),
    ],
)
def test_an_answer_that_cannot_be_trusted_fails_and_says_why(change: Callable[[Asked], bytes], reason: str) -> None:
    with fault_server(only("sum(increase(penstock_requests", change)) as server:
        assert reason in failed(ask(server, SILENCE)).reason


def test_an_info_about_the_style_of_a_query_is_no_failure() -> None:
    with fault_server(only("penstock_requests", lambda a: vector(a, infos=["PromQL info: might not be a counter"]))) as server:
        assert isinstance(ask(server, SILENCE), NoData)


def test_an_alert_query_without_a_number_is_not_zero_alerts() -> None:
    with fault_server(only("ALERTS", vector)) as server:
        assert isinstance(ask(server, SEV1), NoData)
    with fault_server(only("ALERTS", lambda a: http("500 Internal Server Error", "out of memory"))) as server:
        assert "HTTP status 500" in failed(ask(server, SEV1)).reason


# --- nothing to see -------------------------------------------------------------------------------------------------------------


def test_an_empty_answer_is_no_data_for_every_gate_that_needs_the_candidate() -> None:
    with fault_server(lambda asked, write, over: write(vector(asked))) as server:
        measured = PrometheusSource(server.url).measure(EVERY_KIND, SCOPE)
    assert all(isinstance(m, NoData) for m in measured), measured


BASELINE_ONLY = [({"penstock": "baseline:total:1"}, "500")]


def test_a_candidate_without_series_beside_a_reporting_baseline_is_silent_and_not_unknown() -> None:
    with fault_server(only("penstock_requests", lambda a: vector(a, *BASELINE_ONLY))) as server:
        silent = ask(server, SILENCE)
    assert isinstance(silent, Sampled)
    assert (silent.candidate, silent.baseline) == (Counts(bad=0, total=0), Counts(bad=0, total=500))


def test_counts_of_a_candidate_that_is_no_longer_scraped_are_no_data() -> None:
    with fault_server(only("count_over_time", lambda a: vector(a, *BASELINE_ONLY))) as server:
        seen = ask(server, SILENCE)
    assert isinstance(seen, NoData)
    assert "no sample of the candidate in the last 45 s" in seen.reason


def test_a_baseline_that_is_no_longer_scraped_is_not_compared_with() -> None:
    with fault_server(only("count_over_time", lambda a: vector(a, ({"penstock": "candidate:total:0"}, "9")))) as server:
        seen = ask(server, SILENCE)
    assert isinstance(seen, Sampled)
    assert seen.baseline is None


@pytest.mark.parametrize("seconds", [59.9, 0.0, -30.0])
def test_a_window_of_fewer_than_four_scrapes_is_no_data_and_asks_nothing(seconds: float) -> None:
    since = AT - timedelta(seconds=seconds)
    scope = Scope(
        environment="production",
        flag="chat-model",
        arm="candidate",
        recent=timedelta(minutes=15),
        since=since,
        opened_at=since,
        at=AT,
    )
    with fault_server(healthy) as server:
        measured = PrometheusSource(server.url).measure([SILENCE, FALLBACK], scope)
    assert all(isinstance(m, NoData) and "window shorter than four scrapes" in m.reason for m in measured)
    assert server.asked == []


# --- names ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"flag": 'x"} or vector(1) #'}, "flag: "),
        ({"flag": ""}, "flag: "),
        ({"environment": "prod\n"}, "environment: "),
        ({"arm": "candidate|.*"}, "arm: "),
    ],
)
def test_a_name_that_is_none_is_never_asked_with(changed: dict[str, str], reason: str) -> None:
    parts = {"environment": "production", "flag": "chat-model", "arm": "candidate"} | changed
    scope = Scope(**parts, recent=timedelta(minutes=15), since=SCOPE.since, opened_at=SCOPE.opened_at, at=AT)
    with fault_server(healthy) as server:
        measured = PrometheusSource(server.url).measure([SILENCE], scope)
    assert failed(measured[0]).reason.startswith(reason)
    assert all("or vector(1) #" not in a["query"] and ".*" not in a["query"] for a in server.asked)


@pytest.mark.parametrize("label", ["arm", "environment", "le", "__name__", "penstock", 'a="b",c', "", "streaming "])
def test_a_filter_cannot_name_what_the_query_sets_itself_or_what_is_no_label(label: str) -> None:
    gate = AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p", where={label: "x"})
    with fault_server(healthy) as server:
        assert failed(ask(server, gate)).reason.startswith("where: ")


def test_a_filter_becomes_an_exact_match_with_its_quotes_escaped() -> None:
    gate = AtLeast(name="f", indicator="fallbacks", times=1, by_phase="p", where={"route": 'a"} or x\\', "model": ".*"})
    with fault_server(healthy) as server:
        ask(server, gate)
    query = next(a["query"] for a in server.asked if "fallbacks" in a["query"])
    assert r',model=".*",route="a\"} or x\\"}[7200s]' in query


@pytest.mark.parametrize("url", ["127.0.0.1:9090", "ftp://host", "http://", "http://host:90900000", "http://host/?a=b"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError):
        PrometheusSource(url)


def test_an_unknown_profile_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no profile 'langfuse'; known: .*router"):
        PrometheusSource("http://127.0.0.1:9090", "langfuse")


def test_an_unknown_profile_of_a_plan_fails_the_gates_that_need_one() -> None:
    with fault_server(healthy) as server:
        measured = PrometheusSource(server.url).measure([SILENCE, SEV1], replace(SCOPE, profile="langfuse"))
    assert "no profile 'langfuse'" in failed(measured[0]).reason
    assert isinstance(measured[1], Sampled)


# --- doctor ---------------------------------------------------------------------------------------------------------------------


def test_a_probe_says_what_is_wrong() -> None:
    with (
        fault_server(always(http("200 OK", "<html></html>", kind="text/html"))) as server,
        pytest.raises(Unavailable, match="not JSON"),
    ):
        PrometheusSource(server.url).probe()
    with fault_server(hang) as server, pytest.raises(Unavailable, match=r"no complete answer within 0\.2 s"):
        PrometheusSource(server.url, timeout_s=0.2).probe()
