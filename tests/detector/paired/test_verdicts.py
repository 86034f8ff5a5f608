"""From comparisons to findings: what is found, where, on which agents, and in which words."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from agent.wire import BaselineKind, Comparison
from detector.domain.finding import Finding
from detector.domain.settings import CheckSettings
from detector.paired import PairedSettings
from detector.paired.check import judge
from detector.paired.groups import agreement, groups, joined, request_level
from detector.statistics.sequential import SHARES
from detector.store import AgentComparison
from tests.detector.builders import MINUTE, START, compared, difference, probe

OUTPUT = probe("logits", 9, 10)
SETTINGS = PairedSettings()
LEVEL = request_level(CheckSettings(), 2)


def of(body: Comparison, agent: str = "agent-a", source: int = 1) -> AgentComparison:
    return AgentComparison(source, agent, body)


def find(*comparisons: AgentComparison, **settings: Any) -> list[Finding]:
    return [verdict.finding for verdict in judge(groups(comparisons), OUTPUT, PairedSettings(**settings), LEVEL)]


def layers(**sqnr_db: float) -> tuple[Any, ...]:
    """Layers in graph order, by their SQNR."""
    return tuple(difference(name, i, n=312, sqnr_db=value) for i, (name, value) in enumerate(sqnr_db.items(), 1))


def quantized(agree: int, n: int = 312, **fields: Any) -> AgentComparison:
    probes = fields.pop("probes", layers(conv1=35, conv2=28, conv3=8.1, fc1=6))
    return of(compared(n=n, top1_agree=agree, probes=probes, **fields))


def test_a_sound_int8_model_raises_nothing() -> None:
    assert find(quantized(309)) == []
    assert find(quantized(309, probes=layers(conv1=40, conv2=30))) == []


def test_disagreement_is_localised_to_the_first_layer_that_lost_its_signal() -> None:
    first, second = find(quantized(282))
    assert (
        first.summary
        == "conv3: SQNR 8.1 dB against reference.onnx over 312 requests, below 10; top-1 agrees in 282 of 312"
    )
    assert (first.layer, first.test, first.cause, first.origin) == ("conv3", "quantization", "quantization_fault", True)
    assert (first.alert, first.severity) == ("ReluscopeQuantizationFault", "warning")
    assert [first.statistic, first.effect, first.n] == pytest.approx([30, 30 / 312, 312])
    assert first.p_value < LEVEL
    assert first.details["sqnr_db"] == pytest.approx(8.1)
    assert first.details["disagreement_lower"] > SETTINGS.max_disagreement
    assert (second.layer, second.origin) == ("fc1", False)
    assert second.statistic == pytest.approx(6)
    assert second.summary == "fc1: SQNR 6.0 dB against reference.onnx over 312 requests, below 10"


@pytest.mark.parametrize(("differ", "n", "found"), [(2, 20, False), (8, 20, True), (21, 1000, False), (60, 1000, True)])
def test_disagreement_must_be_proven_above_its_limit(differ: int, n: int, found: bool) -> None:
    assert bool(find(quantized(n - differ, n))) == found


def test_all_checks_of_a_budget_together_have_one_share_of_one_false_page() -> None:
    settings = CheckSettings(false_page_days=30, check_interval=20)
    checks = 30 * 86_400 / 20
    assert checks * 4 * request_level(settings, 4) == pytest.approx(1 / SHARES)
    assert request_level(CheckSettings(false_page_days=1e-9, check_interval=86_400), 1) <= 0.5


def test_requests_tested_by_every_check_need_more_proof_than_a_holdout_that_is_run_once() -> None:
    assert find(quantized(291)) == []
    assert find(of(compared(kind="holdout", baseline="holdout.npz", n=312, top1_agree=291, probes=layers(conv2=7))))


def test_a_loss_without_a_low_layer_is_told_at_the_output() -> None:
    outputs = difference("logits", 4, n=312, sqnr_db=16, kind="output")
    (finding,) = find(quantized(250, probes=(*layers(conv1=35, conv2=12.5), outputs)))
    assert (finding.layer, finding.kind, finding.origin) == ("logits", "output", True)
    assert finding.summary.startswith("logits: no layer's SQNR is below 10 dB, the lowest is 12.5 dB at conv2; top-1")
    (bare,) = find(quantized(250, probes=()))
    assert bare.summary.startswith("logits: no layer was compared; top-1 agrees in 250 of 312")
    assert (bare.layer, bare.channels_total) == (OUTPUT.name, 10)


def holdout(lost: int, won: int, n: int = 500, **fields: Any) -> AgentComparison:
    right = 460
    return of(
        compared(
            kind="holdout", baseline="holdout.npz", n=n, top1_agree=n - lost - won, accuracy_n=n,
            served_correct=right - lost + won, baseline_n=n, baseline_correct=right, only_served_correct=won,
            only_baseline_correct=lost, probes=layers(conv1=30, conv2=7), **fields,
        )
    )  # fmt: skip


def test_lost_accuracy_is_found_where_agreement_alone_says_too_little() -> None:
    (finding,) = find(holdout(lost=14, won=0), max_disagreement=0.1)
    assert finding.summary == (
        "conv2: SQNR 7.0 dB against the reference model on holdout.npz over 312 requests, below 10; "
        "top-1 agrees in 486 of 500; "
        "accuracy 89.2 % against 92 % on 500 labelled requests (14 lost, 0 won; p = 1.2e-04)"
    )
    assert [finding.effect, finding.statistic] == pytest.approx([0.028, 14])
    assert finding.p_value == finding.details["accuracy_p_value"] == pytest.approx(2 * 0.5**14)


@pytest.mark.parametrize(("lost", "won"), [(14, 8), (0, 14), (4, 0)])
def test_a_drop_must_be_both_proven_and_large(lost: int, won: int) -> None:
    assert find(holdout(lost, won), max_disagreement=0.1) == []


def test_a_model_without_classes_is_judged_by_its_outputs() -> None:
    def found(sqnr_db: float, n: int = 100) -> list[str]:
        probes = (difference("conv1", 1, n=n, sqnr_db=5), difference("boxes", 2, n=n, sqnr_db=sqnr_db, kind="output"))
        return [f.layer for f in find(of(compared(n=n, top1_n=0, top1_agree=0, probes=probes)))]

    assert found(4) == ["conv1", "boxes"]
    assert found(4, n=SETTINGS.min_compared - 1) == []
    assert found(25) == []


def test_a_former_version_as_baseline_is_a_model_change() -> None:
    (finding, *_) = find(quantized(200, baseline="3"))
    assert (finding.cause, finding.alert) == ("model_change", "ReluscopeActivationDrift")


@pytest.mark.parametrize(("reference", "cause"), [("reference.onnx", "quantization_fault"), ("3", "model_change")])
def test_a_holdout_says_itself_what_it_ran_against(reference: str, cause: str) -> None:
    (finding,) = find(holdout(60, 0, reference=reference))
    assert finding.cause == cause
    # Requests that were compared with another baseline do not change that.
    (*_, labelled) = find(quantized(300), holdout(60, 0, reference=reference, baseline_digest="h1"))
    assert (labelled.details["kind"], labelled.cause) == ("holdout", cause)


def test_a_holdout_against_a_former_version_names_it() -> None:
    (finding,) = find(holdout(60, 0, reference="3"))
    assert finding.summary.startswith("conv2: SQNR 7.0 dB against version 3 on holdout.npz over 312 requests")


def test_of_each_agent_only_the_newest_holdout_counts() -> None:
    labels: dict[str, Any] = {"kind": "holdout", "baseline": "holdout.npz", "accuracy_n": 9}
    old = of(compared(provider="CUDAExecutionProvider", **labels), "agent-a", 1)
    new = of(compared(START + MINUTE, provider="CPUExecutionProvider", **labels), "agent-a", 2)
    assert [group.members for group in groups([old, new])] == [(new,)]
    other = of(compared(START + MINUTE, provider="CUDAExecutionProvider", **labels), "agent-b", 3)
    assert [group.members for group in groups([old, new, other])] == [(new,), (other,)]


def test_a_withdrawal_speaks_for_all_until_an_agent_runs_the_holdout_again() -> None:
    labels: dict[str, Any] = {"kind": "holdout", "baseline": "holdout.npz"}
    old = of(compared(accuracy_n=9, **labels), "agent-a", 1)
    gone = of(compared(START + MINUTE, n=0, probes=(), **labels), "agent-b", 2)
    assert groups([old, gone]) == []
    again = of(compared(START + 2 * MINUTE, accuracy_n=9, **labels), "agent-a", 1)
    assert [group.members for group in groups([again, gone])] == [(again,)]


def test_requests_of_agents_add_up_but_runs_of_a_holdout_do_not() -> None:
    later = START + MINUTE
    old, new = holdout(30, 0), of(compared(later, kind="holdout", baseline="holdout.npz", accuracy_n=9), "agent-b")
    both = [of(compared(top1_agree=99), "agent-a"), of(compared(later, top1_agree=98), "agent-b", 2)]
    seen = [agreement(group) for group in groups([old, new, *both])]
    assert [(one.kind, one.n, one.agents) for one in seen] == [("holdout", 100, 1), ("reference_model", 200, 2)]
    assert seen[1].top1_agreement == 197 / 200
    assert seen[1].accuracy_delta is None


def test_only_the_newest_file_of_a_baseline_counts() -> None:
    old = quantized(100)
    new = of(compared(START + MINUTE, baseline_digest="r2"), "agent-a", 2)
    assert find(old, new) == []
    assert [agreement(group).n for group in groups([old, new])] == [100]


def gpu(
    agent: str, mismatched: int, n: int = 200, kind: BaselineKind = "cpu_provider", first: int = 1
) -> AgentComparison:
    """What an agent compared with the CPU or the response; ``first`` is the first of three layers that differ."""
    probes = tuple(difference(f"conv{i}", i, n=n, mismatched=mismatched if i >= first else 0) for i in range(1, 4))
    baseline = "CPUExecutionProvider" if kind == "cpu_provider" else "response"
    fields: dict[str, Any] = {"baseline": baseline, "baseline_digest": "", "mismatched": mismatched, "probes": probes}
    return of(compared(kind=kind, n=n, **fields), agent)


def test_one_bad_gpu_is_found_in_a_fleet_and_named_with_its_first_layer() -> None:
    fleet = [gpu(f"pod-{i}", 0) for i in range(20)]
    (finding,) = find(*fleet, gpu("pod-x", 14, first=2))
    assert finding.summary == (
        "conv2: on pod-x (CUDAExecutionProvider) 14 of 200 requests differ from CPUExecutionProvider beyond tolerance, "
        "first at this layer; on 20 other agents 0 of 4000"
    )
    assert (finding.test, finding.cause, finding.alert) == (
        "hardware",
        "hardware_mismatch",
        "ReluscopeHardwareMismatch",
    )
    assert (finding.severity, finding.origin, finding.n, finding.effect) == ("critical", True, 200, 0.07)
    assert finding.details["agents"] == ["pod-x"]
    assert finding.details["by_agent"][0] == {
        "agent": "pod-x", "provider": "CUDAExecutionProvider", "n": 200, "mismatched": 14,
        "p_value": finding.p_value,
    }  # fmt: skip
    assert len(finding.details["by_agent"]) == 10


def test_a_rare_mismatch_within_the_limit_is_no_finding() -> None:
    assert find(gpu("pod-x", 1)) == []
    assert find(gpu("pod-x", 8, n=10_000)) == []
    assert find(gpu("pod-x", 40, n=10_000))


def test_agents_that_fail_at_unlike_layers_are_told_apart() -> None:
    found = find(gpu("pod-x", 20, first=3), gpu("pod-y", 20, first=1), gpu("pod-z", 30, first=3))
    assert {f.layer: f.details["agents"] for f in found} == {"conv1": ["pod-y"], "conv3": ["pod-x", "pod-z"]}


def test_a_stray_mismatch_of_an_early_layer_does_not_take_the_blame() -> None:
    probes = (difference("conv1", 1, n=5000, mismatched=2), difference("conv2", 2, n=5000, mismatched=90))
    (finding,) = find(of(compared(kind="cpu_provider", n=5000, mismatched=90, probes=probes)))
    assert finding.layer == "conv2"


def test_responses_that_only_some_agents_fail_to_reproduce_are_the_hardware() -> None:
    (finding,) = find(gpu("pod-x", 60, kind="served_response"), gpu("pod-y", 0, kind="served_response"))
    assert (finding.test, finding.cause, finding.alert) == (
        "response",
        "hardware_mismatch",
        "ReluscopeHardwareMismatch",
    )
    assert finding.summary.endswith(
        "60 of 200 requests differ from the served response beyond tolerance, first at this layer; "
        "on 1 other agent 0 of 200"
    )


@pytest.mark.parametrize("others", [[], [("pod-y", 190, 200)], [("pod-y", 0, 1)]])
def test_responses_that_no_agent_is_proven_to_reproduce_are_another_model(others: list[tuple[str, int, int]]) -> None:
    found = find(gpu("pod-x", 195, kind="served_response"), *(gpu(*one, kind="served_response") for one in others))
    assert [(f.cause, f.alert) for f in found] == [("model_change", "ReluscopeServedModelMismatch")]
    assert found[0].summary.endswith(": the served model is not the file on disk")


def test_many_agents_are_named_in_part() -> None:
    (finding,) = find(*(gpu(f"pod-{i}", 20) for i in range(5)))
    assert "on pod-0, pod-1, pod-2 and 2 more (CUDAExecutionProvider) 100 of 1000 requests" in finding.summary
    assert len(finding.details["agents"]) == 5


@pytest.mark.parametrize("kind", get_args(BaselineKind))
def test_nothing_compared_is_no_finding(kind: BaselineKind) -> None:
    nothing = of(compared(kind=kind, n=0, probes=()))
    assert find(nothing) == []
    assert agreement(joined([nothing])).mismatch_share is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_mismatch": 1},
        {"min_sqnr_db": np.nan},
        {"paired_level": 0},
        {"paired_seconds": 0},
        {"holdout_seconds": 0},
        {"min_compared": 0},
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PairedSettings(**wrong)
