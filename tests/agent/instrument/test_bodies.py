"""Activations inside If and Loop: pooled where they run, absent where they do not, named where they cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from agent.instrument import instrument
from agent.replay import Replayer, output_types
from tests.agent.instrument.checks import assert_pools, floats, graph, node, observe

WEIGHTS: dict[str, NDArray[Any]] = {"w": floats(4, 3, 3, 3), "zero": np.array(0, np.float32), "m": floats(4, 4)}


def value(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branching() -> onnx.ModelProto:
    """relu(conv(x)) where the largest input is positive, else relu(-conv(x)) and a dense head."""
    then = helper.make_graph([node("Relu", "h", "a")], "then", [], [value("a")])
    other = helper.make_graph([node("Neg", "h", "n"), node("LeakyRelu", "n", "b")], "else", [], [value("b")])
    nodes = [
        node("Conv", "x w", "h"),
        node("ReduceMax", "x", "largest", keepdims=0),
        node("Greater", "largest zero", "positive"),
        helper.make_node("If", ["positive"], ["y"], name="if", then_branch=then, else_branch=other),
        node("Relu", "y", "z"),
    ]
    return graph(nodes, {"x": ("N", 3, 6, 6)}, {"z": 4}, WEIGHTS)


def looping() -> onnx.ModelProto:
    """x = relu(x @ m), as many times as the input says."""
    body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("MatMul", "state m", "mm"), node("Relu", "mm", "next")],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("state")],
        [value("go_on", TensorProto.BOOL, []), value("next")],
    )
    nodes = [helper.make_node("Loop", ["times", "", "x"], ["y"], name="loop", body=body), node("Relu", "y", "z")]
    model = graph(nodes, {"x": ("N", 4)}, {"z": 2}, {"m": WEIGHTS["m"]})
    model.graph.input.append(value("times", TensorProto.INT64, []))
    return model


def test_both_branches_are_probed_and_the_one_that_runs_has_values() -> None:
    x = floats(2, 3, 6, 6)
    instrumented, pooled = observe(branching(), {"x": x})
    probes = {probe.name: probe for probe in instrumented.probes}
    assert list(probes) == ["x", "if/else_branch/b", "if/then_branch/a", "z"]
    assert probes["if/then_branch/a"].channels == 4
    assert probes["if/then_branch/a"].exact_zero
    assert not probes["if/else_branch/b"].exact_zero
    assert set(pooled) == {"x", "if/then_branch/a", "z"}
    np.testing.assert_array_equal(pooled["if/then_branch/a"].maximum, pooled["z"].maximum)
    _, pooled = observe(branching(), {"x": -np.abs(x)})
    assert set(pooled) == {"x", "if/else_branch/b", "z"}


def test_loop_bodies_are_pooled_over_iterations() -> None:
    model, x = looping(), floats(3, 4)
    instrumented, pooled = observe(model, {"x": x, "times": np.array(3)})
    assert [probe.name for probe in instrumented.probes] == ["x", "loop/body/next", "z"]
    states = [x]
    for _ in range(3):
        states.append(np.maximum(states[-1] @ WEIGHTS["m"], 0))
    assert_pools(pooled["loop/body/next"], np.stack(states[1:], axis=2), 1)


def test_a_loop_that_does_not_run_leaves_nothing() -> None:
    instrumented = instrument(looping(), output_types)
    pooled = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run({"x": floats(3, 4), "times": np.array(0)})
    assert set(pooled) == {"x", "z"}


def test_deeper_bodies_are_named_as_not_probed() -> None:
    model = branching()
    inner = helper.make_graph([node("Relu", "h", "deep")], "inner", [], [value("deep")])
    nested = helper.make_node("If", ["positive"], ["a"], name="nested", then_branch=inner, else_branch=inner)
    outer = next(item for item in model.graph.node if item.op_type == "If")
    then = next(item.g for item in outer.attribute if item.name == "then_branch")
    del then.node[:]
    then.node.append(nested)
    reasons = {item.name: item.reason for item in instrument(model, output_types).not_probed}
    assert reasons["if/then_branch/nested/then_branch/deep"] == "inside a body of the body of If if"


def test_scan_is_named_as_not_probed() -> None:
    body = helper.make_graph(
        [node("Add", "s v", "sum"), node("Relu", "sum", "r")],
        "body",
        [value("s", shape=[4]), value("v", shape=[4])],
        [value("sum", shape=[4]), value("r", shape=[4])],
    )
    nodes = [
        helper.make_node("Scan", ["start", "x"], ["end", "y"], name="scan", body=body, num_scan_inputs=1),
        node("Relu", "y", "z"),
    ]
    model = graph(nodes, {"x": ("N", 4)}, {"z": 2}, {"start": np.zeros(4, np.float32)})
    instrumented, _ = observe(model, {"x": floats(3, 4)})
    assert {item.name: item.reason for item in instrumented.not_probed} == {
        "scan/body/r": "inside the body of Scan scan"
    }


def test_a_subset_leaves_other_bodies_as_they_are() -> None:
    instrumented = instrument(branching(), output_types).subset({"x", "if/then_branch/a"})
    assert [probe.name for probe in instrumented.probes] == ["x", "if/then_branch/a"]
    assert [probe.position for probe in instrumented.probes] == [0, 2]
    pooled = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run({"x": floats(2, 3, 6, 6)})
    assert set(pooled) == {"x", "if/then_branch/a"}
