"""One odd pod: every agent's layers against those of the rest of the fleet, on the same windows."""

from detector.statistics.fleet.deviation import SCALARS, Fleet, compare
from detector.statistics.fleet.processes import e_values, fitted
from detector.statistics.fleet.scalars import Agents, Scalars, of_summary

__all__ = ["SCALARS", "Agents", "Fleet", "Scalars", "compare", "e_values", "fitted", "of_summary"]
