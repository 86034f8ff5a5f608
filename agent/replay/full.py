"""Sessions that fetch tensors whole: for comparing two models inside the agent."""

from __future__ import annotations

from agent.instrument.whole import Exposed
from agent.replay import batching
from agent.replay.errors import run_error
from agent.replay.providers import Device
from agent.replay.session import Port, open_session, port_of, quiet


class FullSession:
    """An onnxruntime session that fetches chosen tensors of a model whole."""

    def __init__(self, exposed: Exposed, device: Device) -> None:
        """Raises ReplayError as `Replayer` does."""
        self._session = open_session(exposed, device)
        self._outputs = exposed.outputs
        self._fetched = list(dict.fromkeys(exposed.outputs.values()))

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What the session wants, in order."""
        return tuple(port_of(value) for value in self._session.get_inputs())

    @property
    def provider(self) -> str:
        """The execution provider that the session got, which may be the CPU where another was wanted."""
        return str(self._session.get_providers()[0])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every exposed tensor as far as onnxruntime infers it, -1 for free extents."""
        ports = {port.name: port.shape for port in map(port_of, self._session.get_outputs())}
        return {tensor: ports[output] for tensor, output in self._outputs.items()}

    def run(self, inputs: batching.Tensors) -> batching.Tensors:
        """The values of every exposed tensor, by its name in the original model; raises ReplayError."""
        try:
            values = dict(zip(self._fetched, self._session.run(self._fetched, inputs, quiet()), strict=True))
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise run_error(error) from None
        return {tensor: values[output] for tensor, output in self._outputs.items()}
