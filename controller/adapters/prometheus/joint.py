"""
The questions of many rollouts, asked together: one query for each kind of question, and each rollout gets its part of the answer.

It stands between `PrometheusSource.together`, which knows what looks are going to ask, and the client. What differs between rollouts in a
query are the values of the labels that tell the arms; a joint query leaves them open and its answer is taken apart by them. Its one rule: a
part is what the rollout's own query would have brought, and is read and kept like it. Where that cannot be had (an answer in another form, a
query that the server refuses), the rollouts ask for themselves; where the server could not be asked, that is the answer for each.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from controller.adapters.prometheus import promql
from controller.adapters.prometheus.answer import Untrusted, read_matrix, read_vector
from controller.adapters.prometheus.client import Answer, Ask, PrometheusClient, read_part
from controller.adapters.prometheus.profile import Counted, escape
from controller.core.selector import Term

ALTERNATIVES_MAX = 16_384
"""Characters that a selector may take up to name the rollouts one by one; beyond, it asks for all that have such labels."""

PLAIN = re.compile(r"[A-Za-z0-9._:/@-]+")
"""Values that are named in a regular expression, dots escaped. With a value of any other kind, a selector leaves the label open."""

LABELS_BYTES, VALUE_BYTES = 350, 25
"""Of a series in an answer, and of each of its values."""

WORKERS = 2
"""Joint queries under way at a time: their answers are long."""

ELEMENT = b'{"metric":{'
"""How each element begins, and nothing else can: within a text of JSON, a quote has a backslash before it."""

STRING = rb'((?:[^"\\]|\\.)*)'

REFUSED = frozenset({400, 413, 414, 422, 431})
"""The server minds the query itself: each rollout's own may be all right."""


