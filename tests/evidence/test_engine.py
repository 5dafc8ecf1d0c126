"""The engine as a whole: what it stops, what it lets pass, what it refuses, and that it forgets nothing over a restart."""

import json
import math

import numpy as np
import pytest

from controller.core.evidence.config import EngineConfig, QuantileMargin, RateLimit, Rung, graduated
from controller.core.evidence.engine import Engine
from controller.core.evidence.increments import Problem
from controller.core.evidence.state import dump, load
from controller.core.evidence.verdict import Ruling
from controller.core.evidence.watch import Breach
from controller.judge import Desk, config_of
from tests.evidence.support import Pair, init

CONFIG = config_of(init())


def opened(pair: Pair, *, history: int = 240, requests: float = 300.0, config: EngineConfig = CONFIG) -> Engine:
    engine = Engine(config)
    scrapes = [pair.next(requests, 0.0) for _ in range(history)]
    if scrapes:
        engine.learn(scrapes[-1][0], scrapes[-1][1], [s[2] for s in scrapes])
    return engine


def feed(engine: Engine, pair: Pair, scrapes: int, share: float, requests: float = 300.0, **candidate: float) -> int | None:
    """Scrapes until a breach; None if there was none."""
    for i in range(scrapes):
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            found = engine.observe(*pair.next(requests, share, **candidate))
        assert not isinstance(found, Problem), found
        if isinstance(found, Breach):
            return i + 1
    return None


def test_a_sudden_catastrophe_is_stopped_within_three_scrapes() -> None:
    pair = Pair(1)
    engine = opened(pair)
    engine.enter(2)
    assert feed(engine, pair, 16, 0.25) is None
    stopped = feed(engine, pair, 20, 0.25, errors=0.30)
    assert stopped is not None and stopped <= 3
    verdict = engine.verdict()
    assert verdict.ruling is Ruling.ROLL_BACK
    assert (verdict.gate, verdict.rung) == ("error_rate", "fast")


def test_one_bad_scrape_decides_nothing() -> None:
    pair = Pair(2)
    engine = opened(pair)
    engine.enter(2)
    assert feed(engine, pair, 16, 0.25) is None
    assert feed(engine, pair, 1, 0.25, errors=0.60) is None
    assert feed(engine, pair, 40, 0.25) is None


def test_an_incident_that_hits_both_arms_rolls_nothing_back_and_opens_no_gate() -> None:
    pair = Pair(3)
    engine = opened(pair)
    engine.enter(2)
    assert feed(engine, pair, 40, 0.25) is None
    assert feed(engine, pair, 40, 0.25, both_errors=0.15) is None
    assert engine.may_proceed == (False, "incident: the baseline itself is beyond a limit")


def test_a_good_candidate_is_proven_and_a_slow_one_rolled_back() -> None:
    pair = Pair(4)
    engine = opened(pair)
    engine.enter(3)
    assert feed(engine, pair, 80, 0.5) is None
    verdict = engine.verdict()
    assert verdict.ruling is Ruling.PROCEED, verdict.reason
    assert {f.missing for f in verdict.findings if f.need == "proof"} == {0.0}
    slow = opened(other := Pair(5))
    slow.enter(3)
    assert feed(slow, other, 240, 0.5, slower=1.3) is not None
    assert slow.verdict().gate in ("p50_rel", "p95_rel")


def test_dearer_requests_are_rolled_back_by_the_mean() -> None:
    pair = Pair(6)
    engine = opened(pair)
    engine.enter(3)
    assert feed(engine, pair, 240, 0.5, dearer=1.4) is not None
    assert engine.verdict().gate == "cost_rel"


def test_a_trickle_of_traffic_waits_and_says_what_is_missing() -> None:
    pair = Pair(7)
    engine = opened(pair, requests=8.0)
    engine.enter(1)
    assert feed(engine, pair, 60, 0.05, requests=8.0) is None
    verdict = engine.verdict()
    assert verdict.ruling is Ruling.HOLD
    assert verdict.reason.startswith("not enough evidence")
    finding = next(f for f in verdict.findings if f.gate == "error_rate")
    assert finding.missing is None or finding.missing > 0
    for finding in verdict.findings:
        if finding.requests == 0:
            assert finding.interval is None
            continue
        assert finding.interval is not None, finding.gate
        assert finding.interval[0] <= finding.observed <= finding.interval[1], finding.gate


def test_no_candidate_at_all_is_no_proof() -> None:
    pair = Pair(8)
    engine = opened(pair)
    engine.enter(1)
    assert feed(engine, pair, 60, 0.0) is None
    verdict = engine.verdict()
    assert verdict.ruling is Ruling.HOLD
    assert all(math.isnan(f.observed) for f in verdict.findings)


def test_without_history_the_baseline_is_learned_on_the_way() -> None:
    pair = Pair(9)
    engine = opened(pair, history=0)
    engine.enter(3)
    assert feed(engine, pair, 160, 0.5) is None
    assert engine.verdict().ruling is Ruling.PROCEED, engine.verdict().reason


