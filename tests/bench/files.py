"""`python -m tests.bench.files`: a large model's file, read and written again for a session, by us and by onnx-ir.

The weights are inside the file, or beside it as external data. *read* makes the graph ready to be changed; *session*
makes of it what a session is loaded from. Every measurement is a process of its own, which tells its seconds and the
largest memory that it had beyond what the imports took; contenders take turns in random order within one run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STEPS = ("read", "session")
MIB = 1 << 20


def build(folder: Path, mebibytes: int) -> dict[str, Path]:
    """The same chain of matrix products, of 4 MiB each, with its weights inside and beside the file."""
    width, rng = 1024, np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((width, width), np.float32), f"w{i}")
        for i in range(max(1, mebibytes // 4))
    ]
    nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(len(weights))]
    shape: list[str | int | None] = ["N", width]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"t{len(nodes)}", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    inside, beside = folder / "inside.onnx", folder / "beside.onnx"
    onnx.save(model, inside)
    onnx.save(model, beside, save_as_external_data=True, location="beside.data")
    return {"inside": inside, "beside": beside}


def ours(path: Path, step: str) -> None:
    """As the agent does it."""
    from agent.instrument import open_model

    file = open_model(path)
    if step == "session":
        with file.session_model(file.proto, {}):
            pass


def onnx_ir(path: Path, step: str) -> None:
    """onnx-ir, whose external tensors are mapped when they are asked for."""
    import onnx_ir as ir

    model = ir.load(path)
    if step != "session":
        return
    if path.name == "beside.onnx":
        ir.to_proto(model).SerializeToString()
        return
    with TemporaryDirectory() as folder:
        ir.save(model, Path(folder) / "model.onnx")


CONTENDERS: dict[str, Callable[[Path, str], None]] = {"ours": ours, "onnx-ir": onnx_ir}


def one(name: str, path: Path, step: str) -> dict[str, float]:
    """Seconds, and MiB beyond what the imports took, of one contender in this process."""
    import onnx_ir  # noqa: F401 - so that both contenders begin with the same memory

    import agent.instrument  # noqa: F401

    before = _peak()
    begun = time.perf_counter()
    CONTENDERS[name](path, step)
    return {"seconds": time.perf_counter() - begun, "mib": _peak() - before}


def _peak() -> float:
    """MiB; of the address space of this program alone, whatever started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measure(path: Path, step: str, rounds: int) -> dict[str, Any]:
    """By contender the medians, and those of onnx-ir as ratios to ours, round by round."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(CONTENDERS), len(CONTENDERS)):
            command = [sys.executable, "-m", "tests.bench.files", "--one", name, step, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            taken[name].append(json.loads(done.stdout))
    found: dict[str, Any] = {
        name: {key: round(statistics.median(run[key] for run in runs), 4) for key in ("seconds", "mib")}
        for name, runs in taken.items()
    }
    for key in ("seconds", "mib"):  # 0.1 MiB and 0.1 ms are what can be told at all
        least = 0.1 if key == "mib" else 1e-4
        ratios = [his[key] / max(our[key], least) for his, our in zip(taken["onnx-ir"], taken["ours"], strict=True)]
        found[f"{key}_ratio"] = round(statistics.median(ratios), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="weights of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "STEP", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, step, path = options.one
        print(json.dumps(one(name, Path(path), step)))
        return
    cells = []
    print(f"{'weights':<10}{'step':<10}{'ours':>20}{'onnx-ir':>20}{'ratio':>16}")
    with TemporaryDirectory() as folder:
        for weights, path in build(Path(folder), options.mib).items():
            for step in STEPS:
                found = measure(path, step, options.rounds)
                cells.append({"weights": weights, "step": step, **found})
                sides = "".join(
                    f"{found[name]['seconds']:>9.3f} s{found[name]['mib']:>5.0f} MiB" for name in CONTENDERS
                )
                print(f"{weights:<10}{step:<10}{sides}{found['seconds_ratio']:>8.2f}{found['mib_ratio']:>8.2f}")
    print(json.dumps({"bench": "files", "mib": options.mib, "rounds": options.rounds, "cells": cells}))


if __name__ == "__main__":
    main()
