"""Probes by glob: what is kept, what is reported as left out, what matches nothing."""

from __future__ import annotations

import pytest

from agent.capture.choice import ChoiceError, choose, parse_globs
from agent.wire import Probe, ProbeKind

KINDS: dict[str, ProbeKind] = {
    "image": "input",
    "/layer1/relu": "activation",
    "/layer1/relu_1": "activation",
    "/layer2/relu": "activation",
    "scores": "output",
}
PROBES = [Probe(name, "Relu", name, 4, 1, kind, place, True) for place, (name, kind) in enumerate(KINDS.items())]


@pytest.mark.parametrize(
    ("globs", "kept"),
    [
        ("", "image /layer1/relu /layer1/relu_1 /layer2/relu scores"),
        ("/layer2/*", "image /layer2/relu scores"),
        ("*relu", "image /layer1/relu /layer2/relu scores"),
        ("!*_1", "image /layer1/relu /layer2/relu scores"),
        ("/layer1*,!*_1", "image /layer1/relu scores"),
        ("!*_1,/layer1*", "image /layer1/relu scores"),
        ("/layer1/relu,!image,!scores", "/layer1/relu"),
        ("/LAYER1*", "image scores"),
    ],
)
def test_globs_choose_layers_and_leave_inputs_and_outputs(globs: str, kept: str) -> None:
    chosen = choose(PROBES, parse_globs([globs]))
    assert chosen.names == set(kept.split())
    assert {item.name for item in chosen.left_out} == KINDS.keys() - chosen.names
    assert {item.reason for item in chosen.left_out} <= {"left out by --probes"}


def test_globs_that_match_nothing_are_named() -> None:
    chosen = choose(PROBES, parse_globs(["/layer1*, conv*", "!fc?"]))
    assert chosen.unmatched == ("conv*", "!fc?")


def test_a_choice_of_nothing_is_refused_with_the_names() -> None:
    with pytest.raises(ChoiceError, match=r"leaves nothing to observe; there are image, /layer1/relu"):
        choose(PROBES, ["!*"])


def test_empty_parts_are_no_globs() -> None:
    assert parse_globs(["a,,b", " ", "!", "!c"]) == ("a", "b", "!c")
