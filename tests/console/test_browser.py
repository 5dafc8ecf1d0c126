"""The console in chromium against `penstock serve`, a real Postgres and rollouts that the real controller moves."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from controller.adapters.memory import MemoryMetrics
from controller.adapters.postgres import app_url
from controller.core.measurement import Counts, Sampled
from controller.core.rollout import replay
from controller.ports import Ports
from controller.settings import load
from controller.sweep import sweep
from controller.wiring import open_api
from services.ports import free_port
from services.process import ChildProcess, http_ready
from tests.api.conftest import PLAN, TOKENS
from tests.browser import chromium
from tests.console.web import PASSWORD, WITH_PASSWORDS
from tests.ports.databases import Databases
from tests.ports.events import applied, change, decided, hold, opened, roll_back

pytestmark = [pytest.mark.services, pytest.mark.browser]

RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}


@dataclass(frozen=True, slots=True)
class Live:
    """`penstock serve` at `url`, and the ports of a controller beside it."""

    url: str
    ports: Ports

    def look(self, rollout_id: str) -> None:
        list(sweep(self.ports, may_raise=True, only=[rollout_id], force=True))


@pytest.fixture
def live(databases: Databases, tmp_path: Path) -> Iterator[Live]:
    people = tmp_path / "people.yaml"
    people.write_text(WITH_PASSWORDS)
    given = {
        "PENSTOCK_HOME": str(tmp_path),
        "PENSTOCK_DATABASE_URL": app_url(databases.migrated()),
        "PENSTOCK_PROMETHEUS_URL": "http://127.0.0.1:9",
        "PENSTOCK_PEOPLE_FILE": str(people),
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "PREFECT_"))} | given
    url = f"http://127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "controller.cli.app", "serve", "--listen", url.removeprefix("http://")]
    child = ChildProcess(argv, log_path=tmp_path / "serve.log", name="serve", env=env)
    try:
        child.wait_ready(http_ready(f"{url}/healthz"), timeout_s=60)
        with open_api(load(given)) as api:
            assert api is not None
            metrics = MemoryMetrics({"no-sev1": Sampled(candidate=Counts(bad=0.0, total=0.0))})
            yield Live(url, replace(api.ports, metrics=metrics))
    finally:
        child.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


Enter = Callable[..., Page]


@pytest.fixture
def enter(browser: Browser, live: Live) -> Iterator[Enter]:
    """A page of a person who has logged in; at the end no page may have complained of anything."""
    complaints: list[str] = []

    def open_page(who: str, **context: object) -> Page:
        page = browser.new_context(base_url=live.url, **{"viewport": {"width": 1280, "height": 900}, **context}).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(30_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto("/login")
        page.get_by_label("Name").fill(who)
        page.get_by_label("Password").fill(PASSWORD if who == "dana" else TOKENS[who][0])
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Rollouts")).to_be_visible()
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert complaints == []


def fill(live: Live) -> str:
    """A rollout that was looked at and rolled back, one that runs, and a flag."""
    audit = live.ports.audit
    for rollout_id, flag in (("over-00000001", "other"), ("chat-00000002", "chat-second")):
        audit.append(opened(rollout_id, flag), None)
        begin = decided(rollout_id, 2)
        audit.append(begin, None)
        audit.append(applied(rollout_id, 3, begin), None)
        for i in range(8):
            audit.append(hold(rollout_id, 4 + i), None)
    end = roll_back("over-00000001", 12)
    audit.append(end, None)
    audit.append(applied("over-00000001", 13, end), None)
    live.ports.flags.write(change(5_000, key="chat-second"), 0)
    return "chat-00000002"


def start(page: Page) -> str:
    page.goto("/plan")
    page.get_by_label("rollout.yaml").fill(PLAN)
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.get_by_text("could start now")).to_be_visible()
    page.get_by_role("button", name="Start this rollout").click()
    page.wait_for_url("**/rollouts/*")
    return page.url.rpartition("/")[2]


def test_a_rollout_from_its_plan_to_its_rollback(live: Live, enter: Enter) -> None:
    dana, sam = enter("dana"), enter("sam")
    rollout_id = start(dana)
    sam.goto("/rollouts")
    live.look(rollout_id)
    # The page that was open already says so, without being loaded again.
    expect(sam.get_by_text("Waits for approval to enter canary")).to_be_visible()
    sam.get_by_role("link", name="chat", exact=True).click()
    sam.get_by_role("button", name="Approve").click()
    expect(sam.get_by_text("nobody is missing")).to_be_visible()
    live.look(rollout_id)
    expect(dana.get_by_label("The candidate has 5% of the traffic")).to_be_visible()
    flag = live.ports.flags.read("production", "chat-model")
    assert flag is not None
    assert flag.weight == 5_000
    sam.get_by_label("Reason of the rollback").fill("worse answers in German")
    sam.get_by_role("button", name="Roll back to 0%").click()
    expect(sam.get_by_label("The candidate has 0% of the traffic")).to_be_visible()
    expect(sam.get_by_text("worse answers in German").first).to_be_visible()
    expect(dana.get_by_label("The candidate has 0% of the traffic")).to_be_visible()
    flag = live.ports.flags.read("production", "chat-model")
    assert flag is not None
    assert flag.weight == 0


def test_what_somebody_is_typing_survives_news(live: Live, enter: Enter) -> None:
    page = enter("sam")
    rollout_id = fill(live)
    page.goto(f"/rollouts/{rollout_id}")
    field = page.get_by_label("Reason of the rollback")
    field.fill("half a sent")
    live.ports.audit.append(hold(rollout_id, 12), None)
    expect(page.get_by_text("12 rows")).to_be_visible()
    expect(field).to_have_value("half a sent")


def test_without_scripts_one_reads_and_rolls_back(live: Live, enter: Enter) -> None:
    page = enter("sam", java_script_enabled=False)
    rollout_id = start(enter("dana"))
    page.goto(f"/rollouts/{rollout_id}")
    page.get_by_label("Reason of the rollback").fill("no script here")
    page.get_by_role("button", name="Roll back to 0%").click()
    expect(page.get_by_text("no script here").first).to_be_visible()
    assert replay(live.ports.audit.entries(rollout_id)).ended


def test_a_keyboard_is_enough_to_roll_back(live: Live, enter: Enter) -> None:
    page = enter("sam")
    rollout_id = start(enter("dana"))
    page.goto(f"/rollouts/{rollout_id}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "reason":
            break
    page.keyboard.type("by hand")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Roll back to 0%")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("by hand").first).to_be_visible()


PAGES = (
    "/rollouts",
    "/rollouts/{0}",
    "/rollouts/over-00000001",
    "/rollouts/{0}/rows/2",
    "/rollouts/{0}/plan",
    "/flags",
    "/plan",
    "/audit",
    "/me",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_keep_the_rules_of_wcag_aa(live: Live, enter: Enter, scheme: str) -> None:
    page = enter("max", color_scheme=scheme)
    rollout_id = fill(live)
    found = []
    for path in (p.format(rollout_id) for p in PAGES):
        page.goto(path)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        for rule in Axe().run(page, options=RULES).response["violations"]:
            found += [f"{path}: {rule['id']}: {node['html'][:160]}" for node in rule["nodes"]]
    assert found == []


def test_nothing_is_cut_off_at_400_percent_or_on_a_phone(live: Live, enter: Enter) -> None:
    """WCAG's reflow: 1280 pixels at 400% are 320."""
    page = enter("max", viewport={"width": 320, "height": 640})
    rollout_id = fill(live)
    for path in (p.format(rollout_id) for p in PAGES):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, path
