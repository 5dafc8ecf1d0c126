"""`penstock up` when it cannot run: one sentence, status 1, and nothing left behind. And what it keeps up while it does."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.cli.parts import Program
from controller.cli.stack import Stack, StackError, StackPlan
from controller.cli.up import up
from controller.settings import Settings, load
from services.ports import free_port

pytestmark = pytest.mark.services

ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "PREFECT_"))}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", listen=f"127.0.0.1:{free_port()}")


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def _cannot(settings: Settings, plan: StackPlan) -> str:
    stack = Stack(settings, plan, environ=ENVIRON, say=lambda _: None)
    with pytest.raises(StackError) as caught:
        stack.start()
    assert not settings.run_file.exists()
    return str(caught.value)


def _plan(**changes: object) -> StackPlan:
    return StackPlan(prefect=False, prometheus_port=0, durable=False, **changes)  # type: ignore[arg-type]


def test_a_taken_console_port_is_named_with_who_wants_it(settings: Settings, taken: int):
    text = _cannot(Settings(home=settings.home, listen=f"127.0.0.1:{taken}"), _plan())

    assert text == f"127.0.0.1:{taken} is taken; it is wanted by the console (PENSTOCK_LISTEN)"


def test_a_taken_router_port_is_named_with_its_file(
    settings: Settings, taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    router = tmp_path / "router.yaml"
    router.write_text(f"listen: 127.0.0.1:{taken}\n")

    status = up(settings, router=router, prefect=False, prometheus_port=0, environ=ENVIRON)

    assert status == 1
    assert f"127.0.0.1:{taken} is taken; it is wanted by the router (listen in {router})" in capsys.readouterr().err


def test_a_database_that_does_not_answer_is_named_without_its_password(settings: Settings):
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/penstock"

    text = _cannot(Settings(home=settings.home, listen=settings.listen, database_url=url), _plan())

    assert "connecting to the database" in text
    assert "refused" in text
    assert "secret" not in text


def test_a_prometheus_that_does_not_answer_is_named_with_its_setting(settings: Settings):
    url = f"http://127.0.0.1:{free_port()}"

    text = _cannot(Settings(home=settings.home, listen=settings.listen, prometheus_url=url), _plan())

    assert text.startswith(f"PENSTOCK_PROMETHEUS_URL={url}: ")


def test_a_prefect_that_does_not_answer_is_named_with_its_setting(settings: Settings):
    url = f"http://127.0.0.1:{free_port()}/api"

    text = _cannot(Settings(home=settings.home, listen=settings.listen, prefect_api_url=url), StackPlan(prometheus_port=0))

    assert text == f"PREFECT_API_URL={url}: no Prefect server answers at {url}/health"


def test_a_missing_prometheus_program_is_named_and_stops_what_had_started(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PENSTOCK_PROMETHEUS_BIN", "/nowhere/prometheus")

    text = _cannot(settings, _plan())

    assert text == "PENSTOCK_PROMETHEUS_BIN=/nowhere/prometheus: no such program, or it is not executable"
    assert not (settings.home / "postgres" / "postmaster.pid").exists()


def test_a_second_stack_on_the_same_home_is_refused(settings: Settings):
    settings.home.mkdir()
    with (settings.home / "lock").open("a") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        text = _cannot(settings, _plan())

    assert text == f"another penstock runs on {settings.home}; stop it, or set PENSTOCK_HOME"


def test_a_program_that_ends_before_it_is_ready_stops_the_start_with_its_last_words(settings: Settings):
    broken = Program(name="broken", argv=("json.tool", "/nowhere/file"), ready_url="http://127.0.0.1:1/")

    text = _cannot(settings, _plan(programs=(broken,)))

    assert text.startswith("broken: ended with status ")
    assert "/nowhere/file" in text


def test_it_comes_up_tells_a_second_shell_where_restarts_what_dies_and_leaves_nothing(settings: Settings):
    said: list[str] = []
    stack = Stack(settings, _plan(), environ=ENVIRON, say=said.append)
    with stack:
        found = load({"PENSTOCK_HOME": str(settings.home)})
        assert found.prometheus_url == stack.settings.prometheus_url
        assert found.database_url is not None and "penstock_app" in found.database_url
        assert settings.run_file.stat().st_mode & 0o777 == 0o600
        guard = next(part for part in stack._parts if part.name == "guard")
        first = guard._child.pid  # type: ignore[attr-defined]

        os.kill(first, signal.SIGKILL)

        _until(lambda: "guard runs again" in said)
        assert guard._child.pid != first  # type: ignore[attr-defined]
        assert any(line.startswith("guard ended with status -9; starting it again in 1 s") for line in said)
        pids = [part._child.pid for part in stack._parts if hasattr(part, "_child")]

    assert not settings.run_file.exists()
    assert not [pid for pid in pids if _runs(pid)]
    assert not (settings.home / "postgres" / "postmaster.pid").exists()


def test_sigterm_stops_everything_and_ends_with_status_0(settings: Settings):
    code = (
        "import sys; from pathlib import Path; from controller.cli.up import up; from controller.settings import Settings\n"
        f"sys.exit(up(Settings(home=Path({str(settings.home)!r}), listen={settings.listen!r}), prefect=False, prometheus_port=0))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=ENVIRON, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("ready"):
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()

    assert not settings.run_file.exists()
    assert not (settings.home / "postgres" / "postmaster.pid").exists()


def _until(condition, *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
