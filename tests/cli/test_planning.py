"""plan, simulate and backtest on the command line: exit codes, what stands in the answer, and what is refused with which
words."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from services.prometheus import PrometheusServer
from tests.adapters.backfill import Samples, filled
from tests.cli.conftest import Cli

PLAN = """\
apiVersion: penstock/v1
kind: Rollout
metadata: {name: chat, owner: team}
flag: chat-model
baseline: {model: gpt-4.1}
candidate: {model: gpt-5}
slos: [{name: errors, indicator: error_ratio, max: 1%}]
comparisons: [{name: p95, indicator: latency, quantile: 0.95, max_increase: 15%}]
gates: {every: 15m, guard_every: 15s, min_requests: 100}
phases:
  - {name: shadow, mode: shadow, traffic: 20%, bake: 30m}
  - {name: canary, traffic: 5%, bake: 30m}
  - {name: full, traffic: 100%, bake: 30m, approval: {from: [managers]}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


# --- plan -----------------------------------------------------------------------------------------------------------------------


def test_a_plan_says_first_whether_it_works(bare: Cli, file: Path) -> None:
    answer = bare("plan", file, "--rps", "100")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[0] == (
        "This plan works. A candidate like the baseline is promoted after 1 h 30 min plus the time that people take to approve."
    )
    assert "100 requests/s (given: 0.3% errors, p50 0.7 s and p95 2 s)" in answer.out


def test_a_plan_with_too_little_traffic_says_what_would_help_and_is_no_error(bare: Cli, file: Path) -> None:
    answer = bare("plan", file, "--rps", "1")
    assert answer.code == 0
    assert answer.out.startswith("This plan waits: ")
    assert "What would help:" in answer.out and "canary: " in answer.out


def test_a_plan_as_json_has_its_verdict_times_and_remedies(bare: Cli, file: Path) -> None:
    found = json.loads(bare("plan", file, "--rps", "100", "-o", "json").out)
    assert (found["verdict"], found["finish_s"]) == ("works", [5400.0, 5400.0])
    canary = found["phases"][1]
    assert canary["candidate_rps"] == pytest.approx(5.0) and canary["requests_in_bake"] == pytest.approx(9000)
    caught = {g["gate"]: g["caught"] for g in canary["gates"]}
    assert 0.01 < caught["errors"]["size"] < 0.1 and caught["errors"]["probability"] == 0.9
    assert caught["p95"]["exposed_requests"] == pytest.approx(caught["p95"]["after_s"] * 5.0)


def test_a_baseline_that_breaks_a_limit_is_said_and_is_no_error(bare: Cli, file: Path) -> None:
    found = json.loads(bare("plan", file, "--rps", "100", "--error-rate", "2%", "-o", "json").out)
    assert found["verdict"] == "stuck"
    assert any(p["about"] == "errors" and p["stops"] for p in found["problems"])
    assert bare("plan", file, "--rps", "100", "--error-rate", "2%").out.startswith("This plan cannot work")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "how much traffic is there? Write --rps N"),
        (("--rps", "0"), "rps: 0 is not a number of requests a second above 0"),
        (("--rps", "-3"), ""),
        (("--rps", "many"), ""),
        (("--rps", "5", "--prometheus"), "either given or read"),
        (("--rps", "5", "--error-rate", "1"), "--error-rate: '1' is not a percentage"),
        (("--rps", "5", "--p50", "3s"), "p50 must be above 0 s and below p95"),
        (("--rps", "5", "--p95", "slow"), "--p95: 'slow' is not a duration"),
    ],
)
def test_an_option_that_makes_no_sense_is_wrong_usage(bare: Cli, file: Path, words: tuple[str, ...], said: str) -> None:
    answer = bare("plan", file, *words)
    assert answer.code == 2 and answer.out.count("phase") == 0
    assert said in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_a_file_that_cannot_be_read_is_exit_code_two_with_its_place(bare: Cli, tmp_path: Path, command: str) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(PLAN.replace("max: 1%", "max: 1"))
    answer = bare(command, bad, "--rps", "5")
    assert answer.code == 2 and f"{bad}:7:" in answer.err and "slos.0.max" in answer.err
    assert bare(command, tmp_path / "none.yaml", "--rps", "5").code == 2


