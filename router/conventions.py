"""
The names that spans bear, in one table: OpenTelemetry's conventions for generative AI as deployed, and as they will be.

    names(environ) -> Names        which of the two, by OTEL_SEMCONV_STABILITY_OPT_IN
    system_of(provider, base_url)  what the conventions call a provider

Its one rule: no other module writes a ``gen_ai.*`` name. Source: OpenTelemetry semantic conventions 1.36 (deployed) and the GenAI
conventions after it, which they tell instrumentations to emit only where ``gen_ai_latest_experimental`` is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

OPT_IN_ENV = "OTEL_SEMCONV_STABILITY_OPT_IN"
OPT_IN = "gen_ai_latest_experimental"

Operation = Literal["chat", "embeddings"]
OPERATIONS: Mapping[str, Operation] = {"chat": "chat", "responses": "chat", "embeddings": "embeddings"}
"""Endpoint to `gen_ai.operation.name`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """
    What differs between the two.

    Args:
        provider: The attribute that says who serves a model.
        seed: Of the request.
        first_chunk_s: The time to a stream's first token in seconds; None where the conventions know no such attribute.
        messages: Content, where it is asked for, stands in attributes of the span; else in events on it.
        systems: Values of `provider` that are called otherwise than in the other set.
    """

    provider: str
    seed: str
    first_chunk_s: str | None
    messages: bool
    systems: Mapping[str, str]


DEPLOYED = Names(
    provider="gen_ai.system",
    seed="gen_ai.openai.request.seed",
    first_chunk_s=None,
    messages=False,
    systems={"azure.ai.openai": "az.ai.openai", "x_ai": "xai"},
)
LATEST = Names(
    provider="gen_ai.provider.name",
    seed="gen_ai.request.seed",
    first_chunk_s="gen_ai.response.time_to_first_chunk",
    messages=True,
    systems={},
)

OPERATION = "gen_ai.operation.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
SERVER_ADDRESS, SERVER_PORT, ERROR_TYPE = "server.address", "server.port", "error.type"
METHOD, PATH, STATUS = "http.request.method", "url.path", "http.response.status_code"

REQUEST_FIELDS: Mapping[str, str] = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "n": "gen_ai.request.choice.count",
}
"""A client's field to its attribute; only numbers are taken over."""

MODEL_NAME, TOKENS_IN, TOKENS_OUT, TTFT_MS, FALLBACK_USED = "model_name", "tokens_in", "tokens_out", "ttft_ms", "fallback_used"
"""The router's own short names, on the span of the request and on those of its attempts."""

ROUTE, ARM, OUTCOME, REASON = "penstock.route", "penstock.arm", "penstock.outcome", "penstock.reason"
REVISION, DECISION, REQUEST_ID = "penstock.flag_revision", "penstock.decision_id", "penstock.request_id"
COST_USD, ESTIMATED, DRILL = "penstock.cost_usd", "penstock.tokens_estimated", "penstock.drill"

FLAG_EVENT = "feature_flag.evaluation"
FLAG_KEY, FLAG_PROVIDER, FLAG_VERSION = "feature_flag.key", "feature_flag.provider.name", "feature_flag.version"
FLAG_VARIANT, FLAG_REASON, FLAG_SET = "feature_flag.result.variant", "feature_flag.result.reason", "feature_flag.set.id"
FLAG_REASONS: Mapping[str, str] = {"split": "split", "killed": "disabled", "lease_lapsed": "stale", "flag_unseen": "default"}
"""`router.selection.Plan.reason` to the conventions' word; any other is ``unknown``."""

FIRST_TOKEN, FALLBACK, SKIPPED, BREAKER_OPEN, BREAKER_OPENED = (
    "penstock.first_token", "penstock.fallback", "penstock.skipped", "penstock.breaker_open", "penstock.breaker_opened",
)  # fmt: skip
"""Events."""

INPUT_MESSAGES, OUTPUT_MESSAGES = "gen_ai.input.messages", "gen_ai.output.messages"
PROMPT_EVENT, COMPLETION_EVENT = "gen_ai.content.prompt", "gen_ai.content.completion"
PROMPT, COMPLETION = "gen_ai.prompt", "gen_ai.completion"

_HOSTS: tuple[tuple[str, str], ...] = (
    ("api.openai.com", "openai"),
    (".openai.azure.com", "azure.ai.openai"),
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    (".amazonaws.com", "aws.bedrock"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.groq.com", "groq"),
    ("api.deepseek.com", "deepseek"),
    ("api.x.ai", "x_ai"),
    ("api.perplexity.ai", "perplexity"),
    ("api.cohere.ai", "cohere"),
)


def names(environ: Mapping[str, str]) -> Names:
    asked = {one.strip() for one in environ.get(OPT_IN_ENV, "").split(",")}
    return LATEST if OPT_IN in asked else DEPLOYED


def system_of(provider: str, base_url: str) -> str:
    """The conventions' word for a provider that is known by its address, else the name that router.yaml gives it."""
    host = urlsplit(base_url).hostname or ""
    return next((system for end, system in _HOSTS if host == end or (end.startswith(".") and host.endswith(end))), provider)
