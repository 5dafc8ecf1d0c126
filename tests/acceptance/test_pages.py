"""What people see of a finished demo in a browser: Prefect's history of the rollouts and the Slack channel."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.acceptance.conftest import Demo
from tests.browser import chromium

pytestmark = [pytest.mark.acceptance, pytest.mark.browser, pytest.mark.timeout(700)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(60_000)
    yield opened
    opened.close()


def test_prefects_list_of_runs_names_the_rollouts_and_how_they_ended(demo: Demo, page: Page) -> None:
    page.goto(demo.addresses["Prefect"])
    # Gate checks come every few seconds: a page draws only the first of a long list.
    page.get_by_role("searchbox", name="Search by flow run name").fill("chat-")
    for text in ("chat-good: gpt-4.1 → gpt-5", "Promoted", "Rolled back"):
        expect(page.get_by_text(text, exact=False).first).to_be_visible(timeout=60_000)


def test_an_artifact_shows_the_evidence_of_the_rollback(demo: Demo, page: Page) -> None:
    base = demo.addresses["Prefect"].removesuffix("/runs")
    page.goto(f"{base}/artifacts/key/gate-{demo.rows['slow']['rollout_id']}")
    breached = demo.rows["slow"]["decisions"][-1]["text"].partition(":")[0]
    expect(page.get_by_text(breached).first).to_be_visible(timeout=60_000)


def test_the_form_of_the_rollout_deployment_asks_for_the_plan(demo: Demo, page: Page) -> None:
    base = demo.addresses["Prefect"].removesuffix("/runs")
    deployment_id = httpx.get(f"{base}/api/deployments/name/rollout/rollout").json()["id"]
    page.goto(f"{base}/deployments/deployment/{deployment_id}/run")
    for text in ("The rollout, as in rollout.yaml.", "Name of the rollout", "The flag that this rollout moves"):
        expect(page.get_by_text(text).first).to_be_visible()


def test_the_slack_channel_has_one_message_a_rollout_and_its_end_in_it(demo: Demo, page: Page) -> None:
    page.goto(demo.addresses["Slack stand-in"])
    for scenario, words in (("good", "promoted"), ("slow", "rolled back"), ("errors", "rolled back"), ("silent", "rolled back")):
        rollout_id = demo.rows[scenario]["rollout_id"]
        expect(page.get_by_text(rollout_id, exact=False).first).to_be_visible()
        expect(page.get_by_text(words, exact=False).first).to_be_visible()


FORMS = {
    "metadata": {"name": "forms"},
    "environment": "demo",
    "flag": "forms",
    "baseline": {"model": "gpt-4.1"},
    "candidate": {"model": "gpt-5"},
    "slos": [{"name": "errors", "indicator": "error_ratio", "max": "1%"}],
    "gates": {"every": "5s", "guard_every": "1s"},
    "phases": [
        {"name": "canary", "traffic": "5%", "bake": "1h", "approval": {"from": ["release-managers"]}},
        {"name": "full", "traffic": "100%", "bake": "1h"},
    ],
}


def test_prefects_forms_start_approve_and_roll_back(demo: Demo, page: Page) -> None:
    prefect = demo.addresses["Prefect"].removesuffix("/runs")
    found = httpx.post(f"{prefect}/api/deployments/filter", json={}).json()
    forms = {d["name"]: f"{prefect}/deployments/deployment/{d['id']}/run" for d in found}

    def submit(form: str, parameters: dict[str, Any]) -> None:
        page.goto(forms[form])
        expect(page.get_by_text("Validate parameters")).to_be_visible()
        page.locator("button.p-button--outline").first.click()
        page.get_by_text("Use JSON input").click()
        page.locator("textarea.p-code-input__textarea").first.fill(json.dumps(parameters))
        page.get_by_role("button", name="Submit").click()
        with suppress(AssertionError):
            expect(page).not_to_have_url(re.compile("/run$"))
            return
        # Prefect's server keeps its runs in SQLite, and refuses a run while that is busy with others.
        page.get_by_role("button", name="Submit").click()
        expect(page).not_to_have_url(re.compile("/run$"), timeout=15_000)

    submit("rollout", {"spec": FORMS, "requested_by": "alice"})
    rollout = became(demo, "awaiting_approval")
    submit("approve", {"rollout": rollout, "group": "release-managers", "approver": "dana"})
    assert became(demo, "baking") == rollout
    submit("rollback", {"rollout": rollout, "reason": "walked through the form", "requested_by": "dana"})
    assert became(demo, "rolled_back") == rollout


def became(demo: Demo, state: str) -> str:
    """The id of the rollout of the forms, once it is in this state; pytest's own timeout is the limit of patience."""
    command = [sys.executable, "-m", "controller.cli.app", "list", "--all", "-o", "jsonl"]
    while True:
        listed = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PENSTOCK_HOME": str(demo.home)}
        )
        for row in map(json.loads, listed.stdout.splitlines()):
            if row["flag"] == "forms" and row["state"] == state:
                return str(row["rollout_id"])
        time.sleep(0.5)
