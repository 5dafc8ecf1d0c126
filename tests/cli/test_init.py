"""`penstock init` on a real Prometheus: what it writes is a plan that works on the traffic that it was made from."""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.core.plan import QuantileLimit, RateLimit
from controller.spec import read
from flagspec.latency import LATENCY_EDGES_S
from services.prometheus import PrometheusServer
from tests.adapters.backfill import Samples, filled
from tests.cli.conftest import Cli

pytestmark = pytest.mark.services

SCRAPE_S, HOURS = 15, 7
OTEL_EDGES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)


def grow(samples: Samples, metric: str, labels: dict[str, str], rate: float) -> None:
    # Until now, when the recording is made: this file may have been imported long ago.
    end = math.floor(datetime.now(UTC).timestamp() / SCRAPE_S) * SCRAPE_S
    first = end - HOURS * 3600
    samples.add(metric, labels, ((t * 1000, rate * (t - first)) for t in range(first, end + 1, SCRAPE_S)))


def buckets(samples: Samples, metric: str, labels: dict[str, str], rps: float, edges: tuple[float, ...], median_s: float) -> None:
    for edge in (*edges, math.inf):
        share = 1.0 if math.isinf(edge) else 0.5 * math.erfc(-math.log(edge / median_s) / 0.6 / math.sqrt(2))
        grow(samples, metric, {**labels, "le": "+Inf" if math.isinf(edge) else f"{edge:g}"}, rps * share)


def router(samples: Samples, flag: str, model: str, rps: float, *, arm: str = "baseline", errors: float = 0.002) -> None:
    labels = {"environment": "staging", "flag": flag, "arm": arm, "model": model}
    grow(samples, "penstock_requests_total", {**labels, "outcome": "ok"}, rps * (1 - errors))
    grow(samples, "penstock_requests_total", {**labels, "outcome": "error"}, rps * errors)
    grow(samples, "penstock_cost_usd_total", labels, rps * 0.01)
    grow(samples, "penstock_cost_requests_total", labels, rps)
    buckets(samples, "penstock_request_duration_seconds_bucket", labels, rps, LATENCY_EDGES_S, 0.7)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    samples = Samples()
    router(samples, "chat-model", "gpt-4.1", 20.0)
    router(samples, "search-model", "haiku", 5.0, errors=0.04)
    router(samples, "chat-model", "gpt-5", 50.0, arm="shadow")
    otel = {"gen_ai_request_model": "opus-4", "gen_ai_operation_name": "chat"}
    grow(samples, "gen_ai_client_operation_duration_seconds_count", otel, 30.0)
    buckets(samples, "gen_ai_client_operation_duration_seconds_bucket", otel, 30.0, OTEL_EDGES, 0.9)
    with filled(tmp_path_factory.mktemp("traffic"), samples) as running:
        yield running


