"""
``router.yaml``: what it may say, and what of it contradicts itself.

Its one rule: every name that is used is defined, so that nothing is found missing by a user's request.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from router.presets import PRESETS, PresetName
from router.reasoning import Style
from specfile import Inconsistent, Loc, Money, PositiveDuration, Ratio, parse

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$"
_LISTEN = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>\d{1,5})", re.ASCII)

Name = Annotated[str, Field(pattern=_NAME)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
UnitKind = Literal["user", "tenant", "session", "request"]


def split_listen(text: str) -> tuple[str, int]:
    """
    Host and port of ``127.0.0.1:8421`` or ``[::1]:8421``; port 0 lets the system choose.

    Raises:
        ValueError: it is neither.
    """
    match = _LISTEN.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{text!r} is not an address to listen on (write 127.0.0.1:8421)")
    return match["v6"] or match["host"], int(match["port"])


def _listen(text: str) -> str:
    split_listen(text)
    return text


def _http_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", text):
        raise ValueError(f"{text!r} is not an address (write https://host/v1)")
    return text.rstrip("/")


def _address(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s#]*", text):
        raise ValueError(f"{text!r} is not an address (write https://host/path)")
    return text


def _source(text: str) -> str:
    return text if re.fullmatch(r"file:.+", text) else _http_url(text)


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Provider(_Spec):
    """
    Somebody who serves models.

    Args:
        preset: Fills in what is left out, for a provider that is known (`router.presets`).
        base_url: Up to and including the version (``https://api.openai.com/v1``).
        api_key_env: The environment variable that holds the key. Without one, the client's own Authorization is forwarded.
        api_key_header: Where the key stands: as a bearer token, or by itself in another header.
        headers: Sent with each call: names and values that are no secrets.
        endpoints: What it serves; requests for others are not sent to it.
        drop: Fields of a request's body that it refuses; they are left out.
    """

    name: Name
    preset: PresetName | None = None
    base_url: Annotated[str, AfterValidator(_http_url)] = ""
    api_key_env: EnvName | None = None
    api_key_header: Literal["authorization", "x-api-key", "api-key"] = "authorization"
    headers: dict[HeaderName, Annotated[str, Field(pattern=r"^[\x20-\x7e]*$")]] = {}
    endpoints: Annotated[list[Literal["chat", "responses", "embeddings"]], Field(min_length=1)] = [
        "chat", "responses", "embeddings",
    ]  # fmt: skip
    drop: list[Annotated[str, Field(min_length=1)]] = []

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, dict) else None
        if not isinstance(name, str) or name not in PRESETS:
            return given
        preset = PRESETS[cast(PresetName, name)]
        known = {"base_url": preset.base_url, "api_key_env": preset.api_key_env, "endpoints": list(preset.endpoints)}
        return {**known, "drop": list(preset.drop), **given}


class Timeout(_Spec):
    """Limits of one attempt: of a whole JSON answer, of a whole stream, and of the wait for a stream's first content token."""

    request: PositiveDuration = timedelta(seconds=30)
    stream: PositiveDuration = timedelta(seconds=90)
    first_token: PositiveDuration | None = None


class Deadline(_Spec):
    """
    Limits of a whole request, all its attempts together; by default twice the longest timeout among its models.

    Args:
        request: Of a JSON answer.
        stream: Of a stream, up to its last event.
    """

    request: PositiveDuration | None = None
    stream: PositiveDuration | None = None


class Limits(_Spec):
    """
    How much of a model may be used.

    Args:
        requests_per_s: Calls a second; one second's worth of them may come at once.
        concurrency: Calls under way at once.
        tokens_per_min: Tokens in and out; the input is charged before the call, the output after it.
        queue: How many requests may wait for their turn.
        max_wait: How long one may wait.
    """

    requests_per_s: PositiveFloat | None = None
    concurrency: PositiveInt | None = None
    tokens_per_min: PositiveInt | None = None
    queue: NonNegativeInt = 100
    max_wait: PositiveDuration = timedelta(seconds=2)


class Price(_Spec):
    """Per million tokens. Cached input costs what other input does unless it has its own price."""

    input_per_mtok: Money
    output_per_mtok: Money
    cached_input_per_mtok: Money | None = None


class Breaker(_Spec):
    """
    When a model is left alone for a while.

    Args:
        failure_ratio: Share of failed answers in the window from which on it is not asked any more.
        window: Over how long they are counted, up to now.
        min_requests: Fewer answers than this in the window open nothing.
        open_for: How long until one request may probe, and how long a probe is waited for until the next.
    """

    failure_ratio: Ratio = 0.5
    window: PositiveDuration = timedelta(minutes=2)
    min_requests: PositiveInt = 10
    open_for: PositiveDuration = timedelta(seconds=30)


class Model(_Spec):
    """
    One model.

    Args:
        name: What clients, routes and flags call it.
        upstream_name: What its provider calls it, where that differs.
        context_tokens: What goes into it, question and answer together; a longer request is not sent to it.
        max_output_tokens: Its longest answer; a client's larger limit is lowered to it.
        output_field: The only name it knows for that limit; by default the one that the client uses.
        tools, streaming: Whether it can; a request that needs what it cannot is not sent to it.
        reasoning: In whose words it is told how much to reason; by default OpenAI's, and clients' own fields as they are.
        quality: How good its answers are on a scale of one's own, for ``optimize_for: quality``.
    """

    name: Name
    provider: Name
    upstream_name: str | None = None
    timeout: Timeout = Timeout()
    context_tokens: PositiveInt | None = None
    max_output_tokens: PositiveInt | None = None
    output_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    tools: bool = True
    streaming: bool = True
    reasoning: Style | None = None
    quality: NonNegativeFloat | None = None
    limits: Limits | None = None
    price: Price | None = None
    breaker: Breaker | None = None


class Match(_Spec):
    model: Annotated[list[Name], Field(min_length=1)]


class Route(_Spec):
    """
    Which requests go where.

    Args:
        match: The model names a client may ask for.
        flag: Whose word decides; without one the default answers.
        default: Answers as long as the flag was never seen.
        fallbacks: Tried in this order when the chosen model fails before its first token.
        last_resort: Asked when nobody else has answered, even if its circuit breaker is open.
        unit: What is bucketed; by default what the flag says. See `router.selection.unit_of`.
    """

    name: Name
    match: Match
    flag: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] | None = None
    default: Name
    fallbacks: list[Name] = []
    last_resort: Name | None = None
    unit: UnitKind | None = None

    def others(self, assigned: str) -> list[str]:
        """Who may answer instead of a model, each once; the last resort may be that model itself."""
        last = [self.last_resort] if self.last_resort else []
        return list(dict.fromkeys([*(name for name in self.fallbacks if name != assigned), *last]))


