"""
A proxy in front of Postgres that cuts the line where a test says so.

Its one rule: it looks for the word COMMIT and understands nothing else of the protocol.
"""

import contextlib
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


class CuttingProxy:
    """
    TCP on a free port of loopback, in front of the Unix socket of an embedded server.

    `cut_commit` is ``"before"`` (the COMMIT never reaches the server) or ``"after"`` (the server commits, its answer is lost); each
    cuts one commit, and with `only` one of a transaction that said these words. `delay_s` holds up everything that is sent. `cut_all` ends every connection there is and, while `refuse` is set, every one that comes.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket_path = str(Path(parse_qs(parts.query)["host"][0]) / ".s.PGSQL.5432")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._listener.getsockname()[1]
        self._database = parts.path.lstrip("/")
        self._open: set[socket.socket] = set()
        self.cut_commit: str | None = None
        self.only = b""
        self.delay_s = 0.0
        self.refuse = False
        self.swallow_notify = False

    def url(self, user: str = "penstock_app") -> str:
        return f"postgresql://{user}@127.0.0.1:{self._port}/{self._database}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.close()
        self.cut_all()

    def cut_all(self) -> None:
        for one in list(self._open):
            _close(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._socket_path)
            self._open |= {client, server}
            state = {"cut": False}
            threading.Thread(target=self._to_server, args=(client, server, state), daemon=True).start()
            threading.Thread(target=self._to_client, args=(server, client, state), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, state: dict[str, bool]) -> None:
        said = False
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                time.sleep(self.delay_s)
                said = said or self.only in data
                if b"COMMIT\0" not in data:
                    server.sendall(data)
                    continue
                if said and self.cut_commit is not None:
                    how, self.cut_commit = self.cut_commit, None
                    if how == "before":
                        break
                    state["cut"] = True
                said = False
                server.sendall(data)
        _close(client)
        _close(server)

    def _to_client(self, server: socket.socket, client: socket.socket, state: dict[str, bool]) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if state["cut"]:
                    break
                if self.swallow_notify and data[:1] == b"A":
                    continue
                client.sendall(data)
        _close(client)
        _close(server)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
