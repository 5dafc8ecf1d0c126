"""
What is known of providers: addresses, keys, and where their OpenAI-compatible endpoints differ from OpenAI's own.

Its one rule: a preset only fills in what router.yaml leaves out. Fields are dropped only where a provider is known to refuse a request for
them, or where they mean something to OpenAI's accounts alone; what a provider ignores by itself goes to it as it came.

Sources: platform.claude.com, "OpenAI SDK compatibility"; ai.google.dev, "OpenAI compatibility"; refusals of Google's (400, "Unknown name
... Cannot find field") as reported in ed-donner/agents#45 (metadata, store) and MinLL/SkyrimNet-GamePlugin#77 (frequency_penalty).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from router.reasoning import Style

PresetName = Literal["openai", "anthropic", "google", "openrouter"]
EndpointName = Literal["chat", "responses", "embeddings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The fields of the same names in router.yaml; `reasoning` is that of the provider's models."""

    base_url: str
    api_key_env: str
    endpoints: tuple[EndpointName, ...] = ("chat", "responses", "embeddings")
    drop: tuple[str, ...] = ()
    reasoning: Style | None = None


PRESETS: Mapping[PresetName, Preset] = {
    "openai": Preset(base_url="https://api.openai.com/v1", api_key_env="OPENAI_API_KEY"),
    "anthropic": Preset(
        base_url="https://api.anthropic.com/v1", api_key_env="ANTHROPIC_API_KEY", endpoints=("chat",), reasoning="anthropic"
    ),
    "google": Preset(
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        api_key_env="GEMINI_API_KEY",
        endpoints=("chat", "embeddings"),
        drop=("metadata", "store", "frequency_penalty", "user", "safety_identifier", "prompt_cache_key"),
        reasoning="gemini",
    ),
    "openrouter": Preset(
        base_url="https://openrouter.ai/api/v1", api_key_env="OPENROUTER_API_KEY", endpoints=("chat",), reasoning="openrouter"
    ),
}