def test_no_heavy_library_is_loaded_before_it_is_needed() -> None:
    script = "import controller.cli.planning, sys; print([m for m in ('numpy', 'matplotlib', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- simulate -------------------------------------------------------------------------------------------------------------------


def test_scenarios_are_listed_with_a_line_each(bare: Cli, file: Path) -> None:
    answer = bare("simulate", file, "--scenario", "list")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert len(lines) == 17 and any(line.startswith("slower") and "30% slower" in line for line in lines)
    listed = json.loads(bare("simulate", file, "--scenario", "list", "-o", "json").out)
    assert {"scenario": "dearer", "text": "costs 25% more a request"} in listed


def simulated(bare: Cli, file: Path, *more: str) -> tuple[int, str, str]:
    scenarios = ("--scenario", "good", "--scenario", "errors=20%,name=failing")
    answer = bare("simulate", file, *scenarios, "--rps", "50", "--replicates", "2", "--workers", "1", *more)
    return answer.code, answer.out, answer.err


def test_simulated_rollouts_are_told_in_a_table(bare: Cli, file: Path) -> None:
    code, out, err = simulated(bare, file)
    assert (code, err) == (0, "")
    assert out.startswith("0 of 2 candidates within the limits were stopped, 0 of 2 beyond them were promoted.\n")
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("good", "failing"))}
    assert "get through" in rows["good"] and "promoted 2/2" in rows["good"] and "full" in rows["good"]
    assert (
        "be stopped" in rows["failing"] and "rolled back 2/2" in rows["failing"] and rows["failing"].rstrip().endswith("errors")
    )
    assert "approvals are given at once" in out


def test_simulated_rollouts_as_json_are_the_same_for_the_same_seed(bare: Cli, file: Path) -> None:
    first = simulated(bare, file, "-o", "json", "--seed", "5")
    assert first == simulated(bare, file, "-o", "json", "--seed", "5")
    found = json.loads(first[1])
    good, failing = found["scenarios"]
    assert found["seed"] == 5 and good["beyond"] == [] and failing["beyond"] == ["errors"]
    assert failing["outcomes"][0]["outcome"] == "rolled back" and failing["outcomes"][0]["gates"] == {"errors": 2}


def test_a_simulation_can_stop_where_people_are_asked(bare: Cli, file: Path) -> None:
    _, out, _ = simulated(bare, file, "--no-approvals")
    assert "awaits approval 2/2" in out and "rollouts stop where people are asked" in out


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn_where_it_was_asked_for(bare: Cli, file: Path, tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / f"outcomes{suffix}"
    code, _, err = simulated(bare, file, "--plot", str(picture))
    assert code == 0 and "drawn: " in err
    assert picture.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scenario", "quick"), "no scenario 'quick'; there are good, better"),
        (("--scenario", "speed=2"), "unknown 'speed'"),
        (("--replicates", "0"), "must be at least 1"),
        (("--workers", "0"), "must be at least 1"),
        (("--patience", "long"), "--patience: 'long' is not a duration"),
        (("--plot", "picture.gif"), "ends in .png or .svg"),
        (("--plot", "/nowhere/at/all.png"), "in a folder that exists"),
    ],
)
def test_a_simulation_that_cannot_be_made_is_wrong_usage(bare: Cli, file: Path, words: tuple[str, ...], said: str) -> None:
    answer = bare("simulate", file, "--rps", "5", *words)
    assert (answer.code, answer.out) == (2, "") and said in answer.err


# --- with a real Prometheus -----------------------------------------------------------------------------------------------------