class Flags(_Spec):
    """
    Where flags come from.

    Args:
        source: The controller's ``http://.../flags/v1``, or ``file:flags.json``: one snapshot, relative to router.yaml.
        stale_after: Silence of the source after which `penstock_flag_stale` is 1.
        on_stale: What holds then: the last flags (keep), or the control for everybody until the source is back (control).
        ready_wait: How long `/readyz` says no while the first snapshot is awaited.
        stream_silence: A stream without a byte for so long at its start does not work here: long polls then.
    """

    source: Annotated[str, AfterValidator(_source)]
    stale_after: PositiveDuration = timedelta(seconds=60)
    on_stale: Literal["keep", "control"] = "keep"
    ready_wait: PositiveDuration = timedelta(seconds=5)
    stream_silence: PositiveDuration = timedelta(seconds=5)


class ShadowBudget(_Spec):
    """
    What mirrored copies may use, of one router with all its workers; when a part of it is used up, no further ones are made.

    Args:
        per_minute, per_day: In USD.
        tokens_per_minute, tokens_per_day: In and out.
    """

    per_minute: Money | None = None
    per_day: Money | None = None
    tokens_per_minute: PositiveInt | None = None
    tokens_per_day: PositiveInt | None = None


class PairsFile(_Spec):
    """
    Pairs in a file, one a line.

    Args:
        path: Relative to router.yaml.
        max_bytes: Of one file; then it becomes ``PATH.1``, and that one ``PATH.2``.
        keep: How many old ones stay.
    """

    path: Annotated[str, Field(min_length=1)]
    max_bytes: PositiveInt = 64 * 1024 * 1024
    keep: PositiveInt = 4


class PairsHttp(_Spec):
    """
    Pairs to an address, in batches.

    Args:
        url: Gets ``POST``; 2xx takes the batch.
        token_env: The environment variable that holds a bearer token.
        batch: How many pairs go together at most.
        max_wait: How long the first of a batch waits for others.
        timeout: Of one try.
        attempts: Tries before a batch is given up, 0.2 to 10 s apart.
    """

    url: Annotated[str, AfterValidator(_address)]
    token_env: EnvName | None = None
    batch: PositiveInt = 50
    max_wait: PositiveDuration = timedelta(seconds=1)
    timeout: PositiveDuration = timedelta(seconds=5)
    attempts: PositiveInt = 5


