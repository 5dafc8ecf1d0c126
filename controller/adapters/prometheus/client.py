"""
Asking Prometheus: several questions side by side, each answered, failed or given up before one deadline.

It stands between the source and prometheus-api-client, whose defaults it takes away: no retries, no sleeping on Retry-After, no
redirects, no proxies or passwords of the environment, no address but the one that was configured, no answer without end. Its one
rule: the deadline holds. When it passes, the sockets are shut under whoever still reads, so that a server that drips costs
neither time nor a thread.
"""

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import requests
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ReadTimeoutError
from urllib3.util.retry import Retry

from controller.adapters.prometheus.answer import Series, Track, Untrusted, error_of, excerpt, read_matrix, read_vector
from controller.core.measurement import Evidence
from controller.crash import Point, reached

ANSWER_MAX = 256 * 1024
"""Bytes of an answer that is accepted and kept whole as evidence. Two arms of a hundred buckets take 16 kB."""

LARGE_MAX = 32 * 1024 * 1024
"""Bytes of an answer about traffic: raw counters, each at several times. Ten routers with three routes are 12,000 series: 3 MB of
labels."""

JOINT_MAX = 256 * 1024 * 1024
"""Bytes of an answer that is for many rollouts. How many are asked for at once is chosen so that it stays far below."""

READ_MAX = 4 * 1024 * 1024
"""Bytes that are read, for the digest, beyond those that are accepted."""

KEPT_OF_LONG = 4 * 1024
"""Bytes that are kept of an answer that is longer than `ANSWER_MAX`."""

NOTHING = b'{"data": {"result": []}}'

WORKERS = 4
"""Questions under way at a time: one that hangs must not starve the others."""


class ClientError(Exception):
    """No usable answer; says what happened instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """
    Args:
        query: PromQL.
        at: When it is evaluated.
        matrix: It is answered with series over time and not with one value each.
        large: It is about every single series: the answer may be long.
        raw: It is for many rollouts, and not read here: `Answer.body` is what came.
    """

    query: str
    at: datetime
    matrix: bool = False
    large: bool = False
    raw: bool = False

    @property
    def answer_max(self) -> int:
        """Bytes that are accepted."""
        if self.raw:
            return JOINT_MAX
        return LARGE_MAX if self.large else ANSWER_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    Args:
        series: What was answered with a vector; empty when `failure` says why it cannot be used.
        tracks: The same of a matrix.
        failure: "" for a usable answer.
        too_long: It was refused for its length.
        status: HTTP status; 0 if none came.
        body: Of a `raw` question.
        evidence: The question and the answer, verbatim; of a long answer the beginning.
    """

    series: tuple[Series, ...] = ()
    tracks: tuple[Track, ...] = ()
    failure: str
    too_long: bool = False
    status: int = 0
    body: bytes = b""
    evidence: Evidence


@dataclass(slots=True)
class _Raw:
    """What came over the wire for one question."""

    status: int = 0
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    too_long: bool = False


