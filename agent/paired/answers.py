"""The outputs in a server's response to a request, for comparison with what the model file answers."""

from __future__ import annotations

from agent.intake.oip import parse_response
from agent.intake.unpacking import Limits
from agent.paired.axes import place, request_axes
from agent.paired.errors import PairedError
from agent.paired.intake import Task
from agent.replay.batching import Tensors


def answers_of(task: Task, limits: Limits) -> Tensors:
    """The float outputs in the server's response; raises OipError or PairedError where it does not fit."""
    response = task.response
    if response is None:
        raise PairedError("internal", "the task has no response")
    served = task.served
    parsed = parse_response(
        response.body, response.header_length, served.metadata.outputs, encoding=response.encoding, limits=limits
    )
    if parsed.version is not None and parsed.version != served.entry.version:
        raise PairedError("other_version", "the response is another version's")
    axes, fixed = request_axes(served.instrumented), served.engine.batch_size is not None
    rows = task.drawn.rows
    for name, value in parsed.outputs.items():
        found = place(value.shape, axes.get(name, 0) or 0, rows, fixed=fixed)
        if value.ndim == 0 or (found is None and rows != 1):  # all of it is the one row's
            raise PairedError("bad_response", f"output {name!r} has shape {list(value.shape)} for {rows} rows")
    return parsed.outputs