class Pairs(_Spec):
    """
    Where the two answers of a mirrored request go: to everyone of those named.

    Args:
        file, http: See there.
        python: Code of one's own, ``package.module:factory``; it is called with `options` and returns a `router.pairs.PairSink`.
        options: For that code.
        content: Whether questions and answers go along, redacted; by default digests, lengths and numbers only.
        text_bytes: The longest text that goes along, in characters; of an answer as sent, 16 times as many bytes are kept.
        queue: How many pairs wait for delivery at most, in each sink.
        digest_key_env: The environment variable that holds a key for the digests.
    """

    file: PairsFile | None = None
    http: PairsHttp | None = None
    python: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    options: dict[str, Any] = {}
    content: bool = False
    text_bytes: Annotated[int, Field(ge=1024, le=1024 * 1024)] = 16 * 1024
    queue: PositiveInt = 1000
    digest_key_env: EnvName | None = None


class Shadow(_Spec):
    """
    Bounds of mirrored copies, and what becomes of their answers.

    Args:
        concurrency: Copies under way at once; further ones are skipped and counted.
        drain: How long shutdown waits for copies under way, and then for pairs.
        budget: What they may use; without it they are part of `budgets`.
        pairs: Where their answers go, beside the user's; without it they are discarded.
    """

    concurrency: PositiveInt = 64
    drain: PositiveDuration = timedelta(seconds=5)
    budget: ShadowBudget | None = None
    pairs: Pairs | None = None


class Drills(_Spec):
    """
    Synthetic failures of the candidate, which exercise the fallback. Without this part they are refused.

    Args:
        token_env: The environment variable that holds the token of those who may send them.
    """

    token_env: EnvName


class Caps(_Spec):
    """
    What one request may use, whoever sends it.

    Args:
        input_tokens: Estimated; a longer request is refused.
        output_tokens: The longest answer; a client's larger limit is lowered, and where it set none this one is.
        cost_per_request: Estimated for the input; the answer is limited to what is left of it.
    """

    input_tokens: PositiveInt | None = None
    output_tokens: PositiveInt | None = None
    cost_per_request: Money | None = None


class Budget(_Spec):
    """
    What one environment may spend in a day (UTC), by each process of the router.

    Args:
        on_exceed: Go down to a cheaper model, or refuse.
        downgrade_to: Answers then in place of every model that costs more.
    """

    environment: Name
    per_day: Money
    on_exceed: Literal["downgrade", "refuse"] = "downgrade"
    downgrade_to: Name | None = None


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as exc:
        raise ValueError(f"{text!r} is not a regular expression: {exc}") from exc
    return text


class Redact(_Spec):
    """
    What is taken out of log lines and error texts.

    Args:
        logs: Whether log lines are redacted; error texts always are.
        patterns: What is looked for.
        custom: Patterns of one's own: a name, which stands in place of what is found, and a regular expression.
        engine: Presidio's recognisers look as well, after the patterns.
        countries: Whose numbers Presidio looks for, beside those that know no country (``us``, ``uk``).
        score: What Presidio has to be sure of, 0..1.
        use: A function of one's own from text to text, called last (``package.module:function``).
    """

    logs: bool = True
    patterns: list[Literal["email", "phone", "card", "api_key", "ip"]] = ["email", "phone", "card", "api_key", "ip"]
    custom: dict[Name, Annotated[str, AfterValidator(_pattern)]] = {}
    engine: Literal["builtin", "presidio"] = "builtin"
    countries: list[Annotated[str, Field(pattern=r"^[a-z]{2}$")]] = []
    score: Annotated[float, Field(ge=0, le=1)] = 0.4
    use: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None


class Telemetry(_Spec):
    """
    Spans; where they go is otherwise said by OpenTelemetry's own variables, which win over this.

    Args:
        traces: Whether spans are made; by default where `endpoint` or the environment names a collector. No is no, whatever it names.
        endpoint: Of a collector that speaks OTLP over HTTP (``http://collector:4318``).
        sample: Share of the traces that begin at this router; a trace that began elsewhere keeps what was decided there.
        service_name: As the collector shows this router.
        propagate: Whether providers are sent ``traceparent``, ``tracestate`` and ``baggage``.
        capture_content: Whether prompts and answers may enter spans, redacted; the environment must ask for it as well.
        flush: How long shutdown waits for the collector.
    """

    traces: bool | None = None
    endpoint: Annotated[str, AfterValidator(_http_url)] | None = None
    sample: Ratio = 1.0
    service_name: Name = "penstock-router"
    propagate: bool = True
    capture_content: bool = False
    flush: PositiveDuration = timedelta(seconds=5)


