"""What people see of a finished demo in a browser: Prefect's history of the rollouts and the Slack channel."""

import os
import shutil
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.acceptance.conftest import Demo

pytestmark = [pytest.mark.acceptance, pytest.mark.browser, pytest.mark.timeout(700)]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed; ./dev test installs it or says how"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS, env=dict(os.environ))
        yield running
        running.close()


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
