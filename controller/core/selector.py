"""
Selectors of counters: what a profile's file or a person may write where something is counted.

It stands between text and PromQL: whatever it reads is taken apart and written anew (`controller.adapters.prometheus.promql`), so
that nothing of it can reach past the place where it is put. Its one rule: a counter is named and not computed. Rates, sums and
joins are made of the raw values here; in PromQL they would hide restarts, and an ``or vector(0)`` would make "no data" a zero.

    counted := term { "+" term }
    term    := selector | number "*" selector | selector ("*" | "/") number
    selector := metric "{" matcher { "," matcher } "}"          with $arm as one of the matchers
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

ARM = "$arm"
"""Stands for the labels of an arm."""

METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
# Whole literals, quotes included; they go back into PromQL as they came.
STRING = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"' + r"|'(?:[^'\\\n]|\\[^\n])*'|`[^`\n]*`")
OPERATOR = re.compile(r"=~|!~|!=|=")

TEXT_MAX = 2000


class SelectorError(ValueError):
    """What is no selector of counters; says what was found and what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """
    Args:
        metric: Its name.
        matchers: As PromQL, without those of the arm; "" for none.
        labels: Names of the labels that the matchers set.
        factor: What each value is multiplied with; above 0.
        after: Metrics that come first: where a process (job and instance) exports one of them, this one is left out, as it counts
            the same again.
    """

    metric: str
    matchers: str
    labels: frozenset[str]
    factor: float = 1.0
    after: tuple[str, ...] = ()

    def selector(self, *more: str) -> str:
        """
        Args:
            more: Further matchers in PromQL, already checked; "" for none.
        """
        inside = ",".join(m for m in (*more, self.matchers) if m)
        return f"{self.metric}{{{inside}}}" if inside else self.metric


def parse(text: str) -> tuple[Term, ...]:
    """
    Args:
        text: One or more terms, as above.

    Raises:
        SelectorError: it is anything else.
    """
    if len(text) > TEXT_MAX:
        raise SelectorError(f"a selector of {len(text)} characters; at most {TEXT_MAX} are read")
    if not text.isprintable():
        raise SelectorError(
            f"{_shown(text)} holds a line break or another character that cannot be printed; write it on one line"
        )
    return tuple(_Reader(text).terms())


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def terms(self) -> Iterator[Term]:
        yield self._term()
        while self._take("+"):
            yield self._term()
        if self.at < len(self.text):
            raise self._odd()

    def _term(self) -> Term:
        factor = 1.0
        if (number := self._match(NUMBER)) is not None:
            factor = self._factor(number)
            if not self._take("*"):
                raise self._odd()
        metric = self._match(METRIC)
        if metric is None:
            raise self._odd()
        if not self._take("{"):
            raise self._odd(f"after {metric!r}: write {metric}{{{ARM}}}" if self.at >= len(self.text) else "")
        matchers, labels = self._matchers()
        if self._take("*"):
            factor *= self._factor(self._match(NUMBER))
        elif self._take("/"):
            factor /= self._factor(self._match(NUMBER))
        return Term(metric=metric, matchers=",".join(matchers), labels=frozenset(labels), factor=factor)

    def _matchers(self) -> tuple[list[str], list[str]]:
        matchers, labels, arms = [], [], 0
        while not self._take("}"):
            if self._take(ARM):
                arms += 1
            else:
                label, operator, value = self._match(LABEL), self._match(OPERATOR), self._match(STRING)
                if label is None or operator is None or value is None:
                    raise self._odd()
                matchers.append(f"{label}{operator}{value}")
                labels.append(label)
            if not self._take(","):
                if not self._take("}"):
                    raise self._odd()
                break
        if arms != 1:
            raise SelectorError(
                f"{_shown(self.text)} does not say where the labels of an arm go; write {ARM} once among the matchers"
            )
        if "__name__" in labels:
            raise SelectorError(f"{_shown(self.text)}: write the metric's name before the brace and not as __name__")
        return matchers, labels

    def _factor(self, number: str | None) -> float:
        value = math.nan if number is None else float(number)
        if not (math.isfinite(value) and value > 0):
            raise SelectorError(f"{_shown(self.text)}: a counter is multiplied with or divided by one number above 0")
        return value

    def _take(self, word: str) -> bool:
        self._skip()
        if not self.text.startswith(word, self.at):
            return False
        self.at += len(word)
        return True

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        self._skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found.group()

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1

    def _odd(self, hint: str = "") -> SelectorError:
        rest = self.text[self.at :]
        if not hint:
            hint = f"at {_shown(rest)}" if rest else "at its end"
            if rest.startswith("("):
                hint += ": write the counter itself; functions such as rate and sum are applied to it here"
            elif rest.startswith("["):
                hint += ": write the counter itself, without a window"
        return SelectorError(f"{_shown(self.text)} is not a selector of counters such as my_total{{{ARM}}}: {hint}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")
