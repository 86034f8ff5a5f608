"""What every instrumented model must show: the served model's outputs, and pooled values equal to numpy's."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.instrument import Instrumented, instrument
from agent.instrument.pooled import Pooled
from agent.replay import Replayer, output_types

Arrays = Mapping[str, NDArray[Any]]


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def graph(
    nodes: Collection[onnx.NodeProto],
    inputs: Mapping[str, tuple[int | str | None, ...]],
    outputs: Mapping[str, int],
    weights: Mapping[str, NDArray[Any]] | None = None,
    opset: int = 17,
    domains: Collection[str] = (),
) -> onnx.ModelProto:
    """A model of float inputs (name to shape) and outputs (name to rank)."""
    proto = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=8 if opset < 22 else 10)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named as its output; inputs are separated by spaces."""
    return helper.make_node(op, inputs.split(" "), [output], name=output, **attributes)


def plain(model: onnx.ModelProto | Path, inputs: Arrays, extra: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """The outputs of the model as it is, and of tensors inside it without any optimisation."""
    proto = onnx.load(model) if isinstance(model, Path) else model
    values = _run(proto, inputs, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if extra:
        clone = onnx.ModelProto()
        clone.CopyFrom(proto)
        present = {value.name for value in clone.graph.output}
        clone.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(extra) if n not in present)
        values |= _run(clone, inputs, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return values


def observe(model: onnx.ModelProto, inputs: Arrays) -> tuple[Instrumented, dict[str, Pooled]]:
    """Instruments and runs; fails where an output differs by one bit from the plain model's."""
    instrumented = instrument(model, output_types)
    expected = plain(model, inputs)
    with instrumented.session_model() as made:
        got = _run(instrumented.model, inputs, ort.GraphOptimizationLevel.ORT_ENABLE_ALL, made.config)
    for name in instrumented.outputs:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=f"output {name}")
    return instrumented, Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run(dict(inputs))


def assert_pools(got: Pooled, value: NDArray[Any], channels: int, requests: int = 0, rtol: float = 1e-5) -> None:
    """Compares with numpy in float64 on the whole tensor."""
    exact = np.moveaxis(value.astype(np.float64), (requests, channels), (0, 1))
    exact = exact.reshape(*exact.shape[:2], -1)
    np.testing.assert_allclose(got.mean, exact.mean(2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.maximum, exact.max(2), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(got.fraction, (exact > 0).mean(2), rtol=1e-5, atol=1e-6)


def execution_order(model: onnx.ModelProto, inputs: Arrays, folder: Path) -> list[str]:
    """Names of the nodes of the optimised model in the order in which onnxruntime ran them."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, dict(inputs))
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    return [event["name"].removesuffix("_kernel_time") for event in sorted(kernels, key=lambda event: event["ts"])]


def _run(
    model: onnx.ModelProto,
    inputs: Arrays,
    level: ort.GraphOptimizationLevel,
    config: Mapping[str, str] | None = None,
) -> dict[str, NDArray[Any]]:
    options = ort.SessionOptions()
    for key, setting in (config or {}).items():
        options.add_session_config_entry(key, setting)
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {name: value for name, value in inputs.items() if name in {value.name for value in session.get_inputs()}}
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, given), strict=True))