LABELS = {"environment": "production", "flag": "chat-model", "route": "chat", "streaming": "false"}
EDGES = (0.25, 0.5, 1.0, 1.21, 1.3, 1.4641, 1.61051, 2.0, 2.14359, 2.35795, 3.0, 5.0)
SCRAPE_S = 15
HOURS = 5


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """Five hours of a router until now: 20 requests/s; the candidate has 2 of them, and after four hours a tenth of them
    fails."""
    end = math.floor(datetime.now(UTC).timestamp() / SCRAPE_S) * SCRAPE_S
    times = range(end - HOURS * 3600, end + 1, SCRAPE_S)
    samples = Samples()
    for arm, model, rps in (("baseline", "gpt-4.1", 18.0), ("candidate", "gpt-5", 2.0)):
        labels = {**LABELS, "arm": arm, "model": model}
        bad = [0.002 * rps * max(t - times[0], 0) for t in times]
        if arm == "candidate":
            bad = [b + 0.1 * rps * max(t - (end - 3600), 0) for b, t in zip(bad, times, strict=True)]
        n = [rps * (t - times[0]) for t in times]
        ms = [t * 1000 for t in times]
        samples.add("penstock_requests_total", {**labels, "outcome": "error"}, zip(ms, map(float, map(round, bad)), strict=True))
        ok = [float(round(a) - round(b)) for a, b in zip(n, bad, strict=True)]
        samples.add("penstock_requests_total", {**labels, "outcome": "ok"}, zip(ms, ok, strict=True))
        for edge in (*EDGES, math.inf):
            share = 1.0 if math.isinf(edge) else 0.5 * math.erfc(-math.log(edge / 0.7) / 0.638 / math.sqrt(2))
            counts = [a * share for a in n]  # not rounded: a bucket's rounding must not exceed the next one's
            le = "+Inf" if math.isinf(edge) else f"{edge:g}"
            samples.add("penstock_request_duration_seconds_bucket", {**labels, "le": le}, zip(ms, counts, strict=True))
    with filled(tmp_path_factory.mktemp("recording"), samples) as running:
        yield running


