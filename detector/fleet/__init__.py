"""One odd pod: every agent's layers against those of the rest of the fleet, on the same windows."""

from detector.fleet.deviation import SCALARS, Fleet, compare
from detector.fleet.evidence import e_values, fitted
from detector.fleet.scalars import Agents, Scalars, of_summary
from detector.fleet.verdict import findings

__all__ = ["SCALARS", "Agents", "Fleet", "Scalars", "compare", "e_values", "findings", "fitted", "of_summary"]