class PrometheusClient:
    """
    Args:
        base_url: ``http(s)://[user:password@]host[:port][/prefix]``; a password goes into the Authorization header and nowhere
            else.
        timeout_s: Deadline of all questions of one call together.

    Raises:
        ValueError: the address is none.
    """

    def __init__(self, base_url: str, *, timeout_s: float) -> None:
        parts = urlsplit(base_url.rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            # Not the address itself: it may hold a password.
            raise ValueError("the address of Prometheus must look like http://host:9090, with neither query nor fragment")
        _ = parts.port  # raises ValueError for one that is none
        if timeout_s <= 0:
            raise ValueError(f"timeout_s: {timeout_s} is not above 0")
        self.base_url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], quote(parts.path, safe="/%"), "", ""))
        self.timeout_s = timeout_s
        self._auth = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))

    def ask(self, queries: Sequence[str], at: datetime) -> dict[str, Answer]:
        """`ask_all` of instant queries at one time, each once."""
        asks = [Ask(query=q, at=at) for q in queries]
        return {ask.query: answer for ask, answer in self.ask_all(asks).items()}

    def ask_all(self, asks: Sequence[Ask], *, timeout_s: float | None = None) -> dict[Ask, Answer]:
        """
        Args:
            asks: The questions; the same one is asked once.
            timeout_s: Instead of the client's own.

        Returns:
            An answer for each question, within the deadline; never raises for anything that the server does.
        """
        return dict(self.each(asks, timeout_s=timeout_s or self.timeout_s, workers=WORKERS))

    def each(self, asks: Sequence[Ask], *, timeout_s: float, workers: int) -> Iterator[tuple[Ask, Answer]]:
        """As `ask_all`, one after the other as they come; an answer is kept here no longer than until it is given."""
        if not asks:
            return
        deadline = time.monotonic() + timeout_s
        sockets = _Sockets()
        session = _Session(self.base_url, sockets)
        pool = ThreadPoolExecutor(max_workers=min(workers, len(asks)), thread_name_prefix="prometheus")
        try:
            connect = self._connect(session)
            open_ = {pool.submit(self._ask_one, connect, session, a, deadline, timeout_s): a for a in dict.fromkeys(asks)}
            while open_:
                done, _ = wait(open_, timeout=max(0.0, deadline - time.monotonic()), return_when=FIRST_COMPLETED)
                for future in done or list(open_):
                    ask = open_.pop(future)
                    yield ask, self._collect(ask, future, timeout_s)
                    del future
        finally:
            sockets.shut()
            pool.shutdown(wait=False, cancel_futures=True)
            session.close()

    def get_json(self, path: str) -> Any:
        """
        One of the status pages, for `doctor`.

        Raises:
            ClientError: no JSON came with status 200; says what came instead.
        """
        sockets = _Sockets()
        session = _Session(self.base_url, sockets)
        watchdog = threading.Timer(self.timeout_s, sockets.shut)
        watchdog.daemon = True
        watchdog.start()
        try:
            response = session.request("GET", f"{self.base_url}/api/v1/{path}", timeout=self.timeout_s, auth=self._auth)
            if response.status_code != 200:
                raise ClientError(_refusal(session.seen()))
            return response.json()
        except requests.JSONDecodeError as exc:
            raise ClientError(f"not JSON: {excerpt(session.seen().body)}") from exc
        except (requests.RequestException, OSError) as exc:
            raise ClientError(_transport(exc, self.timeout_s, session.seen())) from exc
        finally:
            watchdog.cancel()
            sockets.shut()
            session.close()

    def _connect(self, session: "_Session") -> Any:
        connect: Any = PrometheusConnect(url=self.base_url, session=session, retry=no_retries())
        connect.auth = self._auth
        # It has just mounted an adapter of its own for this address.
        session.mount(self.base_url, session.adapter)
        return connect

    def _ask_one(self, connect: Any, session: "_Session", ask: Ask, deadline: float, budget_s: float) -> Answer:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return self._late(ask, budget_s)
        session.forget(ask.answer_max)
        failure = ""
        series: tuple[Series, ...] = ()
        tracks: tuple[Track, ...] = ()
        try:
            # Prometheus gives up a little earlier than we do, and then says why.
            params = {"time": f"{ask.at.timestamp():.3f}", "timeout": f"{max(int(left_s * 900), 1)}ms"}
            connect.custom_query(ask.query, params=params, timeout=left_s)
            raw = session.seen()
            if not raw.too_long and not ask.raw:
                series, tracks = _read(ask, raw.body)
        except PrometheusApiClientException:
            failure = _refusal(session.seen())
        except Untrusted as exc:
            failure = str(exc)
        except requests.JSONDecodeError:
            failure = _unreadable(session.seen(), ask)
        except (requests.RequestException, OSError) as exc:
            failure = _transport(exc, budget_s, session.seen())
        except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
            # The client looked into an answer that is not what it takes for granted.
            failure = _unreadable(session.seen(), ask)
        raw = session.seen()
        too_long = raw.too_long and raw.status == 200
        if too_long:
            failure, series, tracks = f"an answer of more than {ask.answer_max} bytes", (), ()
        return Answer(
            series=series,
            tracks=tracks,
            failure=failure and f"Prometheus at {self.base_url}: {failure}",
            too_long=too_long,
            status=raw.status,
            body=raw.body if ask.raw and not failure else b"",
            evidence=_evidence(ask, raw, failure),
        )

    def _collect(self, ask: Ask, future: "Future[Answer]", budget_s: float) -> Answer:
        if not future.done():
            return self._late(ask, budget_s)
        if (exc := future.exception()) is not None:
            failure = f"{type(exc).__name__}: {exc!r}"
            return Answer(failure=failure, evidence=_evidence(ask, _Raw(), failure))
        return future.result()

    def _late(self, ask: Ask, budget_s: float) -> Answer:
        failure = f"no complete answer within {budget_s:.3g} s"
        return Answer(failure=f"Prometheus at {self.base_url}: {failure}", evidence=_evidence(ask, _Raw(), failure))


