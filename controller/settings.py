"""
Where everything is: the only place that reads the environment.

A running `penstock up` leaves the addresses of what it started in `run.json` in the home folder, so that a second shell finds them;
the environment always wins over it.

| variable | meaning | default |
|---|---|---|
| PENSTOCK_HOME | data of the embedded services, run.json, logs | `.penstock` below the current folder |
| PENSTOCK_DATABASE_URL | `postgresql://` of the controller's database | embedded, started by `penstock up` |
| PENSTOCK_FLAGS_DATABASE_URL | `postgresql://` of the flag store, where it is not the controller's database | the controller's database |
| PENSTOCK_PROMETHEUS_URL | base address of Prometheus | started by `penstock up` |
| PENSTOCK_PROMETHEUS_BIN | the Prometheus program to start | `prometheus` on the PATH |
| PENSTOCK_PROMETHEUS_TIMEOUT | how long a gate check waits for answers | `10s` |
| PENSTOCK_SCRAPE_INTERVAL | how often Prometheus scrapes the routers | `15s` |
| PREFECT_API_URL | Prefect's API | started by `penstock up` |
| PENSTOCK_LISTEN | where `penstock serve` listens | `127.0.0.1:8420` |
| PENSTOCK_GUARD_LISTEN | where the guard serves its metrics and health; `off` for nowhere | `127.0.0.1:8422` |
| PENSTOCK_FLOWS_LISTEN | where `python -m flows.local` serves the metrics of its gate checks | nowhere |
| PENSTOCK_ROUTER_URL | a router; `start` asks it whether it knows the plan's models, and drills go to it | the one of `penstock up`, if any |
| PENSTOCK_DRILL_TOKEN | the token that the router takes drills from, as its `drills.token_env` names it | none: no drills |
| PENSTOCK_DRILL_API_KEY | sent with drills as a user's key, for providers that get the sender's own | none |
| PENSTOCK_SLACK_TOKEN | bot token (`xoxb-...`); without it notices go to the log | none |
| PENSTOCK_SLACK_CHANNEL | default channel | `#llm-rollouts` |
| PENSTOCK_SLACK_APP_TOKEN | app-level token (`xapp-`): buttons in Slack work over Socket Mode of `penstock serve` | no buttons |
| PENSTOCK_SLACK_SIGNING_SECRET | signing secret: buttons in Slack work over `POST /hooks/slack` | no buttons |
| PENSTOCK_PUBLIC_URL | address at which people reach `penstock serve`; Slack's messages link to it | no links |
| PENSTOCK_SLACK_API_URL | another Slack API, for a stand-in | Slack's |
| PENSTOCK_AUDIT_KEY_FILE | Ed25519 private key (PEM) that heads of the audit log are signed with | none: unsigned |
| PENSTOCK_AUDIT_HEADS_FILE | where heads of the audit log are published, one a line | `audit-heads.jsonl` in the home folder |
| PENSTOCK_ACTOR | who acts on the command line | the login name |
| PENSTOCK_GROUPS | the groups of that person, comma separated; of no effect with a people file | none |
| PENSTOCK_ALERTMANAGER_TOKEN | the bearer token of Alertmanager at `/hooks/alertmanager` | none: that door is closed |
| PENSTOCK_PEOPLE_FILE | the people.yaml that says who may do what | none: names and groups are what the caller says |
| PENSTOCK_CONSOLE_LOGIN | `NAME=HASH` (of `penstock people password`): the console's only login where there is no people file | none: read-only, and only from this machine |
| PENSTOCK_OIDC_ISSUER | issuer of OpenID Connect whose people may log in to the console, by the e-mail in people.yaml | none |
| PENSTOCK_OIDC_CLIENT_ID, PENSTOCK_OIDC_CLIENT_SECRET | what the issuer knows the console by | none |
| PENSTOCK_CRASH_AT | where this process kills itself, `point[:nth]`: for `./dev chaos` only | nowhere |
"""

import getpass
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from specfile import parse_duration