@pytest.fixture
def recorded(bare: Cli, recording: PrometheusServer, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("PENSTOCK_PROMETHEUS_URL", recording.url)
    return bare


@pytest.mark.services
def test_a_plan_reads_todays_traffic_of_the_baseline(recorded: Cli, file: Path) -> None:
    answer = recorded("plan", file, "-o", "json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["traffic"]["source"] == "measured"
    assert found["traffic"]["rps"] == pytest.approx(18.0, rel=0.05)


@pytest.mark.services
def test_a_plans_queries_say_in_prometheus_what_the_baseline_does_today(
    recorded: Cli, file: Path, recording: PrometheusServer
) -> None:
    found = {q["gate"]: q for q in json.loads(recorded("plan", file, "-o", "json").out)["queries"]}
    assert set(found) == {"errors", "p95"}
    for gate in found.values():
        answer = httpx.get(f"{recording.url}/api/v1/query", params={"query": gate["queries"]["baseline"]}).json()
        [series] = answer["data"]["result"]
        assert float(series["value"][1]) == pytest.approx(gate["today"], rel=0.05)
    shown = recorded("plan", file, "--promql")
    assert "baseline today" in shown.out and found["p95"]["queries"]["candidate"] in shown.out
    assert "Queries:" not in recorded("plan", file).out


@pytest.mark.services
def test_a_backtest_finds_when_the_candidate_began_to_fail(recorded: Cli, file: Path) -> None:
    answer = recorded("backtest", file, "--from", "2h", "-o", "json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["requests"]["candidate"] == pytest.approx(2.0 * 7200, rel=0.02)
    begin = datetime.now(UTC) - timedelta(hours=1)
    for phase in found["phases"]:
        assert phase["stopped"]["gate"] == "errors" and phase["stopped"]["kind"] == "rollback"
        at = datetime.fromisoformat(phase["stopped"]["at"])
        assert timedelta(0) < at - begin < timedelta(minutes=20)
    assert "Would have rolled back in every phase" in recorded("backtest", file, "--from", "2h").out


@pytest.mark.services
def test_a_backtest_of_the_good_hours_stops_nothing(recorded: Cli, file: Path) -> None:
    answer = recorded("backtest", file, "--from", "-3h", "--to", "-90m")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("Nothing would have been stopped, and every phase's gates would have passed.")


@pytest.mark.services
def test_a_backtest_of_other_labels_finds_other_traffic(recorded: Cli, file: Path) -> None:
    arms = ("--arm", "baseline=model:gpt-4.1", "--arm", "candidate=model:gpt-5")
    assert "2 h" not in recorded("backtest", file, "--from", "2h", *arms).err
    nobody = ("--arm", "baseline=model:x", "--arm", "candidate=model:y")
    answer = recorded("backtest", file, "--from", "2h", *nobody)
    assert answer.code == 1 and "nothing was recorded" in answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--from", "yesterday"), "'yesterday' is no time"),
        (("--from", "1h", "--to", "2h"), "must lie before --to"),
        (("--from", "1h", "--to", "2999-01-01"), "not in the future"),
        (("--from", "1h", "--arm", "baseline"), "--arm 'baseline': write baseline=label:value"),
        (("--from", "1h", "--arm", "shadow=a:b"), "--arm 'shadow=a:b'"),
    ],
)
def test_a_backtest_that_cannot_be_made_is_wrong_usage(bare: Cli, file: Path, words: tuple[str, ...], said: str) -> None:
    answer = bare("backtest", file, *words)
    assert (answer.code, answer.out) == (2, "") and said in answer.err


def test_a_backtest_without_prometheus_says_how_to_name_one(bare: Cli, file: Path) -> None:
    answer = bare("backtest", file, "--from", "1h")
    assert answer.code == 1 and "PENSTOCK_PROMETHEUS_URL" in answer.err


# --- the calendar ---------------------------------------------------------------------------------------------------------------


def test_a_plan_stands_on_the_calendar_with_its_freezes(bare: Cli, tmp_path: Path) -> None:
    begin = datetime.now(UTC)
    frozen = [(begin + timedelta(minutes=45)).replace(tzinfo=None), (begin + timedelta(hours=10)).replace(tzinfo=None)]
    file = tmp_path / "frozen.yaml"
    file.write_text(
        PLAN + f'freeze: [{{name: night, from: "{frozen[0].isoformat()}", to: "{frozen[1].isoformat()}", timezone: UTC}}]\n'
    )
    found = json.loads(bare("plan", file, "--rps", "100", "-o", "json").out)
    shadow, canary, full, promoted = found["calendar"]
    at = {step["phase"]: datetime.fromisoformat(step["begins_at"]) for step in found["calendar"]}
    assert (shadow["phase"], canary["phase"], full["phase"], promoted["phase"]) == ("shadow", "canary", "full", None)
    # The mirrored half hour is over before the freeze, the canary's is not.
    assert at["canary"] - at["shadow"] == timedelta(minutes=30) and canary["frozen"] is None
    assert at["full"] == frozen[1].replace(tzinfo=UTC) and full["frozen"] == "night"
    assert full["waits_s"] == pytest.approx((at["full"] - at["canary"] - timedelta(minutes=30)).total_seconds())
    assert full["asks"] == "1 of managers"
    assert at[None] - at["full"] == timedelta(minutes=30)
    assert [f["name"] for f in found["freezes"]] == ["night"]
    out = bare("plan", file, "--rps", "100").out
    assert "waits for a freeze" in out and "(night)" in out and "Frozen on the way:" in out


def test_a_plan_that_is_never_left_has_no_dates_after_that(bare: Cli, file: Path) -> None:
    found = json.loads(bare("plan", file, "--rps", "100", "--error-rate", "2%", "-o", "json").out)
    assert found["calendar"][0]["begins_at"] is not None
    assert found["calendar"][-1]["begins_at"] is None
    assert "never" in bare("plan", file, "--rps", "100", "--error-rate", "2%").out
