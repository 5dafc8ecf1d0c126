"""
A real Prometheus server on loopback with its own configuration and data directory.

Its one rule: it is the operator's own binary (`PENSTOCK_PROMETHEUS_BIN`, `prometheus` on PATH, then /usr/bin/prometheus); nothing is
downloaded.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from services.errors import ServiceFailed, ServiceMissing, ServicePortInUse
from services.ports import free_port, port_in_use
from services.process import ChildProcess, http_ready

BINARY_ENV = "PENSTOCK_PROMETHEUS_BIN"
_PORT_RACES = 3


def find_prometheus(environ: Mapping[str, str] = os.environ) -> Path:
    """
    The server's program.

    Raises:
        ServiceMissing: there is none, or the one that the environment names cannot be run.
    """
    if named := environ.get(BINARY_ENV):
        found = shutil.which(named, path=environ.get("PATH"))
        if found is None:
            raise ServiceMissing(f"{BINARY_ENV}={named}: no such program, or it is not executable")
        return Path(found)
    for place in (shutil.which("prometheus", path=environ.get("PATH")), shutil.which("/usr/bin/prometheus")):
        if place is not None:
            return Path(place)
    raise ServiceMissing(f"prometheus is not installed: `apt-get install prometheus`, or set {BINARY_ENV} to its program")


class PrometheusServer:
    """
    One Prometheus, started on `start` (or `with`) and ended on `stop`.

    Args:
        directory: Holds the configuration, the log and the data; made if missing.
        targets: Scrape jobs: name to `host:port` addresses, scraped at `/metrics`. May be changed later with `set_targets`.
        scrape_interval: How often targets are read; the time limit of a scrape is the same.
        evaluation_interval: How often rules are evaluated; default is the scrape interval.
        rule_files: Recording and alerting rules.
        alertmanagers: `host:port` addresses that get the alerts.
        port: Port on loopback; 0 chooses a free one.
        fresh: Throw away the data of earlier runs.
        retention: How long samples are kept.
        metric_relabel: `metric_relabel_configs` of every job, to drop or rename series as they are scraped.
        features: Switches of what is experimental in it (``exemplar-storage``).
        binary: The program; default is `find_prometheus()`.
    """

    def __init__(
        self,
        directory: Path,
        targets: Mapping[str, Sequence[str]],
        *,
        scrape_interval: timedelta = timedelta(seconds=1),
        evaluation_interval: timedelta | None = None,
        rule_files: Sequence[Path] = (),
        alertmanagers: Sequence[str] = (),
        port: int = 0,
        fresh: bool = True,
        retention: timedelta = timedelta(days=15),
        metric_relabel: Sequence[Mapping[str, object]] = (),
        features: Sequence[str] = (),
        binary: Path | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.port = port
        self._targets = {job: list(addresses) for job, addresses in targets.items()}
        self._scrape_interval = scrape_interval
        self._evaluation_interval = evaluation_interval or scrape_interval
        self._rule_files = [p.absolute() for p in rule_files]
        self._alertmanagers = list(alertmanagers)
        self._wants_port = port
        self._fresh = fresh
        self._retention = retention
        self._metric_relabel = [dict(rule) for rule in metric_relabel]
        self._features = list(features)
        self._binary = binary
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """Base address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs or before it was started."""
        return None if self._child is None else self._child.returncode

    @property
    def log_path(self) -> Path:
        return self.directory / "prometheus.log"

    def start(self, *, timeout_s: float = 20.0) -> Self:
        """
        Start it and wait until it answers queries. Its first scrape comes 5 s later (Prometheus collects targets that often).

        Raises:
            ServiceMissing: no program; the message says what to install.
            ServicePortInUse: the wanted port is taken.
            ServiceFailed: it ended or was not ready in time.
        """
        if self._child is not None:
            raise ServiceFailed(f"prometheus: already started, at {self.url}")
        binary = self._binary or find_prometheus()
        data = self.directory / "data"
        if self._fresh:
            shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True, exist_ok=True)
        self._write_config()
        if self._wants_port and port_in_use("127.0.0.1", self._wants_port):
            raise ServicePortInUse(f"prometheus: port 127.0.0.1:{self._wants_port} is taken; choose another one")
        for attempt in range(1, _PORT_RACES + 1):
            self.port = self._wants_port or free_port()
            child = ChildProcess(self._argv(binary, data), log_path=self.log_path, name="prometheus", cwd=self.directory)
            try:
                child.wait_ready(http_ready(f"{self.url}/-/ready"), timeout_s=timeout_s)
            except ServiceFailed as exc:
                # Prometheus cannot choose its own port, so another process may take ours between choice and use.
                if "address already in use" not in str(exc):
                    raise
                if self._wants_port or attempt == _PORT_RACES:
                    raise ServicePortInUse(f"prometheus: port 127.0.0.1:{self.port} is taken; choose another one") from exc
                continue
            self._child = child
            return self
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stop(self) -> None:
        """End it; safe to call again."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def set_targets(self, targets: Mapping[str, Sequence[str]]) -> None:
        """
        Replace the scrape targets; a running server picks them up on its own within a few seconds.

        Job names must be those given at the start: file discovery follows addresses, not jobs.
        """
        if unknown := set(targets) - set(self._targets):
            raise ValueError(f"unknown scrape jobs {sorted(unknown)}; known: {sorted(self._targets)}")
        self._targets |= {job: list(addresses) for job, addresses in targets.items()}
        self._write_targets()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _argv(self, binary: Path, data: Path) -> list[str | Path]:
        return [
            binary,
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={data}",
            f"--storage.tsdb.retention.time={_seconds(self._retention)}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-lifecycle",
            *([f"--enable-feature={','.join(self._features)}"] if self._features else []),
            "--log.level=warn",  # so that the end of the log is what went wrong
        ]

    def _write_config(self) -> None:
        scrape = _seconds(self._scrape_interval)
        config = {
            "global": {
                "scrape_interval": scrape,
                "scrape_timeout": scrape,
                "evaluation_interval": _seconds(self._evaluation_interval),
            },
            "rule_files": [str(p) for p in self._rule_files],
            "scrape_configs": [
                {
                    "job_name": job,
                    "file_sd_configs": [{"files": [str(self._target_file(job))], "refresh_interval": "1s"}],
                    "metric_relabel_configs": self._metric_relabel,
                }
                for job in self._targets
            ],
        }
        if self._alertmanagers:
            config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": self._alertmanagers}]}]}
        self._write_targets()
        # JSON is YAML, and needs no quoting rules of our own.
        (self.directory / "prometheus.yml").write_text(json.dumps(config, indent=2))

    def _write_targets(self) -> None:
        for job, addresses in self._targets.items():
            path = self._target_file(job)
            new = path.with_suffix(".new")
            new.write_text(json.dumps([{"targets": addresses}]))
            new.replace(path)  # Prometheus must never read half a file

    def _target_file(self, job: str) -> Path:
        return self.directory / f"targets-{job}.json"


def _seconds(span: timedelta) -> str:
    return f"{int(span.total_seconds() * 1000)}ms"
