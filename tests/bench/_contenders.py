"""The ways to learn about activations that the capture benchmark compares.

A contender is made once per cell and then called once per batch. It answers with the bytes of the arrays that left the
session, the model's own outputs not counted. What it needs as files is made by `prepare`, so that a contender in a
process of its own does not hold the benchmark's copies of the model as well.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, shape_inference
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

from agent import replay
from agent.capture.calibration import calibrate
from agent.capture.engine import Engine
from agent.capture.settings import CaptureSettings
from agent.instrument import Instrumented, instrument, open_model
from agent.instrument.pooled import Pooled
from agent.replay import Replayer, output_types
from tests.bench._sessions import Device, Feeds, feeds
from tests.zoo import ZOO

Once = Callable[[Feeds], int]

BUDGET = 0.10
GPU_MEMORY = 16 << 30
RECTIFIERS = ("Relu", "Clip")


@dataclass(frozen=True, slots=True)
class Case:
    """One model of the zoo as files, what is known of it, the device that it runs on and the batch size."""

    folder: Path
    device: Device
    batch: int
    inputs: dict[str, list[int]]
    """Shape of one request by input."""
    outputs: tuple[str, ...]
    """The model's own."""
    probed_bytes: int
    """Of all probed activations of one request."""
    tensor_bytes: int
    """Of every tensor that a node of the model makes, for one request."""

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"


def prepare(name: str, folder: Path) -> None:
    """Writes the files of a `Case`: the plain model, the instrumented one, and one that gives every activation out."""
    model = ZOO[name]()
    instrumented = instrument(model)
    onnx.save(model, folder / "plain.onnx")
    onnx.save(instrumented.model, folder / "instrumented.onnx")
    sizes = _bytes_per_request(model)
    probed = [probe.tensor for probe in instrumented.probes if probe.kind == "activation"]
    facts = {
        "inputs": {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim[1:]] for v in model.graph.input},
        "outputs": list(instrumented.outputs),
        "probed_bytes": sum(sizes[tensor] for tensor in probed),
        "tensor_bytes": sum(sizes.values()),
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    # The model is not needed any more, so it is extended in place: a copy of VGG-19 takes half a gigabyte.
    model.graph.output.extend(helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None) for tensor in probed)
    onnx.save(model, folder / "activations.onnx")


def open_case(folder: Path, device: Device, batch: int) -> Case:
    """What `prepare` wrote."""
    facts = json.loads((folder / "facts.json").read_text())
    facts["outputs"] = tuple(facts["outputs"])
    return Case(folder, device, batch, **facts)


def _bytes_per_request(model: onnx.ModelProto) -> dict[str, int]:
    """Of every tensor that a node makes, by its name; all are float32 in the zoo, and a free extent counts as 1."""
    shaped = shape_inference.infer_shapes(model).graph
    made = {name for node in shaped.node for name in node.output}
    return {
        value.name: 4 * math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
        for value in [*shaped.value_info, *shaped.output]
        if value.name in made
    }


class _Counting:
    """A session that adds up the bytes of what it gives out beside the model's own outputs."""

    def __init__(self, session: ort.InferenceSession, own: tuple[str, ...]) -> None:
        self._session = session
        self._added = [port.name not in own for port in session.get_outputs()]
        self.nbytes = 0

    def run(self, names: None, inputs: Feeds) -> list[NDArray[Any]]:
        values: list[NDArray[Any]] = self._session.run(names, inputs)
        self.nbytes = sum(value.nbytes for value, added in zip(values, self._added, strict=True) if added)
        return values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def plain(case: Case) -> Once:
    """What all others are compared with: the model alone."""
    return _run_only(case, "plain")


def every_probe(case: Case) -> Once:
    """The agent's own session on the instrumented model, every probe in every batch."""
    observed = instrument(open_model(case.path("plain")), output_types)
    replayer, count = Replayer.on(_device(case), observed), _counting(observed)
    return lambda inputs: count(replayer.run(inputs))


def _run_only(case: Case, model: str) -> Once:
    session = _Counting(case.device.session(case.path(model)), case.outputs)

    def once(inputs: Feeds) -> int:
        session.run(None, inputs)
        return session.nbytes

    return once


