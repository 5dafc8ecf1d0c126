"""Logging in with an OpenID Connect provider: the real application against one that keeps to the protocol, and one that does not."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from controller.adapters.oidc import OidcProvider
from controller.settings import SettingsError, load
from controller.wiring import make_oidc
from tests.console.provider import CLIENT, SECRET, Provider
from tests.console.web import WITH_PASSWORDS, Browser, Site, site, words
from tests.ports.databases import Databases

pytestmark = pytest.mark.services

PEOPLE = WITH_PASSWORDS.replace("  - name: dana\n", "  - name: dana\n    email: Dana@example.com\n")


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture
def console(databases: Databases, tmp_path: Path, provider: Provider) -> Iterator[Site]:
    given = {"PENSTOCK_OIDC_ISSUER": provider.issuer, "PENSTOCK_OIDC_CLIENT_ID": CLIENT, "PENSTOCK_OIDC_CLIENT_SECRET": SECRET}
    with site(databases, tmp_path, PEOPLE, **given) as made:
        yield made


def away(browser: Browser, after: str = "") -> str:
    """To the provider and back: the path that the provider sends the browser to."""
    where = browser.get(f"/login/oidc{after}").headers["location"]
    back = urlsplit(httpx.get(where, trust_env=False).headers["location"])
    return f"{back.path}?{back.query}"


def test_a_person_whom_the_issuer_vouches_for_is_in(console: Site, provider: Provider) -> None:
    browser = console.browser()
    assert f"Log in with {provider.issuer}" in words(browser.get("/login?next=%2Fflags"))
    answer = browser.get(away(browser, "?next=%2Fflags"))
    assert (answer.status_code, answer.headers["location"]) == (303, "/flags")
    assert "managers" in words(browser.get("/me"))
    assert provider.asked[0]["redirect_uri"] == "http://penstock.example/login/oidc/back"


@pytest.mark.parametrize(
    "spoil, status",
    [
        ({"nonce": "another"}, 401),
        ({"aud": "another-client"}, 401),
        ({"aud": [CLIENT, "another-client"]}, 401),
        ({"iss": "https://evil.example"}, 401),
        ({"exp": int(time.time()) - 3_600}, 401),
        ({"iat": int(time.time()) + 3_600}, 401),
        ({"email_verified": False}, 401),
        ({"email_verified": "true"}, 401),
        ({"email": None}, 401),
        ({"email": "mallory@example.com"}, 403),
        ({"signed": "none"}, 401),
        ({"signed": "secret"}, 401),
        ({"signed": "another"}, 401),
        ({"state": "another"}, 401),
        ({"error": "access_denied"}, 401),
    ],
)
def test_an_answer_that_is_not_wholly_right_lets_nobody_in(
    console: Site, provider: Provider, spoil: dict[str, object], status: int
) -> None:
    provider.spoil = spoil
    browser = console.browser()
    assert browser.get(away(browser)).status_code == status
    assert browser.get("/rollouts").status_code == 303


def test_an_answer_counts_once_and_only_in_the_browser_that_asked(console: Site) -> None:
    browser, other = console.browser(), console.browser()
    back = away(browser)
    assert other.get(back).status_code == 403
    away(other)
    assert other.get(back).status_code == 401
    assert browser.get(back).status_code == 303
    again = console.browser()
    again.client.cookies.update(browser.client.cookies)
    assert again.get(back).status_code in (401, 403)


def test_a_session_ends_when_its_e_mail_is_another_persons(console: Site) -> None:
    browser = console.browser()
    browser.get(away(browser))
    assert browser.get("/rollouts").status_code == 200
    console.served.people_file.write_text(PEOPLE.replace("Dana@", "somebody@"))
    assert browser.get("/rollouts").status_code == 303


def test_a_provider_that_calls_itself_otherwise_or_is_away_is_said_so(console: Site, provider: Provider) -> None:
    provider.spoil = {"issuer": "https://evil.example"}
    answer = console.browser().get("/login/oidc")
    assert answer.status_code == 503
    assert "calls itself" in words(answer)


def test_settings_that_are_half_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CLIENT_SECRET"):
        make_oidc(load({"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_OIDC_ISSUER": "https://id.example"}))
    with pytest.raises(ValueError, match="not an https"):
        OidcProvider("http://id.example", "c", "s")