def test_restarts_of_either_arm_change_no_ruling() -> None:
    pair = Pair(10)
    engine = opened(pair)
    engine.enter(3)
    for _ in range(8):
        assert feed(engine, pair, 10, 0.5) is None
        pair.cand.restart()
        pair.base.restart()
    assert engine.verdict().ruling is Ruling.PROCEED


def test_a_nan_is_a_problem_and_the_evidence_stays_as_it_was() -> None:
    pair = Pair(11)
    engine = opened(pair)
    engine.enter(2)
    feed(engine, pair, 10, 0.25)
    before = dump(engine)
    t, cand, base = pair.next(300, 0.25)
    found = engine.observe(t, [math.nan, *cand[1:]], base)
    assert isinstance(found, Problem)
    assert dump(engine) == before


def test_history_with_a_nan_is_learned_without_that_scrape_and_of_other_columns_refused() -> None:
    pair = Pair(14)
    scrapes = [pair.next(300, 0.0) for _ in range(60)]
    scrapes[30][2][1] = math.nan
    engine = Engine(CONFIG)
    engine.learn(scrapes[-1][0], scrapes[-1][1], [s[2] for s in scrapes])
    assert engine.reference.mean_rate[0] == pytest.approx(0.003, rel=0.2)
    with pytest.raises(ValueError, match="columns in every scrape"):
        Engine(CONFIG).learn(0.0, scrapes[-1][1], [[1.0, 2.0]])


@pytest.mark.parametrize("cut", [1, 37, 80])
def test_evidence_that_went_through_json_goes_on_bit_for_bit(cut: int) -> None:
    straight, broken = opened(one := Pair(12)), opened(two := Pair(12))
    for engine, pair in ((straight, one), (broken, two)):
        engine.enter(0)
        feed(engine, pair, 30, 0.1)
        engine.enter(1)
        feed(engine, pair, cut, 0.05, slower=1.05)
    broken = load(CONFIG, json.loads(json.dumps(dump(broken))))
    assert dump(broken) == dump(straight)
    for engine, pair in ((straight, one), (broken, two)):
        feed(engine, pair, 50, 0.05, slower=1.05)
        engine.enter(2)
        feed(engine, pair, 30, 0.25)
    assert dump(broken) == dump(straight)
    assert broken.verdict() == straight.verdict()


def test_how_many_scrapes_come_at_a_time_changes_nothing() -> None:
    """The same scrapes in ticks of one and of four end in the same evidence, bit for bit."""
    dumps = []
    for size in (1, 4):
        pair = Pair(15)
        desk = Desk(CONFIG)
        rows = [(-1, *pair.next(300, 0.0)) for _ in range(80)]
        rows += [(0, *pair.next(300, 0.1)) for _ in range(40)]
        rows += [(1, *pair.next(300, 0.05, slower=1.04)) for _ in range(40)]
        for i in range(0, len(rows), size):
            scrapes = [{"t": t, "phase": p, "share": 0.1, "cand": c, "base": b} for p, t, c, b in rows[i : i + size]]
            assert desk.tick({"scrapes": scrapes, "is_gate": False}) == {"decision": "hold"}
        dumps.append(dump(desk.engine))
    assert dumps[0] == dumps[1]


def test_evidence_of_other_gates_or_versions_is_refused() -> None:
    state = dump(Engine(CONFIG))
    with pytest.raises(ValueError, match="version"):
        load(CONFIG, state | {"version": 99})
    with pytest.raises(ValueError, match="other gates"):
        load(CONFIG, state | {"gates": ["latency"]})


def test_a_breach_survives_the_journey() -> None:
    pair = Pair(13)
    engine = opened(pair)
    engine.enter(2)
    feed(engine, pair, 40, 0.25, errors=0.4)
    assert engine.breach is not None
    assert load(CONFIG, json.loads(json.dumps(dump(engine)))).verdict().ruling is Ruling.ROLL_BACK


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gates": ()}, "needs gates"),
        ({"gates": (RateLimit(name="a", bad="nowhere", total="requests", limit=0.1),)}, "no column 'nowhere'"),
        ({"gates": (QuantileMargin(name="a", histogram="nowhere", q=0.5, margin=0.1),)}, "no histogram 'nowhere'"),
        ({"columns": ("requests", "requests")}, "same name"),
        (
            {
                "rungs": (
                    Rung(
                        name="r",
                        multiple=1.0,
                        worse=1.0,
                        alpha=0.2,
                        cap_nats=5.0,
                        cap_rates=5.0,
                        block=20,
                        every=1,
                        at_once=0.5,
                        ratios=(2.0,),
                    ),
                )
            },
            "spend more",
        ),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(change: dict[str, object], said: str) -> None:
    whole: dict[str, object] = {
        "columns": CONFIG.columns,
        "histograms": CONFIG.histograms,
        "gates": CONFIG.gates,
        "phases": graduated(("a",), (False,)),
    }
    with pytest.raises(ValueError, match=said):
        EngineConfig(**(whole | change))  # type: ignore[arg-type]


def test_a_limit_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        RateLimit(name="r", bad="errors", total="requests", limit=1.5)
    with pytest.raises(ValueError, match="margin must be positive"):
        QuantileMargin(name="q", histogram="latency", q=0.95, margin=0.0)
