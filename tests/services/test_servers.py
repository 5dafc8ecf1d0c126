"""The real PostgreSQL and Prometheus, started and ended."""

import json
import os
import signal
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from services.errors import ServiceDirectoryInUse, ServiceError, ServiceFailed, ServiceMissing, ServicePortInUse
from services.postgres import EmbeddedPostgres
from services.prometheus import BINARY_ENV, PrometheusServer, find_prometheus

needs_prometheus = pytest.mark.services


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("pg") / "data", durable=False, max_connections=40) as server:
        yield server


def test_postgres_serves_several_databases(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as db:
        db.execute("CREATE DATABASE one")
        assert db.execute("SHOW max_connections").fetchone() == ("40",)
    with psycopg.connect(postgres.url_for("one")) as db:
        assert db.execute("SELECT current_database()").fetchone() == ("one",)


def test_postgres_listens_on_no_tcp_port(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url) as db:
        assert db.execute("SHOW listen_addresses").fetchone() == ("",)
    assert postgres.data_dir.stat().st_mode & 0o077 == 0


def test_a_second_postgres_on_the_same_directory_is_refused_and_the_first_can_be_found(postgres: EmbeddedPostgres) -> None:
    assert EmbeddedPostgres.running_url(postgres.data_dir) == postgres.url
    with pytest.raises(ServiceDirectoryInUse, match=f"pid {postgres.pid} already runs on"):
        EmbeddedPostgres(postgres.data_dir).start()


def test_postgres_keeps_its_data_and_stops_although_a_client_is_connected(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "a directory, with 'odd' characters", durable=False).start()
    client = psycopg.connect(server.url, autocommit=True)
    client.execute("CREATE TABLE kept AS SELECT 7 AS n")
    server.stop()
    server.stop()
    client.close()
    assert EmbeddedPostgres.running_url(server.data_dir) is None
    with server, psycopg.connect(server.url) as db:
        assert db.execute("SELECT n FROM kept").fetchone() == (7,)


def test_postgres_in_a_short_folder_with_a_comma_can_be_connected_to() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="pg,") as folder,
        EmbeddedPostgres(Path(folder, "data"), durable=False) as server,
        psycopg.connect(server.url) as db,
    ):
        assert db.execute("SELECT 1").fetchone() == (1,)


def test_postgres_that_was_killed_is_ready_again_only_when_it_takes_connections(tmp_path: Path) -> None:
    """The killed server leaves a file that says ready, and the next one first recovers from its log."""
    server = EmbeddedPostgres(tmp_path / "data").start()
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute("CREATE TABLE much AS SELECT n, repeat(md5(n::text), 20) AS t FROM generate_series(1, 50000) AS n")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with server, psycopg.connect(server.url) as db:
        assert db.execute("SELECT count(*) FROM much").fetchone() == (50_000,)


def test_postgres_works_where_the_socket_path_would_be_too_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / "data"
    with EmbeddedPostgres(deep, durable=False) as server, psycopg.connect(server.url) as db:
        assert db.execute("SELECT 1").fetchone() == (1,)
        socket_dir = Path(server.url.partition("host=")[2])
        assert socket_dir != deep
    assert not socket_dir.exists()


def test_postgres_refuses_a_directory_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ServiceFailed, match="is not empty and holds no cluster"):
        EmbeddedPostgres(tmp_path).start()


def test_postgres_refuses_a_cluster_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("16\n")
    with pytest.raises(ServiceFailed, match="was made by PostgreSQL 16"):
        EmbeddedPostgres(tmp_path).start()


def test_postgres_shows_the_log_when_a_setting_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match="no_such_setting"):
        EmbeddedPostgres(tmp_path / "data", durable=False, settings={"no_such_setting": "1"}).start()


def test_a_url_before_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="not running"):
        _ = EmbeddedPostgres(tmp_path / "data").url


@needs_prometheus
def test_prometheus_answers_queries_and_is_gone_afterwards(tmp_path: Path) -> None:
    with PrometheusServer(tmp_path, {"router": ["127.0.0.1:9"]}) as server:
        with urllib.request.urlopen(f"{server.url}/api/v1/query?query=vector(2)") as answer:
            assert json.load(answer)["data"]["result"][0]["value"][1] == "2"
        with urllib.request.urlopen(f"{server.url}/api/v1/status/config") as answer:
            config = json.load(answer)["data"]["yaml"]
        assert "scrape_interval: 1s" in config
        assert "job_name: router" in config
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{server.url}/-/ready")


@needs_prometheus
def test_prometheus_names_a_port_that_is_taken(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServicePortInUse, match=rf"127\.0\.0\.1:{port} is taken"):
            PrometheusServer(tmp_path, {}, port=port).start()


@needs_prometheus
def test_prometheus_shows_its_log_when_a_rule_file_is_wrong(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: a, rules: [{record: x, expr: 'rate('}]}]")
    with pytest.raises(ServiceFailed, match=r"ended with status[\s\S]*rules\.yml"):
        PrometheusServer(tmp_path / "prom", {}, rule_files=[rules]).start()


def test_a_missing_prometheus_says_what_to_install() -> None:
    with pytest.raises(ServiceMissing, match="no_such_binary: no such program"):
        find_prometheus({BINARY_ENV: "no_such_binary", "PATH": "/nowhere"})


def test_targets_of_an_unknown_job_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown scrape jobs \['b'\]"):
        PrometheusServer(tmp_path, {"a": []}).set_targets({"b": []})
