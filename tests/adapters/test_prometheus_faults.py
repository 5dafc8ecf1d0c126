"""
What a broken, hostile or half-dead Prometheus can do to the controller: make it hold, and nothing else.

No test looks at the clock; that the deadline holds is shown by the test ending (each has a limit far above the deadline and far
below what the server would take).
"""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from controller.adapters.prometheus import PrometheusSource
from controller.core.measurement import Counts, Histogram, Measurement, NoData, QueryFailed, Sampled
from controller.core.plan import AtLeast, AtMost, Gate, MeanIncrease, QuantileIncrease, QuantileLimit, RateLimit, Silence
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
ERRORS = RateLimit(name="error-rate", indicator="error_ratio", limit=0.01)
AVAILABLE = RateLimit(name="availability", indicator="availability", limit=0.001)
P95 = QuantileLimit(name="p95", indicator="latency", quantile=0.95, limit_s=3.0)
P50 = QuantileLimit(name="p50", indicator="latency", quantile=0.5, limit_s=1.0)
SLOWER = QuantileIncrease(name="p95-vs-baseline", indicator="latency", quantile=0.95, max_increase=0.15)
COST = MeanIncrease(name="cost", indicator="cost_per_request", max_increase=0.1)
SEV1 = AtMost(name="no-sev1", indicator="firing_alerts", times=0, where={"severity": "sev1"})
FALLBACK = AtLeast(name="fallback", indicator="fallbacks", times=1, by_phase="canary-5")
SILENCE = Silence()
EVERY_KIND: tuple[Gate, ...] = (ERRORS, AVAILABLE, P95, SLOWER, COST, SEV1, FALLBACK, SILENCE)


def ask(server: FaultServer, gate: Gate, scope: Scope = SCOPE, timeout_s: float = 5.0) -> Measurement:
    measured = PrometheusSource(server.url, timeout_s=timeout_s).measure([gate], scope)
    return measured.measurements[0]


def failed(measurement: Measurement) -> QueryFailed:
    assert isinstance(measurement, QueryFailed), measurement
    return measurement


def good(asked: Asked) -> bytes:
    """A healthy Prometheus, for every query of the profile: 90 ok and 10 errors of each arm, one fallback, no alert."""
    query, arms = asked["query"], ("baseline", "candidate")
    if "count_over_time" in query:
        return vector(asked, *(({"arm": arm}, "12") for arm in arms))
    if "ALERTS" in query or "fallbacks" in query:
        return vector(asked, ({}, "0" if "ALERTS" in query else "1"))
    if "moment" in query:
        moments = {"n": "100", "total": "2", "squares": "0.05"}
        return vector(asked, *(({"arm": arm, "moment": m}, v) for arm in arms for m, v in moments.items()))
    if "_bucket" in query:
        buckets = {"1.0": "50", "3.0": "95.5", "+Inf": "100"}
        return vector(asked, *(({"arm": arm, "le": le}, v) for arm in arms for le, v in buckets.items()))
    if "unavailable" in query:
        return vector(asked, *(({"arm": arm}, "0") for arm in arms))
    if "by (arm, outcome)" in query:
        outcomes = {"ok": "90", "error": "10", "timeout": "0", "client_error": "7"}
        return vector(asked, *(({"arm": arm, "outcome": o}, v) for arm in arms for o, v in outcomes.items()))
    return vector(asked, ({}, "40"))


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
        seen = ask(server, ERRORS)
    assert isinstance(seen, Sampled)
    # client_error is in no ratio: 90 ok + 10 errors.
    assert (seen.candidate, seen.baseline) == (Counts(bad=10.0, total=100.0), Counts(bad=10.0, total=100.0))
    requests = seen.evidence[0]
    assert requests.query == (
        "sum by (arm, outcome) (increase(penstock_requests_total"
        '{environment="production",flag="chat-model",arm=~"baseline|candidate"}[600s]))'
    )
    assert requests.at == AT
    assert requests.digest == sha256(requests.answer.encode()).hexdigest()
    assert json.loads(requests.answer)["status"] == "success"


def test_every_distinct_question_is_asked_once_at_one_time() -> None:
    with fault_server(healthy) as server:
        measured = PrometheusSource(server.url).measure([P50, P95, SLOWER, ERRORS, AVAILABLE, SILENCE], SCOPE)
    assert all(isinstance(m, Sampled) for m in measured.measurements)
    # One histogram, requests by outcome, unavailable, freshness, exposure.
    assert len(server.asked) == 5
    assert len({a["query"] for a in server.asked}) == 5
    assert {a["time"] for a in server.asked} == {f"{AT.timestamp():.3f}"}
    assert measured.exposure == 40.0


