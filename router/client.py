"""
The router inside the application's own process, in the shape of OpenAI's clients.

    async with AsyncRouter("router.yaml") as router:
        answer = await router.chat.completions.create(model="chat", messages=[...])

    with Router("router.yaml") as router:
        answer = router.chat.completions.create(model="chat", messages=[...])

Its one rule: a request takes the way that one over HTTP takes, through `app` and all behind it; only the sockets are missing. `Router` is
`AsyncRouter` on a thread of its own, and decides nothing.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import orjson
from prometheus_client import CollectorRegistry

from flagspec import Snapshot
from router.answers import Answer, Served, plain
from router.client_errors import APIError, APITimeoutError, RouterError, status_error
from router.config import Flags, RouterConfig, read_config
from router.pairs import PairSink
from router.server import create_app
from router.sse import SseSplitter, data_of

_T = TypeVar("_T")
_Messages = AsyncGenerator[dict[str, Any], None]

_ABSENT = ("NotGiven", "Omit")
"""What OpenAI's library has for arguments that were not given; applications pass it on."""


class AsyncRouter:
    """
    Belongs to one event loop. It starts with `async with`, `start()` or its first request, and ends with `close()`.

    Args:
        config: A configuration, or the path of a router.yaml.
        flags: In place of the configuration's source of flags: an address, ``file:flags.json``, or flags that the application knows
            and changes by `take_flags`.
        api_key: Sent as ``Authorization`` of every request: it goes to providers without ``api_key_env``, and is a unit.
        default_headers: Of every request.
        pair_sinks: For shadow pairs, beside those of the configuration.
        environ: Where providers' keys are looked up.

    Attributes:
        chat.completions, responses, embeddings: `create`.
        models: `list` and `retrieve`.

    Raises:
        SpecError: the file cannot be used.
        FlagSpecError, ValueError: its flags cannot.
    """

    def __init__(
        self,
        config: RouterConfig | Path | str,
        *,
        flags: str | Snapshot | None = None,
        api_key: str | None = None,
        default_headers: Mapping[str, str] | None = None,
        pair_sinks: Sequence[PairSink] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        directory = None if isinstance(config, RouterConfig) else Path(config).parent
        parsed = config if isinstance(config, RouterConfig) else read_config(Path(config))
        snapshot = flags if isinstance(flags, Snapshot) else None
        if isinstance(flags, str):
            kept = parsed.flags.model_dump() if parsed.flags is not None else {}
            parsed = parsed.model_copy(update={"flags": Flags.model_validate({**kept, "source": flags})})
        self._app = create_app(parsed, environ=environ, directory=directory, pair_sinks=pair_sinks, snapshot=snapshot)
        self._headers = dict(default_headers or {}) | ({"authorization": f"Bearer {api_key}"} if api_key else {})
        self._stack = AsyncExitStack()
        self._starting: asyncio.Future[None] | None = None
        self._closed = False
        self.chat = Chat(self)
        self.responses = Endpoint(self, "/v1/responses")
        self.embeddings = Endpoint(self, "/v1/embeddings")
        self.models = Models(self)

    @property
    def metrics(self) -> CollectorRegistry:
        """What a router of its own serves at ``/metrics``; ``prometheus_client.REGISTRY.register(router.metrics)`` adds it to the host's."""
        return self._app.metrics.registry

    async def start(self) -> None:
        """Opens the connections and asks for flags; a second call waits for the first one."""
        if self._closed:
            raise RouterError("the router is closed")
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._stack.enter_async_context(self._app.running()))
        await asyncio.shield(self._starting)

    async def close(self) -> None:
        """Lets copies and pairs finish for as long as the configuration says, and closes the connections."""
        self._closed = True
        if self._starting is not None:
            await asyncio.wait([self._starting])
        await self._stack.aclose()

    async def take_flags(self, snapshot: Snapshot) -> bool:
        """Brings newer flags into force; False where those in force are as new."""
        await self.start()
        return self._app.flags.take_snapshot(snapshot)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> "Answer | AsyncStream":
        """
        Args:
            timeout: Seconds until the answer; of a stream, until its first token.

        Raises:
            APIStatusError: as over HTTP.
            APITimeoutError: nobody answered in time; the provider's work is cancelled.
        """
        await self.start()
        raw = b"" if body is None else orjson.dumps(body, default=plain)
        messages = self._messages(method, path, raw, {**self._headers, **(headers or {})})
        try:
            async with asyncio.timeout(timeout):
                return await _answer(messages, stream=body is not None and bool(body.get("stream")))
        except TimeoutError as exc:
            await messages.aclose()
            raise APITimeoutError(f"No answer within {timeout:g}s.") from exc
        except BaseException:
            await messages.aclose()
            raise

    async def _messages(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> _Messages:
        """What the application sends, message by message; closing it is what a closed connection is over HTTP."""
        sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=1)
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not parts:
                await asyncio.Event().wait()
            return parts.pop()

        async def run() -> None:
            try:
                await self._app(scope, receive, sent.put)  # type: ignore[arg-type]
            finally:
                await sent.put(None)

        own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        given = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": [*own, *given], "query_string": b""}
        task = asyncio.create_task(run(), name="router")
        try:
            while (message := await sent.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Endpoint:
    """
    One that answers.

    Args:
        of: The router.
    """

    def __init__(self, of: AsyncRouter, path: str) -> None:
        self._of, self._path = of, path

    async def create(
        self,
        *,
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **body: Any,
    ) -> Any:
        """
        Args:
            extra_headers: As a request over HTTP would have them: ``x-penstock-unit``, say.
            extra_body: Beside the other fields, and before them: ``{"penstock": {"optimize_for": "cost"}}``.
            timeout: Seconds; see `AsyncRouter.request`.
            body: The fields of the request. ``stream=True`` asks for events.

        Returns:
            `Answer`; of a stream an `AsyncStream`, which whoever does not read it to its end must close.

        Raises:
            APIError: nobody answered, or the request is wrong; of a stream also while it is read.
        """
        fields = {name: value for name, value in body.items() if type(value).__name__ not in _ABSENT}
        return await self._of.request("POST", self._path, {**fields, **(extra_body or {})}, extra_headers, timeout)


class Chat:
    def __init__(self, of: AsyncRouter) -> None:
        self.completions = Endpoint(of, "/v1/chat/completions")


class Models:
    def __init__(self, of: AsyncRouter) -> None:
        self._of = of

    async def list(self) -> Any:
        """The names that can be asked for; iterating the answer gives the models."""
        return await self._of.request("GET", "/v1/models")

    async def retrieve(self, model: str) -> Any:
        """Raises NotFoundError."""
        return await self._of.request("GET", f"/v1/models/{model}")


class AsyncStream:
    """
    The events of an answer. Read it to the end, or close it (`async with`), which cancels the provider's work.

    Attributes:
        penstock: Who answers.
    """

    def __init__(self, messages: _Messages, served: Served) -> None:
        self.penstock = served
        self._messages = messages
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[Answer]:
        return self

    async def __anext__(self) -> Answer:
        return await anext(self._events)

    async def close(self) -> None:
        await self._events.aclose()
        await self._messages.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self) -> AsyncGenerator[Answer, None]:
        splitter = SseSplitter()
        async for message in self._messages:
            for raw in splitter.feed(message["body"]):
                data = data_of(raw)
                if data is None or data == b"[DONE]":
                    continue
                event = orjson.loads(data)
                if error := event.get("error"):
                    await self._messages.aclose()
                    raise APIError(str(error.get("message")), error)
                yield Answer(event)


