"""
Reading what Prometheus answered, without trusting it.

It stands between the raw bytes and the measurements. Its one rule: an answer is taken whole or not at all. Whatever is partial,
of an unexpected shape, for another time, NaN, infinite or negative raises Untrusted; nothing is guessed or left out.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

TIME_TOLERANCE_S = 1.0
"""The answer's time may differ by rounding; by more than that it is the answer to another question (a cache)."""

PARTIAL_WORDS = ("partial", "incomplete", "missing", "timeout", "timed out", "unavailable", "failed")
"""An info is a remark on the query's style unless it says one of these."""


class Untrusted(ValueError):
    """An answer that cannot be used; says what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One element of an instant vector."""

    labels: Mapping[str, str]
    value: float


class Track(NamedTuple):
    """One element of a matrix: values by time in milliseconds, as they came, NaN and all."""

    labels: Mapping[str, str]
    points: Mapping[int, float]


def read_vector(body: bytes, at_s: float) -> tuple[Series, ...]:
    """
    Args:
        body: Body of a 200 answer.
        at_s: The evaluation time that was asked for, in seconds since the epoch.

    Returns:
        The elements of the vector; finite and not negative.

    Raises:
        Untrusted: it is anything but a complete instant vector for that time.
    """
    return tuple(_series(element, at_s) for element in _result(body, "vector"))


def read_matrix(body: bytes, at_s: float) -> tuple[Track, ...]:
    """
    Args:
        body: Body of a 200 answer.
        at_s: The evaluation time that was asked for: no sample is from after it.

    Raises:
        Untrusted: it is anything but a complete matrix of floats.
    """
    latest_ms = round(at_s * 1000)
    return tuple(_track(element, latest_ms) for element in _result(body, "matrix"))


def _result(body: bytes, kind: str) -> list[Any]:
    data = _object(body)
    if data.get("status") != "success":
        raise Untrusted(f"status {data.get('status')!r}: {error_of(data) or excerpt(body)}")
    if warnings := data.get("warnings"):
        raise Untrusted(f"the answer carries warnings, so it may be partial: {_shown(warnings)}")
    if infos := partial_infos(data):
        raise Untrusted(f"the answer carries infos that say it is partial: {_shown(infos)}")
    if data.get("isPartial"):  # VictoriaMetrics' word for it
        raise Untrusted("the answer says that it is partial (isPartial)")
    inner = data.get("data")
    if not isinstance(inner, Mapping) or inner.get("resultType") != kind or not isinstance(inner.get("result"), list):
        seen = inner.get("resultType") if isinstance(inner, Mapping) else inner
        raise Untrusted(f"resultType {_shown(seen)} where a {kind} was expected")
    return list(inner["result"])


def partial_infos(data: Mapping[str, Any]) -> list[str]:
    """The infos of an answer that speak of missing data."""
    infos = data.get("infos") or []
    texts = [str(i) for i in infos] if isinstance(infos, list) else [str(infos)]
    return [t for t in texts if any(word in t.lower() for word in PARTIAL_WORDS)]


def error_of(data: Mapping[str, Any]) -> str:
    """``bad_data: parse error`` from an answer that carries an error; "" from one that does not."""
    kind, text = data.get("errorType"), data.get("error")
    return "" if text is None else f"{_shown(kind)}: {_shown(text)}"


def excerpt(body: bytes, length: int = 120) -> str:
    """The beginning of a body, printable."""
    return repr(body[:length].decode("utf-8", "replace")) + ("..." if len(body) > length else "")


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError:  # stricter than some that answer as Prometheus do: they write NaN and Infinity
            data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise Untrusted(f"not JSON: {excerpt(body)}") from exc
    if not isinstance(data, Mapping):
        raise Untrusted(f"not a JSON object: {excerpt(body)}")
    return data


def _series(element: object, at_s: float) -> Series:
    match element:
        case {"metric": dict() as labels, "value": [int() | float() as time_s, str() as text]}:
            pass
        case _:
            raise Untrusted(f"an element that is no sample: {_shown(element)}")
    if not all(isinstance(v, str) for v in labels.values()):
        raise Untrusted(f"labels that are no text: {_shown(labels)}")
    value = _number(text)
    if not math.isfinite(value) or value < 0:
        raise Untrusted(f"the value {text[:40]} of {_shown(labels)} is not a finite number from 0 up")
    # Written so that a time of NaN is refused too.
    if not abs(time_s - at_s) <= TIME_TOLERANCE_S:
        raise Untrusted(f"the answer is for the time {time_s}, asked was {at_s:.3f}")
    return Series(labels=labels, value=value)


def _track(element: object, latest_ms: int) -> Track:
    # Plain loops: this runs for every series of every look.
    if type(element) is not dict:
        raise Untrusted(f"an element that is no series: {_shown(element)}")
    labels, values = element.get("metric"), element.get("values")
    if "histograms" in element:
        raise Untrusted(f"native histograms where counters were expected: {_shown(labels)}")
    if type(labels) is not dict or type(values) is not list:
        raise Untrusted(f"an element that is no series: {_shown(element)}")
    for label in labels.values():
        if type(label) is not str:
            raise Untrusted(f"labels that are no text: {_shown(labels)}")
    points: dict[int, float] = {}
    try:
        if len(values) == 1:  # of a guard's look each
            [[time_s, text]] = values
            if type(text) is not str:
                raise Untrusted(f"values that are no text among those of {_shown(labels)}")
            time_ms = round(time_s * 1000)
            if time_ms <= latest_ms:
                return Track(labels=labels, points={time_ms: float(text)})
            points = {time_ms: float(text)}
        elif values:
            times, texts = zip(*values, strict=True)
            if set(map(type, texts)) != {str}:
                raise Untrusted(f"values that are no text among those of {_shown(labels)}")
            points = dict(zip(_milliseconds(times), map(float, texts), strict=True))
    except Untrusted:
        raise
    except (TypeError, ValueError, OverflowError) as exc:
        raise Untrusted(f"samples that are none among those of {_shown(labels)}: {_shown(exc)}") from exc
    if len(points) < len(values) or max(points, default=0) > latest_ms:
        raise Untrusted(f"a sample that is there twice, or of a time after the one that was asked for: {_shown(labels)}")
    return Track(labels=labels, points=points)


@lru_cache(maxsize=256)
def _milliseconds(times_s: tuple[float, ...]) -> tuple[int, ...]:
    """Kept, since the series of an answer have the same times."""
    return tuple(round(t * 1000) for t in times_s)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as exc:
        raise Untrusted(f"the value {_shown(text)} is no number") from exc


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
