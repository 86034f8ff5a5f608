"""The whole line with real servers: a request in at the agent, a page out at Alertmanager, its row in Postgres."""

from __future__ import annotations

import json
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psycopg
import pytest
import tritonclient.http as oip
from onnx import numpy_helper

from deploy.local.broker import Broker
from deploy.local.ports import free_port
from deploy.local.postgres import psycopg_url
from deploy.local.process import http_ok, running
from deploy.local.prometheus import alertmanager, prometheus
from tests.agent.models import small_cnn

RULES = Path(__file__).parents[2] / "deploy/prometheus/reluscope.rules.yml"
DEAD_CHANNELS = [1, 4]
LAYER = "relu2"


def reluscope(*arguments: str) -> list[str]:
    script = Path(sysconfig.get_path("scripts")) / "reluscope"
    assert script.exists(), f"the package is not installed for {sys.executable}"
    return [str(script), *arguments]


def put(repository: Path, version: str, model: onnx.ModelProto) -> None:
    path = repository / "digits" / version / "model.onnx"
    path.parent.mkdir(parents=True)
    path.with_suffix(".part").write_bytes(model.SerializeToString())
    path.with_suffix(".part").rename(path)


def broken_export() -> onnx.ModelProto:
    """The same model, but some channels of conv2 can never be positive."""
    model = small_cnn()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2_b")
    values = numpy_helper.to_array(bias).copy()
    values[DEAD_CHANNELS] = -1000
    bias.CopyFrom(numpy_helper.from_array(values, "conv2_b"))
    return model


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """About 150 requests a second of seeded noise, through the real Triton client."""
    stop = threading.Event()
    failures: list[Exception] = []

    def play() -> None:
        client, rng = oip.InferenceServerClient(url.removeprefix("http://")), np.random.default_rng(0)
        for number in range(1_000_000):
            if stop.wait(0.006):
                break
            image = oip.InferInput("image", [1, 1, 8, 8], "FP32")
            image.set_data_from_numpy(rng.normal(size=(1, 1, 8, 8)).astype(np.float32))
            try:
                client.infer("digits", [image], request_id=f"r{number}")
            except Exception as error:  # looked at by the main thread
                failures.append(error)
                break
        client.close()

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
        assert not failures, failures
    finally:
        stop.set()
        thread.join()


def wait_for(what: str, probe: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what}: not within {seconds} s")


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.loads(answer.read())


@pytest.mark.transport
def test_a_bad_deploy_pages_with_its_runbook(
    tmp_path: Path, database_url: str, broker: Broker, topic: str, monitoring: None
) -> None:
    repository = tmp_path / "models"
    put(repository, "1", small_cnn())
    agent_url, detector_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    bus = [*broker.options(), "--topic", topic]

    def rows(query: str) -> list[Any]:
        with psycopg.connect(psycopg_url(database_url)) as connection:
            return connection.execute(query.encode()).fetchall()

    with ExitStack() as stack:
        detector = reluscope(
            "detector", *bus, "--group", topic, "--database-url", database_url,
            "--port", detector_url.rpartition(":")[2],
            "--check-interval", "2", "--reference-requests", "300", "--reference-windows", "3", "--min-requests", "100",
            "--grace-seconds", "1",
        )  # fmt: skip
        agent = reluscope(
            "agent", *bus, "--repository", str(repository), "--state-dir", str(tmp_path / "state"),
            "--agent-id", "pod-1", "--port", agent_url.rpartition(":")[2], "--sample-rate", "1",
            "--window-seconds", "1",
        )  # fmt: skip
        log = tmp_path / "detector.log"
        stack.enter_context(running("detector", detector, log, ready=lambda: http_ok(f"{detector_url}/readyz")))
        pages = stack.enter_context(alertmanager(tmp_path / "alertmanager", f"{detector_url}/api/v1/alerts"))
        targets = {"reluscope-detector": [detector_url.removeprefix("http://")]}
        stack.enter_context(prometheus(tmp_path / "prometheus", [RULES], targets, pages))
        ready = lambda: http_ok(f"{agent_url}/v2/models/digits/ready")  # noqa: E731
        stack.enter_context(running("agent", agent, tmp_path / "agent.log", ready=ready))
        stack.enter_context(traffic(agent_url))

        wait_for("a clean check of version 1", lambda: rows("SELECT 1 FROM checks WHERE status = 'ok' LIMIT 1"))
        put(repository, "2", broken_export())
        [alert] = wait_for(
            "the page",
            lambda: [
                found
                for found in fetch(f"{pages}/api/v2/alerts")
                if found["labels"]["alertname"] == "ReluscopeDeadNeurons"
            ],
        )
        assert (alert["labels"]["model"], alert["labels"]["version"]) == ("digits", "2")
        assert alert["annotations"]["runbook_url"].endswith("/runbooks/ReluscopeDeadNeurons/v1")
        assert http_ok(f"{detector_url}/runbooks/ReluscopeDeadNeurons/v1")
        [row] = wait_for(
            "the alert's row",
            lambda: rows(
                "SELECT runbook_name, runbook_version, status FROM alerts WHERE alertname = 'ReluscopeDeadNeurons'"
            ),
        )
        assert row == ("ReluscopeDeadNeurons", 1, "firing")
        states = rows("SELECT version, state, interval_seconds, clock_error_seconds FROM agent_states ORDER BY version")
        assert states == [("1", "stopped", 30.0, 0.0), ("2", "observing", 30.0, 0.0)], (
            "the former version got its farewell"
        )
        findings = rows("SELECT DISTINCT layer, channels FROM findings WHERE test = 'dead' AND origin")
        assert findings == [(LAYER, DEAD_CHANNELS)]
        assert not rows("SELECT 1 FROM findings f JOIN checks c ON c.id = f.check_id JOIN model_versions v"
                        " ON v.id = c.model_version_id WHERE v.version = '1'"), "version 1 was healthy"  # fmt: skip