@pytest.fixture
def busy(bare: Cli, traffic: PrometheusServer, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("PENSTOCK_PROMETHEUS_URL", traffic.url)
    return bare


def test_the_busiest_flag_gets_a_plan_that_works_with_limits_that_hold_today(busy: Cli, tmp_path: Path) -> None:
    file = tmp_path / "rollout.yaml"
    made = busy("init", str(file), "--candidate", "gpt-5", "-o", "json")
    assert made.code == 0, made.err
    told = json.loads(made.out)
    assert (told["profile"], told["flag"]) == ("router", "chat-model") and told["rps"] == pytest.approx(20.0, rel=0.02)
    plan = read(file).to_plan()
    assert (plan.environment, plan.baseline.model, plan.candidate.model) == ("staging", "gpt-4.1", "gpt-5")
    assert plan.phases[0].mode.value == "shadow" and plan.phases[2].approval is not None
    gates = {g.name: g for g in plan.gates}
    latency, errors = gates["latency-p95"], gates["error-rate"]
    p95 = 0.7 * math.exp(1.645 * 0.6)
    assert isinstance(latency, QuantileLimit) and 1.25 * p95 < latency.limit_s < 1.5 * p95 and latency.limit_s in LATENCY_EDGES_S
    assert isinstance(errors, RateLimit) and errors.limit == 0.01
    assert {"cost-vs-baseline", "p95-vs-baseline"} <= set(gates) and "ttft-p95" not in gates, "of which there is nothing"
    assert "ttft" not in file.read_text() and "# Made by penstock init from 20 requests/s of gpt-4.1" in file.read_text()
    assert busy("lint", str(file)).code == 0
    assert json.loads(busy("plan", str(file), "-o", "json").out)["verdict"] == "works"
    assert busy("doctor", str(file), "-o", "json").out.count('"what": "metrics", "ok": true') == 1


def test_another_flag_with_more_failures_and_less_traffic_gets_other_limits_and_longer_phases(busy: Cli, tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    made = busy("init", str(file), "--candidate", "sonnet", "--flag", "search-model", "--owner", "search", "-o", "json")
    assert made.code == 0, made.err
    plan = read(file).to_plan()
    errors = next(g for g in plan.gates if g.name == "error-rate")
    assert isinstance(errors, RateLimit) and errors.limit == 0.1, "twice 4%, rounded up"
    assert (plan.baseline.model, plan.owner, plan.name) == ("haiku", "search", "search-model-sonnet")
    assert json.loads(busy("plan", str(file), "-o", "json").out)["verdict"] == "works"


def test_an_application_with_opentelemetry_gets_a_plan_in_its_own_names(busy: Cli, tmp_path: Path) -> None:
    file = tmp_path / "otel.yaml"
    made = busy("init", str(file), "--profile", "otel-genai", "--candidate", "opus-4.1", "--flag", "writer", "-o", "json")
    assert made.code == 0, made.err
    plan = read(file).to_plan()
    assert (plan.profile, plan.flag, plan.baseline.model) == ("otel-genai", "writer", "opus-4")
    assert all(p.mode.value == "live" for p in plan.phases), "nobody mirrors for it"
    latency = next(g for g in plan.gates if g.name == "latency-p95")
    assert isinstance(latency, QuantileLimit) and latency.limit_s == 3.2
    assert {g.name for g in plan.gates} == {
        "latency-p95",
        "error-rate",
        "timeout-rate",
        "p95-vs-baseline",
        "candidate-reports",
        "traffic-split",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Write --candidate NAME"),
        (
            ("--candidate", "gpt-5", "--flag", "nothing"),
            "there is no such traffic; seen were gpt-4.1 on flag chat-model in staging, 20 requests/s",
        ),
        (("--candidate", "gpt-5", "--profile", "mine"), "--profile mine: write router"),
        (("--candidate", "gpt-5", "--profile", "litellm"), "no requests of the last 6 hours by the names of litellm"),
        (("--candidate", "gpt-4.1"), "same as the baseline"),
        (("--candidate", "a model"), "candidate.model"),
    ],
)
def test_what_cannot_be_written_is_said_and_no_file_is_left(busy: Cli, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    file = tmp_path / "rollout.yaml"
    answer = busy("init", str(file), *words)
    assert answer.code in (1, 2) and answer.out == "" and said in answer.err
    assert not file.exists()


def test_a_file_that_is_there_stays_unless_it_is_forced(busy: Cli, tmp_path: Path) -> None:
    file = tmp_path / "rollout.yaml"
    file.write_text("mine")
    kept = busy("init", str(file), "--candidate", "gpt-5")
    assert kept.code == 2 and "--force writes over it" in kept.err and file.read_text() == "mine"
    forced = busy("init", str(file), "--candidate", "gpt-5", "--force")
    assert forced.code == 0 and "next: penstock plan" in forced.out and read(file).flag == "chat-model"


def test_without_prometheus_it_says_how_to_name_one(bare: Cli, tmp_path: Path) -> None:
    answer = bare("init", str(tmp_path / "rollout.yaml"), "--candidate", "gpt-5")
    assert answer.code == 2 and "PENSTOCK_PROMETHEUS_URL" in answer.err
