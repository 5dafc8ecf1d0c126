"""
Reading what Prometheus answered, without trusting it.

It stands between the raw bytes and the measurements. Its one rule: an answer is taken whole or not at all. Whatever is partial, of an
unexpected shape, for another time, NaN, infinite or negative raises Untrusted; nothing is guessed or left out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.core.measurement import Histogram, Moments

TIME_TOLERANCE_S = 1.0
"""The answer's time may differ by rounding; by more than that it is the answer to another question (a cache)."""

PARTIAL_WORDS = ("partial", "incomplete", "missing", "timeout", "timed out", "unavailable", "failed")
"""An info is a remark on the query's style unless it says one of these."""

DIP_SHARE = 1e-3
"""Part of all requests (at least one request) by which a cumulative bucket may fall below the one before it: rounding of `increase`,
and counter resets that it notices in one bucket and not in the next. It is repaired; more is a contradiction."""


class Untrusted(ValueError):
    """An answer that cannot be used; says what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One element of an instant vector."""

    labels: Mapping[str, str]
    value: float


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
    if not isinstance(inner, Mapping) or inner.get("resultType") != "vector" or not isinstance(inner.get("result"), list):
        kind = inner.get("resultType") if isinstance(inner, Mapping) else inner
        raise Untrusted(f"resultType {_shown(kind)} where a vector was expected")
    return tuple(_series(element, at_s) for element in inner["result"])


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


def keyed(series: Sequence[Series], labels: Sequence[str]) -> dict[tuple[str, ...], float]:
    """
    Series by the values of their labels.

    Raises:
        Untrusted: a series has other labels than these, or two series have the same.
    """
    found: dict[tuple[str, ...], float] = {}
    for element in series:
        if set(element.labels) != set(labels):
            raise Untrusted(
                f"a series with labels {_shown(dict(element.labels))} where {', '.join(labels) or 'none'} were expected"
            )
        key = tuple(element.labels[name] for name in labels)
        if key in found:
            raise Untrusted(f"two series for {_shown(dict(element.labels))} where one was expected")
        found[key] = element.value
    return found


def by_arm(series: Sequence[Series], arms: Sequence[str], label: str | None = None) -> dict[str, dict[str, float]]:
    """
    Values by arm, and within an arm by one more label ("" if there is none).

    Raises:
        Untrusted: as `keyed`, or a series of an arm that was not asked for.
    """
    found: dict[str, dict[str, float]] = {}
    for key, value in keyed(series, ("arm",) if label is None else ("arm", label)).items():
        if key[0] not in arms:
            raise Untrusted(f"a series of arm {_shown(key[0])}, which was not asked for")
        found.setdefault(key[0], {})["" if label is None else key[1]] = value
    return found


def single(series: Sequence[Series]) -> float | None:
    """
    The value of a query that has at most one series without labels; None if there is none.

    Raises:
        Untrusted: there are more, or it has labels.
    """
    return keyed(series, ()).get(())


def histogram(buckets: Mapping[str, float]) -> Histogram:
    """
    Args:
        buckets: Requests at or below an edge, by the edge as Prometheus writes it; ``+Inf`` among them.

    Raises:
        Untrusted: an edge is missing, doubled or no number, or the counts contradict each other.
    """
    counts: dict[float, float] = {}
    for text, count in buckets.items():
        try:
            edge = float(text)
        except ValueError:
            edge = math.nan
        if math.isnan(edge) or edge in counts:
            raise Untrusted(f"bucket edge le={_shown(text)} is {'no number' if math.isnan(edge) else 'there twice'}")
        counts[edge] = count
    if math.inf not in counts or len(counts) < 2:
        raise Untrusted(f"a histogram of {len(counts)} buckets without {'+Inf' if math.inf not in counts else 'a finite edge'}")
    edges = sorted(counts)
    allowed = max(1.0, DIP_SHARE * max(counts.values()))
    cumulative: list[float] = []
    highest = 0.0
    for edge in edges:
        if counts[edge] < highest - allowed:
            raise Untrusted(
                f"bucket le={edge:g} counts {counts[edge]:g}, a lower one {highest:g}: the buckets contradict each other"
            )
        highest = max(highest, counts[edge])
        cumulative.append(highest)
    return Histogram(edges_s=tuple(edges[:-1]), cumulative=tuple(cumulative[:-1]), total=cumulative[-1])


def moments(values: Mapping[str, float]) -> Moments:
    """Raises Untrusted when n, total or squares is missing."""
    if missing := {"n", "total", "squares"} - values.keys():
        raise Untrusted(f"no series for {', '.join(sorted(missing))} of the cost")
    return Moments(n=values["n"], total=values["total"], squares=values["squares"])


def _object(body: bytes) -> Mapping[str, Any]:
    try:
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
    try:
        value = float(text)
    except ValueError as exc:
        raise Untrusted(f"the value {_shown(text)} is no number") from exc
    if not math.isfinite(value) or value < 0:
        raise Untrusted(f"the value {text[:40]} of {_shown(labels)} is not a finite number from 0 up")
    # Written so that a time of NaN is refused too.
    if not abs(time_s - at_s) <= TIME_TOLERANCE_S:
        raise Untrusted(f"the answer is for the time {time_s}, asked was {at_s:.3f}")
    return Series(labels=labels, value=value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
