"""Two real models on the same requests: quantized in both forms, permuted, damaged; and the bounds on memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from agent import wire
from agent.instrument import InstrumentError, instrument
from agent.instrument.whole import WholeGraph
from agent.paired.baselines import Baseline, cpu_of, reference_of
from agent.paired.batch import Batch, compare_batch
from agent.paired.errors import PairedError
from agent.paired.groups import plan
from agent.paired.matching import Pair
from agent.paired.pairing import Pairing
from agent.replay import FullSession
from agent.serving.models import Served
from tests.agent.comparisons import comparison
from tests.agent.models import Builder, small_cnn
from tests.agent.paired.builders import (
    SPAN,
    bit_flipped,
    by_name,
    images,
    permuted,
    quantized,
    quantized_probes,
    recurrent,
    serve,
    settings,
    with_weight,
)


def put_reference(served: Served, model: onnx.ModelProto) -> Baseline:
    onnx.save(model, served.entry.path.with_name("reference.onnx"))
    baseline = reference_of(served.entry, False)
    assert baseline is not None
    return baseline


def served_in(tmp_path: Path, model: onnx.ModelProto, probes: tuple[wire.Probe, ...] | None = None) -> Served:
    return serve(tmp_path / "digits" / "2" / "model.onnx", model, probes=probes)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_an_int8_model_is_close_to_its_float_reference(tmp_path: Path, form: str) -> None:
    model = small_cnn()
    served = served_in(tmp_path, quantized(tmp_path, model, form), quantized_probes(form))
    pairing = Pairing(served, put_reference(served, model), settings())
    assert pairing.unmatched == ()
    assert [pair.baseline_tensor for pair in pairing.pairs] == ["relu1_out", "relu2_out", "relu3_out", "fc2_out"]
    got = pairing.run({"image": images(40)}, SPAN).comparison
    assert (got.kind, got.baseline, got.n, got.mismatched) == ("reference_model", "reference.onnx", 40, 0)
    assert (got.start_ms, got.end_ms) == SPAN
    assert got.top1_n == 40 and got.top1_agree >= 36
    for item in got.probes:
        assert 20 < wire.sqnr_db(item) < 60, item.probe.name
        assert 0.99 < wire.cosine(item) < 1, item.probe.name
        assert item.nonfinite == 0
    assert [item.probe.channels for item in got.probes] == [4, 6, 5, 3]


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_the_probes_of_an_int8_model_find_the_rectifiers_of_its_reference(tmp_path: Path, form: str) -> None:
    model = small_cnn()
    served = served_in(tmp_path, quantized(tmp_path, model, form))
    pairing = Pairing(served, put_reference(served, model), settings())
    assert pairing.unmatched == ()
    assert [pair.baseline_tensor for pair in pairing.pairs] == ["relu1_out", "relu2_out", "relu3_out", "fc2_out"]
    got = pairing.run({"image": images(20)}, SPAN).comparison
    assert all(wire.sqnr_db(item) > 20 for item in got.probes)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_two_int8_models_are_compared_as_their_readers_see_them(tmp_path: Path, form: str) -> None:
    model = small_cnn()
    served = served_in(tmp_path, quantized(tmp_path, model, form))
    baseline = put_reference(served, quantized(tmp_path, permuted(model), form))
    probes = by_name(Pairing(served, baseline, settings()).run({"image": images(20)}, SPAN).comparison)
    first, _, third, _ = probes.values()
    assert wire.cosine(first) < 0.95
    assert wire.sqnr_db(third) > 20


def token_rows(batch: int | str) -> onnx.ModelProto:
    b = Builder()
    rows = b.node("Reshape", ["tokens", "rows"], "flatten")
    b.weights.append(onnx.numpy_helper.from_array(np.array([-1, 8], np.int64), "rows"))
    x = b.node("Relu", [b.gemm(rows, "up", 8, 12)], "relu1")
    return b.model({"tokens": [batch, 5, 8]}, {x: 2})


def test_tokens_are_compared_one_request_at_a_time(tmp_path: Path) -> None:
    model = token_rows("N")
    served = served_in(tmp_path, model, instrument(model).probes)
    pairing = Pairing(served, put_reference(served, model), settings())
    tokens = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    (item,) = pairing.run({"tokens": tokens}, SPAN).comparison.probes
    assert (item.probe.name, item.n, item.elements) == ("relu1", 1, 5 * 12)
    assert len(item.only_served_active) == 12


@pytest.mark.parametrize(
    ("served", "baseline", "reason"),
    [
        ((3, 4), (3, 5), "shape [3, 4] when served, [3, 5] in the baseline"),
        (
            (1, 16, 4),
            (1, 16, 4),
            "shape [1, 16, 4] has no axis of the 3 requests: it is compared for",
        ),
        ((3, 0), (3, 0), "shape [3, 0] has nothing to compare"),
        ((), (), "a single number says nothing of one request"),
    ],
)
def test_why_two_tensors_are_not_compared(served: tuple[int, ...], baseline: tuple[int, ...], reason: str) -> None:
    pair = Pair(wire.Probe("relu", "Relu", "t", None, 1, "activation", 1, True), "b")
    batch = Batch(3, {"t": np.zeros(served)}, {"b": np.zeros(baseline)})
    ((name, said),) = compare_batch(comparison(probes=()), [pair], [], batch, None).misfits
    assert name == "relu"
    assert said.startswith(reason)


def test_external_weights_are_read_from_beside_the_model(tmp_path: Path) -> None:
    served = served_in(tmp_path, small_cnn())
    path = served.entry.path.with_name("reference.onnx")
    onnx.save(
        permuted(small_cnn()),
        path,
        save_as_external_data=True,
        location="reference.weights",
        size_threshold=0,
        convert_attribute=False,
    )
    baseline = reference_of(served.entry, False)
    got = Pairing(served, baseline, settings()).run({"image": images(4)}, SPAN).comparison
    assert got.top1_agree == 4
    with pytest.raises(PairedError, match="bytes, more than"):
        Pairing(served, baseline, settings(model_bytes=path.stat().st_size + 10))
    path.with_name("reference.weights").unlink()
    with pytest.raises(PairedError, match=r"reference\.weights: no such file"):
        Pairing(served, baseline, settings())


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_quantized_tensors_are_fetched_as_their_reader_sees_them(tmp_path: Path, form: str) -> None:
    model = quantized(tmp_path, small_cnn(), form)
    probe = quantized_probes(form)[0]
    exposed = WholeGraph(model).expose([probe.tensor])
    session = ort.InferenceSession(exposed.light.SerializeToString(), providers=["CPUExecutionProvider"])
    (values,) = session.run([exposed.outputs[probe.tensor]], {"image": images(4)})
    assert values.dtype == np.float32
    levels = np.unique(values)
    scale = np.diff(levels).min()
    np.testing.assert_allclose(levels / scale, np.round(levels / scale), atol=0.01)
    assert levels[0] == 0 and len(levels) <= 256


def test_exposing_does_not_change_the_model(tmp_path: Path) -> None:
    model = quantized(tmp_path, small_cnn(), "QOperator")
    before = model.SerializeToString(deterministic=True)
    graph = WholeGraph(model)
    graph.expose(["conv1_out_quantized", "fc2_out"])
    graph.bytes_per_request({"image": (2, 1, 8, 8)}, 2)
    assert model.SerializeToString(deterministic=True) == before
    with pytest.raises(InstrumentError, match="no tensor 'nowhere'"):
        graph.expose(["nowhere"])


def test_sizes_are_per_request() -> None:
    sizes = WholeGraph(small_cnn()).bytes_per_request({"image": (3, 1, 8, 8)}, 3)
    assert sizes["relu1_out"] == 4 * 8 * 8 * 4
    assert sizes["relu3_out"] == 5 * 4


def test_permuted_channels_give_the_same_classes_and_other_activations(tmp_path: Path) -> None:
    served = served_in(tmp_path, permuted(small_cnn()))
    got = Pairing(served, put_reference(served, small_cnn()), settings()).run({"image": images(32)}, SPAN).comparison
    assert got.top1_agree == got.top1_n == 32
    probes = by_name(got)
    assert wire.sqnr_db(probes["relu1"]) < 10
    assert wire.cosine(probes["relu1"]) < 0.95
    assert (probes["relu1"].only_served_active + probes["relu1"].only_baseline_active).sum() > 0
    assert wire.sqnr_db(probes["relu2"]) > 80
    assert wire.sqnr_db(probes["fc2_out"]) > 80


@pytest.fixture
def another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if sessions ran on a GPU."""
    monkeypatch.setattr(FullSession, "provider", "CUDAExecutionProvider")


