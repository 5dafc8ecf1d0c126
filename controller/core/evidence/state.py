"""
The evidence as JSON and back, with a version: what the audit log's rows carry.

Python writes a float as the shortest text that reads back as the same float, so a restored engine goes on with the same numbers, bit for bit.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.core.evidence.config import EngineConfig
from controller.core.evidence.engine import Engine
from controller.core.evidence.watch import Breach

VERSION = 1

PARTS: dict[str, tuple[str, ...]] = {
    "reference": (
        "scrapes",
        "recent",
        "events",
        "mean_rate",
        "calm_rate",
        "clustering",
        "gust_entry",
        "gust_stay",
        "gust_factor",
        "noise",
        "mean_sums",
    ),
    "noise": ("prior", "tau2", "sums", "blocks", "queue", "last", "products", "precision", "count"),
    "proof": ("rate_limit", "rate_ratio", "quantile", "relative", "mean", "mean_block", "delayed", "incident_blocks", "beside"),
    "watch": ("log_e", "mean_block", "surge", "beside"),
    "counters": ("t", "last"),
}
WEATHER = ("null", "other")
WEALTH = ("base", "run", "age", "blocks", "phase_weight")
OWN = ("phase", "furthest", "pending", "pending_scrapes", "tally", "share")


def dump(engine: Engine) -> dict[str, Any]:
    """The whole evidence of an engine, ready for ``json.dumps``."""
    state: dict[str, Any] = {
        "version": VERSION,
        "columns": len(engine.config.columns),
        "gates": [g.name for g in engine.config.gates],
    }
    for part, names in PARTS.items():
        state[part] = {n: _plain(getattr(getattr(engine, part), n)) for n in names}
    state["wealth"] = {n: _plain(getattr(engine.watch.wealth, n)) for n in WEALTH}
    for name in ("weather", "weather_both"):
        state[name] = {n: _plain(getattr(getattr(engine.watch, name), n)) for n in WEATHER}
    state["engine"] = {n: _plain(getattr(engine, n)) for n in OWN}
    state["streams_from"] = _plain(engine.compiled_from)
    b = engine.breach
    state["breach"] = None if b is None else {"rung": b.rung, "gate": b.gate, "log_e": b.log_e, "log_needed": b.log_needed}
    return state


def load(config: EngineConfig, state: dict[str, Any]) -> Engine:
    """
    Args:
        config: The same configuration that the state was made with.
        state: From `dump`, through JSON or not.

    Raises:
        ValueError: An unknown version, or evidence of other gates or columns.
    """
    if state.get("version") != VERSION:
        raise ValueError(f"evidence of version {state.get('version')!r}, this engine reads {VERSION}")
    if state["columns"] != len(config.columns) or state["gates"] != [g.name for g in config.gates]:
        raise ValueError("this evidence was gathered with other gates or columns")
    engine = Engine(config)
    source = state["streams_from"]
    if source is not None:
        engine.recompile(np.array(source, dtype=np.float64))
    for part, names in PARTS.items():
        _fill(getattr(engine, part), names, state[part])
    _fill(engine.watch.wealth, WEALTH, state["wealth"])
    for name in ("weather", "weather_both"):
        _fill(getattr(engine.watch, name), WEATHER, state[name])
    _fill(engine, OWN, state["engine"])
    if engine.phase >= 0:
        engine.watch.alone = config.phases[engine.phase].alone
        engine.bet()
    if state["breach"] is not None:
        engine.breach = Breach(**state["breach"])
    return engine


def _fill(target: Any, names: tuple[str, ...], values: dict[str, Any]) -> None:
    for name in names:
        now, value = getattr(target, name), values[name]
        if isinstance(now, np.ndarray):
            setattr(target, name, _array(value, now))
        elif name == "queue":
            setattr(target, name, [np.array(v, dtype=np.float64) for v in value])
        else:
            setattr(target, name, list(value) if isinstance(value, list) else value)


def _array(value: Any, like: NDArray[Any]) -> NDArray[Any]:
    flat = np.array([-math.inf if v is None else v for v in value], dtype=like.dtype)
    return flat.reshape(like.shape)


def _plain(value: Any) -> Any:
    """Arrays become flat lists (their shapes follow from the configuration), minus infinity becomes null."""
    if isinstance(value, np.ndarray):
        return [None if v == -math.inf else v for v in value.ravel().tolist()]
    if isinstance(value, list):
        return [v.tolist() if isinstance(v, np.ndarray) else v for v in value]
    return value
