"""How long a request waits for intake's answer while the process is busy with replay, and what it costs in memory.

Run as ``python -m tests.bench.intake``: a server of its own, with a thread that replays without rest (it runs an
instrumented ResNet-50 on all cores); quiet and saturated spells take turns. With ``--url`` it aims at a running agent,
and ``--pid`` reads its memory. Requests leave on a fixed schedule, from a process of their own. The figures mean little
where other programs want the cores too: ``load_before`` is the load average before the start.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.datatypes import NUMPY
from agent.delivery.windowing import Accumulator
from agent.instrument import instrument
from agent.intake.catalog import ModelMetadata
from agent.intake.http import build_app
from agent.intake.oip import parse_request
from agent.intake.queue import ByteQueue, Captured
from agent.intake.server import serve
from agent.intake.tensors import TensorSpec
from agent.intake.unpacking import Limits
from agent.metrics import AgentMetrics
from agent.rates.samplers import Samplers
from agent.replay import Replayer
from agent.serving.models import be_nice
from tests.agent.models import resnet50

IMAGE = TensorSpec("image", "FP32", (-1, 3, 64, 64))
CONNECTIONS = 8


class OneModel:
    """A catalog of one model, `bench`."""

    def __init__(self) -> None:
        self._model = ModelMetadata("bench", "1", True, (IMAGE,), ())

    def version(self, model: str, version: str | None) -> ModelMetadata | None:
        return self._model if model == "bench" else None

    def models(self) -> Sequence[ModelMetadata]:
        return (self._model,)


def replay_without_rest(queue: ByteQueue[Captured], saturated: threading.Event) -> None:
    """The agent's replay thread with its duty cycle at 1: parses what is queued and runs an instrumented ResNet-50."""
    be_nice()  # before the session: its threads inherit it
    instrumented = instrument(resnet50())
    replayer = Replayer(instrumented, threads=os.cpu_count() or 1, gpu_mem_limit=1 << 30)
    image = np.random.default_rng(0).normal(size=(4, 3, 224, 224)).astype(np.float32)
    accumulator = Accumulator(2000, 0)
    while True:
        batch = queue.take(16, 0)
        if not saturated.wait(0.05):
            continue
        for captured in batch:
            parse_request(captured.body, captured.header_length, (IMAGE,), encoding=captured.encoding)
        now_ms = time.time_ns() // 1_000_000
        arrived = np.full(len(image), now_ms)
        accumulator.add("bench", "1", "", instrumented.probes, replayer.run({"image": image}), arrived)
        accumulator.close(now_ms)


def run_server() -> None:
    """The server process: prints its port, then takes "quiet" and "saturated" from standard input."""
    queue: ByteQueue[Captured] = ByteQueue(16 << 20, 10_000)
    saturated, stop = threading.Event(), threading.Event()
    app = build_app(OneModel(), queue, Samplers(1.0), AgentMetrics(), Limits())
    threading.Thread(target=replay_without_rest, args=(queue, saturated), daemon=True).start()

    def listen() -> None:
        for line in sys.stdin:
            saturated.set() if line.strip() == "saturated" else saturated.clear()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    serve(app, "127.0.0.1", 0, stop, lambda port: print(port, flush=True))


def request_bytes(url: urllib.parse.SplitResult, model: str) -> bytes:
    """A binary inference request of one row, shaped as the server's metadata says."""
    with urllib.request.urlopen(f"{url.geturl()}/v2/models/{model}", timeout=10) as answer:
        metadata = json.load(answer)
    entries: list[dict[str, Any]] = []
    raw = b""
    for spec in metadata["inputs"]:
        shape = [1] + [size if size > 0 else 1 for size in spec["shape"][1:]]
        data = np.random.default_rng(0).random(shape).astype(NUMPY[spec["datatype"]]).tobytes()
        entries.append(
            {
                "name": spec["name"],
                "datatype": spec["datatype"],
                "shape": shape,
                "parameters": {"binary_data_size": len(data)},
            }
        )
        raw += data
    head = json.dumps({"inputs": entries}).encode()
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        f"Host: {url.netloc}",
        f"Content-Length: {len(head) + len(raw)}",
        f"Inference-Header-Content-Length: {len(head)}",
        "X-Request-Id: bench-%08d",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + head + raw