def test_all_kinds_of_gates_get_the_values_that_they_are_judged_by() -> None:
    with fault_server(healthy) as server:
        measured = PrometheusSource(server.url).measure(EVERY_KIND, SCOPE)
    kinds = [m.candidate.kind if isinstance(m, Sampled) else m for m in measured.measurements]
    assert kinds == ["counts", "counts", "histogram", "histogram", "moments", "counts", "counts", "counts"]


def test_fallbacks_and_exposure_are_counted_since_the_rollout_was_opened() -> None:
    with fault_server(healthy) as server:
        PrometheusSource(server.url).measure([FALLBACK], SCOPE)
    assert all("[7200s]" in a["query"] for a in server.asked)


def test_a_password_in_the_address_goes_into_the_header_and_nowhere_else() -> None:
    with fault_server(always(http("401 Unauthorized", "no"))) as server:
        url = server.url.replace("http://", "http://reader:s3cret@")
        seen = failed(PrometheusSource(url).measure([ERRORS], SCOPE).measurements[0])
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
        assert isinstance(ask(server, ERRORS), Sampled)
    assert "header:authorization" not in server.asked[0]


# --- no answer ------------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_fails_every_gate_and_says_so() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    measured = PrometheusSource(f"http://127.0.0.1:{port}").measure(EVERY_KIND, SCOPE)
    assert all("cannot be reached" in failed(m).reason and str(port) in failed(m).reason for m in measured.measurements)
    assert measured.exposure is None


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
        assert all("no complete answer within 0.4 s" in failed(m).reason for m in measured.measurements)
        # The threads that still read have had their sockets shut under them.
        for thread in [t for t in threading.enumerate() if t.name.startswith("prometheus")]:
            thread.join(5)
        assert [t.name for t in threading.enumerate() if t.name.startswith("prometheus")] == [], before


def test_one_question_that_hangs_does_not_take_the_others_with_it() -> None:
    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        hang(asked, write, over) if "_bucket" in asked["query"] else write(good(asked))

    with fault_server(reply) as server:
        measured = PrometheusSource(server.url, timeout_s=0.6).measure([P95, ERRORS], SCOPE)
    assert "no complete answer" in failed(measured.measurements[0]).reason
    assert isinstance(measured.measurements[1], Sampled)


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
        seen = failed(ask(server, ERRORS))
    assert reason in seen.reason
    assert seen.evidence[0].note
    assert "\x00" not in seen.evidence[0].answer
    # Asked once: requests by outcome, freshness and exposure, no retries.
    assert len(server.asked) == 3


def test_a_redirect_is_not_followed() -> None:
    with fault_server(healthy) as elsewhere:
        with fault_server(always(http("302 Found", "", f"Location: {elsewhere.url}/api/v1/query"))) as server:
            seen = failed(ask(server, ERRORS))
        assert "HTTP status 302, a redirect" in seen.reason
        assert elsewhere.asked == []


def test_a_huge_answer_is_refused_and_not_kept() -> None:
    body = b'{"status": "success", "padding": "' + b"x" * 1_000_000 + b'"}'
    with fault_server(always(http("200 OK", body))) as server:
        seen = failed(ask(server, ERRORS))
    assert "an answer of more than 262144 bytes" in seen.reason
    assert len(seen.evidence[0].answer) == 4096
    assert seen.evidence[0].digest == sha256(body).hexdigest()


