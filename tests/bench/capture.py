"""Cost of capturing activation statistics: plain session, instrumented session, and fetching everything into numpy.

Run as ``python -m tests.bench.capture``. The contenders take turns in one run, so ratios hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from agent.instrument import Instrumented, instrument
from tests.agent.models import resnet50


def session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def with_activations(model: onnx.ModelProto, instrumented: Instrumented) -> onnx.ModelProto:
    """The model with every probed activation as an output, as an offline calibrator fetches them."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    for probe in instrumented.probes:
        if probe.kind == "activation":
            clone.graph.output.append(helper.make_tensor_value_info(probe.tensor, onnx.TensorProto.FLOAT, None))
    return clone


def reduce_in_numpy(values: list[np.ndarray]) -> None:
    for value in values:
        axes = tuple(range(2, value.ndim))
        value.mean(axes), value.max(axes), (value > 0).mean(axes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    model = resnet50()
    instrumented = instrument(model)
    image = np.random.default_rng(0).normal(size=(arguments.batch, 3, 224, 224)).astype(np.float32)
    sessions = [
        session(candidate, arguments.threads)
        for candidate in (model, instrumented.model, with_activations(model, instrumented))
    ]
    fetched = [[] for _ in sessions]  # type: list[list[np.ndarray]]

    def contender(index: int, after: Callable[[list[np.ndarray]], None]) -> Callable[[], None]:
        def once() -> None:
            fetched[index] = sessions[index].run(None, {"image": image})
            after(fetched[index])

        return once

    contenders = {
        "plain": contender(0, lambda values: None),
        "instrumented": contender(1, lambda values: None),
        "fetch all + numpy": contender(2, reduce_in_numpy),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(arguments.rounds + 1):
        for name, once in contenders.items():
            begin = time.perf_counter()
            once()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - begin)
        print(f"round {turn} of {arguments.rounds}", flush=True)
    figures: dict[str, dict[str, float]] = {}
    print(f"\n{'ResNet-50, batch ' + str(arguments.batch):<22}{'seconds':>9}{'ratio':>8}{'MB out':>9}")
    for (name, taken), values in zip(seconds.items(), fetched, strict=True):
        ratio = statistics.median(a / b for a, b in zip(taken, seconds["plain"], strict=True))
        megabytes = sum(value.nbytes for value in values) / 1e6
        figures[name] = {"seconds": statistics.median(taken), "ratio": ratio, "megabytes": megabytes}
        print(f"{name:<22}{statistics.median(taken):>9.3f}{ratio:>8.2f}{megabytes:>9.2f}")
    print(json.dumps({"model": "resnet50", "batch": arguments.batch, "threads": arguments.threads, **figures}))


if __name__ == "__main__":
    main()
