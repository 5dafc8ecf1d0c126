"""The router's alert rules: what promtool says of them, and that they and the page about them name only what exists."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from router.metrics import RouterMetrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deployments/prometheus/penstock-router-rules.yaml"
SCENARIOS = RULES.with_name("penstock-router-rules-test.yaml")
PAGE = ROOT / "docs/reference/router-metrics.md"

ALERTS = {rule["alert"]: rule for group in YAML(typ="safe").load(RULES)["groups"] for rule in group["rules"]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(("check", "file"), [("check", RULES), ("test", SCENARIOS)], ids=["check", "test"])
def test_promtool_accepts_the_rules_and_their_scenarios(check: str, file: Path) -> None:
    done = subprocess.run(["promtool", check, "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_scenario_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tested = YAML(typ="safe").load(SCENARIOS)["tests"]
    checks = [(one["alertname"], bool(one.get("exp_alerts"))) for test in tested for one in test["alert_rule_test"]]
    assert set(checks) == {(name, fires) for name in ALERTS for fires in (True, False)}


def test_rules_ask_only_for_metrics_that_are_exported() -> None:
    families = RouterMetrics("e").registry.collect()
    exported = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    asked = {name for rule in ALERTS.values() for name in re.findall(r"penstock_\w+", rule["expr"])}
    assert len(asked) >= 7 and asked <= exported


def test_the_page_names_every_alert_and_no_other() -> None:
    assert set(re.findall(r"^\| `(Penstock\w+)` \|", PAGE.read_text(), re.MULTILINE)) == set(ALERTS)