def test_an_answer_without_end_is_cut_off() -> None:
    def flood(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.is_set():
            write(b"x" * 65536)

    with fault_server(flood) as server:
        assert "an answer of more than 262144 bytes" in failed(ask(server, ERRORS, timeout_s=20)).reason


# --- answers that contradict themselves -----------------------------------------------------------------------------------------


def outcomes(*values: tuple[str, str, str]) -> Callable[[Asked], bytes]:
    return lambda asked: vector(asked, *(({"arm": arm, "outcome": o}, v) for arm, o, v in values))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (outcomes(("candidate", "ok", "NaN")), "the value NaN"),
        (outcomes(("candidate", "ok", "+Inf")), "the value +Inf"),
        (outcomes(("candidate", "ok", "-1")), "the value -1"),
        (outcomes(("candidate", "ok", "one")), "'one' is no number"),
        (outcomes(("candidate", "ok", "1"), ("candidate", "ok", "2")), "two series for"),
        (outcomes(("shadow", "ok", "1")), "arm 'shadow', which was not asked for"),
        (lambda a: vector(a, ({"arm": "candidate", "outcome": "ok", "replica": "1"}, "1")), "a series with labels"),
        (
            lambda a: vector(a, warnings=["one store did not answer"]),
            "carries warnings, so it may be partial: ['one store did not answer']",
        ),
        (lambda a: vector(a, infos=["partial response: 1 of 2 zones"]), "infos that say it is partial"),
        (lambda a: vector(a, isPartial=True), "isPartial"),
        (
            lambda a: vector(a | {"time": "1700000000"}, ({"arm": "candidate", "outcome": "ok"}, "1")),
            "for the time 1700000000.0, asked was",
        ),
        (lambda a: vector(a | {"time": "1e999"}, ({"arm": "candidate", "outcome": "ok"}, "1")), "for the time inf"),
    ],
)
def test_an_answer_that_cannot_be_trusted_fails_and_says_why(change: Callable[[Asked], bytes], reason: str) -> None:
    with fault_server(only("outcome", change)) as server:
        assert reason in failed(ask(server, ERRORS)).reason


def test_an_info_about_the_style_of_a_query_is_no_failure() -> None:
    with fault_server(only("outcome", lambda a: vector(a, infos=["PromQL info: metric might not be a counter"]))) as server:
        assert isinstance(ask(server, ERRORS), NoData)


@pytest.mark.parametrize(
    ("buckets", "reason"),
    [
        ({"1.0": "60", "3.0": "40", "+Inf": "100"}, "bucket le=3 counts 40, a lower one 60"),
        ({"1.0": "60", "3.0": "70"}, "without +Inf"),
        ({"+Inf": "70"}, "without a finite edge"),
        ({"1.0": "60", "1": "60", "+Inf": "70"}, "'1' is there twice"),
        ({"quick": "60", "+Inf": "70"}, "'quick' is no number"),
    ],
)
def test_buckets_that_contradict_each_other_fail(buckets: dict[str, str], reason: str) -> None:
    answer = lambda a: vector(a, *(({"arm": "candidate", "le": le}, v) for le, v in buckets.items()))  # noqa: E731
    with fault_server(only("_bucket", answer)) as server:
        assert reason in failed(ask(server, P95)).reason


def test_a_tiny_dip_between_buckets_is_rounding_and_is_levelled() -> None:
    buckets = {"3.0": "95.2", "1.0": "95.4", "+Inf": "100"}
    answer = lambda a: vector(a, *(({"arm": "candidate", "le": le}, v) for le, v in buckets.items()))  # noqa: E731
    with fault_server(only("_bucket", answer)) as server:
        seen = ask(server, P95)
    assert isinstance(seen, Sampled)
    assert seen.candidate == Histogram(edges_s=(1.0, 3.0), cumulative=(95.4, 95.4), total=100.0)


def test_more_unanswered_requests_than_requests_is_a_contradiction_beyond_what_increase_extrapolates() -> None:
    def unavailable(value: str) -> Reply:
        return only("unavailable", lambda a: vector(a, *(({"arm": arm}, value) for arm in ("baseline", "candidate"))))

    with fault_server(unavailable("120")) as server:
        seen = ask(server, AVAILABLE)
    assert isinstance(seen, Sampled)
    assert seen.candidate == Counts(bad=100.0, total=100.0)
    with fault_server(unavailable("200")) as server:
        assert "200 unanswered of 100 requests of the" in failed(ask(server, AVAILABLE)).reason


def test_cost_without_its_squares_fails() -> None:
    answer = lambda a: vector(a, ({"arm": "candidate", "moment": "n"}, "5"), ({"arm": "candidate", "moment": "total"}, "1"))  # noqa: E731
    with fault_server(only("moment", answer)) as server:
        assert "no series for squares" in failed(ask(server, COST)).reason


def test_an_alert_query_without_a_number_is_not_zero_alerts() -> None:
    with fault_server(only("ALERTS", vector)) as server:
        assert isinstance(ask(server, SEV1), NoData)
    with fault_server(only("ALERTS", lambda a: http("500 Internal Server Error", "out of memory"))) as server:
        assert "HTTP status 500" in failed(ask(server, SEV1)).reason


# --- nothing to see -------------------------------------------------------------------------------------------------------------


