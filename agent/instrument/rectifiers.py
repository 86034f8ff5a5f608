"""Which nodes are activations to probe, and whether they can be exactly zero."""

from __future__ import annotations

import onnx

from agent.instrument.graph import Graph, attribute

_EXACT_ZERO = frozenset({"Relu", "ThresholdedRelu", "HardSwish"})
_NEVER_QUITE_ZERO = frozenset({"LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "FastGelu", "QuickGelu"})
_OTHER_ACTIVATIONS = frozenset({"Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "HardSigmoid"})


def exact_zero(node: onnx.NodeProto, graph: Graph) -> bool | None:
    """Whether a rectifier's output can be exactly zero; None where the node is no rectifier.

    A Clip is a rectifier where its lower bound is 0, as in ReLU6.
    """
    if node.op_type in _EXACT_ZERO:
        return True
    if node.op_type in _NEVER_QUITE_ZERO:
        return False
    if node.op_type == "Clip":
        lower = attribute(node, "min")
        if lower is None and len(node.input) > 1 and node.input[1]:
            lower = graph.constant(node.input[1])
        return True if lower == 0 else None
    return None


def reason_not_probed(node: onnx.NodeProto, graph: Graph) -> str | None:
    """Why an activation that is no rectifier is left out; None for nodes that are no activations at all."""
    if node.op_type in _OTHER_ACTIVATIONS:
        return f"{node.op_type} is not a rectifier"
    if node.op_type == "Clip":
        return "Clip whose lower bound is not the constant 0 is not a rectifier"
    return None
