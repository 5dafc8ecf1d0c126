"""Children started through services.process: ready, failed, stopped, and never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from services.errors import ServiceFailed, ServiceMissing
from services.process import ChildProcess, http_ready

PROJECT = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def gone(pid: int) -> bool:
    """Whether the process no longer runs; a zombie that nobody reaps (init's business) counts as gone."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_waits_until_the_probe_is_true_and_stops_on_leaving(tmp_path: Path) -> None:
    marker = tmp_path / "ready"
    code = f"import time; open({str(marker)!r}, 'w'); time.sleep(60)"
    with ChildProcess(python(code), log_path=tmp_path / "log") as child:
        child.wait_ready(marker.exists, timeout_s=20)
        assert child.returncode is None
    assert child.returncode == -signal.SIGTERM


def test_names_the_status_and_the_log_of_a_child_that_ends_early(tmp_path: Path) -> None:
    child = ChildProcess(python("print('no such table'); raise SystemExit(3)"), log_path=tmp_path / "log", name="thing")
    with pytest.raises(ServiceFailed, match=r"thing: ended with status 3 before it was ready[\s\S]*no such table"):
        child.wait_ready(lambda: False, timeout_s=20)


def test_stops_a_child_that_is_never_ready(tmp_path: Path) -> None:
    child = ChildProcess(python("import time; time.sleep(60)"), log_path=tmp_path / "log")
    with pytest.raises(ServiceFailed, match=r"not ready after 0\.05 s"):
        child.wait_ready(http_ready("http://127.0.0.1:9/"), timeout_s=0.05)
    assert child.returncode is not None


def test_shows_only_the_log_of_this_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an old line\n")
    child = ChildProcess(python("print('a new line')"), log_path=log)
    child.stop(how=signal.SIGCONT, grace_s=20)
    assert child.log_tail() == "a new line"


def test_kills_a_child_that_ignores_the_polite_signal(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(60)"
    child = ChildProcess(python(code), log_path=tmp_path / "log")
    child.wait_ready(ready.exists, timeout_s=20)
    assert child.stop(grace_s=0.1) == -signal.SIGKILL
    assert child.stop() == -signal.SIGKILL


def test_takes_grandchildren_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, os\n"
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'])\n"
        f"open({str(pid_file)!r} + '.new', 'w').write(str(p.pid)); os.rename({str(pid_file)!r} + '.new', {str(pid_file)!r}); p.wait()\n"
    )
    child = ChildProcess(python(code), log_path=tmp_path / "log")
    child.wait_ready(pid_file.exists, timeout_s=20)
    child.stop(grace_s=5)
    assert gone(int(pid_file.read_text()))


def test_says_which_program_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ServiceMissing, match="no such program: /no/such/server"):
        ChildProcess(["/no/such/server"], log_path=tmp_path / "log")


def test_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[ChildProcess] = []

    def start() -> None:
        started.append(ChildProcess(python("import time; time.sleep(60)"), log_path=tmp_path / "log"))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with started[0] as child, pytest.raises(ServiceFailed, match="not ready"):  # and not "ended with status"
        child.wait_ready(lambda: False, timeout_s=0.3)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux only")
def test_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from services.process import ChildProcess\n"
        f"c = ChildProcess([sys.executable, '-S', '-c', 'import time; time.sleep(60)'], log_path=Path({str(tmp_path / 'log')!r}))\n"
        "print(c.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)
