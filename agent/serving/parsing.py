"""From a sampled request to the tensors that are replayed."""

from __future__ import annotations

from agent.intake.oip import parse_request
from agent.intake.queue import Captured
from agent.intake.tensors import OipError
from agent.intake.unpacking import Limits
from agent.replay import batching
from agent.replay.batching import Tensors
from agent.serving.models import Served


def inputs_of(item: Captured, served: Served, limits: Limits) -> Tensors:
    """A request's inputs, of one number of requests all; raises OipError, and nothing else whatever the body holds."""
    try:
        return _checked(item, served, limits)
    except OipError:
        raise
    except Exception as error:  # a body is hostile; the error's text may quote it
        raise OipError("internal", type(error).__name__) from None


def _checked(item: Captured, served: Served, limits: Limits) -> Tensors:
    request = parse_request(
        item.body, item.header_length, served.metadata.inputs, encoding=item.encoding, limits=limits
    )
    try:
        batching.count(request.inputs, served.instrumented.batch_axes)
    except (ValueError, IndexError) as error:
        raise OipError("shape", str(error)) from error
    return request.inputs
