"""
How Prefect's server is started: its command and its environment, for a supervisor that does not import prefect.

Its one rule: nothing silent. No telemetry, no temporary server that replaces a lost one, no lease that only lives in memory.
"""

import sys
from pathlib import Path

SERVER_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # In-memory leases are lost with the server, and what they counted is then held for good.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Artifacts, events and old runs are what fills the database.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P2D",
}
CLIENT_SETTINGS = {
    # Without this a client that cannot reach its server starts one of its own, empty, and goes on there.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_RUNNER_POLL_FREQUENCY": "2",
}


def api_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/api"


def argv(port: int, *, python: str = sys.executable) -> list[str]:
    """The command of the server; ready when `api_url(port)/health` answers 200, after 9 to 40 s."""
    return [python, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


def environment(home: Path, port: int) -> dict[str, str]:
    """
    What the server's process needs on top of its parent's environment.

    Args:
        home: Penstock's home; Prefect's stands below it.
        port: Where the server listens on loopback.
    """
    return client_environment(home, api_url(port)) | SERVER_SETTINGS


def client_environment(home: Path, url: str) -> dict[str, str]:
    """
    What a process of ours that talks to Prefect needs on top of its parent's environment; set before prefect is imported.

    Args:
        home: Penstock's home.
        url: Of Prefect's API.
    """
    return CLIENT_SETTINGS | {"PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": url}
