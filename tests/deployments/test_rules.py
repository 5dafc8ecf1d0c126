"""The alert rules: what promtool says of them, and that they and the page about them name only metrics that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML

from controller import metrics
from controller.adapters.postgres.census import ENDS, Durations, Moment
from controller.console import flags_hub
from controller.console.health import CensusCollector

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deployments" / "prometheus" / "penstock-rules.yaml"
PAGE = ROOT / "docs" / "reference" / "controller-metrics.md"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


class OneOfEach:
    """A census with something of everything, so that every metric has a sample."""

    def __init__(self) -> None:
        self.decisions = {("guard", "hold"): 1}
        self.verdicts = {("guard", "pass"): 1}
        self.durations = {outcome: Durations() for outcome in ENDS.values()}

    def read_on(self) -> None:
        pass

    def moment(self) -> Moment:
        return Moment(active=1, waiting=0, oldest_s=0.0, refused=0, beats={"guard": 1.0}, unchecked=0)


def exported() -> set[str]:
    """Names as they stand in an expression."""
    registry = CollectorRegistry()
    registry.register(CensusCollector(OneOfEach()))  # type: ignore[arg-type]  # duck-typed
    families = [*registry.collect(), *metrics.REGISTRY.collect(), *flags_hub.REGISTRY.collect()]
    return {f"{f.name}_total" if f.type == "counter" else f.name for f in families}


def alerts() -> list[dict[str, object]]:
    groups = YAML(typ="safe").load(RULES)["groups"]
    return [rule for group in groups for rule in group["rules"]]


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_each_alert_fires_for_its_cause_and_none_without_one() -> None:
    scenarios = RULES.with_name("penstock-rules-test.yaml")
    done = subprocess.run(["promtool", "test", "rules", scenarios], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = scenarios.read_text()
    assert [a["alert"] for a in alerts() if f"alertname: {a['alert']}" not in tested] == []


def test_rules_ask_only_for_metrics_that_are_exported() -> None:
    asked = {name for rule in alerts() for name in re.findall(r"penstock_\w+", str(rule["expr"]))}
    assert len(asked) >= 8
    assert asked - exported() == set()


def test_the_page_names_every_metric_and_every_alert_and_no_other() -> None:
    named = set(re.findall(r"^\| `(penstock_\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert named == exported()
    assert set(re.findall(r"^\| `(Penstock\w+)` \|", PAGE.read_text(), re.MULTILINE)) == {str(a["alert"]) for a in alerts()}
    assert len(alerts()) == 12


def test_every_runbook_that_an_alert_names_is_there() -> None:
    runbooks = {str(a["annotations"].get("runbook", "")) for a in alerts()} - {""}  # type: ignore[attr-defined]  # a mapping
    assert runbooks and all((ROOT / r).exists() for r in runbooks)