def test_an_empty_answer_is_no_data_for_every_gate_that_needs_the_candidate() -> None:
    with fault_server(lambda asked, write, over: write(vector(asked))) as server:
        measured = PrometheusSource(server.url).measure(EVERY_KIND, SCOPE)
    assert all(isinstance(m, NoData) for m in measured.measurements), measured
    assert measured.exposure is None


def test_a_candidate_without_series_beside_a_reporting_baseline_is_silent_and_not_unknown() -> None:
    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        if "count_over_time" in asked["query"]:
            write(vector(asked, ({"arm": "baseline"}, "9")))
        else:
            write(vector(asked, ({"arm": "baseline", "outcome": "ok"}, "500")))

    with fault_server(reply) as server:
        silent, errors = PrometheusSource(server.url).measure([SILENCE, ERRORS], SCOPE).measurements
    assert isinstance(silent, Sampled)
    assert (silent.candidate, silent.baseline) == (Counts(bad=0, total=0), Counts(bad=0, total=500))
    assert isinstance(errors, NoData)


def test_counts_of_a_candidate_that_is_no_longer_scraped_are_no_data() -> None:
    with fault_server(only("count_over_time", lambda a: vector(a, ({"arm": "baseline"}, "9")))) as server:
        measured = PrometheusSource(server.url).measure([ERRORS, P95, COST, SILENCE], SCOPE)
    for measurement in measured.measurements:
        assert isinstance(measurement, NoData)
        assert "no sample of the candidate in the last 45 s" in measurement.reason


def test_a_baseline_that_is_no_longer_scraped_is_not_compared_with() -> None:
    with fault_server(only("count_over_time", lambda a: vector(a, ({"arm": "candidate"}, "9")))) as server:
        errors, slower = PrometheusSource(server.url).measure([ERRORS, SLOWER], SCOPE).measurements
    assert isinstance(errors, Sampled)
    assert errors.baseline is None
    assert isinstance(slower, NoData)
    assert "no sample of the baseline" in slower.reason


def test_a_comparison_without_a_baseline_has_none() -> None:
    buckets = {"1.0": "50", "+Inf": "100"}
    answer = lambda a: vector(a, *(({"arm": "candidate", "le": le}, v) for le, v in buckets.items()))  # noqa: E731
    with fault_server(only("_bucket", answer)) as server:
        seen = ask(server, SLOWER)
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
        measured = PrometheusSource(server.url).measure([ERRORS, FALLBACK], scope)
    assert all(isinstance(m, NoData) and "window shorter than four scrapes" in m.reason for m in measured.measurements)
    assert measured.exposure is None
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
        measured = PrometheusSource(server.url).measure([ERRORS], scope)
    assert failed(measured.measurements[0]).reason.startswith(reason)
    assert all("or vector(1) #" not in a["query"] and ".*" not in a["query"] for a in server.asked)


@pytest.mark.parametrize("label", ["arm", "environment", "le", "__name__", "outcome", 'a="b",c', "", "streaming "])
def test_a_filter_cannot_name_what_the_query_sets_itself_or_what_is_no_label(label: str) -> None:
    gate = RateLimit(name="e", indicator="error_ratio", limit=0.1, where={label: "x"})
    with fault_server(healthy) as server:
        assert failed(ask(server, gate)).reason.startswith("where: ")


def test_a_filter_becomes_an_exact_match_with_its_quotes_escaped() -> None:
    gate = RateLimit(name="e", indicator="error_ratio", limit=0.1, where={"route": 'a"} or x\\', "model": ".*"})
    with fault_server(healthy) as server:
        ask(server, gate)
    query = next(a["query"] for a in server.asked if "outcome" in a["query"])
    assert r',model=".*",route="a\"} or x\\"}[600s]' in query


@pytest.mark.parametrize("url", ["127.0.0.1:9090", "ftp://host", "http://", "http://host:90900000", "http://host/?a=b"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError):
        PrometheusSource(url)


def test_an_unknown_profile_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no profile 'litellm'; known: .*router"):
        PrometheusSource("http://127.0.0.1:9090", "litellm")


# --- doctor ---------------------------------------------------------------------------------------------------------------------


def test_a_probe_says_what_is_wrong() -> None:
    with (
        fault_server(always(http("200 OK", "<html></html>", kind="text/html"))) as server,
        pytest.raises(Unavailable, match="not JSON"),
    ):
        PrometheusSource(server.url).probe()
    with fault_server(hang) as server, pytest.raises(Unavailable, match=r"no complete answer within 0\.2 s"):
        PrometheusSource(server.url, timeout_s=0.2).probe()