def fetch_all(case: Case) -> Once:
    """Every probed activation as an output, then mean, maximum and share of positive elements in numpy."""
    session = _Counting(case.device.session(case.path("activations")), case.outputs)

    def once(inputs: Feeds) -> int:
        for value in session.run(None, inputs)[len(case.outputs) :]:
            reduce_in_numpy(value)
        return session.nbytes

    return once


def reduce_in_numpy(value: NDArray[Any]) -> None:
    """Over positions, which lie behind the channels in images and before them in sequences."""
    axes = (1,) if value.ndim == 3 else tuple(range(2, value.ndim))
    value.mean(axes), value.max(axes), (value > 0).mean(axes)


class _Deaf:
    """An observer of the engine who does not care: nothing runs out of memory in a benchmark's cell."""

    def out_of_memory(self, batch: int, reason: str) -> None: ...

    def moved(self, provider: str, reason: str, *, gave_up_gpu: bool) -> None: ...

    def absent(self, probes: Mapping[str, str]) -> None: ...


def within_budget(case: Case) -> Once:
    """The agent's own engine: groups of probes in turn, as many as its timing at load finds to keep the budget."""
    observed = instrument(open_model(case.path("plain")), output_types)
    device = _device(case)
    settings = CaptureSettings(device, max_batch=case.batch, overhead_budget=BUDGET)
    found = calibrate(observed, settings, lambda part: Replayer.on(device, part), stopped=lambda: False)
    engine = Engine(observed, found.groups, settings, _Deaf())
    # A group's session is built at its first turn, and allocates at its second.
    for _ in range(3 * engine.groups):
        engine.run(feeds(case.inputs, case.batch, 0))

    count = _counting(observed)
    return lambda inputs: count(engine.run(inputs))


def _device(case: Case) -> replay.Device:
    return replay.Device(
        case.device.threads, GPU_MEMORY, "cpu" if case.device.provider == "CPUExecutionProvider" else "cuda"
    )


def _counting(observed: Instrumented) -> Callable[[Mapping[str, Pooled]], int]:
    """Counts the bytes that were fetched for pooled values: not the inputs', nor what the model gives out anyway."""
    known = {*observed.batch_axes, *observed.outputs}
    fetched = {probe: [n for n in one.names if n not in known] for probe, one in observed.pooled.items()}
    return lambda pooled: sum(len(fetched[name]) * one.mean.nbytes for name, one in pooled.items())


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, inputs: Feeds) -> None:
        self._left: Feeds | None = inputs

    def get_next(self) -> Feeds | None:
        inputs, self._left = self._left, None
        return inputs


def calibrator(method: CalibrationMethod) -> Callable[[Case], Once]:
    """onnxruntime's own calibrator, of the rectifiers alone: their inputs and outputs, as it would have them.

    Only `collect_data` is timed, which runs the model and reduces what it gives out.
    """

    def make(case: Case) -> Once:
        augmented = case.path(f"calibrator-{method.name}")
        made = create_calibrator(
            case.path("plain"), RECTIFIERS, augmented_model_path=str(augmented), calibrate_method=method
        )
        # No option of the calibrator sets threads, so its session is made anew with everybody's options. This also
        # gains it graph optimisations, which the calibrator's own session goes without.
        session = _Counting(case.device.session(augmented), case.outputs)
        made.infer_session = session

        def once(inputs: Feeds) -> int:
            with contextlib.redirect_stdout(None):  # it announces each call
                made.collect_data(_Reader(inputs))
            return session.nbytes

        return once

    return make


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to observe activations."""

    make: Callable[[Case], Once]
    copies: int = 0
    """How often it holds the activations of a batch at once: its memory beyond the plain session's."""
    everything: bool = False
    """It holds every tensor of the model, not only the probed ones."""

    def held_bytes(self, case: Case) -> int:
        """Estimate of what it holds beside a plain session."""
        return self.copies * case.batch * (case.tensor_bytes if self.everything else case.probed_bytes)


CONTENDERS = {
    "plain": Contender(plain),
    "every probe": Contender(every_probe),
    "within budget": Contender(within_budget),
    "fetch + numpy": Contender(fetch_all, copies=2),
    "MinMax": Contender(calibrator(CalibrationMethod.MinMax), copies=1, everything=True),
    "Histogram": Contender(calibrator(CalibrationMethod.Entropy), copies=2, everything=True),
}
"""By the name in the table; the first is what the others are compared with."""
