"""Loops end together, within one deadline."""

from __future__ import annotations

import threading
import time

from structlog.testing import capture_logs

from agent.supervise import join, supervised


def test_threads_that_hang_share_one_deadline() -> None:
    release = threading.Event()
    threads = [supervised(name, lambda _stop: (release.wait(10), None)[1], threading.Event()) for name in "abc"]
    begin = time.monotonic()
    with capture_logs() as logs:
        join(threads, begin + 0.3)
    assert 0.25 < time.monotonic() - begin < 0.8
    assert [one["loop"] for one in logs] == ["a", "b", "c"]
    release.set()
    for thread in threads:
        assert thread.daemon
        thread.join(5)
