"""The whole agent over a damaged outbox and on a full disk: it starts, serves, and ends as told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from agent.delivery.outbox import Outbox
from deploy.local.ports import free_port


def metrics_of(port: int, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError(f"the agent is not there; exit status {process.poll()}")


@pytest.mark.parametrize("content", ["noise", "torn", "folder is full"])
def test_agent_starts_all_the_same(tmp_path: Path, content: str) -> None:
    state, port = tmp_path / "state", free_port()
    state.mkdir()
    (tmp_path / "models").mkdir()
    if content == "noise":
        (state / "outbox.db").write_bytes(os.urandom(20_000))
    elif content == "torn":
        outbox = Outbox(state / "outbox.db", 1 << 20)
        for _ in range(100):
            outbox.append("m@1", lambda seq: os.urandom(1000))
        outbox.close()
        os.truncate(state / "outbox.db", 50_000)
    command = [
        sys.executable, "-m", "agent.cli", "agent", "--repository", str(tmp_path / "models"), "--state-dir", str(state),
        "--bootstrap-servers", "127.0.0.1:1", "--port", str(port), "--log-format", "json",
    ]  # fmt: skip
    if content == "folder is full":  # no file may grow beyond a few bytes, the log excepted, which is a pipe
        limit = "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (100, 100)); "
        limit += "os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", limit, *command]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        page = metrics_of(port, agent)
    finally:
        agent.send_signal(signal.SIGTERM)
        log = agent.communicate(timeout=60)[0].decode()
    assert agent.returncode == 0, log
    if content == "folder is full":
        assert "outbox.unusable" in log
        assert "reluscope_agent_outbox_errors_total 0.0" not in page
    else:
        assert "reluscope_agent_outbox_damaged_total 1.0" in page
        assert '"outbox.damaged"' in log
        assert len(list(state.glob("outbox.db.damaged-*"))) == 1