class Form(StrEnum):
    VALUES = "values"
    """`promql.values`: raw counters at beats."""
    HAPPENED = "happened"
    """`promql.happened`"""
    SAMPLES = "samples"
    """`promql.samples`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """
    A question of one rollout.

    Args:
        ask: As the rollout would ask it by itself.
        counted: Its counters.
        form: Which query is made of them.
        window_ms, step_ms: As it takes them.
        first_ms: The first beat, of VALUES.
        size: About how many series the answer has.
    """

    ask: Ask
    counted: tuple[Counted, ...]
    form: Form
    window_ms: int
    step_ms: int = 1
    first_ms: int = 0
    size: int = 2

    @property
    def volume(self) -> int:
        """About how many bytes the answer has."""
        beats = self.window_ms // self.step_ms + 1 if self.form is Form.VALUES else 1
        return self.size * (LABELS_BYTES + VALUE_BYTES * beats)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that tell whose a series is; () where it cannot be told by the same ones for all counters."""
        names = {tuple(sorted(label for label, _ in c.arm_values)) for c in self.counted}
        known = names.pop() if len(names) == 1 else ()
        return known if all(value for c in self.counted for _, value in c.arm_values) else ()

    @property
    def terms(self) -> tuple["_Open", ...]:
        """Its counters with the arms left open."""
        return tuple(dict.fromkeys(_Open(part=c.part, term=c.term, filters=c.filters) for c in self.counted))

    @property
    def kind(self) -> "_Kind":
        """Those of one kind are asked together: their windows differ by less than a factor of two."""
        window = self.window_ms if self.form is not Form.VALUES else (self.window_ms // self.step_ms).bit_length()
        return _Kind(form=self.form, at=self.ask.at, step_ms=self.step_ms, window=window, labels=self.labels, terms=self.terms)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    part: str
    term: Term
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    form: Form
    at: datetime
    step_ms: int
    window: int
    labels: tuple[str, ...]
    terms: tuple[_Open, ...]


def joint(client: PrometheusClient, wishes: Iterable[Wish], plain: Iterable[Ask], *, timeout_s: float) -> "JointClient":
    """
    Args:
        client: To ask.
        wishes: Of all rollouts.
        plain: Questions that do not differ between rollouts, as often as they are asked.
        timeout_s: For all joint queries together.
    """
    groups: dict[_Kind, list[Wish]] = {}
    for wish in wishes:
        if wish.labels:
            groups.setdefault(wish.kind, []).append(wish)
    known: dict[Ask, Answer | bytes] = {}
    queries = {query.ask: query for kind, group in groups.items() if len(group) > 1 for query in [_Query(kind, group)]}
    for ask, answer in client.each(list(queries), timeout_s=timeout_s, workers=WORKERS):
        known |= queries[ask].parts(answer)
    seen: dict[Ask, int] = {}
    for ask in plain:
        seen[ask] = seen.get(ask, 0) + 1
    known |= client.ask_all([ask for ask, times in seen.items() if times > 1])
    return JointClient(client, known)


class JointClient:
    """Answers what is known and asks the rest; takes the place of a `PrometheusClient` for the looks of one moment."""

    def __init__(self, client: PrometheusClient, known: Mapping[Ask, Answer | bytes]) -> None:
        self._client = client
        self._known = known
        self.timeout_s = client.timeout_s

    def ask(self, queries: Sequence[str], at: datetime) -> dict[str, Answer]:
        return {ask.query: answer for ask, answer in self.ask_all([Ask(query=q, at=at) for q in queries]).items()}

    def ask_all(self, asks: Sequence[Ask], *, timeout_s: float | None = None) -> dict[Ask, Answer]:
        found = {ask: self._answer(ask, self._known[ask]) for ask in asks if ask in self._known}
        return found | self._client.ask_all([ask for ask in asks if ask not in found], timeout_s=timeout_s)

    @staticmethod
    def _answer(ask: Ask, known: Answer | bytes) -> Answer:
        return known if isinstance(known, Answer) else read_part(ask, known)


class _Query:
    """One joint query, and whose its answer is."""

    def __init__(self, kind: _Kind, wishes: Sequence[Wish]) -> None:
        self._kind = kind
        self._wishes = wishes
        self._window_ms = max(w.window_ms for w in wishes)
        values: dict[str, set[str]] = {label: set() for label in kind.labels}
        for wish in wishes:
            for c in wish.counted:
                for label, value in c.arm_values:
                    values[label].add(value)
        self._several = tuple(label for label in kind.labels if len(values[label]) > 1)
        self._matchers = ",".join(_matcher(label, found) for label, found in values.items())
        query = self._text()
        matrix = kind.form is Form.VALUES
        self.ask = Ask(query=query, at=kind.at, matrix=matrix, large=True, raw=True)

    def _text(self) -> str:
        counted = [
            Counted(
                part=o.part, arm="", selector=o.term.selector(self._matchers, *o.filters), term=o.term, arm_labels=frozenset()
            )
            for o in self._kind.terms
        ]
        match self._kind.form:
            case Form.VALUES:
                return promql.values(counted, self._window_ms, self._kind.step_ms, tagged=len(counted) > 1)
            case Form.HAPPENED:
                return promql.happened(counted, self._window_ms, by=self._kind.labels)
            case Form.SAMPLES:
                return promql.samples(counted, self._window_ms, by=self._kind.labels)

    def parts(self, answer: Answer) -> dict[Ask, Answer | bytes]:
        """The answer of each wish; without those that had better be asked for alone."""
        if answer.failure:
            if answer.too_long or answer.status in REFUSED:
                return {}
            return {w.ask: replace(answer, evidence=replace(answer.evidence, query=w.ask.query)) for w in self._wishes}
        try:
            elements = self._elements(answer.body)
        except _Odd:
            return {}
        except Untrusted as exc:  # of the whole answer, such as a warning: what it lacks may be anybody's
            note = str(exc)
            return {
                w.ask: replace(answer, failure=note, body=b"", evidence=replace(answer.evidence, query=w.ask.query, note=note))
                for w in self._wishes
            }
        kind = b"matrix" if self.ask.matrix else b"vector"
        head = b'{"status":"success","data":{"resultType":"%s","result":[' % kind
        return {w.ask: head + b",".join(elements[n]) + b"]}}" for n, w in enumerate(self._wishes)}

    def _elements(self, body: bytes) -> list[list[bytes]]:
        """
        Raises:
            Untrusted: what the answer says of itself.
            _Odd: it is no answer that can be taken apart.
        """
        head, *elements = body.split(ELEMENT)
        found: list[list[bytes]] = [[] for _ in self._wishes]
        if elements:
            elements[-1], end = _last(elements[-1])
            head += end
        self._read_frame(head)
        whose = _Whose(self._several, self._kind, self._owners())
        for element in elements:
            metric, value = whose.cut(element)
            for n, tag, first_ms in whose.owners(metric):
                if (text := self._element(metric, value, tag, first_ms)) is not None:
                    found[n].append(text)
        return found

    def _read_frame(self, frame: bytes) -> None:
        """What is around the elements says of itself that it is a whole answer, and has no others."""
        if (read_matrix if self.ask.matrix else read_vector)(frame, self.ask.at.timestamp()):
            raise _Odd

    def _owners(self) -> "dict[tuple[bytes, ...], list[_Owner]]":
        """By tag and the values of the labels."""
        first = min(w.first_ms for w in self._wishes)
        place = {o: i for i, o in enumerate(self._kind.terms)}
        found: dict[tuple[bytes, ...], list[_Owner]] = {}
        for n, wish in enumerate(self._wishes):
            for i, c in enumerate(wish.counted):
                values = dict(c.arm_values)
                at = place[_Open(part=c.part, term=c.term, filters=c.filters)]
                for kind in ("", " born") if self._kind.form is Form.HAPPENED else ("",):
                    key = (f":{c.part}:{at}{kind}".encode(), *(values[label].encode() for label in self._several))
                    first_ms = wish.first_ms if wish.first_ms > first else 0
                    found.setdefault(key, []).append((n, f"{promql.tag(i, c)}{kind}".encode(), first_ms))
        return found

    def _element(self, metric: bytes, value: bytes, tag: bytes, first_ms: int) -> bytes | None:
        if self._kind.form is not Form.VALUES:
            return b'{"metric":{%s%s"%s' % (_TAGGED, tag, value)
        if first_ms and not (value := _since(value, first_ms)):
            return None
        if len(self._kind.terms) > 1:
            return b'{"metric":{%s%s' % (_TAG.sub(b'%s%s"' % (_TAGGED, tag), metric, count=1), value)
        return b'{"metric":{%s%s",%s%s' % (_TAGGED, tag, metric, value)


class _Odd(Exception):
    """An answer that cannot be taken apart."""


_TAGGED = b'"%s":"' % promql.TAG.encode()

_TAG = re.compile(rb'%s([^"\\]*)"' % _TAGGED)


_Owner = tuple[int, bytes, int]
"""Number of the wish, its own tag, and its first beat where that is not everybody's."""

_LE = b'"le":"'


class _Whose:
    """Reads what tells whose an element is."""

    def __init__(self, labels: Sequence[str], kind: _Kind, owners: Mapping[tuple[bytes, ...], Sequence[_Owner]]) -> None:
        self._known = owners
        self._seen: dict[bytes, Sequence[_Owner]] = {}
        self._bucketed = "le" not in labels
        self._end = b'},"values":' if kind.form is Form.VALUES else b'},"value":'
        self._default = b"" if kind.form is not Form.VALUES or len(kind.terms) > 1 else f":{kind.terms[0].part}:0".encode()
        each = [rb'"%s":"%s"' % (label.encode(), STRING) for label in sorted(labels)]
        self._all = re.compile(rb".*?".join(each), re.DOTALL)
        self._order = [sorted(labels).index(label) for label in labels]
        self._starts = ([] if self._default else [_TAGGED]) + [b'"%s":"' % label.encode() for label in labels]
        self._first = (self._default,) if self._default else ()

    def cut(self, element: bytes) -> tuple[bytes, bytes]:
        """The labels, and what comes after them."""
        at = element.find(self._end)
        if at < 0 or not element.endswith(b","):
            raise _Odd
        return element[:at], element[at:-1]

    def owners(self, metric: bytes) -> Sequence[_Owner]:
        """Whose an element is; nobody's if it was not asked for. This runs for every series of every look."""
        if b"\\" in metric:
            return self._known.get(self._of_escaped(metric), ())
        # The buckets of a histogram have one owner: what differs between them is left out.
        at = metric.find(_LE) if self._bucketed else -1
        key = metric if at < 0 else metric[:at] + metric[metric.find(b'"', at + len(_LE)) :]
        found = self._seen.get(key)
        if found is None:
            found = self._seen[key] = self._known.get(self._of(metric), ())
        return found

    def _of(self, metric: bytes) -> tuple[bytes, ...]:
        # Without a backslash each quote ends or begins a text, and plain searches do.
        found = []
        for start in self._starts:
            begin = metric.find(start)
            end = metric.find(b'"', begin + len(start))
            if begin < 0 or end < 0:
                raise _Odd
            found.append(metric[begin + len(start) : end])
        return (*self._first, *found)

    def _of_escaped(self, metric: bytes) -> tuple[bytes, ...]:
        tag = self._default
        if not tag:
            tagged = _TAG.search(metric)
            if tagged is None:
                raise _Odd
            tag = tagged.group(1)
        found = self._all.search(metric)
        if found is None:
            raise _Odd
        values = [json.loads(b'"%s"' % v).encode() for v in found.groups()]
        return (tag, *(values[i] for i in self._order))


def _last(element: bytes) -> tuple[bytes, bytes]:
    """The last element, with a comma after it as each other one has, and what ends the answer."""
    try:
        text = (ELEMENT + element).decode()
        _, end = json.JSONDecoder().raw_decode(text)
    except ValueError as exc:
        raise _Odd from exc
    return text[:end].encode().removeprefix(ELEMENT) + b",", text[end:].encode()


_POINT = re.compile(rb"\[(\d+(?:\.\d+)?),")


def _since(value: bytes, first_ms: int) -> bytes:
    """The values from a time on, of `},"values":[[...],...]}`; nothing if there is none."""
    for point in _POINT.finditer(value):
        if round(float(point.group(1)) * 1000) >= first_ms:
            return b'},"values":[' + value[point.start() :]
    return b""


def _matcher(label: str, values: set[str]) -> str:
    if len(values) == 1:
        return f'{label}="{escape(next(iter(values)))}"'
    text = "|".join(sorted(values)).replace(".", r"\\.")
    if len(text) > ALTERNATIVES_MAX or not all(PLAIN.fullmatch(v) for v in values):
        return f'{label}!=""'
    return f'{label}=~"{text}"'
