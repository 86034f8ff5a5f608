"""Child processes: awaited, explained when they die, and gone with their offspring."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from deploy.local import process
from deploy.local.ports import accepts, free_port


def alive(pid: int) -> bool:
    """Whether the process runs; one that has exited and waits for its parent counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_child_is_ready_on_entry_and_gone_on_exit(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    ready = lambda: process.http_ok(f"http://127.0.0.1:{port}/")  # noqa: E731
    with process.running("web", command, tmp_path / "web.log", ready=ready, cwd=tmp_path) as child:
        assert accepts("127.0.0.1", port)
        pid = child.pid
    assert not alive(pid)
    assert not accepts("127.0.0.1", port)


def test_child_that_dies_is_explained_by_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such port'); raise SystemExit(3)"]
    with (
        pytest.raises(process.ServerError, match=r"(?s)web exited with status 3.*no such port"),
        process.running("web", command, tmp_path / "web.log", ready=lambda: False),
    ):
        pytest.fail("entered")


def test_child_that_never_becomes_ready_is_given_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(process.ServerError, match=r"web was not ready within 0.3 s"),
        process.running("web", command, tmp_path / "web.log", ready=lambda: False, timeout=0.3),
    ):
        pytest.fail("entered")


def test_deaf_child_and_its_offspring_are_killed(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True); time.sleep(60)"
    )
    child = process.start("deaf", [sys.executable, "-c", code], tmp_path / "deaf.log")
    child.wait_until(lambda: child.log.read_text().endswith("\n"), timeout=10)
    grandchild = int(child.log.read_text())
    assert child.stop(timeout=0.3) == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(grandchild)


def test_environment_is_added(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; print(os.environ['GREETING'], 'PATH' in os.environ)"]
    child = process.start("env", command, tmp_path / "env.log", env={"GREETING": "hello"})
    child.wait_until(lambda: "hello True" in child.log.read_text(), timeout=10)
    child.stop()
    assert "GREETING" not in os.environ