async def _answer(messages: _Messages, *, stream: bool) -> Answer | AsyncStream:
    start = await anext(messages)
    headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    served, status = Served.of(headers), start["status"]
    if stream and status == 200:
        return AsyncStream(messages, served)
    content = b"".join([message["body"] async for message in messages])
    data = orjson.loads(content)
    if status != 200:
        error = data.get("error") if isinstance(data, dict) else None
        raise status_error(status, error if isinstance(error, dict) else None, headers)
    return Answer(data, served)


class Router:
    """
    `AsyncRouter` for code that does not await; the arguments are the same. It runs on a thread of its own from its creation until
    `close()`, and may be used by many threads, but not across a fork.
    """

    def __init__(self, config: RouterConfig | Path | str, **arguments: Any) -> None:
        self._router = AsyncRouter(config, **arguments)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="penstock-router", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        try:
            self._wait(self._router.start())
        except BaseException:
            self.close()
            raise
        self.chat = _Blocking(self._router.chat, self._wait)
        self.responses = _Blocking(self._router.responses, self._wait)
        self.embeddings = _Blocking(self._router.embeddings, self._wait)
        self.models = _Blocking(self._router.models, self._wait)

    @property
    def metrics(self) -> CollectorRegistry:
        return self._router.metrics

    def take_flags(self, snapshot: Snapshot) -> bool:
        return self._wait(self._router.take_flags(snapshot))

    def close(self) -> None:
        if self._loop.is_closed():
            return
        atexit.unregister(self.close)
        try:
            self._wait(self._router.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop.is_closed():
            work.close()
            raise RouterError("the router is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while waiting: the request shall not go on without anybody.
            future.cancel()
            raise


class _Blocking:
    """What an `AsyncRouter` has, with its coroutines waited for and its streams turned into `Stream`."""

    def __init__(self, target: Any, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._target, self._wait_for = target, wait

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return _Blocking(found, self._wait_for)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = self._wait_for(found(*args, **kwargs))
            return Stream(made, self._wait_for) if isinstance(made, AsyncStream) else made

        return call


class Stream:
    """An `AsyncStream` for code that does not await."""

    def __init__(self, stream: AsyncStream, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self.penstock = stream.penstock
        self._stream, self._wait_for = stream, wait

    def __iter__(self) -> Iterator[Answer]:
        return self

    def __next__(self) -> Answer:
        event: Answer | None = self._wait_for(self._next())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        self._wait_for(self._stream.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _exc: BaseException | None, _at: TracebackType | None) -> None:
        self.close()

    async def _next(self) -> Answer | None:
        return await anext(self._stream, None)
