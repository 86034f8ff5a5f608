"""A served model and its baseline, ready to run the same requests: sessions, matched probes, bounded fetches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent import wire
from agent.instrument import InstrumentError
from agent.paired.axes import all_requests_first, request_axes
from agent.paired.baselines import Baseline
from agent.paired.batch import Batch, Outcome, compare_batch
from agent.paired.errors import PairedError
from agent.paired.groups import FetchGroup, plan
from agent.paired.matching import Pair, Unmatched, compared_probes
from agent.paired.opening import open_baseline, served_device
from agent.paired.settings import PairedSettings
from agent.paired.side import Side
from agent.paired.sums import Tolerance
from agent.paired.template import Template, template_of
from agent.replay import CPU, NoMemory, ReplayError, batching
from agent.replay.batching import Tensors
from agent.replay.rows import Drawn
from agent.serving.models import Served

_RUNS_PER_GROUP = 16
"""Runs before the next group of probes is fetched, where they do not all fit: opening sessions takes long."""


class Pairing:
    """Runs requests on the served model and on its baseline. Belongs to one thread.

    Sessions are opened by the first run, whose shapes say how large the activations are. Where not all of them fit
    ``fetch_bytes``, each run compares one group of probes; `use` chooses which.
    """

    def __init__(
        self,
        served: Served,
        baseline: Baseline | None,
        settings: PairedSettings,
        template: Template | None = None,
        make_room: Callable[[], bool] = lambda: False,
        owner: Literal["paired", "holdout"] = "paired",
    ) -> None:
        """Loads and matches the models.

        Args:
            served: the served model.
            baseline: None to run the served side alone, for its outputs.
            settings: the bounds.
            template: what the comparisons say; None to follow from ``baseline``.
            make_room: called where the agent's memory refuses a session; whether something was freed for it.
            owner: whose work it is.

        Raises:
            PairedError: one of the files cannot be used.
        """
        self._settings = settings = replace(settings, device=settings.device.owned(owner))
        self._make_room = make_room
        self._axes = served.instrumented.batch_axes
        self._fixed = served.engine.batch_size
        self._tensor_axes = request_axes(served.instrumented)
        self._elements = 0
        self._group = 0
        self._runs = 0
        self.groups: tuple[FetchGroup, ...] = ()
        self.too_large: tuple[str, ...] = ()
        try:
            self._served = Side(served.entry.path, served.digest, served_device(settings, baseline))
            graph = self._served.graph()
            self._outputs = graph.outputs
            checksum = ""
            if baseline is None:
                probes = compared_probes(served.instrumented.probes, graph.outputs)
                self.pairs = tuple(Pair(probe, probe.tensor) for probe in probes if probe.tensor in graph.outputs)
                self.unmatched: tuple[Unmatched, ...] = ()
                self._baseline: Side | None = None
            else:
                opened = open_baseline(served, graph, baseline, settings)
                self._baseline, checksum = opened.side, opened.digest
                self.pairs, self.unmatched = opened.pairs, opened.unmatched
        except (InstrumentError, ReplayError, OSError) as error:
            raise PairedError("baseline_unusable", str(error)) from error
        self.template = template or template_of(served, baseline, checksum)
        # Both tensors of a pair have one shape, so their requests lie on the same axis.
        self._baseline_axes = {pair.baseline_tensor: self._tensor_axes.get(pair.probe.tensor, 0) for pair in self.pairs}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The served model's float outputs, in order."""
        return self._outputs

    def prepare(self, inputs: Tensors) -> None:
        """Plans the groups for inputs of these shapes and opens the current group's sessions; raises PairedError."""
        elements = sum(value.size for value in inputs.values()) // max(batching.count(inputs, self._axes), 1)
        if self.groups and elements <= self._elements:
            return
        pairs = self.pairs if self._baseline is not None else ()
        tensors = [*self._outputs, *(pair.probe.tensor for pair in pairs)]
        try:
            sizes = self._served.sizes(list(dict.fromkeys(tensors)), inputs, self._axes)
        except (InstrumentError, ReplayError, OSError) as error:
            raise PairedError("run_failed", str(error)) from error
        limit, batch = self._settings.fetch_bytes, self._settings.max_batch
        if self._fixed is not None:  # a fixed batch cannot be cut: its requests share the limit
            limit //= self._fixed
        planned = plan(pairs, self._outputs, sizes, limit, batch)
        self.groups, self.too_large, self._elements = planned.groups, planned.too_large, elements
        self.use(0)

    def use(self, group: int) -> None:
        """Makes the group of this number, modulo their count, the one that is fetched; raises PairedError."""
        self._group = group % len(self.groups)
        pairs = self.groups[self._group].pairs
        try:
            self._open(self._served, [*self._outputs, *(pair.probe.tensor for pair in pairs)])
            if self._baseline is not None:
                self._open(self._baseline, [pair.baseline_tensor for pair in pairs])
        except (InstrumentError, ReplayError, OSError) as error:
            self.close()  # the next run tries from the beginning
            raise PairedError("no_memory" if isinstance(error, NoMemory) else "run_failed", str(error)) from error
        self.template = replace(self.template, provider=self._served.provider)
        if self.template.kind == "cpu_provider" and self._served.provider == CPU:
            self.close()
            raise PairedError("run_failed", "onnxruntime put the served side on the CPU too; is the GPU's memory full?")

    def close(self) -> bool:
        """Frees the sessions, which the next run opens again; False where none was open."""
        self.groups, self._elements = (), 0
        closed = [side.close() for side in (self._served, self._baseline) if side is not None]
        return any(closed)

    def _open(self, side: Side, tensors: list[str]) -> None:
        while True:
            try:
                side.open(list(dict.fromkeys(tensors)))
                return
            except NoMemory:
                if not self._make_room():
                    raise

    def advance(self) -> None:
        """Goes on to the next group, where there are several."""
        if len(self.groups) > 1:
            self.use(self._group + 1)

    def rotate(self) -> None:
        """Goes on to the next group once the current one has had its share of runs."""
        if self._runs >= _RUNS_PER_GROUP:
            self._runs = 0
            self.advance()

    def run(
        self,
        inputs: Tensors,
        span: tuple[int, int],
        *,
        labels: NDArray[np.int64] | None = None,
        answers: Tensors | None = None,
        drawn: Drawn | None = None,
    ) -> Outcome:
        """Compares requests, a few at a time; of a request with several rows the one that was drawn.

        Args:
            inputs: arrays with the requests on the axes that the served model has them on.
            span: the window that they belong to.
            labels: shape (requests,).
            answers: outputs of the server for these requests, where there is no baseline model.
            drawn: where ``inputs`` are one request's: which of its rows counts. All rows of ``answers`` are there.

        Raises:
            PairedError: a side cannot run them.
        """
        self.prepare(inputs)
        self._runs += 1
        ran = batching.count(inputs, self._axes)
        step = self._fixed or self.groups[self._group].requests
        blank = self.template.blank(span)
        total = blank
        misfits: dict[str, str] = {}
        classes = 0
        for start in range(0, ran, step):
            stop = min(start + step, ran)
            # Of a fixed batch all rows are run, for nothing tells it from a tensor without requests.
            some = slice(0, stop - start) if drawn is None else slice(int(drawn.kept[0]), int(drawn.kept[0]) + 1)
            served, baseline, moved = self._run_both(batching.cut(inputs, self._axes, start, stop), stop - start, some)
            if answers is not None:
                rows, row = (
                    (ran, slice(start, stop)) if drawn is None else (drawn.rows, slice(drawn.row, drawn.row + 1))
                )
                baseline = self._answers(answers, rows, row)
            part = None if labels is None else labels[start:stop]
            batch = Batch(some.stop - some.start, served, baseline, part, moved)
            outcome = compare_batch(blank, self.pairs, self._outputs, batch, self._tolerance())
            total = wire.merge(total, outcome.comparison)
            misfits.update(outcome.misfits)
            classes = outcome.classes
        return Outcome(total, tuple(misfits.items()), classes)

    def _run_both(self, part: Tensors, requests: int, some: slice) -> tuple[Tensors, Tensors | None, dict[str, int]]:
        """Both sides' values of ``some`` of the requests, in front, and where the served side had them if elsewhere."""
        if self._fixed is not None and requests < self._fixed:
            part = batching.fill(part, self._axes, self._fixed)
        try:
            served = self._served.run(part)
            baseline = self._baseline.run(part) if self._baseline is not None else None
        except ReplayError as error:
            raise PairedError("run_failed", str(error)) from error
        ran, fixed = self._fixed or requests, self._fixed is not None
        shown, moved = all_requests_first(served, self._tensor_axes, ran, some, fixed=fixed)
        if baseline is not None:
            baseline, _ = all_requests_first(baseline, self._baseline_axes, ran, some, fixed=fixed)
        return shown, baseline, moved

    def _answers(self, answers: Tensors, rows: int, some: slice) -> Tensors:
        """Of the server's answers to ``rows`` rows some, with these in front."""
        axes = {name: self._tensor_axes.get(name) or 0 for name in answers}
        whole = slice(0, rows)
        front, _ = all_requests_first(answers, axes, rows, whole, fixed=self._fixed is not None)
        # One request's may be tokens in rows: all of it is that request's.
        return front if rows == 1 else {name: value[some] for name, value in front.items()}

    def _tolerance(self) -> Tolerance | None:
        return self._settings.tolerance if self.template.kind in ("cpu_provider", "served_response") else None