@pytest.mark.usefixtures("another_device")
def test_the_same_model_twice_differs_nowhere(tmp_path: Path) -> None:
    served = served_in(tmp_path, small_cnn())
    got = Pairing(served, cpu_of(served.entry), settings()).run({"image": images(5)}, SPAN).comparison
    assert (got.kind, got.baseline, got.baseline_digest) == ("cpu_provider", "CPUExecutionProvider", served.digest)
    assert (got.mismatched, got.provider) == (0, "CUDAExecutionProvider")
    assert all(wire.sqnr_db(item) == np.inf for item in got.probes)


@pytest.mark.usefixtures("another_device")
def test_a_flipped_bit_is_a_mismatch_from_its_layer_on(tmp_path: Path) -> None:
    served = served_in(tmp_path, bit_flipped(small_cnn(), "conv2_w", bit=29))
    good = tmp_path / "good.onnx"
    onnx.save(small_cnn(), good)
    healthy = Baseline("cpu_provider", "CPUExecutionProvider", good, (0, 0), cpu_only=True)
    got = Pairing(served, healthy, settings()).run({"image": images(8)}, SPAN).comparison
    probes = by_name(got)
    assert probes["relu1"].mismatched == 0
    assert probes["relu2"].mismatched == 8
    assert got.mismatched == probes["fc2_out"].mismatched > 0


