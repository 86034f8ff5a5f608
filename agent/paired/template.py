"""What the comparisons of one pairing have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent import wire
from agent.paired.baselines import Baseline
from agent.serving.models import Served


@dataclass(frozen=True, slots=True)
class Template:
    """What every comparison of a pairing says about itself; the window is filled in."""

    kind: wire.BaselineKind
    baseline: str
    digest: str
    provider: str
    reference: str = ""
    """What runs beside the served model on a holdout."""

    def blank(self, span: tuple[int, int]) -> wire.Comparison:
        """A comparison of no requests in the window ``span`` (Unix milliseconds)."""
        blank = wire.Comparison(*span, self.kind, self.baseline, self.digest, self.provider, 0)
        return replace(blank, reference=self.reference)


def template_of(served: Served, baseline: Baseline | None, checksum: str) -> Template:
    """Of a served model and its baseline, whose digest is ``checksum``; None stands for the server's responses."""
    provider = served.engine.provider
    if baseline is None:
        return Template("served_response", "response", "", provider)
    return Template(baseline.kind, baseline.label, checksum, provider)
