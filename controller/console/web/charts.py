"""
One chart for each gate: the candidate with its interval, the limit, the phases behind it, the decisions upon it; drawn as SVG here.

It stands beside `views`; a browser needs no script to see it. Its one rule: a number is drawn only if a decision rested on it, and whatever
is drawn stands in the table behind the chart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.core.decision import Hold
from controller.core.gates import GateResult
from controller.core.rollout import Decided, Entry, Rollout

WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 26
POINTS_MAX = 240
"""More cannot be told apart at this width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One look at one gate."""

    seq: int
    at: datetime
    result: GateResult
    decision: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A decision that moved something, or stopped it."""

    x: float
    kind: str
    label: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A phase, as far as it is on the chart."""

    x: float
    width: float
    name: str
    odd: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """
    What a template draws; all coordinates are in the view box of `WIDTH` x `HEIGHT`.

    Args:
        lines, areas: Paths; a gap in the data is a gap in the drawing.
        limit_y, zero_y: Where the limit and, of increases, the baseline lie; None off the chart.
    """

    gate: str
    unit: str
    latest: GateResult
    points: tuple[Point, ...]
    lines: tuple[str, ...]
    areas: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    limit_y: float | None
    zero_y: float | None
    bands: tuple[Band, ...]
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def charts(rollout: Rollout, entries: Sequence[Entry], spans: Sequence[tuple[str, datetime, datetime]]) -> tuple[Chart, ...]:
    """
    Args:
        rollout: Whose.
        entries: Its rows.
        spans: Its phases: name, begin, end.

    Returns:
        One for each gate that a look has seen, in the plan's order; without those that have no number to draw.
    """
    looks = [e for e in entries if isinstance(e.event, Decided) and e.event.observed.results]
    found: dict[str, list[Point]] = {}
    for entry in _thinned(looks):
        event = entry.event
        assert isinstance(event, Decided)
        for result in event.observed.results:
            point = Point(
                seq=entry.seq,
                at=event.observed.at or entry.at,
                result=result,
                decision=event.decision.kind,
                text=event.decision.text,
            )
            found.setdefault(result.gate, []).append(point)
    moves = [e for e in entries if isinstance(e.event, Decided) and not isinstance(e.event.decision, Hold)]
    order = [g.name for g in rollout.plan.gates if g.name in found]
    drawn = (_chart(found[name], moves, spans) for name in order)
    return tuple(c for c in drawn if c is not None)


def _thinned(looks: Sequence[Entry]) -> Sequence[Entry]:
    """Evenly, with every decision that was more than a hold, and the last look."""
    if len(looks) <= POINTS_MAX:
        return looks
    step = len(looks) / POINTS_MAX
    kept = {int(i * step) for i in range(POINTS_MAX)} | {len(looks) - 1}
    return [
        e for i, e in enumerate(looks) if i in kept or not (isinstance(e.event, Decided) and isinstance(e.event.decision, Hold))
    ]


def _chart(points: Sequence[Point], moves: Sequence[Entry], spans: Sequence[tuple[str, datetime, datetime]]) -> Chart | None:
    latest = points[-1].result
    seen = [p for p in points if p.result.observed is not None and math.isfinite(p.result.observed)]
    if not seen:
        return None
    begin, end = points[0].at, max(points[-1].at, points[0].at + timedelta(seconds=1))
    length = (end - begin).total_seconds()
    values = [float(p.result.observed) for p in seen if p.result.observed is not None]
    limit = latest.limit
    low, high = _range(values, [b for p in seen for b in p.result.interval or ()], limit, latest.unit)

    def x(at: datetime) -> float:
        part = (at - begin).total_seconds() / length
        return round(LEFT + min(max(part, 0.0), 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        part = (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    runs = _runs(points)
    lines = tuple("M" + "L".join(f"{x(p.at)} {y(_value(p))}" for p in run) for run in runs if len(run) > 1)
    areas = []
    for run in runs:
        with_interval = [(p, p.result.interval) for p in run if p.result.interval is not None]
        if len(with_interval) > 1:
            above = [f"{x(p.at)} {y(i[1])}" for p, i in with_interval]
            below = [f"{x(p.at)} {y(i[0])}" for p, i in reversed(with_interval)]
            areas.append("M" + "L".join(above + below) + "Z")
    return Chart(
        gate=latest.gate,
        unit=latest.unit,
        latest=latest,
        points=tuple(points),
        lines=lines,
        areas=tuple(areas),
        dots=tuple((x(p.at), y(_value(p))) for p in (seen if len(seen) <= 40 else seen[-1:])),
        limit_y=None if limit is None or not low <= limit <= high else y(limit),
        zero_y=y(0.0) if latest.unit == "increase" and low <= 0 <= high else None,
        bands=tuple(
            Band(x=x(b), width=round(x(e) - x(b), 1), name=name, odd=bool(i % 2))
            for i, (name, b, e) in enumerate(spans)
            if e > begin and b < end
        ),
        marks=tuple(_mark(e, x(e.at)) for e in moves if begin <= e.at <= end + timedelta(seconds=60)),
        x_ticks=_x_ticks(begin, end, x),
        y_ticks=tuple(Tick(at=y(v), label=amount(v, latest.unit)) for v in _steps(low, high)),
    )


def _mark(entry: Entry, x: float) -> Mark:
    event = entry.event
    assert isinstance(event, Decided)
    kind = event.decision.kind
    return Mark(x=x, kind=kind, label=f"{entry.at:%H:%M:%S} {kind.replace('_', ' ')}: {event.decision.text}", seq=entry.seq)


def _value(point: Point) -> float:
    assert point.result.observed is not None
    return float(point.result.observed)


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    runs: list[list[Point]] = [[]]
    for point in points:
        if point.result.observed is None or not math.isfinite(point.result.observed):
            runs.append([])
        else:
            runs[-1].append(point)
    return [r for r in runs if r]


def _range(values: list[float], bounds: list[float], limit: float | None, unit: str) -> tuple[float, float]:
    """Values and limit lie well within; an early interval that is as wide as the world is cut off."""
    core = [
        *values,
        *([] if limit is None else [limit]),
        *([0.0] if unit != "seconds" or min(values) < 0.2 * max(values) else []),
    ]
    low, high = min(core), max(core)
    room = (high - low) or abs(high) or 1.0
    low = max(low - room, min([low, *bounds])) if unit == "increase" else low
    high = min(high + room, max([high, *bounds]))
    pad = ((high - low) or 1.0) * 0.06
    return low - (pad if unit == "increase" or low > 0 else 0.0), high + pad


def _steps(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


_SPANS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800)


def _x_ticks(begin: datetime, end: datetime, x: Callable[[datetime], float]) -> tuple[Tick, ...]:
    length = (end - begin).total_seconds()
    step = next((s for s in _SPANS_S if length / s <= 6), _SPANS_S[-1])
    form = "%H:%M:%S" if step < 60 else "%H:%M" if step < 86_400 else "%d %b"
    first = math.ceil(begin.timestamp() / step) * step
    ticks: list[Tick] = []
    at = first
    while at <= end.timestamp() and len(ticks) < 12:
        moment = datetime.fromtimestamp(at, tz=begin.tzinfo)
        ticks.append(Tick(at=x(moment), label=f"{moment:{form}}"))
        at += step
    return tuple(ticks)


def amount(value: float | None, unit: str) -> str:
    """A number in the unit of a gate, for people: ``0.42%``, ``1.2 s``, ``+12%``, ``34``."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "none" if math.isnan(value) else "unbounded"
    match unit:
        case "share":
            return f"{value * 100:.3g}%"
        case "increase":
            return "over +1000%" if value > 10 else f"{value * 100:+.3g}%" if value else "0%"
        case "seconds":
            return f"{value:.3g} s"
        case _:
            return f"{value:,.4g}"