def test_nan_on_the_served_side_only(tmp_path: Path) -> None:
    broken = with_weight(small_cnn(), "fc2_b", [np.nan, 0, 0])
    served = served_in(tmp_path, broken)
    got = Pairing(served, put_reference(served, small_cnn()), settings()).run({"image": images(6)}, SPAN).comparison
    probes = by_name(got)
    assert probes["fc2_out"].nonfinite == 6
    assert probes["fc2_out"].elements == 6 * 2
    assert probes["relu3"].nonfinite == 0
    assert got.top1_n == 0, "a row with NaN has no class"


def test_groups_keep_the_activations_below_the_limit_and_cover_all_probes(tmp_path: Path) -> None:
    served = served_in(tmp_path, small_cnn())
    # relu1 takes 1024 bytes per request and side, relu2 1536, relu3 20, the output 12.
    pairing = Pairing(served, put_reference(served, permuted(small_cnn())), settings(fetch_bytes=3200))
    counts: dict[str, int] = {}
    for _ in range(4):
        got = pairing.run({"image": images(3)}, SPAN).comparison
        assert got.n == 3
        for name, item in by_name(got).items():
            counts[name] = counts.get(name, 0) + item.n
        pairing.advance()
    assert len(pairing.groups) == 2
    assert pairing.too_large == ()
    assert counts == {"relu1": 6, "relu2": 6, "relu3": 6, "fc2_out": 12}
    whole = Pairing(served, put_reference(served, permuted(small_cnn())), settings())
    expected = by_name(whole.run({"image": images(3)}, SPAN).comparison)
    assert len(whole.groups) == 1
    assert by_name(got)["relu2"].noise == pytest.approx(expected["relu2"].noise)


