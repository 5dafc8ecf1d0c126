"""A server on loopback that answers as a test says: whole answers, and bytes for what no HTTP library would send."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

Asked = dict[str, str]
"""The parameters of a request, and its path and headers (in small letters, after ``header:``)."""

Reply = Callable[[Asked, Callable[[bytes], None], threading.Event], None]
"""Writes the answer to one request; the event is set when the test is over."""


class FaultServer(socketserver.ThreadingTCPServer):
    """One request for each connection; `asked` keeps what came."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked, self.over = reply, list[Asked](), threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, FaultServer)
        line = self.rfile.readline().decode("latin-1").split(" ")
        if len(line) < 2:
            return
        parts = urlsplit(line[1])
        asked: Asked = {key: values[0] for key, values in parse_qs(parts.query).items()} | {"path": parts.path}
        while (header := self.rfile.readline().decode("latin-1").strip()) != "":
            name, _, value = header.partition(":")
            asked[f"header:{name.lower()}"] = value.strip()
        server.asked.append(asked)
        with suppress(OSError):  # the client has given up, which is what some tests are about
            server.reply(asked, self._write, server.over)

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()


@contextmanager
def fault_server(reply: Reply) -> Iterator[FaultServer]:
    with FaultServer(reply) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def http(status: str, body: bytes | str, *headers: str, kind: str = "application/json", length: int | None = None) -> bytes:
    """A whole answer; `length` lies about the body's."""
    data = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(data) if length is None else length}",
        "Connection: close",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + data


def always(answer: bytes) -> Reply:
    def reply(asked: Asked, write: Callable[[bytes], None], over: threading.Event) -> None:
        write(answer)

    return reply


def vector(asked: Asked, *series: tuple[dict[str, str], str], **more: Any) -> bytes:
    """An answer with these series at the time that was asked for; `more` goes beside ``data``."""
    result = [{"metric": labels, "value": [float(asked["time"]), value]} for labels, value in series]
    return http("200 OK", json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}, **more}))
