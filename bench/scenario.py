"""
Scenario files of the provider simulator: YAML (or JSON, which is YAML) to behaviours, with the place of every mistake.

```yaml
apiVersion: penstock/v1
kind: ProviderScenario
seed: 7
models:
  gpt-4.1: {ttft: {median_s: 0.3, sigma: 0.4}, tokens_per_s: 90}
  gpt-5:
    ttft: {median_s: 0.25}
    tail: {frac: 1%, mult: 6}
    errors: {rate_limited: 0.5%}
    changes:
      - {at_s: 60, set: {latency_mult: 1.6}}
      - {after_requests: 5000, set: {errors: {server_error: 20%}}}
```

Its one rule: the fields are those of `ModelBehaviour`, read by the same code as the control endpoint.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from bench.behaviour import BehaviourError, ModelBehaviour, updated

_API_VERSION = "penstock/v1"
_KIND = "ProviderScenario"
_FIELDS = ("apiVersion", "kind", "seed", "models")


class ScenarioError(ValueError):
    """A scenario file that cannot be used; the message is `file:line:column: what`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Behaviours by model name, and the seed of all draws."""

    models: dict[str, ModelBehaviour]
    seed: int = 0


def load_scenario(path: Path) -> Scenario:
    """
    Read a scenario file.

    Raises:
        ScenarioError: unreadable, not YAML, or not a scenario.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ScenarioError(f"{path}: cannot be read: {exc.strerror if isinstance(exc, OSError) else exc}") from exc
    return parse_scenario(text, name=str(path))


def parse_scenario(text: str, *, name: str = "scenario") -> Scenario:
    """Read a scenario from text; `name` stands for the file in messages. Raises ScenarioError."""
    try:
        data = YAML(typ="rt").load(text)
    except MarkedYAMLError as exc:
        mark = exc.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise ScenarioError(f"{name}{place}: not YAML: {exc.problem}") from exc
    except YAMLError as exc:
        raise ScenarioError(f"{name}: not YAML: {exc}") from exc
    if not isinstance(data, CommentedMap):
        raise ScenarioError(f"{name}:1:1: a scenario is an object with {', '.join(_FIELDS)}")
    for key in data:
        if key not in _FIELDS:
            raise _error(name, data, (key,), f"{key}: unknown field; known: {', '.join(_FIELDS)}")
    for key, wanted in (("apiVersion", _API_VERSION), ("kind", _KIND)):
        if data.get(key, wanted) != wanted:
            raise _error(name, data, (key,), f"{key}: expected {wanted}, got {data[key]!r}")
    seed = data.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise _error(name, data, ("seed",), f"seed: expected a whole number, got {seed!r}")
    models = data.get("models")
    if not isinstance(models, CommentedMap) or not models:
        raise _error(name, data, ("models",), "models: expected an object of at least one model")
    return Scenario(models={str(model): _model(name, data, model) for model in models}, seed=int(seed))


def _model(name: str, data: CommentedMap, model: Any) -> ModelBehaviour:
    try:
        return updated(ModelBehaviour(), _unmarked(data["models"][model] or {}))
    except BehaviourError as exc:
        path = ("models", model, *exc.path)
        raise _error(name, data, path, f"{'.'.join(str(p) for p in path)}: {exc.problem}") from exc


def _unmarked(value: Any) -> Any:
    """Plain dicts, lists and numbers instead of ruamel's, which remember how they were written."""
    if isinstance(value, dict):
        return {str(k): _unmarked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_unmarked(v) for v in value]
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _error(name: str, data: Any, path: tuple[Any, ...], problem: str) -> ScenarioError:
    """The error with the place of the deepest key of the path that the file has."""
    line, column = 0, 0
    for key in path:
        try:
            line, column = data.lc.key(key) if isinstance(data, CommentedMap) else data.lc.item(key)
            data = data[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return ScenarioError(f"{name}:{line + 1}:{column + 1}: {problem}")