def test_groups_take_turns(tmp_path: Path) -> None:
    served = served_in(tmp_path, small_cnn())
    pairing = Pairing(served, put_reference(served, small_cnn()), settings(fetch_bytes=3200))
    runs = []
    for _ in range(40):
        runs.append("relu1" in by_name(pairing.run({"image": images(1)}, SPAN).comparison))
        pairing.rotate()
    assert runs == [True] * 16 + [False] * 16 + [True] * 8


def test_an_activation_larger_than_the_limit_is_left_out_and_named(tmp_path: Path) -> None:
    served = served_in(tmp_path, small_cnn())
    pairing = Pairing(served, put_reference(served, small_cnn()), settings(fetch_bytes=2500))
    got = pairing.run({"image": images(3)}, SPAN).comparison
    assert pairing.too_large == ("relu2",)
    assert set(by_name(got)) == {"relu1", "relu3", "fc2_out"}


def test_larger_inputs_are_planned_for_anew(tmp_path: Path) -> None:
    b = Builder()
    x = b.node("Relu", [b.conv("image", "conv1", 1, 4)], "relu1")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    model = b.model({"image": ["N", 1, "H", "W"]}, {b.gemm(x, "fc", 4, 3): 2})
    served = served_in(tmp_path, model)
    pairing = Pairing(served, put_reference(served, model), settings(fetch_bytes=1 << 14))
    assert "relu1" in by_name(pairing.run({"image": np.ones((1, 1, 8, 8), np.float32)}, SPAN).comparison)
    assert "relu1" not in by_name(pairing.run({"image": np.ones((1, 1, 64, 64), np.float32)}, SPAN).comparison)
    assert pairing.too_large == ("relu1",)


def test_unknown_sizes_are_fetched_apart() -> None:
    probes = instrument(small_cnn()).probes
    pairs = [Pair(probe, probe.tensor) for probe in probes if probe.kind != "input"]
    planned = plan(pairs, ["fc2_out"], {"relu1_out": 10, "fc2_out": 1}, 100, 32)
    groups = [[pair.probe.name for pair in group.pairs] for group in planned.groups]
    assert groups == [["fc2_out", "relu1"], ["fc2_out", "relu2"], ["fc2_out", "relu3"]]
    assert [group.requests for group in planned.groups] == [4, 1, 1]


def test_a_fixed_batch_is_filled_up_and_counted_right(tmp_path: Path) -> None:
    b = Builder()
    x = b.node("Relu", [b.conv("image", "conv1", 1, 4)], "relu1")
    model = b.model({"image": [4, 1, 8, 8]}, {x: 4})
    served = serve(tmp_path / "digits" / "1" / "model.onnx", model, batch_size=4)
    got = Pairing(served, put_reference(served, model), settings()).run({"image": images(6)}, SPAN).comparison
    assert got.n == 6
    assert by_name(got)["relu1"].n == 6


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_with_time_first_requests_are_compared_on_their_own_axis(tmp_path: Path, count: int) -> None:
    model = recurrent(["T", "N", 3], [1, "N", 5])
    served = served_in(tmp_path, model, None)
    assert served.instrumented.request_axes == {"x": 1, "state": 1, "relu": 1, "new_state": 1}
    pairing = Pairing(served, put_reference(served, model), settings(max_batch=3))
    outcome = pairing.run({"x": floats(7, count, 3), "state": floats(1, count, 5)}, SPAN)
    assert outcome.misfits == ()
    probes = by_name(outcome.comparison)
    assert {name: (item.n, item.elements, item.probe.axis) for name, item in probes.items()} == {
        "relu": (count, 7 * count * 5, 2), "new_state": (count, count * 5, 2),
    }  # fmt: skip
    assert len(probes["relu"].only_served_active) == 5


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_fixed_batch_is_cut_where_its_requests_are(tmp_path: Path, count: int) -> None:
    model = recurrent([4, 6, 3], [1, 4, 5], requests_first=True)
    served = serve(tmp_path / "digits" / "1" / "model.onnx", model, batch_size=4)
    assert served.instrumented.batch_axes == {"x": 0, "state": 1}
    outcome = Pairing(served, put_reference(served, model), settings()).run(
        {"x": floats(count, 6, 3), "state": floats(1, count, 5)}, SPAN
    )
    assert outcome.misfits == ()
    assert {name: (item.n, item.elements) for name, item in by_name(outcome.comparison).items()} == {
        "relu": (count, 6 * count * 5), "new_state": (count, count * 5),
    }  # fmt: skip


