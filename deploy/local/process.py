"""Child processes with log files: started, awaited and stopped without leaving anything behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class ServerError(RuntimeError):
    """A server did not start or died; the message ends with the tail of its log."""


class Process:
    """One running child with its output in `log`."""

    def __init__(self, name: str, child: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, None while it runs."""
        return self._child.poll()

    def tail(self, lines: int = 25) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Return once `ready()` holds; raise ServerError when the child exits first or time is over."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.returncode is not None:
                raise ServerError(f"{self.name} exited with status {self.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} was not ready within {timeout:g} s:\n{self.tail()}")
            time.sleep(0.05)

    def send_signal(self, number: int) -> None:
        """Deliver a signal to the child alone; nothing happens when it has exited."""
        self._child.send_signal(number)

    def kill(self) -> None:
        """Kill the child and all that it started, at once (SIGKILL)."""
        self._signal_group(signal.SIGKILL)
        self._child.wait()

    def stop(self, timeout: float = 15.0, first: int = signal.SIGTERM) -> int:
        """Ask the child to stop, kill what is left of its group after `timeout`; the exit status."""
        if self.returncode is None:
            self.send_signal(first)
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                self._signal_group(signal.SIGKILL)
        # Grandchildren of a child that exited by itself would otherwise stay.
        self._signal_group(signal.SIGKILL)
        return self._child.wait()

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self._child.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # the group is gone already


def start(
    name: str,
    command: Sequence[str | os.PathLike[str]],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
) -> Process:
    """Start `command` in a session of its own, so that Ctrl-C in a terminal reaches only the parent.

    `env` is added to the environment of this process. Output is appended to `log`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [os.fspath(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            user=user,
            start_new_session=True,
        )
    return Process(name, child, log)


@contextmanager
def running(
    name: str,
    command: Sequence[str | os.PathLike[str]],
    log: Path,
    *,
    ready: Callable[[], bool] | None = None,
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: str | None = None,
    stop_signal: int = signal.SIGTERM,
) -> Iterator[Process]:
    """A child that is ready on entry and gone on exit.

    Raises ServerError when it does not become ready.
    """
    process = start(name, command, log, env=env, cwd=cwd, user=user)
    try:
        if ready is not None:
            process.wait_until(ready, timeout)
        yield process
    finally:
        process.stop(first=stop_signal)


def http_ok(url: str, timeout: float = 1.0) -> bool:
    """Whether GET `url` answers 2xx."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            return 200 <= int(response.status) < 300
    except (urllib.error.URLError, OSError):
        return False
