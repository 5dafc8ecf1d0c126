"""
What may be written where counters are counted, and that nothing else gets through.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.selector import TEXT_MAX, SelectorError, Term, parse


def test_a_metric_with_the_place_of_the_arm_is_a_selector() -> None:
    assert parse("my_total{$arm}") == (Term(metric="my_total", matchers="", labels=frozenset()),)


def test_matchers_come_back_as_they_were_written_and_their_labels_are_known() -> None:
    (term,) = parse("""job:my_total{ a="1\\"}", $arm , b=~'x|y', c!="",d!~`z{`}""")
    assert term.matchers == """a="1\\"}",b=~'x|y',c!="",d!~`z{`"""
    assert term.labels == {"a", "b", "c", "d"}
    assert term.selector('arm="candidate"', "") == """job:my_total{arm="candidate",a="1\\"}",b=~'x|y',c!="",d!~`z{`}"""
    assert term.selector() == """job:my_total{a="1\\"}",b=~'x|y',c!="",d!~`z{`}"""


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("a{$arm} * 2e-6", [2e-6]),
        ("2e-6 * a{$arm}", [2e-6]),
        ("a{$arm} / 1000", [1e-3]),
        ("2 * a{$arm} / 4", [0.5]),
        ("a{$arm}*.5+b{$arm}+3*c{$arm}", [0.5, 1.0, 3.0]),
    ],
)
def test_counters_may_be_weighed_and_added_up(text: str, factors: list[float]) -> None:
    assert [t.factor for t in parse(text)] == factors


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("rate(a{$arm}[5m])", "functions such as rate and sum are applied to it here"),
        ("sum by (x) (a{$arm})", "at 'by (x)"),
        ("a{$arm}[5m]", "without a window"),
        ("a{$arm} or vector(0)", "at 'or vector(0)'"),
        ("a", "write a{$arm}"),
        ('a{x="1"}', "write $arm once among the matchers"),
        ("a{$arm,$arm}", "write $arm once among the matchers"),
        ('a{$arm,__name__="b"}', "write the metric's name before the brace"),
        ("a{$arm} * 0", "one number above 0"),
        ("a{$arm} * 1e999", "one number above 0"),
        ("a{$arm} * b{$arm}", "one number above 0"),
        ("a{$arm} - b{$arm}", "at '- b"),
        ("a{$arm} # b", "at '# b'"),
        ("a{$arm}\n+ b{$arm}", "on one line"),
        ("a{$arm,x='1}", "at"),
        ('a{$arm,x="\\', "at"),
        ("a{$arm", "at its end"),
        ("", "at its end"),
        ("a{$arm}" + " " * TEXT_MAX, "characters; at most"),
    ],
)
def test_anything_else_is_refused_with_what_to_write_instead(text: str, hint: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert hint in str(caught.value)


STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^'\\]|\\.)*'|`[^`]*`")
PIECES = st.sampled_from(
    ["$arm", "a_total", "{", "}", "(", ")", "[5m]", ",", "=", "=~", '"', "'", "`", "\\", "x", "or", " ", "*", "/", "+", "-", "2", "#", "\n", "1e3"]
)  # fmt: skip
LIKELY = st.builds(
    lambda a, b, c: f"a{{$arm,x={a}{b}{c}}}", PIECES, st.text(PIECES.map(str).filter(lambda s: len(s) == 1)), PIECES
)


@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), LIKELY))
def test_whatever_is_accepted_stays_in_its_braces(text: str) -> None:
    try:
        terms = parse(text)
    except SelectorError:
        return
    for term in terms:
        bare = STRINGS.sub("S", term.selector('arm="candidate"'))
        assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*\{\w+=S(?:,\w+(?:=|!=|=~|!~)S)*\}", bare), bare
