"""Who gets into the console, and what keeps others out: on the real application and a real Postgres."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from controller.people import hash_password, is_password
from tests.api.conftest import TOKENS
from tests.console.web import PASSWORD, WITH_PASSWORDS, Browser, Site, forms, site, words
from tests.ports.databases import Databases

pytestmark = pytest.mark.services

PAGES = ("/rollouts", "/flags", "/plan", "/audit", "/me", "/audit/export?format=csv")


@pytest.fixture
def console(databases: Databases, tmp_path: Path) -> Iterator[Site]:
    with site(databases, tmp_path) as made:
        yield made


def test_a_hash_is_of_one_password_and_no_two_are_alike() -> None:
    one, two = hash_password(PASSWORD), hash_password(PASSWORD)
    assert one != two
    assert is_password(PASSWORD, one)
    assert is_password(PASSWORD, two)
    assert not is_password(PASSWORD + "r", one)
    assert not is_password("", "")
    # The same letters, composed and decomposed: keyboards differ in which they send.
    assert is_password(
        "cafe\N{COMBINING ACUTE ACCENT}-cafe-cafe", hash_password("caf\N{LATIN SMALL LETTER E WITH ACUTE}-cafe-cafe")
    )


@pytest.mark.parametrize("path", PAGES)
def test_nobody_sees_a_page_without_a_login(console: Site, path: str) -> None:
    answer = console.browser().get(path)
    assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login")


def test_a_password_logs_in_and_leads_to_where_one_wanted_to_be(console: Site) -> None:
    browser = console.browser()
    assert browser.get("/flags").headers["location"] == "/login?next=%2Fflags"
    answer = browser.log_in("dana", PASSWORD, "?next=%2Fflags")
    assert (answer.status_code, answer.headers["location"]) == (303, "/flags")
    assert "dana" in words(browser.get("/me"))


@pytest.mark.parametrize(
    "who, secret", [("dana", "wrong"), ("dana", ""), ("nobody", PASSWORD), ("sam", PASSWORD), ("dana", "pst_wrong")]
)
def test_a_wrong_password_says_nothing_about_who_exists(console: Site, who: str, secret: str) -> None:
    answer = console.browser().log_in(who, secret)
    assert answer.status_code == 401
    assert "no such login, or another password" in words(answer)
    assert secret not in ("", *forms(answer)["/login"].values())[1:] or not secret


def test_a_token_logs_in_with_the_rights_that_it_has(console: Site) -> None:
    browser = console.browser()
    assert browser.log_in("", TOKENS["dana-viewer"][0]).status_code == 303
    assert "You may read" in words(browser.get("/me"))


@pytest.mark.parametrize(
    "after",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "\\\\evil",
        "/%0d%0aX: y",
    ],
)
def test_a_login_leads_nowhere_else(console: Site, after: str) -> None:
    browser = console.browser()
    fields = forms(browser.get("/login"))["/login"] | {"login": "dana", "password": PASSWORD, "next": after}
    answer = browser.client.post("/login", data=fields, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/rollouts" or (after.startswith("/%") and answer.headers["location"] == after)


def test_a_login_makes_a_new_session_whatever_cookie_the_browser_came_with(console: Site) -> None:
    browser = console.browser()
    browser.get("/login")
    planted = browser.client.cookies["penstock"]
    browser.log_in("dana", PASSWORD)
    assert browser.client.cookies["penstock"] != planted
    thief = console.browser()
    thief.client.cookies.set("penstock", planted)
    assert thief.get("/rollouts").status_code == 303


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(databases: Databases, tmp_path: Path) -> None:
    with site(databases, tmp_path) as made:
        plain = made.browser().log_in("dana", PASSWORD).headers["set-cookie"].lower()
        made.base_url = "https://penstock.example"
        safe = made.browser().log_in("dana", PASSWORD)
    assert "httponly" in plain
    assert "samesite=lax" in plain
    assert "secure" not in plain
    assert safe.headers["set-cookie"].startswith("__Host-penstock=")
    assert "secure" in safe.headers["set-cookie"].lower()
    assert safe.headers["strict-transport-security"]


def test_a_logout_ends_the_session_for_whoever_has_its_cookie(console: Site) -> None:
    browser = console.browser("dana")
    stolen = browser.client.cookies["penstock"]
    assert browser.send("/rollouts", "/logout").status_code == 303
    thief = console.browser()
    thief.client.cookies.set("penstock", stolen)
    assert thief.get("/rollouts").headers["location"].startswith("/login")


@pytest.mark.parametrize("changed", ["another password", "no such person", "token taken out"])
def test_what_a_session_rests_on_ends_it_when_it_ends(console: Site, changed: str) -> None:
    by_password, by_token = console.browser(), console.browser("sam")
    by_password.log_in("dana", PASSWORD)
    assert by_password.get("/rollouts").status_code == by_token.get("/rollouts").status_code == 200
    text = WITH_PASSWORDS
    match changed:
        case "another password":
            text = text.replace(text.split('password: "')[1].split('"')[0], hash_password(PASSWORD))
        case "no such person":
            text = text.replace("dana", "dora").replace("sam", "sara")
        case _:
            text = text.replace(TOKENS["sam"][1], TOKENS["sam"][1][:-4] + "0000")
    console.served.people_file.write_text(text)
    ended = (by_password.get("/rollouts").status_code, by_token.get("/rollouts").status_code)
    assert ended == {"another password": (303, 200), "no such person": (303, 303), "token taken out": (200, 303)}[changed]


def test_after_ten_wrong_logins_an_address_waits_and_others_do_not(console: Site) -> None:
    browser = console.browser()
    for _ in range(10):
        browser.log_in("dana", "pst_wrong")
    answer = browser.log_in("dana", PASSWORD)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) <= 60
    console.address = "10.0.0.8"
    assert console.browser().log_in("dana", PASSWORD).status_code == 303


@pytest.mark.parametrize(
    "spoil",
    [
        {"token": ""},
        {"token": "0" * 64},
        {"headers": {"Origin": "https://evil.example"}},
        {"headers": {"Sec-Fetch-Site": "cross-site"}},
    ],
)
def test_a_form_of_another_site_does_nothing(console: Site, spoil: dict[str, object]) -> None:
    browser = console.browser("dana")
    rollout_id, _ = console.served.asked()
    page = f"/rollouts/{rollout_id}"
    fields = forms(browser.get(page))[f"{page}/roll-back"] | {"reason": "forged"}
    fields |= {k: str(v) for k, v in spoil.items() if k == "token"}
    answer = browser.client.post(f"{page}/roll-back", data=fields, headers=spoil.get("headers"), follow_redirects=False)  # type: ignore[arg-type]
    assert answer.status_code == 403
    assert console.served.get(f"/rollouts/{rollout_id}").json()["state"] == "awaiting_approval"


def test_a_token_of_one_session_is_none_of_another(console: Site) -> None:
    dana, sam = console.browser("dana"), console.browser("sam")
    fields = forms(dana.get("/rollouts"))["/logout"]
    assert sam.client.post("/logout", data=fields, follow_redirects=False).status_code == 403


def test_every_answer_forbids_scripts_of_others_frames_and_sniffing(console: Site) -> None:
    browser = console.browser("dana")
    for path in ("/rollouts", "/login", "/static/console.js", "/nowhere", "/rollouts/none-00000000"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"].startswith("nosniff")
        assert headers["referrer-policy"] == "same-origin"  # with no-referrer a browser sends Origin: null with our own forms


def test_no_page_has_a_script_or_a_style_of_its_own(console: Site) -> None:
    browser = console.browser("max")
    rollout_id, _ = console.served.asked()
    for path in (
        *PAGES[:-1],
        "/login",
        f"/rollouts/{rollout_id}",
        f"/rollouts/{rollout_id}/rows/1",
        f"/rollouts/{rollout_id}/plan",
    ):
        text = browser.get(path).text
        assert "<style" not in text
        assert ' style="' not in text
        assert " onclick" not in text
        assert text.count("<script") == text.count('<script src="/static/console.js" defer>') == 1


def test_pages_with_numbers_are_not_kept_by_the_browser(console: Site) -> None:
    assert console.browser("dana").get("/rollouts").headers["cache-control"] == "no-store"


# --- without people -------------------------------------------------------------------------------------------------------------


def test_without_a_people_file_one_may_read_on_the_machine_itself_and_change_nothing(
    databases: Databases, tmp_path: Path
) -> None:
    with site(databases, tmp_path, people=None) as made:
        made.base_url, made.address = "http://localhost:8420", "127.0.0.1"
        browser = made.browser()
        page = browser.get("/rollouts")
        assert page.status_code == 200
        assert "/logout" not in forms(page)
        assert forms(browser.get("/plan"))["/plan"]["token"]
        assert browser.client.post("/audit/verify", data=forms(browser.get("/plan"))["/plan"]).status_code == 403


@pytest.mark.parametrize(
    "base, address", [("http://penstock.example", "127.0.0.1"), ("http://localhost", "10.0.0.7"), ("http://10.0.0.1", "10.0.0.7")]
)
def test_without_a_people_file_nobody_reads_from_elsewhere(databases: Databases, tmp_path: Path, base: str, address: str) -> None:
    with site(databases, tmp_path, people=None) as made:
        made.base_url, made.address = base, address
        answer = made.browser().get("/rollouts")
    assert answer.status_code == 401
    assert "PENSTOCK_PEOPLE_FILE" in answer.text


def test_without_a_people_file_a_proxy_on_the_machine_lets_nobody_read(databases: Databases, tmp_path: Path) -> None:
    with site(databases, tmp_path, people=None) as made:
        made.base_url, made.address = "http://localhost:8420", "127.0.0.1"
        answer = made.browser().client.get("/rollouts", headers={"X-Forwarded-For": "203.0.113.9"}, follow_redirects=False)
    assert answer.status_code == 401


def test_a_local_login_lets_one_person_act_under_that_name(databases: Databases, tmp_path: Path) -> None:
    login = f"erin={hash_password(PASSWORD)}"
    with site(databases, tmp_path, people=None, PENSTOCK_CONSOLE_LOGIN=login) as made:
        browser = Browser(TestClient(made.served.app, base_url="http://localhost", client=("127.0.0.1", 1)))
        assert browser.get("/rollouts").status_code == 303
        assert browser.log_in("erin", "not it").status_code == 401
        assert browser.log_in("erin", PASSWORD).status_code == 303
        assert "erin" in words(browser.get("/me"))
