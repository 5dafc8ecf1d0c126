"""
A front for Prometheus that answers as a trial says: with the truth, with part of it, with nonsense, or not at all.

It stands between a controller and a real Prometheus, on plain sockets, because no HTTP library sends what must be sent here. Its one rule: what
is wrong with an answer is the only thing that is wrong with it; everything else is what the real one said.
"""

import contextlib
import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

DRIP_S = 0.2
"""Between two bytes of an answer that trickles."""

SLOW_S = 0.4
"""An answer that is late, but not too late."""

_CHUNK = b"x" * 65536


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and the way to answer it."""

    client: socket.socket
    path: str
    query: dict[str, str]
    upstream: str
    over: threading.Event

    def write(self, data: bytes) -> None:
        self.client.sendall(data)

    def ask(self, **changed: str) -> bytes:
        """What the real Prometheus says; with other parameters if wanted."""
        parts = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        try:
            connection.request("GET", f"{self.path}?{urlencode({**self.query, **changed})}")
            return connection.getresponse().read()
        finally:
            connection.close()

    def reset(self) -> None:
        """Hang up with a reset and not with an end."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()


Way = Callable[[Exchange], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """
    A way to answer.

    Args:
        name: As the fault's name has it.
        answer: Does it.
        usable: The answer is true and whole, if not as expected: a controller may act on it.
        lies: A whole answer that says what is not so: a controller may lower on it, and must not raise.
    """

    name: str
    answer: Way
    usable: bool = False
    lies: bool = False


KINDS: dict[str, Kind] = {}


def kind(name: str, *, usable: bool = False, lies: bool = False) -> Callable[[Way], Way]:
    def register(answer: Way) -> Way:
        KINDS[name] = Kind(name=name, answer=answer, usable=usable, lies=lies)
        return answer

    return register


@dataclass(slots=True)
class Front:
    """Use it as a context. `way` is how requests are answered; None passes them on."""

    upstream: str
    way: Way | None = None
    over: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    asked: int = 0
    _listener: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.open_door()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        self.close_door()

    def close_door(self) -> None:
        """Connections are refused from now on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # shutdown wakes the thread in accept, which close alone does not.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def open_door(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), name="front", daemon=True).start()

    def heal(self) -> None:
        """Whoever hangs is let go, and the truth is told again."""
        self.way = None
        self.over.set()
        self.over = threading.Event()
        if self._listener is None:
            self.open_door()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # An OSError is a controller that has given up, which is what some kinds are about.
        with contextlib.suppress(OSError, http.client.HTTPException), client:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            target = urlsplit(head.split(b" ", 2)[1].decode("latin-1"))
            self.asked += 1
            (self.way or truth)(
                Exchange(
                    client=client,
                    path=target.path,
                    query=dict(parse_qsl(target.query)),
                    upstream=self.upstream,
                    over=self.over,
                )
            )


def reply(
    body: bytes, status: str = "200 OK", *headers: str, length: int | None = None, type_: str = "application/json"
) -> bytes:
    """A whole answer; `length` lies about the body's."""
    lines = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {type_}",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def truth(exchange: Exchange) -> None:
    exchange.write(reply(exchange.ask()))


# --- not HTTP, or not to its end ------------------------------------------------------------------------------------------------


@kind("hung")
def _hung(exchange: Exchange) -> None:
    exchange.over.wait(60)


@kind("trickle")
def _trickle(exchange: Exchange) -> None:
    for byte in reply(exchange.ask()):
        exchange.write(bytes([byte]))
        if exchange.over.wait(DRIP_S):
            return


@kind("slow", usable=True)
def _slow(exchange: Exchange) -> None:
    exchange.over.wait(SLOW_S)
    truth(exchange)


@kind("reset")
def _reset(exchange: Exchange) -> None:
    exchange.reset()


@kind("answered, then reset")
def _answered_then_reset(exchange: Exchange) -> None:
    """Prometheus has done its work, and nobody hears of it."""
    exchange.ask()
    exchange.reset()


@kind("reset in mid body")
def _reset_in_mid_body(exchange: Exchange) -> None:
    whole = reply(exchange.ask())
    exchange.write(whole[: len(whole) - len(whole) // 4])
    exchange.reset()


@kind("truncated")
def _truncated(exchange: Exchange) -> None:
    body = exchange.ask()
    exchange.write(reply(body[: len(body) // 2], length=len(body)))


@kind("truncated, and says so")
def _cut(exchange: Exchange) -> None:
    body = exchange.ask()
    exchange.write(reply(body[: len(body) // 2]))


@kind("endless")
def _endless(exchange: Exchange) -> None:
    exchange.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
    while not exchange.over.is_set():
        exchange.write(_CHUNK)


@kind("no HTTP")
def _no_http(exchange: Exchange) -> None:
    exchange.write(b"SSH-2.0-OpenSSH_9.2\r\n")


@kind("nothing at all")
def _nothing(exchange: Exchange) -> None:
    return


# --- HTTP that is no answer -----------------------------------------------------------------------------------------------------


def _status(name: str, status: str, body: bytes, *headers: str, type_: str = "application/json") -> None:
    @kind(name)
    def answer(exchange: Exchange) -> None:
        exchange.write(reply(body, status, *headers, type_=type_))


_PAGE = b"<!doctype html><title>Sign in</title><h1>Welcome</h1>"
_status("422", "422 Unprocessable Entity", b'{"status":"error","errorType":"execution","error":"query timed out"}')
_status("429", "429 Too Many Requests", b"slow down", "Retry-After: 86400", type_="text/plain")
_status("500", "500 Internal Server Error", b"oops", type_="text/plain")
_status("503", "503 Service Unavailable", _PAGE, "Retry-After: 86400", type_="text/html")
_status("HTML", "200 OK", _PAGE, type_="text/html")
_status("200 with error", "200 OK", b'{"status":"error","errorType":"bad_data","error":"parse error"}')
_status("204", "204 No Content", b"")
_status("empty body", "200 OK", b"")
_status("null", "200 OK", b"null")
_status("too deep", "200 OK", b"[" * 100_000)


@kind("redirect")
def _redirect(exchange: Exchange) -> None:
    """To where a good answer lies: nobody may go there."""
    where = f"{exchange.upstream}{exchange.path}?{urlencode(exchange.query)}"
    exchange.write(reply(b"", "302 Found", f"Location: {where}"))


@kind("wrong encoding")
def _wrong_encoding(exchange: Exchange) -> None:
    exchange.write(reply(exchange.ask(), "200 OK", "Content-Encoding: gzip"))


@kind("wrong content type", usable=True)
def _wrong_type(exchange: Exchange) -> None:
    exchange.write(reply(exchange.ask(), type_="text/html"))


# --- answers that look like one -------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]


def _answers(name: str, change: Change, *, usable: bool = False, lies: bool = False) -> None:
    """A whole answer of the real one, changed."""

    @kind(name, usable=usable, lies=lies)
    def answer(exchange: Exchange) -> None:
        data = json.loads(exchange.ask())
        if "data" in data:  # its own errors stay what they are
            change(data)
        exchange.write(reply(json.dumps(data).encode()))


def _result(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = data.get("data", {}).get("result", [])
    return found


def _points(data: Mapping[str, Any]) -> list[list[Any]]:
    return [p for series in _result(data) for p in (series.get("values") or [series["value"]])]


def _valued(name: str, value: Any, *, lies: bool = False) -> None:
    def change(data: dict[str, Any]) -> None:
        for point in _points(data):
            point[1] = value

    _answers(name, change, lies=lies)


_valued("NaN", "NaN")
_valued("+Inf", "+Inf")
_valued("-Inf", "-Inf")
_valued("negative", "-5")
_valued("no number", "many")
_valued("numbers, not text", 5)
_valued("huge", "1.7e308", lies=True)


def _none(data: dict[str, Any]) -> None:
    data["data"]["result"] = []


def _partial(data: dict[str, Any]) -> None:
    data["warnings"] = ["receiver store-2: connection refused: no data of it"]


def _partial_info(data: dict[str, Any]) -> None:
    data["infos"] = ["PromQL info: results may be partial, one store is unavailable"]


def _twice(data: dict[str, Any]) -> None:
    data["data"]["result"] = [r for r in _result(data) for _ in range(2)]


def _two(data: dict[str, Any]) -> None:
    """A second series beside each, as of a second replica that nobody told of."""
    other = [{**r, "metric": {**r["metric"], "replica": "b"}} for r in _result(data)]
    data["data"]["result"] = [*_result(data), *other]


def _scalar(data: dict[str, Any]) -> None:
    data["data"] = {"resultType": "scalar", "result": [0, "1"]}


def _out_of_order(data: dict[str, Any]) -> None:
    for series in _result(data):
        if "values" in series:
            series["values"].reverse()
    _result(data).reverse()


def _later(data: dict[str, Any]) -> None:
    for point in _points(data):
        point[0] += 600


def _restarted(data: dict[str, Any]) -> None:
    """Counters of another life: far lower, all of them."""
    for point in _points(data):
        with contextlib.suppress(ValueError):
            point[1] = f"{float(point[1]) // 1000:g}"


def _unlabelled(data: dict[str, Any]) -> None:
    for series in _result(data):
        series["metric"] = {}


_answers("empty", _none)
_answers("partial, with warnings", _partial)
_answers("partial, with infos", _partial_info)
_answers("every series twice", _twice)
_answers("two series where one is expected", _two, usable=True)
_answers("another result type", _scalar)
_answers("out of order", _out_of_order, usable=True)
_answers("of a later time", _later)
_answers("counters reset", _restarted, usable=True)
_answers("without labels", _unlabelled)


@kind("stale")
def _stale(exchange: Exchange) -> None:
    """What was the case ten minutes ago."""
    exchange.write(reply(exchange.ask(time=f"{float(exchange.query.get('time', '0')) - 600:.3f}")))