def read_part(ask: Ask, body: bytes) -> Answer:
    """The answer that a question would have had by itself, from its part of a joint one."""
    failure = ""
    series: tuple[Series, ...] = ()
    tracks: tuple[Track, ...] = ()
    if too_long := len(body) > ask.answer_max:
        failure = f"an answer of more than {ask.answer_max} bytes"
    else:
        try:
            series, tracks = _read(ask, body)
        except Untrusted as exc:
            failure = str(exc)
    evidence = _evidence(ask, _Raw(body=body, digest=sha256(body).hexdigest(), too_long=too_long), failure)
    return Answer(series=series, tracks=tracks, failure=failure, too_long=too_long, status=200, evidence=evidence)


def _read(ask: Ask, body: bytes) -> tuple[tuple[Series, ...], tuple[Track, ...]]:
    """Raises Untrusted."""
    if ask.matrix:
        return (), read_matrix(body, ask.at.timestamp())
    return read_vector(body, ask.at.timestamp()), ()


class _Session(requests.Session):
    """A session that goes to one address only, and keeps what came back."""

    def __init__(self, base_url: str, sockets: "_Sockets") -> None:
        super().__init__()
        self.trust_env = False
        self.max_redirects = 0
        # What the digest is taken of is what was sent.
        self.headers["Accept-Encoding"] = "identity"
        self.adapter = _Adapter(sockets)
        self.adapters.clear()
        self.mount(base_url, self.adapter)
        self._prefix = f"{base_url}/api/v1/"
        self._local = threading.local()

    def seen(self) -> _Raw:
        """What came for this thread's last question."""
        return getattr(self._local, "raw", _Raw())

    def forget(self, answer_max: int) -> None:
        self._local.raw, self._local.answer_max = _Raw(), answer_max

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Never: requests would read a redirect's body without a bound before it looks at `max_redirects`."""
        return None

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        if not isinstance(url, str) or not url.startswith(self._prefix):
            raise requests.exceptions.InvalidURL("an address other than the configured one")
        kwargs |= {"allow_redirects": False, "stream": True}
        raw = self._local.raw = _Raw()
        reached(Point.QUERY_SENDING)
        with super().request(method, url, *args, **kwargs) as response:
            raw.status, raw.headers = response.status_code, response.headers
            self._read(response, raw, getattr(self._local, "answer_max", ANSWER_MAX))
            # Read here, with a bound, what requests would read without one. A long answer is read as JSON once, by us: the
            # library only gets to see that there is one.
            response._content = raw.body if response.status_code != 200 or len(raw.body) <= ANSWER_MAX else NOTHING
            response._content_consumed = True  # type: ignore[attr-defined]  # requests sets it the same way in Response.content
        reached(Point.QUERY_ANSWERED)
        return response

    @staticmethod
    def _read(response: requests.Response, raw: _Raw, answer_max: int) -> None:
        digest, length, kept = sha256(), 0, bytearray()
        try:
            for chunk in response.iter_content(64 * 1024):
                digest.update(chunk)
                length += len(chunk)
                if length <= answer_max:
                    kept += chunk
                elif length > answer_max + READ_MAX:
                    break
        finally:  # what came before an end that is none is evidence, too
            raw.body, raw.digest, raw.too_long = bytes(kept), digest.hexdigest(), length > answer_max


