"""Random graphs: whatever the operator, layout, rank, precision and batch, pooled values equal numpy's in float64.

The tensors that are compared come from the instrumented session itself, so that both sides see the same rounding; that
session's outputs are compared bit for bit with the plain model's. NaN and infinities are sown into the inputs, and what
arrives of them at a probe must be counted there, per request and channel, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from agent.instrument import instrument
from agent.instrument.pooled import Pooled
from agent.replay import Replayer, output_types
from agent.summary import from_pooled
from tests.agent.instrument.checks import graph, node, plain

ACTIVATIONS: dict[str, dict[str, Any]] = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.1}, "Elu": {}, "Selu": {}, "ThresholdedRelu": {"alpha": 0.3}, "HardSwish": {},
    "Gelu": {}, "Clip": {}, "Max": {}, "Silu": {},
}  # fmt: skip
SOWN = [np.nan, np.inf, -np.inf]


@dataclass
class Net:
    """A chain of layers over a tensor of known layout: shape without the batch, and the axis of its channels."""

    rng: np.random.Generator
    shape: list[int]
    axis: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    tensor: str = "x"
    probed: dict[str, int] = field(default_factory=dict)
    """Activation to its channel axis, batch counted."""

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (0.5 * self.rng.standard_normal(shape)).astype(np.float32)
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> None:
        output = f"t{len(self.nodes)}"
        self.nodes.append(node(op, " ".join([self.tensor, *inputs]), output, **attributes))
        self.tensor = output

    def linear(self, channels: int) -> None:
        """A convolution where channels come first, else a matrix product over the last axis."""
        if self.axis == 0 and len(self.shape) > 1:
            ones = [1] * (len(self.shape) - 1)
            self.add("Conv", self.weight(channels, self.shape[0], *ones))
        elif self.axis == len(self.shape) - 1:
            self.add("MatMul", self.weight(self.shape[-1], channels))
        else:
            return
        self.shape[self.axis] = channels

    def activate(self, op: str) -> None:
        if op == "Silu":
            gate = f"gate{len(self.nodes)}"
            self.nodes.append(node("Sigmoid", self.tensor, gate))
            self.add("Mul", gate)
        elif op in ("Clip", "Max"):
            self.weights |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
            self.add(op, *(["zero", "six"] if op == "Clip" else ["zero"]))
        else:
            self.add(op, **ACTIVATIONS[op])
        self.probed[self.tensor] = self.axis + 1

    def swap(self) -> None:
        """Channels from first to last or back, by a Transpose that leaves the batch."""
        if len(self.shape) < 2 or self.axis not in (0, len(self.shape) - 1):
            return
        rest = list(range(1, len(self.shape) + 1))
        order = [*rest[1:], rest[0]] if self.axis == 0 else [rest[-1], *rest[:-1]]
        self.add("Transpose", perm=[0, *order])
        self.axis = len(self.shape) - 1 if self.axis == 0 else 0
        self.shape = [self.shape[place - 1] for place in order]


@st.composite
def nets(draw: st.DrawFn) -> tuple[Net, list[int]]:
    """A net that ends in an activation, and the shape of its input without the batch."""
    rank = draw(st.integers(1, 4))
    shape = [draw(st.integers(1, 6)) for _ in range(rank)]
    # Of rank 3 with nothing to tell, the last axis is taken for the channels; so the first layer always tells.
    axis = draw(st.sampled_from([0, rank - 1]))
    net = Net(np.random.default_rng(draw(st.integers(0, 1 << 20))), list(shape), axis)
    for _ in range(draw(st.integers(1, 3))):
        net.linear(draw(st.integers(1, 20)))
        net.activate(draw(st.sampled_from(sorted(ACTIVATIONS))))
        if draw(st.booleans()):
            net.swap()
    net.add("Identity")
    return net, shape


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), made=nets(), batch=st.integers(1, 5), sown=st.lists(st.sampled_from(SOWN), max_size=3))
def test_pooled_values_of_random_graphs(
    data: st.DataObject, made: tuple[Net, list[int]], batch: int, sown: list[float]
) -> None:
    net, shape = made
    x = net.rng.standard_normal((batch, *shape)).astype(np.float32)
    for value in sown:
        x.flat[data.draw(st.integers(0, x.size - 1))] = value
    model = graph(net.nodes, {"x": ("N", *shape)}, {net.tensor: x.ndim}, net.weights, opset=20)
    note(f"{[item.op_type for item in net.nodes]} on {x.shape}")
    check(model, x, net.probed)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=nets(), batch=st.integers(1, 4), kind=st.sampled_from([TensorProto.FLOAT16, TensorProto.DOUBLE]))
def test_pooled_values_in_other_precisions(made: tuple[Net, list[int]], batch: int, kind: int) -> None:
    net, shape = made
    x = net.rng.standard_normal((batch, *shape)).astype(np.float32)
    cast = [helper.make_node("Cast", ["x"], ["cast"], name="cast", to=kind)]
    for item in net.nodes:
        cast.append(helper.make_node(item.op_type, ["cast" if n == "x" else n for n in item.input], item.output))
        cast[-1].attribute.extend(item.attribute)
        cast[-1].name = item.name
    cast.append(node("Cast", net.tensor, "y", to=TensorProto.FLOAT))
    numpy_kind = helper.tensor_dtype_to_np_dtype(kind)
    weights = {name: value.astype(numpy_kind) for name, value in net.weights.items()}
    supported = {"Relu", "Clip", "Max", "Silu"}
    unsupported = {item.op_type for item in net.nodes} & ({"Conv", *ACTIVATIONS} - supported)
    if kind == TensorProto.DOUBLE and unsupported:
        return  # onnxruntime has no such kernel in double precision
    model = graph(cast, {"x": ("N", *shape)}, {"y": x.ndim}, weights, opset=20)
    check(model, x, net.probed, rtol=1e-2 if kind == TensorProto.FLOAT16 else 1e-4)


def check(model: onnx.ModelProto, x: NDArray[Any], probed: dict[str, int], rtol: float = 1e-4) -> None:
    instrumented = instrument(model, output_types)
    found = {probe.tensor: probe for probe in instrumented.probes if probe.kind == "activation"}
    assert set(found) == set(probed)
    expected, got = plain(model, {"x": x}), run(instrumented.model, x)
    for name in instrumented.outputs:
        if rtol > 1e-3:
            # onnxruntime has no half-precision arithmetic on CPU; it rounds to half at whatever is read twice, so a
            # probe adds a rounding that a GPU would make anyway.
            np.testing.assert_allclose(got[name], expected[name], rtol=rtol, atol=1e-2)
        else:
            np.testing.assert_array_equal(got[name], expected[name])
    extended = instrumented.model
    present = {value.name for value in extended.graph.output}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in probed if name not in present)
    tensors = run(extended, x)
    pooled = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run({"x": x})
    for tensor, axis in probed.items():
        assert found[tensor].axis == axis or 1 in tensors[tensor].shape
        compare(pooled[found[tensor].name], np.asarray(tensors[tensor], np.float64), found[tensor].axis, rtol)


def run(model: onnx.ModelProto, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # as `plain`: where a tensor is cut for threads, exp may differ in the last bit
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, {"x": x}), strict=True))


def compare(got: Pooled, tensor: NDArray[np.float64], axis: int, rtol: float) -> None:
    exact = np.moveaxis(tensor, axis, 1).reshape(len(tensor), tensor.shape[axis], -1)
    finite = np.isfinite(exact).all(axis=2)
    summary = from_pooled(got.mean, got.maximum, got.fraction)
    np.testing.assert_array_equal(summary.nonfinite, (~finite).sum(axis=0))
    with np.errstate(invalid="ignore"):
        mean, maximum, fraction = exact.mean(axis=2), exact.max(axis=2), (exact > 0).mean(axis=2)
    atol = 1e-5 if rtol < 1e-3 else 1e-2
    np.testing.assert_allclose(got.mean[finite], mean[finite], rtol=rtol, atol=atol)
    np.testing.assert_allclose(got.maximum[finite], maximum[finite], rtol=rtol, atol=atol)
    np.testing.assert_allclose(got.fraction[finite], fraction[finite], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(summary.active, (finite & (maximum > 0)).sum(axis=0))
