"""The intake benchmark aimed at a real `reluscope agent` that replays without rest.

Run as ``python -m tests.bench.intake_agent``: an embedded broker, the agent with a duty cycle of 1 and an instrumented
ResNet-50 of 64 x 64 pixels, all of whose requests are sampled; then ``tests.bench.intake --url``.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import onnx

from deploy.local.broker import embedded_broker
from deploy.local.ports import free_port
from deploy.local.process import http_ok, running
from tests.agent.models import resnet50


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, embedded_broker() as broker:
        path = Path(folder) / "models/bench/1/model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(resnet50(size=64), path)
        url = f"http://127.0.0.1:{free_port()}"
        agent = [
            f"{sysconfig.get_path('scripts')}/reluscope", "agent", *broker.options(),
            "--repository", f"{folder}/models", "--state-dir", f"{folder}/state", "--port", url.rpartition(":")[2],
            "--sample-rate", "1", "--duty-cycle", "1", "--window-seconds", "5", "--queue-mib", "16",
        ]  # fmt: skip
        log = Path(folder) / "agent.log"
        with running("agent", agent, log, ready=lambda: http_ok(f"{url}/v2/health/ready"), timeout=60) as process:
            bench = [sys.executable, "-m", "tests.bench.intake", "--url", url, "--model", "bench"]
            subprocess.run([*bench, "--pid", str(process.pid), *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