class RouterConfig(_Spec):
    """
    The whole file.

    Args:
        fallback_enabled: Whether anybody else is asked when the assigned model fails.
    """

    api_version: Literal["penstock/v1"] = Field(alias="apiVersion")
    kind: Literal["Router"]
    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:8421"
    environment: Name = "production"
    flags: Flags | None = None
    providers: Annotated[list[Provider], Field(min_length=1)]
    models: Annotated[list[Model], Field(min_length=1)]
    routes: list[Route] = []
    fallback_enabled: bool = True
    deadline: Deadline = Deadline()
    shadow: Shadow = Shadow()
    drills: Drills | None = None
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    body_timeout: PositiveDuration = timedelta(seconds=30)
    log_requests: bool = False
    caps: Caps | None = None
    budgets: list[Budget] = []
    redact: Redact = Redact()
    telemetry: Telemetry = Telemetry()

    @model_validator(mode="after")
    def _consistent(self) -> "RouterConfig":
        problems = list(_contradictions(self))
        if problems:
            raise Inconsistent(problems)
        return self


def read_config(path: Path) -> RouterConfig:
    """
    Raises:
        SpecError: the file cannot be read, or something in it is wrong; one line for each problem, with its place.
    """
    return parse(RouterConfig, path)


def _contradictions(config: RouterConfig) -> Iterator[tuple[Loc, str]]:
    for field, names in (
        ("providers", [p.name for p in config.providers]),
        ("models", [m.name for m in config.models]),
        ("routes", [r.name for r in config.routes]),
    ):
        for i, name in enumerate(names):
            if (first := names.index(name)) < i:
                yield (field, i, "name"), f"{name!r} is already the name of {field}.{first}"

    for i, provider in enumerate(config.providers):
        if not provider.base_url:
            yield ("providers", i), f"{provider.name!r} has no base_url and no preset (presets: {_listed(set(PRESETS))})"

    providers, models = {p.name for p in config.providers}, {m.name for m in config.models}
    for i, model in enumerate(config.models):
        if model.provider not in providers:
            yield ("models", i, "provider"), f"unknown provider {model.provider!r} (known: {_listed(providers)})"
        for kind in ("input_per_mtok", "output_per_mtok", "cached_input_per_mtok") if model.price else ():
            yield from _dollars(("models", i, "price", kind), getattr(model.price, kind))

    matched: dict[str, str] = {}
    for i, route in enumerate(config.routes):
        used: list[tuple[Loc, str]] = [(("default",), route.default)]
        used += [(("fallbacks", j), name) for j, name in enumerate(route.fallbacks)]
        used += [(("last_resort",), route.last_resort)] if route.last_resort else []
        for loc, name in used:
            if name not in models:
                yield ("routes", i, *loc), f"unknown model {name!r} (known: {_listed(models)})"
        for j, name in enumerate(route.match.model):
            if name in matched:
                yield ("routes", i, "match", "model", j), f"{name!r} is already matched by route {matched[name]!r}"
            matched.setdefault(name, route.name)

    for i, budget in enumerate(config.budgets):
        yield from _dollars(("budgets", i, "per_day"), budget.per_day)
        if budget.downgrade_to is not None and budget.downgrade_to not in models:
            yield ("budgets", i, "downgrade_to"), f"unknown model {budget.downgrade_to!r} (known: {_listed(models)})"
        if budget.on_exceed == "downgrade" and budget.downgrade_to is None:
            yield ("budgets", i), "on_exceed: downgrade needs downgrade_to, the model to go down to"
    if (shadow := config.shadow.budget) is not None:
        for name in ("per_minute", "per_day"):
            yield from _dollars(("shadow", "budget", name), getattr(shadow, name))
    if (pairs := config.shadow.pairs) is not None:
        if not (pairs.file or pairs.http or pairs.python):
            yield ("shadow", "pairs"), "pairs go nowhere: name file, http or python"
        if pairs.options and not pairs.python:
            yield ("shadow", "pairs", "options"), "options are for code of one's own (python), and there is none"
    if config.caps:
        yield from _dollars(("caps", "cost_per_request"), config.caps.cost_per_request)


def _dollars(loc: Loc, money: Money | None) -> Iterator[tuple[Loc, str]]:
    # Costs of different models are added up and compared; one currency, and the metric is penstock_cost_usd_total.
    if money is not None and money.currency != "USD":
        yield loc, f"'{money}' is not in USD; costs are counted in USD only"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
