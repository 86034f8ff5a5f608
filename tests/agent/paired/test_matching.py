"""Probes find their counterparts by probe name, tensor name and stem; what finds none is named, with a reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent import wire
from agent.instrument import stem
from agent.paired.matching import Pair, compared_probes, match


@dataclass
class Graph:
    """Tensor names, and who reads them."""

    tensors: frozenset[str]
    outputs: tuple[str, ...] = ()
    readers: dict[str, str] = field(default_factory=dict)

    def only_reader_output(self, tensor: str) -> str | None:
        return self.readers.get(tensor)


def probe(name: str, tensor: str, kind: wire.ProbeKind = "activation", channels: int | None = 4) -> wire.Probe:
    return wire.Probe(name, "Relu", tensor, channels, 1, kind, 1, True)


def partner(served: wire.Probe, baseline: Graph, *baseline_probes: wire.Probe) -> str | None:
    pairs, unmatched = match([served], Graph(frozenset({served.tensor})), baseline_probes, baseline)
    assert len(pairs) + len(unmatched) == 1
    return pairs[0].baseline_tensor if pairs else None


def test_the_probe_of_the_same_name_comes_first() -> None:
    baseline = Graph(frozenset({"t1", "t9"}))
    assert partner(probe("relu1", "t1"), baseline, probe("relu1", "t9")) == "t9"


def test_then_the_tensor_of_the_same_name() -> None:
    assert partner(probe("relu1", "t1"), Graph(frozenset({"t1", "t1_quantized"}))) == "t1"


def test_then_the_stem_of_a_quantizers_name() -> None:
    float_model = Graph(frozenset({"conv", "relu"}))
    for tensor in ("relu_QuantizeLinear_Output", "relu_DequantizeLinear_Output", "relu_quantized"):
        assert partner(probe("x", tensor), float_model) == "relu"
    int8_model = Graph(frozenset({"relu_QuantizeLinear_Output"}))
    assert partner(probe("x", "relu_quantized"), int8_model) == "relu_QuantizeLinear_Output"
    assert stem("plain") == "plain"


def test_a_dropped_relu_is_found_behind_the_convolution_that_lent_its_name() -> None:
    baseline = Graph(frozenset({"conv", "relu"}), readers={"conv": "relu"})
    assert partner(probe("conv", "conv_quantized"), baseline, probe("relu1", "relu")) == "relu"
    assert partner(probe("conv", "conv_quantized"), baseline) == "conv", "what follows is no rectifier"


def test_outputs_are_matched_by_their_place_last() -> None:
    served, baseline = Graph(frozenset({"191"}), outputs=("191",)), Graph(frozenset({"207"}), outputs=("207",))
    pairs, _ = match([probe("191", "191", "output")], served, [], baseline)
    assert [pair.baseline_tensor for pair in pairs] == ["207"]
    two = Graph(frozenset({"207", "208"}), outputs=("207", "208"))
    assert match([probe("191", "191", "output")], served, [], two)[0] == ()


def test_what_has_no_counterpart_is_named_with_the_reason() -> None:
    served = Graph(frozenset({"a", "b"}))
    probes = [probe("a", "a"), probe("b", "b", channels=8), probe("inner", "in_a_body"), probe("x", "x", "input")]
    baseline = Graph(frozenset({"b"}))
    pairs, unmatched = match(probes, served, [probe("b", "b", channels=4)], baseline)
    assert pairs == ()
    assert {item.probe: item.reason for item in unmatched} == {
        "a": "the baseline has no probe or tensor of its name",
        "b": "8 channels, the baseline's has 4",
        "inner": "its tensor is not in the top-level graph",
    }


def test_a_float_output_without_a_probe_is_compared_too() -> None:
    served = Graph(frozenset({"relu", "score"}), outputs=("relu", "score"))
    probes = [probe("relu1", "relu")]
    found = list(compared_probes(probes, served.outputs))
    assert [(item.name, item.kind, item.channels, item.axis) for item in found] == [
        ("relu1", "activation", 4, 1),
        ("score", "output", None, 0),
    ]
    pairs, _ = match(probes, served, probes, served)
    assert pairs == (Pair(found[0], "relu"), Pair(found[1], "score"))
