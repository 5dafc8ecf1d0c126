"""What a router may do to a drill instead of answering it: each is the right error, in time, and nothing is sent twice."""

import json
import threading
from collections.abc import Callable

import pytest

from controller.adapters.router import RouterDrills
from controller.ports import DrillRefused, PortError, Unavailable
from tests.adapters.http_faults import Asked, FaultServer, Reply, fault_server, http

MODELS = {
    "data": [
        {"id": "plain"},
        {"id": "chat", "penstock": {"environment": "production", "route": "chat", "flag": "chat-model"}},
        {"id": "also", "penstock": {"environment": "production", "route": "second", "flag": "chat-model"}},
    ]
}
HELD = ("x-penstock-drill: fallback", "x-penstock-fallback: true", "x-penstock-model: old")
ANSWER = json.dumps({"choices": [{"message": {"content": "ready"}}]})


def router(drill: bytes | Reply, models: bytes | None = None) -> Reply:
    """A router that lists its models and does this to a drill."""

    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        if asked["path"] == "/v1/models":
            write(http("200 OK", json.dumps(MODELS)) if models is None else models)
        elif isinstance(drill, bytes):
            write(drill)
        else:
            drill(asked, write, over)

    return reply


def posts(server: FaultServer) -> list[Asked]:
    return [asked for asked in server.asked if asked["path"] == "/v1/chat/completions"]


def drills(server: FaultServer, **more: object) -> RouterDrills:
    return RouterDrills(server.url, "token", timeout_s=0.5, **more)  # type: ignore[arg-type]  # api_key alone is left


def test_token_and_key_go_along_and_the_first_route_of_the_flag_is_asked() -> None:
    with fault_server(router(http("200 OK", ANSWER, *HELD))) as server:
        seen = drills(server, api_key="sk-1").fallback("production", "chat-model")
    assert (seen.answered_by, seen.text) == ("old", "")
    assert seen.took.total_seconds() > 0
    (asked,) = posts(server)
    sent = {name.removeprefix("header:"): value for name, value in asked.items()}
    assert (sent["x-penstock-drill"], sent["x-penstock-drill-token"]) == ("fallback", "token")
    assert sent["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (http("200 OK", ANSWER, "x-penstock-model: new"), DrillRefused, "took the drill for a user's request"),
        (http("403 Forbidden", '{"error": {"message": "no token"}}'), DrillRefused, "refuses the drill (403): no token"),
        (http("302 Found", "", "Location: http://127.0.0.1:9/"), DrillRefused, "refuses the drill (302): nothing"),
        (http("502 Bad Gateway", "<html>proxy</html>"), Unavailable, "answered the drill with 502: <html>proxy</html>"),
        (http("200 OK", ANSWER, *HELD, length=10_000), Unavailable, "cannot be asked"),
        (b"nonsense\r\n\r\n", Unavailable, "cannot be asked"),
        (b"", Unavailable, "cannot be asked"),
    ],
    ids=["older", "refused", "redirect", "proxy", "cut", "nonsense", "closed"],
)
def test_what_is_no_drill_is_an_error_that_names_the_router(answer: bytes, error: type[PortError], says: str) -> None:
    with fault_server(router(answer)) as server:
        with pytest.raises(error) as raised:
            drills(server).fallback("production", "chat-model")
        assert says in str(raised.value) and server.url in str(raised.value)
        assert len(posts(server)) == 1


def test_a_fallback_that_fails_is_an_outcome_and_no_error() -> None:
    body = '{"error": {"message": "No model answered (new: failed on purpose; old: status 500)."}}'
    with fault_server(router(http("502 Bad Gateway", body, HELD[0]))) as server:
        seen = drills(server).fallback("production", "chat-model")
    assert (seen.answered_by, seen.text) == ("", "502: No model answered (new: failed on purpose; old: status 500).")


@pytest.mark.parametrize(
    ("tail", "answered_by"), [(b"data: [DONE]\n\n", "old"), (b"data: [DONE]", "old"), (b"", ""), (b'data: {"error": {}}\n\n', "")]
)
def test_a_stream_has_answered_when_it_came_to_its_end(tail: bytes, answered_by: str) -> None:
    body = b'data: {"choices": []}\n\n' + tail
    with fault_server(router(http("200 OK", body, *HELD, kind="text/event-stream"))) as server:
        assert drills(server).fallback("production", "chat-model", streaming=True).answered_by == answered_by


def hangs(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    over.wait(20)


def drips(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    write(http("200 OK", b"", *HELD, length=1_000_000))
    while not over.wait(0.05):
        write(b" ")


def floods(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
    write(http("200 OK", b"", *HELD, length=10_000_000))
    write(b" " * 2_000_000)
    over.wait(20)


@pytest.mark.parametrize("fault", [hangs, drips, floods])
def test_an_answer_without_an_end_is_given_up(fault: Reply) -> None:
    with fault_server(router(fault)) as server:
        with pytest.raises(Unavailable, match="cannot be asked"):
            drills(server).fallback("production", "chat-model")
        assert len(posts(server)) == 1


@pytest.mark.parametrize(
    ("models", "error", "says"),
    [
        (http("200 OK", '{"data": [{"id": "chat"}]}'), DrillRefused, "its flags: none, or it is older than drills"),
        (http("200 OK", "[]"), Unavailable, "something else than a list of models"),
        (http("200 OK", '{"data": [{}]}'), Unavailable, "something else than a list of models"),
        (http("200 OK", "<html>"), Unavailable, "something else than a list of models"),
        (http("404 Not Found", "{}"), Unavailable, "cannot be asked"),
    ],
    ids=["older", "list", "no-id", "html", "404"],
)
def test_nothing_is_sent_to_a_router_that_does_not_say_which_model_leads_to_the_flag(
    models: bytes, error: type[PortError], says: str
) -> None:
    with fault_server(router(http("200 OK", ANSWER, *HELD), models)) as server:
        with pytest.raises(error, match=says):
            drills(server).fallback("production", "chat-model")
        assert posts(server) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://", "http://[::1"])
def test_an_address_where_no_router_is_is_named(url: str) -> None:
    with pytest.raises(Unavailable, match="the router at"):
        RouterDrills(url, "token").fallback("production", "chat-model")


@pytest.mark.parametrize("value", ["two\nlines", "ünïcode", " x", "\x00"])
def test_a_token_or_key_that_no_header_can_carry_is_refused_unseen(value: str) -> None:
    for make in (lambda: RouterDrills("http://r", value), lambda: RouterDrills("http://r", "token", api_key=value)):
        with pytest.raises(ValueError, match="no HTTP header can carry") as raised:
            make()
        assert value not in str(raised.value)