class SettingsError(Exception):
    """A setting that cannot be used; names the variable or file and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; None where a service is neither named nor known to run."""

    home: Path
    database_url: str | None = None
    flags_database_url: str | None = None
    prometheus_url: str | None = None
    prometheus_bin: str | None = None
    prefect_api_url: str | None = None
    scrape_interval: timedelta = timedelta(seconds=15)
    prometheus_timeout: timedelta = timedelta(seconds=10)
    listen: str = "127.0.0.1:8420"
    guard_listen: str | None = None
    flows_listen: str | None = None
    router_url: str | None = None
    drill_token: str = field(default="", repr=False)
    drill_api_key: str = field(default="", repr=False)
    slack_token: str = field(default="", repr=False)
    slack_channel: str = "#llm-rollouts"
    slack_api_url: str | None = None
    slack_app_token: str = field(default="", repr=False)
    slack_signing_secret: str = field(default="", repr=False)
    public_url: str = ""
    audit_key_file: Path | None = None
    audit_heads_file: Path = Path("audit-heads.jsonl")
    evidence_folder: Path = Path("evidence")
    actor: str = ""
    groups: tuple[str, ...] = ()
    people_file: Path | None = None
    alertmanager_token: str = field(default="", repr=False)
    console_login: str = field(default="", repr=False)
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret: str = field(default="", repr=False)
    crash_at: str = ""

    @property
    def slack_clicks(self) -> bool:
        """Whether somebody listens to buttons in Slack."""
        return bool(self.slack_token and (self.slack_app_token or self.slack_signing_secret))

    @property
    def flags_url(self) -> str | None:
        """The database that the flags are in."""
        return self.flags_database_url or self.database_url

    @property
    def run_file(self) -> Path:
        return self.home / "run.json"


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """
    Args:
        environ: Instead of the process's environment.

    Raises:
        SettingsError: a value that cannot be used, or a run.json that is not one.
    """
    env = os.environ if environ is None else environ
    home = Path(env.get("PENSTOCK_HOME", ".penstock")).absolute()
    run = _running(home / "run.json")

    def get(name: str, key: str) -> str | None:
        return env.get(name) or run.get(key)

    database_url = _postgres("PENSTOCK_DATABASE_URL", get("PENSTOCK_DATABASE_URL", "database_url"))
    flags_database_url = _postgres("PENSTOCK_FLAGS_DATABASE_URL", get("PENSTOCK_FLAGS_DATABASE_URL", "flags_database_url"))
    guard_listen = get("PENSTOCK_GUARD_LISTEN", "guard_listen") or "127.0.0.1:8422"
    return Settings(
        home=home,
        database_url=database_url,
        flags_database_url=flags_database_url,
        prometheus_url=get("PENSTOCK_PROMETHEUS_URL", "prometheus_url"),
        prometheus_bin=env.get("PENSTOCK_PROMETHEUS_BIN"),
        prefect_api_url=get("PREFECT_API_URL", "prefect_api_url"),
        scrape_interval=_span("PENSTOCK_SCRAPE_INTERVAL", get("PENSTOCK_SCRAPE_INTERVAL", "scrape_interval") or "15s"),
        prometheus_timeout=_span("PENSTOCK_PROMETHEUS_TIMEOUT", env.get("PENSTOCK_PROMETHEUS_TIMEOUT") or "10s"),
        listen=get("PENSTOCK_LISTEN", "listen") or "127.0.0.1:8420",
        guard_listen=None if guard_listen == "off" else guard_listen,
        flows_listen=env.get("PENSTOCK_FLOWS_LISTEN"),
        router_url=get("PENSTOCK_ROUTER_URL", "router_url"),
        drill_token=env.get("PENSTOCK_DRILL_TOKEN", "").strip(),
        drill_api_key=env.get("PENSTOCK_DRILL_API_KEY", "").strip(),
        slack_token=env.get("PENSTOCK_SLACK_TOKEN", ""),
        slack_channel=env.get("PENSTOCK_SLACK_CHANNEL") or "#llm-rollouts",
        slack_api_url=env.get("PENSTOCK_SLACK_API_URL"),
        slack_app_token=env.get("PENSTOCK_SLACK_APP_TOKEN", "").strip(),
        slack_signing_secret=env.get("PENSTOCK_SLACK_SIGNING_SECRET", "").strip(),
        public_url=env.get("PENSTOCK_PUBLIC_URL", "").strip(),
        audit_key_file=Path(key) if (key := env.get("PENSTOCK_AUDIT_KEY_FILE")) else None,
        audit_heads_file=Path(env.get("PENSTOCK_AUDIT_HEADS_FILE") or home / "audit-heads.jsonl"),
        evidence_folder=Path(env.get("PENSTOCK_EVIDENCE_FOLDER") or home / "evidence"),
        actor=env.get("PENSTOCK_ACTOR") or _login(),
        crash_at=env.get("PENSTOCK_CRASH_AT", ""),
        groups=tuple(g.strip() for g in env.get("PENSTOCK_GROUPS", "").split(",") if g.strip()),
        alertmanager_token=env.get("PENSTOCK_ALERTMANAGER_TOKEN", "").strip(),
        console_login=env.get("PENSTOCK_CONSOLE_LOGIN", "").strip(),
        oidc_issuer=env.get("PENSTOCK_OIDC_ISSUER", "").strip(),
        oidc_client_id=env.get("PENSTOCK_OIDC_CLIENT_ID", "").strip(),
        oidc_client_secret=env.get("PENSTOCK_OIDC_CLIENT_SECRET", "").strip(),
        people_file=None if not (people := env.get("PENSTOCK_PEOPLE_FILE", "").strip()) else Path(people).absolute(),
    )


def _span(name: str, text: str) -> timedelta:
    """A duration that is longer than nothing."""
    try:
        span = parse_duration(text)
    except ValueError as exc:
        raise SettingsError(f"{name}: {exc}") from exc
    if not span:
        raise SettingsError(f"{name}: {text!r} is not longer than nothing")
    return span


def _postgres(name: str, url: str | None) -> str | None:
    if url is not None and not url.startswith(("postgresql://", "postgresql+psycopg://")):
        raise SettingsError(f"{name}: {url.split(':', 1)[0]!r} is not a postgresql:// address")
    return url


def _running(path: Path) -> Mapping[str, Any]:
    """What a running `penstock up` wrote; nothing when it is gone."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise SettingsError(f"{path}: cannot be read as run.json: {exc}; remove it if penstock up is not running") from exc
    return data if isinstance(data, dict) and _alive(data.get("pid")) else {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
