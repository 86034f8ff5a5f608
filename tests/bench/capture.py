"""What observing activations costs: a zoo of models, batch sizes and devices, and every way to do it in one run.

Run as ``python -m tests.bench.capture``. In each cell (model, batch, device) the contenders take turns in random order,
and a ratio is the median over rounds of a contender's time by the plain session's in the same round, so that it holds
on a machine that others use too; the ratio of processor time holds even better. Peak memory comes from a process of its
own for each contender. ``--profile`` instead sums onnxruntime's own kernel times, which shows what the pooling nodes
cost by operator. ``--markdown`` prints the table of docs/measurements.md. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime as ort

from tests.bench._contenders import CONTENDERS, open_case, prepare
from tests.bench._sessions import Device, feeds, kernel_times
from tests.bench._tables import markdown_table, plain_table, profile_table
from tests.bench._turns import take_turns
from tests.zoo import ZOO

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CHILD_RUNS = 3


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    available = [name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers()]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.capture", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=list(ZOO), default=list(ZOO))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--provider", nargs="+", choices=available, default=available)
    parser.add_argument("--rounds", type=int, default=40, help="at most so many rounds per cell")
    parser.add_argument(
        "--seconds", type=float, default=20, help="aim per cell; at least 7 rounds are run all the same"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory-gib", type=float, default=6, help="contenders that would hold more are left out")
    parser.add_argument("--quick", action="store_true", help="MobileNet and MLP, batch 1 and 8, 3 seconds each")
    parser.add_argument("--profile", action="store_true", help="kernel times by operator instead, at the first batch")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--child", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.batches, options.seconds = ["mobilenet", "mlp"], [1, 8], 3.0
    return options


def run_child(name: str, folder: Path, device: Device, batch: int) -> None:
    """One contender alone in this process: prints its peak memory and bytes as JSON."""
    case = open_case(folder, device, batch)
    inputs = feeds(case.inputs, batch, 0)
    once = CONTENDERS[name].make(case)
    given_out = max(once(inputs) for _ in range(CHILD_RUNS))
    print(json.dumps({"peak_bytes": peak_bytes(), "bytes_out": given_out}))


def peak_bytes() -> int:
    """The largest resident size of this process since its program began.

    Not getrusage's ru_maxrss: Linux hands that down from the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


def alone(name: str, folder: Path, device: Device, batch: int) -> dict[str, int]:
    """`run_child` in a process of its own."""
    provider = next(key for key, value in PROVIDERS.items() if value == device.provider)
    command = [
        sys.executable, "-m", "tests.bench.capture", "--child", name, "--folder", str(folder), "--batches", str(batch),
        "--threads", str(device.threads), "--provider", provider,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(folder: Path, device: Device, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one cell, by contender; ``not_run`` holds the reason where one was left out."""
    case = open_case(folder, device, batch)
    figures: dict[str, Any] = {}
    admitted = []
    for name, contender in CONTENDERS.items():
        gib = contender.held_bytes(case) / 2**30
        if gib > options.memory_gib:
            figures[name] = {"not_run": f"would hold {gib:.1f} GiB of activations"}
        else:
            admitted.append(name)
            figures[name] = alone(name, folder, device, batch)
    batches = [feeds(case.inputs, batch, seed) for seed in range(2)]
    made = {name: CONTENDERS[name].make(case) for name in admitted}
    turns = take_turns(made, batches, rounds=options.rounds, seconds=options.seconds)
    for name in admitted:
        cell = figures[name]
        cell |= turns[name]
        cell["peak_ratio"] = round(cell["peak_bytes"] / figures["plain"]["peak_bytes"], 3)
        cell["share_of_activations"] = cell["bytes_out"] / (case.probed_bytes * batch)
    return figures


def profile(folder: Path, device: Device, batch: int) -> dict[str, Any]:
    """Kernel milliseconds of the plain and of the instrumented model, the latter's split in its own and pooling."""
    case = open_case(folder, device, batch)
    inputs = feeds(case.inputs, batch, 0)
    before, after = kernel_times([case.path("plain"), case.path("instrumented")], device, inputs, runs=8)
    return {"plain_ms": before.own, "own_ms": after.own, "pooling_ms": after.pooling}


def main() -> None:
    options = parse()
    if options.child:
        device = Device(PROVIDERS[options.provider[0]], options.threads)
        run_child(options.child, options.folder, device, options.batches[0])
        return
    cells: list[dict[str, Any]] = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(model, folder)
            for provider in options.provider:
                device = Device(PROVIDERS[provider], options.threads)
                for batch in options.batches[:1] if options.profile else options.batches:
                    print(f"{model}, batch {batch}, {provider}", flush=True)
                    cell = {"model": model, "batch": batch, "provider": provider}
                    if options.profile:
                        cells.append(cell | profile(folder, device, batch))
                    else:
                        cells.append(cell | {"contenders": measure(folder, device, batch, options)})
    table = profile_table if options.profile else markdown_table if options.markdown else plain_table
    print("\n" + table(cells) + "\n")
    bench = "capture-profile" if options.profile else "capture"
    versions = {"onnxruntime": ort.__version__, "threads": options.threads, "load_now": os.getloadavg()[0]}
    print(json.dumps({"bench": bench, **versions, "cells": cells}))


if __name__ == "__main__":
    main()
