"""`controller.judge` speaks the referee's protocol: a decision per tick, and an answer even to nonsense."""

import io
import json
import math
from typing import Any

import pytest

from controller import judge
from tests.evidence.support import EDGES, Pair, init


def converse(*messages: dict[str, Any] | str) -> tuple[list[dict[str, Any]], int]:
    out = io.StringIO()
    lines = (m if isinstance(m, str) else json.dumps(m) for m in messages)
    status = judge.main(io.StringIO("".join(line + "\n" for line in lines)), out)
    return [json.loads(line) for line in out.getvalue().splitlines()], status


def tick(pair: Pair, scrapes: int, *, phase: int, share: float, is_gate: bool = False, **candidate: float) -> dict[str, Any]:
    rows = [pair.next(300, share, **candidate) for _ in range(scrapes)]
    return {
        "type": "tick",
        "is_gate": is_gate,
        "scrapes": [{"t": t, "phase": phase, "share": share, "cand": c, "base": b} for t, c, b in rows],
    }


def test_a_rollout_is_held_promoted_and_rolled_back() -> None:
    pair = Pair(21)
    answers, status = converse(
        init(),
        {"type": "phase", "phase": 0},
        tick(pair, 240, phase=-1, share=0.0),
        tick(pair, 4, phase=0, share=0.3),
        tick(pair, 76, phase=0, share=0.3, is_gate=True),
        tick(pair, 60, phase=1, share=0.3, errors=0.3),
    )
    assert [a["decision"] for a in answers] == ["hold", "hold", "promote", "rollback"]
    assert "error_rate" in answers[-1]["reason"]
    assert status == 0


def test_one_process_judges_several_rollouts_side_by_side() -> None:
    good, bad = Pair(22), Pair(23)
    answers, _ = converse(
        init(rollout="good"),
        init(rollout="bad"),
        tick(good, 240, phase=-1, share=0.0) | {"rollout": "good"},
        tick(bad, 240, phase=-1, share=0.0) | {"rollout": "bad"},
        tick(bad, 60, phase=1, share=0.3, errors=0.3) | {"rollout": "bad"},
        tick(good, 60, phase=1, share=0.3) | {"rollout": "good"},
    )
    assert [a["decision"] for a in answers[2:]] == ["rollback", "hold"]


@pytest.mark.parametrize(("value", "said"), [(None, "nan"), (math.nan, "nan"), (math.inf, "inf"), (-3.0, "-3.0")])
def test_a_scrape_with_what_is_no_count_is_named_and_never_promotes(value: float | None, said: str) -> None:
    pair = Pair(24)
    broken = tick(pair, 1, phase=0, share=0.3, is_gate=True)
    broken["scrapes"][0]["cand"][1] = value
    answers, _ = converse(init(), tick(pair, 240, phase=-1, share=0.0), tick(pair, 80, phase=0, share=0.3), broken)
    assert answers[-1]["decision"] == "hold"
    assert f"errors is {said}" in answers[-1]["problem"]


def test_what_cannot_be_understood_is_answered_with_hold_and_the_next_line_still_judged() -> None:
    answers, status = converse(
        "{",
        {"type": "tick", "scrapes": []},
        {"type": "song"},
        init(slo={"joy": 1}),
        init(),
        tick(Pair(25), 4, phase=0, share=0.3),
    )
    assert [a["decision"] for a in answers] == ["hold"] * 5
    assert ["error" in a for a in answers] == [True, True, True, True, False]
    assert "unknown limit 'joy'" in answers[3]["error"]
    assert status == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slo": {"error_rate": 1.5}}, "not between 0 and 1"),
        ({"slo": {"p50_rel": 0.9}}, "margin must be positive"),
        ({"slo": {"cost_rel": math.inf}}, "margin must be positive"),
        ({"slo": {"error_rate": math.nan}}, "not between 0 and 1"),
        ({"slo": {}}, "needs gates"),
        ({"scrape_s": 0}, "must be positive"),
        ({"bounds": [2.0, 1.0]}, "buckets of 'latency'"),
        ({"bounds": [*EDGES[:-1], EDGES[-2]]}, "edges must be positive and rise"),
        ({"phases": [["canary"]]}, "IndexError"),
        ({"columns": ["requests"]}, "no column 'errors'"),
    ],
)
def test_an_init_that_contradicts_itself_is_refused_and_nothing_is_judged_under_its_name(
    change: dict[str, Any], said: str
) -> None:
    answers, status = converse(init(), init(**change), tick(Pair(26), 4, phase=0, share=0.3, is_gate=True))
    assert said in answers[0]["error"]
    assert answers[1] == {"decision": "hold", "error": "ValueError: tick before init"}
    assert status == 2


@pytest.mark.parametrize("phase", [-1, 0])
def test_columns_that_change_in_mid_stream_are_a_problem(phase: int) -> None:
    pair = Pair(27)
    changed = tick(pair, 3, phase=phase, share=0.3, is_gate=True)
    changed["scrapes"][1]["base"] = changed["scrapes"][1]["base"][:-2]
    answers, _ = converse(init(), tick(pair, 30, phase=phase, share=0.3), changed)
    assert answers[-1]["decision"] == "hold"
    assert "values" in answers[-1]["problem"] or "same length" in answers[-1]["problem"]


def test_the_same_lines_are_answered_with_the_same_lines() -> None:
    pair = Pair(28)
    lines = [init(), tick(pair, 60, phase=-1, share=0.0), tick(pair, 60, phase=0, share=0.2, is_gate=True)]
    assert converse(*lines, *lines) == ([*converse(*lines)[0]] * 2, 0)
