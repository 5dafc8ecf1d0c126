"""A browser without a screen: logs in, reads pages, sends their forms as they are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from httpx import Response
from starlette.testclient import TestClient

from controller.people import hash_password
from tests.api.conftest import PEOPLE, TOKENS, Served, serving
from tests.ports.databases import Databases

PASSWORD = "correct horse battery"
WITH_PASSWORDS = PEOPLE.replace("  - name: dana\n", f'  - name: dana\n    password: "{hash_password(PASSWORD)}"\n')


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: dict[str, dict[str, str]] = {}
        self._open: dict[str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "form":
            self._open = self.forms.setdefault(str(found.get("action")), {})
        elif tag == "input" and self._open is not None and found.get("name") and found.get("type") != "checkbox":
            self._open[str(found["name"])] = str(found.get("value") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None


def forms(page: Response) -> dict[str, dict[str, str]]:
    """The forms of a page: fields with their values, by action."""
    parser = _Forms()
    parser.feed(page.text)
    return parser.forms


def words(page: Response) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page.text)))


@dataclass(slots=True)
class Browser:
    client: TestClient

    def get(self, path: str) -> Response:
        return self.client.get(path, follow_redirects=False)

    def log_in(self, who: str = "dana", secret: str | None = None, after: str = "") -> Response:
        page = self.get(f"/login{after}")
        fields = forms(page)["/login"] | {"login": who, "password": TOKENS[who][0] if secret is None else secret}
        return self.client.post("/login", data=fields, follow_redirects=False)

    def send(self, page: str, action: str, **fields: str) -> Response:
        """The form of a page, filled in."""
        return self.client.post(action, data=forms(self.get(page))[action] | fields, follow_redirects=False)


@dataclass(slots=True)
class Site:
    """The console, and browsers that each have cookies of their own."""

    served: Served
    base_url: str = "http://penstock.example"
    address: str = "10.0.0.7"

    def browser(self, who: str | None = None) -> Browser:
        # No lifespan of its own: the application runs already.
        made = Browser(TestClient(self.served.app, base_url=self.base_url, client=(self.address, 50_000)))
        if who is not None:
            assert made.log_in(who).status_code == 303
        return made


@contextmanager
def site(databases: Databases, folder: Path, people: str | None = WITH_PASSWORDS, **more: str) -> Iterator[Site]:
    with serving(databases, folder, people, **more) as served:
        yield Site(served)
