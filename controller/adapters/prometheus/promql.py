"""
Counters as questions: what is asked in PromQL, and which series of an answer is which.

It stands between the profile, which knows selectors, and the source, which asks. Its one rule: one question is one query. All
counters of both arms are read at once, each tagged with what it is, so that they are of one moment.
"""

from collections.abc import Iterable, Sequence

from controller.adapters.prometheus.answer import Series, Track, Untrusted
from controller.adapters.prometheus.profile import Counted, duration
from controller.core.ledger import Series as Counter

TAG = "penstock"
"""Label of an answer's series: which of the counters that were asked for this is."""

BASE_WINDOW_MS = 3_600_000
BASE_WINDOW = duration(BASE_WINDOW_MS)
"""How old the last value of a counter may be when a phase begins. One that was silent for longer and comes back counts from 0."""


def values(counted: Sequence[Counted], window_ms: int, step_ms: int, *, tagged: bool = True) -> str:
    """
    Every counter's value at each whole multiple of a step within a window.

    Args:
        tagged: False for a single counter whose series need no tag: without it, Prometheus does much less.
    """
    text = _union((c, c.promql()) for c in counted) if tagged else counted[0].promql()
    return f"({text})[{duration(window_ms)}:{duration(step_ms)}]"


def last(counted: Sequence[Counted]) -> str:
    """Every counter's last value."""
    return _union((c, c.promql("last_over_time", BASE_WINDOW)) for c in counted)


def resets(counted: Sequence[Counted], window_ms: int) -> str:
    """How often each counter restarted within a window."""
    return _union((c, c.promql("resets", duration(window_ms))) for c in counted)


def samples(counted: Sequence[Counted], window_ms: int, *, by: Sequence[str] = ()) -> str:
    """How many samples each of `counted` has within a window, over all its series (or over those with the same labels `by`)."""
    return _union((c, f"{_sum(by)}({c.promql('count_over_time', duration(window_ms))})") for c in counted)


def happened(counted: Sequence[Counted], window_ms: int, *, by: Sequence[str] = ()) -> str:
    """
    How often each of `counted` happened within a window, over all its series: two numbers, to be added up.

    `increase` sees nothing of a counter's first value. A series that was not there before has begun at 0, and its least value is
    what it was born with: with exporters that show a series only when it has something to count, that may be most of what there
    is.
    """
    window = duration(window_ms)
    grown = _union((c, f"{_sum(by)}({c.promql('increase', window)})") for c in counted)
    born = _union(
        (
            (
                c,
                f"{_sum(by)}({c.promql('min_over_time', window)} unless last_over_time({c.selector}[{BASE_WINDOW}] offset {window}))",
            )
            for c in counted
        ),
        " born",
    )
    return f"{grown} or {born}"


def history(counted: Sequence[Counted], each_ms: int, window_ms: int) -> str:
    """Increases over `each_ms`, one after the other within a window, summed over series."""
    sums = ((c, f"sum{' by (le)' if c.part == 'buckets' else ''} ({c.promql('increase', duration(each_ms))})") for c in counted)
    return f"({_union(sums)})[{duration(window_ms)}:{duration(each_ms)}]"


def existing(counted: Counted) -> dict[str, str]:
    """
    Queries for how many series there are that could be of an arm, of whatever arm.

    Returns:
        Of the counter's own selector (``own``) and of its metric (``metric``), all of them and those that carry the labels which
        tell arms apart (``own labelled``, ``metric labelled``).
    """
    term = counted.term
    labels = ",".join(f'{label}!=""' for label in sorted(counted.arm_labels))
    selectors = {
        "own": term.selector(),
        "own labelled": term.selector(labels),
        "metric": term.metric,
        "metric labelled": f"{term.metric}{{{labels}}}",
    }
    return {name: f"count(last_over_time({selector}[{BASE_WINDOW}]))" for name, selector in selectors.items()}


def count(counted: Counted) -> str:
    """How many series a counter has."""
    return f"count(last_over_time({counted.selector}[{BASE_WINDOW}]))"


def exists(counted: Counted) -> str:
    """All of `existing` as one query, tagged with their names."""
    return " or ".join(f'label_replace({query}, "{TAG}", "{name}", "", "")' for name, query in existing(counted).items())


def counters(counted: Sequence[Counted], tracks: Iterable[Track], unit_s: float) -> list[Counter]:
    """
    The series of an answer as the ledger takes them.

    Raises:
        Untrusted: a series has no tag that was asked for.
    """
    known = {tag(i, c): c for i, c in enumerate(counted)}
    found = []
    for track in tracks:
        labels = dict(track.labels)
        of = known.get(labels.pop(TAG, ""))
        if of is None:
            raise Untrusted(f"a series that was not asked for: {dict(track.labels)!r:.200}")
        labels.pop("__name__", None)
        found.append(Counter(part=of.part, arm=of.arm, labels=labels, points=track.points, query=of.selector, unit_s=unit_s))
    return found


def at(series: Iterable[Series], time_ms: int) -> list[Track]:
    """A vector as tracks of one point."""
    return [Track(labels=s.labels, points={time_ms: s.value}) for s in series]


def by_arm(counted: Sequence[Counted], series: Iterable[Series]) -> dict[str, float]:
    """
    Values of `happened` or `samples` summed by arm; an arm without any series is not there.

    Raises:
        Untrusted: a series was not asked for, or is there twice.
    """
    known = {f"{tag(i, c)}{kind}": c for i, c in enumerate(counted) for kind in ("", " born")}
    seen: set[str] = set()
    found: dict[str, float] = {}
    for one in series:
        name = one.labels.get(TAG, "")
        if name not in known or set(one.labels) != {TAG}:
            raise Untrusted(f"a series that was not asked for: {dict(one.labels)!r:.200}")
        if name in seen:
            raise Untrusted(f"two series for {name!r} where one was expected")
        seen.add(name)
        arm = known[name].arm
        found[arm] = found.get(arm, 0.0) + one.value
    return found


def tag(index: int, counted: Counted) -> str:
    return f"{counted.arm}:{counted.part}:{index}"


def _sum(by: Sequence[str]) -> str:
    return f"sum by ({', '.join(by)}) " if by else "sum"


def _union(parts: Iterable[tuple[Counted, str]], kind: str = "") -> str:
    return " or ".join(f'label_replace({text}, "{TAG}", "{tag(i, c)}{kind}", "", "")' for i, (c, text) in enumerate(parts))