def read_answer(connection: socket.socket) -> bytes:
    """One HTTP answer that gives its length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += _more(connection)
    return head


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data


def measure(address: tuple[str, int], request: bytes, rate: float, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds to the answer of every request: from sending it, and from when the schedule wanted it sent."""
    start = time.perf_counter() + 0.1
    answered: list[float] = []
    scheduled: list[float] = []
    head, _, body = request.partition(b"\r\n\r\n")

    def client(first: int) -> None:
        with socket.create_connection(address, timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in itertools.count(first, CONNECTIONS):
                due = start + number / rate
                if due > start + seconds:
                    return
                time.sleep(max(0.0, due - time.perf_counter()))
                sent = time.perf_counter()
                connection.sendall(head % number + b"\r\n\r\n" + body)
                answer = read_answer(connection)
                end = time.perf_counter()
                if b" 200 " not in answer[:20]:
                    raise RuntimeError(f"the server answered {answer[:40]!r}")
                answered.append(end - sent)
                scheduled.append(end - due)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answered) < rate * seconds * 0.99:
        raise RuntimeError(f"only {len(answered)} of {rate * seconds:.0f} requests were answered")
    return answered, scheduled


def resident_mib(pid: int | None) -> float | None:
    """Resident memory of a process."""
    if pid is None:
        return None
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


def figures(answered: list[float], scheduled: list[float]) -> dict[str, float]:
    p50, p99, p999 = (round(float(value) * 1000, 3) for value in np.quantile(answered, [0.5, 0.99, 0.999]))
    return {
        "requests": len(answered),
        "p50_ms": p50,
        "p99_ms": p99,
        "p999_ms": p999,
        "max_ms": round(max(answered) * 1000, 3),
        "p99_from_schedule_ms": round(float(np.quantile(scheduled, 0.99)) * 1000, 3),
    }


def run(arguments: argparse.Namespace, url: str, pid: int | None, server: subprocess.Popen[str] | None) -> None:
    load = round(os.getloadavg()[0], 2)
    split = urllib.parse.urlsplit(url)
    address = (split.hostname or "127.0.0.1", split.port or 80)
    request = request_bytes(split, arguments.model)
    spells = ["quiet", "saturated"] if server else ["agent"]
    collected: dict[str, tuple[list[float], list[float]]] = {spell: ([], []) for spell in spells}
    for round_number in range(-1, arguments.rounds):  # the first one warms up
        if round_number == 0:
            before = resident_mib(pid)
        for spell in spells:
            if server and server.stdin:
                server.stdin.write(spell + "\n")
                server.stdin.flush()
            seconds = arguments.seconds / arguments.rounds if round_number >= 0 else 2.0
            answered, scheduled = measure(address, request, arguments.rate, seconds)
            if round_number >= 0:
                collected[spell][0].extend(answered)
                collected[spell][1].extend(scheduled)
    results = {spell: figures(*values) for spell, values in collected.items()}
    print(f"{'':10} {'requests':>8} {'p50 ms':>8} {'p99 ms':>8} {'p99.9 ms':>9} {'max ms':>8}")
    for spell, row in results.items():
        print(
            f"{spell:10} {row['requests']:8.0f} {row['p50_ms']:8.2f} {row['p99_ms']:8.2f} {row['p999_ms']:9.2f}"
            f" {row['max_ms']:8.2f}"
        )
    last = results[spells[-1]]
    print(
        json.dumps(
            {
                "bench": "intake",
                "load_before": load,
                "cores": os.cpu_count(),
                "rate_per_s": arguments.rate,
                "body_bytes": len(request.partition(b"\r\n\r\n")[2]),
                "rss_before_mib": before,
                "rss_after_mib": resident_mib(pid),
                "p99_ms": last["p99_ms"],
                "p99_ratio": round(last["p99_ms"] / results[spells[0]]["p99_ms"], 2),
                **results,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running agent, such as http://127.0.0.1:8400")
    parser.add_argument("--model", default="bench", help="the model that the agent has")
    parser.add_argument("--pid", type=int, help="the agent's process, for its memory")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each contender, in all rounds together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.serve:
        sys.setswitchinterval(0.0005)  # or the client's own threads hold an answer up for 5 ms
    if arguments.serve:
        run_server()
    elif arguments.url:
        run(arguments, arguments.url.rstrip("/"), arguments.pid, None)
    else:
        command = [sys.executable, "-m", "tests.bench.intake", "--serve"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                port = next(line.strip() for line in server.stdout if line.strip().isdecimal())
                run(arguments, f"http://127.0.0.1:{port}", server.pid, server)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