class _Adapter(HTTPAdapter):
    """Connections that can be shut from another thread, and no retries."""

    def __init__(self, sockets: "_Sockets") -> None:
        self._sockets = sockets
        super().__init__(max_retries=no_retries(), pool_maxsize=WORKERS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": _tracked(HTTPConnectionPool, self._sockets),
            "https": _tracked(HTTPSConnectionPool, self._sockets),
        }


class _Sockets:
    """The open sockets of one call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[socket] = []
        self._shut = False

    def add(self, connected: socket) -> None:
        with self._lock:
            self._open.append(connected)
            late = self._shut
        if late:
            self.shut()

    def shut(self) -> None:
        """End every read and write on them at once; none will be opened after this."""
        with self._lock:
            self._shut = True
            found, self._open = self._open, []
        for connected in found:
            with suppress(OSError):
                connected.shutdown(SHUT_RDWR)


def _tracked(pool: Any, sockets: _Sockets) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]  # the pool decides which class
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


def no_retries() -> Retry:
    return Retry(total=0, respect_retry_after_header=False)


def _evidence(ask: Ask, raw: _Raw, failure: str) -> Evidence:
    kept = raw.body[:KEPT_OF_LONG] if raw.too_long or len(raw.body) > ANSWER_MAX else raw.body
    return Evidence(
        query=ask.query,
        at=ask.at,
        # A zero byte cannot be stored as text in Postgres; the digest is of what was sent.
        answer=kept.decode("utf-8", "replace").replace("\x00", "\ufffd"),
        digest=raw.digest or sha256(b"").hexdigest(),
        note=failure,
    )


def _unreadable(raw: _Raw, ask: Ask) -> str:
    """Why a 200 answer that the library stumbled over cannot be used, in the words of our own reader."""
    try:
        if ask.matrix:
            read_matrix(raw.body, ask.at.timestamp())
        else:
            read_vector(raw.body, math.nan)
    except Untrusted as exc:
        return f"status 200 ({raw.headers.get('Content-Type', 'no content type')[:60]}), but {exc}"
    return "status 200, but an answer that cannot be read"


def _refusal(raw: _Raw) -> str:
    """What an answer with another status than 200 says."""
    text = f"HTTP status {raw.status}"
    if 300 <= raw.status < 400:
        return f"{text}, a redirect to {raw.headers.get('Location', '')[:120]!r}, which is not followed"
    if wait_s := raw.headers.get("Retry-After"):
        text += f", Retry-After {wait_s[:40]!r}"
    with suppress(ValueError, RecursionError):
        data = json.loads(raw.body)
        if isinstance(data, dict) and (said := error_of(data)):
            return f"{text}: {said}"
    return f"{text}: {excerpt(raw.body)}"


def _transport(exc: Exception, timeout_s: float, raw: _Raw) -> str:
    """A failure below HTTP in a few words; the library's own texts repeat the address and the whole query."""
    reason: BaseException = exc
    while (inner := _cause(reason)) is not None:
        reason = inner
    if isinstance(exc, requests.Timeout) or isinstance(reason, TimeoutError | ReadTimeoutError):
        return f"no complete answer within {timeout_s:.3g} s"
    if raw.status:
        return f"HTTP status {raw.status}, but the answer broke off after {len(raw.body)} bytes ({type(reason).__name__})"
    return f"cannot be reached: {type(reason).__name__}: {str(reason)[:200]!r}"


def _cause(exc: BaseException) -> BaseException | None:
    for nested in (getattr(exc, "reason", None), *exc.args, exc.__cause__):
        if isinstance(nested, BaseException) and nested is not exc:
            return nested
    return None
