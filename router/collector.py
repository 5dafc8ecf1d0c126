"""
The road from spans to a collector: OpenTelemetry's SDK, its batches and its OTLP exporter, held so that they never touch a request.

    wanted(config, environ) -> Wanted | None    what is asked for; None: no tracing, and the SDK is not even imported
    opened(...)                                  a `Tracer`, for as long as the router runs

Spans wait in memory and are sent by a thread of the SDK's. Its one rule: a collector that is dead, slow or refuses costs spans and
nothing else. It is said once in the log when that begins and once when it ends, and every span is counted: exported, failed, dropped.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from router import conventions
from router.attempt import Target
from router.config import RouterConfig
from router.logs import get_logger
from router.metrics import RouterMetrics

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from router.tracing import Tracer

log = get_logger()

ENDPOINT_ENVS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_ENVS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
CAPTURE_ENV = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
EXPORTERS = ("otlp", "console", "none")
SAMPLERS = tuple(f"{prefix}{name}" for prefix in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio"))
QUEUE = 2048
"""Spans that wait at most: OTEL_BSP_MAX_QUEUE_SIZE's default in the specification."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """
    Args:
        endpoint: From router.yaml, where the environment names none; with the signal's path.
        console: To stderr instead.
        ratio: Share of traces that begin here, where the environment names no sampler.
        queue: Spans that wait at most.
    """

    endpoint: str | None
    console: bool
    ratio: float
    queue: int
    service_name: str
    capture: bool
    propagated: bool
    flush_s: float


def wanted(config: RouterConfig, environ: Mapping[str, str]) -> Wanted | None:
    """
    Raises:
        ValueError: a variable of the environment cannot be used; the message names it and its value.
    """
    spec = config.telemetry

    def value(*envs: str) -> str:
        return next((found for env in envs if (found := environ.get(env, "").strip())), "")

    exporter = value("OTEL_TRACES_EXPORTER")
    if exporter and exporter not in EXPORTERS:
        raise ValueError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not one of {', '.join(EXPORTERS)}")
    asked = bool(spec.traces or spec.endpoint or exporter or value(*ENDPOINT_ENVS))
    if spec.traces is False or not asked or exporter == "none" or value("OTEL_SDK_DISABLED").lower() == "true":
        return None
    if (protocol := value(*PROTOCOL_ENVS)) not in ("", "http/protobuf"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r}; this router speaks http/protobuf")
    for env in ENDPOINT_ENVS:
        if (given := value(env)) and (urlsplit(given).scheme not in ("http", "https") or not urlsplit(given).hostname):
            raise ValueError(f"{env}: {given!r} is not an address (write http://host:4318)")
    if (sampler := value("OTEL_TRACES_SAMPLER")) and sampler not in SAMPLERS:
        raise ValueError(f"OTEL_TRACES_SAMPLER: {sampler!r} is not one of {', '.join(SAMPLERS)}")
    share = value("OTEL_TRACES_SAMPLER_ARG")
    if sampler.endswith("ratio") and share and not _is_share(share):
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG: {share!r} is not a number within 0..1")
    queue = value("OTEL_BSP_MAX_QUEUE_SIZE") or str(QUEUE)
    if not queue.isdigit() or int(queue) < 1:
        raise ValueError(f"OTEL_BSP_MAX_QUEUE_SIZE: {queue!r} is not a whole number of at least 1")
    capture = value(CAPTURE_ENV).lower() in ("true", "span_only", "span_and_event")
    endpoint = None if spec.endpoint is None or value(*ENDPOINT_ENVS) else f"{spec.endpoint}/v1/traces"
    return Wanted(
        endpoint=endpoint,
        console=exporter == "console",
        ratio=spec.sample,
        queue=int(queue),
        service_name=spec.service_name,
        capture=capture and spec.capture_content,
        propagated=spec.propagate,
        flush_s=spec.flush.total_seconds(),
    )


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


@asynccontextmanager
async def opened(
    asked: Wanted | None,
    config: RouterConfig,
    targets: Mapping[str, Target],
    metrics: RouterMetrics,
    environ: Mapping[str, str],
    redacted: Callable[[Any], Any],
) -> "AsyncIterator[Tracer | None]":
    """
    A tracer, or None where none is asked for. What is in its queue at the end is sent within ``telemetry.flush``, and lost after it.

    The SDK itself reads the process's own environment for what is not in `Wanted`: headers, timeouts, compression, certificates,
    the sampler, resource attributes, batches, limits.
    """
    if asked is None:
        yield None
        return
    # Half a second of imports and some megabytes, for those who trace.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    from router.tracing import Tracer

    said = _Said()
    tally = _Tally(metrics, asked.queue)

    class Watched(SpanExporter):
        """The SDK's exporter, and what becomes of each batch."""

        def __init__(self, inner: SpanExporter, to: str) -> None:
            self._inner, self._to, self._failing = inner, to, False

        def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
            tally.taken(len(spans))
            try:
                result = self._inner.export(spans)
            except Exception as exc:
                said.last = f"{type(exc).__name__}: {exc}"
                result = SpanExportResult.FAILURE
            failed = result is not SpanExportResult.SUCCESS
            tally.ended(len(spans), failed=failed)
            if failed and not self._failing:
                log.warning("telemetry_export_failed", collector=self._to, detail=said.last[:300])
            elif self._failing and not failed:
                log.info("telemetry_export_back", collector=self._to)
            self._failing = failed
            return result

        def shutdown(self) -> None:
            self._inner.shutdown()

    class Counting(BatchSpanProcessor):
        def on_end(self, span: "ReadableSpan") -> None:
            if span.context is not None and span.context.trace_flags.sampled:
                tally.given()
            super().on_end(span)

    said.listen()
    try:
        inner: SpanExporter = ConsoleSpanExporter(out=_stderr()) if asked.console else OTLPSpanExporter(endpoint=asked.endpoint)
        exporter = Watched(inner, "stderr" if asked.console else _shown(asked, environ))
        theirs = OTELResourceDetector().detect().attributes
        ours = {
            "service.name": asked.service_name,
            "deployment.environment.name": config.environment,
        }
        resource = Resource.create({name: value for name, value in ours.items() if name not in theirs})
        sampler = None if environ.get("OTEL_TRACES_SAMPLER") else ParentBasedTraceIdRatio(asked.ratio)
        provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(Counting(exporter, max_queue_size=asked.queue))
        known = {name for route in config.routes for name in route.match.model} | set(targets) | {"auto"}
        tracer = Tracer(
            provider.get_tracer("penstock.router"),
            conventions.names(environ),
            targets,
            known,
            config.environment,
            redacted,
            capture=asked.capture,
            propagated=asked.propagated,
        )
        log.info("telemetry_on", collector=exporter._to, content=asked.capture)
        try:
            yield tracer
        finally:
            await _within(asked.flush_s, provider.shutdown)
            # A retry that sleeps is woken by this; a call that hangs is left to a thread that ends with the process.
            inner.shutdown()
            if lost := tally.lost():
                log.warning("telemetry_lost", spans=lost)
    finally:
        said.deaf()