def test_of_a_fixed_batch_of_tokens_the_filling_is_cut_off(tmp_path: Path) -> None:
    model = token_rows(4)
    served = serve(tmp_path / "digits" / "1" / "model.onnx", model, batch_size=4)
    assert served.instrumented.request_axes == {"tokens": 0}
    pairing = Pairing(served, put_reference(served, model), settings())
    (item,) = pairing.run({"tokens": floats(1, 5, 8)}, SPAN).comparison.probes
    assert (item.n, item.elements) == (1, 5 * 12)
    assert pairing.run({"tokens": floats(3, 5, 8)}, SPAN).misfits == (
        ("relu1", "shape [15, 12] has no axis of the 3 requests: it is compared for requests that come alone"),
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no model", "not an ONNX model"),
        (None, "has inputs ['tokens'], the served model ['image']"),
    ],
)
def test_an_unusable_reference_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    served = served_in(tmp_path, small_cnn())
    b = Builder()
    other = b.model({"tokens": ["N", 4]}, {b.node("Relu", ["tokens"], "relu1"): 2})
    path = served.entry.path.with_name("reference.onnx")
    path.write_bytes(content if content is not None else other.SerializeToString())
    baseline = reference_of(served.entry, False)
    with pytest.raises(PairedError) as caught:
        Pairing(served, baseline, settings())
    assert caught.value.reason == "baseline_unusable"
    assert reason in str(caught.value)


def test_a_reference_above_the_limit_is_not_loaded(tmp_path: Path) -> None:
    served = served_in(tmp_path, small_cnn())
    with pytest.raises(PairedError, match="bytes, more than --paired-model-mib allows"):
        Pairing(served, put_reference(served, small_cnn()), settings(model_bytes=100))


def test_a_served_file_that_was_replaced_is_not_compared(tmp_path: Path) -> None:
    served = served_in(tmp_path, small_cnn())
    onnx.save(permuted(small_cnn()), served.entry.path)
    with pytest.raises(PairedError) as caught:
        Pairing(served, cpu_of(served.entry), settings())
    assert caught.value.reason == "served_changed"


def test_the_former_version_is_the_baseline_if_asked_for(tmp_path: Path) -> None:
    served = serve(tmp_path / "digits" / "10" / "model.onnx", small_cnn())
    for version in ("2", "9", "11"):
        serve(tmp_path / "digits" / version / "model.onnx", small_cnn())
    (tmp_path / "digits" / "8").mkdir()
    assert reference_of(served.entry, False) is None
    found = reference_of(served.entry, True)
    assert found is not None
    assert (found.label, found.path.parent.name) == ("9", "9")
    put_reference(served, small_cnn())
    found = reference_of(served.entry, True)
    assert found is not None
    assert found.label == "reference.onnx"


@pytest.mark.parametrize(("shape", "moved"), [((3, 7), 0), ((3, 7), 1), ((1, 7), 1), ((7, 1), 0)])
def test_a_score_for_each_token_has_no_channels_however_long_the_sequence(shape: tuple[int, int], moved: int) -> None:
    """Else its positions would be channels, and their number would change with every request."""
    probe = wire.Probe("scores", "Output", "t", 1, 0, "output", 3, False)
    requests = 1 if 1 in shape else shape[0]
    values = {"t": np.ones(shape, np.float32)}
    batch = Batch(requests, values, values, None, {"t": moved} if moved else {})
    (item,) = compare_batch(comparison(probes=()), [Pair(probe, "t")], [], batch, None).comparison.probes
    assert (item.probe.channels, item.probe.axis, len(item.only_served_active)) == (None, 0, 0)
    assert (item.n, item.elements) == (requests, shape[0] * shape[1])