async def _within(seconds: float, work: Callable[[], None]) -> None:
    """Not `asyncio.to_thread`: the interpreter waits for its threads at the end, however long they take."""
    done, loop = asyncio.Event(), asyncio.get_running_loop()

    def run() -> None:
        try:
            work()
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="telemetry-flush", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            await done.wait()
    except TimeoutError:
        return


class _Tally:
    """Counts spans from the loop's thread and the exporter's."""

    def __init__(self, metrics: RouterMetrics, queue: int) -> None:
        self._spans, self._queue = metrics.spans, queue
        self._lock = threading.Lock()
        self._waiting = self._out = 0

    def given(self) -> None:
        with self._lock:
            if self._waiting < self._queue:
                self._waiting += 1
                return
        # The SDK drops the oldest then.
        self._spans["dropped"].inc()

    def taken(self, count: int) -> None:
        with self._lock:
            self._waiting = max(0, self._waiting - count)
            self._out += count

    def ended(self, count: int, *, failed: bool) -> None:
        with self._lock:
            self._out -= count
        self._spans["failed" if failed else "exported"].inc(count)

    def lost(self) -> int:
        with self._lock:
            return self._waiting + self._out


class _Said(logging.Handler):
    """
    What the SDK says through the standard library, which would else print a line for each failed batch. The last of it explains a
    failure; what is no failure to export goes to the router's log, each sentence once.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._once: set[str] = set()
        self._logger = logging.getLogger("opentelemetry")

    def emit(self, record: logging.LogRecord) -> None:
        if ".export" in record.name or "_shared_internal" in record.name:
            self.last = record.getMessage()
        elif record.msg not in self._once:
            self._once.add(str(record.msg))
            log.warning("telemetry_sdk", detail=record.getMessage()[:300])

    def listen(self) -> None:
        self._logger.addHandler(self)
        self._logger.propagate = False

    def deaf(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True


def _shown(asked: Wanted, environ: Mapping[str, str]) -> str:
    """Where spans go, without what may stand before the host."""
    given = asked.endpoint or next((environ[env] for env in ENDPOINT_ENVS if environ.get(env)), "http://localhost:4318")
    parts = urlsplit(given)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _stderr() -> Any:
    import sys

    return sys.stderr
